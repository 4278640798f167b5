"""Leap: draws whose density is exact, in one step or several, from a Gaussian or a mixture."""

import math

import pytest
import torch
from helpers import assert_within_standard_error, log_abs_det_of_jacobian, perturbed
from models import mixture_draws

from pyro_osds.explore.mixture import mixture_base
from pyro_osds.flow.base import gaussian_base
from pyro_osds.flow.coupling import FlowMap
from pyro_osds.flow.leap import Leap


def make(dim, num_steps, mixture, **options):
    z = mixture_draws([[-3.0] * dim, [2.0] * dim], [100, 200])
    labels = torch.tensor([1] * 100 + [0] * 200)
    base = mixture_base(z, labels) if mixture else gaussian_base(z)
    flow = FlowMap(dim, num_blocks=4, num_spline_blocks=1, hidden_features=8, **options)

    return Leap(base, perturbed(flow), num_steps)


@pytest.fixture(params=[(1, False), (1, True), (4, False), (4, True)], ids=str)
def leap(request, float64):
    return make(3, *request.param)


def test_draws_have_the_density_of_the_inverse(leap):
    # sample() computes it forwards, log_prob() backwards.
    z, log_prob, log_abs_det = leap.sample(20)
    torch.testing.assert_close(leap.log_prob(z), log_prob)
    assert z.shape == (20, 3) and log_prob.shape == log_abs_det.shape == (20,)


def test_log_abs_det_is_that_of_the_jacobian(leap):
    # The whole map from the base to z, against slogdet.
    x = leap.base.density.sample((5,))
    _, log_abs_det = leap(x)
    torch.testing.assert_close(log_abs_det, log_abs_det_of_jacobian(lambda x: leap(x)[0], x))


def test_score_is_the_gradient_of_the_log_density(leap):
    # forward_with_score's recursion through all steps against autograd of log_prob.
    x = leap.base.density.sample((10,))
    z, log_prob, score = leap.with_score(x)
    point = z.detach().requires_grad_()
    (expected,) = torch.autograd.grad(leap.log_prob(point).sum(), point)
    torch.testing.assert_close(score, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(z, leap(x)[0])
    torch.testing.assert_close(log_prob, leap.log_prob(z))
    assert not score.requires_grad


def test_density_with_the_score_carries_the_gradient_of_the_weights(leap):
    # Points and log densities depend on the weights as those of the plain leap do.
    x = leap.base.density.sample((5,))
    parameters = list(leap.flow.parameters())
    z, log_prob, _ = leap.with_score(x)
    plain_z, log_abs_det = leap(x)
    got = torch.autograd.grad(z.square().sum() + log_prob.sum(), parameters)
    expected = torch.autograd.grad(plain_z.square().sum() - log_abs_det.sum(), parameters)
    for left, right in zip(got, expected, strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("mixture", [False, True])
def test_density_integrates_to_one(float64, num_steps, mixture):
    # In one dimension, by quadrature.
    leap = make(1, num_steps, mixture)
    z = torch.linspace(-60, 60, 24001)
    assert math.isclose(leap.log_prob(z[:, None]).exp().sum().item() * (z[1] - z[0]).item(), 1.0, abs_tol=1e-6)


def test_untrained_affine_leap_is_the_base(float64):
    # Zero heads: the leap's density is that of the base.
    base = gaussian_base(torch.randn(50, 2) * torch.tensor([1.0, 30.0]))
    leap = Leap(base, FlowMap(2, num_blocks=3))
    z, log_prob, log_abs_det = leap.sample(10)
    torch.testing.assert_close(log_prob, base.log_prob(z))
    torch.testing.assert_close(log_abs_det, base.log_abs_det.expand(10))


def test_several_steps_are_the_flow_again_and_again(float64):
    # Two steps are the leap from 0 to 1/2 and then the one from 1/2 to 1.
    leap = make(2, 2, False)
    x = torch.randn(5, 2)
    halfway, first = leap.flow(x, 0.0, 0.5)
    end, second = leap.flow(halfway, 0.5, 0.5)
    z, log_abs_det = leap(x)
    torch.testing.assert_close(z, leap.base.from_whitened(end))
    torch.testing.assert_close(log_abs_det, first + second + leap.base.log_abs_det)


def test_draws_have_the_moments_of_the_density(float64):
    # Mean of draws against the mean of log_prob's density by quadrature.
    leap = make(1, 1, True)
    z = torch.linspace(-60, 60, 24001)
    with torch.no_grad():
        mean = (leap.log_prob(z[:, None]).exp() * z).sum() * (z[1] - z[0])
        draws, _, _ = leap.sample(4000)
    assert_within_standard_error(draws.mean(), mean, draws.std().item() / math.sqrt(len(draws)))

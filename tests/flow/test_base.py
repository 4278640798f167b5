"""Base: a whitening that is undone exactly and a density that integrates to one."""

import math

import pytest
import torch
from helpers import assert_within_standard_error
from models import mixture_draws
from torch.distributions import MultivariateNormal

from pyro_osds.explore.mixture import mixture_base
from pyro_osds.flow.base import (
    coordinatewise,
    gaussian_base,
    standard_base,
    whitened,
)
from pyro_osds.stats.gaussian import Gaussian


def two_modes(count=400):
    # One mode in three is at (-6, 0), the others at (6, 3).
    z = mixture_draws([[-6.0, 0.0], [6.0, 3.0]], [count, 2 * count])
    labels = torch.cat([torch.ones(count, dtype=torch.long), torch.zeros(2 * count, dtype=torch.long)])

    return z, labels


@pytest.fixture(params=["gaussian", "mixture"])
def base(request, float64):
    z, labels = two_modes()

    return gaussian_base(z) if request.param == "gaussian" else mixture_base(z, labels)


def test_whitening_is_undone(base):
    # Round trip, and the log-determinant of the affine map.
    z = 5 * torch.randn(10, 2)
    torch.testing.assert_close(base.from_whitened(base.to_whitened(z)), z)
    torch.testing.assert_close(base.log_abs_det, torch.linalg.slogdet(base.scale_tril).logabsdet)
    torch.testing.assert_close(base.from_whitened(torch.zeros(1, 2))[0], base.loc)


def test_density_integrates_to_one(base):
    # A sum over a fine grid that covers both modes.
    axis = torch.linspace(-40, 40, 801)
    grid = torch.cartesian_prod(axis, axis)
    assert math.isclose(base.log_prob(grid).exp().sum().item() * 0.1**2, 1.0, abs_tol=1e-4)


def test_draws_follow_the_density(base):
    # Draws have the mean of the density on a grid, each coordinate within its standard error.
    axis = torch.linspace(-40, 40, 801)
    grid = torch.cartesian_prod(axis, axis)
    mean = (base.log_prob(grid).exp()[:, None] * grid).sum(0) * 0.1**2
    z = base.sample(4000)
    for i in range(2):
        assert_within_standard_error(z[:, i].mean(), mean[i], z[:, i].std().item() / math.sqrt(len(z)))


def test_gaussian_base_is_the_gaussian_of_the_moments(float64):
    # The density in original coordinates is the normal one with that location and scale.
    base = gaussian_base(torch.randn(200, 3) * torch.tensor([1.0, 100.0, 0.01]) + 7)
    z = base.sample(5)
    torch.testing.assert_close(base.log_prob(z), MultivariateNormal(base.loc, scale_tril=base.scale_tril).log_prob(z))
    assert base.num_components == 1


def test_gaussian_base_with_scores(float64):
    # Forty particles and their scores give the normal itself, density included.
    normal = MultivariateNormal(torch.tensor([3.0, -1.0]), scale_tril=torch.tensor([[2.0, 0.0], [1.5, 0.4]]))
    z = normal.sample((80,)).requires_grad_()
    (score,) = torch.autograd.grad(normal.log_prob(z).sum(), z)
    z = z.detach()
    torch.testing.assert_close(gaussian_base(z, score).log_prob(z), normal.log_prob(z), rtol=1e-4, atol=1e-4)
    assert (gaussian_base(z).log_prob(z) - normal.log_prob(z)).abs().max() > 1e-2


# ---- many dimensions ----


def correlated(dim):
    scale_tril = torch.eye(dim) + 0.3 * torch.randn(dim, dim).tril(-1) / dim**0.5

    return standard_base(torch.randn(dim), torch.linspace(0.1, 3.0, dim)[:, None] * scale_tril)


@pytest.mark.parametrize("dim", [3, 150])
def test_a_gaussian_taken_apart_is_the_same_gaussian(dim, float64):
    # Densities, scores and points in either form; and put together again, what it was before.
    base = correlated(dim)
    apart = coordinatewise(base)
    z = base.sample(5)
    torch.testing.assert_close(apart.log_prob(z), base.log_prob(z))
    torch.testing.assert_close(apart.from_whitened(apart.to_whitened(z)), z)
    assert base.noise_scale is None and apart.noise_scale is not None
    torch.testing.assert_close(whitened(apart).scale_tril, base.scale_tril)
    torch.testing.assert_close(coordinatewise(apart).scale_tril, apart.scale_tril)
    # Each whitened coordinate has variance one.
    torch.testing.assert_close(apart.noise_scale.square().sum(-1), torch.ones(dim))
    score = torch.randn(5, dim)
    for one in (base, apart):
        torch.testing.assert_close(one.score_from_whitened(score), score @ torch.linalg.inv(one.scale_tril))


@pytest.mark.parametrize("scale_tril", [torch.eye(200), torch.eye(200) + 0.01 * torch.ones(200, 200).tril(-1)])
def test_draws_and_densities_of_a_normal(scale_tril, float64):
    # The density and the moments of torch's own.
    scale_tril = scale_tril.double()
    ours, plain = Gaussian(torch.zeros(200), scale_tril), MultivariateNormal(torch.zeros(200), scale_tril=scale_tril)
    draws = ours.sample(torch.Size([2000]))
    torch.testing.assert_close(ours.log_prob(draws), plain.log_prob(draws))
    distances = torch.linalg.solve_triangular(scale_tril, draws.mT, upper=False).square().sum(0)
    assert_within_standard_error(distances.mean().item(), 200.0, 20.0 / math.sqrt(2000))

"""Refinement: from a leap that is wrong to draws and an evidence that are right."""

import math

import pytest
import torch
from helpers import assert_within_standard_error, log_abs_det_of_jacobian, perturbed
from models import LOG_GAMMA_SHAPE, log_gamma, log_gamma_log_evidence, mixture_log_prob
from torch.distributions import MultivariateNormal

from pyro_osds.explore.refinement import LatentTarget, refine
from pyro_osds.flow.base import Base, coordinatewise, gaussian_base, standard_base
from pyro_osds.flow.coupling import FlowMap
from pyro_osds.flow.leap import Leap
from pyro_osds.stats.pareto import pareto_k
from pyro_osds.stats.weights import weigh
from pyro_osds.target import FunctionTarget


def gaussian_leap(loc, scale, dim):
    """A flow that does nothing, from a base of that location and scale."""
    standard = MultivariateNormal(torch.zeros(dim), torch.eye(dim))
    base = Base(torch.full((dim,), loc), scale * torch.eye(dim), standard)

    return Leap(base, FlowMap(dim, num_blocks=1, hidden_features=8))


def bent_leap(dim, size=0.1):
    return Leap(gaussian_base(torch.randn(500, dim)), perturbed(FlowMap(dim, num_blocks=2, hidden_features=8), size), 1)


def test_density_in_the_coordinates_of_the_base(float64):
    # The change of variables with a Jacobian by automatic differentiation.
    leap, target = bent_leap(3, 0.2), FunctionTarget(log_gamma, 3)
    x = torch.randn(6, 3)
    z, _ = leap(x)
    jacobian = log_abs_det_of_jacobian(lambda points: leap(points)[0], x)
    latent = LatentTarget(leap, target)
    torch.testing.assert_close(latent.log_prob(x), target.log_prob(z) + jacobian)
    assert (latent.dim, latent.dtype) == (3, torch.float64) and (z - leap.base.from_whitened(x)).abs().max() > 0.05


def test_light_tails_are_no_obstacle(float64):
    # Half as wide as the target and beside it: weights without a variance, from which no estimate can be trusted.
    dim, factor = 3, torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.8, 0.0], [0.0, -0.4, 1.2]])
    normal = MultivariateNormal(torch.zeros(dim), scale_tril=factor)
    target, leap = FunctionTarget(lambda z: normal.log_prob(z) + 2.5, dim), gaussian_leap(0.3, 0.5, dim)
    assert pareto_k(weigh(leap, target, 8192).log_weight) > 0.7
    found = refine(leap, target, 64, 16)
    assert_within_standard_error(found.log_evidence, 2.5, found.std_error, k=3)
    assert found.std_error < 0.1 and found.settled and found.acceptance > 0.3 and found.num_temperatures >= 5
    # Moments of the particles, by the spread of the replicates' own.
    replicates = found.z.view(16, 64, dim)
    products = replicates[..., :, None] * replicates[..., None, :]
    for i in range(dim):
        assert_within_standard_error(replicates[..., i].mean(), 0.0, replicates[..., i].mean(1).std().item() / 4)
        for j in range(i + 1):
            each = products[..., i, j].mean(1)
            assert_within_standard_error(each.mean(), normal.covariance_matrix[i, j], each.std().item() / 4)


def test_particles_and_densities_are_those_of_the_target(float64):
    # In its own coordinates, through a flow that bends: skew marginals of known mean.
    leap, target = bent_leap(2), FunctionTarget(log_gamma, 2)
    found = refine(leap, target, 64, 16)
    torch.testing.assert_close(found.log_prob, log_gamma(found.z))
    assert_within_standard_error(found.log_evidence, log_gamma_log_evidence(2), found.std_error, k=3)
    truth = torch.digamma(torch.tensor(LOG_GAMMA_SHAPE)).item()
    for i in range(2):
        replicates = found.z[:, i].view(16, 64).mean(1)
        assert_within_standard_error(replicates.mean(), truth, replicates.std().item() / 4)


def test_an_exact_leap_is_exact(float64):
    # Nothing to walk: equal weights all the way, an evidence without error.
    leap = bent_leap(2, 0.05)
    found = refine(leap, FunctionTarget(lambda z: leap.log_prob(z) - 7.0, 2), 16)
    assert abs(found.log_evidence + 7.0) < 1e-6 and found.std_error < 1e-6
    assert found.pareto_k == -math.inf and found.ess == pytest.approx(128)


def test_no_bias_and_an_honest_error(float64):
    # Twenty repeats of few particles: the mean evidence is right, and errors are as large as they are said to be.
    target, leap = FunctionTarget(log_gamma, 2), gaussian_leap(0.0, 0.7, 2)
    found = [refine(leap, target, 16) for _ in range(20)]
    ratios = torch.tensor([each.log_evidence for each in found]) - log_gamma_log_evidence(2)
    relative = ratios.exp()
    assert_within_standard_error(relative.mean(), 1.0, relative.std().item() / math.sqrt(20), k=4)
    # Squares of a t variable of seven degrees of freedom: mean 7/5, and a spread of 2.3 about it.
    squares = (ratios / torch.tensor([each.std_error for each in found])).square()
    assert_within_standard_error(squares.mean(), 1.4, 2.3 / math.sqrt(20), k=4)
    assert squares.mean() > 0.4


def test_a_mixture_base(float64):
    # Shares of one to one where the target has one to three: the replicates get the proportions right.
    locs = torch.tensor([[-4.0], [4.0]])
    from pyro_osds.explore.mixture import mixture_base

    draws = locs.repeat_interleave(200, 0) + torch.randn(400, 1)
    base = mixture_base(draws, torch.arange(2).repeat_interleave(200))
    leap = Leap(base, FlowMap(1, num_blocks=1))
    found = refine(leap, FunctionTarget(mixture_log_prob(locs, [0.25, 0.75]), 1), 64, 16)
    right = (found.z[:, 0] > 0).double().view(16, 64).mean(1)
    assert_within_standard_error(right.mean(), 0.75, right.std().item() / 4)
    assert_within_standard_error(found.log_evidence, 0.0, found.std_error)


def test_a_region_of_density_zero(float64):
    # Half of the leap's draws are impossible: a factor of one half, and no particle there.
    def half(z):
        return torch.where(z[:, 0] > 0, -0.5 * z.square().sum(-1), torch.nan)

    found = refine(gaussian_leap(0.0, 1.0, 1), FunctionTarget(half, 1), 64, 16)
    assert_within_standard_error(found.log_evidence, 0.5 * math.log(math.pi / 2), found.std_error)
    assert (found.z > 0).all() and found.log_prob.isfinite().all()


def test_a_leap_from_correlated_draws_is_refined_in_its_noise(float64):
    # The same density as from the same Gaussian in one piece, and particles in the coordinates of the target.
    base = standard_base(torch.tensor([1.0, -2.0]), torch.tensor([[2.0, 0.0], [1.5, 0.5]]))
    target = FunctionTarget(lambda z: base.log_prob(z) + 7.0, 2)
    flow = FlowMap(2, num_blocks=1, hidden_features=8)
    whole, apart = (LatentTarget(Leap(form, flow), target) for form in (base, coordinatewise(base)))
    x = torch.randn(6, 2)
    torch.testing.assert_close(apart.log_prob(x), whole.log_prob(x))
    found = refine(Leap(coordinatewise(base), flow), target, 20, 4)
    torch.testing.assert_close(found.replicate_log_evidence, torch.full((4,), 7.0))
    torch.testing.assert_close(found.log_prob, target.log_prob(found.z))

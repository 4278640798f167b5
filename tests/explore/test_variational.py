"""The Gaussian of the largest ELBO: exact where the target is one, higher than its start where it is not."""

import math

import torch

from pyro_osds.explore.variational import _elbo, variational_base
from pyro_osds.flow.base import standard_base
from pyro_osds.target import FunctionTarget

DIM = 200


def random_walk():
    """Location, scale and precision of a stationary walk with correlations of 0.9 between neighbours."""
    index = torch.arange(DIM)
    covariance = 2.0 * 0.9 ** (index - index[:, None]).abs()

    return torch.linspace(-2.0, 2.0, DIM), torch.linalg.cholesky(covariance), torch.linalg.inv(covariance)


def start():
    return standard_base(torch.zeros(DIM), torch.eye(DIM))


def test_a_gaussian_is_found_exactly(float64):
    # Mean and covariance, and an ELBO that is the log evidence all but without noise.
    loc, scale_tril, precision = random_walk()
    target = FunctionTarget(lambda z: -0.5 * ((z - loc) @ precision * (z - loc)).sum(-1), DIM)
    base = variational_base(target, start())
    log_evidence = 0.5 * DIM * math.log(2 * math.pi) + scale_tril.diagonal().log().sum()
    bound = _elbo(target, base.loc, base.scale_tril)
    assert abs(bound.elbo - log_evidence) < 0.02 and bound.std_error < 0.01
    torch.testing.assert_close(base.loc, loc, atol=0.02, rtol=0.0)
    torch.testing.assert_close(base.scale_tril @ base.scale_tril.mT, scale_tril @ scale_tril.mT, atol=0.05, rtol=0.0)


def test_a_skewed_target_is_matched_by_its_mean_and_not_by_its_mode(float64):
    # log Gamma(2): the best Gaussian solves 2 - E exp(z) = 0 and 1 / variance = E exp(z).
    target = FunctionTarget(lambda z: (2.0 * z - z.exp()).sum(-1), DIM)
    base = variational_base(target, start())
    # The curvature has the noise of 10 D draws, and its inverse a variance that is larger by some hundredths for it.
    assert abs(base.loc.mean() - (math.log(2.0) - 0.25)) < 0.05
    assert abs(base.scale_tril.square().sum(-1).mean() - 0.5) < 0.05
    exact = DIM * (2.0 * math.log(2.0) - 0.5 - 2.0 + 0.5 * math.log(2 * math.pi * math.e * 0.5))
    bound = _elbo(target, base.loc, base.scale_tril)
    # What the noise of a covariance costs at most: a quarter of its squared size.
    assert exact - 0.25 * DIM**2 * 0.5**2 / (10 * DIM) - 4 * bound.std_error < bound.elbo < exact + 4 * bound.std_error


def test_where_the_density_is_zero_the_start_is_kept(float64):
    # Half of all draws have no density, so no ELBO is finite and nothing is better.
    target = FunctionTarget(lambda z: torch.where(z[:, 0] > 0, -z.square().sum(-1), -torch.inf), DIM)
    base = variational_base(target, start())
    assert torch.equal(base.loc, torch.zeros(DIM)) and torch.equal(base.scale_tril, torch.eye(DIM))

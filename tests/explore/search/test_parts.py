"""Parts: their mass against closed forms and quadrature, and who is said to lack them."""

import math

import pytest
import torch
from helpers import assert_within_standard_error
from scipy import integrate, stats

from pyro_osds.explore.search.parts import basin, log_mean, lost_by_draws, lost_by_particles, lost_share
from pyro_osds.target import log_prob_and_score


def part_of(log_prob, top, scale=None, quickly=False):
    top = torch.as_tensor(top)
    scale = torch.eye(len(top)) if scale is None else scale
    return basin(lambda z: log_prob_and_score(log_prob, z), top, scale, quickly)


def blob(weight, loc, width, dim):
    constant = math.log(weight) - dim * math.log(width * math.sqrt(2 * math.pi))
    return lambda z: constant - 0.5 * ((z - loc) / width).square().sum(-1)


@pytest.mark.parametrize(
    ("dim", "width", "quickly"), [(1, 1.0, False), (5, 1e-3, False), (30, 0.5, False), (3, 2, True)]
)
def test_the_mass_of_a_gaussian_is_exact(dim, width, quickly, float64):
    # Its region holds what a chi-square distribution says of its radius.
    part = part_of(blob(0.3, 2.0, width, dim), [2.0] * dim, quickly=quickly)
    exact = 0.3 * stats.chi2(dim).cdf(part.outer**2)
    assert_within_standard_error(math.exp(part.log_mass), exact, exact * part.std_error)
    assert exact / 0.3 == pytest.approx(0.9, abs=0.01)


def test_a_rotated_thin_disc(float64):
    axes = torch.linalg.qr(torch.randn(6, 6))[0]
    sd = torch.tensor([0.02, 0.02, 1.0, 1.0, 1.0, 1.0])
    disc = lambda z: -0.5 * ((z @ axes) / sd).square().sum(-1) - sd.log().sum() - 3 * math.log(2 * math.pi)  # noqa: E731
    part = part_of(disc, [0.0] * 6, scale=5 * torch.eye(6))
    exact = stats.chi2(6).cdf(part.outer**2)
    assert_within_standard_error(math.exp(part.log_mass), exact, exact * part.std_error)
    assert torch.allclose(part.scale_tril @ part.scale_tril.mT, axes * sd.square() @ axes.mT, atol=1e-6)


def test_a_skewed_basin_by_quadrature(float64):
    # The log of a Gamma(1/2) variable: far from its Laplace approximation.
    log_prob = lambda z: (0.5 * z - z.exp()).sum(-1) - math.lgamma(0.5)  # noqa: E731
    part = part_of(log_prob, [math.log(0.5)])
    loc, reach = part.centre.item(), part.outer * part.metric.item()
    exact = integrate.quad(lambda x: math.exp(0.5 * x - math.exp(x)), loc - reach, loc + reach)[0] / math.gamma(0.5)
    assert_within_standard_error(math.exp(part.log_mass), exact, exact * part.std_error)


def test_the_mean_of_weights():
    log_weight = torch.tensor([0.0, 0.0, -torch.inf, -torch.inf], dtype=torch.float64)
    value, std_error = log_mean(log_weight)
    assert value == pytest.approx(math.log(0.5))
    assert std_error == pytest.approx(math.sqrt(1 / 3) / 0.5 / 2)
    assert log_mean(torch.full((3,), -torch.inf)) == (-math.inf, 0.0)


def test_who_lacks_a_mode(float64):
    # Two unit normals in ten dimensions, weights .9 and .1: draws and particles with both, and with one of them.
    dim = 10
    far = torch.zeros(dim)
    far[0] = 10.0
    first, second = blob(0.9, 0.0, 1.0, dim), blob(0.1, far, 1.0, dim)
    target = lambda z: torch.logaddexp(first(z), second(z))  # noqa: E731
    part = part_of(target, far)
    z = torch.randn(4096, dim)
    unit = lambda z: blob(1.0, 0.0, 1.0, dim)(z)  # noqa: E731
    one = target(z) - unit(z)
    ((lost, share),) = lost_by_draws([part], z, one, math.log(0.9))
    assert lost is part and share == pytest.approx(0.09 / 0.9, rel=0.1)
    both = torch.where(torch.rand(4096, 1) < 0.1, z + far, z)
    assert not lost_by_draws([part], both, torch.zeros(4096), 0.0)
    # Equally weighted particles on eight replicates.
    assert lost_by_particles([part], z[:512], torch.full((8,), math.log(0.9)), math.log(0.9))
    assert not lost_by_particles([part], both[:512], torch.zeros(8), 0.0)


def test_noise_is_no_loss(float64):
    # The same number with errors: half of the pairs differ in either direction, and hardly any by three of them.
    part = part_of(blob(1.0, 0.0, 1.0, 2), [0.0, 0.0])
    assert lost_share(part, part.log_mass - 0.2, 0.1, 0.0) == 0.0
    assert lost_share(part, part.log_mass - 1.0, 0.1, 0.0) > 0.3
    # A part of half a percent is below what matters, though none of it is found.
    assert lost_share(part, -math.inf, 0.0, math.log(200.0)) == 0.0
    # What is half there counts as visited where that is asked.
    assert lost_share(part, part.log_mass - 0.6, 0.01, 0.0, most=0.5) == 0.0


def test_no_part_where_there_is_no_density(float64):
    assert part_of(lambda z: torch.full((len(z),), -torch.inf), [0.0, 0.0]) is None

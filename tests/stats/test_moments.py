"""Moments: exact on known points, shrunk as its equation says, safe with unequal units."""

import pytest
import torch

from pyro_osds.stats.moments import fisher_moments, weighted_moments

CROSS = torch.tensor([[2.0, 1.0], [-2.0, -1.0], [1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)


def shrunk(covariance, ess):
    dim = len(covariance)
    share = dim / (dim + ess)

    return (1 - share) * covariance + share * covariance.diagonal().diag()


def test_equal_weights_on_known_points():
    # Mean and shrunk covariance of four points, by hand.
    loc, scale_tril = weighted_moments(CROSS + 5, torch.full((4,), 3.0, dtype=torch.float64))
    covariance = torch.tensor([[2.5, 0.5], [0.5, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(loc, torch.full((2,), 5.0, dtype=torch.float64))
    torch.testing.assert_close(scale_tril @ scale_tril.T, shrunk(covariance, 4.0))
    assert scale_tril[0, 1] == 0


def test_weights_count_as_copies_of_a_point():
    # Weights 1, 2, 3, 0 are points given once, twice, three times and not at all; only the shrinkage knows the ESS.
    weights = torch.tensor([1.0, 2.0, 3.0, 0.0], dtype=torch.float64)
    loc, scale_tril = weighted_moments(CROSS, weights.log())
    copies = CROSS.repeat_interleave(weights.long(), 0)
    ess = weights.sum() ** 2 / weights.square().sum()
    torch.testing.assert_close(loc, copies.mean(0))
    torch.testing.assert_close(scale_tril @ scale_tril.T, shrunk(torch.cov(copies.T, correction=0), ess))


def test_units_that_differ_by_1e5():
    # Changing the units of a coordinate rescales its row and nothing else, in single precision too.
    z = torch.randn(500, 3) @ torch.tensor([[1.0, 0.9, 0.0], [0.0, 0.2, 0.5], [0.0, 0.0, 1.0]])
    units = torch.tensor([1e5, 1.0, 1e-5])
    log_weight = torch.randn(500)
    loc, scale_tril = weighted_moments(z, log_weight)
    loc_in_units, scale_tril_in_units = weighted_moments(z * units, log_weight)
    torch.testing.assert_close(loc_in_units / units, loc, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(scale_tril_in_units / units[:, None], scale_tril, rtol=1e-4, atol=1e-6)


def test_a_coordinate_that_does_not_vary():
    # All points on a line, and fewer points than coordinates, still give an invertible scale.
    for z in (torch.randn(50, 2) * torch.tensor([1.0, 0.0]), torch.randn(3, 10)):
        _, scale_tril = weighted_moments(z, torch.zeros(len(z)))
        assert scale_tril.isfinite().all() and (scale_tril.diagonal() > 0).all()


def test_points_of_weight_zero_do_not_count():
    # A far point with log weight -inf moves nothing.
    z = torch.cat([CROSS, torch.full((1, 2), 1e6, dtype=torch.float64)])
    log_weight = torch.tensor([0.0, 0.0, 0.0, 0.0, -torch.inf], dtype=torch.float64)
    for got, expected in zip(weighted_moments(z, log_weight), weighted_moments(CROSS, log_weight[:4]), strict=True):
        torch.testing.assert_close(got, expected)


def correlated(num_points, units=1.0):
    """Draws of a normal with correlations above 0.9, their scores, its mean and its scale."""
    scale_tril = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.3, 0.0], [-0.5, 0.5, 0.1]])
    loc = torch.tensor([3.0, -1.0, 0.5])
    whitened = torch.randn(num_points, 3)
    score = torch.linalg.solve_triangular(scale_tril.T, -whitened.T, upper=True).T

    return (loc + whitened @ scale_tril.T) * units, score / units, loc, scale_tril


def test_scores_give_the_moments_of_a_gaussian(float64):
    # From 200 points, which alone would know them to a tenth: the mean and the scale, up to a shrinkage of 5e-8.
    z, score, loc, scale_tril = correlated(200)
    for got, expected in zip(fisher_moments(z, score), (loc, scale_tril), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    for alone, truth in zip(weighted_moments(z, torch.zeros(200)), (loc, scale_tril), strict=True):
        assert (alone - truth).abs().max() > 0.02


def test_fisher_units_that_differ_by_1e5():
    # Changing the units of a coordinate rescales its row and nothing else, in single precision too.
    units = torch.tensor([1e5, 1.0, 1e-5])
    torch.manual_seed(1)
    loc, scale_tril = fisher_moments(*correlated(60)[:2])
    torch.manual_seed(1)
    loc_in_units, scale_tril_in_units = fisher_moments(*correlated(60, units)[:2])
    torch.testing.assert_close(loc_in_units / units, loc, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scale_tril_in_units / units[:, None], scale_tril, rtol=1e-4, atol=1e-5)


def test_fisher_scale_stays_near_the_points(float64):
    # Scores of zero, as inside hard edges, widen to twice the points' variance; those of a spike narrow to a hundredth.
    z = torch.randn(2000, 2) @ torch.tensor([[1.0, 0.8], [0.0, 0.5]])
    own = torch.cov(z.T, correction=0)
    for score, ratio in [(torch.zeros_like(z), 2.0), (-1e6 * (z - z.mean(0)), 1e-2)]:
        loc, scale_tril = fisher_moments(z, score)
        torch.testing.assert_close(scale_tril @ scale_tril.T, ratio * own, rtol=1e-6, atol=0)
        torch.testing.assert_close(loc, z.mean(0))


def test_fisher_mean_follows_the_mean_score(float64):
    # Points that sit beside N(1, 2^2), with its scores: the mean is 1, wherever they are.
    z = 2 * torch.randn(500, 2) + 4
    loc, _ = fisher_moments(z, -(z - 1) / 4)
    torch.testing.assert_close(loc, torch.ones(2), rtol=1e-6, atol=1e-6)


def test_fewer_points_than_dimensions(float64):
    # Coordinate by coordinate, and exact for a Gaussian with independent coordinates of any scale.
    scale = torch.logspace(-3, 3, 200)
    z = 5.0 + scale * torch.randn(150, 200)
    loc, scale_tril = fisher_moments(z, -(z - 5.0) / scale.square())
    torch.testing.assert_close(loc, torch.full((200,), 5.0), atol=1e-4, rtol=0.0)
    torch.testing.assert_close(scale_tril, scale.diag())


def test_points_on_a_line_have_a_scale():
    # Coordinates that are copies of each other: rounding decides whether their correlation has a Cholesky factor.
    line = torch.randn(500, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z = line @ torch.tensor([[1.0, 1.0 + 1e-12, 2.0, -3.0]], dtype=torch.float64)
    for loc, scale_tril in (weighted_moments(z, torch.zeros(500)), fisher_moments(z, -z)):
        assert loc.isfinite().all() and (scale_tril.diagonal() > 0).all()


@pytest.mark.parametrize("steep", [1e12, 1e150, 1e300])
def test_scores_that_overflow_leave_a_finite_scale(steep, float64):
    # A few points on a cliff: squares of their scores overflow, and the rest is a standard normal.
    z = torch.randn(400, 3)
    score = -z.clone()
    score[:3] = steep * torch.tensor([1.0, -1.0, 1.0])
    loc, scale_tril = fisher_moments(z, score)
    assert loc.isfinite().all() and scale_tril.isfinite().all() and (scale_tril.diagonal() > 0).all()
    assert (scale_tril @ scale_tril.mT).diagonal().max() < 4.0

"""The moments room: exact on known points, shrunk as its equation says, safe with unequal units."""

import torch

from pyro_osds.moments import weighted_moments

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

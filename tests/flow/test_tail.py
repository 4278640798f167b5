"""Tail: a bijection of the line with the slope that it claims."""

import math

import pytest
import torch

from pyro_osds.flow.tail import TailTransform

WEIGHTS = [(0.0, 0.0), (0.3, 0.0), (0.0, 1.2), (0.5, 0.1)]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_slope_is_the_derivative(float64, weights):
    # The log slope against autograd, on both sides of zero and at zero.
    transform = TailTransform(torch.tensor(weights))
    x = torch.linspace(-5, 5, 21).requires_grad_()
    y, log_slope = transform.call_and_ladj(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(log_slope, slope.log())
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, y), log_slope)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_inverse_takes_the_image_back(float64, weights):
    # Round trip, from near zero to far out.
    transform = TailTransform(torch.tensor(weights))
    x = torch.tensor([-300.0, -2.0, -1e-6, 0.0, 1e-6, 2.0, 300.0])
    torch.testing.assert_close(transform.inv(transform(x)), x)


def test_weight_zero_is_the_identity():
    # To the last bit, with log slope zero.
    x = torch.randn(10)
    y, log_slope = TailTransform(torch.zeros(2)).call_and_ladj(x)
    assert torch.equal(y, x) and not log_slope.any()


def test_sides_have_their_own_weights(float64):
    # Left weight on the left, right weight on the right: y = x + weight x |x|.
    y = TailTransform(torch.tensor([0.5, 0.25]))(torch.tensor([-2.0, 2.0]))
    assert y.tolist() == [-4.0, 3.0]


def test_weights_by_coordinate(float64):
    # A batch with weights of each entry is the same as entry by entry.
    x, weights = torch.randn(4, 3), torch.rand(4, 3, 2)
    together = TailTransform(weights)(x)
    for i in range(4):
        for j in range(3):
            assert together[i, j] == TailTransform(weights[i, j])(x[i, j])


def test_a_gaussian_gets_exponential_tails(float64):
    # Far out the log density of the image falls by 1 / (2 weight) per unit.
    weight = 0.5
    transform = TailTransform(torch.tensor([weight, weight]))
    y = torch.tensor([1e6, 1e6 + 1.0])
    x = transform.inv(y)
    log_density = -0.5 * x.square() - transform.log_abs_det_jacobian(x, y)
    assert math.isclose((log_density[0] - log_density[1]).item(), 1 / (2 * weight), rel_tol=1e-2)

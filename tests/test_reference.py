"""The reference room: a wide Gaussian where the mass is, found from nothing but the density."""

import math

import pytest
import torch
from helpers import assert_within_standard_error
from models import mixture_log_prob

from pyro_osds.reference import wide_reference
from pyro_osds.target import FunctionTarget


def test_a_gaussian_is_found_and_widened(float64):
    # Centre of the target within the points' own standard error, twice its covariance or more.
    scale = torch.tensor([0.5, 2.0])
    target = FunctionTarget(lambda z: -0.5 * ((z - 3) / scale).square().sum(-1), 2)
    reference = wide_reference(target, num_points=512)
    sd = reference.scale_tril.norm(dim=1)
    for i in range(2):
        assert_within_standard_error(reference.mean[i], 3.0, sd[i].item() / math.sqrt(512))
        assert sd[i] > 1.2 * scale[i] and sd[i] < 4 * scale[i]


def test_far_modes_are_covered(float64):
    # Both modes of a mixture lie within two standard deviations of the reference.
    target = FunctionTarget(mixture_log_prob([[-10.0, 0.0], [10.0, 0.0]], [0.5, 0.5]), 2)
    reference = wide_reference(target)
    sd = reference.scale_tril[0].norm()
    assert (reference.mean[0] - 10).abs() < 2 * sd and (reference.mean[0] + 10).abs() < 2 * sd


def test_given_starts_are_looked_around():
    # A density of bounded support 500 away is out of reach from the origin and found from a start inside.
    def log_prob_fn(z):
        return torch.where((z[:, 0] - 500).abs() < 5, -0.5 * (z[:, 0] - 500).square(), -torch.inf)

    target = FunctionTarget(log_prob_fn, 1)
    with pytest.raises(ValueError, match="not finite at any of 256 points"):
        wide_reference(target)
    reference = wide_reference(target, starts=torch.tensor([[499.0]]))
    assert_within_standard_error(reference.mean[0], 500.0, reference.stddev[0].item() / math.sqrt(128))


def test_it_is_normalised_and_has_the_type_of_the_target():
    # Single and double precision targets get references of their own kind.
    for dtype in (torch.float32, torch.float64):
        reference = wide_reference(FunctionTarget(lambda z: -0.5 * z.square().sum(-1), 1, dtype))
        z = torch.linspace(-50, 50, 5001, dtype=dtype)[:, None]
        assert reference.mean.dtype == dtype
        assert math.isclose(reference.log_prob(z).exp().sum().item() * 0.02, 1.0, abs_tol=1e-4)

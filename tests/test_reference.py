"""The reference room: a wide Gaussian where the mass is, found from nothing but the density."""

import math

import pytest
import torch
from helpers import assert_within_standard_error
from models import mixture_log_prob

from pyro_osds.reference import throw, wide_reference
from pyro_osds.target import FunctionTarget


def test_a_gaussian_is_found_and_widened(float64):
    # Centre of the target within the points' own standard error, twice its covariance or more.
    scale = torch.tensor([0.5, 2.0])
    target = FunctionTarget(lambda z: -0.5 * ((z - 3) / scale).square().sum(-1), 2)
    reference = wide_reference(target, throw(target, num_points=512))
    assert len(reference.mixture_distribution.probs) == 1
    sd = reference.stddev
    for i in range(2):
        assert_within_standard_error(reference.mean[i], 3.0, sd[i].item() / math.sqrt(512))
        assert sd[i] > 1.2 * scale[i] and sd[i] < 4 * scale[i]


def test_far_modes_get_a_share_each(float64):
    # Half of the mass on the whole, a quarter on either mode, wide as it is.
    locs = torch.tensor([[-10.0, 0.0], [10.0, 0.0]])
    target = FunctionTarget(mixture_log_prob(locs, [0.1, 0.9]), 2)
    reference = wide_reference(target, throw(target))
    torch.testing.assert_close(reference.mixture_distribution.probs, torch.tensor([0.5, 0.25, 0.25]))
    components = reference.component_distribution
    assert torch.cdist(locs, components.loc[1:]).amin(1).max() < 1.0
    assert ((components.stddev[1:] > 1.0) & (components.stddev[1:] < 3.0)).all() and components.stddev[0, 0] > 10


def test_a_narrow_far_mode_is_not_lost(float64):
    # One percent as wide as the way to it, and half of the mass: a few points reach it, and it gets its component.
    def log_prob_fn(z):
        near = -0.5 * z.square().sum(-1)
        far = -0.5 * ((z - torch.tensor([30.0, 0.0])) / 0.3).square().sum(-1) - 2 * math.log(0.3)
        return torch.logaddexp(near, far)

    target = FunctionTarget(log_prob_fn, 2)
    components = wide_reference(target, throw(target)).component_distribution
    far = (components.loc - torch.tensor([30.0, 0.0])).norm(dim=-1) < 1.0
    assert far.sum() == 1 and components.stddev[far].max() < 3.0


def test_given_starts_are_looked_around():
    # A density of bounded support 500 away is out of reach from the origin and found from a start inside.
    def log_prob_fn(z):
        return torch.where((z[:, 0] - 500).abs() < 5, -0.5 * (z[:, 0] - 500).square(), -torch.inf)

    target = FunctionTarget(log_prob_fn, 1)
    with pytest.raises(ValueError, match="not finite at any of 4096 points"):
        throw(target)
    reference = wide_reference(target, throw(target, starts=torch.tensor([[499.0]])))
    assert_within_standard_error(reference.mean[0], 500.0, reference.stddev[0].item() / math.sqrt(128))


def test_it_is_normalised_and_has_the_type_of_the_target():
    # Single and double precision targets get references of their own kind.
    for dtype in (torch.float32, torch.float64):
        target = FunctionTarget(lambda z: -0.5 * z.square().sum(-1), 1, dtype)
        reference = wide_reference(target, throw(target))
        z = torch.linspace(-50, 50, 5001, dtype=dtype)[:, None]
        assert reference.mean.dtype == dtype
        assert math.isclose(reference.log_prob(z).exp().sum().item() * 0.02, 1.0, abs_tol=1e-4)

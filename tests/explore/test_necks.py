"""Necks: seen in draws, measured by particles tilted into them, and given base draws where a flow lacks them."""

import math

import pytest
import torch
from helpers import assert_within_standard_error, perturbed
from torch.distributions import Normal

from pyro_osds.explore.necks import covered
from pyro_osds.explore.necks.covered import cover_necks
from pyro_osds.explore.necks.narrowing import Way, ways_into_necks
from pyro_osds.explore.necks.tilted import Tilted, lacking, log_over_mean, tilt
from pyro_osds.flow.base import gaussian_base
from pyro_osds.flow.coupling import FlowMap
from pyro_osds.flow.leap import Leap
from pyro_osds.stats.weights import log_mean_weight, weigh
from pyro_osds.target import FunctionTarget

NUM_MEMBERS = 2


def funnel(z):
    """Members whose scale is the exponential of the first coordinate: normalised, and that coordinate is N(0, 1)."""
    v, members = z[:, 0], z[:, 1:]

    return Normal(0.0, 1.0).log_prob(v) + Normal(0.0, v.exp()[:, None]).log_prob(members).sum(-1)


def funnel_draws(count):
    v = torch.randn(count, 1)

    return torch.cat([v, v.exp() * torch.randn(count, NUM_MEMBERS)], 1)


def share_beyond(cut):
    return Normal(0.0, 1.0).cdf(torch.tensor(-cut)).item()


def test_a_funnel_has_one_way_into_its_neck(float64):
    (way,) = ways_into_necks(funnel_draws(8000), torch.zeros(8000))
    # One standard deviation out and a half further, on average, members are narrower by exp(1.75) each.
    assert way[:2] == (0, -1) and 1.4 * NUM_MEMBERS < way.narrowing < 2.1 * NUM_MEMBERS


@pytest.mark.parametrize("dim", [2, 10, 60])
def test_a_gaussian_has_none(dim, float64):
    z = torch.randn(6000, dim) @ torch.randn(dim, dim)
    assert ways_into_necks(z, 0.5 * torch.randn(6000)) == []


def test_one_coordinate_and_very_many_have_none():
    assert ways_into_necks(torch.randn(100, 1), torch.zeros(100)) == []
    assert ways_into_necks(torch.randn(100, 300), torch.zeros(100)) == []


@pytest.mark.parametrize("seed", range(3))
def test_tilted_particles_know_how_much_lies_in_the_neck(seed, float64):
    # Of draws none of which has been beyond 1.6 standard deviations: the exact share of a normal beyond 1.6 and 2.
    torch.manual_seed(seed)
    z = funnel_draws(8000)
    z = z[z[:, 0] > -1.6]
    found = tilt(FunctionTarget(funnel, 1 + NUM_MEMBERS), z, torch.zeros(len(z)), Way(0, -1, 3.0), 128, 4, 5)
    # Moves go on from where draws end; what is furthest in is met more seldom than it should be, and never more often.
    for cut, least in ((1.6, 0.5), (2.0, 0.25)):
        share, std_error = found.mean(found.z[:, 0] < -cut)
        assert least * share_beyond(cut) < share < share_beyond(cut) + 4 * std_error


def test_from_exact_draws_shares_are_exact(float64):
    z = funnel_draws(8000)
    found = tilt(FunctionTarget(funnel, 1 + NUM_MEMBERS), z, torch.zeros(len(z)), Way(0, -1, 3.0), 128, 4, 5)
    assert found.mean(torch.ones(len(found.z)))[0] == 1.0
    for cut in (0.0, 1.0, 2.0, 2.5):
        share, std_error = found.mean(found.z[:, 0] < -cut)
        assert_within_standard_error(share, share_beyond(cut), std_error, k=4)


def necked(z):
    """A standard normal whose members become narrow where the first coordinate is below -1; normalised."""
    v, members = z[:, 0], z[:, 1:]
    scale = (2.0 * (v + 1.0)).clamp(max=0.0).exp()

    return Normal(0.0, 1.0).log_prob(v) + Normal(0.0, scale[:, None]).log_prob(members).sum(-1)


def leap_without_neck():
    """A standard normal, right but for the neck."""
    return Leap(gaussian_base(torch.randn(20_000, 1 + NUM_MEMBERS)), FlowMap(1 + NUM_MEMBERS, num_blocks=1))


def test_a_neck_that_a_flow_lacks_is_covered(float64):
    torch.manual_seed(1)
    leap, target = leap_without_neck(), FunctionTarget(necked, 1 + NUM_MEMBERS)
    before = torch.get_rng_state()
    wider, necks = cover_necks(leap, target)
    assert torch.equal(torch.get_rng_state(), before)
    assert necks and {(neck.coordinate, neck.sign) for neck in necks} == {(0, -1)}
    assert wider.base.num_components > 1 and leap.base.num_components == 1 and wider.flow is leap.flow
    lacked, lacks = (
        necks[0].mean(
            lacking(log_over_mean(each, target, necks[0], log_mean_weight(weigh(each, target, 4096).log_weight)[0]))
        )[0]
        for each in (leap, wider)
    )
    assert lacks < 0.5 * lacked
    # Draws of the wider one have an exact density: the target is normalised.
    estimate, std_error = log_mean_weight(weigh(wider, target, 20_000).log_weight)
    assert_within_standard_error(estimate, 0.0, std_error, k=4)


def test_a_neck_that_takes_no_component_does_not_keep_others_from_theirs(float64, monkeypatch):
    # What lacks most does so by five particles, too few for a Gaussian to be fitted to them.
    torch.manual_seed(1)
    leap, target = leap_without_neck(), FunctionTarget(necked, 1 + NUM_MEMBERS)
    _, (neck,) = cover_necks(leap, target)
    beyond = neck.z[log_over_mean(leap, target, neck, 0.0).argmax()].expand(5, -1)
    few = Tilted(torch.cat([beyond, torch.zeros(3, 1 + NUM_MEMBERS)]), torch.zeros(8), torch.zeros(8), 1, 1)
    monkeypatch.setattr(covered, "_lacking", lambda *args: (few, neck))
    wider, _ = cover_necks(leap, target)
    assert wider.base.num_components > 1


def test_the_density_of_a_wider_base_is_that_of_its_draws(float64):
    torch.manual_seed(2)
    leap, target = leap_without_neck(), FunctionTarget(necked, 1 + NUM_MEMBERS)
    leap = Leap(leap.base, perturbed(leap.flow), 1)
    wider, _ = cover_necks(leap, target)
    assert wider.base.num_components > 1
    z, log_prob, _ = wider.sample(50)
    torch.testing.assert_close(wider.log_prob(z), log_prob, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dim", [1, 3])
def test_where_there_is_no_neck_nothing_changes(dim):
    leap = Leap(gaussian_base(torch.randn(500, dim)), FlowMap(dim, num_blocks=1, hidden_features=8))
    before = torch.get_rng_state()
    assert cover_necks(leap, FunctionTarget(lambda z: -z.square().sum(-1), dim)) == (leap, ())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_flow_that_knows_next_to_nothing_is_left_alone():
    leap = Leap(gaussian_base(torch.randn(500, 3)), FlowMap(3, num_blocks=1, hidden_features=8))
    assert cover_necks(leap, FunctionTarget(lambda z: -1e4 * (z - 3.0).square().sum(-1), 3)) == (leap, ())


def test_means_over_the_posterior_by_hand():
    # Two replicates of two particles, weights exp(-tilt) times each replicate's ratio: 0.75 of 0.75, and 1 of 2.
    tilted = Tilted(
        torch.zeros(4, 2),
        torch.tensor([0.0, math.log(2), 0.0, 0.0]).double(),
        torch.tensor([0.0, math.log(2)]).double(),
        0,
        1,
    )
    mean, std_error = tilted.mean(torch.tensor([1.0, 1.0, 0.5, 0.5]))
    assert math.isclose(mean, 7 / 11, rel_tol=1e-6) and math.isclose(std_error, 24 / 121, rel_tol=1e-6)

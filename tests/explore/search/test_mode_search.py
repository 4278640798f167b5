"""Mode search: modes that hold no particles are found, and a posterior without any is left alone."""

import math

import models
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_error
from torch.distributions import MultivariateNormal, StudentT

from pyro_osds.explore.annealing import explore
from pyro_osds.explore.paths import ReferencePath
from pyro_osds.explore.reference import Rest
from pyro_osds.explore.search.mode_search import (
    _chosen,
    _climbed,
    _countable,
    _is_far,
    _of_account,
    lost_modes,
)
from pyro_osds.explore.survey import survey
from pyro_osds.model import ModelTarget
from pyro_osds.target import FunctionTarget


def gaussian_mixture(parts, dim=2):
    """A normalised mixture; each part has a weight, a location and a width."""

    def log_prob(z):
        return torch.logsumexp(
            torch.stack(
                [
                    math.log(weight)
                    - 0.5 * ((z - torch.tensor(loc).to(z)) / width).square().sum(-1)
                    - dim * math.log(width * math.sqrt(2 * math.pi))
                    for weight, loc, width in parts
                ]
            ),
            0,
        )

    return FunctionTarget(log_prob, dim)


def searched(target, z, start):
    return lost_modes(target, start, z, target.log_prob(z))


def nearest_component(reference, place):
    components = reference.component_distribution
    distance = (components.loc - torch.tensor(place).to(components.loc)).norm(dim=-1)
    nearest = distance[1:].argmin() + 1

    return distance[nearest].item(), components.stddev[nearest]


# ---- what is found ----


def test_a_far_narrow_mode(float64):
    # A tenth as wide as the other and out of sight of all particles: a component of its own there, of its width.
    target = gaussian_mixture([(0.5, [0.0, 0.0], 1.0), (0.5, [8.0, -6.0], 0.1)])
    reference = searched(target, torch.randn(1000, 2), 5 * torch.randn(1000, 2))
    distance, width = nearest_component(reference, [8.0, -6.0])
    assert distance < 0.3 and (width < 1.0).all() and (width > 0.05).all()
    # The other half of the mass is on the whole, wide as it is: what is known already is not lost again.
    assert reference.mixture_distribution.probs[0] == pytest.approx(0.5)


def test_a_spike_on_a_broad_mode(float64):
    # No valley in front of it, but higher than any particle; a third of the mass.
    target = gaussian_mixture([(0.7, [0.0, 0.0], 1.0), (0.3, [0.8, 0.5], 0.01)])
    z = torch.randn(1000, 2)
    z = z[(z - torch.tensor([0.8, 0.5])).norm(dim=-1) > 0.06]
    reference = searched(target, z, 2 * torch.randn(1000, 2))
    distance, width = nearest_component(reference, [0.8, 0.5])
    assert distance < 0.1 and (width < 0.3).all()


def test_all_of_several_modes(float64):
    # Three of four are lost; each has a component near it.
    places = [[-6.0, -6.0], [-6.0, 6.0], [6.0, -6.0], [6.0, 6.0]]
    target = gaussian_mixture([(0.25, place, 0.5) for place in places])
    reference = searched(target, torch.tensor(places[0]) + 0.5 * torch.randn(500, 2), 8 * torch.randn(1000, 2))
    assert max(nearest_component(reference, place)[0] for place in places[1:]) < 1.0


def test_the_survey_goes_there(float64):
    # Evidence and share of a mode that annealing from a wide start loses: 0.04 wide, seven units away.
    target = gaussian_mixture([(0.6, [0.0, 0.0], 1.0), (0.4, [6.0, -4.0], 0.04)])
    found = survey(target)
    assert_within_standard_error(found.exploration.log_evidence, 0.0, found.exploration.std_error)
    replicates = (found.exploration.z[:, 0] > 4).double().view(8, -1).mean(1)
    assert_within_standard_error(replicates.mean(), 0.4, replicates.std().item() / math.sqrt(8))


# ---- what is not ----


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_gaussian_in_ten_dimensions_has_lost_nothing(seed, float64):
    # Every point followed comes to rest among the particles.
    torch.manual_seed(seed)
    target = gaussian_mixture([(1.0, [0.0] * 10, 1.0)], 10)
    assert searched(target, torch.randn(512, 10), 5 * torch.randn(512, 10)) is None


@pytest.mark.parametrize("seed", range(6))
def test_a_false_alarm_does_no_harm(seed, float64):
    # In few dimensions a point in the tail may be farther out than any particle: annealing from there ends well.
    torch.manual_seed(seed)
    locs = [torch.zeros(1, 1), torch.zeros(1, 2), torch.tensor([[-5.0, 0.0], [5.0, 0.0]])][seed % 3]
    target = FunctionTarget(models.mixture_log_prob(locs, [1 / len(locs)] * len(locs)), locs.shape[1])
    z = models.mixture_draws(locs, [512 // len(locs)] * len(locs))
    reference = searched(target, z, 6 * torch.randn(500, locs.shape[1]))
    if reference is not None:
        way = ReferencePath(target, lambda count: reference.sample((count,)), reference.log_prob)
        found = explore(way)
        assert_within_standard_error(found.log_evidence, 0.0, found.std_error)


def banana(z):
    """Normalised: a normal, bent by a map of volume one."""
    bent = z[:, 1] - z[:, 0].square() + 2.0

    return -0.5 * (z[:, 0] / 2.0).square() - 2 * bent.square() - math.log(math.pi * 2.0)


def student(z):
    return StudentT(torch.tensor(3.0).to(z)).log_prob(z).sum(-1)


def test_a_banana_comes_to_no_harm(float64):
    # Far along a curve there are few particles; an alarm there ends with the right evidence.
    x = 2.0 * torch.randn(1024, 1)
    z, target = torch.cat([x, x.square() - 2.0 + 0.5 * torch.randn_like(x)], 1), FunctionTarget(banana, 2)
    reference = searched(target, z, 6 * torch.randn(500, 2))
    if reference is not None:
        way = ReferencePath(target, lambda count: reference.sample((count,)), reference.log_prob)
        found = explore(way)
        assert_within_standard_error(found.log_evidence, 0.0, found.std_error)


@pytest.mark.parametrize("log_prob_fn", [student, models.log_gamma])
def test_no_harm_is_done(log_prob_fn, float64):
    # Heavy tails, a skew: nothing is found, or what follows a false alarm has the right evidence too.
    truth = models.log_gamma_log_evidence(2) if log_prob_fn is models.log_gamma else 0.0
    found = survey(FunctionTarget(log_prob_fn, 2), num_particles=32).exploration
    assert_within_standard_error(found.log_evidence, truth, found.std_error)
    assert found.std_error < 0.3


def test_regions_of_density_zero(float64):
    # Impossible beyond a line, with nan as with minus infinity, and a mode just before it: found, at a possible place.
    for value in (-math.inf, math.nan):

        def log_prob_fn(z, value=value):
            density = gaussian_mixture([(0.5, [0.0, 0.0], 1.0), (0.5, [9.0, 0.0], 0.2)]).log_prob(z)
            return torch.where(z[:, 0] < 9.1, density, value)

        target = FunctionTarget(log_prob_fn, 2)
        reference = searched(target, torch.randn(500, 2), 6 * torch.randn(500, 2))
        assert nearest_component(reference, [9.0, 0.0])[0] < 0.5
        assert reference.component_distribution.loc.isfinite().all()


def test_particles_of_density_zero_are_no_particles(float64):
    # Those on the mode that is lost do not count as having found it; with none left there is nothing to compare with.
    target = gaussian_mixture([(0.5, [0.0, 0.0], 1.0), (0.5, [9.0, 0.0], 0.5)])
    z = torch.cat([torch.randn(300, 2), torch.tensor([9.0, 0.0]) + 0.5 * torch.randn(300, 2)])
    log_prob, start = target.log_prob(z), 6 * torch.randn(500, 2)
    assert lost_modes(target, start, z, log_prob) is None
    log_prob[300:] = -torch.inf
    assert nearest_component(lost_modes(target, start, z, log_prob), [9.0, 0.0])[0] < 1.0
    assert lost_modes(target, start, z, torch.full_like(log_prob, -torch.inf)) is None


def test_nowhere_to_rest(float64):
    # A density that is zero wherever a point looks.
    def log_prob_fn(z):
        return torch.where(z[:, 0] > 1000.0, 0.0, -math.inf)

    z = torch.randn(100, 1)
    assert lost_modes(FunctionTarget(log_prob_fn, 1), z, z, torch.zeros(100)) is None


def test_a_plateau(float64):
    # A box has no slope and comparisons no gradient: one mode. A constant has no edge either, and breaks nothing.
    z = 2 * torch.rand(400, 2) - 1

    def box(z):
        return torch.where((z.abs() < 1).all(-1), 0.0, -math.inf)

    assert searched(FunctionTarget(box, 2), z, 3 * z) is None
    reference = searched(FunctionTarget(lambda z: torch.zeros(len(z)), 2), z, z)
    assert reference is None or reference.log_prob(z).isfinite().all()


def test_single_precision():
    # The reference has the type of the target.
    target = gaussian_mixture([(0.5, [0.0, 0.0], 1.0), (0.5, [9.0, 0.0], 0.3)])
    reference = searched(target, torch.randn(500, 2), 5 * torch.randn(500, 2))
    assert reference.sample((3,)).dtype == torch.float32 and nearest_component(reference, [9.0, 0.0])[0] < 1.0


# ---- who is followed ----


def test_what_is_far(float64):
    # Farther from all particles than half again the widest gap among them, in the particles' own scales.
    z = torch.tensor([[0.0], [1.0], [2.0], [4.0]])
    points = torch.tensor([[-3.5], [-2.5], [3.0], [6.9], [7.1]])
    assert _is_far(points, z).tolist() == [True, False, False, False, True]
    assert torch.equal(_is_far(1000 * points + 7, 1000 * z + 7), _is_far(points, z))


def test_the_best_of_very_many_is_followed(float64):
    # A spike of one part in ten thousand of the volume, which no given point is near.
    target = gaussian_mixture([(0.5, [0.0, 0.0], 1.0), (0.5, [2.0, 1.0], 0.05)])
    start = 4 * torch.randn(1000, 2)
    start = start[(start - torch.tensor([2.0, 1.0])).norm(dim=-1) > 0.3]
    chosen = _chosen(target, start)
    assert (chosen - torch.tensor([2.0, 1.0])).norm(dim=-1).min() < 0.1
    # Some of the others are given ones: at most 256 cells, and at most 768 of those.
    given = (chosen[:, None] == start).all(-1).any(1).sum()
    assert 256 < given <= 768 and len(chosen) - given <= 256


@pytest.mark.parametrize("num_terms", [1, 10_000, 10_000_000])
def test_fewer_points_for_larger_densities(num_terms):
    # From 65,536 points down to a thousand, and fewer of them followed.
    rows = []

    def log_prob_fn(z):
        rows.append(len(z))
        return -0.5 * z.square().sum(-1)

    target = FunctionTarget(log_prob_fn, 2)
    target.num_terms = num_terms
    rows.clear()
    chosen = _chosen(target, torch.randn(2000, 2))
    assert sum(rows) == {1: 65536, 10_000: 5000, 10_000_000: 1024}[num_terms]
    assert len(chosen) <= 1024 and len(chosen) > {1: 768, 10_000: 256, 10_000_000: 16}[num_terms]


def test_points_follow_the_shape_of_the_start(float64):
    # Narrow starts in one direction send no points far out in it: three times as far as the starts reach.
    normal = MultivariateNormal(torch.zeros(2), torch.tensor([[4.0, 1.9], [1.9, 1.0]]))
    chosen = _chosen(FunctionTarget(lambda z: torch.zeros(len(z)), 2), normal.sample((1000,)))
    across = (chosen - 0.0) @ torch.tensor([-0.45, 0.89])
    assert across.abs().max() < 15 * (normal.sample((5000,)) @ torch.tensor([-0.45, 0.89])).std()


def test_climbers_reach_a_spike_that_is_far_uphill(float64):
    # Too narrow for any point to hit in six dimensions, on a slope that leads there: particles climb to it.
    centre = torch.full((6,), 0.4)

    def log_prob_fn(z):
        distance = (z - centre).norm(dim=-1)
        return -0.5 * z.square().sum(-1) - 10.0 * (distance.square() + 1e-4).sqrt()

    target = FunctionTarget(log_prob_fn, 6)
    z = torch.randn(500, 6)
    climbed = _climbed(target, z)
    assert len(climbed) == 64 and (climbed - centre).norm(dim=-1).median() < 0.3 * (z - centre).norm(dim=-1).median()


def test_climbers_of_a_costly_density_need_fewer_steps(float64):
    # The same slope, and a limit of scores: a third of a hundred steps, and one before the first of them.
    centre, calls = torch.full((6,), 0.4), []

    def log_prob_fn(z):
        calls.append(len(z))
        distance = (z - centre).norm(dim=-1)
        return -0.5 * z.square().sum(-1) - 10.0 * (distance.square() + 1e-4).sqrt()

    target = FunctionTarget(log_prob_fn, 6)
    target.num_terms = 15_000
    z = torch.randn(500, 6)
    calls.clear()
    climbed = _climbed(target, z)
    assert len(climbed) == 21 and len(calls) <= 31 and max(calls) <= 21
    assert (climbed - centre).norm(dim=-1).median() < 0.3 * (z - centre).norm(dim=-1).median()


def test_costly_climbers_on_a_plateau_stay(float64):
    z, target = torch.randn(100, 2), FunctionTarget(lambda z: 0.0 * z.sum(-1), 2)
    target.num_terms = 15_000
    torch.testing.assert_close(torch.cdist(_climbed(target, z), z).amin(1), torch.zeros(21), atol=1e-6, rtol=0)


def test_climbers_on_a_plateau_stay(float64):
    # Nothing leads anywhere: they are particles still.
    z = torch.randn(100, 2)
    climbed = _climbed(FunctionTarget(lambda z: torch.zeros(len(z)), 2), z)
    torch.testing.assert_close(torch.cdist(climbed, z).amin(1), torch.zeros(64), atol=1e-6, rtol=0)


def test_no_search_in_many_dimensions(float64):
    # A single mode of 100 dimensions, 50 nats above the mass: with 300 particles it would look like a lost one.
    target = FunctionTarget(lambda z: -0.5 * z.square().sum(-1), 100)
    z = torch.randn(300, 100)
    assert lost_modes(target, z, z, target.log_prob(z)) is None


# ---- draws of vague priors ----

ANSWERS = torch.tensor([-1.2, 0.4, 2.1, -0.3, 0.9, -2.0, 1.5, 0.1])


def vague():
    """Effects under a precision of Gamma(0.01, 0.01), each measured to 0.1: prior draws reach 1e150."""
    precision = pyro.sample("precision", dist.Gamma(0.01, 0.01))
    with pyro.plate("group", 8):
        effect = pyro.sample("effect", dist.Normal(0.0, precision.rsqrt()))
        pyro.sample("y", dist.Normal(effect, 0.1), obs=ANSWERS)


def vague_log_evidence():
    """Effects in closed form, the logarithm of their precision by quadrature."""
    u = torch.linspace(-3000.0, 50.0, 1_000_001, dtype=torch.float64)
    log_prior = 0.01 * u - 0.01 * u.exp() + 0.01 * math.log(0.01) - math.lgamma(0.01)
    # log(exp(-u) + 0.01), which is finite at both ends.
    log_variance = torch.logaddexp(-u, torch.tensor(math.log(0.01), dtype=u.dtype))
    square = ANSWERS.double().square().sum()
    log_density = log_prior - 0.5 * (8.0 * (log_variance + math.log(2.0 * math.pi)) + square * (-log_variance).exp())
    largest = log_density.max()

    return (largest + torch.trapezoid((log_density - largest).exp(), u).log()).item()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_draws_of_a_vague_prior_that_cannot_move_are_no_modes(seed, float64):
    # Steps of any size end lower, so that points at a log density of -1e154 seemed to have come to rest.
    pyro.set_rng_seed(seed)

    found = survey(ModelTarget(vague, (), {})).exploration

    assert abs(found.log_evidence - vague_log_evidence()) < 3.0 * math.hypot(found.std_error, 0.02)


@pytest.mark.parametrize(("depth", "distance"), [(-1e154, 1e152), (-60.0, 30.0)])
def test_what_lies_too_low_is_no_mode_however_wide(depth, distance, float64):
    z, far = torch.randn(512, 2), torch.full((3, 2), distance)
    kept = _of_account(Rest(far, torch.full((3,), depth), torch.ones(3)), z, -0.5 * z.square().sum(-1))

    assert not len(kept.z)


@pytest.mark.parametrize("width", [1.0, 1e3])
def test_a_wide_mode_counts_though_its_density_is_low(width, float64):
    # Half of the mass each: the density of the wide one is lower by a factor of width squared.
    z, there = torch.randn(512, 2), 10.0 * width * (1.0 + 0.1 * torch.randn(3, 2))
    rest = Rest(there, torch.full((3,), -2.0 * math.log(width) - 1.0), torch.ones(3))

    assert len(_of_account(rest, z, -0.5 * z.square().sum(-1)).z) == 3


# ---- modes that multiply ----


def test_modes_beyond_counting_are_left_where_they_cost_much():
    # 200 modes of one point each, one of 60 points, one that counts whatever else was lost, and points not lost.
    labels = torch.cat([torch.arange(200), torch.full((60,), 200), torch.tensor([201]), torch.full((40,), 202)])
    lost, alone = labels < 202, labels == 201
    left = _countable(labels, lost, alone, dim=64)
    assert torch.equal(left, (labels == 200) | alone)
    assert torch.equal(_countable(labels, lost, alone, dim=20), lost)
    few = lost & ((labels < 100) | (labels >= 200))
    assert torch.equal(_countable(labels, few, alone, dim=64), few)


def wells(z):
    """Two wells at -2 and 2 in each coordinate, of width 1 / 8 and 64 nats deep."""
    return -4.0 * (z.square() - 4.0).square().sum(-1)


def in_wells(count, dim):
    signs = 1.0 - 2.0 * torch.randint(2, (count, dim))

    return signs * (2.0 + torch.randn(count, dim) / 8.0**1.5)


def test_of_wells_that_multiply_none_is_lost(float64):
    dim = 24
    z = in_wells(1024, dim)
    assert lost_modes(FunctionTarget(wells, dim), 2.0 * torch.randn(512, dim), z, wells(z)) is None


def test_a_mode_among_wells_that_multiply_is_found(float64):
    dim, top = 24, 60.0

    def log_prob(z):
        return torch.logaddexp(wells(z), top - 2.0 * (z - 12.0).square().sum(-1))

    z = in_wells(1024, dim)
    start = torch.cat([2.0 * torch.randn(448, dim), 12.0 + torch.randn(64, dim)])
    reference = lost_modes(FunctionTarget(log_prob, dim), start, z, log_prob(z))
    centres = reference.component_distribution.loc[1:]
    assert len(centres) and (centres - 12.0).abs().mean(1).min() < 0.3

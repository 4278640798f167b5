"""Survey: modes, coordinates, base and check, before anything is trained."""

import math
from dataclasses import replace
from types import SimpleNamespace

import models
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_error

from pyro_osds.explore.anew import resurvey
from pyro_osds.explore.journal import Journal
from pyro_osds.explore.mixture import effective_share
from pyro_osds.explore.modes import Modes
from pyro_osds.explore.particles import Exploration
from pyro_osds.explore.survey import _affordable, _with_lost_modes, survey
from pyro_osds.explore.symmetry.one_copy import in_one_copy
from pyro_osds.explore.symmetry.ordering import OrderedTarget
from pyro_osds.model import ModelTarget
from pyro_osds.target import FunctionTarget


def test_a_gaussian_needs_a_gaussian_base(float64):
    # Place, width and evidence of a single Gaussian.
    sd = torch.tensor([0.1, 5.0])
    found = survey(FunctionTarget(lambda z: -0.5 * ((z - 3) / sd).square().sum(-1), 2), 128)
    assert found.modes.count == 1 and found.base.num_components == 1
    truth = math.log(2 * math.pi) + sd.log().sum().item()
    assert_within_standard_error(found.exploration.log_evidence, truth, found.exploration.std_error)
    for i in range(2):
        assert_within_standard_error(found.base.loc[i], 3.0, sd[i].item() / math.sqrt(256))


def test_separated_modes_get_a_mixture(float64):
    # Two modes, a component each at least, the evidence right.
    locs = torch.tensor([[-6.0, 0.0], [6.0, 2.0]])
    found = survey(FunctionTarget(models.mixture_log_prob(locs, [0.4, 0.6]), 2))
    assert found.modes.count == 2 and found.base.num_components >= 2
    assert_within_standard_error(found.exploration.log_evidence, 0.0, found.exploration.std_error)
    assert (found.base.log_prob(locs) > -6).all() and found.base.log_prob(torch.zeros(1, 2)) < -9


@pytest.mark.parametrize(
    ("model", "log_evidence"),
    [
        (models.conjugate, models.CONJUGATE_LOG_EVIDENCE),
        (models.beta_binomial, models.BETA_BINOMIAL_LOG_EVIDENCE),
    ],
)
def test_models_start_from_their_priors(model, log_evidence):
    # The check is right for models with an exact evidence.
    found = survey(ModelTarget(model))
    assert_within_standard_error(found.exploration.log_evidence, log_evidence, found.exploration.std_error)


def test_a_centred_hierarchy_is_standardised():
    # Eight schools have a funnel in the centred coordinates; the evidence does not depend on them.
    found = survey(ModelTarget(models.schools_centred))
    assert found.target.standardized
    assert_within_standard_error(
        found.exploration.log_evidence, models.SCHOOLS_LOG_EVIDENCE, found.exploration.std_error
    )
    z = found.exploration.z
    torch.testing.assert_close(found.target.log_prob(z), found.exploration.log_prob, rtol=1e-4, atol=1e-3)


def test_strong_data_keep_the_coordinates_of_the_model():
    # A posterior that is already Gaussian has nothing to gain.
    assert not survey(ModelTarget(models.regression)).target.standardized


def test_a_target_without_batches_is_explored_once(float64):
    # Two modes, seen and given a mixture, without the thorough second way and without refitting.
    locs = torch.tensor([[-6.0, 0.0], [6.0, 2.0]])
    target = FunctionTarget(models.mixture_log_prob(locs, [0.4, 0.6]), 2)
    thorough = survey(target, 16)
    target.vectorized = False
    found = survey(target, 16)
    assert found.modes.count == 2 and found.base.num_components >= 2
    assert len(found.exploration.z) == 128 and len(thorough.exploration.z) == 1024
    assert found.num_evaluations < thorough.num_evaluations / 10


@pytest.mark.parametrize(
    ("num_terms", "times", "num_moves"), [(0, 8, 4), (1_000, 8, 4), (10_000, 1, 4), (20_000, 2, 2), (100_000, 0, 4)]
)
def test_the_larger_the_density_the_fewer_particles_on_the_slow_way(num_terms, times, num_moves):
    # Then fewer moves, down to no such way at all; a density of unknown size is taken for a small one.
    target, exploration = (
        SimpleNamespace(num_terms=num_terms),
        SimpleNamespace(num_temperatures=8, z=torch.zeros(128, 1)),
    )
    found, pace = _affordable(target, exploration)
    assert (found, pace.num_moves) == (times, num_moves)


def test_a_slow_way_that_nobody_can_afford_is_not_gone():
    # Two modes ask for it, and are both found without.
    target = FunctionTarget(lambda z: torch.logaddexp(-(z - 6).square().sum(-1), -(z + 6).square().sum(-1)), dim=1)
    slow = survey(target, num_particles=16)
    target.num_terms = 10_000_000
    fast = survey(target, num_particles=16)
    assert fast.num_evaluations < 0.5 * slow.num_evaluations
    assert fast.modes.count == slow.modes.count == 2
    assert slow.plan == "a density of few terms: 8 x 16 particles, 8 times as many slowly with 4 moves a temperature"
    assert fast.plan == "a density of 10,000,000 terms: 8 x 16 particles"
    assert f"plan: {fast.plan}" in fast.description()


def test_of_more_modes_than_can_be_counted_none_is_looked_for(monkeypatch):
    # Each is a small share of all, and a reference with some of them more would only take long; where it does.
    looked = []
    monkeypatch.setattr("pyro_osds.explore.survey.lost_modes", lambda *args: looked.append(1))
    target = FunctionTarget(lambda z: -0.5 * z.square().sum(-1), 2)
    survey(target, num_particles=32)
    many = Modes(torch.arange(512), parted=1.0)
    monkeypatch.setattr("pyro_osds.explore.survey.modes_of", lambda *args: many)
    monkeypatch.setattr("pyro_osds.explore.symmetry.one_copy.find_modes", lambda *args: many)
    assert len(looked) == 1
    assert survey(target, num_particles=32).modes.count > 128
    assert len(looked) == 2
    target.num_terms = 2_000
    assert survey(target, num_particles=32).modes.count > 128
    assert len(looked) == 2


# ---- one order ----


def two_means(prior_locs=0.0):
    """Two normals of equal weight, seen apart."""
    locs = pyro.sample("locs", dist.Normal(prior_locs, 3.0).expand([2]).to_event(1))
    with pyro.plate("data", 6):
        y = torch.tensor([-3.2, -2.9, -3.1, 2.8, 3.3, 3.1])
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(locs, 0.5)), obs=y)


def two_means_log_evidence(target):
    axis = torch.linspace(-6, 6, 601, dtype=target.dtype)

    return (torch.logsumexp(target.log_prob(torch.cartesian_prod(axis, axis)), 0) + 2 * math.log(0.02)).item()


def test_components_that_trade_places_are_put_in_order():
    # One mode in place of two, with the evidence of both.
    target = ModelTarget(two_means)
    found = survey(target)
    assert isinstance(found.target, OrderedTarget) and found.modes.count == 1 and found.base.num_components == 1
    truth = two_means_log_evidence(target)
    assert_within_standard_error(found.exploration.log_evidence, truth, found.exploration.std_error)
    torch.testing.assert_close(
        found.exploration.log_prob, found.target.log_prob(found.exploration.z), rtol=1e-4, atol=1e-3
    )
    draws = found.target.constrain(found.exploration.z)["locs"]
    assert_within_standard_error((draws[:, 0] < 0).double().mean(), 0.5, 0.5 / math.sqrt(len(draws)))


def test_particles_of_exchangeable_components_sit_in_all_orders(float64):
    # Where no valley lies between the orders nothing is ordered, and particles that were all in one are spread.
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))

    target = ModelTarget(model)
    z = torch.randn(600, 2).sort(-1).values
    found = survey(target).exploration
    exploration = replace(found, z=z, log_prob=target.log_prob(z), start=z)
    same, spread, modes = in_one_copy(target, exploration)
    assert same is target and modes.count == 1
    assert_within_standard_error((spread.z[:, 0] < spread.z[:, 1]).double().mean(), 0.5, 0.5 / math.sqrt(600))
    torch.testing.assert_close(spread.log_prob, target.log_prob(spread.z))


def test_components_that_the_prior_tells_apart_keep_their_order():
    # Nothing to put in order.
    found = survey(ModelTarget(lambda: two_means(torch.tensor([-1.0, 1.0]))))
    assert not isinstance(found.target, OrderedTarget)


# ---- what mode search brings ----


def test_lost_modes_are_taken_in(float64):
    # Particles in one of two modes: afterwards they sit in both, and the evidence is that of both.
    locs = torch.tensor([[-6.0, 0.0], [6.0, 2.0]])
    target = FunctionTarget(models.mixture_log_prob(locs, [0.4, 0.6]), 2)
    whole = survey(target, 32).exploration
    z = models.mixture_draws(locs[:1], [512])
    half = replace(
        whole,
        z=z,
        log_prob=target.log_prob(z),
        replicate_log_evidence=math.log(0.4) + 0.01 * torch.randn(8),
        start=6 * torch.randn(512, 2),
    )
    found = _with_lost_modes(target, half, 64, 8, Journal())
    right = (found.z[:, 0] > 0).double().view(8, 64).mean(1)
    assert_within_standard_error(right.mean(), 0.6, right.std().item() / math.sqrt(8))
    assert_within_standard_error(found.log_evidence, 0.0, found.std_error)
    assert torch.equal(found.start, half.start)
    # An evidence that is lower than before is no discovery; and point by point nobody looks.
    high = replace(half, replicate_log_evidence=3.0 + 0.01 * torch.randn(8))
    assert _with_lost_modes(target, high, 64, 8, Journal()) is high
    target.vectorized = False
    assert _with_lost_modes(target, half, 64, 8, Journal()) is half


# ---- a second look ----


def test_a_second_look_at_better_particles(float64):
    # Modes and base from the new particles; target, count of evaluations and the check of the evidence from before.
    locs = torch.tensor([[-6.0, 0.0], [6.0, 2.0]])
    target = FunctionTarget(models.mixture_log_prob(locs, [0.4, 0.6]), 2)
    first = survey(target, 32)
    z = models.mixture_draws(locs[:1], [600])
    lower = first.exploration.replicate_log_evidence - 1.0
    particles = replace(first.exploration, z=z, log_prob=target.log_prob(z), replicate_log_evidence=lower)
    second = resurvey(first, particles)
    assert second.target is target and second.exploration.z is z and second.modes.count == 1
    assert second.exploration.log_evidence == first.exploration.log_evidence
    assert second.num_evaluations == first.num_evaluations and first.base.num_components >= 2
    assert_within_standard_error(second.base.loc[0], -6.0, 1 / math.sqrt(600))


def test_a_spike_on_a_broad_mode_gets_a_mixture(float64):
    # No valley parts them, and one Gaussian is neither: a mixture whose own draws count.
    def log_prob_fn(z):
        broad, spike = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(0.3, 0.05)
        return torch.logaddexp(math.log(0.5) + broad.log_prob(z).sum(-1), math.log(0.5) + spike.log_prob(z).sum(-1))

    found = survey(FunctionTarget(log_prob_fn, 3))
    assert found.base.num_components >= 2 and not found.is_folded
    assert effective_share(found.base, found.target) > 0.5
    assert_within_standard_error(found.exploration.log_evidence, 0.0, found.exploration.std_error)


# ---- many dimensions ----


def test_many_dimensions(float64):
    # 160 correlated ones: far fewer particles than a covariance needs, and still the exact base and evidence.
    index = torch.arange(160)
    covariance = 0.8 ** (index - index[:, None]).abs().double()
    scale_tril, precision = torch.linalg.cholesky(covariance), torch.linalg.inv(covariance)
    target = FunctionTarget(lambda z: -0.5 * ((z - 1.0) @ precision * (z - 1.0)).sum(-1), 160)
    target.num_terms = 100_000  # so that fewer points are thrown
    found = survey(target, num_particles=16)
    log_evidence = 80 * math.log(2 * math.pi) + scale_tril.diagonal().log().sum().item()
    assert_within_standard_error(found.exploration.log_evidence, log_evidence, max(found.exploration.std_error, 1e-3))
    assert effective_share(found.base, target) > 0.99
    torch.testing.assert_close(found.exploration.log_prob, target.log_prob(found.exploration.z))
    assert found.exploration.num_temperatures == 1


def checked(places):
    """Two exchangeable latents, each at any of some places: as many modes as pairs of places."""
    places = torch.as_tensor(places, dtype=torch.float64)
    x = pyro.sample("x", dist.Normal(0.0, 20.0).expand([2]).to_event(1))
    pyro.factor("at", torch.logsumexp(-0.5 * (x[..., None] - places).square(), -1).sum(-1))


@pytest.mark.parametrize(("places", "is_ordered"), [([-8.0, 11.0], True), ([-24.0, -8.0, 11.0, 28.0], False)])
def test_an_order_that_leaves_many_modes_is_none(places, is_ordered):
    # Of two places four modes become three; of four sixteen become ten, and a mixture has a component for each of them.
    pyro.set_rng_seed(0)
    target = ModelTarget(lambda: checked(places))
    z = torch.tensor(places, dtype=torch.float64)[torch.randint(len(places), (512, 2))] + torch.randn(512, 2)
    log_prob = target.log_prob(z)
    at = Exploration(z, log_prob, torch.zeros(8), 1, 512, 1.0, 0, start=z, passed=z[:1])
    seen, _, modes = in_one_copy(target, at)
    assert (seen is not target) == is_ordered
    assert is_ordered or modes.count == 16

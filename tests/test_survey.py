"""The survey room: modes, coordinates, base and check, before anything is trained."""

import math
from types import SimpleNamespace

import models
import pytest
import torch
from helpers import assert_within_standard_error

from pyro_osds.model import ModelTarget
from pyro_osds.survey import _affordable, survey
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


@pytest.mark.parametrize(("num_terms", "times"), [(0, 8), (1_000, 8), (10_000, 3), (100_000, 0)])
def test_the_larger_the_density_the_fewer_particles_on_the_slow_way(num_terms, times):
    # Down to none at all; a density of unknown size is taken for a small one.
    target, exploration = (
        SimpleNamespace(num_terms=num_terms),
        SimpleNamespace(num_temperatures=8, z=torch.zeros(128, 1)),
    )
    assert _affordable(target, exploration) == times


def test_a_slow_way_that_nobody_can_afford_is_not_gone():
    # Two modes ask for it, and are both found without.
    target = FunctionTarget(lambda z: torch.logaddexp(-(z - 6).square().sum(-1), -(z + 6).square().sum(-1)), dim=1)
    slow = survey(target, num_particles=16)
    target.num_terms = 10_000_000
    fast = survey(target, num_particles=16)
    assert fast.num_evaluations < 0.5 * slow.num_evaluations
    assert fast.modes.count == slow.modes.count == 2

"""The look for necks that follows training: in a run, cut short, in a file; a hierarchy that was low without it."""

import sys
import warnings
from pathlib import Path

import pyro
import pytest
import torch
from helpers import assert_within_standard_error

from pyro_osds import OSDS
from pyro_osds.runtime.clock import OutOfTimeError
from pyro_osds.train import necks

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from adversarial_cases import CASES

OPTIONS = {"num_iterations": 30, "num_samples": 100, "num_particles": 64, "escalate": False, "disable_progbar": True}


def necked(z):
    # Two members whose scale goes to zero with the first coordinate, from a standard normal on: normalised.
    v, members = z[:, 0], z[:, 1:]
    log_scale = (2.0 * (v + 1.0)).clamp(max=0.0)
    log_prob = -0.5 * v.square() - 0.5 * (members * (-log_scale[:, None]).exp()).square().sum(-1) - 2.0 * log_scale

    return log_prob - 1.5 * torch.log(torch.tensor(2 * torch.pi))


def run(**options):
    pyro.set_rng_seed(4)
    osds = OSDS.from_log_prob(necked, 3, **{**OPTIONS, **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        osds.run()

    return osds


@pytest.fixture(scope="module")
def whole():
    return run()


def test_a_neck_gets_base_draws_that_only_weights_see(whole):
    leap = whole.fit.leap
    assert leap.base.num_components > leap.plain.base.num_components == 1
    assert_within_standard_error(whole.log_evidence, 0.0, whole.log_evidence_se, k=4)
    # Without them: the flow as it was trained, whose ELBO is reported.
    z, log_prob, _ = leap.plain.sample(4096)
    bounds = necked(z).double() - log_prob.double()
    assert_within_standard_error(whole.evidence.elbo, bounds.mean().item(), bounds.std().item() / 45, k=4)


@pytest.mark.parametrize("cut, through_a_file", [(KeyboardInterrupt, False), (OutOfTimeError, True)])
def test_a_look_that_was_cut_short_is_repeated_bit_for_bit(whole, cut, through_a_file, monkeypatch, tmp_path):
    cover = necks.cover_necks

    def cut_short(leap, target):
        torch.rand(3)
        raise cut

    monkeypatch.setattr(necks, "cover_necks", cut_short)
    osds = run()
    assert osds.is_interrupted and osds.fit.leap.base.num_components == 1
    monkeypatch.setattr(necks, "cover_necks", cover)
    if through_a_file:
        osds.save(tmp_path / "fit.pt")
        osds = OSDS.load(tmp_path / "fit.pt", necked)
    torch.manual_seed(99)
    osds.resume()
    assert not osds.is_interrupted and osds.log_evidence == whole.log_evidence
    assert all(torch.equal(value, osds.get_samples()[name]) for name, value in whole.get_samples().items())


def test_draws_that_nothing_weighs_are_those_of_the_flow():
    osds = run(correction="none")
    assert osds.fit.leap.base.num_components > 1
    # Draws of the trained flow and no others: none of the components that only weights make right.
    drawn = osds.fit.draws.proposals
    with torch.no_grad():
        expected = drawn.log_prob - osds.fit.leap.plain.log_prob(drawn.z)
    torch.testing.assert_close(drawn.log_weight, expected, atol=1e-3, rtol=1e-4)


def test_centred_slopes():
    # Regressions with intercepts and slopes by group: -0.0181 at a standard error of 0.0023 before.
    case = CASES["centred_slopes"]
    osds = OSDS(case.model, seed=1, disable_progbar=True)
    osds.run()
    assert osds.evidence.reliable and osds.fit.recipe.necks
    assert_within_standard_error(osds.log_evidence, case.truth(), osds.log_evidence_se, k=4)

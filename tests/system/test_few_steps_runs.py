"""recipe="few_steps": a ring, which no bijection of a Gaussian covers, from exploration to a file and back."""

import math
from dataclasses import replace

import pyro
import pytest
import torch
from helpers import assert_within_standard_error

from pyro_osds import OSDS
from pyro_osds.fit import Fit
from pyro_osds.posterior.few_steps import FEW_STEPS

# The log of 2 pi r w sqrt(2 pi): the origin is twenty standard deviations away.
LOG_EVIDENCE = math.log(2 * math.pi * 3.0 * 0.15 * math.sqrt(2 * math.pi))
OPTIONS = {"recipe": "few_steps", "num_iterations": 300, "num_samples": 500, "disable_progbar": True}


def ring(z):
    return -0.5 * ((z.norm(dim=-1) - 3.0) / 0.15).square()


@pytest.fixture(scope="module")
def fitted():
    judge = Fit._judge

    def harshly(fit, leap):
        # A ring as wide as this one is within reach of the flow, too: it is to fail all the same.
        draws = judge(fit, leap)
        return replace(draws, evidence=replace(draws.evidence, is_settled=False, reliable=False, reasons=("no",)))

    pyro.set_rng_seed(0)
    osds = OSDS.from_log_prob(ring, 2, **OPTIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fit, "_judge", harshly)
        osds.run()

    return osds


def of(draws):
    """Evidence of weighted draws, and its standard error."""
    weights = draws.log_weights.double().exp()

    return weights.mean(), weights.std() / len(weights) ** 0.5


def test_the_diffusion_gives_the_result(fitted):
    report = [line for line in fitted.fit.run_report if line.startswith(FEW_STEPS)]
    assert len(report) == 1 and "draws of a diffusion in few steps, not of one network evaluation" in report[0]
    assert fitted.fit.draws.source == FEW_STEPS
    evidence = fitted.evidence
    assert evidence.reliable and evidence.draws_reliable, evidence.all_reasons
    assert_within_standard_error(evidence.log_evidence, LOG_EVIDENCE, evidence.std_error)
    z = fitted.get_samples()["z"].double()
    radius = z.norm(dim=-1)
    # Independent in weights, not in chains: half of the draws count.
    assert_within_standard_error(radius.mean(), 3.0 + 0.15**2 / 3.0, radius.std() / (len(z) / 2) ** 0.5)
    assert_within_standard_error(z[:, 0].mean(), 0.0, z[:, 0].std() / (len(z) / 2) ** 0.5)


def test_further_draws_are_of_the_diffusion_in_any_number_of_steps(fitted):
    for num_steps in (None, 8, 64):
        draws = fitted.draw(4000, num_steps)
        estimate, std_error = of(draws)
        assert draws.log_abs_det.isnan().all()
        assert_within_standard_error(estimate, math.exp(LOG_EVIDENCE), std_error)
    batches = list(fitted.draw_batches(3000, 2000, num_steps=16))
    assert [len(batch) for batch in batches] == [2000, 1000]
    assert fitted.fit.few_steps == {}


def test_one_step_is_the_flow(fitted):
    assert fitted.draw(10, num_steps=1).log_abs_det.isfinite().all()


def test_steps_that_it_has_not_learnt(fitted):
    with pytest.raises(ValueError, match="num_steps must be at most 64 for draws of a diffusion, got 128"):
        fitted.draw(10, num_steps=128)
    with pytest.raises(ValueError, match="power of two"):
        fitted.draw(10, num_steps=12)
    with pytest.raises(ValueError, match="got 128"):
        fitted.draw_batches(10, num_steps=128)


def test_a_file_holds_it(fitted, tmp_path):
    fitted.save(tmp_path / "ring")
    again = OSDS.load(tmp_path / "ring", ring)
    weights = []
    for osds in (fitted, again):
        torch.manual_seed(5)
        weights.append(osds.draw(50, 8).log_weights)
    assert torch.equal(*weights)
    assert again.fit.draws.source == FEW_STEPS
    again.redraw()
    assert again.fit.draws.source == FEW_STEPS
    assert_within_standard_error(again.evidence.log_evidence, LOG_EVIDENCE, again.evidence.std_error)


def test_a_gaussian_needs_no_diffusion():
    pyro.set_rng_seed(0)
    osds = OSDS.from_log_prob(lambda z: -0.5 * z.square().sum(-1), 2, **OPTIONS)
    osds.run()
    assert osds.fit.walk is None and osds.fit.draws.source == ""


def test_it_is_asked_for_alone():
    with pytest.raises(ValueError, match="distributed is not for recipe='few_steps'"):
        OSDS.from_log_prob(ring, 2, recipe="few_steps", distributed=True)
    with pytest.raises(ValueError, match="recipe='few_steps' needs escalate=True"):
        OSDS.from_log_prob(ring, 2, recipe="few_steps", escalate=False)

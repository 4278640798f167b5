"""Annealed SMC as a result: right draws and evidence where a flow is not, and what its own checks see."""

import math
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import assert_within_standard_error

from pyro_osds.explore.particles import Exploration
from pyro_osds.explore.survey import survey
from pyro_osds.posterior import annealed
from pyro_osds.posterior.annealed import ANNEALED_SMC, NUM_REPLICATES, AnnealedSMC, chosen, replicate_errors
from pyro_osds.posterior.annealed_reasons import run_reasons, size_reasons, spread_reasons, tail_reasons
from pyro_osds.posterior.evidence import Evidence, EvidenceCheck, Reason
from pyro_osds.target import FunctionTarget

# A ring of radius 3 and width 0.2: no bijection from a Gaussian covers it. Log Z by quadrature over the radius.
RADIUS, WIDTH = 3.0, 0.2


def ring(z):
    return -0.5 * ((z.norm(dim=-1) - RADIUS) / WIDTH).square()


def ring_log_evidence():
    r = torch.linspace(0.0, 6.0, 60001, dtype=torch.float64)
    return torch.trapezoid(2 * math.pi * r * (-0.5 * ((r - RADIUS) / WIDTH).square()).exp(), r).log().item()


@pytest.fixture(scope="module")
def found():
    torch.manual_seed(0)
    return survey(FunctionTarget(ring, 2))


def judged(log_evidence=-9.0, **numbers):
    """Draws of a flow that nobody believes."""
    evidence = Evidence(log_evidence, 0.1, -12.0, 3.0, 1.5, 4096, False, ("A reason.",), log_integral=log_evidence)
    return SimpleNamespace(
        evidence=replace(evidence, is_settled=False, **numbers),
        flow_log_weight=torch.zeros(200),
        flow_not_finite=0,
        source="",
    )


def stage(found, **options):
    options = {"num_chains": 4, "num_samples": 500, "std_error": 0.03, **options}
    return AnnealedSMC(found.target, found, None, **options)


def test_draws_and_evidence_of_a_ring(found):
    # The evidence by quadrature, the ELBO below it, and draws all around the ring at its radius.
    torch.manual_seed(1)
    draws = stage(found).posterior(judged())
    evidence = draws.evidence
    assert evidence.reliable and evidence.draws_reliable and evidence.is_settled, evidence.all_reasons
    assert_within_standard_error(evidence.log_evidence, ring_log_evidence(), evidence.std_error)
    assert evidence.std_error <= math.hypot(0.03, 0.005) and evidence.elbo < evidence.log_evidence
    assert draws.source == ANNEALED_SMC and draws.is_whole and draws.index.shape == (4, 500)
    assert draws.flow_log_weight is not None and evidence.num_draws % NUM_REPLICATES == 0
    z = draws.z
    assert_within_standard_error(z.norm(dim=-1).mean(), RADIUS + WIDTH**2 / RADIUS, 2 * WIDTH / math.sqrt(2000))
    angle = torch.atan2(z[:, 1], z[:, 0])
    for wave in (angle.cos(), angle.sin(), (2 * angle).cos()):
        assert_within_standard_error(wave.mean(), 0.0, 2 * math.sqrt(0.5 / 2000))
    torch.testing.assert_close(draws.proposals.log_prob, ring(draws.proposals.z))


def test_more_draws_weigh_as_much_as_the_evidence(found):
    # Weights of replicates: their mean is the evidence, and weighted draws are those of the posterior.
    torch.manual_seed(2)
    draws = stage(found).more(5000)
    assert draws.z.shape == (5000, 2) and draws.log_abs_det.isnan().all()
    estimate = torch.logsumexp(draws.log_weight, 0).item() - math.log(5000)
    spread = draws.log_weight.unique().double()
    assert len(spread) <= NUM_REPLICATES
    error = 1.5 * spread.std().item() / math.sqrt(len(spread))
    assert_within_standard_error(estimate, ring_log_evidence(), error)
    torch.testing.assert_close(draws.log_prob, ring(draws.z))
    # Fewer than a run has, and no more than asked for.
    assert len(stage(found).more(7).z) == 7


def test_the_source(found):
    source = stage(found).source()
    assert source.name == ANNEALED_SMC
    assert source.sentence == "draws of annealed SMC, not of one network evaluation"
    assert len(source.more(3).z) == 3


# ---- how many particles ----


def runs(monkeypatch, std_errors, evaluations=100, seconds=0.0):
    """Annealing that leaves nothing but standard errors, in turn; returns the sizes that were asked for."""
    sizes, left = [], list(std_errors)

    def annealed_anew(target, found, num_particles, num_replicates, starts, **pace):
        sizes.append(num_particles)
        time.sleep(seconds)
        return run(left.pop(0), num_particles * num_replicates, evaluations)

    monkeypatch.setattr(annealed, "explore_anew", annealed_anew)

    return sizes


def run(std_error, num_particles=1024, evaluations=100, log_evidence=0.0, **options):
    """Particles of a standard normal, and replicates whose evidences have that standard error."""
    ratios = torch.linspace(-1.0, 1.0, NUM_REPLICATES, dtype=torch.float64)
    ratios = (
        1.0 + ratios / ratios.std() * std_error * math.sqrt(NUM_REPLICATES) if std_error < 0.4 else 4 ** (8 * ratios)
    )
    z = torch.randn(num_particles, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options = {"ess": 0.8 * num_particles, "num_ancestors": 0.1 * num_particles, **options}

    return Exploration(
        z, -0.5 * z.square().sum(-1), log_evidence + ratios.log(), 9, evaluations * num_particles, 0.75, 0, **options
    )


def annealed_runs(found, first, **options):
    found = replace(found, exploration=first, search=None)
    return stage(found, **{"std_error": 0.01, **options})._runs()


def test_particles_double_until_they_are_precise(found, monkeypatch):
    sizes = runs(monkeypatch, [0.05, 0.03, 0.02, 0.009])
    last, before, is_whole = annealed_runs(found, run(0.05))
    assert sizes == [64, 128, 256, 512] and is_whole
    assert last.std_error == pytest.approx(0.009, rel=0.1) and before.std_error == pytest.approx(0.02, rel=0.1)


def test_two_runs_at_least(found, monkeypatch):
    # Exploration that is precise by itself is held against a run all the same.
    sizes = runs(monkeypatch, [0.005, 0.005])
    assert annealed_runs(found, run(0.001), num_samples=250).before is not None and sizes == [64]


def test_as_many_particles_as_draws(found, monkeypatch):
    # Four chains of 1,000 draws: copies of fewer particles would not be draws.
    sizes = runs(monkeypatch, [0.005] * 3)
    annealed_runs(found, run(0.001), num_samples=1000)
    assert sizes == [64, 128, 256]


@pytest.mark.parametrize(("chains", "samples"), [(1, 1), (1, 3), (3, 5)])
def test_few_draws(found, monkeypatch, chains, samples):
    # No scale is told from a single draw: more are moved than are asked for.
    torch.manual_seed(0)
    runs(monkeypatch, [0.005, 0.005])
    draws = stage(replace(found, exploration=run(0.02), search=None), num_chains=chains, num_samples=samples)
    assert draws.posterior(judged()).index.shape == (chains, samples)


@pytest.mark.parametrize("options", [{"vectorized": False}, {"num_terms": 10**9}])
def test_draws_of_a_density_that_takes_long_are_not_moved(found, monkeypatch, options):
    # Nor is it annealed anew; the particles of exploration are chosen from as they are.
    torch.manual_seed(0)
    sizes, first = runs(monkeypatch, []), run(0.02, evaluations=2000)
    slow = SimpleNamespace(**{"vectorized": True, "num_terms": 1, **options})
    anneal = replace(stage(replace(found, exploration=first, search=None)), given=slow)
    draws = anneal.posterior(judged())
    assert sizes == [] and draws.is_whole and torch.isin(draws.z[:, 0], first.z[:, 0]).all()
    torch.testing.assert_close(draws.proposals.log_prob, ring(draws.proposals.z))


def test_the_plan_ends_what_is_not_precise(found, monkeypatch):
    # Counted, not timed: 68 terms in two dimensions, 8,000 evaluations a particle, so that the third run is beyond 2e9.
    sizes = runs(monkeypatch, [0.05, 0.05, 0.05, 0.05], evaluations=8000)
    last, _, is_whole = annealed_runs(found, run(0.05, evaluations=8000))
    assert sizes == [64, 128] and is_whole and last.std_error > 0.04


def test_nothing_is_begun_that_would_change_no_verdict(found, monkeypatch):
    # A standard error that no affordable run brings near to the one that is allowed: exploration's particles stay.
    sizes = runs(monkeypatch, [])
    first = run(3.0, 512, evaluations=10_000)
    assert first.std_error > 0.4
    last, before, is_whole = annealed_runs(found, first)
    assert sizes == [] and last is first and before is None and is_whole


def test_what_is_given_anew_has_as_many_particles(found, monkeypatch):
    # However unlucky the first run is: the one before it was no better, and what followed was worth it.
    torch.manual_seed(0)
    runs(monkeypatch, [0.05, 0.005])
    anneal = stage(replace(found, exploration=run(0.02), search=None), num_samples=250)
    draws = anneal.posterior(judged())
    sizes = runs(monkeypatch, [3.0, 0.005])
    again = anneal.posterior(draws)
    assert sizes == [64, 128] and again.evidence.num_draws == draws.evidence.num_draws == 128 * NUM_REPLICATES


def test_a_time_limit_is_used_while_it_is_not_precise(found, monkeypatch):
    # Beyond the plan, too; and what the plan has and the time has not is cut short.
    sizes = runs(monkeypatch, [0.05] * 20, evaluations=10**6, seconds=0.01)
    is_whole = annealed_runs(found, run(0.05, evaluations=10**6), deadline=time.perf_counter() + 0.3).is_whole
    assert len(sizes) > 2 and is_whole
    assert not annealed_runs(found, run(0.05), deadline=time.perf_counter() - 1.0).is_whole


def test_time_that_is_over_leaves_exploration(found):
    # The verdict says that there was nothing to hold it against, and that the run can go on.
    torch.manual_seed(0)
    draws = stage(found, deadline=time.perf_counter() - 1.0).posterior(judged())
    assert not draws.is_whole and len(draws.z) == 2000
    assert any("no second run to hold them against" in reason for reason in draws.evidence.reasons)
    assert not draws.evidence.reliable and not draws.evidence.draws_reliable


# ---- which particles ----


def test_chosen_by_the_weights_of_replicates():
    # One replicate weighs three times as much as the other: three quarters of the draws come from it.
    first = run(0.01)
    weights = torch.tensor([0.0, math.log(3.0)], dtype=torch.float64)
    index = chosen(replace(first, replicate_log_evidence=weights), 1000)
    assert abs(int((index >= 512).sum()) - 750) <= 1 and len(index) == 1000


def test_chosen_keeps_the_shares_of_what_lies_apart():
    # Half of each replicate lies far off in one direction: half of the draws do, to one for each replicate.
    first = run(0.01)
    far = torch.arange(len(first.z)) % 2 == 0
    z = first.z + 20.0 * far[:, None]
    index = chosen(replace(first, z=z, replicate_log_evidence=torch.zeros(NUM_REPLICATES)), 400)
    assert abs(int(far[index].sum()) - 200) <= NUM_REPLICATES


# ---- what the checks see ----


def test_errors_by_the_spread_of_replicates():
    # Independent particles: the standard error of their mean, the largest of three columns of sixteen replicates.
    independent = run(1e-6, 16 * 400)
    error, share = replicate_errors(independent)
    assert 0.5 / 80 < error < 2.0 / 80 and share == 0.0
    # All of a replicate on one side, by the toss of a coin: a mean of one known to a quarter of its standard deviation.
    side = torch.tensor([1.0, -1.0] * 8, dtype=torch.float64).repeat_interleave(400)
    z = torch.stack([50.0 * side, independent.z[:, 1]], 1)
    part = SimpleNamespace(holds=lambda z: z[:, 0] > 0, centre=z[0], is_halo=False)
    error, share = replicate_errors(replace(independent, z=z), (part,))
    assert error == pytest.approx(1 / math.sqrt(15), rel=1e-2) and share == pytest.approx(0.5 / math.sqrt(15), rel=1e-2)
    texts = [reason.text for reason in spread_reasons(error, share)]
    assert "known to 0.26 of its standard deviations" in texts[0] and "known to 0.13" in texts[1]
    assert not spread_reasons(0.1, 0.05) and all(not reason.evidence for reason in spread_reasons(1.0, 1.0))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ""),
        ({"std_error": 0.2}, "16 replicates of annealed SMC disagree"),
        ({"settled": False}, "still drifted"),
        ({"num_ancestors": 40.0}, "descend from 2.5 of 64 starting points"),
        ({"num_ancestors": math.nan}, ""),
        ({"ess": 5.0}, "left 5 of 1024 particles effective"),
    ],
)
def test_what_a_run_says_of_itself(options, words):
    texts = [reason.text for reason in run_reasons(run(**{"std_error": 0.05, **options}))]
    assert len(texts) == bool(words) and (not words or words in texts[0])


def test_moves_that_are_not_accepted():
    assert "accepted with probability 0.10" in run_reasons(replace(run(0.05), acceptance=0.1))[0].text


@pytest.mark.parametrize(("distance", "word"), [(0.1, ""), (-0.1, ""), (0.4, "rises"), (-0.4, "falls")])
def test_fewer_against_more_particles(distance, word):
    # Three times one and a half combined standard errors, of 0.05 each: 0.32 nats.
    reasons = size_reasons(run(0.05), run(0.05, log_evidence=distance))
    assert [word in reason.text for reason in reasons] == [True] * bool(word)


def test_the_tail_between_temperatures():
    assert not tail_reasons(0.6, 4096) and "between two temperatures is 0.90" in tail_reasons(0.9, 4096)[0].text


def test_what_speaks_against_the_density_outlives_the_stage(found, monkeypatch):
    # Draws of the flow that were no numbers, other objections, and an improper prior.
    torch.manual_seed(0)
    runs(monkeypatch, [0.005, 0.005])
    found = replace(found, exploration=run(0.02), search=None)
    before = judged()
    before.flow_not_finite = 20
    objecting = stage(found, objections=lambda: (Reason("Forgotten data."),), improper_sites=("mu",))
    evidence = objecting.posterior(before).evidence
    assert "Forgotten data." in evidence.reasons and "site 'mu' is improper" in evidence.reasons[0]
    assert any("nan or +inf at 20 of 200 draws" in reason for reason in evidence.reasons)
    assert math.isnan(evidence.log_evidence)


@pytest.mark.parametrize(
    ("refinement", "check", "words"),
    [
        (EvidenceCheck(0.5, 0.05), None, "nats below that of annealing from the flow"),
        (None, EvidenceCheck(0.5, 0.05), "a mode may be lost"),
        (EvidenceCheck(-3.0, 0.05), EvidenceCheck(0.05, 0.05), ""),
    ],
)
def test_held_against_what_was_found_before(found, monkeypatch, refinement, check, words):
    # Annealing that misses a part is too low: what found more speaks against it, what found less does not.
    torch.manual_seed(0)
    runs(monkeypatch, [0.005, 0.005])
    found = replace(found, exploration=run(0.02), search=None)
    evidence = stage(found).posterior(judged(refinement=refinement, check=check)).evidence
    assert evidence.reliable == (not words) and (not words or words in evidence.reasons[0])

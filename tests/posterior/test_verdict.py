"""Verdict: the number, its error, and every reason not to believe it, one by one."""

import math
import re

import pytest
import torch
from helpers import assert_within_standard_error

from pyro_osds.explore.particles import Exploration
from pyro_osds.posterior import verdict
from pyro_osds.posterior.verdict import EvidenceCheck, Mixing, Reason, judge_annealed
from pyro_osds.stats.weights import summarize_weights


def judge(log_weight, *arguments, **options):
    """The verdict on log weights."""
    return verdict.judge(summarize_weights(log_weight), *arguments, **options)


def good_weights(size=5000):
    return 0.1 * torch.randn(size, dtype=torch.float64)


def test_good_weights_are_believed():
    # Log-normal weights of known mean: number, bound and verdict.
    evidence = judge(good_weights())
    assert evidence.reliable and evidence.reasons == () and evidence.num_draws == 5000
    assert evidence.draws_reliable and evidence.draws_reasons == () and evidence.all_reasons == ()
    assert evidence.is_settled and evidence.verdict == "draws: reliable; log evidence: reliable"
    assert evidence.log_integral == evidence.log_evidence
    assert_within_standard_error(evidence.log_evidence, 0.005, evidence.std_error)
    assert evidence.elbo < evidence.log_evidence and 4000 < evidence.ess < 5000 and evidence.pareto_k < 0.5


def test_equal_weights_are_exact():
    # No spread, no error, no tail, no complaint.
    evidence = judge(torch.full((500,), -2.0))
    assert (evidence.log_evidence, evidence.elbo, evidence.std_error) == (-2.0, -2.0, 0.0)
    assert math.isclose(evidence.ess, 500) and evidence.reliable


def only_reason(evidence, draws=True, log_evidence=True, mendable=True):
    """The one sentence that speaks against the draws, the log evidence or both, as it should."""
    assert len(evidence.all_reasons) == 1
    assert evidence.draws_reliable != draws and len(evidence.draws_reasons) == draws
    assert evidence.reliable != log_evidence and len(evidence.reasons) == log_evidence
    assert evidence.is_settled != mendable

    return evidence.all_reasons[0]


def test_reason_heavy_tail():
    # Weights 1 + u^-0.9 / 500 have a mean and nearly all of them count, but their tail is too heavy.
    weights = (1.0 + torch.rand(100_000, dtype=torch.float64) ** -0.9 / 500.0).log()
    evidence = judge(weights)
    assert evidence.ess > 50_000 and evidence.std_error < 0.1
    assert f"pareto k is {evidence.pareto_k:.2f}, above 0.70 for 100000 draws" in only_reason(evidence)


def two_values(num_heavy, size):
    """Weights of one and nearly zero: as many effective draws as there are ones, and a tail that is not heavy."""
    return torch.cat([torch.zeros(num_heavy), torch.full((size - num_heavy,), -60.0)]).double()


@pytest.mark.parametrize(("share", "reliable"), [(0.004, False), (0.0099, False), (0.0101, True), (0.5, True)])
def test_reason_few_effective_draws(share, reliable):
    # One in a hundred, of however many: with 0.4 % the flow hardly meets the posterior, though the error is small.
    evidence = judge(two_values(round(share * 10**6), 10**6))
    assert evidence.ess == pytest.approx(share * 10**6) and evidence.std_error < 0.016
    assert evidence.draws_reliable == evidence.reliable == reliable
    if not reliable:
        text = f"effective sample size of the weights is {share * 10**6:.0f} of 1000000 draws, less than 1%"
        assert text in only_reason(evidence)


def test_few_good_draws_are_believed():
    # A share, not a number: fifty equal weights say all that they can.
    assert judge(torch.zeros(50)).reliable


@pytest.mark.parametrize(("num_heavy", "std_error", "reliable"), [(91, 0.1007, False), (93, 0.0995, True)])
def test_reason_standard_error(num_heavy, std_error, reliable):
    # On both sides of a tenth of a nat: it speaks against the number only.
    evidence = judge(two_values(num_heavy, 1000))
    assert evidence.std_error == pytest.approx(std_error, rel=1e-3)
    assert evidence.reliable == reliable and evidence.draws_reliable
    if not reliable:
        reason = only_reason(evidence, draws=False)
        assert "standard error of the log evidence is 0.101 nats, above 0.100" in reason and "num_samples" in reason
        assert evidence.verdict == "draws: reliable; log evidence: NOT reliable"


def test_an_error_of_half_a_nat():
    # No Bayes factor is decided by it, though the tail can be fitted and one draw in twenty-five is effective.
    uniform = (torch.arange(180, dtype=torch.float64) + 0.3) / 180
    evidence = judge(torch.cat([-0.65 * uniform.log(), two_values(0, 820)]))
    assert evidence.std_error == pytest.approx(0.60, abs=0.01) and evidence.ess > 35
    assert "error of the log evidence is 0.60 nats, above 0.10" in only_reason(evidence, draws=False)


@pytest.mark.parametrize(("r_hat", "reliable"), [(1.0, True), (1.049, True), (1.0504, False), (1.09, False)])
def test_reason_chains_disagree(r_hat, reliable):
    # Chains speak against the draws only: where they stick, the mean weight may be right.
    evidence = judge(good_weights(), mixing=Mixing(r_hat, 0.9))
    assert evidence.draws_reliable == reliable and evidence.reliable
    if not reliable:
        reason = only_reason(evidence, log_evidence=False)
        assert f"chains disagree: r_hat is {r_hat}, above 1.05" in reason and "num_iterations" in reason
        assert evidence.verdict == "draws: NOT reliable; log evidence: reliable"


@pytest.mark.parametrize(("ess", "reliable"), [(1.0, True), (0.201, True), (0.1999, False), (0.004, False)])
def test_reason_chains_stick(ess, reliable):
    # One draw in five has to count.
    evidence = judge(good_weights(), mixing=Mixing(1.0, ess))
    assert evidence.draws_reliable == reliable and evidence.reliable
    if not reliable:
        seen, bound = ("19.99%", "20.00%") if ess > 0.1 else ("0.4%", "20.0%")
        reason = only_reason(evidence, log_evidence=False)
        assert f"chains stick: {seen} of their draws are effective, less than {bound}" in reason


def test_chains_too_short_to_tell_say_nothing():
    # nan is no number that anything is held against.
    assert judge(good_weights(), mixing=Mixing(math.nan, math.nan)).is_settled


def test_chains_that_stick_leave_the_weights_healthy():
    # A check that is too low counts where weights are not healthy; chains say nothing of that.
    evidence = judge(good_weights(), EvidenceCheck(-0.995, 0.05), mixing=Mixing(1.09, 0.05))
    assert evidence.reliable and len(evidence.draws_reasons) == 2


@pytest.mark.parametrize(("count", "reliable"), [(0, True), (5, True), (6, False), (500, False)])
def test_reason_not_finite(count, reliable):
    # More than one draw in a thousand that is not a number.
    evidence = judge(good_weights(), num_not_finite=count)
    assert evidence.reliable == reliable
    if not reliable:
        assert f"nan or +inf at {count} of 5000 draws" in only_reason(evidence)


def test_reason_below_the_check():
    # Weights cannot tell that a mode is missing; an independent estimate that is higher can.
    check = EvidenceCheck(1.005, 0.05)
    evidence = judge(good_weights(), check)
    assert evidence.check == check
    assert re.search("below the exploration's 1.005.*a mode may be lost", only_reason(evidence))


@pytest.mark.parametrize("distance", [0.1, 1.0, 50.0])
def test_a_check_that_is_too_low_does_not_speak_against_healthy_weights(distance):
    # Annealing that missed a part of the posterior is too low, the mean of healthy weights is not too high.
    assert judge(good_weights(), EvidenceCheck(0.005 - distance, 0.05)).reliable


def test_reason_above_the_check():
    # The same check joins in where the weights are not healthy.
    evidence = judge(good_weights(), EvidenceCheck(-0.995, 0.05), num_not_finite=500)
    assert len(evidence.reasons) == 2
    assert re.search("above the exploration's -0.995.*missed a part", evidence.reasons[1])


def test_other_reasons():
    # What other modules found comes first, word for word, and leaves no healthy weights for a low check.
    reasons = [Reason("Three."), Reason("Four.", draws=False), Reason("Five.", evidence=False)]
    evidence = judge(good_weights(), EvidenceCheck(-0.995, 0.05), other_reasons=reasons)
    assert evidence.reasons[:2] == ("Three.", "Four.") and not evidence.reliable
    assert len(evidence.reasons) == 3 and "above the exploration's" in evidence.reasons[2]
    assert evidence.draws_reasons == ("Three.", "Five.", evidence.reasons[2])
    assert evidence.all_reasons == (*evidence.reasons, "Five.")
    assert only_reason(judge(good_weights(), other_reasons=reasons[:1])) == "Three."
    assert only_reason(judge(good_weights(), other_reasons=reasons[1:2]), draws=False) == "Four."
    assert only_reason(judge(good_weights(), other_reasons=reasons[2:]), log_evidence=False) == "Five."


def test_a_reason_against_the_draws_alone_leaves_healthy_weights():
    # The low check is not believed then.
    assert judge(good_weights(), EvidenceCheck(-0.995, 0.05), other_reasons=[Reason("Five.", evidence=False)]).reliable


def test_check_within_its_error_is_no_reason():
    # The same distance is fine if the check is uncertain enough, and a check that failed says nothing.
    assert judge(good_weights(), EvidenceCheck(-1.0, 0.5)).reliable
    assert judge(good_weights(), EvidenceCheck(math.nan, math.nan)).reliable
    assert judge(good_weights(), EvidenceCheck(-math.inf, 0.1)).reliable


def test_reason_improper_prior():
    # No number, and nothing against the draws: there is nothing that more work could mend.
    evidence = judge(good_weights(), improper_sites=("mu", "tau"))
    (reason,) = evidence.reasons
    assert reason.startswith("The prior of site 'mu', 'tau' is improper, so the log evidence is undefined.")
    assert "The draws are not affected." in reason
    assert evidence.draws_reliable and not evidence.reliable and evidence.is_settled
    assert evidence.draws_reasons == () and evidence.improper_sites == ("mu", "tau")
    assert evidence.verdict == "draws: reliable; log evidence: undefined (improper prior of site 'mu', 'tau')"
    assert evidence.headline == ("log evidence undefined", evidence.verdict)
    assert math.isnan(evidence.log_evidence) and math.isnan(evidence.std_error)
    assert math.isfinite(evidence.elbo) and evidence.ess > 4000
    assert_within_standard_error(evidence.log_integral, 0.005, judge(good_weights()).std_error)
    assert "log evidence undefined" in repr(evidence) and "1 reason)" in repr(evidence)
    rows = dict(evidence.card().rows)
    assert rows["log evidence"] == "undefined" and rows["verdict"] == evidence.verdict
    assert "up to the constant of the improper prior" in rows["ELBO"]


@pytest.mark.parametrize("mixing", [None, Mixing(1.2, 0.9)])
def test_poor_draws_of_an_improper_posterior(mixing):
    # Named first; the draws are not said to be fine, and more work may mend them.
    evidence = judge(good_weights(), improper_sites=("mu",), num_not_finite=0 if mixing else 500, mixing=mixing)
    assert "improper" in evidence.reasons[0] and "not affected" not in evidence.reasons[0]
    assert not evidence.draws_reliable and not evidence.is_settled and math.isfinite(evidence.log_integral)
    assert evidence.verdict == "draws: NOT reliable; log evidence: undefined (improper prior of site 'mu')"


def test_reasons_add_up():
    # All of them at once, the improper prior first.
    weights = torch.cat([torch.full((4999,), -50.0), torch.zeros(1)]) + good_weights()
    evidence = judge(weights, improper_sites=("mu",), num_not_finite=100)
    assert ["improper" in reason for reason in evidence.reasons] == [True] + [False] * (len(evidence.reasons) - 1)
    assert len(evidence.reasons) >= 4 and len(evidence.draws_reasons) == 3


@pytest.mark.parametrize("sites", [(), ("mu",)])
def test_a_run_that_was_cut_short(sites):
    # The first cure is to go on, where there is anything to cure; an improper prior alone is no reason to.
    settled = judge(good_weights(), improper_sites=sites)
    assert settled.cut_short() == settled
    evidence = judge(good_weights(), improper_sites=sites, num_not_finite=500).cut_short()
    assert "resume()" in evidence.reasons[0] and "resume()" in evidence.draws_reasons[0]
    assert len(evidence.all_reasons) == 2 + len(sites)
    evidence = judge(good_weights(), mixing=Mixing(1.09, 0.9)).cut_short()
    assert evidence.reliable and evidence.reasons == () and "resume()" in evidence.draws_reasons[0]


def test_no_weight_at_all():
    # Every draw outside of the support: minus infinity, an infinite error, and not reliable.
    evidence = judge(torch.full((1000,), -torch.inf))
    assert evidence.log_evidence == evidence.elbo == -math.inf and evidence.std_error == math.inf
    assert not evidence.reliable


# ---- rounding ----


@pytest.mark.parametrize(("rounding", "reliable"), [(0.0, True), (0.05, True), (0.051, False), (8.0, False)])
def test_reason_rounding(rounding, reliable):
    # The limit is a twentieth of a nat; the number and the cure are named.
    evidence = judge(two_values(5000, 5000), rounding=rounding)
    assert evidence.reliable == reliable
    if not reliable:
        assert evidence.draws_reasons == evidence.reasons[:1]
        reason = evidence.draws_reasons[0]
        assert f"Rounding adds {rounding:.2g} nats" in reason and "torch.float64" in reason and "numpy" in reason


def test_rounding_is_part_of_the_standard_error():
    # In quadrature, also where the weights have no spread at all.
    weights = good_weights()
    plain = judge(weights).std_error
    assert judge(weights, rounding=0.2).std_error == pytest.approx(math.hypot(plain, 0.2))
    assert judge(torch.full((500,), -2.0), rounding=0.05).std_error == pytest.approx(0.05)
    # An estimate that is that uncertain may lie that far below the check.
    assert not judge(weights, EvidenceCheck(0.18, 0.01)).reliable
    assert judge(weights, EvidenceCheck(0.18, 0.01), rounding=0.05).reliable


# ---- the second opinion ----


@pytest.mark.parametrize(("side", "distance"), [("below", -0.2), ("above", 0.2)])
def test_reason_apart_from_the_short_refinement(side, distance):
    # On either side: a refinement walks to where the flow proposes too little, so it misses nothing that is near.
    weights = good_weights()
    refinement = EvidenceCheck(judge(weights).log_evidence - distance, 0.02)
    evidence = judge(weights, refinement=refinement)
    reason = only_reason(evidence)
    assert f"lies 0.20 nats {side} that of short annealing from the flow's draws" in reason and "+- 0.020" in reason
    assert evidence.refinement == refinement and "Raise num_iterations" in reason


@pytest.mark.parametrize(("share", "reliable"), [(0.98, True), (1.02, False), (-0.98, True), (-1.02, False)])
@pytest.mark.parametrize("std_error", [0.001, 0.04])
def test_how_far_from_the_short_refinement(share, reliable, std_error):
    # Three errors of both, of which eight replicates know theirs half as well again, and never better than 0.01 nats.
    weights = good_weights()
    judged = judge(weights)
    limit = 3 * math.hypot(judged.std_error, 1.5 * max(std_error, 0.01))
    refinement = EvidenceCheck(judged.log_evidence + share * limit, std_error)
    assert judge(weights, refinement=refinement).reliable == reliable


def test_a_short_refinement_that_failed_says_nothing():
    # An evidence that is not a number is none.
    for value in (math.nan, -math.inf):
        assert judge(good_weights(), refinement=EvidenceCheck(value, 0.1)).reliable


@pytest.mark.parametrize("name", ["check", "refinement"])
def test_others_speak_of_an_improper_posterior_too(name):
    # The unknown constant cancels: a mode is missing with a flat prior as it is with any other.
    other = {"check": EvidenceCheck(1.005, 0.05), "refinement": EvidenceCheck(1.005, 0.05)}[name]
    evidence = judge(good_weights(), improper_sites=("mu",), **{name: other})
    assert len(evidence.reasons) == 2 and evidence.draws_reasons == evidence.reasons[1:]
    assert "below" in evidence.draws_reasons[0] and "not affected" not in evidence.reasons[0]
    # One that agrees says nothing.
    near = EvidenceCheck(judge(good_weights()).log_evidence, 0.05)
    assert judge(good_weights(), improper_sites=("mu",), **{name: near}).is_settled


def test_a_low_check_counts_where_the_refinement_disagrees():
    # Weights that a refinement speaks against are not healthy.
    evidence = judge(good_weights(), EvidenceCheck(-0.995, 0.05), refinement=EvidenceCheck(1.0, 0.05))
    assert len(evidence.reasons) == 2
    assert "short annealing" in evidence.reasons[0] and "above the exploration's" in evidence.reasons[1]


# ---- verdict of a refinement ----


def walked(log_evidence=1.0, spread=0.05, **options):
    """A good refinement: 32 replicates of 32 particles, estimates in a symmetric spread."""
    replicates = log_evidence + spread * torch.linspace(-1.0, 1.0, 32, dtype=torch.float64)
    options = {"acceptance": 0.8, "pareto_k": 0.2, "ess": 700.0, "settled": True} | options

    return Exploration(
        torch.zeros(1024, 2),
        torch.zeros(1024),
        replicates,
        num_temperatures=5,
        num_evaluations=0,
        num_not_finite=0,
        **options,
    )


def poor(check=None):
    """What the weights of a poor flow say."""
    evidence = judge(3.0 * torch.randn(50, dtype=torch.float64), check)
    assert not evidence.reliable

    return evidence


# What all replicates may leave in a neck, nats.
UNREACHED = 0.005


def test_a_good_refinement_is_believed():
    # Its own numbers, the ELBO and the check of before; reasons of the weights are gone.
    check, found = EvidenceCheck(1.0, 0.05), walked()
    judged = poor(check)
    evidence = judge_annealed(found, judged)
    assert evidence.reliable and evidence.reasons == ()
    assert evidence.log_evidence == found.log_evidence
    assert evidence.std_error == math.hypot(found.std_error, UNREACHED)
    assert (evidence.ess, evidence.pareto_k, evidence.num_draws) == (700.0, 0.2, 1024)
    assert evidence.elbo == judged.elbo and evidence.check == check
    assert evidence.refinement == EvidenceCheck(found.log_evidence, found.std_error)


@pytest.mark.parametrize(
    ("options", "words", "cure"),
    [
        ({"acceptance": 0.29}, "accepted with probability 0.29 only", "Rescale or reparametrise"),
        ({"acceptance": math.nan}, "accepted with probability nan only", "Rescale or reparametrise"),
        ({"settled": False}, "still drifted at the end", "non-centred"),
        ({"pareto_k": 0.9}, "pareto k is 0.90, above 0.67 for 1024 draws", "num_iterations"),
        ({"ess": 10.0}, "effective sample size of the weights is 10 of 1024", "num_iterations"),
    ],
)
def test_reasons_against_a_refinement(options, words, cure):
    # One by one, with what was seen and the cure.
    reason = only_reason(judge_annealed(walked(**options), poor()))
    assert words in reason and cure in reason


def test_replicates_that_disagree():
    # Their spread speaks against both; the error that follows from it is not told a second time.
    evidence = judge_annealed(walked(spread=1.2), poor())
    said = "replicates of the refinement disagree: the standard error of their log evidence is 0.1.*num_particles"
    assert re.search(said, evidence.draws_reasons[0])
    assert len(evidence.draws_reasons) == 1 and evidence.reasons == evidence.draws_reasons


def test_an_error_of_a_refinement_speaks_against_its_number():
    # Rounding and what is unreached add to a spread that is just good enough.
    found = walked(spread=0.9)
    evidence = judge_annealed(found, poor(), rounding=0.05)
    assert found.std_error < 0.1 < evidence.std_error
    assert "standard error of the log evidence" in only_reason(evidence, draws=False)


def test_a_refinement_at_its_limits():
    # Just acceptable in everything.
    found = walked(acceptance=0.3, ess=10.3, pareto_k=0.66, spread=0.9)
    assert judge_annealed(found, poor(), mixing=Mixing(1.05, 0.2)).is_settled


def test_chains_of_a_refinement():
    # They speak against its draws, not against its number.
    reason = only_reason(judge_annealed(walked(), poor(), mixing=Mixing(1.09, 0.9)), log_evidence=False)
    assert "r_hat is 1.09, above 1.05" in reason


def test_replicates_without_an_evidence():
    # An estimate of nothing has no usable error.
    evidence = judge_annealed(walked(-math.inf), poor())
    assert not evidence.reliable and any(
        "replicates of the refinement disagree" in reason for reason in evidence.draws_reasons
    )


def test_equal_weights_of_a_refinement_have_no_tail():
    # Where no particle is lost between temperatures, the shape of the tail is that of noise.
    evidence = judge_annealed(walked(ess=1020.0, pareto_k=1.5), poor())
    assert evidence.reliable and evidence.pareto_k == -math.inf
    assert not judge_annealed(walked(ess=1000.0, pareto_k=1.5), poor()).reliable


@pytest.mark.parametrize(("distance", "reliable"), [(2.0, False), (0.02, True), (-2.0, True)])
def test_exploration_checks_a_refinement(distance, reliable):
    # Above: a mode is lost. Below: annealing that missed something says nothing against a healthy walk.
    evidence = judge_annealed(walked(), poor(EvidenceCheck(1.0 + distance, 0.05)))
    assert evidence.reliable == reliable
    if not reliable:
        assert "a mode may be lost" in only_reason(evidence)


def test_a_low_check_counts_against_a_refinement_that_is_not_healthy():
    # As it does against weights.
    evidence = judge_annealed(walked(settled=False), poor(EvidenceCheck(-1.0, 0.05)))
    assert len(evidence.reasons) == 2 and "above the exploration's" in evidence.reasons[1]


def test_a_refinement_to_an_improper_posterior():
    # Named first, no number, draws judged all the same; exploration is asked too.
    evidence = judge_annealed(walked(acceptance=0.1), poor(), ("mu",))
    assert math.isnan(evidence.log_evidence) and math.isnan(evidence.std_error) and len(evidence.reasons) == 2
    assert "site 'mu' is improper" in evidence.reasons[0] and "accepted" in evidence.reasons[1]
    assert evidence.draws_reasons == evidence.reasons[1:] and evidence.log_integral == walked().log_evidence
    good = judge_annealed(walked(), poor(EvidenceCheck(1.0, 0.05)), ("mu",))
    assert good.is_settled and good.draws_reliable and not good.reliable
    lost = judge_annealed(walked(), poor(EvidenceCheck(3.0, 0.05)), ("mu",))
    assert not lost.is_settled and "a mode may be lost" in lost.draws_reasons[0]


# ---- what holds for the density ----


def test_what_speaks_against_the_density_speaks_against_its_refinement():
    # Draws of the flow that were no numbers, by their own count, and rounding, which is part of the error too.
    assert judge_annealed(walked(), poor(), rounding=0.05).reliable
    assert judge_annealed(walked(), poor(), rounding=0.02).std_error == pytest.approx(
        math.hypot(walked().std_error, UNREACHED, 0.02)
    )
    assert "Rounding adds 0.06 nats" in only_reason(judge_annealed(walked(), poor(), rounding=0.06), mendable=False)
    assert "nan or +inf at 1 of 50 draws" in only_reason(judge_annealed(walked(), poor(), num_not_finite=1))

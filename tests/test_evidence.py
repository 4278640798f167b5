"""The evidence room: the number, its error, and every reason not to believe it, one by one."""

import math
import re

import pytest
import torch
from helpers import assert_within_standard_error

from pyro_osds.evidence import EvidenceCheck, judge, judge_bridge, pareto_k_threshold
from pyro_osds.explore import Exploration


def good_weights(size=5000):
    return 0.1 * torch.randn(size, dtype=torch.float64)


def test_good_weights_are_believed():
    # Log-normal weights of known mean: number, bound and verdict.
    evidence = judge(good_weights())
    assert evidence.reliable and evidence.reasons == () and evidence.num_draws == 5000
    assert_within_standard_error(evidence.log_evidence, 0.005, evidence.std_error)
    assert evidence.elbo < evidence.log_evidence and 4000 < evidence.ess < 5000 and evidence.pareto_k < 0.5


def test_equal_weights_are_exact():
    # No spread, no error, no tail, no complaint.
    evidence = judge(torch.full((500,), -2.0))
    assert (evidence.log_evidence, evidence.elbo, evidence.std_error) == (-2.0, -2.0, 0.0)
    assert math.isclose(evidence.ess, 500) and evidence.reliable


def only_reason(evidence):
    assert not evidence.reliable and len(evidence.reasons) == 1

    return evidence.reasons[0]


def test_reason_heavy_tail():
    # Weights u^-0.9 have a mean and enough of them count, but their tail is too heavy.
    weights = -0.9 * torch.rand(100_000, dtype=torch.float64).log()
    evidence = judge(weights)
    assert evidence.ess > 100
    assert f"pareto k is {evidence.pareto_k:.2f}, above 0.70 for 100000 draws" in only_reason(evidence)


def test_reason_few_effective_draws():
    # Fifty good draws are too few, however good.
    assert "effective sample size is 50 of 50 draws" in only_reason(judge(torch.zeros(50)))


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
    # What other rooms found comes first, word for word, and leaves no healthy weights for a low check.
    evidence = judge(good_weights(), EvidenceCheck(-0.995, 0.05), other_reasons=["Three.", "Four."])
    assert evidence.reasons[:2] == ("Three.", "Four.") and not evidence.reliable
    assert len(evidence.reasons) == 3 and "above the exploration's" in evidence.reasons[2]
    assert only_reason(judge(good_weights(), other_reasons=["Three."])) == "Three."


def test_check_within_its_error_is_no_reason():
    # The same distance is fine if the check is uncertain enough, and a check that failed says nothing.
    assert judge(good_weights(), EvidenceCheck(-1.0, 0.5)).reliable
    assert judge(good_weights(), EvidenceCheck(math.nan, math.nan)).reliable
    assert judge(good_weights(), EvidenceCheck(-math.inf, 0.1)).reliable


def test_reason_improper_prior():
    # The site is named first, there is no number, and the check is not asked.
    evidence = judge(good_weights(), EvidenceCheck(50.0, 0.1), improper_sites=("mu", "tau"))
    assert "prior of site 'mu', 'tau' is improper" in only_reason(evidence)
    assert math.isnan(evidence.log_evidence) and math.isnan(evidence.std_error)
    assert math.isfinite(evidence.elbo) and evidence.ess > 4000


def test_reasons_add_up():
    # All of them at once, the improper prior first.
    weights = torch.cat([torch.full((4999,), -50.0), torch.zeros(1)]) + good_weights()
    evidence = judge(weights, improper_sites=("mu",), num_not_finite=100)
    assert ["improper" in reason for reason in evidence.reasons] == [True] + [False] * (len(evidence.reasons) - 1)
    assert len(evidence.reasons) >= 3


def test_no_weight_at_all():
    # Every draw outside of the support: minus infinity, an infinite error, and not reliable.
    evidence = judge(torch.full((1000,), -torch.inf))
    assert evidence.log_evidence == evidence.elbo == -math.inf and evidence.std_error == math.inf
    assert not evidence.reliable


@pytest.mark.parametrize(("num_draws", "threshold"), [(100, 0.5), (1000, 2 / 3), (10_000, 0.7), (10**6, 0.7)])
def test_threshold_of_the_tail(num_draws, threshold):
    # min(1 - 1 / log10 S, 0.7).
    assert math.isclose(pareto_k_threshold(num_draws), threshold)


# ---- rounding ----


@pytest.mark.parametrize(("rounding", "reliable"), [(0.0, True), (0.5, True), (0.51, False), (8.0, False)])
def test_reason_rounding(rounding, reliable):
    # Half a nat is the limit; the number and the cure are named.
    evidence = judge(good_weights(), rounding=rounding)
    assert evidence.reliable == reliable
    if not reliable:
        reason = only_reason(evidence)
        assert f"rounded to {rounding:.2g} nats" in reason and "torch.float64" in reason


def test_rounding_is_part_of_the_standard_error():
    # Half a unit in the last place, in quadrature, also where the weights have no spread at all.
    weights = good_weights()
    plain = judge(weights).std_error
    assert judge(weights, rounding=0.4).std_error == pytest.approx(math.hypot(plain, 0.2))
    assert judge(torch.full((500,), -2.0), rounding=0.1).std_error == pytest.approx(0.05)
    # An estimate that is that uncertain may lie that far below the check.
    assert not judge(weights, EvidenceCheck(0.4, 0.01)).reliable
    assert judge(weights, EvidenceCheck(0.4, 0.01), rounding=0.4).reliable


# ---- the second opinion ----


@pytest.mark.parametrize(("side", "distance"), [("below", -0.2), ("above", 0.2)])
def test_reason_apart_from_the_short_bridge(side, distance):
    # On either side: a bridge walks to where the flow proposes too little, so it misses nothing that is near.
    weights = good_weights()
    bridge = EvidenceCheck(judge(weights).log_evidence - distance, 0.02)
    evidence = judge(weights, bridge=bridge)
    reason = only_reason(evidence)
    assert f"lies 0.20 nats {side} that of a short bridge" in reason and "+- 0.020" in reason
    assert evidence.bridge == bridge and "Raise num_iterations" in reason


@pytest.mark.parametrize(("share", "reliable"), [(0.98, True), (1.02, False), (-0.98, True), (-1.02, False)])
@pytest.mark.parametrize("std_error", [0.001, 0.04])
def test_how_far_from_the_short_bridge(share, reliable, std_error):
    # Three errors of both, of which eight islands know theirs half as well again, and never better than 0.01 nats.
    weights = good_weights()
    judged = judge(weights)
    limit = 3 * math.hypot(judged.std_error, 1.5 * max(std_error, 0.01))
    bridge = EvidenceCheck(judged.log_evidence + share * limit, std_error)
    assert judge(weights, bridge=bridge).reliable == reliable


def test_a_short_bridge_that_failed_says_nothing():
    # Nor is it asked where there is no evidence.
    for value in (math.nan, -math.inf):
        assert judge(good_weights(), bridge=EvidenceCheck(value, 0.1)).reliable
    assert "improper" in only_reason(judge(good_weights(), improper_sites=("mu",), bridge=EvidenceCheck(50.0, 0.1)))


def test_a_low_check_counts_where_the_bridge_disagrees():
    # Weights that a bridge speaks against are not healthy.
    evidence = judge(good_weights(), EvidenceCheck(-0.995, 0.05), bridge=EvidenceCheck(1.0, 0.05))
    assert len(evidence.reasons) == 2
    assert "short bridge" in evidence.reasons[0] and "above the exploration's" in evidence.reasons[1]


# ---- verdict of a bridge ----


def walked(log_evidence=1.0, spread=0.05, **options):
    """A good bridge: 32 islands of 32 particles, estimates in a symmetric spread."""
    islands = log_evidence + spread * torch.linspace(-1.0, 1.0, 32, dtype=torch.float64)
    options = {"acceptance": 0.8, "pareto_k": 0.2, "ess": 700.0, "settled": True} | options

    return Exploration(
        torch.zeros(1024, 2),
        torch.zeros(1024),
        islands,
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


# What all islands may leave in a neck, nats.
UNREACHED = 0.005


def test_a_good_bridge_is_believed():
    # Its own numbers, the ELBO and the check of before; reasons of the weights are gone.
    check, found = EvidenceCheck(1.0, 0.05), walked()
    judged = poor(check)
    evidence = judge_bridge(found, judged)
    assert evidence.reliable and evidence.reasons == ()
    assert evidence.log_evidence == found.log_evidence
    assert evidence.std_error == math.hypot(found.std_error, UNREACHED)
    assert (evidence.ess, evidence.pareto_k, evidence.num_draws) == (700.0, 0.2, 1024)
    assert evidence.elbo == judged.elbo and evidence.check == check
    assert evidence.bridge == EvidenceCheck(found.log_evidence, found.std_error)


@pytest.mark.parametrize(
    ("options", "words", "cure"),
    [
        ({"acceptance": 0.29}, "accepted with probability 0.29 only", "Rescale or reparametrise"),
        ({"acceptance": math.nan}, "accepted with probability nan only", "Rescale or reparametrise"),
        ({"settled": False}, "still drifted at the end", "non-centred"),
        ({"spread": 1.2}, "standard error of the log evidence is 0.1", "num_particles"),
        ({"pareto_k": 0.9}, "pareto k is 0.90, above 0.67 for 1024 draws", "num_iterations"),
        ({"ess": 99.0}, "effective sample size is 99 of 1024", "num_samples"),
    ],
)
def test_reasons_against_a_bridge(options, words, cure):
    # One by one, with what was seen and the cure.
    reason = only_reason(judge_bridge(walked(**options), poor()))
    assert words in reason and cure in reason


def test_a_bridge_at_its_limits():
    # Just acceptable in everything.
    assert judge_bridge(walked(acceptance=0.3, ess=100.0, pareto_k=0.66, spread=0.9), poor()).reliable


def test_islands_without_an_evidence():
    # An estimate of nothing has no usable error.
    evidence = judge_bridge(walked(-math.inf), poor())
    assert not evidence.reliable and any("islands disagree" in reason for reason in evidence.reasons)


def test_equal_weights_of_a_bridge_have_no_tail():
    # Where no particle is lost between temperatures, the shape of the tail is that of noise.
    evidence = judge_bridge(walked(ess=1020.0, pareto_k=1.5), poor())
    assert evidence.reliable and evidence.pareto_k == -math.inf
    assert not judge_bridge(walked(ess=1000.0, pareto_k=1.5), poor()).reliable


@pytest.mark.parametrize(("distance", "reliable"), [(2.0, False), (0.02, True), (-2.0, True)])
def test_exploration_checks_a_bridge(distance, reliable):
    # Above: a mode is lost. Below: annealing that missed something says nothing against a healthy walk.
    evidence = judge_bridge(walked(), poor(EvidenceCheck(1.0 + distance, 0.05)))
    assert evidence.reliable == reliable
    if not reliable:
        assert "a mode may be lost" in only_reason(evidence)


def test_a_low_check_counts_against_a_bridge_that_is_not_healthy():
    # As it does against weights.
    evidence = judge_bridge(walked(settled=False), poor(EvidenceCheck(-1.0, 0.05)))
    assert len(evidence.reasons) == 2 and "above the exploration's" in evidence.reasons[1]


def test_a_bridge_to_an_improper_posterior():
    # Named first, no number, draws judged all the same; the check is not asked.
    evidence = judge_bridge(walked(acceptance=0.1), poor(EvidenceCheck(50.0, 0.1)), ("mu",))
    assert math.isnan(evidence.log_evidence) and math.isnan(evidence.std_error) and len(evidence.reasons) == 2
    assert "site 'mu' is improper" in evidence.reasons[0] and "accepted" in evidence.reasons[1]


def test_what_speaks_against_the_density_speaks_against_its_bridge():
    # Draws of the flow that were no numbers, by their own count, and rounding, which is part of the error too.
    assert judge_bridge(walked(), poor(), rounding=0.5).reliable
    assert judge_bridge(walked(), poor(), rounding=0.2).std_error == pytest.approx(
        math.hypot(walked().std_error, UNREACHED, 0.1)
    )
    assert "rounded to 2 nats" in only_reason(judge_bridge(walked(), poor(), rounding=2.0))
    assert "nan or +inf at 1 of 50 draws" in only_reason(judge_bridge(walked(), poor(), num_not_finite=1))

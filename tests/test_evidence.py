"""The evidence room: the number, its error, and every reason not to believe it, one by one."""

import math
import re

import pytest
import torch
from helpers import assert_within_standard_error

from pyro_osds.evidence import EvidenceCheck, judge, pareto_k_threshold


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

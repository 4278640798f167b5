"""What a run of an adversarial case was worth: right, flagged, needlessly flagged, or wrong and called reliable."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from runs import Record
from torch import Tensor

from pyro_osds import Evidence

RIGHT, FLAGGED, NEEDLESS = "right", "flagged", "needlessly flagged"
WRONG, LONG, FAILED = "wrong and reliable", "too long", "error"
OUTCOMES = (RIGHT, FLAGGED, NEEDLESS, WRONG, LONG, FAILED)

NOTICEABLE, NUM_SIGMAS = 0.05, 3  # nats; standard errors
# Of posterior moments from a thousand draws, whose mean has a standard error of 0.03 sds.
MAX_MEAN_ERROR, MIN_SD_RATIO, MAX_SD_RATIO = 0.15, 0.85, 1.18

SAYS_NO_INTEGRAL = re.compile(
    r"no integral|without an integral|not integrable|not fall off|posterior is improper|improper posterior", re.I
)
SAYS_FLAT_PRIOR = re.compile(r"improper|flat", re.I)


def numbers(evidence: Evidence) -> Record:
    """What a record keeps of an evidence."""
    return {
        "log_evidence": evidence.log_evidence,
        "std_error": evidence.std_error,
        "elbo": evidence.elbo,
        "pareto_k": evidence.pareto_k,
        "ess_share": evidence.ess / evidence.num_draws,
        "reliable": bool(evidence.reliable),
        "draws_reliable": bool(evidence.draws_reliable),
        "reasons": list(evidence.reasons),
    }


def moment_errors(samples: Mapping[str, Tensor], posterior: Mapping[str, tuple[Any, Any]]) -> Record:
    """Largest error of a mean in sds, smallest and largest ratio of sds; nothing where no moments are known."""
    if not posterior:
        return {}
    errors, ratios = [], []
    for name, (mean, sd) in posterior.items():
        draws = samples[name].double()
        mean, sd = (torch.as_tensor(value, dtype=torch.float64) for value in (mean, sd))
        errors.append(((draws.mean(0) - mean).abs() / sd).max().item())
        ratios += (draws.std(0) / sd).flatten().tolist()

    return {"mean_error": max(errors), "sd_ratio_low": min(ratios), "sd_ratio_high": max(ratios)}


def outcome(record: Record) -> str:
    """One of `OUTCOMES`."""
    if record.get("too_long"):
        return LONG
    truth = record["truth"]
    if "failed" in record:
        return RIGHT if math.isinf(truth) and SAYS_NO_INTEGRAL.search(record["failed"]) else FAILED
    if math.isnan(truth):
        return _with_flat_prior(record)
    if math.isinf(truth):
        return _without_integral(record)

    return _with_known_evidence(record)


def _with_known_evidence(record: Record) -> str:
    """Comparisons with a nan or an infinity are false, and count as an error too large."""
    error = abs(record["log_evidence"] - record["truth"])
    if record["reliable"]:
        return RIGHT if error <= max(NUM_SIGMAS * record["std_error"], NOTICEABLE) and error < math.inf else WRONG

    return NEEDLESS if error <= NOTICEABLE else FLAGGED


def _without_integral(record: Record) -> str:
    """Right if the reasons say what is the matter; draws that are vouched for are as wrong as a number."""
    if record["reliable"]:
        return WRONG
    if any(SAYS_NO_INTEGRAL.search(reason) for reason in record["reasons"]):
        return RIGHT

    return WRONG if record["draws_reliable"] else FLAGGED


def _with_flat_prior(record: Record) -> str:
    """No evidence, said so, and draws that are right and called so."""
    if record["reliable"] or not any(SAYS_FLAT_PRIOR.search(reason) for reason in record["reasons"]):
        return WRONG
    agree = "mean_error" not in record or (
        record["mean_error"] <= MAX_MEAN_ERROR
        and record["sd_ratio_low"] >= MIN_SD_RATIO
        and record["sd_ratio_high"] <= MAX_SD_RATIO
    )
    if record["draws_reliable"]:
        return RIGHT if agree else WRONG

    return NEEDLESS if agree else FLAGGED

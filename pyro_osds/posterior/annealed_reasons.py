"""The sentences on annealed SMC as a result: what its own checks saw, and the cure."""

from __future__ import annotations

import math

from pyro_osds.explore.particles import Exploration
from pyro_osds.posterior.evidence import Reason
from pyro_osds.posterior.reasons import move_reasons
from pyro_osds.stats.thresholds import (
    CHECK_QUANTILE,
    MAX_SHARE_ERROR,
    MAX_SIGMAS,
    MIN_ANCESTORS,
    MIN_CHECK_ERROR,
    MIN_WEIGHT_ESS,
    SMALL_ERROR,
    apart,
    pareto_k_threshold,
)

_MORE = (
    "More particles lower it: pass max_time, in seconds, all of which this stage uses while it is not precise enough."
)


def run_reasons(run: Exploration) -> list[Reason]:
    """What one run says of itself: whether replicates agree, and whether particles moved, settled and survived."""
    num_replicates = len(run.replicate_log_evidence)
    per_replicate = len(run.z) // num_replicates
    reasons = []
    if run.num_ancestors < MIN_ANCESTORS * num_replicates:
        reasons.append(
            f"The particles of annealed SMC descend from {run.num_ancestors / num_replicates:.1f} of {per_replicate} "
            f"starting points on each replicate, fewer than {MIN_ANCESTORS}: what was lost on the way is unknown. "
            f"{_MORE.replace('lower it', 'keep more')}"
        )
    if not run.ess >= MIN_WEIGHT_ESS * len(run.z):
        reasons.append(
            f"One change of temperature left {run.ess:.0f} of {len(run.z)} particles effective, less than "
            f"{MIN_WEIGHT_ESS:.0%}: the way to the posterior is too long. Give the model a prior nearer to its "
            "posterior, or rescale it."
        )

    return [*move_reasons(run, "annealed SMC", _MORE), *(Reason(text) for text in reasons)]


def tail_reasons(k: float, num_particles: int) -> list[Reason]:
    """What the shape of the tail of the weights of one change of temperature says."""
    threshold = pareto_k_threshold(num_particles)
    if not k > threshold:
        return []
    seen, bound = apart(k, threshold)

    return [
        Reason(
            f"pareto k of the weights between two temperatures is {seen}, above {bound} for {num_particles} particles: "
            "a few particles carry the estimate. Give the model a prior whose tails are not heavier than those of its "
            "posterior, or reparametrise it."
        )
    ]


def spread_reasons(mean_error: float, share_error: float) -> list[Reason]:
    """What replicates say of each other's particles: against the draws, whatever their evidences.

    Arguments:
        mean_error: Largest standard error of a coordinate's mean, from the spread of the replicates, in standard
            deviations.
        share_error: Largest standard error of the share of a known part of the posterior.
    """
    texts = []
    if mean_error > SMALL_ERROR:
        seen, bound = apart(mean_error, SMALL_ERROR)
        texts.append(
            f"The replicates of annealed SMC disagree on the posterior: by their spread, the mean of a coordinate is "
            f"known to {seen} of its standard deviations, and {bound} is asked for. {_MORE}"
        )
    if share_error > MAX_SHARE_ERROR:
        seen, bound = apart(share_error, MAX_SHARE_ERROR)
        texts.append(
            f"The replicates of annealed SMC disagree on the shares of modes: by their spread, one of these is known "
            f"to {seen}, and {bound} is asked for. {_MORE}"
        )

    return [Reason(text, evidence=False) for text in texts]


def size_reasons(smaller: Exploration | None, larger: Exploration) -> list[Reason]:
    """Runs with fewer and with more particles against each other: a bias falls with their number.

    Arguments:
        smaller: The run with fewer particles; None where there was no time for two.
        larger: The run whose evidence is taken.
    """
    if smaller is None:
        return [
            Reason(
                f"Annealed SMC could afford the {len(larger.z)} particles of exploration only, and no second run to "
                "hold them against. Pass max_time, in seconds, all of which this stage uses while it is not precise "
                "enough."
            )
        ]
    distance = larger.log_evidence - smaller.log_evidence
    errors = (max(run.std_error, MIN_CHECK_ERROR) for run in (smaller, larger))
    if abs(distance) <= MAX_SIGMAS * CHECK_QUANTILE * math.hypot(*errors):
        return []

    return [
        Reason(
            f"The log evidence of annealed SMC {'rises' if distance > 0 else 'falls'} by {abs(distance):.2f} nats from "
            f"{len(smaller.z)} to {len(larger.z)} particles, more than their replicates explain: it may go on. "
            f"{_MORE.replace('lower it', 'show where it ends')}"
        )
    ]

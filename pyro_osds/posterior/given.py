"""Given draws held against the flow: what is left to check a log evidence by, where nothing was explored.

Three numbers say the same if all is well: the mean weight of the flow's own draws; the log evidence of annealing from a
base that was fitted to half of the given draws; and bridge sampling between the other half and the flow's draws. The
first two share no random number, the third one is the only one that asks what the other sampler has seen. A log
evidence that only its own weights speak for is never called reliable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pyro_osds.explore.particles import Exploration, GivenDraws
from pyro_osds.explore.search.parts import Part
from pyro_osds.posterior.evidence import EvidenceCheck, Reason
from pyro_osds.stats.bridge import bridge_estimate
from pyro_osds.stats.thresholds import MAX_SIGMAS, MAX_STD_ERROR, SMALL_NATS
from pyro_osds.stats.weights import log_mean_weight, log_weights_at, weigh
from pyro_osds.target import Target

# Draws of the flow that are held against the given ones, and where densities come point by point.
_NUM_DRAWS, _NUM_DRAWS_SLOWLY = 4096, 512
_CURE = (
    "Run the chains longer and from several starts, or leave initial_samples out, and the posterior is explored from "
    "its "
    "prior."
)


@dataclass(frozen=True)
class Held:
    """What given draws and flow say of each other.

    Arguments:
        check: Log evidence by bridge sampling between the two; None where the flow has no inverse.
        reasons: What speaks against the results.
    """

    check: EvidenceCheck | None
    reasons: tuple[Reason, ...]


def hold_against(leap: Any, target: Target, given: GivenDraws, exploration: Exploration) -> Held:
    """Hold the flow against given draws; the caller's random numbers stay as they are.

    Arguments:
        leap: The trained leap.
        target: The target that it leaps to.
        given: The given draws, in the target's coordinates.
        exploration: Particles that were annealed from a base fitted to the draws, with their log evidence.
    """
    reasons = list(missed_reasons(given.missed, exploration.log_evidence))
    if not leap.can_invert:
        return Held(None, tuple(reasons))
    with torch.random.fork_rng(devices=[target.device] if target.device.type == "cuda" else []):
        own = weigh(leap, target, _NUM_DRAWS if target.vectorized else _NUM_DRAWS_SLOWLY)
    held_out = given.held_out
    theirs = log_weights_at(leap, target, held_out.flatten(0, 1)).view(held_out.shape[:2])
    check = EvidenceCheck(*bridge_estimate(theirs, own.log_weight))
    do_meet = bool(theirs.isfinite().any() and own.log_weight.isfinite().any())
    reasons += _bridge_reasons(check, *log_mean_weight(own.log_weight), do_meet)
    reasons += _one_leg_reasons(check, exploration)

    return Held(check if math.isfinite(check.log_evidence) else None, tuple(reasons))


def missed_reasons(missed: Sequence[tuple[Part, float]], log_evidence: float) -> list[Reason]:
    """What parts say that search found and the given draws lack.

    Arguments:
        missed: The parts, each with the share of the evidence that is lacking there.
        log_evidence: The log evidence of annealing, those parts included.
    """
    if not missed:
        return []
    part, share = max(missed, key=lambda one: one[1])
    others = f", and {len(missed) - 1} more" if len(missed) > 1 else ""

    return [
        Reason(
            f"The draws in initial_samples miss a part of the posterior: {part.where()} search found a log mass of "
            f"{part.log_mass:.3f} +- {part.std_error:.3f}, {min(share, 1.0):.0%} of the evidence, and they have less "
            f"than a twentieth of that there{others}. With what was found, annealing gives a log evidence of "
            f"{log_evidence:.3f}; there may be more. {_CURE}",
            mendable=False,
        )
    ]


def _bridge_reasons(check: EvidenceCheck, estimate: float, std_error: float, do_meet: bool = True) -> list[Reason]:
    """Whether bridge sampling and the weights of the flow agree.

    Arguments:
        check: What bridge sampling gave.
        estimate: Log evidence from the flow's weights, nats.
        std_error: Its standard error, nats.
        do_meet: Whether each of the two has a density at some draw of the other.
    """
    if not math.isfinite(check.log_evidence) and do_meet:
        return [
            Reason(
                "Bridge sampling between the draws in initial_samples and those of the flow did not converge: they "
                f"hardly overlap, and it gives no log evidence. {_CURE}",
                mendable=False,
            )
        ]
    if not math.isfinite(check.log_evidence):
        return [
            Reason(
                "The draws in initial_samples and those of the flow lie apart: at none of the draws of one has the "
                "other "
                f"any density. {_CURE}",
                mendable=False,
            )
        ]
    distance = check.log_evidence - estimate
    if abs(distance) <= max(SMALL_NATS, MAX_SIGMAS * math.hypot(check.std_error, std_error)):
        return []

    return [
        Reason(
            f"Bridge sampling between the given draws and the flow's gives a log evidence of {check.log_evidence:.3f} "
            f"+- "
            f"{check.std_error:.3f}, and the flow's draws alone give {estimate:.3f} +- {std_error:.3f}: one of the two "
            f"misses a part of the posterior. {_CURE}",
            mendable=False,
        )
    ]


def _one_leg_reasons(check: EvidenceCheck, exploration: Exploration) -> list[Reason]:
    """Whether anything but the weights themselves speaks for the evidence."""
    annealed = exploration.std_error
    if check.std_error <= MAX_STD_ERROR or annealed <= MAX_STD_ERROR:
        return []

    bridge, way = (
        (f"{what} {error:.2g} nats" if math.isfinite(error) else nothing)
        for what, error, nothing in (
            ("bridge sampling with the given draws knows it to", check.std_error, "bridge sampling gave none"),
            ("annealing from them to", annealed, "annealing from them gave none"),
        )
    )

    return [
        Reason(
            f"Nothing confirms the log evidence but its own weights: {bridge}, {way}, and one of them has to know "
            f"it to {MAX_STD_ERROR}. {_CURE}",
            draws=False,
            mendable=False,
        )
    ]

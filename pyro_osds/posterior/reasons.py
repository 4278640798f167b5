"""The sentences of the verdicts: each says what was seen, what it was held against, and the cure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from pyro_osds.explore.particles import Exploration
from pyro_osds.explore.search.parts import Part
from pyro_osds.posterior.evidence import Evidence, EvidenceCheck, Mixing, Reason
from pyro_osds.stats.enough import Unseen, confirms_tail
from pyro_osds.stats.thresholds import (
    CHECK_QUANTILE,
    HEAVY_SHARE,
    LOST_SHARE,
    MAX_NOT_FINITE,
    MAX_R_HAT,
    MAX_ROUNDING,
    MAX_SIGMAS,
    MAX_STD_ERROR,
    MIN_ACCEPTANCE,
    MIN_CHAIN_ESS,
    MIN_CHECK_ERROR,
    MIN_REFINEMENT_ERROR,
    MIN_WEIGHT_ESS,
    UNSEEN_SIGMAS,
    apart,
    pareto_k_threshold,
)
from pyro_osds.stats.unlike import Unlike

# From here on a share is said as a multiple.
_MANY_TIMES = 2.0


def tail_reasons(k: float, num_draws: int, drawn_by: str = "flow") -> list[Reason]:
    """What the shape of the tail of the weights says; ``drawn_by`` is what the draws come from."""
    threshold = pareto_k_threshold(num_draws)
    if not k > threshold:
        return []
    seen, bound = apart(k, threshold)

    return [
        Reason(
            f"pareto k is {seen}, above {bound} for {num_draws} draws: a few draws carry the estimate, the "
            f"{drawn_by}'s tails are too light. Raise num_iterations, or reparametrise the model (a non-centred "
            "hierarchy, for instance)."
        )
    ]


def particle_reasons(share: float, num_particles: int, is_heavy: bool = True) -> list[Reason]:
    """What explored particles say of the tail of the weights.

    Arguments:
        share: Share of the particles where weights are largest.
        num_particles: How many particles there are.
        is_heavy: Whether the weights have a heavy tail.
    """
    if confirms_tail(share, num_particles):
        return []
    seen = "The weights have a heavy tail, and explored" if is_heavy else "Explored"
    tail = "it" if is_heavy else "the tail of the weights"

    return [
        Reason(
            f"{seen} particles do not confirm {tail}: {HEAVY_SHARE:.0%} of the "
            f"posterior lies where weights are largest, by the weights, and {share:.1%} of {num_particles} particles. "
            "One of the two misses a part. Raise num_iterations and num_particles, or reparametrise the model."
        )
    ]


def unseen_reasons(found: Unseen | None, num_particles: int) -> list[Reason]:
    """What is said of a part where explored particles lie and draws hardly do.

    Arguments:
        found: The part, or None.
        num_particles: How many particles there are.
    """
    if found is None:
        return []

    return [
        Reason(
            f"{found.by_particles:.1%} of {num_particles} explored particles lie where weights are more than "
            f"{found.multiple:g} times their mean, and {found.by_draws:.1%} of the posterior does by the draws: the "
            "flow hardly proposes a part of it. Raise num_iterations, or reparametrise the model."
        )
    ]


class Gap(NamedTuple):
    """What draws do not see of a neck.

    Arguments:
        share: Share of the posterior, not below zero.
        std_error: Its standard error.
        by_neck: Share with large weights by the particles of the neck.
        by_draws: The same by the draws.
    """

    share: float
    std_error: float
    by_neck: float
    by_draws: float


def neck_reasons(gap: Gap | None) -> list[Reason]:
    """What is said of a neck that draws do not see; a smaller gap is part of the standard error.

    Arguments:
        gap: What they do not see, if anybody looked.
    """
    if gap is None or not gap.share > max(LOST_SHARE, UNSEEN_SIGMAS * gap.std_error):
        return []

    return [
        Reason(
            f"The posterior narrows into a neck, and {gap.by_neck:.1%} of it lies there where the draws hardly go, of "
            f"which they see {gap.by_draws:.1%}. Reparametrise the model: a non-centred hierarchy, or its members "
            "summed out, for instance."
        )
    ]


def unlike_reasons(found: Unlike | None) -> list[Reason]:
    """What is said where explored particles and those of a refinement lie in other shares.

    Arguments:
        found: Where they do, the explored ones first; or None.
    """
    if found is None:
        return []
    where = f"more than {found.multiple:g} times" if found.multiple > 1 else "more than"

    return [
        Reason(
            f"Explored particles and those of the refinement disagree on where the posterior lies: {found.first:.0%} "
            f"and {found.second:.0%} of them lie where the flow's weights are {where} their mean. One of the two "
            "misses a part. Raise num_iterations and num_particles."
        )
    ]


def ess_reasons(ess: float, num_draws: int, drawn_by: str = "flow") -> list[Reason]:
    """What the effective number of the draws says; ``drawn_by`` is what they come from."""
    if ess >= MIN_WEIGHT_ESS * num_draws:
        return []

    return [
        Reason(
            f"The effective sample size of the weights is {ess:.0f} of {num_draws} draws, less than "
            f"{MIN_WEIGHT_ESS:.0%}: the {drawn_by} hardly meets the posterior. Raise num_iterations, or reparametrise "
            "the model."
        )
    ]


def mixing_reasons(mixing: Mixing | None) -> list[Reason]:
    """What the chains say; nan, of chains too short to tell, says nothing."""
    if mixing is None:
        return []
    reasons = []
    if mixing.r_hat > MAX_R_HAT:
        seen, bound = apart(mixing.r_hat, MAX_R_HAT)
        reasons.append(f"The chains disagree: r_hat is {seen}, above {bound}. Raise num_iterations or num_samples.")
    if mixing.ess < MIN_CHAIN_ESS:
        seen, bound = apart(100 * mixing.ess, 100 * MIN_CHAIN_ESS, digits=1)
        reasons.append(
            f"The chains stick: {seen}% of their draws are effective, less than {bound}%. Raise num_iterations, and "
            "look at n_eff in summary()."
        )

    return [Reason(text, evidence=False) for text in reasons]


def not_finite_reasons(num_not_finite: int, num_draws: int) -> list[Reason]:
    """What draws without a density say; as many as are lost without a word are none."""
    if num_not_finite <= MAX_NOT_FINITE * num_draws:
        return []

    return [
        Reason(
            f"The log density was nan or +inf at {num_not_finite} of {num_draws} draws; they got weight zero. Look for "
            "an overflow, a division by zero or a factor that is not a number."
        )
    ]


def rounding_reasons(rounding: float, has_tolerance: bool = False) -> list[Reason]:
    """What noise of the log density says, from rounding or from a solver's tolerance; no training cures it."""
    if rounding <= MAX_ROUNDING:
        return []
    if has_tolerance:
        return [
            Reason(
                f"The tolerances of a differential equation's solver add {rounding:.2g} nats to the log density "
                "(standard deviation, measured at posterior draws): it chooses other steps from point to point, and "
                "makes other errors. Pass smaller ones, such as odeint(..., rtol=1e-7, atol=1e-9), or a method with "
                "fixed steps, such as method='rk4'.",
                mendable=False,
            )
        ]

    return [
        Reason(
            f"Rounding adds {rounding:.2g} nats to the log density (standard deviation, measured at posterior draws). "
            "The model could not be run in double precision: look for numpy, .numpy() or a check of dtype in it. Pass "
            "data and constants as torch.float64, or leave out the constant part of a large log density. Steps in the "
            "density, such as those of round() or floor(), look the same: write a smooth one. So does a solution that "
            "is found up to a tolerance, of an equation or an integral: lower the tolerance.",
            mendable=False,
        )
    ]


def error_reasons(std_error: float) -> list[Reason]:
    """What the standard error says: against the number, not against the draws."""
    if std_error <= MAX_STD_ERROR:
        return []
    seen, bound = apart(std_error, MAX_STD_ERROR)

    return [
        Reason(
            f"The standard error of the log evidence is {seen} nats, above {bound}. Raise num_samples or "
            "num_iterations.",
            draws=False,
        )
    ]


def improper_text(sites: Sequence[str], healthy: bool) -> str:
    """Why there is no log evidence, and whether the draws are healthy all the same."""
    names = ", ".join(map(repr, sites))
    draws = " The draws are not affected." if healthy else ""

    return (
        f"The prior of site {names} is improper, so the log evidence is undefined.{draws} Give the site a proper prior "
        "to compare models."
    )


def move_reasons(
    found: Exploration, stage: str = "the refinement", cure: str = "Raise num_iterations or num_particles."
) -> list[Reason]:
    """What speaks against the moves of annealed particles and the agreement of their replicates.

    Arguments:
        found: The particles.
        stage: Which stage annealed them.
        cure: What makes its replicates agree.
    """
    reasons = []
    if not found.acceptance >= MIN_ACCEPTANCE:
        reasons.append(
            f"The Hamiltonian moves of {stage} were accepted with probability {found.acceptance:.2f} only: the density "
            "is too rough for them. Rescale or reparametrise the model."
        )
    if not found.settled:
        reasons.append(
            f"The particles of {stage} still drifted at the end: a part of the posterior is hard to reach. "
            "Reparametrise the model (a non-centred hierarchy, for instance)."
        )
    if not found.std_error <= MAX_STD_ERROR:
        seen, bound = apart(found.std_error, MAX_STD_ERROR)
        count = len(found.replicate_log_evidence)
        reasons.append(
            f"The {count} replicates of {stage} disagree: the standard error of their log evidence is {seen} nats, "
            f"above {bound}, with {len(found.z) // count} particles each. {cure}"
        )

    return [Reason(text) for text in reasons]


def below_reasons(estimate: float, std_error: float, before: Evidence) -> list[Reason]:
    """What a refinement found and exploration did not: annealing that misses a part is too low, never too high."""
    refinement = before.refinement
    if refinement is None or not math.isfinite(refinement.log_evidence):
        return []
    distance = refinement.log_evidence - estimate
    if distance <= _allowed(std_error, refinement, MIN_REFINEMENT_ERROR):
        return []

    return [
        Reason(
            f"The log evidence {estimate:.3f} of annealing from the prior lies {distance:.2f} nats below that of "
            f"annealing from the flow, {refinement.log_evidence:.3f} +- {refinement.std_error:.3f}: a part of the "
            "posterior is missed. Raise num_particles, and repeat with another seed."
        )
    ]


def refinement_reasons(estimate: float, std_error: float, refinement: EvidenceCheck | None) -> list[Reason]:
    """What a short refinement from the flow's draws says: its particles walk to where the flow proposes too little."""
    if refinement is None or not math.isfinite(refinement.log_evidence):
        return []
    distance = estimate - refinement.log_evidence
    if abs(distance) <= _allowed(std_error, refinement, MIN_REFINEMENT_ERROR):
        return []

    return [
        Reason(
            f"The log evidence {estimate:.3f} lies {abs(distance):.2f} nats {'below' if distance < 0 else 'above'} "
            f"that of short annealing from the flow's draws, {refinement.log_evidence:.3f} +- "
            f"{refinement.std_error:.3f}: the flow misses a part of the posterior next to its draws. Raise "
            "num_iterations, or reparametrise the model."
        )
    ]


def check_reasons(estimate: float, std_error: float, check: EvidenceCheck | None, healthy: bool) -> list[Reason]:
    """What the other estimate says; one that is too low does not speak against healthy weights.

    The mean weight is right on average, so by Markov's inequality it exceeds the evidence by *x* nats with probability
    exp(-x) at most, while annealing that missed a part of the posterior is always too low.
    """
    if check is None or not math.isfinite(check.log_evidence):
        return []
    distance = estimate - check.log_evidence
    if abs(distance) <= _allowed(std_error, check, MIN_CHECK_ERROR) or (healthy and distance > 0):
        return []
    side = "below" if distance < 0 else "above"
    cure = "a mode may be lost" if distance < 0 else "the exploration may have missed a part of the posterior"

    return [
        Reason(
            f"The log evidence {estimate:.3f} lies {abs(distance):.2f} nats {side} the exploration's "
            f"{check.log_evidence:.3f} +- {check.std_error:.3f}: {cure}. Raise num_particles, and repeat with another "
            "seed."
        )
    ]


def lost_reasons(lost: Sequence[tuple[Part, float]], log_evidence: float) -> list[Reason]:
    """What parts say that search found and the draws lack, the largest first.

    Arguments:
        lost: The parts, each with the share of the evidence that is lacking there.
        log_evidence: The log evidence that shares are of.
    """
    if not lost:
        return []
    part, share = max(lost, key=lambda one: one[1])
    others = f", and {len(lost) - 1} more" if len(lost) > 1 else ""
    larger, smaller = max(part.log_mass, log_evidence), min(part.log_mass, log_evidence)
    with_all = larger + math.log1p(math.exp(smaller - larger))
    amount = f"{share:.0%} of this evidence" if share < _MANY_TIMES else f"{share:.3g} times this evidence"

    return [
        Reason(
            f"A part of the posterior is lost: {part.where()} search found a log mass of {part.log_mass:.3f} +- "
            f"{part.std_error:.3f}, and the draws lack {amount} (log evidence {log_evidence:.3f}) there{others}. With "
            f"all of it the log evidence would be {with_all:.3f} at most. More particles (num_particles) may reach it; "
            "a model whose modes have one width is easier."
        )
    ]


def _allowed(std_error: float, other: EvidenceCheck, least: float) -> float:
    """How far two estimates of one log evidence may lie apart, nats, where the other's error is *least* at least."""
    return MAX_SIGMAS * math.hypot(std_error, CHECK_QUANTILE * max(other.std_error, least))

r"""The log evidence and the posterior draws, and whether to believe them.

Two verdicts, because two things can go wrong apart: with a flat prior the draws may be good and the log evidence is
undefined; chains may stick where the mean weight is right. Weights alone cannot tell that a whole mode is missing, so
the verdicts ask independent checks: the tail of the weights (pareto k), their effective number, the mixing of the
chains, the log evidence of the annealed exploration, and that of annealing from the flow. An unknown constant of an
improper prior cancels in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from pyro_osds.explore.particles import Exploration
from pyro_osds.posterior.evidence import Evidence, EvidenceCheck, Mixing, Reason, annealed_check
from pyro_osds.posterior.reasons import (
    check_reasons,
    error_reasons,
    ess_reasons,
    improper_text,
    mixing_reasons,
    move_reasons,
    not_finite_reasons,
    refinement_reasons,
    rounding_reasons,
    tail_reasons,
)
from pyro_osds.stats.thresholds import EQUAL_SHARE, MAX_STD_ERROR, UNREACHED
from pyro_osds.stats.weights import WeightSummary


def judge(
    weights: WeightSummary,
    check: EvidenceCheck | None = None,
    improper_sites: Sequence[str] = (),
    num_not_finite: int = 0,
    other_reasons: Sequence[Reason] = (),
    refinement: EvidenceCheck | None = None,
    rounding: float = 0.0,
    mixing: Mixing | None = None,
    has_tolerance: bool = False,
    drawn_by: str = "flow",
    unseen: float = 0.0,
) -> Evidence:
    """Evidence and verdicts from the weights of fresh draws.

    Arguments:
        weights: What the weights of the draws say.
        check: Another estimate that must agree within three combined standard errors.
        improper_sites: Latent sites whose prior is flat: with them there is no evidence.
        num_not_finite: Draws whose log density was nan or ``+inf``.
        other_reasons: What else speaks against the results.
        refinement: Log evidence of short annealing from the flow's draws, which must agree too.
        rounding: What rounding adds to the log densities, nats; part of the standard error.
        mixing: How the chains of posterior draws mix.
        has_tolerance: Whether a solver with tolerances is part of the density: noise is then its own, not rounding.
        drawn_by: What the draws come from, in words.
        unseen: Share of the posterior that the draws do not see, part of the standard error.

    Returns:
        The evidence with its verdicts.

    Example:
        >>> import torch
        >>> from pyro_osds.stats.weights import summarize_weights
        >>> judge(summarize_weights(torch.full((1000,), -2.0))).reliable
        True
    """
    estimate, num_draws = weights.log_mean_weight, weights.num_draws
    std_error = math.hypot(weights.std_error, rounding, unseen)
    reasons = [
        *other_reasons,
        *tail_reasons(weights.pareto_k, num_draws, drawn_by),
        *ess_reasons(weights.ess, num_draws, drawn_by),
        *mixing_reasons(mixing),
        *not_finite_reasons(num_not_finite, num_draws),
        *rounding_reasons(rounding, has_tolerance),
        *([] if improper_sites else error_reasons(std_error)),
        *refinement_reasons(estimate, std_error, refinement),
    ]
    reasons += check_reasons(estimate, std_error, check, healthy=not any(reason.evidence for reason in reasons))
    judged = Evidence(
        estimate, std_error, weights.elbo, weights.ess, weights.pareto_k, num_draws, True, (), check, refinement
    )

    return with_verdicts(judged, reasons, tuple(improper_sites))


def with_verdicts(judged: Evidence, reasons: Sequence[Reason], improper_sites: tuple[str, ...]) -> Evidence:
    """The numbers with their verdicts; an improper prior leaves no log evidence.

    Arguments:
        judged: The numbers.
        reasons: What speaks against draws and evidence.
        improper_sites: Latent sites whose prior is flat: with them there is no evidence.
    """
    if any(reason.is_final for reason in reasons):
        # What else was seen comes of it, or would be cured in vain.
        reasons = [reason for reason in reasons if not reason.mendable]
    against_draws = tuple(reason.text for reason in reasons if reason.draws)
    against_evidence = tuple(reason.text for reason in reasons if reason.evidence)
    judged = replace(judged, log_integral=judged.log_evidence)
    if improper_sites:
        against_evidence = (improper_text(improper_sites, healthy=not reasons), *against_evidence)
        judged = replace(judged, log_evidence=math.nan, std_error=math.nan)

    return replace(
        judged,
        reliable=not against_evidence,
        reasons=against_evidence,
        draws_reliable=not against_draws,
        draws_reasons=against_draws,
        improper_sites=improper_sites,
        is_settled=not any(reason.mendable for reason in reasons),
    )


def judge_annealed(
    found: Exploration,
    judged: Evidence,
    improper_sites: Sequence[str] = (),
    num_not_finite: int = 0,
    other_reasons: Sequence[Reason] = (),
    rounding: float = 0.0,
    mixing: Mixing | None = None,
    num_flow_draws: int | None = None,
    has_tolerance: bool = False,
    unseen: float = 0.0,
) -> Evidence:
    """Evidence and verdicts from particles annealed from a flow, for one whose weights did not suffice.

    Pareto k and the effective sample size are those of the weights between two temperatures, the worst ones; k is
    ``-inf`` where those weights are nearly equal.

    Arguments:
        found: The particles, and the log evidences of the replicates.
        judged: Evidence and verdicts of the stage before, for the ELBO and the check of exploration.
        improper_sites: Latent sites whose prior is flat: with them there is no evidence.
        num_not_finite: How many of the flow's draws had a log density of nan or ``+inf``.
        other_reasons: What else speaks against the results.
        rounding: What rounding adds to the log densities, nats; part of the standard error.
        mixing: How the chains of posterior draws mix.
        num_flow_draws: How many draws of the flow there were. Default: as many as the stage before has.
        has_tolerance: Whether a solver with tolerances is part of the density.
        unseen: Share of the posterior that the particles do not see, part of the standard error.
    """
    num_draws, estimate = len(found.z), found.log_evidence
    std_error = math.hypot(found.std_error, UNREACHED, rounding, unseen)
    # Where hardly any particle is lost between two temperatures, the shape of the tail is that of noise.
    equal = found.ess > EQUAL_SHARE * num_draws
    k = -math.inf if equal else found.pareto_k
    reasons = [
        *other_reasons,
        *tail_reasons(k, num_draws),
        *ess_reasons(found.ess, num_draws),
        *move_reasons(found),
        *mixing_reasons(mixing),
        *not_finite_reasons(num_not_finite, judged.num_draws if num_flow_draws is None else num_flow_draws),
        *rounding_reasons(rounding, has_tolerance),
        # Replicates that disagree have said so already.
        *([] if improper_sites or found.std_error > MAX_STD_ERROR else error_reasons(std_error)),
    ]
    healthy = not any(reason.evidence for reason in reasons)
    reasons += check_reasons(estimate, std_error, judged.check, healthy)
    numbers = replace(
        judged,
        log_evidence=estimate,
        std_error=std_error,
        ess=found.ess,
        pareto_k=k,
        num_draws=num_draws,
        refinement=annealed_check(found),
    )

    return with_verdicts(numbers, reasons, tuple(improper_sites))

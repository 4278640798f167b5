r"""The log evidence, and whether to believe it.

Weights alone cannot tell that a whole mode is missing, so the verdict asks three independent witnesses: the tail of the
weights (pareto k), their effective number, and the log evidence of the annealed exploration.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from pyro_osds.card import Card
from pyro_osds.explore import Exploration
from pyro_osds.importance import effective_sample_size, log_mean_weight, lower_bound, pareto_k

_MIN_ESS = 100.0
_MAX_SIGMAS = 3.0
# Islands share their temperatures and scales, so their spread alone claims a little too much.
_MIN_CHECK_ERROR = 0.03
_MIN_BRIDGE_ERROR = 0.01
_MAX_BRIDGE_ERROR = 0.1
# What a bridge's particles may leave unreached in a narrow neck, nats; its islands all leave the same.
_UNREACHED = 0.005
_MIN_ACCEPTANCE = 0.3
_EQUAL_SHARE = 0.99
_MAX_ROUNDING = 0.5
# Eight islands: what three standard errors are to a normal, four and a half are to their t distribution.
_CHECK_QUANTILE = 1.5


@dataclass(frozen=True)
class EvidenceCheck:
    """A log evidence from elsewhere, to hold the flow's against.

    Arguments:
        log_evidence: The other estimate, nats.
        std_error: Its standard error, nats.

    Example:
        >>> EvidenceCheck(-31.3, 0.05).std_error
        0.05
    """

    log_evidence: float
    std_error: float


@dataclass(frozen=True, repr=False)
class Evidence:
    """The log evidence with its standard error and a verdict.

    Arguments:
        log_evidence: Log of the mean weight, nats; nan where the prior is improper.
        std_error: Its standard error, nats.
        elbo: Mean log weight, a lower bound of the log evidence, nats.
        ess: Effective number of the weighted draws.
        pareto_k: Shape of the tail of the weights.
        num_draws: Fresh draws that all of this was computed from.
        reliable: Whether nothing speaks against the estimate.
        reasons: What speaks against it: sentences, each with what was seen and the cure; empty when reliable.
        check: Log evidence of the annealed exploration, if there was one.
        bridge: Log evidence of a short annealed bridge from the flow, if the weights asked for one.

    Example:
        >>> evidence = Evidence(-2.0, 0.01, -2.1, 40.0, 0.8, 1000, False, ("pareto k is 0.80 ...",))
        >>> evidence.reliable or evidence.reasons[0]
        'pareto k is 0.80 ...'
        >>> evidence.headline
        ('log evidence -2.0000 +- 0.0100', 'NOT reliable')
        >>> type(evidence.card()).__name__
        'Card'
    """

    log_evidence: float
    std_error: float
    elbo: float
    ess: float
    pareto_k: float
    num_draws: int
    reliable: bool
    reasons: tuple[str, ...]
    check: EvidenceCheck | None = None
    bridge: EvidenceCheck | None = None

    @property
    def headline(self) -> tuple[str, str]:
        """The log evidence with its standard error, and the verdict, in words."""
        number = f"log evidence {self.log_evidence:.4f} +- {self.std_error:.4f}"

        return number, "reliable" if self.reliable else "NOT reliable"

    def card(self) -> Card:
        """Every number with what to make of it, and the reasons."""
        k = f"{self.pareto_k:.2f} (good below 0.5, not to be used above {pareto_k_threshold(self.num_draws):.2f})"
        others = (("exploration", self.check), ("bridge", self.bridge))
        rows = (
            ("log evidence", f"{self.log_evidence:.4f} +- {self.std_error:.4f}"),
            ("ELBO", f"{self.elbo:.4f} (a lower bound)"),
            ("pareto k", k if self.pareto_k > -math.inf else "none: weights are nearly equal"),
            ("ess", f"{self.ess:.0f} of {self.num_draws} draws"),
            *((name, f"{other.log_evidence:.4f} +- {other.std_error:.4f}") for name, other in others if other),
            ("verdict", self.headline[1]),
        )

        return Card("Evidence", rows, self.reasons)

    def __repr__(self) -> str:
        reasons = f", {len(self.reasons)} reason{'s' * (len(self.reasons) > 1)}" if self.reasons else ""

        return (
            f"Evidence({self.headline[0]}, ELBO {self.elbo:.4f}, pareto k {self.pareto_k:.2f}, ess {self.ess:.0f} of "
            f"{self.num_draws}, {self.headline[1]}{reasons})"
        )

    def __str__(self) -> str:
        return self.card().text()

    def _repr_html_(self) -> str:
        return self.card().html()


def judge(
    log_weight: Tensor,
    check: EvidenceCheck | None = None,
    improper_sites: Sequence[str] = (),
    num_not_finite: int = 0,
    other_reasons: Sequence[str] = (),
    bridge: EvidenceCheck | None = None,
    rounding: float = 0.0,
) -> Evidence:
    """Evidence and verdict from the log weights of fresh draws.

    Arguments:
        log_weight: Log weights, ``(S,)``; ``-inf`` counts as weight zero.
        check: Another estimate that must agree within three combined standard errors.
        improper_sites: Latent sites whose prior is flat: with them there is no evidence.
        num_not_finite: Draws whose log density was nan or ``+inf``.
        other_reasons: What else speaks against the estimate.
        bridge: Log evidence of a short bridge from the flow's draws, which must agree too.
        rounding: What one unit in the last place of the log densities is, nats; part of the standard error.

    Returns:
        The evidence with its verdict.

    Example:
        >>> import torch
        >>> judge(torch.full((1000,), -2.0)).reliable
        True
    """
    num_draws = len(log_weight)
    estimate, std_error = log_mean_weight(log_weight)
    ess, k = effective_sample_size(log_weight), pareto_k(log_weight)
    elbo = lower_bound(log_weight)
    reasons = [
        *other_reasons,
        *_tail_reasons(k, num_draws),
        *_ess_reasons(ess, num_draws),
        *_not_finite_reasons(num_not_finite, num_draws),
        *_rounding_reasons(rounding),
    ]
    std_error = math.hypot(std_error, 0.5 * rounding)
    if improper_sites:
        reasons.insert(0, _improper_reason(improper_sites, not reasons))
        estimate = std_error = math.nan
    else:
        reasons += _bridge_reasons(estimate, std_error, bridge)
        reasons += _check_reasons(estimate, std_error, check, healthy=not reasons)

    return Evidence(estimate, std_error, elbo, ess, k, num_draws, not reasons, tuple(reasons), check, bridge)


def judge_bridge(
    found: Exploration,
    judged: Evidence,
    improper_sites: Sequence[str] = (),
    num_not_finite: int = 0,
    other_reasons: Sequence[str] = (),
    rounding: float = 0.0,
) -> Evidence:
    """Evidence and verdict from a bridge, for a flow whose weights did not suffice.

    Pareto k and the effective sample size are those of the weights between two temperatures, the worst ones; k is
    ``-inf`` where those weights are nearly equal.

    Arguments:
        found: The bridge's particles and the log evidences of its islands.
        judged: Evidence and verdict from the flow's weights, for the ELBO and the check of exploration.
        improper_sites: Latent sites whose prior is flat: with them there is no evidence.
        num_not_finite: How many of the flow's draws had a log density of nan or ``+inf``.
        other_reasons: What else speaks against the estimate.
        rounding: What one unit in the last place of the log densities is, nats; part of the standard error.
    """
    num_draws, estimate = len(found.z), found.log_evidence
    std_error = math.hypot(found.std_error, _UNREACHED, 0.5 * rounding)
    # Where hardly any particle is lost between two temperatures, the shape of the tail is that of noise.
    equal = found.ess > _EQUAL_SHARE * num_draws
    k = -math.inf if equal else found.pareto_k
    reasons = [
        *other_reasons,
        *_tail_reasons(k, num_draws),
        *_ess_reasons(found.ess, num_draws),
        *_walk_reasons(found),
        *_not_finite_reasons(num_not_finite, judged.num_draws),
        *_rounding_reasons(rounding),
    ]
    if improper_sites:
        reasons.insert(0, _improper_reason(improper_sites, not reasons))
        estimate = std_error = math.nan
    else:
        reasons += _check_reasons(estimate, std_error, judged.check, healthy=not reasons)

    return replace(
        judged,
        log_evidence=estimate,
        std_error=std_error,
        ess=found.ess,
        pareto_k=k,
        num_draws=num_draws,
        reliable=not reasons,
        reasons=tuple(reasons),
        bridge=EvidenceCheck(found.log_evidence, found.std_error),
    )


def pareto_k_threshold(num_draws: int) -> float:
    """The largest trustworthy pareto k for a number of draws: ``min(1 - 1 / log10(S), 0.7)``.

    Source: Vehtari et al. 2024 (1507.02646), section 3.2.4.

    Example:
        >>> pareto_k_threshold(10_000)
        0.7
    """
    return min(1.0 - 1.0 / math.log10(max(num_draws, 2)), 0.7)


def _tail_reasons(k: float, num_draws: int) -> list[str]:
    threshold = pareto_k_threshold(num_draws)
    if not k > threshold:
        return []

    return [
        f"pareto k is {k:.2f}, above {threshold:.2f} for {num_draws} draws: a few draws carry the estimate, the flow's "
        "tails are too light. Raise num_iterations, or reparametrise the model (a non-centred hierarchy, for instance)."
    ]


def _ess_reasons(ess: float, num_draws: int) -> list[str]:
    if ess >= _MIN_ESS:
        return []

    return [
        f"The effective sample size is {ess:.0f} of {num_draws} draws. Raise num_iterations, or num_samples if the "
        "flow cannot do better."
    ]


def _not_finite_reasons(num_not_finite: int, num_draws: int) -> list[str]:
    if num_not_finite <= 0.001 * num_draws:
        return []

    return [
        f"The log density was nan or +inf at {num_not_finite} of {num_draws} draws; they got weight zero. Look for an "
        "overflow, a division by zero or a factor that is not a number."
    ]


def _rounding_reasons(rounding: float) -> list[str]:
    if rounding <= _MAX_ROUNDING:
        return []

    return [
        f"The log density is so large that it is rounded to {rounding:.2g} nats: differences between points are lost. "
        "Use double precision (data and priors in torch.float64), or leave out its constant part."
    ]


def _improper_reason(sites: Sequence[str], healthy: bool) -> str:
    names = ", ".join(map(repr, sites))

    return (
        f"The prior of site {names} is improper, so the evidence is not defined"
        f"{'; draws are valid' if healthy else ''}. Give the site a proper prior."
    )


def _walk_reasons(found: Exploration) -> list[str]:
    """What speaks against the walk of a bridge's particles and the agreement of its islands."""
    reasons = []
    if not found.acceptance >= _MIN_ACCEPTANCE:
        reasons.append(
            f"The bridge's Hamiltonian moves were accepted with probability {found.acceptance:.2f} only: the "
            "density is too rough for them. Rescale or reparametrise the model."
        )
    if not found.settled:
        reasons.append(
            "The bridge's particles still drifted at the end: a part of the posterior is hard to reach. Reparametrise "
            "the model (a non-centred hierarchy, for instance)."
        )
    if not found.std_error <= _MAX_BRIDGE_ERROR:
        reasons.append(
            f"The bridge's islands disagree: the standard error of the log evidence is {found.std_error:.2f} nats. "
            "Raise num_iterations or num_particles."
        )

    return reasons


def _bridge_reasons(estimate: float, std_error: float, bridge: EvidenceCheck | None) -> list[str]:
    """What a short bridge from the flow's draws says: its particles walk to where the flow proposes too little."""
    if bridge is None or not math.isfinite(bridge.log_evidence):
        return []
    distance = estimate - bridge.log_evidence
    if abs(distance) <= _MAX_SIGMAS * math.hypot(std_error, _CHECK_QUANTILE * max(bridge.std_error, _MIN_BRIDGE_ERROR)):
        return []

    return [
        f"The log evidence {estimate:.3f} lies {abs(distance):.2f} nats {'below' if distance < 0 else 'above'} that of "
        f"a short bridge from the flow's draws, {bridge.log_evidence:.3f} +- {bridge.std_error:.3f}: the flow misses a "
        "part of the posterior next to its draws. Raise num_iterations, or reparametrise the model."
    ]


def _check_reasons(estimate: float, std_error: float, check: EvidenceCheck | None, healthy: bool) -> list[str]:
    """What the other estimate says; one that is too low does not speak against healthy weights.

    The mean weight is right on average, so by Markov's inequality it exceeds the evidence by *x* nats with probability
    exp(-x) at most, while annealing that missed a part of the posterior is always too low.
    """
    if check is None or not math.isfinite(check.log_evidence):
        return []
    combined = math.hypot(std_error, _CHECK_QUANTILE * max(check.std_error, _MIN_CHECK_ERROR))
    distance = estimate - check.log_evidence
    if abs(distance) <= _MAX_SIGMAS * combined or (healthy and distance > 0):
        return []
    side = "below" if distance < 0 else "above"
    cure = "a mode may be lost" if distance < 0 else "the exploration may have missed a part of the posterior"

    return [
        f"The log evidence {estimate:.3f} lies {abs(distance):.2f} nats {side} the exploration's "
        f"{check.log_evidence:.3f} +- {check.std_error:.3f}: {cure}. Raise num_particles, and repeat with another seed."
    ]

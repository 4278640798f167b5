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
from dataclasses import dataclass, replace
from typing import NamedTuple

from pyro_osds.explore.annealing import Exploration
from pyro_osds.runtime.text import Card
from pyro_osds.stats.thresholds import (
    CHECK_QUANTILE,
    EQUAL_SHARE,
    GOOD_PARETO_K,
    MAX_NOT_FINITE,
    MAX_R_HAT,
    MAX_ROUNDING,
    MAX_SIGMAS,
    MAX_STD_ERROR,
    MIN_ACCEPTANCE,
    MIN_BRIDGE_ERROR,
    MIN_CHAIN_ESS,
    MIN_CHECK_ERROR,
    MIN_WEIGHT_ESS,
    UNREACHED,
    apart,
    pareto_k_threshold,
)
from pyro_osds.stats.weights import WeightSummary


class Reason(NamedTuple):
    """A sentence that speaks against a result: what was seen, and the cure.

    Arguments:
        text: The sentence.
        draws: Whether it speaks against the posterior draws.
        evidence: Whether it speaks against the log evidence.
        mendable: Whether more work could mend it; what is wrong with a model, no further rung cures.
    """

    text: str
    draws: bool = True
    evidence: bool = True
    mendable: bool = True


class Mixing(NamedTuple):
    """How the chains of posterior draws mix, in their worst coordinate.

    Arguments:
        r_hat: Split R-hat.
        ess: Effective number of the draws, as a share of them.
    """

    r_hat: float
    ess: float


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


def annealed_check(found: Exploration) -> EvidenceCheck:
    """The log evidence of annealed particles, as a check of another one.

    Arguments:
        found: The particles, and the log evidences of the replicates.
    """
    return EvidenceCheck(found.log_evidence, found.std_error)


@dataclass(frozen=True, repr=False)
class Evidence:
    """The log evidence (log marginal likelihood) with its standard error, and the verdicts on it and on the draws.

    Arguments:
        log_evidence: Log of the mean weight, nats; nan where the prior is improper.
        std_error: Its standard error, nats.
        elbo: Mean log weight, a lower bound of the log evidence, nats.
        ess: Effective number of the weighted draws.
        pareto_k: Shape of the tail of the weights.
        num_draws: Fresh draws that all of this was computed from.
        reliable: Whether nothing speaks against the log evidence.
        reasons: What speaks against it: sentences, each with what was seen and the cure; empty when reliable.
        check: Log evidence of the annealed exploration, if there was one.
        bridge: Log evidence of short annealing from the flow, if the weights asked for it.
        draws_reliable: Whether nothing speaks against the posterior draws.
        draws_reasons: What speaks against them; empty when they are reliable.
        improper_sites: Latent sites with an improper prior: with one, there is no log evidence.
        log_integral: Log of the integral of prior times likelihood, as the model states them, nats: the log evidence
            or, with an improper prior, that up to an unknown constant.
        is_settled: Whether more work could mend nothing: all is well, or what is not lies in the model.

    Example:
        >>> evidence = Evidence(-2.0, 0.01, -2.1, 40.0, 0.8, 1000, False, ("pareto k is 0.80 ...",))
        >>> evidence.reliable or evidence.reasons[0]
        'pareto k is 0.80 ...'
        >>> evidence.headline
        ('log evidence -2.0000 +- 0.0100', 'draws: reliable; log evidence: NOT reliable')
        >>> evidence.verdict, evidence.all_reasons == evidence.reasons
        ('draws: reliable; log evidence: NOT reliable', True)
        >>> evidence.cut_short() is evidence  # more work would mend nothing
        True
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
    draws_reliable: bool = True
    draws_reasons: tuple[str, ...] = ()
    improper_sites: tuple[str, ...] = ()
    log_integral: float = math.nan
    is_settled: bool = True

    @property
    def all_reasons(self) -> tuple[str, ...]:
        """What speaks against the log evidence or against the draws, each sentence once."""
        return tuple(dict.fromkeys((*self.reasons, *self.draws_reasons)))

    @property
    def verdict(self) -> str:
        """Both verdicts in words."""
        draws = "reliable" if self.draws_reliable else "NOT reliable"
        evidence = "reliable" if self.reliable else "NOT reliable"
        if self.improper_sites:
            evidence = f"undefined (improper prior of site {', '.join(map(repr, self.improper_sites))})"

        return f"draws: {draws}; log evidence: {evidence}"

    @property
    def headline(self) -> tuple[str, str]:
        """The log evidence with its standard error, and the verdicts, in words."""
        return f"log evidence {self._number}", self.verdict

    @property
    def _number(self) -> str:
        return "undefined" if self.improper_sites else f"{self.log_evidence:.4f} +- {self.std_error:.4f}"

    def card(self) -> Card:
        """Every number with what to make of it, and the reasons."""
        k, threshold = apart(self.pareto_k, pareto_k_threshold(self.num_draws))
        tail = f"{k} (good below {GOOD_PARETO_K}, not to be used above {threshold})"
        others = (("exploration", self.check), ("bridge", self.bridge))
        constant = ", up to the constant of the improper prior" if self.improper_sites else ""
        rows = (
            ("log evidence", self._number),
            ("ELBO", f"{self.elbo:.4f} (a lower bound{constant})"),
            ("pareto k", tail if self.pareto_k > -math.inf else "none: weights are nearly equal"),
            ("ess", f"{self.ess:.0f} of {self.num_draws} draws"),
            *((name, f"{other.log_evidence:.4f} +- {other.std_error:.4f}") for name, other in others if other),
            ("verdict", self.verdict),
        )

        return Card("Evidence", rows, self.all_reasons)

    def __repr__(self) -> str:
        count = len(self.all_reasons)
        reasons = f", {count} reason{'s' * (count > 1)}" if count else ""

        return (
            f"Evidence({self.headline[0]}, ELBO {self.elbo:.4f}, pareto k {self.pareto_k:.2f}, ess {self.ess:.0f} of "
            f"{self.num_draws}, {self.verdict}{reasons})"
        )

    def __str__(self) -> str:
        return self.card().text()

    def _repr_html_(self) -> str:
        return self.card().html()

    def cut_short(self) -> Evidence:
        """The same, after a run that was cut short; if something speaks against it, the cure is to go on."""
        if self.is_settled:
            return self
        text = "The run was cut short by max_time or by Ctrl-C: call resume(), which goes on from there."

        return replace(
            self,
            reasons=(text, *self.reasons) if self.reasons else (),
            draws_reasons=(text, *self.draws_reasons) if self.draws_reasons else (),
        )


def judge(
    weights: WeightSummary,
    check: EvidenceCheck | None = None,
    improper_sites: Sequence[str] = (),
    num_not_finite: int = 0,
    other_reasons: Sequence[Reason] = (),
    bridge: EvidenceCheck | None = None,
    rounding: float = 0.0,
    mixing: Mixing | None = None,
) -> Evidence:
    """Evidence and verdicts from the weights of fresh draws.

    Arguments:
        weights: What the weights of the draws say.
        check: Another estimate that must agree within three combined standard errors.
        improper_sites: Latent sites whose prior is flat: with them there is no evidence.
        num_not_finite: Draws whose log density was nan or ``+inf``.
        other_reasons: What else speaks against the results.
        bridge: Log evidence of short annealing from the flow's draws, which must agree too.
        rounding: What rounding adds to the log densities, nats; part of the standard error.
        mixing: How the chains of posterior draws mix.

    Returns:
        The evidence with its verdicts.

    Example:
        >>> import torch
        >>> from pyro_osds.stats.weights import summarize_weights
        >>> judge(summarize_weights(torch.full((1000,), -2.0))).reliable
        True
    """
    estimate, num_draws = weights.log_mean_weight, weights.num_draws
    std_error = math.hypot(weights.std_error, rounding)
    reasons = [
        *other_reasons,
        *_tail_reasons(weights.pareto_k, num_draws),
        *_ess_reasons(weights.ess, num_draws),
        *_mixing_reasons(mixing),
        *_not_finite_reasons(num_not_finite, num_draws),
        *_rounding_reasons(rounding),
        *([] if improper_sites else _error_reasons(std_error)),
        *_bridge_reasons(estimate, std_error, bridge),
    ]
    reasons += _check_reasons(estimate, std_error, check, healthy=not any(reason.evidence for reason in reasons))
    judged = Evidence(
        estimate, std_error, weights.elbo, weights.ess, weights.pareto_k, num_draws, True, (), check, bridge
    )

    return _with_verdicts(judged, reasons, tuple(improper_sites))


def _with_verdicts(judged: Evidence, reasons: Sequence[Reason], improper_sites: tuple[str, ...]) -> Evidence:
    """The numbers with their verdicts; an improper prior leaves no log evidence."""
    against_draws = tuple(reason.text for reason in reasons if reason.draws)
    against_evidence = tuple(reason.text for reason in reasons if reason.evidence)
    judged = replace(judged, log_integral=judged.log_evidence)
    if improper_sites:
        against_evidence = (_improper_text(improper_sites, healthy=not reasons), *against_evidence)
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
    from_flow: bool = True,
    num_flow_draws: int | None = None,
) -> Evidence:
    """Evidence and verdicts from annealed particles, for a flow whose weights did not suffice.

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
        from_flow: Whether the particles were annealed from the flow, or explored anew; these must not lie below what
            the stage before found.
        num_flow_draws: How many draws of the flow there were. Default: as many as the stage before has.
    """
    num_draws, estimate = len(found.z), found.log_evidence
    std_error = math.hypot(found.std_error, UNREACHED, rounding)
    # Where hardly any particle is lost between two temperatures, the shape of the tail is that of noise.
    equal = found.ess > EQUAL_SHARE * num_draws
    k = -math.inf if equal else found.pareto_k
    reasons = [
        *other_reasons,
        *_tail_reasons(k, num_draws),
        *_ess_reasons(found.ess, num_draws),
        *_move_reasons(found),
        *_mixing_reasons(mixing),
        *_not_finite_reasons(num_not_finite, judged.num_draws if num_flow_draws is None else num_flow_draws),
        *_rounding_reasons(rounding),
        # Replicates that disagree have said so already.
        *([] if improper_sites or found.std_error > MAX_STD_ERROR else _error_reasons(std_error)),
    ]
    healthy = not any(reason.evidence for reason in reasons)
    reasons += _check_reasons(estimate, std_error, judged.check, healthy)
    if not from_flow:
        reasons += _below_reasons(estimate, std_error, judged)
    numbers = replace(
        judged, log_evidence=estimate, std_error=std_error, ess=found.ess, pareto_k=k, num_draws=num_draws
    )
    if from_flow:
        numbers = replace(numbers, bridge=annealed_check(found))

    return _with_verdicts(numbers, reasons, tuple(improper_sites))


def _tail_reasons(k: float, num_draws: int) -> list[Reason]:
    threshold = pareto_k_threshold(num_draws)
    if not k > threshold:
        return []
    seen, bound = apart(k, threshold)

    return [
        Reason(
            f"pareto k is {seen}, above {bound} for {num_draws} draws: a few draws carry the estimate, the flow's "
            "tails are too light. Raise num_iterations, or reparametrise the model (a non-centred hierarchy, for "
            "instance)."
        )
    ]


def _ess_reasons(ess: float, num_draws: int) -> list[Reason]:
    if ess >= MIN_WEIGHT_ESS * num_draws:
        return []

    return [
        Reason(
            f"The effective sample size of the weights is {ess:.0f} of {num_draws} draws, less than "
            f"{MIN_WEIGHT_ESS:.0%}: the flow hardly meets the posterior. Raise num_iterations, or reparametrise the "
            "model."
        )
    ]


def _mixing_reasons(mixing: Mixing | None) -> list[Reason]:
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


def _not_finite_reasons(num_not_finite: int, num_draws: int) -> list[Reason]:
    if num_not_finite <= MAX_NOT_FINITE * num_draws:
        return []

    return [
        Reason(
            f"The log density was nan or +inf at {num_not_finite} of {num_draws} draws; they got weight zero. Look for "
            "an overflow, a division by zero or a factor that is not a number."
        )
    ]


def _rounding_reasons(rounding: float) -> list[Reason]:
    if rounding <= MAX_ROUNDING:
        return []

    return [
        Reason(
            f"Rounding adds {rounding:.2g} nats to the log density (standard deviation, measured at posterior draws). "
            "The model could not be run in double precision: look for numpy, .numpy() or a check of dtype in it. Pass "
            "data and constants as torch.float64, or leave out the constant part of a large log density.",
            mendable=False,
        )
    ]


def _error_reasons(std_error: float) -> list[Reason]:
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


def _improper_text(sites: Sequence[str], healthy: bool) -> str:
    names = ", ".join(map(repr, sites))
    draws = " The draws are not affected." if healthy else ""

    return (
        f"The prior of site {names} is improper, so the log evidence is undefined.{draws} Give the site a proper prior "
        "to compare models."
    )


def _move_reasons(found: Exploration) -> list[Reason]:
    """What speaks against the moves of the bridge's particles and the agreement of its replicates."""
    reasons = []
    if not found.acceptance >= MIN_ACCEPTANCE:
        reasons.append(
            f"The bridge's Hamiltonian moves were accepted with probability {found.acceptance:.2f} only: the density "
            "is too rough for them. Rescale or reparametrise the model."
        )
    if not found.settled:
        reasons.append(
            "The bridge's particles still drifted at the end: a part of the posterior is hard to reach. Reparametrise "
            "the model (a non-centred hierarchy, for instance)."
        )
    if not found.std_error <= MAX_STD_ERROR:
        seen, bound = apart(found.std_error, MAX_STD_ERROR)
        reasons.append(
            f"The bridge's replicates disagree: the standard error of their log evidence is {seen} nats, above "
            f"{bound}. Raise num_iterations or num_particles."
        )

    return [Reason(text) for text in reasons]


def _below_reasons(estimate: float, std_error: float, before: Evidence) -> list[Reason]:
    """What a bridge found and exploration did not: annealing that misses a part is too low, never too high."""
    bridge = before.bridge
    if bridge is None or not math.isfinite(bridge.log_evidence):
        return []
    distance = bridge.log_evidence - estimate
    if distance <= MAX_SIGMAS * math.hypot(std_error, CHECK_QUANTILE * max(bridge.std_error, MIN_BRIDGE_ERROR)):
        return []

    return [
        Reason(
            f"The log evidence {estimate:.3f} of annealing from the prior lies {distance:.2f} nats below that of "
            f"annealing from the flow, {bridge.log_evidence:.3f} +- {bridge.std_error:.3f}: a part of the posterior is "
            "missed. Raise num_particles, and repeat with another seed."
        )
    ]


def _bridge_reasons(estimate: float, std_error: float, bridge: EvidenceCheck | None) -> list[Reason]:
    """What a short bridge from the flow's draws says: its particles walk to where the flow proposes too little."""
    if bridge is None or not math.isfinite(bridge.log_evidence):
        return []
    distance = estimate - bridge.log_evidence
    if abs(distance) <= MAX_SIGMAS * math.hypot(std_error, CHECK_QUANTILE * max(bridge.std_error, MIN_BRIDGE_ERROR)):
        return []

    return [
        Reason(
            f"The log evidence {estimate:.3f} lies {abs(distance):.2f} nats {'below' if distance < 0 else 'above'} "
            f"that of short annealing from the flow's draws, {bridge.log_evidence:.3f} +- {bridge.std_error:.3f}: the "
            "flow misses a part of the posterior next to its draws. Raise num_iterations, or reparametrise the model."
        )
    ]


def _check_reasons(estimate: float, std_error: float, check: EvidenceCheck | None, healthy: bool) -> list[Reason]:
    """What the other estimate says; one that is too low does not speak against healthy weights.

    The mean weight is right on average, so by Markov's inequality it exceeds the evidence by *x* nats with probability
    exp(-x) at most, while annealing that missed a part of the posterior is always too low.
    """
    if check is None or not math.isfinite(check.log_evidence):
        return []
    combined = math.hypot(std_error, CHECK_QUANTILE * max(check.std_error, MIN_CHECK_ERROR))
    distance = estimate - check.log_evidence
    if abs(distance) <= MAX_SIGMAS * combined or (healthy and distance > 0):
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

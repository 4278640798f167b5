"""The log evidence and the verdicts as records: what was found, what it was held against, what speaks against it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pyro_osds.explore.particles import Exploration
from pyro_osds.explore.search.coverage import Coverage
from pyro_osds.runtime.text import Card
from pyro_osds.stats.thresholds import GOOD_PARETO_K, GOOD_WEIGHT_ESS, apart, pareto_k_threshold


class Reason(NamedTuple):
    """A sentence that speaks against a result: what was seen, and the cure.

    Arguments:
        text: The sentence.
        draws: Whether it speaks against the posterior draws.
        evidence: Whether it speaks against the log evidence.
        mendable: Whether more work could mend it; what is wrong with a model, no further stage cures.
        is_final: Whether what was sampled is no density, so that no stage is worth its time, and no other cure a cure.
    """

    text: str
    draws: bool = True
    evidence: bool = True
    mendable: bool = True
    is_final: bool = False


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
        refinement: Log evidence of short annealing from the flow, if the weights asked for it.
        draws_reliable: Whether nothing speaks against the posterior draws.
        draws_reasons: What speaks against them; empty when they are reliable.
        improper_sites: Latent sites with an improper prior: with one, there is no log evidence.
        log_integral: Log of the integral of prior times likelihood, as the model states them, nats: the log evidence
            or, with an improper prior, that up to an unknown constant.
        is_settled: Whether more work could mend nothing: all is well, or what is not lies in the model.
        searched: How the space was searched for parts that annealing lost; None where nobody looked.
        bridge_sampling: Log evidence by bridge sampling between draws that were given and those of the flow, if any.

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
        >>> type(evidence.card()).__name__, evidence.refinement is evidence.bridge is None
        ('Card', True)
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
    refinement: EvidenceCheck | None = None
    draws_reliable: bool = True
    draws_reasons: tuple[str, ...] = ()
    improper_sites: tuple[str, ...] = ()
    log_integral: float = math.nan
    is_settled: bool = True
    searched: Coverage | None = None
    bridge_sampling: EvidenceCheck | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A pickle of earlier versions has another name for the refinement.
        self.__dict__.update({"refinement" if name == "bridge" else name: value for name, value in state.items()})

    @property
    def bridge(self) -> EvidenceCheck | None:
        """The earlier name of :attr:`refinement`."""
        return self.refinement

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
        known = self.ess >= GOOD_WEIGHT_ESS * self.num_draws
        no_tail = "none: weights are nearly equal" if known else "unknown: there are too few draws to tell"
        given = (
            ("exploration", self.check),
            ("refinement", self.refinement),
            ("bridge sampling", self.bridge_sampling),
        )
        others = [(name, other) for name, other in given if other and math.isfinite(other.log_evidence)]
        constant = ", up to the constant of the improper prior" if self.improper_sites else ""
        rows = (
            ("log evidence", self._number),
            ("ELBO", f"{self.elbo:.4f} (a lower bound{constant})"),
            ("pareto k", tail if self.pareto_k > -math.inf else no_tail),
            ("ess", f"{self.ess:.0f} of {self.num_draws} draws"),
            *((name, f"{other.log_evidence:.4f} +- {other.std_error:.4f}") for name, other in others),
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

"""What training saw, for its own decisions, for reports and for plots."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from pyro_osds.stats.weights import WeightSummary


@dataclass
class History:
    """What training saw, one entry per step or per round.

    Arguments:
        loss: Negative mean log weight of each step's batch, nats; a warm-up without weights gives its own loss.
        terms: The parts of the loss by name, one value a step; nan where a step had no such part.
        step: Steps done at the end of each round.
        elbo: ELBO on fresh draws at the end of each round, nats.
        gap: Log evidence minus ELBO there, nats.
        ess: Effective sample size there, as a share of the draws.
        pareto_k: Pareto k there.
        num_skipped: Steps whose gradient was not finite, and that were left out.
        interrupted: Whether Ctrl-C ended training.
    """

    loss: list[float] = field(default_factory=list)
    terms: dict[str, list[float]] = field(default_factory=dict)
    step: list[int] = field(default_factory=list)
    elbo: list[float] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)
    ess: list[float] = field(default_factory=list)
    pareto_k: list[float] = field(default_factory=list)
    num_skipped: int = 0
    interrupted: bool = False

    @property
    def headline(self) -> str:
        """Iterations and the last ELBO, in words."""
        elbo = f"ELBO {self.elbo[-1]:.4f}" if self.elbo else "no ELBO"

        return f"{len(self.loss)} iterations, {elbo}"

    @property
    def why_skipped(self) -> str:
        """One sentence on steps that were skipped."""
        number, blank = len(self.loss), sum(math.isnan(loss) for loss in self.loss)
        if blank >= self.num_skipped:
            return (
                f"In {blank} of {number} training steps no draw had a positive posterior density, and nothing was "
                "learnt: the support ends where the posterior is densest, as that of b does where observations are "
                "Uniform(0, b). Weights leave out what lies beyond, and fewer draws are effective: see the verdict."
            )

        return (
            f"{self.num_skipped} of {number} training steps had a gradient that is not finite and were skipped; the "
            "log density may overflow near the posterior."
        )

    def record(self, loss: float, terms: dict[str, Tensor]) -> None:
        """Add a step: its loss, and the parts of it that it had."""
        for name in terms:
            self.terms.setdefault(name, [math.nan] * len(self.loss))
        for name, values in self.terms.items():
            values.append(terms[name].item() if name in terms else math.nan)
        self.loss.append(loss)

    def look(self, weights: WeightSummary, elbo: float) -> None:
        """Add what fresh draws say of the weights so far.

        Arguments:
            weights: What the weights of the draws say.
            elbo: The ELBO by the trainer's estimator, nats.
        """
        self.step.append(len(self.loss))
        self.elbo.append(elbo)
        self.gap.append(weights.log_mean_weight - elbo)
        self.ess.append(weights.ess / weights.num_draws)
        self.pareto_k.append(weights.pareto_k)

    @property
    def best_elbo(self) -> float:
        """The highest ELBO of any look, nats."""
        return max(self.elbo)

    def extend(self, other: History) -> None:
        """Append what another trainer saw later."""
        done = len(self.loss)
        for name in self.terms.keys() | other.terms.keys():
            before = self.terms.get(name, [math.nan] * done)
            self.terms[name] = before + other.terms.get(name, [math.nan] * len(other.loss))
        self.loss += other.loss
        self.step += [done + step for step in other.step]
        self.elbo += other.elbo
        self.gap += other.gap
        self.ess += other.ess
        self.pareto_k += other.pareto_k
        self.num_skipped += other.num_skipped
        self.interrupted |= other.interrupted

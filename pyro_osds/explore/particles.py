"""Particles on independent replicates: what annealing found, where it stands on its way there, and draws given."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_osds.stats.pareto import pareto_k
from pyro_osds.stats.weights import effective_sample_size

# Particles of each temperature that are kept.
_NUM_PASSED = 32


@dataclass(frozen=True)
class Exploration:
    """Equally weighted particles at the end of an annealing run, and what the run saw.

    Arguments:
        z: Particles, ``(num_replicates * num_particles, D)``.
        log_prob: Log density of the target at the particles.
        replicate_log_evidence: One estimate per replicate, nats, ``(num_replicates,)``.
        num_temperatures: Annealing steps taken.
        num_evaluations: Points at which the density was evaluated.
        acceptance: Mean acceptance of the last Hamiltonian moves.
        num_not_finite: Particles that were drawn from the reference with a density that is not finite.
        pareto_k: Largest shape of the tail of the weights of one change of temperature.
        ess: Smallest effective number of particles after one.
        start: The draws of the reference, ``(num_replicates * num_particles, D)``.
        settled: Whether the mean log density had stopped drifting at the end; true where nobody looked.
        num_undefined: Draws of the reference with a density that is nan or ``+inf``.
        undefined_at: One of them, ``(D,)``; empty where there is none.
        passed: Some of the particles at each temperature, ``(P, D)``.
        num_ancestors: Effective number of the draws of the reference whose descendants are left, in all replicates.
    """

    z: Tensor
    log_prob: Tensor
    replicate_log_evidence: Tensor
    num_temperatures: int
    num_evaluations: int
    acceptance: float
    num_not_finite: int
    pareto_k: float = -math.inf
    ess: float = math.nan
    start: Tensor = field(default_factory=lambda: torch.empty(0))
    settled: bool = True
    num_undefined: int = 0
    undefined_at: Tensor = field(default_factory=lambda: torch.empty(0))
    passed: Tensor = field(default_factory=lambda: torch.empty(0))
    num_ancestors: float = math.nan

    @property
    def log_evidence(self) -> float:
        """Log of the replicates' mean evidence, nats."""
        estimates = self.replicate_log_evidence.double()

        return (torch.logsumexp(estimates, 0) - math.log(len(estimates))).item()

    @property
    def std_error(self) -> float:
        """Standard error of ``log_evidence`` from the spread between replicates, nats."""
        estimates = self.replicate_log_evidence.double()
        ratios = (estimates - self.log_evidence).exp()

        return (ratios.std() / math.sqrt(len(ratios))).item()


@dataclass(frozen=True)
class GivenDraws:
    """Draws from elsewhere that stand for the posterior, such as those of NUTS or Stan, chain after chain.

    Arguments:
        z: Draws, ``(num_chains * S, D)``.
        num_chains: Chains, or blocks of draws that nobody has grouped by chain.
        total: How many draws there were before they were thinned.
        ignored: Names that came with them and are no latent sites.
        missed: Parts of the posterior that search found, and the draws lack, each with the share that is lacking.
        notes: What was seen of them, in sentences.
        is_grouped: Whether somebody has grouped them by chain.
        stuck: A sentence on chains that were left out, since they did not converge, or nothing.
        kept: Which of the chains are left, where some were left out.
    """

    z: Tensor
    num_chains: int
    total: int
    ignored: tuple[str, ...] = ()
    missed: tuple[Any, ...] = ()
    notes: tuple[str, ...] = ()
    is_grouped: bool = True
    stuck: str = ""
    kept: tuple[int, ...] = ()

    @property
    def by_chain(self) -> Tensor:
        """The draws by chain, ``(num_chains, S, D)``."""
        return self.z.view(self.num_chains, -1, self.z.shape[1])

    @property
    def fitted(self) -> Tensor:
        """The first half of each chain, which a base is fitted to, ``(N, D)``."""
        half = self.by_chain.shape[1] - self.by_chain.shape[1] // 2

        return self.by_chain[:, :half].flatten(0, 1)

    @property
    def held_out(self) -> Tensor:
        """The second half of each chain, which nothing was fitted to, ``(num_chains, N, D)``."""
        half = self.by_chain.shape[1] - self.by_chain.shape[1] // 2

        return self.by_chain[:, half:]


class MovesSoFar(NamedTuple):
    """What Hamiltonian moves have learnt, and what they took: step size, acceptance, evaluations, leapfrog steps."""

    step_size: float
    acceptance: float
    num_evaluations: int
    num_leapfrog: int = 0  # as the run was begun with; files of earlier versions have none


@dataclass(frozen=True)
class Annealing:
    """Where an annealing run stands: equally weighted particles at one temperature.

    Arguments:
        z: Particles, ``(num_replicates * num_particles, D)``.
        log_reference: Log density of the reference at the particles.
        log_target: Log density of the target at the particles.
        log_evidence: One estimate per replicate so far, nats, ``(num_replicates,)``.
        moves: What the moves have learnt.
        start: The draws of the reference.
        num_not_finite: How many of these have a density that is not finite.
        undefined: Those of them with a density that is nan or ``+inf``.
        beta: The inverse temperature.
        num_temperatures: Changes of temperature so far.
        pareto_k: Largest shape of the tail of the weights of one of them.
        ess: Smallest effective number of particles after one.
        num_rounds: Rounds of moves at the target.
        settled: Whether the mean log density has stopped drifting there.
        passed: Some of the particles at each temperature.
        ancestors: The draw of the reference that each particle descends from, ``(num_replicates * num_particles,)``.
        scores: Gradients of both log densities at the particles, ``(num_replicates * num_particles, D)`` each; empty
            where nobody knows them.
    """

    z: Tensor
    log_reference: Tensor
    log_target: Tensor
    log_evidence: Tensor
    moves: MovesSoFar
    start: Tensor
    num_not_finite: int
    undefined: Tensor
    beta: float = 0.0
    num_temperatures: int = 0
    pareto_k: float = -math.inf
    ess: float = math.inf
    num_rounds: int = 0
    settled: bool = False
    passed: tuple[Tensor, ...] = ()
    ancestors: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    scores: tuple[Tensor, ...] = ()

    @property
    def num_ancestors(self) -> float:
        """Effective number of draws of the reference whose descendants are left, summed over the replicates."""
        if not len(self.ancestors):
            return math.nan
        num_replicates = len(self.log_evidence)
        family = self.ancestors.bincount(minlength=len(self.z)).double().view(num_replicates, -1)

        return (family.sum(1).square() / family.square().sum(1)).sum().item()

    def descended(self, index: Tensor) -> Tensor:
        """The ancestors of particles that were resampled; an earlier version's journal has none.

        Arguments:
            index: Which particles these come from, ``(num_replicates * num_particles,)``.
        """
        return self.ancestors[index] if len(self.ancestors) else self.ancestors

    @property
    def log_ratio(self) -> Tensor:
        """Log target over reference, ``(num_replicates, num_particles)``."""
        return (self.log_target - self.log_reference).view(len(self.log_evidence), -1)

    def is_over(self, max_settling: int) -> bool:
        """Whether particles are at the target, and settled or given up on."""
        return self.beta == 1.0 and (self.settled or self.num_rounds >= max_settling)

    def weighed(self, log_weight: Tensor) -> Annealing:
        """The same with the evidence of a change of temperature, ``(num_replicates, num_particles)`` log weights."""
        change = torch.logsumexp(log_weight.double(), 1) - math.log(log_weight.shape[1])

        return replace(
            self,
            log_evidence=self.log_evidence + change,
            pareto_k=max(self.pareto_k, pareto_k(log_weight.flatten())),
            ess=min(self.ess, effective_sample_size(log_weight.flatten())),
        )

    def at_once(self) -> Annealing:
        """The rest of the way in one step, without any move: what is known of the target by now."""
        if self.beta == 1.0:
            return self
        log_weight = ((1.0 - self.beta) * self.log_ratio).nan_to_num(nan=-torch.inf)
        index = resample(log_weight)
        z, log_reference, log_target = (x[index] for x in (self.z, self.log_reference, self.log_target))

        return replace(
            self.weighed(log_weight),
            z=z,
            log_reference=log_reference,
            log_target=log_target,
            beta=1.0,
            settled=False,
            ancestors=self.descended(index),
            scores=tuple(score[index] for score in self.scores),
        )

    def result(self, settled: bool) -> Exploration:
        """What was found.

        Arguments:
            settled: Whether the particles came to rest, or nobody looked.
        """
        return Exploration(
            self.z,
            self.log_target,
            self.log_evidence,
            self.num_temperatures,
            self.moves.num_evaluations,
            self.moves.acceptance,
            self.num_not_finite,
            self.pareto_k,
            self.ess,
            self.start,
            settled,
            len(self.undefined),
            self.undefined[:1].flatten(),
            torch.cat(self.passed) if self.passed else self.z[:0],
            self.num_ancestors,
        )


def resample(log_weight: Tensor, num_draws: int | None = None) -> Tensor:
    """Systematic resampling on each replicate, ``(num_replicates, N)`` to flat indices ``(num_replicates * M,)``.

    Arguments:
        log_weight: Log weights of the particles.
        num_draws: How many are chosen on each replicate, *M*; default: as many as there are.
    """
    num_replicates, num_particles = log_weight.shape
    count = num_particles if num_draws is None else num_draws
    weights = torch.softmax(log_weight.double(), 1).nan_to_num(1.0 / num_particles)
    offset = torch.rand(num_replicates, 1, dtype=torch.float64, device=weights.device)
    grid = (torch.arange(count, dtype=torch.float64, device=weights.device) + offset) / count
    index = torch.searchsorted(weights.cumsum(1), grid).clamp(max=num_particles - 1)
    first = torch.arange(num_replicates, device=weights.device)[:, None] * num_particles

    return (index + first).reshape(-1)


def resample_by_stratum(log_weight: Tensor, stratum: Tensor) -> Tensor:
    """The same with the particles of a stratum side by side: each of them keeps its share but for one particle.

    Arguments:
        log_weight: Log weights of the particles, ``(num_replicates, N)``.
        stratum: The stratum of each particle, ``(num_replicates * N,)``.
    """
    order = stratum.view(log_weight.shape).argsort(dim=1, stable=True)
    index = resample(log_weight.gather(1, order))
    first = torch.arange(len(log_weight), device=order.device)[:, None] * log_weight.shape[1]

    return (order + first).reshape(-1)[index]


def some_of(z: Tensor) -> Tensor:
    """Some of the particles of a temperature; those of all temperatures show each part that was passed by.

    Arguments:
        z: The particles, ``(N, D)``.
    """
    return z[:: max(1, len(z) // _NUM_PASSED)]

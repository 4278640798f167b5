r"""Annealed sequential Monte Carlo: where is the posterior, how wide, in how many pieces, and how much of it is there.

Particles move from a reference density :math:`r` to the target :math:`\gamma` along

.. math:: \pi_\beta(z) \propto r(z)^{1-\beta}\, \gamma(z)^{\beta}, \qquad 0 = \beta_0 < \dots < \beta_T = 1,

by reweighting, resampling and Hamiltonian moves. Each increment is chosen so that the effective sample size falls to a
given share. Particles live on independent *replicates*: resampling stays on a replicate, so each of them gives its own
estimate of the log evidence, and their spread is the estimate's uncertainty.

Source: sequential Monte Carlo samplers (Del Moral, Doucet, Jasra 2006); the replicates serve as repeats.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_osds.explore.hmc import Points, chosen, kinetic_energy, leapfrog
from pyro_osds.runtime.progress import progress_bar
from pyro_osds.stats.moments import fisher_moments
from pyro_osds.stats.weights import effective_sample_size, pareto_k
from pyro_osds.target import NotFiniteError, Target, finite_log_prob, log_prob_and_score

# The least change of the inverse temperature. A log likelihood that differs by 1e12 nats between particles is left in
# many temperatures; a smaller bound would only lengthen the search for the increment.
_MIN_INCREMENT = 1e-12
# Halvings of the logarithm of the increment: 28 nats of it are told apart to 3e-8, far below what an increment matters.
_NUM_HALVINGS = 30
# A sum of increments that is as near to one is one: seven sevenths may sum up to a little less.
_ROUNDING = 1e-9
# The usual range for Hamiltonian moves is 0.65 to 0.8; higher ones waste evaluations, at lower ones few particles move.
_TARGET_ACCEPTANCE = 0.75
# Of the first step, in whitened coordinates: for a standard normal, D ** -1/4 keeps the acceptance the same in any
# dimension. It adapts at once, so the factor matters for the first temperatures only.
_FIRST_STEP = 0.9
# Step sizes spread over this factor, so that some suit the narrowest part of an uneven density. A larger one would
# spend most moves on steps that lead nowhere.
_STEP_SPREAD = 5.0
# Standard errors of the mean log density within which it does not drift. Less, and settled particles are often moved
# once more; more, and a slow drift is taken for noise.
_SETTLED_SIGMAS = 2.0
# Particles of each temperature that are kept: together they show each part that was passed by.
_NUM_PASSED = 32
_log = logging.getLogger(__name__)


class AnnealingPath(Protocol):
    """A pair of densities to anneal between."""

    dim: int

    def sample(self, num_draws: int, /) -> Tensor:
        """Draws of the reference, ``(num_draws, D)``."""
        ...

    def log_densities(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log reference and log target at a batch, ``(B, D) -> (B,), (B,)``."""
        ...


class PriorPath:
    """From a model's own prior to its posterior; one run of the model gives both densities.

    Arguments:
        target: A target with ``sample_prior`` and ``log_prior_and_likelihood``, such as ``ModelTarget``.
    """

    def __init__(self, target: Target) -> None:
        self.dim = target.dim
        self._target = target

    def sample(self, num_draws: int, /) -> Tensor:
        """Draws of the prior, ``(num_draws, D)``."""
        return self._target.sample_prior(num_draws)  # type: ignore[attr-defined]

    def log_densities(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log prior and log joint density, ``(B, D) -> (B,), (B,)``."""
        log_prior, log_likelihood = self._target.log_prior_and_likelihood(z)  # type: ignore[attr-defined]

        return log_prior, log_prior + log_likelihood


class ReferencePath:
    """From any normalised density that can be sampled, such as a fitted base, to the target.

    Arguments:
        target: The target.
        sample: Draws of the reference, ``n -> (n, D)``.
        log_prob: Log density of the reference, ``(B, D) -> (B,)``.
    """

    def __init__(self, target: Target, sample: Callable[[int], Tensor], log_prob: Callable[[Tensor], Tensor]) -> None:
        self.dim = target.dim
        self.sample = sample
        self._target = target
        self._log_prob = log_prob

    @classmethod
    def from_density(cls, target: Target, density: Distribution) -> ReferencePath:
        """From a density in the target's coordinates."""
        return cls(target, lambda count: density.sample(torch.Size([count])), density.log_prob)

    def log_densities(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log reference and log target, ``(B, D) -> (B,), (B,)``."""
        return self._log_prob(z), self._target.log_prob(z)


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


# The defaults were chosen on the accuracy cases. More particles find smaller modes; eight replicates are as few as give
# a standard error; a higher share, more moves or more steps make the evidence better and take longer in proportion.
def explore(
    path: AnnealingPath,
    num_particles: int = 64,
    num_replicates: int = 8,
    *,
    ess_threshold: float = 0.5,
    num_moves: int = 2,
    num_leapfrog: int = 5,
    min_temperatures: int = 1,
    max_temperatures: int = 100,
    max_settling: int = 20,
    phase: str = "Explore",
    strata: Callable[[Tensor], Tensor] | None = None,
) -> Exploration:
    """Anneal particles from the path's reference to its target.

    Arguments:
        path: Where to start and where to go.
        num_particles: Particles on each replicate.
        num_replicates: Independent repeats, run in one batch.
        ess_threshold: Share of the effective sample size that a change of temperature may leave.
        num_moves: Hamiltonian moves at each temperature.
        num_leapfrog: Leapfrog steps of a move.
        min_temperatures: Annealing steps at least. The tail of the weights of one step is lighter by that factor.
        max_settling: Rounds of moves at the target, at most, until the mean log density no longer drifts.
        max_temperatures: After this many the rest of the way is one step, so that a run always ends.
        phase: What the progress bar of a run calls it.
        strata: The part of the posterior that each particle is in, ``(N, D) -> (N,)``. Then each part keeps its share
            of the weight when particles are resampled, to within one particle.

    Returns:
        The particles at the target and the replicates' estimates of the log evidence.

    Raises:
        NotFiniteError: If the target is not finite at any particle of the reference.
    """
    num_total = num_particles * num_replicates
    largest_increment = 1.0 / min_temperatures
    z, log_reference, log_target, undefined = _start(path, num_total)
    start = z
    num_not_finite = int((~log_target.isfinite()).sum())
    mover = _HamiltonianMover(path, num_moves, num_leapfrog)
    log_evidence = z.new_zeros(num_replicates, dtype=torch.float64)
    beta, num_temperatures, k, ess = 0.0, 0, -math.inf, math.inf
    progress = progress_bar(1.0, phase)
    passed = [z[:: max(1, num_total // _NUM_PASSED)]]
    while beta < 1.0:
        log_ratio = (log_target - log_reference).view(num_replicates, num_particles)
        last = num_temperatures + 1 >= max_temperatures
        increment = 1.0 - beta if last else _increment(log_ratio, min(1.0 - beta, largest_increment), ess_threshold)
        log_weight = (increment * log_ratio).nan_to_num(nan=-torch.inf)
        log_evidence += torch.logsumexp(log_weight.double(), 1) - math.log(num_particles)
        k, ess = max(k, pareto_k(log_weight.flatten())), min(ess, effective_sample_size(log_weight.flatten()))
        before, beta = beta, 1.0 if beta + increment > 1.0 - _ROUNDING else beta + increment
        index = _resample(log_weight) if strata is None else _resample_by_stratum(log_weight, strata(z))
        z, log_reference, log_target = mover.move(z[index], log_reference[index], log_target[index], beta)
        num_temperatures += 1
        passed.append(z[:: max(1, num_total // _NUM_PASSED)])
        progress.set_postfix(beta=f"{beta:.2g}", temperatures=str(num_temperatures))
        progress.update(beta - before)
        _log.debug("%s: beta %.3g, acceptance %.2f", phase, beta, mover.acceptance)
    z, log_target, settled = _settle(mover, z, log_reference, log_target, max_settling)
    progress.close()
    _log.debug("%s: %d temperatures, settled %s", phase, num_temperatures, settled)

    return Exploration(
        z,
        log_target,
        log_evidence,
        num_temperatures,
        mover.num_evaluations + num_total,
        mover.acceptance,
        num_not_finite,
        k,
        ess,
        start,
        settled,
        len(undefined),
        undefined[:1].flatten(),
        torch.cat(passed),
    )


def _settle(
    mover: _HamiltonianMover, z: Tensor, log_reference: Tensor, log_target: Tensor, max_settling: int
) -> tuple[Tensor, Tensor, bool]:
    """Keep moving at the target until the mean log density stops drifting: a fast annealing leaves particles behind."""
    settled = max_settling == 0
    for _ in range(max_settling):
        before = log_target
        z, log_reference, log_target = mover.move(z, log_reference, log_target, 1.0)
        drift = (log_target - before).double()
        settled = bool(drift.mean().abs() < _SETTLED_SIGMAS * (log_target.double().var() / len(drift)).sqrt())
        if settled:
            break

    return z, log_target, settled


def _start(path: AnnealingPath, num_total: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draws of the reference and their densities, zero where the target is not finite; and those where it is nan."""
    given = z = path.sample(num_total)
    usable = z.isfinite().all(-1)
    # A point that overflowed has no coordinates to move from: it takes the place of a usable one, with weight zero.
    z = torch.where(usable[:, None], z, z.new_zeros(()))
    with torch.no_grad():
        log_reference, log_target = path.log_densities(z)
    undefined = given[given.isnan().any(-1) | (usable & (log_target.isnan() | (log_target == torch.inf)))]
    usable = usable & log_reference.isfinite() & log_target.isfinite()
    if not usable.any():
        raise NotFiniteError(
            f"The log density is not finite at any of {num_total} starting points (for instance "
            f"{log_target[0].item()} at {[round(value, 3) for value in z[0].tolist()][:5]}).",
            z[0],
        )

    return z, torch.where(usable, log_reference, 0.0), torch.where(usable, log_target, -torch.inf), undefined


def _increment(log_ratio: Tensor, remaining: float, ess_threshold: float) -> float:
    """The largest increment of the inverse temperature that keeps the replicates' mean share of effective particles."""

    def share(increment: float) -> float:
        log_weight = increment * log_ratio
        normalised = log_weight - torch.logsumexp(log_weight, 1, keepdim=True)
        share_of_alive = torch.exp(-torch.logsumexp(2 * normalised, 1)) / log_ratio.isfinite().sum(1).clamp(min=1)
        return share_of_alive.nan_to_num(0.0).mean().item()

    if share(remaining) >= ess_threshold:
        return remaining
    low, high = math.log(_MIN_INCREMENT), math.log(remaining)
    for _ in range(_NUM_HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if share(math.exp(middle)) >= ess_threshold else (low, middle)

    return math.exp(low)


def _resample(log_weight: Tensor) -> Tensor:
    """Systematic resampling on each replicate, ``(num_replicates, N)`` to flat indices ``(num_replicates * N,)``."""
    num_replicates, num_particles = log_weight.shape
    weights = torch.softmax(log_weight.double(), 1).nan_to_num(1.0 / num_particles)
    offset = torch.rand(num_replicates, 1, dtype=torch.float64, device=weights.device)
    grid = (torch.arange(num_particles, dtype=torch.float64, device=weights.device) + offset) / num_particles
    index = torch.searchsorted(weights.cumsum(1), grid).clamp(max=num_particles - 1)
    first = torch.arange(num_replicates, device=weights.device)[:, None] * num_particles

    return (index + first).reshape(-1)


def _resample_by_stratum(log_weight: Tensor, stratum: Tensor) -> Tensor:
    """The same with the particles of a stratum side by side: each of them keeps its share but for one particle."""
    order = stratum.view(log_weight.shape).argsort(dim=1, stable=True)
    index = _resample(log_weight.gather(1, order))
    first = torch.arange(len(log_weight), device=order.device)[:, None] * log_weight.shape[1]

    return (order + first).reshape(-1)[index]


class _HamiltonianMover:
    """Hamiltonian moves of all particles at once, in coordinates whitened by the particles and their scores."""

    def __init__(self, path: AnnealingPath, num_moves: int, num_leapfrog: int) -> None:
        self.path = path
        self.num_moves = num_moves
        self.num_leapfrog = num_leapfrog
        self.step_size = _FIRST_STEP * path.dim**-0.25
        self.acceptance = math.nan
        self.num_evaluations = 0
        self.scale_tril = torch.empty(0)

    def move(self, z: Tensor, log_reference: Tensor, log_target: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
        """Metropolised Hamiltonian moves that leave the tempered density unchanged."""
        points = self._evaluate(z, beta)
        self.scale_tril = fisher_moments(z, points.score)[1]
        for _ in range(self.num_moves):
            proposal, log_ratio = self._propose(points, beta)
            probability = log_ratio.clamp(max=0.0).exp().nan_to_num(0.0)
            accept = torch.rand_like(probability) < probability
            points = chosen(accept, proposal, points)
            self.acceptance = probability.mean().item()
            # An acceptance of zero halves the step, one of one makes it longer by a quarter.
            self.step_size *= math.exp(self.acceptance - _TARGET_ACCEPTANCE)
        log_reference, log_target = points.parts

        return points.z, log_reference, log_target

    def _evaluate(self, z: Tensor, beta: float) -> Points:
        parts: list[Tensor] = []

        def tempered(points: Tensor) -> Tensor:
            log_reference, log_target = self.path.log_densities(points)
            parts[:] = [log_reference.detach(), finite_log_prob(log_target.detach())]
            # At beta = 1 the reference is left out altogether: its infinities have no part in the target.
            return log_target if beta == 1.0 else (1.0 - beta) * log_reference + beta * log_target

        log_prob, score = log_prob_and_score(tempered, z)
        self.num_evaluations += len(z)

        return Points(z, log_prob, score, tuple(parts))

    def _propose(self, points: Points, beta: float) -> tuple[Points, Tensor]:
        momentum = torch.randn_like(points.z)
        step_size = self.step_size * _STEP_SPREAD ** -torch.rand_like(points.log_prob)[:, None]
        energy = kinetic_energy(momentum) - points.log_prob
        proposal, momentum = leapfrog(
            lambda z: self._evaluate(z, beta), points, momentum, step_size, self.num_leapfrog, self.scale_tril
        )

        return proposal, energy - (kinetic_energy(momentum) - proposal.log_prob)

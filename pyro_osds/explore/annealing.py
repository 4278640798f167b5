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
from contextlib import closing
from dataclasses import replace

import torch
from torch import Tensor

from pyro_osds.explore.hmc import Points
from pyro_osds.explore.journal import Journal
from pyro_osds.explore.moves import HamiltonianMover
from pyro_osds.explore.particles import (
    Annealing,
    Exploration,
    MovesSoFar,
    resample,
    resample_by_stratum,
    some_of,
)
from pyro_osds.explore.paths import AnnealingPath
from pyro_osds.runtime.progress import progress_bar
from pyro_osds.target import NotFiniteError

# The least change of the inverse temperature. A log likelihood that differs by 1e12 nats between particles is left in
# many temperatures; a smaller bound would only lengthen the search for the increment.
_MIN_INCREMENT = 1e-12
# Halvings of the logarithm of the increment: 28 nats of it are told apart to 3e-8, far below what an increment matters.
_NUM_HALVINGS = 30
# A sum of increments that is as near to one is one: seven sevenths may sum up to a little less.
_ROUNDING = 1e-9
# Standard errors of the mean log density within which it does not drift. Less, and settled particles are often moved
# once more; more, and a slow drift is taken for noise.
_SETTLED_SIGMAS = 2.0
# With a smaller share of usable draws there are more of them: particles that begin at a few points stay alike.
_RARE = 0.02
_log = logging.getLogger(__name__)


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
    max_leapfrog: int = 0,
    num_crossovers: int = 0,
    min_temperatures: int = 1,
    max_temperatures: int = 100,
    max_settling: int = 20,
    phase: str = "Explore",
    journal: Journal | None = None,
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
        max_leapfrog: They are doubled up to so many where moves leave particles behind: stiff bonds make steps short,
            and what is soft takes many of them. Default: never.
        num_crossovers: Rounds of crossovers before the moves of each temperature: where modes multiply, particles trade
            coordinates that no move could change.
        min_temperatures: Annealing steps at least. The tail of the weights of one step is lighter by that factor.
        max_settling: Rounds of moves at the target, at most, until the mean log density no longer drifts.
        max_temperatures: After this many the rest of the way is one step, so that a run always ends.
        phase: What the progress bar of a run calls it.
        journal: Where each temperature is noted, so that a run that was stopped can be taken up again.
        strata: The part of the posterior that each particle is in, ``(N, D) -> (N,)``. Then each part keeps its share
            of the weight when particles are resampled, to within one particle.

    Returns:
        The particles at the target and the replicates' estimates of the log evidence.

    Raises:
        NotFiniteError: If the target is not finite at any particle of the reference.
    """
    journal = journal or Journal()
    mover = HamiltonianMover(path, num_moves, num_leapfrog, journal, max_leapfrog, num_crossovers, num_replicates)

    def run() -> Exploration:
        at = journal.take_up()
        if at is None:
            at = _start(path, num_particles, num_replicates, mover.state())
        mover.restore(at.moves)
        with closing(progress_bar(1.0, phase)) as progress:
            progress.update(at.beta)
            while not at.is_over(max_settling):
                journal.note(at)
                before = at.beta
                if before < 1.0:
                    last = at.num_temperatures + 1 >= max_temperatures
                    increment = (0.0, 1.0) if last else (ess_threshold, 1.0 / min_temperatures)
                    at = _cooled(at, mover, *increment, strata)
                    _log.debug("%s: beta %.3g, acceptance %.2f", phase, at.beta, mover.acceptance)
                else:
                    at = _settled(at, mover)
                progress.set_postfix(beta=f"{at.beta:.2g}", temperatures=str(at.num_temperatures))
                progress.update(at.beta - before)
        _log.debug("%s: %d temperatures, settled %s", phase, at.num_temperatures, at.settled)

        return at.result(settled=at.settled or max_settling == 0)

    return journal.part(run)


def moved(path: AnnealingPath, z: Tensor, num_moves: int, num_leapfrog: int = 5) -> tuple[Tensor, Tensor]:
    """Particles at the target moved on, which leaves their distribution as it is and parts copies of one particle.

    Arguments:
        path: Any path that ends at the target.
        z: Particles, ``(N, D)``.
        num_moves: Rounds of Hamiltonian moves, each in the scale of the particles.
        num_leapfrog: Leapfrog steps of a move.

    Returns:
        The particles, ``(N, D)``, and their log densities, ``(N,)``.
    """
    mover = HamiltonianMover(path, 1, num_leapfrog)
    points = Points(z, z.new_zeros(len(z)), torch.zeros_like(z))
    for _ in range(num_moves):
        points = mover.move(points.z, points.parts, 1.0)

    return points.z, points.log_prob


def _cooled(
    at: Annealing,
    mover: HamiltonianMover,
    ess_threshold: float,
    largest_increment: float,
    strata: Callable[[Tensor], Tensor] | None,
) -> Annealing:
    """One temperature further: reweighted, resampled and moved."""
    log_ratio, remaining = at.log_ratio, 1.0 - at.beta
    increment = min(remaining, largest_increment)
    if ess_threshold > 0.0:
        increment = _increment(log_ratio, increment, ess_threshold)
    log_weight = (increment * log_ratio).nan_to_num(nan=-torch.inf)
    index = resample(log_weight) if strata is None else resample_by_stratum(log_weight, strata(at.z))
    beta = 1.0 if at.beta + increment > 1.0 - _ROUNDING else at.beta + increment
    before, known = (at.log_reference[index], at.log_target[index]), ()
    if at.scores:
        known = (*before, *(score[index] for score in at.scores))
    z, _, _, (log_reference, log_target, *scores) = mover.moved_on(at.z[index], before, known, beta)

    return replace(
        at.weighed(log_weight),
        z=z,
        log_reference=log_reference,
        log_target=log_target,
        scores=tuple(scores),
        beta=beta,
        num_temperatures=at.num_temperatures + 1,
        moves=mover.state(),
        passed=(*at.passed, some_of(z)),
        ancestors=at.descended(index),
    )


def _settled(at: Annealing, mover: HamiltonianMover) -> Annealing:
    """One more round of moves at the target: a fast annealing leaves particles behind, and they drift."""
    known = (at.log_reference, at.log_target, *at.scores) if at.scores else ()
    z, _, _, (log_reference, log_target, *scores) = mover.move(at.z, known, 1.0)
    drift = (log_target - at.log_target).double()
    settled = bool(drift.mean().abs() < _SETTLED_SIGMAS * (log_target.double().var() / len(drift)).sqrt())

    return replace(
        at,
        z=z,
        log_reference=log_reference,
        log_target=log_target,
        scores=tuple(scores),
        num_rounds=at.num_rounds + 1,
        settled=settled,
        moves=mover.state(),
    )


def _start(path: AnnealingPath, num_particles: int, num_replicates: int, moves: MovesSoFar) -> Annealing:
    """Draws of the reference and their densities, zero where the target is not finite.

    Where hardly any draw has a density, more are made, and those that have one take the places of the others. On each
    replicate, the share of them is the first factor of its evidence.
    """
    num_total = num_particles * num_replicates
    z, log_reference, log_target, usable, undefined = _drawn(path, num_total)
    log_evidence = z.new_zeros(num_replicates, dtype=torch.float64)
    given, num_drawn, num_bad = z, num_total, int((~usable).sum())
    if usable.sum() < _RARE * num_total:
        drawn = [(z, log_reference, log_target, usable)]
        while sum(int(part[3].sum()) for part in drawn) < num_total and len(drawn) < path.patience:
            drawn.append(_drawn(path, num_total)[:4])
        num_drawn = len(drawn) * num_total
        # Of every batch each replicate has its own draws, in their order.
        columns = [torch.stack(parts).unflatten(1, (num_replicates, -1)) for parts in zip(*drawn, strict=True)]
        all_usable = columns[3].transpose(0, 1).flatten(1)
        log_evidence = (all_usable.double().mean(1)).log()
        if not all_usable.any():
            raise _not_finite(num_drawn, z, log_target)
        index = _places(all_usable, num_particles)
        z, log_reference, log_target = (part.transpose(0, 1).flatten(0, 2)[index] for part in columns[:3])
        given, usable = z, torch.ones_like(log_target, dtype=torch.bool)
    log_reference, log_target = torch.where(usable, log_reference, 0.0), torch.where(usable, log_target, -torch.inf)

    return Annealing(
        z,
        log_reference,
        log_target,
        log_evidence,
        moves._replace(num_evaluations=num_drawn),
        start=given,
        num_not_finite=num_bad,
        undefined=undefined,
        passed=(some_of(z),),
        ancestors=torch.arange(num_total, device=z.device),
    )


def _drawn(path: AnnealingPath, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Draws of the reference, both densities, which of them are usable, and those whose density is no number."""
    given = z = path.sample(count)
    usable = z.isfinite().all(-1)
    # A point that overflowed has no coordinates to move from: it takes the place of a usable one, with weight zero.
    z = torch.where(usable[:, None], z, z.new_zeros(()))
    with torch.no_grad():
        log_reference, log_target = path.log_densities(z)
    undefined = given[given.isnan().any(-1) | (usable & (log_target.isnan() | (log_target == torch.inf)))]

    return z, log_reference, log_target, usable & log_reference.isfinite() & log_target.isfinite(), undefined


def _places(usable: Tensor, num_particles: int) -> Tensor:
    """Flat indices of usable draws for the particles of each replicate, in turn; one that has none borrows them.

    Arguments:
        usable: Which draws of each replicate are usable, ``(num_replicates, M)``.
        num_particles: Particles of each.
    """
    everywhere = usable.flatten().nonzero()[:, 0]
    turn = torch.arange(num_particles, device=usable.device)
    places = []
    for replicate, row in enumerate(usable):
        own = row.nonzero()[:, 0] + replicate * usable.shape[1]
        own = own if len(own) else everywhere
        places.append(own[turn % len(own)])

    return torch.cat(places)


def _not_finite(num_drawn: int, z: Tensor, log_target: Tensor) -> NotFiniteError:
    return NotFiniteError(
        f"The log density is not finite at any of {num_drawn} starting points (for instance "
        f"{log_target[0].item()} at {[round(value, 3) for value in z[0].tolist()][:5]}).",
        z[0],
    )


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

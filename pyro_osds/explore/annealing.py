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
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace

import torch
from torch import Tensor

from pyro_osds.explore.hmc import Points, chosen, kinetic_energy, leapfrog
from pyro_osds.explore.journal import Journal
from pyro_osds.explore.particles import (
    Annealing,
    Exploration,
    MovesSoFar,
    resample,
    resample_by_stratum,
    some_of,
)
from pyro_osds.explore.paths import AnnealingPath
from pyro_osds.runtime.clock import check_time
from pyro_osds.runtime.progress import progress_bar
from pyro_osds.stats.moments import fisher_moments
from pyro_osds.target import NotFiniteError, finite_log_prob, log_prob_and_score

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
# Standard errors and nats by which the mean log density still drifts under the moves of one temperature, from which on
# they are too short. Less is noise, and matters little: particles that stay a tenth of a nat behind at each of thirty
# temperatures, each a third colder than the last, lose a nat in all.
_DRIFT_SIGMAS, _DRIFT = 4.0, 0.1
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
    mover = _HamiltonianMover(path, num_moves, num_leapfrog, journal, max_leapfrog)

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
    mover = _HamiltonianMover(path, 1, num_leapfrog)
    points = Points(z, z.new_zeros(len(z)), torch.zeros_like(z))
    for _ in range(num_moves):
        points = mover.move(points.z, points.parts, 1.0)

    return points.z, points.log_prob


def _cooled(
    at: Annealing,
    mover: _HamiltonianMover,
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


def _settled(at: Annealing, mover: _HamiltonianMover) -> Annealing:
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


def _drifts(before: Sequence[Tensor], after: Sequence[Tensor], beta: float) -> bool:
    """Whether moves changed the mean tempered log density, which they leave as it is where particles are settled."""

    def tempered(log_reference: Tensor, log_target: Tensor) -> Tensor:
        return log_target if beta == 1.0 else (1.0 - beta) * log_reference + beta * log_target

    change = (tempered(*after) - tempered(*before)).double()
    change = change[change.isfinite()]
    mean, error = change.mean().abs(), change.std() / math.sqrt(max(len(change), 1))

    return bool((mean > _DRIFT) & (mean > _DRIFT_SIGMAS * error))


class _HamiltonianMover:
    """Hamiltonian moves of all particles at once, in coordinates whitened by the particles and their scores.

    Parts of points are both log densities, ``(N,)``, and both scores, ``(N, D)``.
    """

    def __init__(
        self,
        path: AnnealingPath,
        num_moves: int,
        num_leapfrog: int,
        journal: Journal | None = None,
        max_leapfrog: int = 0,
    ) -> None:
        self.path = path
        self.journal = journal or Journal()
        self.num_moves = num_moves
        self.num_leapfrog = num_leapfrog
        self.max_leapfrog = max_leapfrog
        self.step_size = _FIRST_STEP * path.dim**-0.25
        self.acceptance = math.nan
        self.num_evaluations = 0
        self.scale_tril = torch.empty(0)

    def state(self) -> MovesSoFar:
        """What further moves depend on."""
        return MovesSoFar(self.step_size, self.acceptance, self.num_evaluations, self.num_leapfrog)

    def restore(self, state: MovesSoFar) -> None:
        """Go on where another mover stood."""
        self.step_size, self.acceptance, self.num_evaluations, *num_leapfrog = state
        self.num_leapfrog = next(iter(num_leapfrog), 0) or self.num_leapfrog

    def moved_on(self, z: Tensor, before: tuple[Tensor, Tensor], known: tuple[Tensor, ...], beta: float) -> Points:
        """Moves at one temperature, again and with twice the leapfrog steps while particles are left behind."""
        points = self.move(z, known, beta)
        while 2 * self.num_leapfrog <= self.max_leapfrog and _drifts(before, points.parts[:2], beta):
            self.num_leapfrog *= 2
            before = (points.parts[0], points.parts[1])
            points = self.move(points.z, points.parts, beta)

        return points

    def move(self, z: Tensor, known: tuple[Tensor, ...], beta: float) -> Points:
        """Metropolised Hamiltonian moves that leave the tempered density unchanged; what is known are all ``parts``."""
        # Scores that the last move ended with are those of the next temperature, weighed otherwise.
        points = self._tempered(z, known, beta) if known else self._evaluate(z, beta, is_end=True)
        self.scale_tril = fisher_moments(z, points.score)[1]
        for _ in range(self.num_moves):
            proposal, log_ratio = self._propose(points, beta)
            probability = log_ratio.clamp(max=0.0).exp().nan_to_num(0.0)
            accept = torch.rand_like(probability) < probability
            points = chosen(accept, proposal, points)
            self.acceptance = probability.mean().item()
            # An acceptance of zero halves the step, one of one makes it longer by a quarter.
            self.step_size *= math.exp(self.acceptance - _TARGET_ACCEPTANCE)

        return points

    def _evaluate(self, z: Tensor, beta: float, is_end: bool) -> Points:
        self.num_evaluations += len(z)
        evaluate = self._evaluated_apart if is_end and beta < 1.0 else self._evaluated

        return self.journal.evaluation(lambda: evaluate(z, beta))

    def _evaluated(self, z: Tensor, beta: float) -> Points:
        """Points within a move, or at the target: one score, that of the tempered density."""
        parts: list[Tensor] = []

        def tempered(points: Tensor) -> Tensor:
            log_reference, log_target = self.path.log_densities(points)
            parts[:] = [log_reference.detach(), finite_log_prob(log_target.detach())]
            # At beta = 1 the reference is left out altogether: its infinities have no part in the target.
            return log_target if beta == 1.0 else (1.0 - beta) * log_reference + beta * log_target

        log_prob, score = log_prob_and_score(tempered, z)

        return Points(z, log_prob, score, (*parts, score, score))

    def _evaluated_apart(self, z: Tensor, beta: float) -> Points:
        """Points where a move ends, with the scores of both densities: both are needed at any other temperature."""
        check_time()
        with torch.enable_grad():
            points = z.detach().requires_grad_()
            densities = self.path.log_densities(points)
            scores = [
                torch.autograd.grad(density.sum(), points, retain_graph=True, materialize_grads=True)[0]
                if density.requires_grad
                else torch.zeros_like(z)
                for density in densities
            ]
        log_reference, log_target = (density.detach() for density in densities)

        return self._tempered(z, (log_reference, finite_log_prob(log_target), *scores), beta)

    def _tempered(self, z: Tensor, known: tuple[Tensor, ...], beta: float) -> Points:
        """Points with a log density and a score that are made of what is known of both densities."""
        log_reference, log_target, score_of_reference, score = known
        log_prob = log_target
        if beta < 1.0:
            log_prob = finite_log_prob((1.0 - beta) * log_reference + beta * log_target)
            score = (1.0 - beta) * score_of_reference + beta * score
        score = score.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) * (log_prob > -torch.inf)[:, None]

        return Points(z, log_prob, score, known)

    def _propose(self, points: Points, beta: float) -> tuple[Points, Tensor]:
        momentum = torch.randn_like(points.z)
        step_size = self.step_size * _STEP_SPREAD ** -torch.rand_like(points.log_prob)[:, None]
        energy = kinetic_energy(momentum) - points.log_prob
        left = iter(range(self.num_leapfrog - 1, -1, -1))

        def evaluate(z: Tensor) -> Points:
            return self._evaluate(z, beta, is_end=next(left) == 0)

        proposal, momentum = leapfrog(evaluate, points, momentum, step_size, self.num_leapfrog, self.scale_tril)

        return proposal, energy - (kinetic_energy(momentum) - proposal.log_prob)

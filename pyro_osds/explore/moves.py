"""Hamiltonian moves of particles at one temperature: in the scale of the particles, with steps that adapt.

Moves leave the tempered density as it is. Where they change its mean over particles all the same, particles were left
behind by the last change of temperature, and longer moves are made, if they may be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_osds.explore.hmc import Points, chosen, kinetic_energy, leapfrog
from pyro_osds.explore.journal import Journal
from pyro_osds.explore.particles import MovesSoFar
from pyro_osds.explore.paths import AnnealingPath
from pyro_osds.runtime.clock import check_time
from pyro_osds.stats.moments import fisher_moments
from pyro_osds.target import finite_log_prob, log_prob_and_score

# The usual range for Hamiltonian moves is 0.65 to 0.8; higher ones waste evaluations, at lower ones few particles move.
_TARGET_ACCEPTANCE = 0.75
# Of the first step, in whitened coordinates: for a standard normal, D ** -1/4 keeps the acceptance the same in any
# dimension. It adapts at once, so the factor matters for the first temperatures only.
_FIRST_STEP = 0.9
# Step sizes spread over this factor, so that some suit the narrowest part of an uneven density. A larger one would
# spend most moves on steps that lead nowhere.
_STEP_SPREAD = 5.0
# Standard errors and nats by which the mean log density still drifts under the moves of one temperature, from which on
# they are too short. Less is noise, and matters little: particles that stay a tenth of a nat behind at each of thirty
# temperatures, each a third colder than the last, lose a nat in all.
_DRIFT_SIGMAS, _DRIFT = 4.0, 0.1


def _drifts(before: Sequence[Tensor], after: Sequence[Tensor], beta: float) -> bool:
    """Whether moves changed the mean tempered log density, which they leave as it is where particles are settled."""

    def tempered(log_reference: Tensor, log_target: Tensor) -> Tensor:
        return log_target if beta == 1.0 else (1.0 - beta) * log_reference + beta * log_target

    change = (tempered(*after) - tempered(*before)).double()
    change = change[change.isfinite()]
    mean, error = change.mean().abs(), change.std() / math.sqrt(max(len(change), 1))

    return bool((mean > _DRIFT) & (mean > _DRIFT_SIGMAS * error))


class HamiltonianMover:
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

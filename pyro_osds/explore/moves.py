r"""Moves of particles at one temperature: Hamiltonian ones in their scale, with steps that adapt, and crossovers.

Moves leave the tempered density as it is. Where they change its mean over particles all the same, particles were left
behind by the last change of temperature, and longer moves are made, if they may be.

A crossover trades some coordinates *S* of two particles of a replicate, and leaves the density of all of them together
as it is: with :math:`x', y'` the particles after the trade, it is accepted with probability

.. math:: \min\Big(1, \frac{\pi(x')\, \pi(y')}{\pi(x)\, \pi(y)}\Big), \qquad
    x'_S = y_S,\ y'_S = x_S, \quad x'_i = x_i,\ y'_i = y_i \text{ elsewhere}.

Where modes multiply, as wells in many coordinates do, no Hamiltonian move walks from one to another, and particles that
descend from a few share all their wells. Traded, the wells of one coordinate know nothing of those of another.

Source: evolutionary Monte Carlo, Liang and Wong 2000.
"""

from __future__ import annotations

import math

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
# Share of the coordinates that a crossover trades, at first and at most: one half mixes most. Where fewer or more
# trades than these are accepted, the next ones are smaller or larger by the factor; where hardly one of a single
# coordinate is, no colder temperature accepts more.
_TRADED, _FEW_TRADES, _MANY_TRADES, _TRADE_STEP, _NO_TRADES = 0.5, 0.2, 0.5, 1.5, 0.05


def _tempered(log_reference: Tensor, log_target: Tensor, beta: float) -> Tensor:
    """Tempered log densities, ``(N,)``; at the target the infinities of the reference have no part in them."""
    return log_target if beta == 1.0 else (1.0 - beta) * log_reference + beta * log_target


def _drifts(before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor], beta: float) -> bool:
    """Whether moves changed the mean tempered log density, which they leave as it is where particles are settled."""
    change = (_tempered(*after, beta) - _tempered(*before, beta)).double()
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
        num_crossovers: int = 0,
        num_replicates: int = 1,
    ) -> None:
        self.path = path
        self.journal = journal or Journal()
        self.num_moves = num_moves
        self.num_leapfrog = num_leapfrog
        self.max_leapfrog = max_leapfrog
        self.num_crossovers = num_crossovers
        self.num_replicates = num_replicates
        self.traded = _TRADED
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
        if self.num_crossovers:
            (z, before), known = self._crossed(z, before, beta), ()
        points = self.move(z, known, beta)
        while 2 * self.num_leapfrog <= self.max_leapfrog and _drifts(before, (points.parts[0], points.parts[1]), beta):
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

    def _crossed(self, z: Tensor, before: tuple[Tensor, Tensor], beta: float) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Particles after crossovers, and both log densities there."""
        for _ in range(self.num_crossovers):
            first, second = self._pairs(z)
            pair = torch.cat([first, second])
            if not self.num_crossovers or not len(pair) or z.shape[1] < 2:
                break
            # A fixed number of coordinates, at random: neither none nor all, since such trades are always accepted.
            count = max(1, round(self.traded * z.shape[1]))
            traded = torch.rand(len(first), z.shape[1], device=z.device).argsort(1).argsort(1) < count
            new = torch.cat([torch.where(traded, z[second], z[first]), torch.where(traded, z[first], z[second])])
            self.num_evaluations += len(new)
            with torch.no_grad():
                log_reference, log_target = self.path.log_densities(new)
            after = (log_reference, finite_log_prob(log_target))
            change = _tempered(*after, beta) - _tempered(before[0][pair], before[1][pair], beta)
            ratio = change.double()[: len(first)] + change.double()[len(first) :]
            probability = ratio.clamp(max=0.0).exp().nan_to_num(0.0)
            accept = (torch.rand_like(probability) < probability).repeat(2)
            moved = pair[accept]
            z = z.index_copy(0, moved, new[accept])
            before = (
                before[0].index_copy(0, moved, after[0][accept].to(before[0])),
                before[1].index_copy(0, moved, after[1][accept].to(before[1])),
            )
            self._adapt_trades(probability.mean().item())

        return z, before

    def _pairs(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs of particles, each of one replicate and none in two pairs."""
        places = torch.arange(len(z), device=z.device).view(self.num_replicates, -1)
        order = places.gather(1, torch.rand(places.shape, device=z.device).argsort(1))
        half = order.shape[1] // 2

        return order[:, :half].flatten(), order[:, half : 2 * half].flatten()

    def _adapt_trades(self, acceptance: float) -> None:
        """Trade more coordinates or fewer, and none any more where hardly a trade of a single one is accepted."""
        smallest = 1.0 / self.path.dim
        if self.traded <= smallest and acceptance < _NO_TRADES:
            self.num_crossovers = 0
        factor = 1.0 / _TRADE_STEP if acceptance < _FEW_TRADES else _TRADE_STEP if acceptance > _MANY_TRADES else 1.0
        self.traded = min(_TRADED, max(self.traded * factor, smallest))

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

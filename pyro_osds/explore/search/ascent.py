r"""Uphill from many points at once: where each of them comes to rest is the top of its basin.

Points climb the log density by a quasi-Newton method, each with a memory of its own,

.. math:: u \leftarrow u + t\, H \nabla \log\gamma(u), \qquad
    H^{-1}\, (u_i - u_{i-1}) \approx \nabla\log\gamma(u_{i-1}) - \nabla\log\gamma(u_i),

in coordinates that are whitened as well as is known. A straight line between two particles is blind in many dimensions:
the middle lies nearer to the centres of both modes than the particles do. Two tops have no such noise.

Source: L-BFGS, Nocedal 1980; here in batches, with a first step that gains one nat at most, so that a point within a
narrow basin does not leap out of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Pairs of steps and changes of the score that are remembered: more pay in long valleys, and cost time everywhere.
_MEMORY = 8
# Gain of the density that a step must have, as a share of what its slope promises; and what a refused one shrinks to.
_ARMIJO, _SHRINK = 1e-4, 0.2
# Halvings, so to speak, after which no step gains anything: the top of a density with a kink, or rounding.
_MAX_REFUSED = 12
# Nats that a Newton step would still gain at the top: a hundredth of a standard deviation away from it.
_ARRIVED = 1e-4
# Nats that it may still gain where iterations have ended, in a flat valley for instance.
_NEARLY = 0.1
# A step reaches at most so many standard deviations, or half of the way to the centre where that is more.
_REACH = 3.0
# Of curvatures: below that share of the step a change of the score is rounding, or the density bends upwards.
_MIN_BEND = 1e-12


class Tops(NamedTuple):
    """Where points came to rest.

    Arguments:
        z: The points, ``(N, D)``.
        log_prob: Their log densities, ``(N,)``.
        arrived: Whether each is at a top, ``(N,)``.
    """

    z: Tensor
    log_prob: Tensor
    arrived: Tensor


class _Climb:
    """The state of all points; those that have arrived are not evaluated any more."""

    def __init__(self, evaluate: Callable[[Tensor], tuple[Tensor, Tensor]], u: Tensor) -> None:
        self.evaluate = evaluate
        self.u = u
        self.log_prob, self.score = evaluate(u)
        self.steps = u.new_zeros(_MEMORY, *u.shape)
        self.bends = u.new_zeros(_MEMORY, *u.shape)
        self.inverse = u.new_zeros(_MEMORY, len(u))
        self.scale = u.new_ones(len(u))
        self.length = u.new_ones(len(u))
        self.refused = torch.zeros(len(u), dtype=torch.long, device=u.device)
        self.gain = u.new_full((len(u),), torch.inf)
        self.going = self.log_prob.isfinite()

    def iterate(self, number: int) -> None:
        """One step of each point that is still on its way."""
        index = self.going.nonzero()[:, 0]
        direction, slope = self._direction(index)
        proposal = self.u[index] + self.length[index, None] * direction
        log_prob, score = self.evaluate(proposal)
        better = log_prob >= self.log_prob[index] + _ARMIJO * self.length[index] * slope
        self._remember(index[better], number, proposal[better], log_prob[better], score[better])
        worse = index[~better]
        self.refused[worse] += 1
        self.length[worse] *= _SHRINK
        self.going[index[better]] = self.gain[index[better]] > _ARRIVED
        # Where no step gains anything, there is none to be gained.
        stuck = worse[self.refused[worse] > _MAX_REFUSED]
        self.going[stuck], self.gain[stuck] = False, 0.0

    def _direction(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Directions ``(A, D)`` of the points on their way, and the slopes of the density along them, ``(A,)``."""
        steps, bends, inverse = self.steps[:, index], self.bends[:, index], self.inverse[:, index]
        score = direction = self.score[index]
        shares = []
        for step, bend, one in zip(steps, bends, inverse, strict=True):
            share = one * (step * direction).sum(-1)
            direction = direction - share[:, None] * bend
            shares.append(share)
        known = inverse[0] > 0
        direction = direction * self.scale[index, None]
        for step, bend, one, share in zip(steps.flip(0), bends.flip(0), inverse.flip(0), reversed(shares), strict=True):
            direction = direction + (share - one * (bend * direction).sum(-1))[:, None] * step
        slope = (score * direction).sum(-1)
        # Of a place without curvature only its slope is known: a step may gain one nat.
        short = torch.where(known, 1.0, 1.0 / slope.clamp(min=1.0))
        reach = _REACH * self.u.shape[1] ** 0.5 + 0.5 * self.u[index].norm(dim=-1)
        short = torch.minimum(short, reach / direction.norm(dim=-1).clamp(min=torch.finfo(slope.dtype).tiny))
        self.gain[index] = torch.where(known, 0.5 * slope, self.gain[index])

        return short[:, None] * direction, short * slope

    def _remember(self, index: Tensor, number: int, u: Tensor, log_prob: Tensor, score: Tensor) -> None:
        """Take a step, and what it taught of the curvature."""
        step, bend = u - self.u[index], self.score[index] - score
        product = (step * bend).sum(-1)
        taught = product > _MIN_BEND * step.square().sum(-1)
        self.steps[:, index] = torch.cat([step[None], self.steps[:-1, index]])
        self.bends[:, index] = torch.cat([bend[None], self.bends[:-1, index]])
        one = torch.where(taught, 1.0 / product, 0.0)
        self.inverse[:, index] = torch.cat([one[None], self.inverse[:-1, index]])
        self.scale[index] = torch.where(taught, product / bend.square().sum(-1), self.scale[index])
        self.u[index], self.log_prob[index], self.score[index] = u, log_prob, score
        self.length[index], self.refused[index] = 1.0, 0


def ascend(
    log_prob_and_score: Callable[[Tensor], tuple[Tensor, Tensor]],
    z: Tensor,
    loc: Tensor,
    scale_tril: Tensor,
    num_iterations: int = 60,
) -> Tops:
    """Where points come to rest when they follow the density uphill.

    Arguments:
        log_prob_and_score: Log densities and scores of a batch, ``(B, D) -> (B,), (B, D)``.
        z: Points, ``(N, D)``.
        loc: Centre of the posterior, as far as it is known, ``(D,)``.
        scale_tril: Its lower triangular scale, ``(D, D)``.
        num_iterations: Evaluations of each point at most, beside the first one.

    Returns:
        The points at rest, in the order given.

    Example:
        >>> two = lambda z: (-0.5 * (z.abs() - 4.0).square()).sum(-1)
        >>> from pyro_osds.target import log_prob_and_score
        >>> z = torch.tensor([[7.0], [-1.0]])
        >>> ascend(lambda z: log_prob_and_score(two, z), z, torch.zeros(1), torch.eye(1)).z.flatten().round()
        tensor([ 4., -4.])
    """

    def evaluate(u: Tensor) -> tuple[Tensor, Tensor]:
        log_prob, score = log_prob_and_score(loc + u @ scale_tril.mT)

        return log_prob, score @ scale_tril

    climb = _Climb(evaluate, torch.linalg.solve_triangular(scale_tril, (z - loc).mT, upper=False).mT.contiguous())
    for number in range(num_iterations):
        if not climb.going.any():
            break
        climb.iterate(number)

    return Tops(loc + climb.u @ scale_tril.mT, climb.log_prob, climb.log_prob.isfinite() & (climb.gain < _NEARLY))

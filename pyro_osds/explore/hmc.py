r"""Hamiltonian moves of many points at once: the leapfrog that proposes them, and particles that go on moving.

In coordinates whitened by a scale *L*, with a momentum *p* drawn from the standard normal, the dynamics of the energy
:math:`H = \tfrac12 p^\top p - \log\gamma(z)` are followed by

.. math::
    p \leftarrow p + \tfrac\varepsilon2 L^\top \nabla\log\gamma(z), \qquad
    z \leftarrow z + \varepsilon L\, p, \qquad
    p \leftarrow p + \tfrac\varepsilon2 L^\top \nabla\log\gamma(z),

which can be run backwards and keeps volumes: a proposal is accepted with probability :math:`\min(1, e^{H - H'})`.

Source: Neal 2011 (1206.1901), section 2.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_osds.target import finite_log_prob, log_prob_and_score

# As in annealing: acceptance to aim at, and the factor over which step sizes spread.
_TARGET_ACCEPTANCE = 0.75
_STEP_SPREAD = 5.0
_NUM_LEAPFROG = 5
_FIRST_STEP = 0.9


class Points(NamedTuple):
    """Points, and what is known of the density there.

    Arguments:
        z: The points, ``(N, D)``.
        log_prob: Their log densities, ``(N,)``.
        score: The gradients of these, ``(N, D)``.
        parts: Terms of the log densities, ``(N,)`` each, for those who keep them apart.
    """

    z: Tensor
    log_prob: Tensor
    score: Tensor
    parts: tuple[Tensor, ...] = ()


def leapfrog(
    evaluate: Callable[[Tensor], Points],
    points: Points,
    momentum: Tensor,
    step_size: Tensor | float,
    num_steps: int,
    scale_tril: Tensor | None = None,
) -> tuple[Points, Tensor]:
    """Where points with a momentum each are after some steps, and their momenta there.

    Arguments:
        evaluate: Points with their densities and scores, from ``(N, D)``.
        points: Where they start.
        momentum: Their momenta, in whitened coordinates, ``(N, D)``.
        step_size: One step size for all points, or one for each, ``(N, 1)``.
        num_steps: Steps, one evaluation each.
        scale_tril: Scale of the whitening, ``(D, D)``; default: none, coordinates are as they are.

    Example:
        >>> bowl = lambda z: Points(z, -0.5 * z.square().sum(-1), -z)
        >>> end, momentum = leapfrog(bowl, bowl(torch.ones(1, 1)), torch.zeros(1, 1), 0.1, num_steps=10)
        >>> end.z, momentum  # 0.5403 and -0.8415, but for the step size
        (tensor([[0.5400]]), tensor([[-0.8406]]))
    """
    z = points.z
    momentum = momentum + 0.5 * step_size * _pulled(points.score, scale_tril)
    for index in range(num_steps):
        z = z + step_size * (momentum if scale_tril is None else momentum @ scale_tril.mT)
        points = evaluate(z)
        # Between two steps, the last half of one and the first half of the next are taken at once.
        half = 0.5 if index == num_steps - 1 else 1.0
        momentum = momentum + half * step_size * _pulled(points.score, scale_tril)

    return points, momentum


def kinetic_energy(momentum: Tensor) -> Tensor:
    """Half the squared length of momenta, ``(N, D) -> (N,)``."""
    return 0.5 * momentum.square().sum(-1)


def chosen(accept: Tensor, new: Points, old: Points) -> Points:
    """The new points where they are accepted, ``(N,)``, and the old ones elsewhere."""

    def pick(left: Tensor, right: Tensor) -> Tensor:
        return torch.where(accept[:, None] if left.dim() == 2 else accept, left, right)

    parts = tuple(map(pick, new.parts, old.parts))

    return Points(pick(new.z, old.z), pick(new.log_prob, old.log_prob), pick(new.score, old.score), parts)


def _pulled(score: Tensor, scale_tril: Tensor | None) -> Tensor:
    """Scores in whitened coordinates; without a whitening not even a product with the unit matrix, which takes time."""
    return score if scale_tril is None else score @ scale_tril


class Pool:
    """Particles that go on moving at a posterior, so that what learns from them never sees the same ones twice.

    Moves leave the posterior as it is. They do not walk between separated modes: how much each of these holds stays
    what exploration found.

    Arguments:
        log_prob: Log density in whitened coordinates, ``(B, D) -> (B,)``.
        u: Where the particles are, ``(N, D)``.

    Example:
        >>> torch.manual_seed(0) and None
        >>> pool = Pool(lambda u: -0.5 * u.square().sum(-1), torch.zeros(4096, 2, dtype=torch.float64))
        >>> for _ in range(10):
        ...     pool.move()
        >>> bool((pool.u.var(0) - 1.0).abs().max() < 0.1)  # the standard error is 0.02
        True
    """

    def __init__(self, log_prob: Callable[[Tensor], Tensor], u: Tensor) -> None:
        self._log_prob = log_prob
        self._points = self._evaluated(u)
        self._step_size = _FIRST_STEP * u.shape[1] ** -0.25
        self.num_evaluations = len(u)

    @property
    def u(self) -> Tensor:
        """The particles, ``(N, D)``."""
        return self._points.z

    @property
    def log_prob(self) -> Tensor:
        """Log density at the particles, ``(N,)``."""
        return self._points.log_prob

    def move(self) -> None:
        """One Hamiltonian move of all particles, accepted or not."""
        points = self._points
        momentum = torch.randn_like(points.z)
        spread = torch.rand_like(points.log_prob)[:, None] * math.log(_STEP_SPREAD)
        proposal, end = leapfrog(self._evaluated, points, momentum, self._step_size * (-spread).exp(), _NUM_LEAPFROG)
        log_ratio = proposal.log_prob - points.log_prob + kinetic_energy(momentum) - kinetic_energy(end)
        probability = log_ratio.clamp(max=0.0).exp().nan_to_num(0.0)
        self._points = chosen(torch.rand_like(probability) < probability, proposal, points)
        self._step_size *= math.exp(probability.mean().item() - _TARGET_ACCEPTANCE)
        self.num_evaluations += _NUM_LEAPFROG * len(points.z)

    def _evaluated(self, u: Tensor) -> Points:
        log_prob, score = log_prob_and_score(self._log_prob, u)

        return Points(u, finite_log_prob(log_prob.detach()), score)

r"""Particles that go on moving at the posterior, so that what learns from them never sees the same ones twice.

Hamiltonian moves at temperature one (module ``hmc``) in whitened coordinates leave the posterior as it is. They do not
walk between separated modes: how much each of these holds stays what exploration found.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_osds.explore.hmc import Points, chosen, kinetic_energy, leapfrog
from pyro_osds.target import finite_log_prob, log_prob_and_score

# As in annealing: acceptance to aim at, and the factor over which step sizes spread.
_TARGET_ACCEPTANCE = 0.75
_STEP_SPREAD = 5.0
_NUM_LEAPFROG = 5
_FIRST_STEP = 0.9


class Pool:
    """Particles in whitened coordinates that move when they are told to.

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

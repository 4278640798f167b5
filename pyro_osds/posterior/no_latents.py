"""A posterior without continuous latents: one point, nothing to explore and nothing to train.

Its log density is its log evidence, summed over the discrete latents exactly. It goes the way of all posteriors with a
leap that has no coordinates to leap in, and weights that are all the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_osds.stats.weights import weigh
from pyro_osds.target import Target
from pyro_osds.train.teacher import TeacherHistory
from pyro_osds.train.trainer import History


class PointLeap:
    """Draws without coordinates, of log density zero.

    Arguments:
        target: A target of dimension 0.
    """

    can_invert = False
    has_exact_density = True

    def __init__(self, target: Target) -> None:
        self._zero = torch.zeros((), dtype=target.dtype, device=target.device)

    def sample(self, num_draws: int) -> tuple[Tensor, Tensor, Tensor]:
        """``(n, 0)`` and two times ``(n,)`` zeros."""
        zeros = self._zero.expand(num_draws)

        return self._zero.new_zeros(num_draws, 0), zeros, zeros


class PointTrainer:
    """What a trainer is asked for, where there is nothing to train.

    Arguments:
        target: A target of dimension 0.
    """

    def __init__(self, target: Target) -> None:
        self.leap = PointLeap(target)
        self.history = History()
        self.paused = None
        self._target = target

    def step(self) -> float:
        """Minus the log evidence, nats; nothing changes."""
        return self.evaluate()

    def evaluate(self) -> float:
        """Minus the log evidence, nats."""
        return -weigh(self.leap, self._target, 1).log_weight.item()

    def averaged(self) -> PointLeap:
        """The leap."""
        return self.leap


class PointRecipe:
    """What a recipe is asked for, where there is nothing to do.

    Arguments:
        target: A target of dimension 0.

    Example:
        >>> from types import SimpleNamespace
        >>> target = SimpleNamespace(
        ...     dim=0, dtype=torch.float32, device="cpu", log_prob=lambda z: z.new_full((len(z),), -2.0)
        ... )
        >>> PointRecipe(target).trainer.evaluate()
        2.0
    """

    name = "point"
    found = None
    necks = ()
    is_paused = False
    can_escalate = False

    def __init__(self, target: Target) -> None:
        self.trainer = PointTrainer(target)
        self.teacher_history = TeacherHistory()

    def run(self) -> None:
        """Nothing."""

    def state(self) -> dict[str, Any]:
        """Nothing: all of it comes from the target."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing."""

    def stay(self) -> None:
        """Nothing."""

    def set_deadline(self, deadline: float, seconds_per_draw: float = 0.0) -> None:
        """Nothing."""

    def with_steps(self, num_steps: int) -> PointLeap:
        """The leap, in any number of steps."""
        return self.trainer.leap

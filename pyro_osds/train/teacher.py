r"""Training the teacher: score matching on explored particles first, then the log-variance of its path weights.

Score matching needs no simulation and brings the control near in seconds. Path weights then correct what particles got
wrong: half of the paths are the teacher's own, half end at particles and are noised backwards, so that no mode is
forgotten. With ``objective="reverse_kl"`` it is the paper's loss instead, differentiated through the simulation.

Source: arXiv 2512.05251, section 2; off-policy log-variance, Richter, Berner 2023 (2307.01198).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from pyro_osds.flow.diffusion import Diffusion, Paths
from pyro_osds.runtime.clock import is_past
from pyro_osds.runtime.light_adam import LightAdam
from pyro_osds.runtime.progress import NoBar, progress_bar
from pyro_osds.target import log_prob_and_score
from pyro_osds.train.descent import MovingAverage, clipped, gradients_of
from pyro_osds.train.loop import go_on, run_moves
from pyro_osds.train.objectives import path_log_variance, path_reverse_kl, score_matching
from pyro_osds.train.optimizer import one_cycle

OBJECTIVES = ("log_variance", "reverse_kl")


@dataclass(frozen=True)
class TeacherBudget:
    """How long and how hard to train the teacher.

    Arguments:
        num_matching: Iterations of score matching.
        num_path: Iterations on path weights.
        num_time_steps: Steps of each path.
        matching_batch_size: Points of each iteration of score matching.
        batch_size: Paths of each iteration on path weights.
        learning_rate: Peak of a one-cycle schedule over all iterations.
        objective: ``"log_variance"`` or ``"reverse_kl"``.
    """

    # Chosen on the accuracy cases. Score matching needs no simulation, so that it gets most of the iterations and large
    # batches; sixteen steps are enough for the control to correct what they leave out.
    num_matching: int = 300
    num_path: int = 60
    num_time_steps: int = 16
    matching_batch_size: int = 1024
    batch_size: int = 256
    learning_rate: float = 3e-3
    objective: str = "log_variance"

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {OBJECTIVES}, got {self.objective!r}.")


@dataclass
class TeacherHistory:
    """What the teacher's training saw.

    Arguments:
        terms: Each loss by name, one value an iteration, of the iterations that minimised it.
        num_skipped: Iterations whose gradient was not finite, and that were left out.
        interrupted: Whether Ctrl-C ended training.
        paused: Where it was cut short, by that or by the deadline, for :func:`train_teacher` to go on from.
    """

    terms: dict[str, list[float]] = field(default_factory=dict)
    num_skipped: int = 0
    interrupted: bool = False
    paused: dict[str, Any] | None = None


def train_teacher(
    diffusion: Diffusion,
    z: Tensor,
    budget: TeacherBudget | None = None,
    disable_progbar: bool = True,
    before: TeacherHistory | None = None,
    deadline: float = math.inf,
) -> TeacherHistory:
    """Train a diffusion in place; its network ends up with the moving average of its weights.

    Arguments:
        diffusion: The teacher.
        z: Particles that stand for the posterior, in the target's coordinates, ``(N, D)``.
        budget: How long and how hard.
        disable_progbar: Whether to hide the progress bar.
        before: History of a training with the same arguments that was cut short, which goes on, bit for bit.
        deadline: Time of ``time.perf_counter`` at which training ends.

    Returns:
        The history. Ctrl-C, too, ends training with what was learnt so far.
    """
    training = _Training(diffusion, z, budget or TeacherBudget(), deadline)
    go_on(training, before.paused if before is not None else None)
    left = training.num_iterations - training.iteration
    run_moves(training, progress_bar(left, "Teach", disable_progbar))
    diffusion.network.load_state_dict(training.average.module.state_dict())

    return replace(training.history, interrupted=training.interrupted, paused=training.paused)


class _Training:
    """The teacher's training, iteration by iteration."""

    def __init__(self, diffusion: Diffusion, z: Tensor, budget: TeacherBudget, deadline: float) -> None:
        self.history = TeacherHistory()
        self.num_iterations = budget.num_matching + budget.num_path
        self.average = MovingAverage(diffusion.network)
        self.iteration = 0
        self.paused: dict[str, Any] | None = None
        self.interrupted = False
        self._deadline = deadline
        self._diffusion, self._z, self._budget = diffusion, z, budget
        self._u = diffusion.base.to_whitened(z)
        self._score = log_prob_and_score(diffusion.log_prob, self._u)[1]
        self._parameters = list(diffusion.network.parameters())
        self._optimizer, self._scheduler = one_cycle(
            LightAdam(diffusion.network.parameters(), lr=budget.learning_rate, fused=True),
            budget.learning_rate,
            self.num_iterations,
        )

    @property
    def is_done(self) -> bool:
        """Whether all iterations are made."""
        return self.iteration >= self.num_iterations

    @property
    def is_late(self) -> bool:
        """Whether the deadline has passed."""
        return is_past(self._deadline)

    def advance(self, progress: NoBar) -> None:
        """One iteration."""
        name, loss = self._loss()
        gradients = gradients_of(loss, self._parameters)
        self.history.terms.setdefault(name, []).append(loss.item())
        if clipped(self._parameters, gradients, get_total_norm(gradients)):
            self._optimizer.step()
            self.average.update()
        else:
            self.history.num_skipped += 1
        self._scheduler.step()
        self.iteration += 1
        progress.set_postfix(loss=f"{loss.item():.3f}")
        progress.update()

    def end_early(self, paused: dict[str, Any], interrupt: KeyboardInterrupt | None) -> None:
        """Note where to go on, if the last iteration was not yet made."""
        self.paused = None if self.is_done else paused
        self.interrupted = interrupt is not None

    def _loss(self) -> tuple[str, Tensor]:
        budget, u = self._budget, self._u
        if self.iteration >= budget.num_matching:
            return f"path_{budget.objective}", _path_loss(self._diffusion, self._z, budget)
        chosen = torch.randint(len(u), (budget.matching_batch_size,), device=u.device)
        loss = score_matching(self._diffusion, u[chosen], self._score[chosen], 1.0 / budget.num_time_steps)

        return "score_matching", loss

    def state(self) -> dict[str, Any]:
        """All that further iterations depend on, except random numbers."""
        return {
            "network": self._diffusion.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._scheduler.state_dict(),
            "history": self.history,
            "iteration": self.iteration,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Stand where another training of the same teacher stood."""
        state = copy.deepcopy(state)
        self.history, self.iteration = state["history"], state["iteration"]
        self._diffusion.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["schedule"])


def _path_loss(diffusion: Diffusion, z: Tensor, budget: TeacherBudget) -> Tensor:
    if budget.objective == "reverse_kl":
        return path_reverse_kl(diffusion.log_weight(diffusion.simulate(budget.batch_size, budget.num_time_steps)))
    with torch.no_grad():
        half = budget.batch_size // 2
        chosen = torch.randint(len(z), (half,), device=z.device)
        own = diffusion.simulate(budget.batch_size - half, budget.num_time_steps)
        noised = diffusion.noise(z[chosen], budget.num_time_steps)
        paths = Paths(*(torch.cat(pair, -1 if pair[0].dim() == 1 else 1) for pair in zip(own, noised, strict=True)))

    return path_log_variance(diffusion.log_weight(paths))

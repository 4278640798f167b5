"""What runs when: from what the survey found to a trained leap.

* ``calibrate``: a lean flow, from a Gaussian or a mixture base, on its own exact weights.
* ``cover``: splines, from a Gaussian base; forward KL on particles, then exact weights with log-variance on particles.
* ``distill``: a flow as of ``cover``; teacher, state and volume consistency, then as ``cover`` in all dyadic steps.

``auto`` takes ``calibrate`` for one mode and for modes that can be counted, and ``cover`` for a posterior with valleys
that no mixture base takes care of. Where the lean flow leaves the ELBO far from the log evidence, a larger one follows.
While the verdict is bad, :meth:`Recipe.run_larger` begins again from better particles.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from pyro_osds.base import Base, gaussian_base
from pyro_osds.diffusion import Diffusion
from pyro_osds.distillation import dyadic, retrace, self_distillation
from pyro_osds.flow_map import FlowMap
from pyro_osds.leap import Leap
from pyro_osds.network import ControlNetwork
from pyro_osds.objective import Objective, exact_volume, forward_kl
from pyro_osds.survey import Survey
from pyro_osds.teacher import TeacherBudget, TeacherHistory, train_teacher
from pyro_osds.train import Budget, Trainer
from pyro_osds.velocity import VelocityLeap, VelocityTrainer

RECIPES = ("auto", "calibrate", "cover", "distill")
NETWORKS = ("coupling", "velocity")
# The lean flow has done what it can when its first round leaves this much between ELBO and log evidence, nats.
_LEAN_GAP = 0.05
# Where training leaves this much of the gap of a mixture base, a larger flow does not help either.
_PROGRESS = 0.7
# Iterations to learn other numbers of steps, and again to calibrate them.
_RETRACING = 200


@dataclass(frozen=True)
class FlowSize:
    """The size of a flow.

    Arguments:
        num_blocks: Coupling blocks.
        num_spline_blocks: How many of them, from the base on, have a spline part.
        hidden_features: Width of the networks.
    """

    num_blocks: int
    num_spline_blocks: int
    hidden_features: int


LEAN = FlowSize(num_blocks=5, num_spline_blocks=1, hidden_features=64)
LARGE = FlowSize(num_blocks=8, num_spline_blocks=0, hidden_features=128)
COVERING = FlowSize(num_blocks=6, num_spline_blocks=2, hidden_features=64)
LARGEST = FlowSize(num_blocks=8, num_spline_blocks=2, hidden_features=128)


class Recipe:
    """A recipe on its way: the trainer at work, and what comes after it.

    Arguments:
        found: What the survey found.
        name: One of ``RECIPES``.
        budget: Iterations, batch size and learning rate of the lean flow.
        groups: Sizes of consecutive groups of coordinates, parents before children.
        num_steps: Steps of the leap.
        num_time_steps: Steps of the finest grid, for ``distill``.
        size: The size of the flow; default: by the recipe.
        network: ``"coupling"`` for the bijective flow, ``"velocity"`` for the published free-form network.
        volume: With ``"velocity"``: ``"exact"`` or ``"published"``.
        teacher_budget: How long to train the teacher, for ``distill``.
        disable_progbar: Whether to hide the progress bars.
        more_iterations: Optimiser steps that are kept for :meth:`run_larger`.

    Raises:
        ValueError: If the name is unknown.
    """

    def __init__(
        self,
        found: Survey,
        name: str = "auto",
        budget: Budget | None = None,
        groups: Sequence[int] = (),
        num_steps: int = 1,
        num_time_steps: int = 16,
        size: FlowSize | None = None,
        network: str = "coupling",
        volume: str = "exact",
        teacher_budget: TeacherBudget | None = None,
        disable_progbar: bool = False,
        more_iterations: int = 0,
    ) -> None:
        if name not in RECIPES:
            raise ValueError(f"recipe must be one of {RECIPES}, got {name!r}.")
        if network not in NETWORKS:
            raise ValueError(f"network must be one of {NETWORKS}, got {network!r}.")
        self.found = found
        self.name = name if name != "auto" else "cover" if found.is_folded else "calibrate"
        self.num_time_steps = num_time_steps
        self.teacher: Diffusion | None = None
        self.teacher_history = TeacherHistory()
        self._budget = budget or Budget()
        self._groups = groups
        self._num_steps = num_steps
        self._size = size
        self._teacher_budget = teacher_budget or TeacherBudget(num_time_steps=num_time_steps)
        self._disable_progbar = disable_progbar
        self._more_iterations = more_iterations
        self.trainer: Trainer | VelocityTrainer
        if network == "velocity":
            self.name, budget = "velocity", replace(self._budget, learning_rate=0.1 * self._budget.learning_rate)
            self.trainer = VelocityTrainer(
                self._diffusion(), num_time_steps, budget, num_steps, volume, disable_progbar
            )
        else:
            self.trainer = self._lean() if self.name == "calibrate" else self._covering()

    def run(self) -> None:
        """Train until good enough, stalled, out of budget, or interrupted; ``trainer`` ends up with the better flow."""
        if self.teacher is not None and not self._teach(self.teacher):
            return
        self.trainer.run()
        history = self.trainer.history
        left = self._budget.num_iterations - len(history.loss)
        if not self._may_grow or history.interrupted or left <= 0 or history.gap[-1] <= _LEAN_GAP:
            return
        if self.found.base.num_components > 1 and history.gap[-1] > _PROGRESS * history.gap[0]:
            return
        larger = self._large(left)
        best = self.trainer if larger.run().best_elbo < history.best_elbo else larger
        history.extend(larger.history)
        best.history, self.trainer = history, best

    @property
    def iterations_left(self) -> int:
        """Optimiser steps that :meth:`run_larger` may take; none for a network or a size that the user chose."""
        if self._size is not None or not isinstance(self.trainer, Trainer):
            return 0

        return self._more_iterations

    def run_larger(self, found: Survey) -> None:
        """Train the largest flow from another base and other particles; ``trainer`` ends up with the better flow.

        Arguments:
            found: What is known now, in the coordinates of the first survey.
        """
        before, points, num_iterations = self.trainer, found.exploration.z, self.iterations_left
        budget = self._larger_budget(num_iterations)
        size = replace(LARGEST, num_spline_blocks=0) if found.base.num_components > 1 else LARGEST
        objective = exact_volume(found.target, budget.batch_size, points=points)
        larger = self._trainer(found.base, size, budget, objective, forward_kl(points, budget.batch_size))
        history, best_elbo = before.history, before.history.best_elbo
        larger.run()
        self._more_iterations = 0
        history.extend(larger.history)
        if larger.history.best_elbo > best_elbo:
            larger.history, self.trainer, self.found = history, larger, found

    def with_steps(self, num_steps: int) -> Leap | VelocityLeap:
        """The trained leap in another number of steps.

        What was distilled, or is a velocity network, knows all dyadic steps. Otherwise a copy of the flow learns to
        retrace the leap in that many steps, and is calibrated as the leap was; the leap itself stays as it is.

        Arguments:
            num_steps: Network evaluations per draw, a power of two.
        """
        leap, target = self.trainer.leap, self.found.target
        if isinstance(leap, VelocityLeap):
            return VelocityLeap(leap.diffusion, num_steps, leap.volume)
        if self.name == "distill" and num_steps <= self.num_time_steps:
            return Leap(leap.base, leap.flow, num_steps)
        budget = replace(
            self._budget, num_iterations=_RETRACING, first_round=_RETRACING, warm_up=_RETRACING, learning_rate=5e-3
        )
        walk = Leap(leap.base, copy.deepcopy(leap.flow), num_steps)
        points = self.found.exploration.z if self.found.is_folded else None
        objective = exact_volume(target, budget.batch_size, points=points)
        Trainer(walk, target, budget, objective, retrace(leap, budget.batch_size), self._disable_progbar).run()

        return walk

    @property
    def _may_grow(self) -> bool:
        return self.name == "calibrate" and self._size is None

    def _teach(self, teacher: Diffusion) -> bool:
        """Train the teacher; whether nobody interrupted."""
        self.teacher_history = train_teacher(
            teacher, self.found.exploration.z, self._teacher_budget, self._disable_progbar
        )
        if self.teacher_history.interrupted:
            warnings.warn("The teacher's training was interrupted; the flow is not trained.", stacklevel=4)
            self.trainer.history.interrupted = True

        return not self.teacher_history.interrupted

    def _lean(self) -> Trainer:
        budget = replace(self._budget, max_gap=_LEAN_GAP) if self._may_grow else self._budget
        found, size = self.found, self._size or LEAN
        if found.base.num_components > 1:
            # A mixture has shape enough; splines on top of it only made its tails lighter.
            size = replace(size, num_spline_blocks=0)

        return self._trainer(found.base, size, budget, exact_volume(found.target, budget.batch_size))

    def _large(self, num_iterations: int) -> Trainer:
        budget = self._larger_budget(num_iterations)
        # Covering keeps tails honest where there are few dimensions; in many its weights are mostly noise.
        coverage = min(0.5, max(0.25, 5.0 / self.found.target.dim))
        objective = exact_volume(self.found.target, budget.batch_size, coverage)

        return self._trainer(self.found.base, LARGE, budget, objective)

    def _larger_budget(self, num_iterations: int) -> Budget:
        """One round, of larger batches and smaller steps."""
        return replace(
            self._budget,
            num_iterations=num_iterations,
            first_round=num_iterations,
            batch_size=2 * self._budget.batch_size,
            learning_rate=0.5 * self._budget.learning_rate,
        )

    def _covering(self) -> Trainer:
        """Splines from a Gaussian base, first brought to where the particles, or the teacher's flow, are."""
        found, points = self.found, self.found.exploration.z
        budget = replace(
            self._budget,
            first_round=max(1, self._budget.num_iterations // 2),
            learning_rate=0.5 * self._budget.learning_rate,
        )
        base = self._gaussian_base()
        if self.name == "distill":
            self.teacher = self._diffusion()
            warm_up = self_distillation(self.teacher, self.num_time_steps, budget.batch_size)
            num_steps = dyadic(self.num_time_steps)
        else:
            warm_up, num_steps = forward_kl(points, budget.batch_size), ()
        objective = exact_volume(found.target, budget.batch_size, points=points, num_steps=num_steps)

        return self._trainer(base, self._size or COVERING, budget, objective, warm_up)

    def _gaussian_base(self) -> Base:
        found = self.found

        return found.base if found.base.num_components == 1 else gaussian_base(found.exploration.z)

    def _diffusion(self) -> Diffusion:
        base = self._gaussian_base()

        return Diffusion(self.found.target, base, ControlNetwork(self.found.target.dim).to(base.loc))

    def _trainer(
        self, base: Base, size: FlowSize, budget: Budget, objective: Objective, warm_up: Objective | None = None
    ) -> Trainer:
        target = self.found.target
        flow = FlowMap(target.dim, self._groups, **asdict(size)).to(dtype=target.dtype, device=target.device)
        leap = Leap(base, flow, self._num_steps)

        return Trainer(leap, target, budget, objective, warm_up, self._disable_progbar)

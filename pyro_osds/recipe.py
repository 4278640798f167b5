"""What runs when: from what the survey found to a trained leap.

* ``calibrate``: a lean flow, from a Gaussian or a mixture base, on its own exact weights.
* ``cover``: splines, from a Gaussian base; forward KL on particles, then exact weights with log-variance on particles.
* ``distill``: a flow as of ``cover``; teacher, state and volume consistency, then as ``cover`` in all dyadic steps.

``auto`` takes ``calibrate`` for one mode and for modes that can be counted, and ``cover`` for a posterior with valleys
that no mixture base takes care of. In many dimensions ``calibrate`` shapes the model's own coordinates one by one, from
correlated base draws, before parents steer children. Where the lean flow leaves the ELBO far from the log evidence, a
larger one follows. While the verdict is bad, :meth:`Recipe.run_larger` begins again from better particles.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

from torch import nn

from pyro_osds.base import Base, coordinatewise, gaussian_base
from pyro_osds.diffusion import Diffusion
from pyro_osds.distillation import Walks, dyadic, retrace, self_distillation
from pyro_osds.flow_map import CouplingBlock, FlowMap
from pyro_osds.gaussian import MANY_DIMENSIONS
from pyro_osds.leap import Leap
from pyro_osds.network import ControlNetwork
from pyro_osds.objective import Objective, exact_volume, forward_kl
from pyro_osds.survey import Survey
from pyro_osds.teacher import TeacherBudget, TeacherHistory, train_teacher
from pyro_osds.train import Budget, Trainer
from pyro_osds.trouble import InterruptedWarning, warn
from pyro_osds.velocity import VelocityLeap, VelocityTrainer

RECIPES = ("auto", "calibrate", "cover", "distill")
NETWORKS = ("coupling", "velocity")
# The lean flow has done what it can when its first round leaves this much between ELBO and log evidence, nats.
_LEAN_GAP = 0.05
# Where training leaves this much of the gap of a mixture base, a larger flow does not help either.
_PROGRESS = 0.7
# Iterations to learn other numbers of steps, and again to calibrate them.
_RETRACING = 200
# The first round of a flow that was trained before, and its learning rate as a share of the usual one.
_WARM_ROUND, _WARM_RATE = 100, 0.3
# In many dimensions: numbers in a batch at most, if that leaves 64 draws.
_MAX_BATCH, _MIN_BATCH_SIZE = 2**17, 64
# There, a larger flow follows where the tail of the weights is worse.
_POOR_TAIL = 0.7
_log = logging.getLogger(__name__)


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


def size_of(flow: FlowMap) -> FlowSize:
    """The size that a flow has.

    Example:
        >>> size_of(FlowMap(3, **asdict(LEAN))) == LEAN
        True
    """
    blocks = cast("list[CouplingBlock]", list(flow.blocks))
    hidden = cast("nn.Linear", blocks[0].network.curve[0]).out_features

    return FlowSize(len(blocks), sum(block.num_bins > 0 for block in blocks), hidden)


LEAN = FlowSize(num_blocks=5, num_spline_blocks=1, hidden_features=64)
ALIKE = FlowSize(num_blocks=1, num_spline_blocks=1, hidden_features=64)
MANY = FlowSize(num_blocks=3, num_spline_blocks=1, hidden_features=64)
LARGE = FlowSize(num_blocks=8, num_spline_blocks=0, hidden_features=128)
COVERING = FlowSize(num_blocks=6, num_spline_blocks=2, hidden_features=64)
LARGEST = FlowSize(num_blocks=8, num_spline_blocks=2, hidden_features=128)


@dataclass(frozen=True)
class Plan:
    """What a flow is made from; the same plan makes the same flow again, untrained.

    Arguments:
        kind: ``"first"``, ``"large"``, ``"largest"``, or ``"warm"`` for one that was trained before.
        found: The survey that it starts from.
        num_iterations: Optimiser steps of a larger one.
        size: The size of one that was trained before.
    """

    kind: str
    found: Survey
    num_iterations: int = 0
    size: FlowSize | None = None


@dataclass
class _Contest:
    """A larger flow in training, beside the one that there is."""

    plan: Plan
    champion: Trainer
    challenger: Trainer

    @property
    def is_won(self) -> bool:
        """Whether the larger one is better; the largest must be so by more than nothing, it has a base of its own."""
        ours, theirs = self.challenger.history.best_elbo, self.champion.history.best_elbo

        return ours > theirs or (ours == theirs and self.plan.kind == "large")

    def best(self) -> Trainer:
        """The better trainer so far, with the history of both."""
        best = copy.copy(self.challenger if self.is_won else self.champion)
        best.history = copy.deepcopy(self.champion.history)
        best.history.extend(self.challenger.history)

        return best


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
        self._has_many_dimensions = found.target.dim >= MANY_DIMENSIONS and found.base.num_components == 1
        self._budget = (
            _for_many(budget or Budget(), found.target.dim) if self._has_many_dimensions else budget or Budget()
        )
        self._groups = groups
        self._num_steps = num_steps
        self._size = size
        self._teacher_budget = teacher_budget or TeacherBudget(num_time_steps=num_time_steps)
        self._disable_progbar = disable_progbar
        self._more_iterations = more_iterations
        self._walks: Walks | None = None
        self._has_grown = False
        self._contest: _Contest | None = None
        self._plan = Plan("first", found)
        if network == "velocity":
            self.name = "velocity"
        self._volume = volume
        self.trainer: Trainer | VelocityTrainer = self._build(self._plan)

    def run(self) -> None:
        """Train until good enough, stalled, out of budget, late or interrupted; ``trainer`` is the better flow.

        What was cut short goes on, bit for bit, when it is run again.
        """
        if self.teacher is not None and not self._teach(self.teacher):
            return
        if not self._has_grown:
            self.trainer.run()
            left = self._budget.num_iterations - len(self.trainer.history.loss)
            if self.trainer.paused is not None or not self._should_grow(left):
                return
            self._has_grown = True
            self._challenge(Plan("large", self.found, left))
        if self._contest is not None and self._contest.plan.kind == "large":
            self._compete(self._contest)
        elif self._contest is not None:
            self.trainer = self._contest.champion

    def start_from(self, flow: FlowMap) -> None:
        """Start from a flow that was trained on the same base for another posterior, rather than from the identity.

        Arguments:
            flow: The flow; it stays as it is.
        """
        self._plan = Plan("warm", self.found, size=size_of(flow))
        self.trainer = self._build(self._plan)
        assert isinstance(self.trainer, Trainer)
        self.trainer.start_from(flow)

    @property
    def is_paused(self) -> bool:
        """Whether training was cut short and would go on."""
        return self._contest is not None or self.trainer.paused is not None or self.teacher_history.paused is not None

    def set_deadline(self, deadline: float) -> None:
        """From now on training ends at this time of ``time.perf_counter``."""
        self._budget = replace(self._budget, deadline=deadline)
        for trainer in (self.trainer, *([self._contest.challenger] if self._contest else ())):
            trainer.budget = replace(trainer.budget, deadline=deadline)

    def stay(self) -> None:
        """Make do with the better flow so far; what was cut short is not gone on with."""
        if self._contest is not None and self._contest.is_won:
            self._plan, self.found = self._contest.plan, self._contest.plan.found
        self._contest, self.teacher_history.paused = None, None
        self.trainer.stop()

    @property
    def iterations_left(self) -> int:
        """Optimiser steps that :meth:`run_larger` may take; none for what the user chose, nor in many dimensions."""
        if self._size is not None or self._has_many_dimensions or not isinstance(self.trainer, Trainer):
            return 0

        return self._more_iterations

    def run_larger(self, found: Survey) -> None:
        """Train the largest flow from another base and other particles; ``trainer`` ends up with the better flow.

        What was cut short goes on when it is run again.

        Arguments:
            found: What is known now, in the coordinates of the first survey.
        """
        if self._contest is None:
            self._challenge(Plan("largest", found, self.iterations_left))
        assert self._contest is not None
        self._compete(self._contest)
        if self._contest is None:
            self._more_iterations = 0

    def _challenge(self, plan: Plan) -> None:
        """Put a larger flow beside the one that there is."""
        assert isinstance(self.trainer, Trainer)
        challenger = self._build(plan)
        assert isinstance(challenger, Trainer)
        self._contest = _Contest(plan, self.trainer, challenger)

    def _compete(self, contest: _Contest) -> None:
        """Train the larger flow and take the better of the two; for now only, where training is cut short."""
        contest.challenger.run()
        best = contest.best()
        if contest.challenger.paused is not None:
            self.trainer = best
            return
        self.trainer = contest.challenger if contest.is_won else contest.champion
        if contest.is_won:
            self._plan, self.found = contest.plan, contest.plan.found
        self.trainer.history, self._contest = best.history, None

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

    # ---- where training stands ----

    def state(self) -> dict[str, Any]:
        """All that further training depends on, except random numbers; surveys are without their target."""
        contest = self._contest

        return {
            "name": self.name,
            "found": _untargeted(self.found),
            "plan": replace(self._plan, found=_untargeted(self._plan.found)),
            "trainer": (contest.champion if contest else self.trainer).state(),
            "rival": replace(contest.plan, found=_untargeted(contest.plan.found)) if contest else None,
            "rival_trainer": contest.challenger.state() if contest else None,
            "has_grown": self._has_grown,
            "more_iterations": self._more_iterations,
            "teacher": self.teacher.network.state_dict() if self.teacher else None,
            "teacher_history": self.teacher_history,
            "walks": self._walks.taken if self._walks else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Stand where another recipe with the same arguments stood.

        Arguments:
            state: What its :meth:`state` gave; it stays as it is.
        """
        target = self.found.target
        self.name, self.found = state["name"], replace(state["found"], target=target)
        self._has_grown, self._more_iterations = state["has_grown"], state["more_iterations"]
        self.teacher_history = copy.deepcopy(state["teacher_history"])
        self._plan = replace(state["plan"], found=replace(state["plan"].found, target=target))
        self.trainer = self._build(self._plan)
        self.trainer.restore(state["trainer"])
        if self.teacher is not None:
            self.teacher.network.load_state_dict(state["teacher"])
        if self._walks is not None:
            self._walks.taken = state["walks"]
        if state["rival"] is not None:
            self._challenge(replace(state["rival"], found=replace(state["rival"].found, target=target)))
            assert self._contest is not None
            self._contest.challenger.restore(state["rival_trainer"])
            self.trainer = self._contest.best()

    # ---- the flows ----

    def _should_grow(self, num_iterations: int) -> bool:
        """Whether the lean flow left more than it should, and a larger one may help."""
        history = self.trainer.history
        if not self._may_grow or history.interrupted or num_iterations <= 0 or history.gap[-1] <= _LEAN_GAP:
            return False
        if self._has_many_dimensions:
            return history.pareto_k[-1] > _POOR_TAIL

        return self.found.base.num_components == 1 or history.gap[-1] <= _PROGRESS * history.gap[0]

    @property
    def _may_grow(self) -> bool:
        return self.name == "calibrate" and self._size is None and self._plan.kind == "first"

    def _teach(self, teacher: Diffusion) -> bool:
        """Train the teacher, unless that was done before; whether it came to its end."""
        history = self.teacher_history
        if history.terms and history.paused is None:
            return True
        self.teacher_history = train_teacher(
            teacher,
            self.found.exploration.z,
            self._teacher_budget,
            self._disable_progbar,
            history,
            self._budget.deadline,
        )
        self.trainer.history.interrupted = self.teacher_history.interrupted
        if self.teacher_history.interrupted:
            warn("The teacher's training was interrupted; the flow is not trained.", InterruptedWarning)

        return self.teacher_history.paused is None

    def _build(self, plan: Plan) -> Trainer | VelocityTrainer:
        """An untrained flow with its trainer."""
        if self.name == "velocity":
            budget = replace(self._budget, learning_rate=0.1 * self._budget.learning_rate)
            return VelocityTrainer(
                self._diffusion(), self.num_time_steps, budget, self._num_steps, self._volume, self._disable_progbar
            )
        if plan.size is not None:
            return self._again(plan.size)
        if plan.kind == "large":
            return self._large(plan.num_iterations)
        if plan.kind == "largest":
            return self._largest(plan.found, plan.num_iterations)

        return self._lean() if self.name == "calibrate" else self._covering()

    def _lean(self) -> Trainer:
        budget = replace(self._budget, max_gap=_LEAN_GAP) if self._may_grow else self._budget
        if self._has_many_dimensions:
            return self._in_many_dimensions()
        found, size = self.found, self._size or LEAN
        if found.base.num_components > 1:
            # A mixture has shape enough; splines on top of it only made its tails lighter.
            size = replace(size, num_spline_blocks=0)

        return self._trainer(found.base, size, budget, exact_volume(found.target, budget.batch_size))

    def _in_many_dimensions(self) -> Trainer:
        """First of all, the shape of each of the model's coordinates; base draws bring the correlations along."""
        found, budget = self.found, self._budget
        # Parents steer their children; among coordinates of one kind nobody knows who should steer whom.
        size = self._size or (MANY if len(self._groups) > 1 else ALIKE)
        # Of many coordinates, one that is stretched teaches next to nothing.
        objective = exact_volume(found.target, budget.batch_size, tail_share=0.0)

        return self._trainer(coordinatewise(found.base), size, budget, objective)

    def _large(self, num_iterations: int) -> Trainer:
        budget = self._larger_budget(num_iterations)
        # Covering keeps tails honest where there are few dimensions; in many its weights are mostly noise.
        coverage = min(0.5, max(0.25, 5.0 / self.found.target.dim))
        objective = exact_volume(self.found.target, budget.batch_size, coverage)

        return self._trainer(self.found.base, LARGE, budget, objective)

    def _again(self, size: FlowSize) -> Trainer:
        """A flow that is nearly right: short rounds of small steps."""
        found, budget = self.found, self._budget
        budget = replace(
            budget,
            first_round=min(budget.first_round, _WARM_ROUND),
            learning_rate=_WARM_RATE * budget.learning_rate,
        )
        points = found.exploration.z if found.is_folded else None
        objective = exact_volume(found.target, budget.batch_size, points=points)

        return self._trainer(found.base, size, budget, objective)

    def _largest(self, found: Survey, num_iterations: int) -> Trainer:
        budget, points = self._larger_budget(num_iterations), found.exploration.z
        size = replace(LARGEST, num_spline_blocks=0) if found.base.num_components > 1 else LARGEST
        objective = exact_volume(found.target, budget.batch_size, points=points)

        return self._trainer(found.base, size, budget, objective, forward_kl(points, budget.batch_size))

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
            self._walks = Walks(self.teacher, self.num_time_steps)
            warm_up = self_distillation(self.teacher, self.num_time_steps, budget.batch_size, walks=self._walks)
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
        _log.info(
            "flow: %s from %d base component(s), at most %d iterations",
            size,
            base.num_components,
            budget.num_iterations,
        )
        flow = FlowMap(target.dim, self._groups, **asdict(size)).to(dtype=target.dtype, device=target.device)
        leap = Leap(base, flow, self._num_steps)

        return Trainer(leap, target, budget, objective, warm_up, self._disable_progbar)


def _for_many(budget: Budget, dim: int) -> Budget:
    """Smaller batches, each draw of which says as much as several, and smaller steps, whose noise adds up."""
    batch_size = budget.batch_size
    while batch_size * dim > _MAX_BATCH and batch_size >= 2 * _MIN_BATCH_SIZE:
        batch_size //= 2

    return replace(budget, batch_size=batch_size, learning_rate=budget.learning_rate * (MANY_DIMENSIONS / dim) ** 0.5)


def _untargeted(found: Survey) -> Survey:
    """A survey without its target, which no file can hold."""
    return replace(found, target=None)

"""What runs when: from what the survey found to a trained leap.

``calibrate``, ``cover`` and ``distill`` begin with different flows (``plan``); before that of ``distill`` a teacher is
trained. ``auto`` takes ``calibrate`` for one mode and for modes that can be counted, and ``cover`` for a posterior with
valleys that no mixture base takes care of. Where the lean flow of ``calibrate`` is not enough for the precision that
was asked for, a larger one follows. While the verdict is bad, :meth:`Recipe.run_larger` begins again from better
particles.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from pyro_osds.choices import Network, RecipeName
from pyro_osds.explore.necks.tilted import Tilted
from pyro_osds.explore.survey import Survey
from pyro_osds.flow.coupling import FlowMap
from pyro_osds.flow.diffusion import Diffusion
from pyro_osds.flow.leap import Leap
from pyro_osds.runtime.warnings import InterruptedWarning, warn
from pyro_osds.stats.thresholds import MAX_PARETO_K
from pyro_osds.train.budget import Budget
from pyro_osds.train.distillation import Walks, retrace
from pyro_osds.train.flows import (
    LEAN_GAP,
    Builder,
    FlowOptions,
    Plan,
    diffusion_of,
    for_many,
    has_many_dimensions,
    size_of,
)
from pyro_osds.train.necks import NeckLook
from pyro_osds.train.objectives import exact_volume
from pyro_osds.train.teacher import TeacherBudget, TeacherHistory, train_teacher
from pyro_osds.train.trainer import Trainer
from pyro_osds.train.velocity import VelocityLeap, VelocityTrainer

RECIPES: tuple[RecipeName, ...] = get_args(RecipeName)
NETWORKS: tuple[Network, ...] = get_args(Network)
_DEFAULTS = FlowOptions()
# Where training leaves this much of the gap of a mixture base, a larger flow does not help either. Chosen on the
# accuracy cases.
_PROGRESS = 0.7
# Iterations to learn other numbers of steps, and again to calibrate them, from a flow that is right in one step: fewer
# than from the identity. With more, the first question for another number of steps takes longer.
_RETRACING = 200
# Half the usual rate, since the copy begins with weights that are nearly right.
_RETRACING_RATE = 5e-3


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


def decided_name(name: str, network: str, found: Survey) -> str:
    """What is trained in the end: ``"calibrate"``, ``"cover"``, ``"distill"`` or ``"velocity"``.

    The velocity network has a training of its own, so that it decides, whatever recipe was asked for; ``auto`` leaves
    it to the survey, and so does ``few_steps``, whose diffusion comes after the flow, where its verdict is bad.

    Arguments:
        name: One of ``RECIPES``.
        network: One of ``NETWORKS``.
        found: What the survey found.

    Raises:
        ValueError: If the name or the network is unknown.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe must be one of {RECIPES}, got {name!r}.")
    if network not in NETWORKS:
        raise ValueError(f"network must be one of {NETWORKS}, got {network!r}.")
    if network == "velocity":
        return "velocity"
    if name in ("auto", "few_steps"):
        return "cover" if found.is_folded else "calibrate"

    return name


class Recipe:
    """A recipe on its way: the trainer at work, and what comes after it.

    Arguments:
        found: What the survey found.
        name: One of ``RECIPES``.
        budget: Iterations, batch size and learning rate of the lean flow.
        groups: Sizes of consecutive groups of coordinates, parents before children.
        options: What the user chose of the flow.
        teacher_budget: How long to train the teacher, for ``distill``.
        more_iterations: Optimiser steps that are kept for :meth:`run_larger`.

    Raises:
        ValueError: If the name or the network is unknown.
    """

    can_escalate = True

    def __init__(
        self,
        found: Survey,
        name: str = "auto",
        budget: Budget | None = None,
        groups: Sequence[int] = (),
        options: FlowOptions = _DEFAULTS,
        teacher_budget: TeacherBudget | None = None,
        more_iterations: int = 0,
    ) -> None:
        self.found = found
        self.name = decided_name(name, options.network, found)
        self.options = options
        self.teacher = diffusion_of(found) if self.name == "distill" else None
        self.teacher_history = TeacherHistory()
        self._walks = Walks(self.teacher, options.num_time_steps) if self.teacher else None
        self._teacher_budget = teacher_budget or TeacherBudget(num_time_steps=options.num_time_steps)
        self._more_iterations = more_iterations
        self._has_many_dimensions = has_many_dimensions(found)
        self._has_grown = False
        self._contest: _Contest | None = None
        self._look = NeckLook()
        self._plan = Plan("first", found)
        budget = budget or Budget()
        self._builder = Builder(
            self.name,
            for_many(budget, found.target.dim) if self._has_many_dimensions else budget,
            groups,
            options,
            self._walks,
        )
        self.trainer: Trainer | VelocityTrainer = self._builder.build(self._plan)

    def run(self) -> None:
        """Train until good enough, stalled, out of budget, late or interrupted; ``trainer`` is the better flow.

        What was cut short goes on, bit for bit, when it is run again.
        """
        if self.teacher is not None and not self._teach(self.teacher):
            return
        self._train()
        if not self._is_training:
            self._cover_necks()

    def _train(self) -> None:
        if not self._has_grown:
            self.trainer.run()
            left = self._builder.budget.num_iterations - len(self.trainer.history.loss)
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
        self.trainer = self._builder.build(self._plan)
        assert isinstance(self.trainer, Trainer)
        self.trainer.start_from(flow)

    @property
    def is_paused(self) -> bool:
        """Whether training was cut short and would go on, or the look for necks that follows it."""
        return self._is_training or self._look.is_cut

    @property
    def _is_training(self) -> bool:
        return self._contest is not None or self.trainer.paused is not None or self.teacher_history.paused is not None

    @property
    def necks(self) -> tuple[Tilted, ...]:
        """Particles of the necks that the trained flow lacked."""
        return self._look.found

    def _cover_necks(self) -> None:
        if isinstance(self.trainer, Trainer):
            self._look.run(self.trainer, self.found.target, self._builder.budget.deadline)

    def set_deadline(self, deadline: float, seconds_per_draw: float = 0.0) -> None:
        """From now on training ends at a time.

        Arguments:
            deadline: Time of :func:`~pyro_osds.runtime.clock.now`.
            seconds_per_draw: What a weighted draw takes, where that is known.
        """
        limit = {"deadline": deadline, "seconds_per_draw": seconds_per_draw}
        self._builder = replace(self._builder, budget=replace(self._builder.budget, **limit))
        for trainer in (self.trainer, *([self._contest.challenger] if self._contest else ())):
            trainer.budget = replace(trainer.budget, **limit)

    def stay(self) -> None:
        """Make do with the better flow so far; what was cut short is not gone on with."""
        if self._contest is not None and self._contest.is_won:
            self._plan, self.found = self._contest.plan, self._contest.plan.found
        self._contest, self.teacher_history.paused, self._look.random = None, None, None
        self.trainer.stop()

    @property
    def iterations_left(self) -> int:
        """Optimiser steps that :meth:`run_larger` may take; none for what the user chose, nor in many dimensions."""
        if self.options.size is not None or self._has_many_dimensions or not isinstance(self.trainer, Trainer):
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
        flow = self.trainer
        self._compete(self._contest)
        if self._contest is None:
            self._more_iterations = 0
            self._look.is_over &= self.trainer is flow
            self._cover_necks()

    def _challenge(self, plan: Plan) -> None:
        """Put a larger flow beside the one that there is."""
        assert isinstance(self.trainer, Trainer)
        challenger = self._builder.build(plan)
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
        if self.name == "distill" and num_steps <= self.options.num_time_steps:
            return Leap(leap.base, leap.flow, num_steps)
        budget = replace(
            self._builder.budget,
            num_iterations=_RETRACING,
            first_round=_RETRACING,
            warm_up=_RETRACING,
            learning_rate=_RETRACING_RATE,
        )
        walk = Leap(leap.base, copy.deepcopy(leap.flow), num_steps)
        points = self.found.exploration.z if self.found.is_folded else None
        objective = exact_volume(target, budget.batch_size, points=points)
        Trainer(walk, target, budget, objective, retrace(leap, budget.batch_size), self.options.disable_progbar).run()

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
            "base": (contest.champion if contest else self.trainer).leap.base if self._look.is_over else None,
            "necks": self._look.found,
            "knows_necks": self._look.is_over,
            "random_at_necks": self._look.random,
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
        self._builder = replace(self._builder, name=self.name)
        self._has_grown, self._more_iterations = state["has_grown"], state["more_iterations"]
        self.teacher_history = copy.deepcopy(state["teacher_history"])
        self._plan = replace(state["plan"], found=replace(state["plan"].found, target=target))
        self.trainer = self._builder.build(self._plan)
        self.trainer.restore(state["trainer"])
        # Files of earlier versions know nothing of necks, and need not look for them.
        self._look = NeckLook(state.get("necks", ()), state.get("knows_necks", True), state.get("random_at_necks"))
        if state.get("base") is not None:
            self.trainer.leap.base = state["base"]
        if self.teacher is not None:
            self.teacher.network.load_state_dict(state["teacher"])
        if self._walks is not None:
            self._walks.taken = state["walks"]
        if state["rival"] is not None:
            self._challenge(replace(state["rival"], found=replace(state["rival"].found, target=target)))
            assert self._contest is not None
            self._contest.challenger.restore(state["rival_trainer"])
            self.trainer = self._contest.best()

    def _should_grow(self, num_iterations: int) -> bool:
        """Whether the lean flow left more than it should, and a larger one may help."""
        trainer, history = self.trainer, self.trainer.history
        if not self._builder.may_grow(self._plan) or not isinstance(trainer, Trainer) or trainer.is_enough:
            return False
        if history.interrupted or num_iterations <= 0 or history.gap[-1] <= LEAN_GAP:
            return False
        if self._has_many_dimensions:
            # The ELBO of thousands of coordinates is far from the log evidence even where the weights are good.
            return history.pareto_k[-1] > MAX_PARETO_K

        return self.found.base.num_components == 1 or history.gap[-1] <= _PROGRESS * history.gap[0]

    def _teach(self, teacher: Diffusion) -> bool:
        """Train the teacher, unless that was done before; whether it came to its end."""
        history = self.teacher_history
        if history.terms and history.paused is None:
            return True
        self.teacher_history = train_teacher(
            teacher,
            self.found.exploration.z,
            self._teacher_budget,
            self.options.disable_progbar,
            history,
            self._builder.budget.deadline,
        )
        self.trainer.history.interrupted = self.teacher_history.interrupted
        if self.teacher_history.interrupted:
            warn("The teacher's training was interrupted; the flow is not trained.", InterruptedWarning)

        return self.teacher_history.paused is None


def _untargeted(found: Survey) -> Survey:
    """A survey without its target, which no file can hold."""
    return replace(found, target=None)

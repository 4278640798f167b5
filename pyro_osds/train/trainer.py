r"""Training the leap: rounds of optimiser steps, each judged on fresh draws; the best weights are kept.

A round runs a one-cycle schedule with clipped gradients and an exponential moving average (EMA) of the weights, and is
followed by a look at fresh draws of the average. Rounds go on until the ELBO is as near to the log evidence as asked
for, a round no longer helps, or the budget, in steps or in time, is spent. Ctrl-C ends training with the best weights
so far; a run that was cut short goes on, bit for bit, when it is run again.
"""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from pyro_osds.flow.coupling import FlowMap
from pyro_osds.flow.leap import Leap
from pyro_osds.flow.replay import ReplayedFlow
from pyro_osds.runtime.clock import is_past
from pyro_osds.runtime.parallel import is_together, mean_gradients
from pyro_osds.runtime.progress import NoBar, progress_bar
from pyro_osds.runtime.warnings import InterruptedWarning, TrainingWarning, warn
from pyro_osds.stats.enough import tails_agree
from pyro_osds.stats.thresholds import MAX_PARETO_K
from pyro_osds.stats.weights import WeightSummary, log_weights_at, summarize_weights, weigh
from pyro_osds.target import Target
from pyro_osds.train.budget import Budget
from pyro_osds.train.descent import MovingAverage, clip_flat, flat_gradient
from pyro_osds.train.flat import FlatAdam, FlatParameters
from pyro_osds.train.history import History
from pyro_osds.train.loop import go_on, run_moves
from pyro_osds.train.objectives import Loss, Objective, exact_volume, reverse_kl
from pyro_osds.train.optimizer import chosen, clip, one_cycle, step_schedule

# A round that leaves more than this share of the gap did not help, and later ones are no better. Nearer to one, rounds
# are spent on noise; further from one, training ends while it helps. Chosen on the accuracy cases.
_STALL = 0.8
# By what factor a flow may miss what is enough, and still be trained further instead of giving way to a larger one: one
# more round of a lean flow halved the standard error of breast cancer, in a quarter of the time of the larger one.
_NEARLY = 2.0
_log = logging.getLogger(__name__)


@dataclass
class Course:
    """Where the rounds of training stand.

    Arguments:
        iterations_left: Steps that later rounds may take.
        num_steps: Steps of the present round or, between two, of the next one.
        best: Weights of the flow at the best look so far.
        best_score: ELBO there, nats.
        gap: Log evidence minus ELBO at the end of the last round, nats.
        phase: ``"start"``, before the first look; ``"warm_up"`` or ``"round"``, in either; ``"between"`` two rounds;
            ``"done"``.
        steps_left: Steps of the present round that are still to be taken.
        is_enough: Whether the best weights were good enough when they were looked at.
    """

    iterations_left: int
    num_steps: int
    best: dict[str, Tensor]
    best_score: float = -math.inf
    gap: float = math.inf
    phase: str = "start"
    steps_left: int = 0
    is_enough: bool = False


# Seconds of a first look that is taken however late it is, so that there is something to tell of the flow.
_SHORT = 1.0


class Trainer:
    """Trains a leap in place.

    Arguments:
        leap: The leap; ends up with the best weights found.
        target: What it should become.
        budget: How long and how hard.
        objective: What to minimise; default: both divergences on the exact weights, by path gradients.
        warm_up: What to minimise in a round before the others, if anything.
        disable_progbar: Whether to hide the progress bar.
        points: Particles of the posterior, ``(N, D)``, which the weights have to agree with before training stops
            because its flow is good enough.

    Example:
        >>> import torch
        >>> from pyro_osds.flow.base import gaussian_base
        >>> from pyro_osds.flow.coupling import FlowMap
        >>> from pyro_osds.target import FunctionTarget
        >>> target = FunctionTarget(lambda z: -0.5 * (z - 1).square().sum(-1), dim=2)
        >>> trainer = Trainer(Leap(gaussian_base(torch.randn(200, 2)), FlowMap(2)), target, disable_progbar=True)
        >>> history = trainer.run()
        >>> history.ess[-1] > 0.9
        True
    """

    def __init__(
        self,
        leap: Leap,
        target: Target,
        budget: Budget | None = None,
        objective: Objective | None = None,
        warm_up: Objective | None = None,
        disable_progbar: bool = False,
        points: Tensor | None = None,
    ) -> None:
        self.leap = leap
        self.target = target
        self.budget = budget or Budget()
        self.history = History()
        self.disable_progbar = disable_progbar
        batch_size = self.budget.batch_size
        self._points = points
        self._objective = objective or exact_volume(target, batch_size)
        self._warm_up = warm_up
        self._plain = reverse_kl(target, batch_size)
        self._flat = FlatParameters(leap.flow)
        self._replayed = self._replay()
        self._use_plain = False
        best = copy.deepcopy(leap.flow.state_dict())
        self._course = Course(self.budget.num_iterations, self.budget.first_round, best)
        self.paused: dict[str, Any] | None = None
        if self.budget.optim is not None:
            self._optimizer, self._scheduler = chosen(leap.flow, self.budget.optim)
        self._start_round()

    def _start_round(self, num_steps: int | None = None) -> None:
        """A fresh optimiser and average; without a number of steps the learning rate stays constant.

        An optimiser that the user chose goes on.
        """
        if self.budget.optim is None:
            optimizer = FlatAdam(self._flat, self.budget.learning_rate)
            self._optimizer, self._scheduler = one_cycle(optimizer, self.budget.learning_rate, num_steps)
        self._average = MovingAverage(self.leap.flow, self._flat)

    def _replay(self) -> Leap:
        """The leap whose passes are recorded, on the vector of the present weights."""
        replayed = ReplayedFlow(self.leap.flow, self._flat.vector)

        return Leap(self.leap.base, cast("FlowMap", replayed), self.leap.num_steps)

    def step(self) -> float:
        """One optimiser step; returns the negative mean log weight of its batch, nats."""
        return self._step(self._plain if self._use_plain else self._objective)

    def _step(self, objective: Objective) -> float:
        if self._flat.keep():
            self._replayed = self._replay()
        loss = objective(self._replayed, self.averaged())
        (gradient,) = mean_gradients([flat_gradient(loss.total, self._flat)])
        value = _mean_loss(loss)
        self.history.record(value, loss.terms)
        if clip_flat(gradient):
            self._use_plain = False
            self._descend(gradient)
            self._average.update()
        else:
            # The next step is a plain one.
            self._use_plain = True
            self.history.num_skipped += 1
        step_schedule(self._scheduler, value)

        return value

    def _descend(self, gradient: Tensor) -> None:
        """One step of the optimiser; one that the user chose sees parameters, not their vector."""
        self._flat.vector.grad = gradient
        if self.budget.optim is not None:
            for parameter, part in zip(self._flat.parameters, self._flat.views(gradient), strict=True):
                parameter.grad = part
            clip(self.leap.flow, self.budget.optim)
        self._optimizer.step()

    def evaluate(self) -> float:
        """Negative ELBO on a fresh batch of the averaged weights, nats."""
        log_weight = weigh(self.averaged(), self.target, self.budget.batch_size).log_weight

        return -log_weight[log_weight.isfinite()].mean().item()

    def averaged(self) -> Leap:
        """The leap with the moving average of its weights."""
        return Leap(self.leap.base, cast("FlowMap", self._average.module), self.leap.num_steps)

    def run(self) -> History:
        """Train until good enough, stalled, out of budget, late or interrupted; the leap keeps the best weights.

        What was cut short, by Ctrl-C or by the deadline, goes on from its last whole step when it is run again; what
        ended by itself has ended.
        """
        go_on(self, self.paused)
        if self.is_done:
            return self.history
        num_steps = self.budget.num_iterations + (self.budget.warm_up if self._warm_up else 0)
        run_moves(self, progress_bar(num_steps - len(self.history.loss), "Train", self.disable_progbar))
        if self.history.num_skipped:
            warn(self.history.why_skipped, TrainingWarning)

        return self.history

    @property
    def is_done(self) -> bool:
        """Whether training came to its end."""
        return self._course.phase == "done"

    @property
    def is_enough(self) -> bool:
        """Whether the best weights were good enough for what was asked for."""
        return self._course.is_enough

    @property
    def is_late(self) -> bool:
        """Whether the deadline has passed, or will have after the next look; a short first one is always taken."""
        course, budget = self._course, self.budget
        look = self._num_looked_at * budget.seconds_per_draw
        if course.phase == "start" and look <= _SHORT:
            return False
        looks = course.phase == "start" or (course.phase != "between" and not course.steps_left)

        return is_past(budget.deadline - looks * look)

    def advance(self, progress: NoBar) -> None:
        """One whole move: a step, or the look that ends a round and decides what follows."""
        course = self._course
        if course.phase == "start":
            course.best_score = self._validate()[0].elbo
            course.phase = "between"
            if self._warm_up is not None:
                self._begin_round("warm_up", self.budget.warm_up)
        elif course.phase == "between":
            self._begin_round("round", min(course.num_steps, course.iterations_left))
            course.iterations_left -= course.steps_left
        elif course.steps_left:
            loss = self.step() if self._warm_up is None or course.phase == "round" else self._step(self._warm_up)
            progress.set_postfix(loss=f"{loss:.3f}")
            course.steps_left -= 1
            progress.update()
        else:
            self._end_round(progress)

    def _begin_round(self, phase: str, num_steps: int) -> None:
        course = self._course
        course.phase, course.num_steps, course.steps_left = phase, num_steps, num_steps
        self._start_round(num_steps)

    def _end_round(self, progress: NoBar) -> None:
        """Look at fresh draws, keep the better weights, and choose how to go on."""
        course, budget = self._course, self.budget
        weights, shortfall = self._validate()
        score, gap, k = weights.elbo, self.history.gap[-1], weights.pareto_k
        average = copy.deepcopy(self._average.module.state_dict())
        if course.phase == "warm_up":
            # Better or worse by its ELBO: it is where the modes are.
            course.best, course.best_score, course.num_steps, stop = average, score, budget.first_round, False
        else:
            progress.set_postfix(ELBO=f"{score:.3f}", pareto_k=f"{k:.2f}")
            if score > course.best_score:
                course.best, course.best_score = average, score
                course.is_enough = shortfall <= 1.0
            hopeless = gap > budget.max_gap and shortfall > _NEARLY
            good = course.is_enough or (gap < budget.elbo_gap and k < MAX_PARETO_K)
            stop = good or hopeless or gap > _STALL * course.gap
            course.gap, course.num_steps = gap, course.num_steps + course.num_steps // 2
        self.leap.flow.load_state_dict(course.best)
        course.phase = "between"
        if stop or course.iterations_left <= 0:
            self.stop()

    def start_from(self, flow: FlowMap) -> None:
        """Take over the weights of another flow of the same size, before any training."""
        self.leap.flow.load_state_dict(flow.state_dict())
        self._course.best = copy.deepcopy(flow.state_dict())
        self._start_round()

    def stop(self) -> None:
        """End training as it stands; steps by hand go on from these weights, at a constant rate."""
        self._course.phase, self.paused = "done", None
        self._start_round()

    def end_early(self, paused: dict[str, Any], interrupt: KeyboardInterrupt | None) -> None:
        """Note where to go on, then put the better weights so far to use.

        Arguments:
            paused: Where training stands.
            interrupt: What cut it short, unless it was the deadline.
        """
        self.paused = paused
        if interrupt is None:
            self._keep_late()
        elif is_together():
            # The other processes are elsewhere and cannot be asked to judge what there is.
            raise interrupt
        else:
            self._keep_interrupted()

    def _keep_late(self) -> None:
        """The time is over: the average so far is kept if it is better than the best round, or warmed up."""
        course = self._course
        if course.phase in ("start", "between"):
            return
        # There is no time for a long look where densities come point by point.
        score = self._validate(None if self.target.vectorized else self.budget.batch_size)[0].elbo
        is_better = course.phase == "warm_up" or score > course.best_score
        self.leap.flow.load_state_dict(self._average.module.state_dict() if is_better else course.best)

    def _keep_interrupted(self) -> None:
        """Ctrl-C in the middle of a round: the average so far is kept if it is better than the best round."""
        self.history.interrupted = True
        average = self._average.module.state_dict()
        score = self._validate()[0].elbo
        self.leap.flow.load_state_dict(average if score > self._course.best_score else self._course.best)
        warn("Training was interrupted; the best weights so far are used.", InterruptedWarning)

    # ---- where training stands ----

    def state(self) -> dict[str, Any]:
        """All that further steps and rounds depend on, except random numbers."""
        return {
            "flow": self.leap.flow.state_dict(),
            "average": self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._scheduler.state_dict() if self._scheduler else {},
            "use_plain": self._use_plain,
            "history": self.history,
            "course": self._course,
            "paused": self.paused,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Stand where another trainer of the same flow and budget stood.

        Arguments:
            state: What its :meth:`state` gave; it stays as it is.
        """
        state = copy.deepcopy(state)
        self.history, self._course, self.paused = state["history"], state["course"], state["paused"]
        self._use_plain = state["use_plain"]
        self._start_round(state["schedule"].get("total_steps"))
        self.leap.flow.load_state_dict(state["flow"])
        self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._scheduler is not None:
            self._scheduler.load_state_dict(state["schedule"])

    @property
    def _num_looked_at(self) -> int:
        return max(self.budget.batch_size, self.budget.num_validation_draws)

    def _validate(self, num_draws: int | None = None) -> tuple[WeightSummary, float]:
        """What fresh draws say of the averaged weights, and by what factor these are not good enough."""
        log_weight = weigh(self.averaged(), self.target, num_draws or self._num_looked_at).log_weight
        weights, enough = summarize_weights(log_weight), self.budget.enough
        self.history.look(weights, weights.elbo)
        _log.debug("step %d: ELBO %.4f, pareto k %.2f", len(self.history.loss), weights.elbo, weights.pareto_k)

        shortfall = enough.shortfall(weights, log_weight) if enough else math.inf
        if shortfall <= _NEARLY and self._points is not None:
            of_particles = log_weights_at(self.averaged(), self.target, self._points)
            shortfall = shortfall if tails_agree(log_weight, of_particles) else math.inf

        return weights, shortfall


def _mean_loss(loss: Loss) -> float:
    """The negative mean log weight, nats, of draws that have one; the loss itself where there are no draws."""
    log_weight = loss.log_weight
    if not len(log_weight):
        return loss.total.item()
    value = -log_weight.mean().item()
    if math.isfinite(value):
        return value
    finite = log_weight[log_weight.isfinite()]

    return -finite.mean().item() if len(finite) else math.nan

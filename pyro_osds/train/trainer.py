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
import time
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pyro_osds.flow.coupling import FlowMap
from pyro_osds.flow.leap import Leap
from pyro_osds.flow.replay import ReplayedFlow
from pyro_osds.runtime.parallel import is_together, mean_gradients
from pyro_osds.runtime.progress import progress_bar
from pyro_osds.runtime.resume import random_state, set_random_state, uncut
from pyro_osds.runtime.warnings import InterruptedWarning, TrainingWarning, warn
from pyro_osds.stats.weights import effective_sample_size, log_mean_weight, lower_bound, pareto_k, weigh
from pyro_osds.target import Target
from pyro_osds.train.objectives import Objective, exact_volume, reverse_kl
from pyro_osds.train.optimizer import chosen, clip, one_cycle, step_schedule

_EMA_DECAY = 0.98
_MAX_GRADIENT_NORM = 1.0
_update = get_ema_multi_avg_fn(_EMA_DECAY)
_STALL = 0.8
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Budget:
    """How long and how hard to train.

    Arguments:
        num_iterations: Optimiser steps at most, over all rounds.
        batch_size: Draws per step.
        learning_rate: Peak of each round's one-cycle schedule.
        first_round: Steps of the first round; each later one is one and a half times as long.
        warm_up: Steps of the round before, if there is a warm-up objective; they do not count as iterations.
        max_gap: Give up after the first round if the ELBO is further from the log evidence, nats.
        elbo_gap: Stop when the ELBO is this close to the log evidence, nats, and the weights have a good tail.
        num_validation_draws: Fresh draws to judge a round on.
        deadline: Time of ``time.perf_counter`` at which training ends with what it has.
        optim: A Pyro optimiser to use instead of Adam on a one-cycle schedule; it brings its own learning rate.
    """

    num_iterations: int = 1000
    batch_size: int = 256
    learning_rate: float = 1e-2
    first_round: int = 250
    warm_up: int = 300
    max_gap: float = math.inf
    elbo_gap: float = 0.02
    num_validation_draws: int = 4096
    deadline: float = math.inf
    optim: Any = None


@dataclass
class History:
    """What training saw, one entry per step or per round.

    Arguments:
        loss: Negative mean log weight of each step's batch, nats; a warm-up without weights gives its own loss.
        terms: The parts of the loss by name, one value a step; nan where a step had no such part.
        step: Steps done at the end of each round.
        elbo: ELBO on fresh draws at the end of each round, nats.
        gap: Log evidence minus ELBO there, nats.
        ess: Effective sample size there, as a share of the draws.
        pareto_k: Pareto k there.
        num_skipped: Steps whose gradient was not finite, and that were left out.
        interrupted: Whether Ctrl-C ended training.
    """

    loss: list[float] = field(default_factory=list)
    terms: dict[str, list[float]] = field(default_factory=dict)
    step: list[int] = field(default_factory=list)
    elbo: list[float] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)
    ess: list[float] = field(default_factory=list)
    pareto_k: list[float] = field(default_factory=list)
    num_skipped: int = 0
    interrupted: bool = False

    def record(self, loss: float, terms: dict[str, Tensor]) -> None:
        """Add a step: its loss, and the parts of it that it had."""
        for name in terms:
            self.terms.setdefault(name, [math.nan] * len(self.loss))
        for name, values in self.terms.items():
            values.append(terms[name].item() if name in terms else math.nan)
        self.loss.append(loss)

    @property
    def best_elbo(self) -> float:
        """The highest ELBO of any look, nats."""
        return max(self.elbo)

    def extend(self, other: History) -> None:
        """Append what another trainer saw later."""
        done = len(self.loss)
        for name in self.terms.keys() | other.terms.keys():
            before = self.terms.get(name, [math.nan] * done)
            self.terms[name] = before + other.terms.get(name, [math.nan] * len(other.loss))
        self.loss += other.loss
        self.step += [done + step for step in other.step]
        self.elbo += other.elbo
        self.gap += other.gap
        self.ess += other.ess
        self.pareto_k += other.pareto_k
        self.num_skipped += other.num_skipped
        self.interrupted |= other.interrupted


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
    """

    iterations_left: int
    num_steps: int
    best: dict[str, Tensor]
    best_score: float = -math.inf
    gap: float = math.inf
    phase: str = "start"
    steps_left: int = 0


class Trainer:
    """Trains a leap in place.

    Arguments:
        leap: The leap; ends up with the best weights found.
        target: What it should become.
        budget: How long and how hard.
        objective: What to minimise; default: both divergences on the exact weights, by path gradients.
        warm_up: What to minimise in a round before the others, if anything.
        disable_progbar: Whether to hide the progress bar.

    Example:
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
    ) -> None:
        self.leap = leap
        self.target = target
        self.budget = budget or Budget()
        self.history = History()
        self.disable_progbar = disable_progbar
        batch_size = self.budget.batch_size
        self._objective = objective or exact_volume(target, batch_size)
        self._warm_up = warm_up
        self._plain = reverse_kl(target, batch_size)
        self._parameters: list[Tensor] = list(leap.flow.parameters())
        self._replayed = Leap(leap.base, cast("FlowMap", ReplayedFlow(leap.flow)), leap.num_steps)
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
            self._optimizer, self._scheduler = one_cycle(self.leap.flow, self.budget.learning_rate, num_steps)
        self._average = AveragedModel(self.leap.flow, multi_avg_fn=_update)
        self._averaged_parameters: list[Tensor] = list(self._average.parameters())

    def step(self) -> float:
        """One optimiser step; returns the negative mean log weight of its batch, nats."""
        return self._step(self._plain if self._use_plain else self._objective)

    def _step(self, objective: Objective) -> float:
        loss = objective(self._replayed, self.averaged())
        gradients = torch.autograd.grad(loss.total, self._parameters, allow_unused=True, materialize_grads=True)
        gradients = mean_gradients(gradients)
        finite = loss.log_weight[loss.log_weight.isfinite()]
        value = -finite.mean().item() if len(finite) else loss.total.item() if not len(loss.log_weight) else math.nan
        self.history.record(value, loss.terms)
        # The norm tells whether any entry is not finite; such a step is skipped, and the next one is a plain one.
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        usable = bool(norm.isfinite())
        self._use_plain = not usable
        if usable:
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                parameter.grad = gradient
            clip_grads_with_norm_(self._parameters, _MAX_GRADIENT_NORM, norm)
            if self.budget.optim is not None:
                clip(self.leap.flow, self.budget.optim)
            self._optimizer.step()
            self._update_average()
        else:
            self.history.num_skipped += 1
        step_schedule(self._scheduler, value)

        return value

    def _update_average(self) -> None:
        """As ``AveragedModel.update_parameters``, which looks through all modules for their parameters each time."""
        average = self._average
        if average.n_averaged == 0:
            average.update_parameters(self.leap.flow)
            return
        with torch.no_grad():
            _update(self._averaged_parameters, self._parameters, average.n_averaged)
        average.n_averaged += 1

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
        if self.paused is not None:
            set_random_state(self.paused["random"])
            self.restore(self.paused)
        if self._course.phase == "done":
            return self.history
        num_steps = self.budget.num_iterations + (self.budget.warm_up if self._warm_up else 0)
        progress = progress_bar(num_steps - len(self.history.loss), "Train", self.disable_progbar)
        random = random_state()
        try:
            while self._course.phase == "start" or (self._course.phase != "done" and not self._is_late):
                with uncut():
                    self._advance(progress)
                    random = random_state()
            if self._course.phase != "done":
                self._pause(random)
                self._keep_late()
        except KeyboardInterrupt:
            self._pause(random)
            if is_together():
                # The other processes are elsewhere and cannot be asked to judge what there is.
                raise
            self._keep_interrupted()
        finally:
            progress.close()
        if self.history.num_skipped:
            warn(
                f"{self.history.num_skipped} of {len(self.history.loss)} training steps had a gradient that is not "
                "finite and were skipped; the log density may overflow near the posterior.",
                TrainingWarning,
            )

        return self.history

    def _advance(self, progress: Any) -> None:
        """One whole move: a step, or the look that ends a round and decides what follows."""
        course = self._course
        if course.phase == "start":
            course.best_score, _, _ = self._validate()
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

    def _end_round(self, progress: Any) -> None:
        """Look at fresh draws, keep the better weights, and choose how to go on."""
        course, budget = self._course, self.budget
        score, gap, k = self._validate()
        average = copy.deepcopy(self._average.module.state_dict())
        if course.phase == "warm_up":
            # Better or worse by its ELBO: it is where the modes are.
            course.best, course.best_score, course.num_steps, stop = average, score, budget.first_round, False
        else:
            progress.set_postfix(ELBO=f"{score:.3f}", pareto_k=f"{k:.2f}")
            if score > course.best_score:
                course.best, course.best_score = average, score
            stop = (gap < budget.elbo_gap and k < 0.7) or gap > _STALL * course.gap or gap > budget.max_gap
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

    @property
    def _is_late(self) -> bool:
        return time.perf_counter() > self.budget.deadline

    def _keep_late(self) -> None:
        """The time is over: the average so far is kept if it is better than the best round, or warmed up."""
        course = self._course
        if course.phase == "between":
            return
        score, _, _ = self._validate()
        is_better = course.phase == "warm_up" or score > course.best_score
        self.leap.flow.load_state_dict(self._average.module.state_dict() if is_better else course.best)

    def _keep_interrupted(self) -> None:
        """Ctrl-C in the middle of a round: the average so far is kept if it is better than the best round."""
        self.history.interrupted = True
        average = self._average.module.state_dict()
        score, _, _ = self._validate()
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

    def _pause(self, random: dict[str, Any]) -> None:
        """Note where to go on, before the weights so far are put to use."""
        self.paused = {**copy.deepcopy(self.state()), "random": random}

    def _validate(self) -> tuple[float, float, float]:
        """ELBO, its distance to the log evidence, and pareto k of the averaged weights, on fresh draws."""
        num_draws = max(self.budget.batch_size, self.budget.num_validation_draws)
        log_weight = weigh(self.averaged(), self.target, num_draws).log_weight
        elbo = lower_bound(log_weight)
        k = pareto_k(log_weight)
        self.history.step.append(len(self.history.loss))
        self.history.elbo.append(elbo)
        self.history.gap.append(log_mean_weight(log_weight)[0] - elbo)
        self.history.ess.append(effective_sample_size(log_weight) / len(log_weight))
        self.history.pareto_k.append(k)
        _log.debug("step %d: ELBO %.4f, gap %.4f, pareto k %.2f", len(self.history.loss), elbo, self.history.gap[-1], k)

        return elbo, self.history.gap[-1], k

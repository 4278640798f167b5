"""One fit: a posterior on its way from a density to a trained leap, its draws and the verdict on them.

Everything that belongs to one set of model arguments is here; :class:`pyro_osds.OSDS` makes a new one for others.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any, cast

from torch import Tensor

from pyro_osds.explore.journal import Journal
from pyro_osds.explore.particles import GivenDraws
from pyro_osds.explore.stopped import survey_in_time
from pyro_osds.explore.survey import Survey
from pyro_osds.explore.warm_start import FarOffError, survey_from
from pyro_osds.fit_draws import AnyLeap, AnyTrainer, FitDraws
from pyro_osds.fit_stages import escalation_of
from pyro_osds.fit_state import given_report, log_choices, restored, state_of
from pyro_osds.flow.leap import Leap
from pyro_osds.flow.walk import Walk
from pyro_osds.posterior.draws import PosteriorDraws
from pyro_osds.posterior.escalation import Stages
from pyro_osds.posterior.no_latents import PointRecipe
from pyro_osds.posterior.pace import reserve, seconds_per_draw
from pyro_osds.runtime.clock import OutOfTimeError, now, time_limit
from pyro_osds.runtime.resume import random_state, set_random_state
from pyro_osds.runtime.warnings import InterruptedWarning, ModelWarning, warn
from pyro_osds.runtime.watch.callback import is_watched, keep_place, tell
from pyro_osds.settings import Settings
from pyro_osds.target import as_target
from pyro_osds.train.recipe import Recipe

EXPLORING_SHARE = 0.5
"""Of the time of a run, what exploration may take: with less, a base is bad; with more, no training makes up for it."""

_log = logging.getLogger(__name__)


class Fit(FitDraws):
    """A posterior that was explored, and is trained, drawn from and judged when it is asked to.

    Arguments:
        target: The user's posterior, as a target.
        settings: How to fit.
        found: What exploration found; None where there are no coordinates to explore.
        starts: Unconstrained points to look around first, ``(S, D)``.
        deadline: Time of :func:`~pyro_osds.runtime.clock.now` at which the run ends, with what it has.
        stopped: The journal of an exploration that was stopped before its end.
        drawn: Draws from elsewhere, in the target's coordinates, that take the place of the way from the prior.

    Example:
        >>> import torch
        >>> from pyro_osds.target import FunctionTarget
        >>> torch.manual_seed(0) and None
        >>> normal = FunctionTarget(lambda z: -0.5 * z.square().sum(-1), dim=2)
        >>> fit = Fit.explored(normal, Settings(disable_progbar=True))
        >>> fit.run()
        >>> print(f"{fit.draws.evidence.log_evidence:.2f}")  # exact: log(2 pi) = 1.84
        1.84
    """

    def __init__(
        self,
        target: Any,
        settings: Settings,
        found: Survey | None,
        starts: Tensor | None = None,
        deadline: float = math.inf,
        stopped: Journal | None = None,
        drawn: GivenDraws | None = None,
    ) -> None:
        self.settings = settings
        self.given = target = as_target(target)
        self.starts, self.drawn = starts, drawn
        self._held = None
        self.recipe: Recipe | PointRecipe
        self._deadline, self._per_draw = deadline, 0.0
        self.stopped = stopped
        if found is None:
            self.recipe, self.target = PointRecipe(target), target
        else:
            self.target = found.target
            groups = [site.stop - site.start for site in self.target.sites]
            budget = settings.budget(target, deadline)
            self.recipe = Recipe(
                found, settings.recipe, budget, groups, settings.flow_options, more_iterations=settings.more_iterations
            )
        self.trainer: AnyTrainer = self.recipe.trainer
        self.leap: AnyLeap = self.trainer.leap
        self.start_report: tuple[str, ...] = ()
        self.run_report: tuple[str, ...] = ()
        names = ("training_time", "sampling_time", "escalation_time", "exploration_time")
        self.seconds = dict.fromkeys(names, 0.0)
        self.is_interrupted = False
        self.stages = Stages()
        self.few_steps: dict[int, AnyLeap] = {}
        self.walk: Walk | None = None
        self._draws: PosteriorDraws | None = None
        self.forgotten: PosteriorDraws | None = None
        self._samples: dict[str, Tensor] = {}

    @classmethod
    def explored(
        cls,
        target: Any,
        settings: Settings,
        starts: Tensor | None = None,
        deadline: float = math.inf,
        journal: Journal | None = None,
        kept: float | None = None,
        drawn: GivenDraws | None = None,
    ) -> Fit:
        """A fit of a posterior that is explored now; an exploration that is stopped leaves what it has found.

        Arguments:
            target: The user's posterior, as a target.
            settings: How to fit.
            starts: Unconstrained points to look around first, ``(S, D)``.
            deadline: Time of :func:`~pyro_osds.runtime.clock.now` at which the run ends, with what it has.
            journal: What an exploration noted that was stopped, to go on with.
            kept: Seconds to keep for what follows; default: a share of the time that there is.
            drawn: Draws from elsewhere to look at instead.
        """
        start, found, stopped, target, journal = now(), None, "", as_target(target), journal or Journal()
        if target.dim > 0:
            num_particles = settings.particles(target)
            limit = start + EXPLORING_SHARE * (deadline - start) if kept is None else deadline - kept
            last = math.inf if kept is None else deadline
            shared = settings.distributed
            declared = settings.symmetries
            found, stopped = survey_in_time(
                target, num_particles, starts, journal, limit, shared, last, drawn, declared
            )
        deadline = -math.inf if stopped == "Ctrl-C" else deadline
        fit = cls(target, settings, found, starts, deadline, journal if stopped else None, drawn)
        fit.start_report = (f"exploration: stopped by {stopped}, {found.progress}",) if found and stopped else ()
        fit.start_report = (*given_report(found), *fit.start_report)
        fit.seconds["exploration_time"] = now() - start
        log_choices(fit)

        return fit

    @classmethod
    def warm(cls, before: Fit, target: Any, starts: Tensor | None = None, deadline: float = math.inf) -> Fit:
        """A fit of another posterior nearby, from the flow of this one; explored anew where that is far off.

        Arguments:
            before: The other fit; it stays as it is.
            target: The new posterior, as a target.
            starts: Unconstrained points to look around first, ``(S, D)``.
            deadline: Time of :func:`~pyro_osds.runtime.clock.now` at which the run ends, with what it has.
        """
        start, settings, leap = now(), before.settings, before.leap
        try:
            if before.recipe.found is None:
                raise FarOffError("there is no flow")
            with time_limit(start + EXPLORING_SHARE * (deadline - start)):
                found = survey_from(leap, before.recipe.found, target, settings.num_particles, starts)
        except (FarOffError, OutOfTimeError) as cause:
            reason = cause if isinstance(cause, FarOffError) else "a look from the last fit took too long"
            fit = cls.explored(target, settings, starts, deadline)
            fit.start_report = (f"warm start: explored anew, since {reason}", *fit.start_report)
        else:
            fit = cls(target, settings, found, deadline=deadline)
            cast("Recipe", fit.recipe).start_from(cast("Leap", leap).flow)
            fit.trainer = fit.recipe.trainer
            fit.leap = fit.trainer.leap
            fit.start_report = ("warm start: from the flow of the last fit",)
            log_choices(fit)
        fit.run_report = fit.start_report
        fit.seconds["exploration_time"] = now() - start

        return fit

    # ---- training ----

    def begin(self) -> None:
        """Tell whoever watches of the exploration, and run."""
        found = self.recipe.found
        if found is not None and self.stopped is None:
            explored = found.exploration
            try:
                tell("exploration", 0, math.nan, explored.log_evidence, explored.std_error)
                keep_place(True)
            except KeyboardInterrupt:
                self._deadline = -math.inf
        self.run()
        keep_place(self.is_interrupted)

    def _tell(self, stage: str, draws: PosteriorDraws) -> None:
        """Tell whoever watches of a stage; one that stops a run with more to do leaves the place to go on from."""
        if not is_watched():
            return
        evidence, began = draws.evidence, self.stages.random
        is_over = evidence.is_settled or self.recipe.is_paused
        self.stages.random = began if is_over else random_state()
        try:
            if not self.recipe.is_paused:
                keep_place(not is_over)
            numbers = evidence.elbo, evidence.log_evidence, evidence.std_error
            tell(stage, len(self.trainer.history.loss), *numbers, evidence.reliable)
        except KeyboardInterrupt:
            if is_over:
                return
            raise
        self.stages.random = began

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Refused: ``osds.fit(y)`` is meant as a call of ``run``.

        Raises:
            TypeError: Always.
        """
        raise TypeError("fit is the fit itself, and no method: call osds.run(...) with the model's arguments.")

    def run(self) -> None:
        """Train, draw, judge, and climb further stages while the verdict is bad; what was cut short goes on.

        Where exploration was stopped and training ended early, the rest of the time goes back to exploration. A second
        Ctrl-C waits for nothing: what there is has not been judged, and can be gone on with all the same.
        """
        try:
            self._run_in_time()
        except KeyboardInterrupt:
            self.is_interrupted, self._deadline, self._per_draw = True, math.inf, 0.0
            self.trainer, self.leap = self.recipe.trainer, self.recipe.trainer.leap
            raise

    def _run_in_time(self) -> None:
        """Train and judge, and explore for as long as training leaves time for it."""
        deadline, start = self._deadline, now()
        self._run_once()
        while self.stopped is not None and not self.recipe.is_paused and deadline - now() > now() - start:
            # What follows exploration may take as long again.
            self._explore_on(deadline, kept=now() - start)
            deadline, start = self._deadline, now()
            self._run_once()
        agreement = self.agreement()
        if agreement is not None and not self.is_interrupted:
            self.run_report += (f"initial_samples: {agreement.sentence}",)
            if not agreement.agrees and self.draws.evidence.reliable:
                # Nothing else would tell whoever reads the number alone.
                warn(f"initial_samples: {agreement.sentence}", ModelWarning)

    def _run_once(self) -> None:
        start, self._held = now(), None
        if self._deadline < math.inf and self.recipe.found is not None:
            self._per_draw = seconds_per_draw(self.leap, self.target)
        num_draws, left = self.settings.num_chains * self.settings.num_samples, self._deadline - now()
        for_draws = reserve(num_draws, self._per_draw, self.target.vectorized, left)
        self.recipe.set_deadline(self._deadline - for_draws, self._per_draw)
        self.recipe.run()
        self.trainer = self.recipe.trainer
        self.leap = self.trainer.leap
        self.seconds["training_time"] += now() - start
        self.is_interrupted = self.recipe.is_paused
        _log.info("training: %s, %.1f s", self.trainer.history.headline, self.seconds["training_time"])
        if self.recipe.can_escalate and self.settings.escalate:
            self._escalate(cast("Recipe", self.recipe))
        else:
            if self._deadline < math.inf:
                self.is_interrupted |= not self.draws.is_whole
            if is_watched():
                self._tell("flow", self.draws)
        self.is_interrupted |= self.stopped is not None
        # What is asked for afterwards has all the time that it takes.
        self._deadline, self._per_draw = math.inf, 0.0

    def resume(self, deadline: float = math.inf) -> None:
        """Go on where a run was cut short, by Ctrl-C or by its deadline, as if it had not been.

        Arguments:
            deadline: Time of :func:`~pyro_osds.runtime.clock.now` at which it ends again, with what it has.
        """
        if self.stopped is not None:
            self._explore_on(deadline)
        self._deadline = deadline
        self._draws, self.forgotten, self.few_steps = None, None, {}
        self.run()

    def _explore_on(self, deadline: float, kept: float | None = None) -> None:
        """Take up an exploration that was stopped, and begin with training again."""
        again = Fit.explored(self.given, self.settings, self.starts, deadline, self.stopped, kept, self.drawn)
        for name, seconds in self.seconds.items():
            again.seconds[name] += seconds
        self.__dict__ = again.__dict__

    def step(self) -> float:
        """One optimiser step; the loss, nats. A run that was cut short stays so."""
        self._draws, self.forgotten, self.few_steps, self._held = None, None, {}, None
        if self.is_interrupted:
            self.recipe.stay()
            self.stages, self.stopped, self.is_interrupted = Stages(), None, False

        return self.trainer.step()

    def _escalate(self, recipe: Recipe) -> None:
        """Climb the stages that the verdict asks for; Ctrl-C keeps what the last one gave."""

        def keep(draws: PosteriorDraws, report: str) -> None:
            self.trainer, self.leap = recipe.trainer, recipe.trainer.leap
            self.run_report += (report,)
            _log.info("stage: %s", report)
            self.keep(draws)
            self._tell(report.partition(":")[0], draws)

        start = now()
        self.run_report = self.start_report
        if self.stages.random is not None:
            # Where the stage that was cut short, or the next one, begins.
            set_random_state(self.stages.random)
            self.stages.random = None
        # What is judged of a training that was cut short is judged for now only.
        stages = Stages() if recipe.is_paused else self.stages
        escalation, is_hopeless = escalation_of(self, recipe, self._judge, self._deadline, stages)
        try:
            draws = escalation.judged_once("flow", lambda: self.draws)
            self.leap = recipe.trainer.leap
            escalation.climb(draws, keep)
        except KeyboardInterrupt:
            warn("Escalation was interrupted; the last verdict stands.", InterruptedWarning)
        self.is_interrupted = recipe.is_paused or (escalation.is_cut_short and not is_hopeless)
        if not self.is_interrupted:
            self.stages = Stages()
        elif self._draws is not None:
            self._draws = replace(self._draws, evidence=self._draws.evidence.cut_short())
        self.seconds["escalation_time"] += now() - start
        _log.info("drawn and judged in %(sampling_time).1f s, escalated in %(escalation_time).1f s", self.seconds)

    # ---- where the fit stands ----

    def state(self) -> dict[str, Any]:
        """All that draws, verdicts and further training depend on, except the target and random numbers."""
        return state_of(self)

    @classmethod
    def restored(cls, target: Any, settings: Settings, state: dict[str, Any]) -> Fit:
        """A fit that stands where another one stood: one of the same density and settings, with this :meth:`state`."""
        return restored(cls, as_target(target), settings, state)

    def __getstate__(self) -> dict[str, Any]:
        return {"target": self.given, "settings": self.settings, "state": self.state()}

    def __setstate__(self, stored: dict[str, Any]) -> None:
        self.__dict__ = Fit.restored(stored["target"], stored["settings"], stored["state"]).__dict__

"""One fit: a posterior on its way from a density to a trained leap, its draws and the verdict on them.

Everything that belongs to one set of model arguments is here; :class:`pyro_osds.OSDS` makes a new one for others.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from pyro_osds.explore.coordinates import coordinates_of, in_coordinates
from pyro_osds.explore.survey import Survey, explore_anew, is_affordable, survey
from pyro_osds.explore.warm_start import FarOffError, survey_from
from pyro_osds.flow.leap import Leap, is_bijective
from pyro_osds.posterior.draws import (
    NUM_REPLICATES,
    PosteriorDraws,
    annealed_posterior,
    draw_posterior,
    particles_for,
    refined_posterior,
)
from pyro_osds.posterior.escalation import Escalation, Stages
from pyro_osds.posterior.evidence import EvidenceCheck, Reason
from pyro_osds.posterior.no_latents import PointLeap, PointRecipe, PointTrainer
from pyro_osds.posterior.objections import hopeless_objections, model_objections
from pyro_osds.posterior.readings import by_chain, by_draw
from pyro_osds.runtime.arguments import check_powers_of_two
from pyro_osds.runtime.warnings import InterruptedWarning, warn
from pyro_osds.settings import Settings
from pyro_osds.stats.weights import WeightedDraws, weigh
from pyro_osds.target import as_target
from pyro_osds.train.recipe import Recipe
from pyro_osds.train.trainer import Trainer
from pyro_osds.train.velocity import VelocityLeap, VelocityTrainer

AnyLeap = Leap | VelocityLeap | PointLeap
AnyTrainer = Trainer | VelocityTrainer | PointTrainer

_log = logging.getLogger(__name__)


class Fit:
    """A posterior that was explored, and is trained, drawn from and judged when it is asked to.

    Arguments:
        target: The user's posterior, as a target.
        settings: How to fit.
        found: What exploration found; None where there are no coordinates to explore.
        starts: Unconstrained points to look around first, ``(S, D)``.
        deadline: Time of ``time.perf_counter`` after which no more training begins.

    Example:
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
    ) -> None:
        self.settings = settings
        self.given = target = as_target(target)
        self._starts = starts
        self.recipe: Recipe | PointRecipe
        self._deadline = deadline
        if found is None:
            self.recipe, self.target = PointRecipe(target), target
        else:
            vectorized, num_terms = target.vectorized, target.num_terms
            self.target = found.target
            groups = [site.stop - site.start for site in self.target.sites]
            budget = settings.budget(vectorized, deadline, num_terms)
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
        self._stages = Stages()
        self._few_steps: dict[int, AnyLeap] = {}
        self._draws: PosteriorDraws | None = None
        self._samples: dict[str, Tensor] = {}

    @classmethod
    def explored(cls, target: Any, settings: Settings, starts: Tensor | None = None, deadline: float = math.inf) -> Fit:
        """A fit of a posterior that is explored now.

        Arguments:
            target: The user's posterior, as a target.
            settings: How to fit.
            starts: Unconstrained points to look around first, ``(S, D)``.
            deadline: Time of ``time.perf_counter`` after which no more training begins.
        """
        start, found, target = time.perf_counter(), None, as_target(target)
        if target.dim > 0:
            found = survey(target, settings.particles(target.vectorized, target.num_terms), starts=starts)
        fit = cls(target, settings, found, starts, deadline)
        fit.seconds["exploration_time"] = time.perf_counter() - start
        fit.log_choices()

        return fit

    @classmethod
    def warm(cls, before: Fit, target: Any, starts: Tensor | None = None, deadline: float = math.inf) -> Fit:
        """A fit of another posterior nearby, from the flow of this one; explored anew where that is far off.

        Arguments:
            before: The other fit; it stays as it is.
            target: The new posterior, as a target.
            starts: Unconstrained points to look around first, ``(S, D)``.
            deadline: Time of ``time.perf_counter`` after which no more training begins.
        """
        start, settings, leap = time.perf_counter(), before.settings, before.leap
        try:
            if before.recipe.found is None:
                raise FarOffError("there is no flow")
            found = survey_from(leap, before.recipe.found, target, settings.num_particles, starts)
        except FarOffError as reason:
            fit = cls.explored(target, settings, starts, deadline)
            fit.start_report = (f"warm start: explored anew, since {reason}",)
        else:
            fit = cls(target, settings, found, deadline=deadline)
            cast("Recipe", fit.recipe).start_from(cast("Leap", leap).flow)
            fit.trainer = fit.recipe.trainer
            fit.leap = fit.trainer.leap
            fit.start_report = ("warm start: from the flow of the last fit",)
            fit.log_choices()
        fit.run_report = fit.start_report
        fit.seconds["exploration_time"] = time.perf_counter() - start

        return fit

    # ---- training ----

    def run(self) -> None:
        """Train, draw, judge, and climb further stages while the verdict is bad; what was cut short goes on."""
        start = time.perf_counter()
        self.recipe.run()
        self.trainer = self.recipe.trainer
        self.leap = self.trainer.leap
        self.seconds["training_time"] += time.perf_counter() - start
        self.is_interrupted = self.recipe.is_paused
        history = self.trainer.history
        elbo = f"ELBO {history.elbo[-1]:.4f}" if history.elbo else "no ELBO"
        _log.info("training: %d iterations in %.1f s, %s", len(history.loss), self.seconds["training_time"], elbo)
        if self.recipe.can_escalate and self.settings.escalate:
            self._escalate(cast("Recipe", self.recipe))

    def resume(self, deadline: float = math.inf) -> None:
        """Go on where a run was cut short, by Ctrl-C or by its deadline, as if it had not been.

        Arguments:
            deadline: Time of ``time.perf_counter`` after which no more training begins.
        """
        self._deadline = deadline
        self.recipe.set_deadline(deadline)
        self._draws, self._few_steps = None, {}
        self.run()

    def step(self) -> float:
        """One optimiser step; the loss, nats. A run that was cut short stays so."""
        self._draws, self._few_steps = None, {}
        if self.is_interrupted:
            self.recipe.stay()
            self._stages, self.is_interrupted = Stages(), False

        return self.trainer.step()

    def _escalate(self, recipe: Recipe) -> None:
        """Climb the stages that the verdict asks for; Ctrl-C keeps what the last one gave."""

        def keep(draws: PosteriorDraws, report: str) -> None:
            self.trainer, self.leap = recipe.trainer, recipe.trainer.leap
            self.run_report += (report,)
            _log.info("stage: %s", report)
            self._keep(draws)

        improper, chains = self.model_target.improper_sites, (self.settings.num_chains, self.settings.num_samples)
        num_particles, parts = particles_for(math.prod(chains)), recipe.found.parts

        def walk(leap: Leap, judged: PosteriorDraws) -> PosteriorDraws:
            return refined_posterior(leap, self.target, *chains, judged, improper, self._objections(), parts)

        def explore(judged: PosteriorDraws) -> PosteriorDraws:
            anew = explore_anew(self.given, recipe.found, num_particles, NUM_REPLICATES, self._starts)
            return annealed_posterior(anew, self.target, *chains, judged, improper, self._objections(), False, parts)

        start = time.perf_counter()
        self.run_report = self.start_report
        can_explore = is_affordable(self.given, recipe.found.exploration, NUM_REPLICATES * num_particles)
        # No stage cures a density without an integral.
        is_hopeless = bool(hopeless_objections(self.leap, self.model_target, recipe.found))
        # What is judged of a training that was cut short is judged for now only.
        stages = Stages() if recipe.is_paused else self._stages
        deadline = -math.inf if is_hopeless else self._deadline
        escalation = Escalation(recipe, self._judge, walk, explore if can_explore else None, deadline, stages)
        try:
            draws = escalation.judged_once("flow", lambda: self.draws)
            self.leap = recipe.trainer.leap
            escalation.climb(draws, keep)
        except KeyboardInterrupt:
            warn("Escalation was interrupted; the last verdict stands.", InterruptedWarning)
        self.is_interrupted = recipe.is_paused or (escalation.is_cut_short and not is_hopeless)
        if not self.is_interrupted:
            self._stages = Stages()
        elif self._draws is not None:
            self._draws = replace(self._draws, evidence=self._draws.evidence.cut_short())
        self.seconds["escalation_time"] += time.perf_counter() - start
        _log.info("drawn and judged in %(sampling_time).1f s, escalated in %(escalation_time).1f s", self.seconds)

    # ---- where the fit stands ----

    def state(self) -> dict[str, Any]:
        """All that draws, verdicts and further training depend on, except the target and random numbers."""
        walks = {num_steps: leap for num_steps, leap in self._few_steps.items() if is_bijective(leap)}
        flow = self.leap.flow if is_bijective(self.leap) else None

        return {
            "coordinates": coordinates_of(self.target),
            "starts": self._starts,
            "recipe": self.recipe.state(),
            "is_averaged": self.leap is not self.trainer.leap,
            "draws": self._draws,
            "few_steps": {n: leap.flow.state_dict() for n, leap in walks.items() if leap.flow is not flow},
            "rungs": self._stages.state(),
            "is_interrupted": self.is_interrupted,
            "start_report": self.start_report,
            "run_report": self.run_report,
            "seconds": self.seconds,
        }

    @classmethod
    def restored(cls, target: Any, settings: Settings, state: dict[str, Any]) -> Fit:
        """A fit that stands where another one stood.

        Arguments:
            target: The user's posterior, as a target; the same density as the other one's.
            settings: The other one's settings.
            state: What its :meth:`state` gave; it stays as it is.
        """
        target = as_target(target)
        seen = in_coordinates(target, state["coordinates"])
        with torch.random.fork_rng():  # networks that are built draw weights that are replaced at once
            found = replace(state["recipe"]["plan"].found, target=seen) if target.dim else None
            fit = cls(target, settings, found, state.get("starts"))
            fit.recipe.restore(state["recipe"])
        fit.trainer = fit.recipe.trainer
        fit.leap = fit.trainer.averaged() if state["is_averaged"] else fit.trainer.leap
        for num_steps, weights in state["few_steps"].items():
            assert is_bijective(fit.leap)
            walk = Leap(fit.leap.base, copy.deepcopy(fit.leap.flow), num_steps)
            walk.flow.load_state_dict(weights)
            fit._few_steps[num_steps] = walk
        fit._stages = Stages.restored(state["rungs"], seen)
        fit.is_interrupted = state["is_interrupted"]
        fit.start_report, fit.run_report = state["start_report"], state["run_report"]
        fit.seconds = dict(state["seconds"])
        if state["draws"] is not None:
            fit._keep(state["draws"])

        return fit

    def __getstate__(self) -> dict[str, Any]:
        return {"target": self.given, "settings": self.settings, "state": self.state()}

    def __setstate__(self, stored: dict[str, Any]) -> None:
        self.__dict__ = Fit.restored(stored["target"], stored["settings"], stored["state"]).__dict__

    def log_choices(self) -> None:
        """What was chosen before anything is trained."""
        found, target = self.recipe.found, self.model_target
        _log.info("density: %d dimensions, evaluated as %r", target.dim, target.backend)
        for line in found.description() if found else ():
            _log.info(line)
        _log.info("explored in %.1f s", self.seconds["exploration_time"])
        _log.info("recipe: %s", self.recipe.name)

    # ---- draws ----

    @property
    def draws(self) -> PosteriorDraws:
        """The posterior draws of the present weights, made when first asked for."""
        self.ensure_judged()
        assert self._draws is not None

        return self._draws

    def ensure_judged(self) -> None:
        """Draw from the present weights, and judge, unless that was done."""
        if self._draws is None:
            start = time.perf_counter()
            self._keep(self._judge(self.settle()))
            self.seconds["sampling_time"] = time.perf_counter() - start

    @property
    def is_judged(self) -> bool:
        """Whether there are posterior draws, and a verdict on them."""
        return self._draws is not None

    def settle(self) -> AnyLeap:
        """The leap with the present weights; one that was stepped by hand takes the average of its weights."""
        if self._draws is None:
            self.leap = self.trainer.leap if self.trainer.history.elbo else self.trainer.averaged()

        return self.leap

    def forget_draws(self) -> None:
        """Make fresh draws when next asked for."""
        self._draws = None

    @property
    def samples(self) -> dict[str, Tensor]:
        """Constrained posterior draws, ``{site: (num_chains, num_samples, *shape)}``; made when first asked for."""
        self.ensure_judged()

        return self._samples

    def leap_in(self, num_steps: int) -> AnyLeap:
        """The trained leap in so many steps; a copy of the flow learns them when they are first asked for."""
        check_powers_of_two({"num_steps": num_steps})
        self.ensure_judged()
        if num_steps == self.settings.num_steps:
            return self.leap
        if num_steps not in self._few_steps:
            self._few_steps[num_steps] = self.recipe.with_steps(num_steps)

        return self._few_steps[num_steps]

    def draw(self, num_draws: int, num_steps: int) -> WeightedDraws:
        """Fresh weighted draws of the leap in so many steps; they become no part of the fit.

        Arguments:
            num_draws: How many.
            num_steps: Network evaluations per draw, a power of two.
        """
        draws = weigh(self.leap_in(num_steps), self.target, num_draws)

        return WeightedDraws(self.constrain(draws.z), draws.log_weight, draws.log_prob, draws.log_abs_det, draws.z)

    def _keep(self, draws: PosteriorDraws) -> None:
        """Make these the posterior draws."""
        self._draws = draws
        self._samples = by_chain(self.constrain(draws.z), self.settings.num_chains)

    def _judge(self, leap: AnyLeap) -> PosteriorDraws:
        """Draws of a leap and the verdict on its weights."""
        settings, found = self.settings, self.recipe.found
        return draw_posterior(
            leap,
            self.target,
            settings.num_chains,
            settings.num_samples,
            settings.correction,
            EvidenceCheck(found.exploration.log_evidence, found.exploration.std_error) if found else None,
            self.model_target.improper_sites,
            reasons=self._objections(),
            parts=found.parts if found else (),
            **({} if self.target.vectorized else {"max_draws": settings.num_chains * settings.num_samples}),
        )

    # ---- what the verdict must know beside the weights ----

    def _objections(self) -> tuple[Reason, ...]:
        """What speaks against draws and evidence, whatever their weights."""
        found = self.recipe.found
        hopeless = hopeless_objections(self.leap, self.model_target, found)

        return hopeless if found is None else (*hopeless, *model_objections(self.leap, self.target, self.given, found))

    # ---- from the sampler's coordinates to the user's sites ----

    @property
    def model_target(self) -> Any:
        """The target in the coordinates that the model's sites have."""
        return self.target.unordered

    def constrain(self, z: Tensor) -> dict[str, Tensor]:
        """Draws by site, ``(B, D)`` to ``{site: (B, *shape)}``."""
        return by_draw(self.model_target.constrain, self.model_target, self.target.to_target(z))

"""What a run does while its verdict is bad and there is time: stage by stage, each of them reported.

===================  ===================================================================  ==========================
stage                what                                                                 when
===================  ===================================================================  ==========================
flow                 the leap that the recipe trained, judged by its weights              always
larger flow          a new base on particles of a short refinement, and a wider flow      few draws effective
annealed refinement  draws and evidence of annealing from the better of the two flows     verdict still bad
few-step diffusion   draws and evidence of a diffusion that learns from particles         asked for, next after the
                                                                                          flow
annealed SMC         draws and evidence of annealing from where exploration began         verdict still bad, or the
                                                                                          flow is hopeless
===================  ===================================================================  ==========================

The first two give draws in one network evaluation. The refinement gives right draws and a right evidence from a flow
that is only nearly right. The last one needs no flow: where one lost a part of the posterior, so did what starts from
it. Of all stages the best founded one is kept: one with good verdicts or, where there is none, the one with the higher
log evidence, since annealing that misses a part is too low.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

from pyro_osds.explore.anew import resurvey
from pyro_osds.explore.particles import Exploration
from pyro_osds.explore.refinement import refine
from pyro_osds.explore.survey import Survey
from pyro_osds.flow.leap import Leap, is_bijective
from pyro_osds.posterior.annealed import ANNEALED_SMC
from pyro_osds.posterior.draws import PosteriorDraws
from pyro_osds.posterior.evidence import Evidence
from pyro_osds.posterior.few_steps import FEW_STEPS, DivergedError, FewSteps
from pyro_osds.runtime.clock import OutOfTimeError, is_past, time_limit
from pyro_osds.runtime.resume import random_state, set_random_state
from pyro_osds.stats.thresholds import HOPELESS_ESS, HOPELESS_NATS, LOWER_SIGMAS, POOR_WEIGHT_ESS
from pyro_osds.target import NotFiniteError, Target
from pyro_osds.train.recipe import Recipe

# Particles on each replicate of a refinement, as of an exploration.
_NUM_PARTICLES = 64
# What better draws, and a sentence on them, are given to; and what a stage does, which does so.
Keep = Callable[[PosteriorDraws, str], None]
Run = Callable[[PosteriorDraws, Keep], PosteriorDraws]

_LARGER, _REFINEMENT = "larger flow", "annealed refinement"
# What a file calls them.
_IS_LARGER, _ITERATIONS = "is larger", "iterations of the "


@dataclass
class Stages:
    """What the stages of a run have left: a run that was cut short goes on from there.

    Arguments:
        judged: Draws and verdict of each stage that came to its end, by its name.
        survey: What is known to the larger flow, once it is.
        is_larger: Whether the larger flow was better, once it is trained.
        iterations: Optimiser steps when a stage was first reported, by its name; a run that goes on repeats them.
        random: Random numbers where the stage that has not come to its end began.
    """

    judged: dict[str, PosteriorDraws] = field(default_factory=dict)
    survey: Survey | None = None
    is_larger: bool | None = None
    iterations: dict[str, int] = field(default_factory=dict)
    random: dict[str, Any] | None = None

    def state(self) -> dict[str, Any]:
        """The same as a file keeps it; the survey is without its target."""
        single = {
            "survey": self.survey and replace(self.survey, target=None),
            _IS_LARGER: self.is_larger,
            "random": self.random,
        }
        iterations = {f"{_ITERATIONS}{name}": count for name, count in self.iterations.items()}

        return {**self.judged, **iterations, **{name: value for name, value in single.items() if value is not None}}

    @classmethod
    def restored(cls, state: Mapping[str, Any], target: Target) -> Stages:
        """What :meth:`state` gave.

        Arguments:
            state: The state; it stays as it is.
            target: The target of the survey.
        """
        # A stage by its name in files of earlier versions.
        left = {name.replace("bridge", _REFINEMENT): value for name, value in state.items()}
        left = {ANNEALED_SMC if name == "exploration" else name: value for name, value in left.items()}
        survey, is_larger, random = (left.pop(name, None) for name in ("survey", _IS_LARGER, "random"))
        counts = {name: left.pop(name) for name in list(left) if name.startswith(_ITERATIONS)}
        iterations = {name.removeprefix(_ITERATIONS): count for name, count in counts.items()}

        return cls(left, survey and replace(survey, target=target), is_larger, iterations, random)


@dataclass(frozen=True)
class Stage:
    """A stage that may follow a bad verdict.

    Arguments:
        name: What reports call it.
        run: What it does: better draws, or those that it was given.
        applies: Whether it may help, given the draws that there are.
        is_begun: Whether it has left something before, so that it may end after the deadline.
        needs_flow: Whether it starts from the flow, so that a hopeless one is no start.
    """

    name: str
    run: Run
    applies: Callable[[PosteriorDraws], bool]
    is_begun: bool
    needs_flow: bool = True


@dataclass
class Escalation:
    """The stages that a run may climb.

    Arguments:
        recipe: The recipe that was run; ends up with the better flow.
        judge: Draws and verdict from the weights of a leap.
        walk: Draws and verdict from a refinement that starts from a leap, given the draws that its weights judged.
        anneal: Draws and verdict of annealed SMC, given those of the stage before; None where there is none. It looks
            at the clock itself, since it always has something to give.
        deadline: Time at which the stage at work is left, and after which none is begun.
        stages: What stages have left before; a run that was cut short goes on from there.
        few_steps: The diffusion in few steps, where it was asked for.
    """

    recipe: Recipe
    judge: Callable[[Any], PosteriorDraws]
    walk: Callable[[Leap, PosteriorDraws], PosteriorDraws]
    anneal: Callable[[PosteriorDraws], PosteriorDraws] | None
    deadline: float
    stages: Stages = field(default_factory=Stages)
    few_steps: FewSteps | None = None

    @property
    def is_cut_short(self) -> bool:
        """Whether there is a stage that was not climbed to its end."""
        return self.stages.random is not None

    def judged_once(self, name: str, judge: Callable[[], PosteriorDraws]) -> PosteriorDraws:
        """Draws and verdict of a stage; cut short before, they are made again from the same random numbers."""
        judged = self.stages.judged
        if name not in judged:
            self._begin()
            draws = judge()
            if not draws.is_whole:
                return draws
            judged[name], self.stages.random = draws, None

        return judged[name]

    def climb(self, draws: PosteriorDraws, keep: Keep) -> None:
        """Climb until the verdict is good.

        Arguments:
            draws: Draws and verdict of the recipe's flow.
            keep: Called with the better draws, and what to report, after each stage.
        """
        keep(draws, self._report("flow", draws.evidence))
        if not draws.is_whole:
            return
        is_hopeless = self._is_hopeless(draws.evidence)
        for stage in self._following():
            if draws.evidence.is_settled:
                break
            if (is_hopeless and stage.needs_flow) or not stage.applies(draws) or not self._may_go_on(stage.is_begun):
                continue
            draws = self._tried(stage.name, draws, keep, stage.run)
            if not draws.is_whole:
                break

    def _following(self) -> Iterator[Stage]:
        """The stages after the flow, in their order; a further one has its place before annealed SMC."""
        done = self.stages.judged
        if self.few_steps is not None:
            diffused = partial(self._diffused, self.few_steps)
            yield Stage(FEW_STEPS, diffused, lambda draws: True, FEW_STEPS in done, needs_flow=False)
        yield Stage(_LARGER, self._larger_flow, self._wants_larger, self.stages.is_larger is not None)
        # From the better of the two flows.
        leap = self.recipe.trainer.leap
        walked = partial(self._walked, cast("Leap", leap))
        yield Stage(_REFINEMENT, walked, lambda draws: is_bijective(leap), _REFINEMENT in done)
        yield Stage(
            ANNEALED_SMC, self._annealed, lambda draws: self.anneal is not None, ANNEALED_SMC in done, needs_flow=False
        )

    def _wants_larger(self, draws: PosteriorDraws) -> bool:
        """Whether few draws are effective, and there are iterations for a larger flow."""
        return not draws.evidence.ess >= POOR_WEIGHT_ESS * draws.evidence.num_draws and self._may_be_larger()

    def _is_hopeless(self, evidence: Evidence) -> bool:
        """Whether nothing that starts from the flow has ever helped where weights and exploration say what they do."""
        if self.anneal is None or not self.recipe.found.is_folded or evidence.check is None:
            return False
        poor = not evidence.ess >= HOPELESS_ESS * evidence.num_draws

        return poor and evidence.elbo < evidence.check.log_evidence - HOPELESS_NATS

    def _tried(self, name: str, draws: PosteriorDraws, keep: Keep, stage: Run) -> PosteriorDraws:
        """Draws of a stage or, where it could not begin or ran out of time, those that there are."""
        try:
            return stage(draws, keep)
        except OutOfTimeError:
            keep(draws, f"{name}: stopped by max_time")

            return draws
        except NotFiniteError:
            self.stages.random = None
            keep(draws, f"{name}: could not begin, since none of its starting points lies in the posterior")

            return draws

    def _walked(self, leap: Leap, draws: PosteriorDraws, keep: Keep) -> PosteriorDraws:
        with time_limit(self.deadline):
            walked = self.judged_once(_REFINEMENT, lambda: self.walk(leap, draws))
        keep(walked, self._report(_REFINEMENT, walked.evidence))

        return walked

    def _diffused(self, few_steps: FewSteps, draws: PosteriorDraws, keep: Keep) -> PosteriorDraws:
        """Keep what the diffusion in few steps gives, if it is better founded than what there is."""
        refusal = few_steps.refusal()
        if refusal:
            keep(draws, f"{FEW_STEPS}: not begun, since {refusal}")
            return draws
        try:
            diffused = self.judged_once(FEW_STEPS, lambda: few_steps.posterior(draws))
        except DivergedError:
            self.stages.random = None
            keep(draws, f"{FEW_STEPS}: abandoned, since its training diverged")
            return draws

        return self._better(FEW_STEPS, few_steps.source().sentence, diffused, draws, keep)

    def _annealed(self, draws: PosteriorDraws, keep: Keep) -> PosteriorDraws:
        """Keep what annealed SMC found, if it is better founded than what there is."""
        anneal = cast("Callable[[PosteriorDraws], PosteriorDraws]", self.anneal)
        annealed = self.judged_once(ANNEALED_SMC, lambda: anneal(draws))

        return self._better(ANNEALED_SMC, "draws of annealed SMC, not of one network evaluation", annealed, draws, keep)

    def _better(
        self, name: str, sentence: str, new: PosteriorDraws, draws: PosteriorDraws, keep: Keep
    ) -> PosteriorDraws:
        """The draws of a stage that needs no flow, if they are better founded than those that there are."""
        report = self._report(name, new.evidence)
        if _is_better(new.evidence, draws.evidence):
            keep(new, f"{report}; {sentence}")
            return new
        keep(draws, f"{report}; not taken")

        return draws

    def _may_be_larger(self) -> bool:
        """Whether there are optimiser steps for a larger flow, or it has had them."""
        return self.recipe.iterations_left > 0 or self.stages.is_larger is not None

    def _may_go_on(self, is_finished: bool) -> bool:
        """Whether a stage may be begun; where not, the random numbers of its beginning are kept."""
        if self.recipe.is_paused or self.recipe.trainer.history.interrupted:
            return False
        if is_finished or not is_past(self.deadline):
            return True
        self._begin()

        return False

    def _begin(self) -> None:
        """Take up the random numbers where they were when this stage was to be begun before, or note them now."""
        if self.stages.random is not None:
            set_random_state(self.stages.random)
        self.stages.random = random_state()

    def _larger_flow(self, draws: PosteriorDraws, keep: Keep) -> PosteriorDraws:
        recipe, stages, flow = self.recipe, self.stages, cast("Leap", self.recipe.trainer.leap)
        found = self._survey(draws, flow)
        if stages.is_larger is None:
            self._begin()
            recipe.run_larger(found)
            is_larger = recipe.trainer.leap is not flow
            if not recipe.is_paused:
                stages.is_larger, stages.random = is_larger, None
        else:
            is_larger = stages.is_larger
        leap, iterations = recipe.trainer.leap, len(recipe.trainer.history.loss)
        if not is_larger:
            keep(draws, f"larger flow: ELBO no higher after {iterations} iterations in all")
            return draws
        judge = partial(self.judge, leap)
        draws = judge() if recipe.is_paused else self.judged_once(_LARGER, judge)
        keep(draws, self._report(_LARGER, draws.evidence))
        if recipe.is_paused:
            del stages.iterations[_LARGER]

        return draws

    def _survey(self, draws: PosteriorDraws, flow: Leap) -> Survey:
        """What the larger flow starts from: particles of a refinement that there is, or of a short one."""
        if self.stages.survey is None:
            self._begin()
            with time_limit(self.deadline):
                self.stages.survey = resurvey(self.recipe.found, draws.refinement or self._particles(flow))
            self.stages.random = None

        return self.stages.survey

    def _particles(self, flow: Leap) -> Exploration:
        return refine(flow, self.recipe.found.target, _NUM_PARTICLES)

    def _report(self, stage: str, evidence: Evidence) -> str:
        # Iterations at the first report: a climb that goes on repeats what it said.
        iterations = self.stages.iterations.setdefault(stage, len(self.recipe.trainer.history.loss))
        cut = ", cut short" if self.recipe.is_paused else ""

        return (
            f"{stage}: {evidence.headline[0]}, ELBO {evidence.elbo:.4f}, pareto k {evidence.pareto_k:.2f}, effective "
            f"sample size {evidence.ess:.0f} of {evidence.num_draws} ({iterations} iterations{cut}): {evidence.verdict}"
        )


def _is_better(new: Evidence, old: Evidence) -> bool:
    """Whether draws are better founded: by their verdict, a higher evidence, or a smaller error where none is higher.

    Annealing that misses a part is too low, so the lower of two is no discovery; but a few draws of a flow that carry
    all of its weight may say anything.
    """
    higher = new.log_integral - old.log_integral
    is_clearer = new.std_error < old.std_error and higher >= -LOWER_SIGMAS * math.hypot(new.std_error, old.std_error)

    return new.is_settled or higher > 0.0 or is_clearer

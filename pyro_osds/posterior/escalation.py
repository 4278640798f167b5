"""What a run does while its verdict is bad and there is time: rung by rung, each of them reported.

===========  ===========================================================================  ===================
rung         what                                                                         when
===========  ===========================================================================  ===================
flow         the leap that the recipe trained, judged by its weights                      always
larger flow  a new base on the particles of a short bridge, and a wider flow from it      few draws effective
bridge       draws and evidence of an annealed bridge from the better of the two flows    verdict still bad
exploration  draws and evidence of annealing anew, from where exploration began           verdict still bad
===========  ===========================================================================  ===================

The first two give draws in one network evaluation. The bridge gives right draws and a right evidence from a flow that
is only nearly right. The last one needs no flow: where one lost a part of the posterior, so did what starts from it.
The flow, for further draws with weights, stays as it is. Of all rungs the best founded one is kept: one with good
verdicts or, where there is none, the one with the higher log evidence, since annealing that misses a part is too low.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from pyro_osds.explore.annealing import Exploration
from pyro_osds.explore.refinement import bridge
from pyro_osds.explore.survey import resurvey
from pyro_osds.flow.leap import Leap, is_bijective
from pyro_osds.posterior.draws import PosteriorDraws
from pyro_osds.posterior.verdict import Evidence
from pyro_osds.runtime.resume import random_state, set_random_state
from pyro_osds.train.recipe import Recipe

_NUM_PARTICLES = 64
# With a larger share of effective draws only the tails are wrong, for which a bridge is better and faster.
_POOR_ESS = 0.2


@dataclass
class Escalation:
    """The rungs that a run may climb.

    Arguments:
        recipe: The recipe that was run; ends up with the better flow.
        judge: Draws and verdict from the weights of a leap.
        walk: Draws and verdict from a bridge that starts from a leap, given the draws that its weights judged.
        explore: Draws and verdict of exploration anew, given those of the rung before; None where it costs too much.
        deadline: No rung is begun after this time of ``time.perf_counter``.
        finished: What rungs that were climbed before have left; a climb that was cut short goes on from there.
    """

    recipe: Recipe
    judge: Callable[[Any], PosteriorDraws]
    walk: Callable[[Leap, PosteriorDraws], PosteriorDraws]
    explore: Callable[[PosteriorDraws], PosteriorDraws] | None
    deadline: float
    finished: dict[str, Any] = field(default_factory=dict)

    @property
    def is_cut_short(self) -> bool:
        """Whether there is a rung that was not climbed to its end."""
        return "random" in self.finished

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What was made under this name, before or now; cut short, it is made again from the same random numbers."""
        if name not in self.finished:
            self._begin()
            made = make()
            self.finished[name] = made
            del self.finished["random"]

        return self.finished[name]

    def climb(self, draws: PosteriorDraws, keep: Callable[[PosteriorDraws, str], None]) -> None:
        """Climb until the verdict is good.

        Arguments:
            draws: Draws and verdict of the recipe's flow.
            keep: Called with the better draws, and what to report, after each rung.
        """
        keep(draws, self._report("flow", draws.evidence))
        evidence = draws.evidence
        poor = not evidence.is_settled and not evidence.ess >= _POOR_ESS * evidence.num_draws
        if poor and (self.recipe.iterations_left > 0 or "is larger" in self.finished) and self._may_go_on("is larger"):
            draws = self._larger_flow(draws, keep)
        leap = self.recipe.trainer.leap
        if not draws.evidence.is_settled and is_bijective(leap) and self._may_go_on("bridge"):
            draws = self._walked(leap, draws, keep)
        if not draws.evidence.is_settled and self.explore is not None and self._may_go_on("exploration"):
            self._explored(self.explore, draws, keep)

    def _walked(self, leap: Leap, draws: PosteriorDraws, keep: Callable[[PosteriorDraws, str], None]) -> PosteriorDraws:
        walked = self.once("bridge", lambda: self.walk(leap, draws))
        keep(walked, self._report("bridge", walked.evidence))

        return walked

    def _explored(
        self,
        explore: Callable[[PosteriorDraws], PosteriorDraws],
        draws: PosteriorDraws,
        keep: Callable[[PosteriorDraws, str], None],
    ) -> None:
        """Keep what exploration found, if it is better founded than what there is."""
        explored = self.once("exploration", lambda: explore(draws))
        report = self._report("exploration", explored.evidence)
        higher = explored.evidence.log_integral > draws.evidence.log_integral
        if explored.evidence.is_settled or higher:
            keep(explored, f"{report}; these draws do not come from one step")
        else:
            keep(draws, f"{report}; not taken")

    def _may_go_on(self, rung: str) -> bool:
        """Whether a rung may be begun; where not, the random numbers of its beginning are kept."""
        if self.recipe.is_paused or self.recipe.trainer.history.interrupted:
            return False
        if rung in self.finished or time.perf_counter() < self.deadline:
            return True
        self._begin()

        return False

    def _begin(self) -> None:
        """Take up the random numbers where they were when this rung was to be climbed before, or note them now."""
        if "random" in self.finished:
            set_random_state(self.finished["random"])
        self.finished["random"] = random_state()

    def _larger_flow(self, draws: PosteriorDraws, keep: Callable[[PosteriorDraws, str], None]) -> PosteriorDraws:
        recipe, flow = self.recipe, cast("Leap", self.recipe.trainer.leap)
        found = self.once("survey", lambda: resurvey(recipe.found, draws.bridge or self._particles(flow)))
        if "is larger" in self.finished:
            larger = self.finished["is larger"]
        else:
            self._begin()
            recipe.run_larger(found)
            larger = recipe.trainer.leap is not flow
            if not recipe.is_paused:
                self.finished["is larger"] = larger
                del self.finished["random"]
        leap, iterations = recipe.trainer.leap, len(recipe.trainer.history.loss)
        if not larger:
            keep(draws, f"larger flow: ELBO no higher after {iterations} iterations in all")
            return draws
        draws = self.judge(leap) if recipe.is_paused else self.once("larger flow", lambda: self.judge(leap))
        keep(draws, self._report("larger flow", draws.evidence))
        if recipe.is_paused:
            del self.finished["iterations of the larger flow"]

        return draws

    def _particles(self, flow: Leap) -> Exploration:
        return bridge(flow, self.recipe.found.target, _NUM_PARTICLES)

    def _report(self, rung: str, evidence: Evidence) -> str:
        # Iterations at the first report: a climb that goes on repeats what it said.
        iterations = self.finished.setdefault(f"iterations of the {rung}", len(self.recipe.trainer.history.loss))

        return (
            f"{rung}: {evidence.headline[0]}, ELBO {evidence.elbo:.4f}, pareto k {evidence.pareto_k:.2f}, effective "
            f"sample size {evidence.ess:.0f} of {evidence.num_draws} ({iterations} iterations): {evidence.verdict}"
        )

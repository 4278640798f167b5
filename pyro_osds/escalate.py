"""What a run does while its verdict is bad and there is time: rung by rung, each of them reported.

===========  ===========================================================================  ===================
rung         what                                                                         when
===========  ===========================================================================  ===================
flow         the leap that the recipe trained, judged by its weights                      always
larger flow  a new base on the particles of a short bridge, and a wider flow from it      few draws effective
bridge       draws and evidence of an annealed bridge from the better of the two flows    verdict still bad
===========  ===========================================================================  ===================

The first two give draws in one network evaluation. The last one gives right draws and a right evidence from a flow that
is only nearly right; the flow, for further draws with weights, stays as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from pyro_osds.bridge import bridge
from pyro_osds.evidence import Evidence
from pyro_osds.leap import Leap
from pyro_osds.posterior import PosteriorDraws
from pyro_osds.recipe import Recipe
from pyro_osds.survey import resurvey

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
        deadline: No rung is begun after this time of ``time.perf_counter``.
    """

    recipe: Recipe
    judge: Callable[[Any], PosteriorDraws]
    walk: Callable[[Leap, PosteriorDraws], PosteriorDraws]
    deadline: float

    def climb(self, draws: PosteriorDraws, keep: Callable[[PosteriorDraws, str], None]) -> None:
        """Climb until the verdict is good.

        Arguments:
            draws: Draws and verdict of the recipe's flow.
            keep: Called with the better draws, and what to report, after each rung.
        """
        keep(draws, self._report("flow", draws.evidence))
        evidence = draws.evidence
        poor = not evidence.reliable and not evidence.ess >= _POOR_ESS * evidence.num_draws
        if poor and self._may_go_on and self.recipe.iterations_left > 0:
            draws = self._larger_flow(draws, keep)
        leap = self.recipe.trainer.leap
        if not draws.evidence.reliable and self._may_go_on and isinstance(leap, Leap):
            walked = self.walk(leap, draws)
            keep(walked, self._report("bridge", walked.evidence))

    @property
    def _may_go_on(self) -> bool:
        return time.perf_counter() < self.deadline and not self.recipe.trainer.history.interrupted

    def _larger_flow(self, draws: PosteriorDraws, keep: Callable[[PosteriorDraws, str], None]) -> PosteriorDraws:
        recipe, before = self.recipe, self.recipe.trainer
        particles = draws.bridge or bridge(cast("Leap", before.leap), recipe.found.target, _NUM_PARTICLES)
        recipe.run_larger(resurvey(recipe.found, particles))
        if recipe.trainer is before:
            keep(draws, f"larger flow: ELBO no higher after {len(before.history.loss)} iterations in all")
            return draws
        draws = self.judge(recipe.trainer.leap)
        keep(draws, self._report("larger flow", draws.evidence))

        return draws

    def _report(self, rung: str, evidence: Evidence) -> str:
        iterations = len(self.recipe.trainer.history.loss)

        return (
            f"{rung}: log evidence {evidence.log_evidence:.4f} +- {evidence.std_error:.4f}, ELBO {evidence.elbo:.4f}, "
            f"pareto k {evidence.pareto_k:.2f}, effective sample size {evidence.ess:.0f} of {evidence.num_draws} "
            f"({iterations} iterations): {'reliable' if evidence.reliable else 'not reliable'}"
        )

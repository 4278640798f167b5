"""The stages of one fit put together: what each of them is given, and where draws come from other than the flow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pyro_osds.flow.leap import Leap
from pyro_osds.posterior.annealed import AnnealedSMC
from pyro_osds.posterior.draws import PosteriorDraws, refined_posterior
from pyro_osds.posterior.escalation import Escalation, Stages
from pyro_osds.posterior.objections import hopeless_objections
from pyro_osds.posterior.source import DrawSource
from pyro_osds.train.recipe import Recipe

Judge = Callable[[Any], PosteriorDraws]


def annealed_smc(fit: Any, deadline: float = math.inf) -> AnnealedSMC:
    """Annealed SMC of a fit.

    Arguments:
        fit: A :class:`~pyro_osds.fit.Fit` whose posterior was explored.
        deadline: Time of :func:`~pyro_osds.runtime.clock.now` at which no further run is begun.
    """
    settings = fit.settings

    return AnnealedSMC(
        fit.given,
        fit.recipe.found,
        fit.starts,
        settings.num_chains,
        settings.num_samples,
        settings.target_std_error,
        deadline,
        fit.model_target.improper_sites,
        fit.objections,
    )


def source_of(fit: Any, draws: PosteriorDraws | None) -> DrawSource | None:
    """Where posterior draws come from, if that is not the flow.

    Arguments:
        fit: A :class:`~pyro_osds.fit.Fit`.
        draws: The draws, or none.
    """
    if draws is None or not draws.source:
        return None
    sources = [source for source in (annealed_smc(fit).source(),) if source.name == draws.source]

    return sources[0] if sources else None


def escalation_of(fit: Any, recipe: Recipe, judge: Judge, deadline: float, stages: Stages) -> tuple[Escalation, bool]:
    """The stages of a fit, and whether none of them could cure what speaks against its posterior.

    Arguments:
        fit: A :class:`~pyro_osds.fit.Fit`.
        recipe: The recipe that was run.
        judge: Draws and verdict from the weights of a leap.
        deadline: Time of :func:`~pyro_osds.runtime.clock.now` at which the run ends.
        stages: What stages have left before.
    """
    chains, found = (fit.settings.num_chains, fit.settings.num_samples), recipe.found

    def walk(leap: Leap, judged: PosteriorDraws) -> PosteriorDraws:
        improper = fit.model_target.improper_sites
        return refined_posterior(leap, fit.target, *chains, judged, improper, fit.objections(), found.parts)

    # No stage cures a density without an integral.
    is_hopeless = bool(hopeless_objections(fit.leap, fit.model_target, found))
    deadline = -math.inf if is_hopeless or fit.stopped else deadline
    anneal = annealed_smc(fit, deadline).posterior

    return Escalation(recipe, judge, walk, anneal, deadline, stages), is_hopeless

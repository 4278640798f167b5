"""The stages of one fit put together: what each of them is given, and where draws come from other than the flow."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from pyro_osds.flow.leap import Leap
from pyro_osds.posterior.annealed import AnnealedSMC
from pyro_osds.posterior.draws import PosteriorDraws, refined_posterior
from pyro_osds.posterior.escalation import Escalation, Stages
from pyro_osds.posterior.few_steps import FewSteps
from pyro_osds.posterior.objections import hopeless_objections
from pyro_osds.posterior.source import DrawSource
from pyro_osds.runtime.arguments import check_powers_of_two
from pyro_osds.stats.weights import FlowDraws, weigh
from pyro_osds.train.recipe import Recipe
from pyro_osds.train.walk import WalkBudget

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


def few_steps_of(fit: Any, deadline: float = math.inf) -> FewSteps:
    """The diffusion in few steps of a fit, with the walk that it has, if any.

    Arguments:
        fit: A :class:`~pyro_osds.fit.Fit` whose posterior was explored.
        deadline: Time of :func:`~pyro_osds.runtime.clock.now` at which it is left.
    """
    settings = fit.settings
    width = settings.hidden_features or WalkBudget.hidden_features

    return FewSteps(
        fit.target,
        fit.recipe.found,
        settings.num_chains,
        settings.num_samples,
        settings.correction,
        settings.enough(fit.target.dim).max_draws,
        settings.target_std_error,
        # Noised particles cost little beside weighed draws, so that twice as many steps take as long.
        WalkBudget(2 * settings.num_iterations, 2 * settings.batch_size, hidden_features=width),
        deadline,
        fit.model_target.improper_sites,
        fit.objections,
        fit.walk,
    )


def way_of(fit: Any, num_steps: int | None) -> Callable[[int], FlowDraws]:
    """How fresh weighted draws are made: from where the posterior draws come from, or of the flow.

    Arguments:
        fit: A :class:`~pyro_osds.fit.Fit`.
        num_steps: Of the flow, or of a source whose draws take several steps; with one step it is always the flow.

    Returns:
        So many draws, for a number of them.

    Raises:
        ValueError: If the number of steps is no power of two, or more than the source has learnt.
    """
    source = fit.source if num_steps != 1 else None
    if source is not None and num_steps is None:
        return source.more
    if source is not None and source.more_in is not None and num_steps is not None:
        check_powers_of_two({"num_steps": num_steps})
        return source.more_in(num_steps)
    leap = fit.leap_in(fit.settings.num_steps if num_steps is None else num_steps)

    return lambda num_draws: weigh(leap, fit.target, num_draws)


def source_of(fit: Any, draws: PosteriorDraws | None) -> DrawSource | None:
    """Where posterior draws come from, if that is not the flow.

    Arguments:
        fit: A :class:`~pyro_osds.fit.Fit`.
        draws: The draws, or none.
    """
    if draws is None or not draws.source:
        return None
    sources = [annealed_smc(fit).source(), *([few_steps_of(fit).source()] if fit.walk is not None else [])]

    return next((source for source in sources if source.name == draws.source), None)


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
        reasons = fit.objections()
        return refined_posterior(
            leap, fit.target, *chains, judged, improper, reasons, found.parts, found.exploration, recipe.necks
        )

    # No stage cures a density without an integral.
    is_hopeless = bool(hopeless_objections(fit.leap, fit.model_target, found))
    deadline = -math.inf if is_hopeless or fit.stopped else deadline
    anneal, few_steps = annealed_smc(fit, deadline).posterior, None
    if fit.settings.recipe == "few_steps":
        few_steps = few_steps_of(fit, deadline)
        few_steps.keep = partial(setattr, fit, "walk")

    return Escalation(recipe, judge, walk, anneal, deadline, stages, few_steps), is_hopeless

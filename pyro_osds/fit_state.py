"""Where a fit stands: what a file or another process needs to go on with it, and what the log says of its choices."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from typing import Any

import torch

from pyro_osds.explore.coordinates import coordinates_of, in_coordinates
from pyro_osds.explore.journal import Journal
from pyro_osds.flow.leap import Leap, is_bijective
from pyro_osds.posterior.escalation import Stages
from pyro_osds.posterior.few_steps import restored_walk, walk_state
from pyro_osds.target import Target

# The log of a fit, wherever its lines are written.
_log = logging.getLogger("pyro_osds.fit")


def state_of(fit: Any) -> dict[str, Any]:
    """All that draws, verdicts and further training depend on, except the target and random numbers.

    Arguments:
        fit: A :class:`~pyro_osds.fit.Fit`.
    """
    walks = {num_steps: leap for num_steps, leap in fit.few_steps.items() if is_bijective(leap)}
    flow = fit.leap.flow if is_bijective(fit.leap) else None

    return {
        "coordinates": coordinates_of(fit.target),
        "starts": fit.starts,
        "drawn": fit.drawn,
        "recipe": fit.recipe.state(),
        "is_averaged": fit.leap is not fit.trainer.leap,
        "draws": fit.draws if fit.is_judged else None,
        "forgotten": fit.forgotten,
        "walk": walk_state(fit.walk),
        "few_steps": {n: leap.flow.state_dict() for n, leap in walks.items() if leap.flow is not flow},
        "rungs": fit.stages.state(),
        "is_interrupted": fit.is_interrupted,
        "exploration_began": fit.stopped.beginning if fit.stopped else None,
        "start_report": fit.start_report,
        "run_report": fit.run_report,
        "seconds": fit.seconds,
    }


def restored(kind: type, target: Target, settings: Any, state: dict[str, Any]) -> Any:
    """A fit that stands where another one stood.

    Arguments:
        kind: The class of fits.
        target: The user's posterior, as a target.
        settings: How the other one was fitted.
        state: What :func:`state_of` gave; it stays as it is.
    """
    seen = in_coordinates(target, state["coordinates"])
    with torch.random.fork_rng():  # networks that are built draw weights that are replaced at once
        found = replace(state["recipe"]["plan"].found, target=seen) if target.dim else None
        fit = kind(target, settings, found, state.get("starts"), drawn=state.get("drawn"))
        fit.recipe.restore(state["recipe"])
    _restore(fit, state, seen)
    if state["draws"] is not None:
        fit.keep(state["draws"])
    fit.forgotten = state.get("forgotten")

    return fit


def _restore(fit: Any, state: dict[str, Any], target: Target) -> None:
    """Stand where another fit stood, but for its draws.

    Arguments:
        fit: A :class:`~pyro_osds.fit.Fit` with the other one's recipe.
        state: What :func:`state_of` gave; it stays as it is.
        target: The target in the coordinates of the other one.
    """
    fit.trainer = fit.recipe.trainer
    fit.leap = fit.trainer.averaged() if state["is_averaged"] else fit.trainer.leap
    for num_steps, weights in state["few_steps"].items():
        assert is_bijective(fit.leap)
        walk = Leap(fit.leap.base, copy.deepcopy(fit.leap.flow), num_steps)
        walk.flow.load_state_dict(weights)
        fit.few_steps[num_steps] = walk
    fit.walk = restored_walk(state.get("walk"), target)
    fit.stages = Stages.restored(state["rungs"], target)
    fit.is_interrupted = state["is_interrupted"]
    # A journal stays with its process: an exploration that was stopped is made again, with the same random numbers.
    fit.stopped = Journal(state["exploration_began"]) if state.get("exploration_began") else None
    fit.start_report, fit.run_report = state["start_report"], state["run_report"]
    fit.seconds = dict(state["seconds"])


def given_report(found: Any) -> tuple[str, ...]:
    """What was made of draws that were given in the place of an exploration, a sentence each.

    Arguments:
        found: What the survey found, or None.
    """
    given = found.given if found else None
    if given is None:
        return ()
    names = ", ".join(map(repr, given.ignored))
    ignored = (f"initial_samples: {names} ignored, no continuous latent of the model",) if given.ignored else ()

    return (f"initial_samples: {found.plan}", *(f"initial_samples: {note}" for note in given.notes), *ignored)


def log_choices(fit: Any) -> None:
    """What was chosen before anything is trained.

    Arguments:
        fit: A :class:`~pyro_osds.fit.Fit`.
    """
    found, target = fit.recipe.found, fit.model_target
    _log.info("density: %d dimensions, evaluated as %r", target.dim, target.backend)
    for line in found.description() if found else ():
        _log.info(line)
    _log.info("explored in %.1f s", fit.seconds["exploration_time"])
    _log.info("recipe: %s", fit.recipe.name)

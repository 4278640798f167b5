"""What a sampler says of itself: in one line, and as the card below MCMC's table."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from pyro_osds.fit import Fit
from pyro_osds.runtime.text import Card
from pyro_osds.settings import Settings


def one_line(model: Callable[..., Any], settings: Settings, fit: Fit | None) -> str:
    """The model, the settings that are not the default, and what came out; nothing is computed for it.

    Arguments:
        model: What was given to be sampled from.
        settings: How to fit.
        fit: The present fit, if there is one.

    Example:
        >>> one_line(print, Settings(num_samples=10), None)
        'OSDS(print, num_samples=10): not run yet'
    """
    return f"{_call(model, settings)}: {_state(fit)}"


def summary_card(model: Callable[..., Any], settings: Settings, fit: Fit | None) -> Card:
    """Evidence and verdict, then how the run went; nothing is computed for it.

    Arguments:
        model: What was given to be sampled from.
        settings: How to fit.
        fit: The present fit, if there is one.
    """
    title = _call(model, settings)
    if fit is None or not fit.is_judged:
        return Card(title, (("state", _state(fit)),))
    evidence = fit.draws.evidence.card()
    notes = fit.model_target.notes

    return Card(title, evidence.rows, (*evidence.sentences, *notes)) + Card(
        "", (("fit", _course(fit)), *_search(fit), *_stages(fit), _seconds(fit))
    )


def _call(model: Callable[..., Any], settings: Settings) -> str:
    while isinstance(model, functools.partial):
        model = model.func
    given = [f"{name}={value!r}" for name, value in settings.not_default().items()]

    return f"OSDS({', '.join([getattr(model, '__name__', type(model).__name__), *given])})"


def _state(fit: Fit | None) -> str:
    if fit is None:
        return "not run yet"
    if not fit.is_judged:
        return f"{_dimensions(fit)}, {len(fit.trainer.history.loss)} iterations, not judged yet"

    return ", ".join([_dimensions(fit), *fit.draws.evidence.headline])


def _dimensions(fit: Fit) -> str:
    return f"{fit.target.dim} dimension{'' if fit.target.dim == 1 else 's'}"


def _course(fit: Fit) -> str:
    """How the fit was made."""
    found, history = fit.recipe.found, fit.trainer.history
    base = f", base of {found.base.num_components} component{'s' * (found.base.num_components > 1)}" if found else ""
    skipped = f" ({history.num_skipped} skipped)" if history.num_skipped else ""
    interrupted = ", interrupted" if history.interrupted else ""

    return f"{_dimensions(fit)}{base}, recipe {fit.recipe.name}, {len(history.loss)} iterations{skipped}{interrupted}"


def _search(fit: Fit) -> tuple[tuple[str, str], ...]:
    """What exploration was planned for, how the space was searched, and that it was not where it was not."""
    found = fit.recipe.found
    if found is None:
        return ()

    plan = (("plan", found.plan),) if found.plan else ()

    return (
        *plan,
        ("search", found.search.sentence() if found.search else "annealing alone, no ascents from many points"),
    )


def _stages(fit: Fit) -> tuple[tuple[str, str], ...]:
    """The name of the only stage, whose numbers stand above; a row for each where there were several."""
    if len(fit.run_report) < 2:
        return tuple(("stage", report.partition(":")[0]) for report in fit.run_report)

    return tuple((f"stage {number}", report) for number, report in enumerate(fit.run_report, 1))


def _seconds(fit: Fit) -> tuple[str, str]:
    seconds = {name.removesuffix("_time"): value for name, value in fit.seconds.items()}
    order = [
        name
        for name in ("exploration", "training", "sampling", "escalation")
        if name == "exploration" or seconds[name] >= 0.05
    ]

    return "seconds", ", ".join(f"{name} {seconds[name]:.1f}" for name in order)

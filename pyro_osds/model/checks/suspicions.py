"""What is suspicious about a model's observations, gathered from all that look at them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from pyro_osds.model.checks.observations import forgotten, one_hot, rounded_counts, scaled
from pyro_osds.model.checks.shapes import repeated
from pyro_osds.model.run import is_deterministic, is_missing_part
from pyro_osds.model.sites import LatentSite
from pyro_osds.runtime.warnings import ModelWarning, warn


def suspicions(
    trace: Any, sites: Sequence[LatentSite], reached: Collection[str], arguments: Sequence[Any]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sentences on the observations; the worst are warned of at once.

    Arguments:
        trace: The first run.
        sites: The continuous latents.
        reached: Those of them that the observations depend on.
        arguments: The values that the model was called with.

    Returns:
        All sentences, and those of them that tell of a mistake, against which a verdict speaks.
    """
    counts, nodes = [*rounded_counts(trace), *repeated(trace), *one_hot(trace)], trace.nodes
    some = [site.name for site in sites if site.stop > site.start]
    # What is imputed has its prior, unless more is observed of it.
    names = [n for n in some if not (is_deterministic(nodes[n]) or is_missing_part(nodes[n], nodes))]
    notes, is_mistake = forgotten(trace, [name for name in names if name not in reached], arguments)
    mistakes = tuple(notes) if is_mistake else ()
    for note in (*counts, *mistakes):
        warn(note, ModelWarning)

    return (*counts, *notes, *scaled(trace)), mistakes

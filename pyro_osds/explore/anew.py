"""A posterior that was explored before, explored once more: with better particles, or from where it all began."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_osds.explore.annealing import explore
from pyro_osds.explore.base_choice import choose_base, modes_of
from pyro_osds.explore.coordinates import coordinates_of, in_circles
from pyro_osds.explore.particles import Exploration
from pyro_osds.explore.paths import ReferencePath
from pyro_osds.explore.search.cover import base_with_parts, by_component, with_parts
from pyro_osds.explore.search.second_search import lost_parts
from pyro_osds.explore.survey import MAX_TERMS, SLOW_WAY, Survey, first_way
from pyro_osds.target import Target, finite_log_prob, in_chunks


def explore_anew(
    target: Any, found: Survey, num_particles: int, num_replicates: int, starts: Tensor | None
) -> Exploration:
    """The first way again, slowly and with more particles: draws where no flow could be had.

    Arguments:
        target: The target in the coordinates that it was given in.
        found: What the survey found, in the coordinates that it chose.
        num_particles: Particles on each replicate.
        num_replicates: Independent repeats.
        starts: Unconstrained points to look around, ``(S, D)``, where no prior can be sampled.

    Returns:
        The particles, in the coordinates of the survey.
    """
    seen = found.target
    if found.search and found.search.added:
        # The first way has lost them before.
        reference = with_parts(found.base, found.search.added)
        place = ReferencePath.from_density(seen, reference)
        strata = partial(by_component, reference)
        return explore(place, num_particles, num_replicates, ess_threshold=0.7, phase="Explore anew", strata=strata)
    # An order moves no circle: they are cut as they were, or annealing would lose what lies beyond the cut.
    around = in_circles(target, coordinates_of(seen))
    way, _ = first_way(around, None if starts is None else around.to_ordered(starts))
    exploration = explore(way, num_particles, num_replicates, ess_threshold=0.7, phase="Explore anew")
    z = around.in_order(exploration.z)
    if seen.unordered is not target:
        z = target.other_coordinates(z)[1]
    z = seen.to_ordered(z)
    with torch.no_grad():
        log_prob = finite_log_prob(in_chunks(seen.log_prob, z))

    return replace(exploration, z=z, log_prob=log_prob)


def resurvey(found: Survey, exploration: Exploration) -> Survey:
    """The same target seen through better particles: modes and base anew, the check as it was.

    Arguments:
        found: What the first survey found.
        exploration: Particles in its coordinates, of a refinement for instance.
    """
    modes = modes_of(found.target, exploration)
    base = choose_base(found.target, exploration, modes)
    lost = lost_parts(found.search, found.target, exploration, base)
    base = base_with_parts(found.target, base, lost, exploration) if lost else base

    # What starts from the flow cannot check it: a mode that the flow lost is lost to its refinement as well.
    check = found.exploration.replicate_log_evidence

    return replace(found, base=base, exploration=replace(exploration, replicate_log_evidence=check), modes=modes)


def is_affordable(target: Target, exploration: Exploration, num_particles: int) -> bool:
    """Whether exploring anew with so many particles ends in about a minute.

    Arguments:
        target: The target.
        exploration: The first way.
        num_particles: Particles in all.
    """
    cost = SLOW_WAY * exploration.num_temperatures * num_particles * target.num_terms

    return target.vectorized and cost <= MAX_TERMS

"""A posterior that was explored before, explored once more: with better particles, or from where it all began."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_osds.explore.annealing import explore, moved
from pyro_osds.explore.base_choice import choose_base, modes_of
from pyro_osds.explore.coordinates import coordinates_of, in_circles
from pyro_osds.explore.particles import Exploration
from pyro_osds.explore.paths import ReferencePath
from pyro_osds.explore.search.cover import base_with_parts, by_component, with_parts
from pyro_osds.explore.search.second_search import lost_parts
from pyro_osds.explore.survey import Survey, first_way
from pyro_osds.explore.variational import explore_from
from pyro_osds.target import finite_log_prob, in_chunks


def explore_anew(
    target: Any,
    found: Survey,
    num_particles: int,
    num_replicates: int,
    starts: Tensor | None,
    *,
    ess_threshold: float = 0.7,
    num_moves: int = 2,
    max_temperatures: int = 100,
    max_leapfrog: int = 0,
    num_crossovers: int = 0,
    phase: str = "Explore anew",
) -> Exploration:
    """Annealing anew, from the best reference that exploration had, slowly and with more particles; no flow is needed.

    That is the prior or the wide reference where annealing began, with a component for each part that was found later
    and, with a single mode in many dimensions, the Gaussian of the largest ELBO.

    Arguments:
        target: The target in the coordinates that it was given in.
        found: What the survey found, in the coordinates that it chose.
        num_particles: Particles on each replicate.
        num_replicates: Independent repeats.
        starts: Unconstrained points to look around, ``(S, D)``, where no prior can be sampled.
        ess_threshold: Share of the effective sample size that a change of temperature may leave.
        num_moves: Hamiltonian moves at each temperature.
        max_temperatures: After this many the rest of the way is one step.
        max_leapfrog: Leapfrog steps of a move are doubled up to so many where moves leave particles behind.
        num_crossovers: Rounds of crossovers at each temperature.
        phase: What the progress bar of a run calls it.

    Returns:
        The particles, in the coordinates of the survey.
    """
    seen, size = found.target, (num_particles, num_replicates)
    pace = {
        "ess_threshold": ess_threshold,
        "num_moves": num_moves,
        "max_temperatures": max_temperatures,
        "max_leapfrog": max_leapfrog,
        "num_crossovers": num_crossovers,
        "phase": phase,
    }
    if found.search and found.search.added:
        # The first way has lost them before.
        reference = with_parts(found.base, found.search.added)
        place = ReferencePath.from_density(seen, reference)
        return explore(place, *size, strata=partial(by_component, reference), **pace)
    if found.is_simple:
        return explore_from(seen, found.base, found.exploration, *size, **pace)
    # An order moves no circle: they are cut as they were, or annealing would lose what lies beyond the cut.
    around = in_circles(target, coordinates_of(seen))
    way, _ = first_way(around, None if starts is None else around.to_ordered(starts))
    exploration = explore(way, *size, **pace)
    z = around.in_order(exploration.z)
    if seen.unordered is not target:
        z = target.other_coordinates(z)[1]
    z = seen.to_ordered(z)
    with torch.no_grad():
        log_prob = finite_log_prob(in_chunks(seen.log_prob, z))

    return replace(exploration, z=z, log_prob=log_prob)


def move_on(found: Survey, z: Tensor, num_moves: int) -> tuple[Tensor, Tensor]:
    """Draws of the posterior moved on: copies of one draw part.

    Arguments:
        found: What the survey found.
        z: The draws, in the coordinates of the survey, ``(N, D)``.
        num_moves: Rounds of Hamiltonian moves.

    Returns:
        The draws, ``(N, D)``, and their log densities, ``(N,)``.
    """
    if not num_moves:
        with torch.no_grad():
            return z, finite_log_prob(in_chunks(found.target.log_prob, z))
    # Where the path began plays no part at its end.
    path = ReferencePath(found.target, lambda count: z[:count], lambda points: points.new_zeros(len(points)))

    return moved(path, z, num_moves)


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

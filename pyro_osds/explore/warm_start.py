"""From the flow of one posterior to another one nearby, such as that of a little more data.

The flow is held against the new posterior by a short refinement from its draws. Such a refinement cannot see what the
flow has never seen, so two things are done from scratch: the way from the prior, whose log evidence is the check of the
new one, and the search for modes. Whatever speaks against the old flow is a reason to explore anew.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_osds.explore.annealing import explore
from pyro_osds.explore.coordinates import coordinates_of, in_circles, in_coordinates
from pyro_osds.explore.modes import find_modes
from pyro_osds.explore.particles import Exploration
from pyro_osds.explore.paths import ReferencePath
from pyro_osds.explore.propriety import find_endless
from pyro_osds.explore.refinement import refine
from pyro_osds.explore.search.mode_search import lost_modes
from pyro_osds.explore.search.second_search import lost_parts, search
from pyro_osds.explore.survey import Survey, first_way
from pyro_osds.flow.base import gaussian_base, whitened
from pyro_osds.flow.leap import Leap, is_bijective
from pyro_osds.stats.moments import weighted_moments
from pyro_osds.stats.thresholds import (
    CHECK_QUANTILE,
    LOWER_SIGMAS,
    MAX_SIGMAS,
    MAX_WARM_ERROR,
    MAX_WARM_TEMPERATURES,
    MIN_ACCEPTANCE,
    MIN_CHECK_ERROR,
)
from pyro_osds.target import NotFiniteError, as_target


class FarOffError(ValueError):
    """The flow of another posterior is no place to start from."""


def survey_from(leap: Any, found: Survey, target: Any, num_particles: int = 64, starts: Tensor | None = None) -> Survey:
    """What an exploration would find out, from the flow of another posterior and a quick look at this one.

    Arguments:
        leap: The leap that was trained for the other posterior.
        found: What was found about that one.
        target: The new target, with the same sites.
        num_particles: Particles on each of eight replicates.
        starts: Unconstrained points to look around, ``(S, D)``, where no prior can be sampled.

    Returns:
        The survey of the new target: in the old coordinates, with the old base, with the refinement's particles, and
        with the log evidence of an annealing run that has never seen the flow as the check.

    Raises:
        FarOffError: If something speaks against the old flow.
    """
    target = as_target(target)
    if not is_bijective(leap) or not target.vectorized:
        raise FarOffError("there is no bijective flow, or densities come point by point")
    coordinates = coordinates_of(found.target)
    if coordinates["exchange"] is not None or coordinates["mirrors"] or coordinates.get("frames"):
        raise FarOffError("components that may trade places, or signs, are put in order anew")
    if _layout(target) != _layout(found.target):
        raise FarOffError("the latent sites are others")
    seen, given = in_coordinates(target, coordinates), in_circles(target, coordinates)
    starts = None if starts is None else given.to_ordered(starts)
    walked = _walked(leap, seen, num_particles)
    way, spread = first_way(given, starts)
    # As the first way of a survey: fast, and honest about how uncertain that makes its evidence.
    check = explore(way, num_particles, ess_threshold=0.3, num_moves=1, num_leapfrog=6)
    start = _moved(given, seen, check.start if spread is None else spread)
    reference = lost_modes(seen, start, walked.z, walked.log_prob)
    if reference is not None:
        # The search may be wrong; annealing from where they have been decides.
        place = ReferencePath(seen, lambda count: reference.sample(torch.Size([count])), reference.log_prob)
        again = explore(place, num_particles)
        check = check if again.log_evidence < check.log_evidence - LOWER_SIGMAS * check.std_error else again
    combined = math.hypot(walked.std_error, max(check.std_error, MIN_CHECK_ERROR))
    above = check.log_evidence - walked.log_evidence
    # Both come from the spread of eight replicates.
    if above > MAX_SIGMAS * CHECK_QUANTILE * combined:
        raise FarOffError(f"exploring from scratch gave a log evidence {above:.2f} nats above that of the refinement")
    loc, scale_tril = weighted_moments(walked.z, torch.zeros_like(walked.log_prob))
    exploration = Exploration(
        walked.z,
        walked.log_prob,
        check.replicate_log_evidence,
        check.num_temperatures,
        walked.num_evaluations + check.num_evaluations,
        walked.acceptance,
        check.num_not_finite,
        start=start,
    )

    looked = search(seen, exploration, gaussian_base(walked.z), exploration)
    if lost_parts(looked, seen, exploration, None):
        raise FarOffError("search found a part of the posterior that the old flow does not reach")

    return Survey(
        seen,
        whitened(leap.base),
        exploration,
        find_modes(walked.z, walked.log_prob, seen.log_prob),
        exploration.num_evaluations,
        find_endless(seen, loc, scale_tril),
        search=looked,
    )


def _walked(leap: Leap, target: Any, num_particles: int) -> Exploration:
    """Particles of a short refinement from the old flow's draws, if it was short indeed."""
    try:
        walked = refine(leap, target, num_particles)
    except NotFiniteError as error:
        raise FarOffError("the log density is not finite at any draw of the old flow") from error
    if walked.num_temperatures > MAX_WARM_TEMPERATURES:
        raise FarOffError(f"the refinement from the old flow took {walked.num_temperatures} temperatures")
    if not walked.settled or walked.acceptance < MIN_ACCEPTANCE or not walked.std_error < MAX_WARM_ERROR:
        raise FarOffError("the particles of the refinement from the old flow did not come to rest")

    return walked


def _layout(target: Any) -> Any:
    sites = [(site.name, site.shape, site.unconstrained_shape) for site in target.sites]

    return target.dim, target.dtype, target.device, sites


def _moved(given: Any, seen: Any, z: Tensor) -> Tensor:
    """Points of the given target in the coordinates that are used, ``(N, D)``; those that overflow are left out."""
    if seen.standardized == given.standardized:
        return z
    u = given.other_coordinates(z)[1]
    inside = u.isfinite().all(-1)

    return u[inside]

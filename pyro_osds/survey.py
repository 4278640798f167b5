r"""Before any training: explore the posterior, count its modes, choose the base, and take an independent log evidence.

From the prior, where there is one, or else from a wide Gaussian, particles are annealed to the posterior. Where that
way was long, its log evidence is worth little; then a second, short way from the base that the first one found gives
the check.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_osds.base import Base, gaussian_base, mixture_base
from pyro_osds.explore import AnnealingPath, Exploration, PriorPath, ReferencePath, explore
from pyro_osds.modes import find_modes
from pyro_osds.moments import weighted_moments
from pyro_osds.reference import wide_reference
from pyro_osds.target import Target

_SHORT_WAY = 3
_MAX_WAYS = 3
_MIN_GAIN = 0.5
_MORE_PARTICLES = 4


@dataclass(frozen=True)
class Survey:
    """What exploration found.

    Arguments:
        target: The target, in the coordinates that suit it best.
        base: The base that the leap starts from.
        exploration: The last annealing run; its log evidence is the check of the flow's.
        num_modes: Separated modes among the particles.
        num_evaluations: Points at which the density was evaluated in annealing.
    """

    target: Any
    base: Base
    exploration: Exploration
    num_modes: int
    num_evaluations: int


def survey(target: Target, num_particles: int = 64, num_islands: int = 8, starts: Tensor | None = None) -> Survey:
    """Explore a target and choose the base.

    Arguments:
        target: The target; if it can sample its own prior, annealing starts there.
        num_particles: Particles on each island.
        num_islands: Independent repeats of the annealing.
        starts: Unconstrained points to look around, ``(S, D)``, where no prior can be sampled.

    Returns:
        The base, the particles and the check.

    Example:
        >>> from pyro_osds.target import FunctionTarget
        >>> torch.manual_seed(0) and None
        >>> found = survey(FunctionTarget(lambda z: -0.5 * (z - 3).square().sum(-1), dim=2))
        >>> found.num_modes, found.base.loc.round().tolist()
        (1, [3.0, 3.0])
    """
    exploration = explore(
        _first_way(target, starts), num_particles, num_islands, ess_threshold=0.3, num_moves=1, num_leapfrog=6
    )
    target, exploration = _choose_coordinates(target, exploration)
    base, num_modes = _choose_base(target, exploration)
    num_evaluations = exploration.num_evaluations
    ways = 1
    if num_modes > 1:
        # Several modes share the particles, and a mixture has many parameters: once more with four times as many.
        num_particles *= _MORE_PARTICLES
        way = ReferencePath(target, base.sample, base.log_prob)
        exploration = explore(way, num_particles, num_islands, max_settling=0)
        base, num_modes = _choose_base(target, exploration)
        num_evaluations += exploration.num_evaluations
    while exploration.num_temperatures > _SHORT_WAY and ways < _MAX_WAYS:
        way = ReferencePath(target, base.sample, base.log_prob)
        exploration = explore(way, num_particles, num_islands, max_settling=0)
        base, num_modes = _choose_base(target, exploration)
        num_evaluations += exploration.num_evaluations
        ways += 1

    return Survey(target, base, exploration, num_modes, num_evaluations)


def _first_way(target: Target, starts: Tensor | None) -> AnnealingPath:
    if getattr(target, "can_sample_prior", False):
        return PriorPath(target)
    reference = wide_reference(target, starts=starts)

    return ReferencePath(target, lambda count: reference.sample(torch.Size([count])), reference.log_prob)


def _choose_coordinates(target: Target, exploration: Exploration) -> tuple[Target, Exploration]:
    r"""Standardise location-scale sites if the particles are then closer to a Gaussian.

    The divergence to the best Gaussian is, up to a constant that all coordinates :math:`u` share,
    :math:`\tfrac12 \log\det \mathrm{Cov}(u) + \mathrm{E} \log|\det \partial z / \partial u|`.
    """
    other_coordinates = getattr(target, "other_coordinates", None)
    if other_coordinates is None:
        return target, exploration
    other, u, log_abs_det = other_coordinates(exploration.z)
    usable = u.isfinite().all(-1) & log_abs_det.isfinite()
    if not usable.all():
        return target, exploration
    change = _log_volume(u) + log_abs_det.double().mean() - _log_volume(exploration.z)
    if change > -_MIN_GAIN:
        return target, exploration
    log_prob = exploration.log_prob + log_abs_det

    return other, replace(exploration, z=u, log_prob=log_prob)


def _log_volume(z: Tensor) -> Tensor:
    """Half the log-determinant of the covariance of particles, a scalar."""
    return weighted_moments(z, z.new_zeros(len(z)))[1].diagonal().double().log().sum()


def _choose_base(target: Target, exploration: Exploration) -> tuple[Base, int]:
    """A Gaussian, or a mixture where there are separated modes."""
    z = exploration.z
    labels = find_modes(z, exploration.log_prob, target.log_prob)
    num_modes = int(labels.max()) + 1

    return (mixture_base(z, labels) if num_modes > 1 else gaussian_base(z)), num_modes

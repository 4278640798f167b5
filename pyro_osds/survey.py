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

from pyro_osds.base import MAX_COMPONENTS, Base, adapt_mixture, gaussian_base, mixture_base
from pyro_osds.explore import AnnealingPath, Exploration, PriorPath, ReferencePath, explore
from pyro_osds.modes import Modes, find_modes
from pyro_osds.moments import weighted_moments
from pyro_osds.reference import wide_reference
from pyro_osds.target import Target, log_prob_and_score

_SHORT_WAY = 3
_MAX_WAYS = 3
_MIN_GAIN = 0.5
_MORE_PARTICLES = 8
# What the slow way may cost, in terms of the log density: about a minute on one core.
_MAX_TERMS = 2e9
# Evaluations of the slow way by temperature of the first one and by particle: it has more temperatures, and more moves.
_SLOW_WAY = 50
# Share of pairs of particles with a valley between them, from which on the posterior has more than one mode.
_MANY_PARTED = 0.02


@dataclass(frozen=True)
class Survey:
    """What exploration found.

    Arguments:
        target: The target, in the coordinates that suit it best.
        base: The base that the leap starts from.
        exploration: The last annealing run; its log evidence is the check of the flow's.
        modes: Separated modes among the particles.
        num_evaluations: Points at which the density was evaluated in annealing.
    """

    target: Any
    base: Base
    exploration: Exploration
    modes: Modes
    num_evaluations: int

    @property
    def is_folded(self) -> bool:
        """Whether valleys run through the posterior, and no mixture base takes care of them."""
        return self.modes.parted > _MANY_PARTED and self.base.num_components == 1


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
        >>> found.modes.count, found.base.loc.round().tolist()
        (1, [3.0, 3.0])
    """
    first_way = _first_way(target, starts)
    exploration = explore(first_way, num_particles, num_islands, ess_threshold=0.3, num_moves=1, num_leapfrog=6)
    modes, num_evaluations, ways = _find_modes(target, exploration), exploration.num_evaluations, 1
    more = _affordable(target, exploration) if modes.parted > _MANY_PARTED and _is_vectorized(target) else 0
    if more:
        # Modes share the particles, and few particles lose small ones: the same way again, slowly, with many more.
        num_particles *= more
        exploration = explore(first_way, num_particles, num_islands, ess_threshold=0.8, num_moves=4)
        num_evaluations += exploration.num_evaluations
    target, exploration = _choose_coordinates(target, exploration)
    modes = _find_modes(target, exploration)
    base = _choose_base(target, exploration, modes)
    while exploration.num_temperatures > _SHORT_WAY and ways < _MAX_WAYS and modes.parted <= _MANY_PARTED:
        way = ReferencePath(target, base.sample, base.log_prob)
        exploration = explore(way, num_particles, num_islands, max_settling=0)
        modes = _find_modes(target, exploration)
        base = _choose_base(target, exploration, modes)
        num_evaluations += exploration.num_evaluations
        ways += 1

    return Survey(target, base, exploration, modes, num_evaluations)


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


def _find_modes(target: Target, exploration: Exploration) -> Modes:
    return find_modes(exploration.z, exploration.log_prob, target.log_prob)


def _choose_base(target: Target, exploration: Exploration, modes: Modes) -> Base:
    """A Gaussian, or a mixture where there are separated modes that can be counted."""
    z = exploration.z
    if 1 < modes.count <= MAX_COMPONENTS:
        base = mixture_base(z, modes.labels)
        return adapt_mixture(base, target) if _is_vectorized(target) else base
    if modes.parted > _MANY_PARTED:
        # Scores know the width of a mode, and nothing of the distance between modes.
        return gaussian_base(z)

    return gaussian_base(z, log_prob_and_score(target.log_prob, z)[1])


def _affordable(target: Target, exploration: Exploration) -> int:
    """How many times the particles a slow way may have; none where even as many as before would take too long."""
    num_terms = getattr(target, "num_terms", 0)
    cost = _SLOW_WAY * exploration.num_temperatures * len(exploration.z) * num_terms

    return _MORE_PARTICLES if cost == 0 else min(_MORE_PARTICLES, int(_MAX_TERMS / cost))


def _is_vectorized(target: Target) -> bool:
    """Whether densities come in batches; point by point, tens of thousands of them would take minutes."""
    return getattr(target, "vectorized", True)

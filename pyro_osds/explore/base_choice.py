"""Which base the leap starts from: a Gaussian, or a mixture where particles sit in modes that can be counted."""

from __future__ import annotations

import torch

from pyro_osds.explore.mixture import MAX_COMPONENTS, adapt_mixture, effective_share, mixture_base
from pyro_osds.explore.modes import Modes, find_modes
from pyro_osds.explore.particles import Exploration
from pyro_osds.flow.base import Base, gaussian_base, without_mixture
from pyro_osds.stats.moments import ENOUGH_PARTICLES
from pyro_osds.stats.thresholds import FOLDED, GOOD_BASE, POOR_BASE
from pyro_osds.target import Target, log_prob_and_score


def modes_of(target: Target, exploration: Exploration) -> Modes:
    """The modes that particles sit in."""
    return find_modes(exploration.z, exploration.log_prob, target.log_prob)


def choose_base(target: Target, exploration: Exploration, modes: Modes) -> Base:
    """A Gaussian, or a mixture where there are separated modes that can be counted."""
    z = exploration.z
    if 1 < modes.count <= MAX_COMPONENTS:
        base = mixture_base(z, modes.labels)
        return adapt_mixture(base, target) if target.vectorized else base
    if modes.parted > FOLDED:
        # Scores know the width of a mode, and nothing of the distance between modes.
        return gaussian_base(z)

    base = gaussian_base(z, log_prob_and_score(target.log_prob, z)[1])
    if has_many_dimensions(target, exploration) or not target.vectorized:
        return base
    if effective_share(base, target) > POOR_BASE:
        return base
    # A spike on a broad mode, for instance: no valley parts them, but one Gaussian is neither.
    mixture = adapt_mixture(mixture_base(z, torch.zeros_like(modes.labels)), target)

    return without_mixture(mixture) if effective_share(mixture, target) > GOOD_BASE else base


def has_many_dimensions(target: Target, exploration: Exploration) -> bool:
    """Whether particles are too few for the scale of the posterior, and densities fast enough for more draws."""
    return target.vectorized and len(exploration.z) < ENOUGH_PARTICLES * target.dim

"""Parts that were lost, covered: a reference to anneal from, and a mixture base, with a component for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from pyro_osds.explore.mixture import adapt_mixture, effective_share, mixture_base
from pyro_osds.explore.particles import Exploration
from pyro_osds.explore.search.parts import Part
from pyro_osds.explore.search.probes import components
from pyro_osds.flow.base import Base
from pyro_osds.stats.gaussian import Gaussian
from pyro_osds.stats.thresholds import GOOD_BASE
from pyro_osds.target import Target

# How much wider than they fit parts are drawn from: what is too narrow loses mass for good.
_WIDENING = 1.4
# Share of a base that is left to what there was, at least: what the particles say of it may be noise.
_LEAST = 0.05


def with_parts(base: Base, parts: Sequence[Part]) -> MixtureSameFamily:
    """A density to anneal from: half of it on what is known, half on parts that were lost, all a little wider.

    Arguments:
        base: What is known.
        parts: What was lost.
    """
    centres, scales, weights = components(base)
    probs = torch.cat([weights / weights.sum(), weights.new_full((len(parts),), 1.0 / len(parts))])
    locs = torch.cat([centres, torch.stack([part.loc for part in parts]).to(centres)])
    factors = torch.cat([scales, torch.stack([part.scale_tril for part in parts]).to(scales)])

    return MixtureSameFamily(Categorical(probs=0.5 * probs), Gaussian(locs, _WIDENING * factors), validate_args=False)


def base_with_parts(target: Target, base: Base, parts: Sequence[Part], exploration: Exploration) -> Base:
    """A mixture base that has a component for each part, beside those that there are.

    Arguments:
        target: The target.
        base: What there is.
        parts: What it lacks.
        exploration: Particles, those of the parts among them.
    """
    direct = _direct(base, parts, exploration)
    if not target.vectorized:
        return direct
    adapted = adapt_mixture(direct, target)
    share = effective_share(adapted, target)
    if share > GOOD_BASE:
        return adapted
    from_particles = adapt_mixture(mixture_base(exploration.z, _labels(direct, exploration.z)), target)

    return from_particles if effective_share(from_particles, target) > share else adapted


def _direct(base: Base, parts: Sequence[Part], exploration: Exploration) -> Base:
    """The components that there are beside those of the parts, each with the mass that it is known to have."""
    centres, scales, weights = components(base)
    locs = torch.cat([centres, torch.stack([part.loc for part in parts]).to(centres)])
    factors = torch.cat([scales, torch.stack([part.scale_tril for part in parts]).to(scales)])
    inside = torch.stack([part.holds(exploration.z) for part in parts]).double().mean(1)
    # At least what a few particles would say, so that each component is drawn from and can be adapted.
    shares = inside.clamp(min=0.5 / len(exploration.z)).to(weights)
    rest = (1.0 - shares.sum()).clamp(min=_LEAST)
    probs = torch.cat([rest * weights / weights.sum(), shares])
    mixture = MixtureSameFamily(
        Categorical(probs=probs / probs.sum()),
        Gaussian(base.to_whitened(locs), _solved(base, factors)),
        validate_args=False,
    )

    return replace(base, density=mixture)


def _solved(base: Base, factors: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(base.scale_tril, factors, upper=False)


def _labels(base: Base, z: Tensor) -> Tensor:
    """The component of a mixture base that each point most probably belongs to, without gaps, ``(N,)``."""
    density = base.density
    assert isinstance(density, MixtureSameFamily) and isinstance(density.component_distribution, MultivariateNormal)
    log_joint = density.component_distribution.log_prob(base.to_whitened(z)[:, None])
    labels = (log_joint + density.mixture_distribution.logits).argmax(1)

    return labels.unique(return_inverse=True)[1]


def by_component(reference: MixtureSameFamily, z: Tensor) -> Tensor:
    """The component of a reference that each point most probably came from, ``(N,)``: the strata of resampling."""
    log_joint = reference.component_distribution.log_prob(z[:, None])

    return (log_joint + reference.mixture_distribution.logits).argmax(1)

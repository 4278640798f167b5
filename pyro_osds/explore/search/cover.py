"""Parts that were lost, covered: a reference to anneal from, and a mixture base, with a component for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from pyro_osds.explore.mixture import adapt_mixture, effective_share, mixture_base
from pyro_osds.explore.particles import Exploration
from pyro_osds.explore.search.parts import Part, log_mean, lost_by_draws
from pyro_osds.explore.search.probes import components
from pyro_osds.flow.base import Base
from pyro_osds.stats.gaussian import Gaussian, GaussianMixture
from pyro_osds.stats.thresholds import GOOD_BASE, MIN_UNSEEN
from pyro_osds.target import Target, finite_log_prob, in_chunks

# How much wider than they fit parts are drawn from: what is too narrow loses mass for good.
_WIDENING = 1.4
# Share of a base that is left to what there was, at least: what the particles say of it may be noise.
_LEAST = 0.05
# Beyond the region of a part, in its standard deviations, up to which particles still belong to it: hardly one of a
# Gaussian part lies farther out.
_NEXT_TO = 3.0
# Draws of a base that tell whether it reaches a halo, and the share of its mass that counts as reached.
_NUM_DRAWS, _VISITED = 4096, 0.5


def with_parts(base: Base, parts: Sequence[Part]) -> GaussianMixture:
    """A density to anneal from: half of it on what is known, half on parts that were lost, all a little wider.

    Arguments:
        base: What is known.
        parts: What was lost.
    """
    centres, scales, weights = components(base)
    probs = torch.cat([weights / weights.sum(), weights.new_full((len(parts),), 1.0 / len(parts))])
    locs = torch.cat([centres, torch.stack([part.loc for part in parts]).to(centres)])
    factors = torch.cat([scales, torch.stack([part.scale_tril for part in parts]).to(scales)])

    return GaussianMixture(Categorical(probs=0.5 * probs), Gaussian(locs, _WIDENING * factors))


def base_with_parts(target: Target, base: Base, parts: Sequence[Part], exploration: Exploration) -> Base:
    """A mixture base that has a component for each part, beside those that there are.

    Where hardly a particle belongs to none of the parts, the others go if more draws are effective without them: they
    were fitted to few particles, and training would be busy with where they go astray.

    Arguments:
        target: The target.
        base: What there is.
        parts: What it lacks.
        exploration: Particles, those of the parts among them.
    """
    direct = _direct(base, parts, exploration)
    if not target.vectorized:
        return direct
    best = adapt_mixture(direct, target)
    share = effective_share(best, target)
    if not share > GOOD_BASE:
        from_particles = adapt_mixture(mixture_base(exploration.z, _labels(direct, exploration.z)), target)
        of_particles = effective_share(from_particles, target)
        best, share = (from_particles, of_particles) if of_particles > share else (best, share)
    alone = _alone(base, parts, exploration)
    if alone is None:
        return best
    # Random numbers stay as they are for all that come without it.
    with torch.random.fork_rng(devices=[target.device] if target.device.type == "cuda" else []):
        return alone if effective_share(alone, target) > share else best


def _alone(base: Base, parts: Sequence[Part], exploration: Exploration) -> Base | None:
    """The parts without what there was, each with the mass that it holds; None where particles belong to none.

    A small share of each is drawn more widely: tails that are heavier than those of a Gaussian have draws, too.
    """
    if len(parts) < 2 or any(part.is_halo for part in parts):
        return None
    around = [replace(part, inner=0.0, outer=part.outer + _NEXT_TO).holds(exploration.z) for part in parts]
    if not torch.stack(around).any(0).double().mean() > 1.0 - MIN_UNSEEN:
        return None
    locs, factors = (torch.stack([getattr(part, name) for part in parts]) for name in ("loc", "scale_tril"))
    shares = torch.softmax(torch.tensor([part.log_mass for part in parts], dtype=torch.float64), 0).to(locs)
    weights = torch.cat([(1.0 - _LEAST) * shares, _LEAST * shares])

    return _mixture(base, locs.repeat(2, 1), torch.cat([factors, _WIDENING * factors]), weights)


def base_with_halo(target: Target, base: Base, parts: Sequence[Part]) -> Base:
    """A base with a component for what lies far out, where the one that there is hardly goes there.

    A Gaussian that fits core and halo together is neither, and one that fits the core has no draw in the halo: a flow
    would have to pull its tails from nothing. The other components are those of the base or, where it has one, the
    basins that search found. Random numbers of the caller stay as they are.

    Arguments:
        target: The target.
        base: What there is.
        parts: What search found.

    Returns:
        The new base where more than half of its draws are effective, and either the halo has none of the old base's
        mass or twice as many are effective as there; else the old one.
    """
    halos, basins = [part for part in parts if part.is_halo], [part for part in parts if not part.is_halo]
    if not halos or not basins or not target.vectorized:
        return base
    with torch.random.fork_rng(devices=[target.device] if target.device.type == "cuda" else []):
        z = base.sample(_NUM_DRAWS)
        with torch.no_grad():
            log_weight = finite_log_prob(finite_log_prob(in_chunks(target.log_prob, z)) - base.log_prob(z))
        total = max(log_mean(log_weight)[0], *(part.log_mass for part in parts))
        lacks = bool(lost_by_draws(halos, z, log_weight, total, most=_VISITED))
        share = effective_share(base, target)
        if share > GOOD_BASE and not lacks:
            return base
        candidate = adapt_mixture(_of_parts(base, basins, halos), target)
        reached = effective_share(candidate, target)

    return candidate if reached > GOOD_BASE and (lacks or reached > 2.0 * share) else base


def _of_parts(base: Base, basins: Sequence[Part], halos: Sequence[Part]) -> Base:
    """Components of the base, or of the basins where it is one Gaussian, beside those of the halos."""
    if base.num_components > 1:
        locs, scales, weights = components(base)
        rest = torch.stack([torch.tensor(part.log_mass) for part in basins]).logsumexp(0)
        log_mass = weights.log() + rest.to(weights)
    else:
        locs, scales = (torch.stack([getattr(part, name) for part in basins]) for name in ("loc", "scale_tril"))
        log_mass = torch.tensor([part.log_mass for part in basins])
    log_mass = torch.cat([log_mass.to(locs), torch.tensor([part.log_mass for part in halos]).to(locs)])

    return _mixture(
        base,
        torch.cat([locs, torch.stack([part.loc for part in halos]).to(locs)]),
        torch.cat([scales, torch.stack([part.scale_tril for part in halos]).to(scales)]),
        torch.softmax(log_mass, 0),
    )


def _direct(base: Base, parts: Sequence[Part], exploration: Exploration) -> Base:
    """The components that there are beside those of the parts, each with the mass that it is known to have."""
    centres, scales, weights = components(base)
    locs = torch.cat([centres, torch.stack([part.loc for part in parts]).to(centres)])
    factors = torch.cat([scales, torch.stack([part.scale_tril for part in parts]).to(scales)])
    inside = torch.stack([part.holds(exploration.z) for part in parts]).double().mean(1)
    # At least what a few particles would say, so that each component is drawn from and can be adapted.
    shares = inside.clamp(min=0.5 / len(exploration.z)).to(weights)
    rest = (1.0 - shares.sum()).clamp(min=_LEAST)

    return _mixture(base, locs, factors, torch.cat([rest * weights / weights.sum(), shares]))


def _mixture(base: Base, locs: Tensor, factors: Tensor, weights: Tensor) -> Base:
    """A mixture in the whitening of a base, from what is not whitened."""
    mixture = GaussianMixture(
        Categorical(probs=weights / weights.sum()),
        Gaussian(base.to_whitened(locs), torch.linalg.solve_triangular(base.scale_tril, factors, upper=False)),
    )

    return replace(base, density=mixture)


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

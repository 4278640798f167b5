r"""A second search, which fails where annealing does not: many ascents, and whose tops hold mass that nobody has met.

Annealing is blind to what is narrow while the target is tempered; ascents are blind to what is broad and shallow. So
points go uphill from the particles, from where these were at every temperature, from widely around, and from where the
density stands out. Each top is a basin; its mass is told by itself alone (:mod:`~pyro_osds.explore.parts`), and held
against the share that the particles and the draws of the base have there.

What was not searched is said: of *n* points at random whose ascents ended in basins, :math:`n_1` ended in one that no
other met, and a further one ends in a basin that is not known with a probability of about :math:`n_1 / n` (Good 1953).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from pyro_osds.explore.annealing import Exploration
from pyro_osds.explore.ascent import Tops, ascend
from pyro_osds.explore.mixture import MAX_COMPONENTS, adapt_mixture, effective_share, mixture_base
from pyro_osds.explore.modes import spread_out
from pyro_osds.explore.parts import Part, basin, log_mean, lost_by_draws, lost_by_particles
from pyro_osds.explore.probes import around, components, halo, outstanding
from pyro_osds.flow.base import Base
from pyro_osds.stats.gaussian import Gaussian
from pyro_osds.stats.thresholds import LOST_SHARE
from pyro_osds.target import Target, finite_log_prob, in_chunks, log_prob_and_score

# Points of each kind that climb: of the particles, of those on their way, of points spread widely, of probes.
_NUM_EACH, _NUM_EACH_SLOWLY = 64, 12
# With more terms of the log density than this there are as many fewer.
_MANY_TERMS = 20_000
# Dimensions up to which the curvature of a top, four scores for each of them, is affordable.
_MAX_DIM = 128
# Tops whose mass is looked at: those that most points came to, and the highest.
_MAX_TOPS, _MAX_TOPS_SLOWLY = 64, 8
# Squared distance, in variances of a part, within which a point at rest has come to its top.
_SAME_TOP = 0.01
# Nats by which the density may fall between two points at rest that count as one top, as in a flat valley.
_SAME_VALLEY = 0.5
# Places between two tops that are looked at.
_BETWEEN = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
# Draws of the base that tell what it covers.
_NUM_BASE_DRAWS = 4096
# How much wider than they fit parts are drawn from: what is too narrow loses mass for good.
_WIDENING = 1.4
# Probability that the bound of the unseen holds.
_BOUND = 0.95


@dataclass(frozen=True)
class Search:
    """How the space was searched, and what was found.

    Arguments:
        num_starts: Points that climbed.
        num_random: Those of them that were taken at random, and came to rest.
        num_basins: Basins in which points came to rest.
        num_single: Basins that one of the random points came to, and no other.
        parts: Parts whose mass matters, each with what its region holds; what is judged is held against them.
        added: Those that annealing had lost.
        num_dropped: Basins beyond those whose mass was looked at.
    """

    num_starts: int
    num_random: int
    num_basins: int
    num_single: int
    parts: tuple[Part, ...] = ()
    added: tuple[Part, ...] = ()
    num_dropped: int = 0

    @property
    def unseen(self) -> float:
        """Upper bound of the probability that another random point ends in a basin that is not known."""
        return _upper_bound(self.num_single, self.num_random)

    def sentence(self) -> str:
        """How the space was searched, in one line."""
        known = 1.0 - self.num_single / max(self.num_random, 1)
        basins = f"{self.num_basins} basin{'s' * (self.num_basins != 1)}"
        added = f", {len(self.added)} lost by annealing and added" if self.added else ""

        return (
            f"{self.num_starts} ascents found {basins}{added}; {known:.1%} of {self.num_random} random ones ended in a "
            f"basin that others met, unseen ones take less than {self.unseen:.1%} of them (Good-Turing, {_BOUND:.0%})"
        )


def search(
    target: Target, exploration: Exploration, base: Base, seen: Exploration, added: Sequence[Part] = ()
) -> Search | None:
    """Look for what annealing and base may have lost; random numbers of the caller stay as they are.

    Arguments:
        target: The target.
        exploration: The particles.
        base: What the flow would start from.
        seen: The way on which all of the space was seen: where it began, and what it passed.
        added: Parts that an earlier search has added.

    Returns:
        What was found; None in too many dimensions.
    """
    if target.dim > _MAX_DIM or not exploration.log_prob.isfinite().any():
        return None
    with torch.random.fork_rng(devices=[target.device] if target.device.type == "cuda" else []):
        return _searched(target, exploration, base, seen, tuple(added))


def _searched(
    target: Target, exploration: Exploration, base: Base, seen: Exploration, added: tuple[Part, ...]
) -> Search:
    scale = base.scale_tril
    evaluate = partial(log_prob_and_score, target.log_prob)
    starts, num_random = _starts(target, exploration, base, seen)
    tops = ascend(evaluate, starts, base.loc, scale)
    basins = _basins(target, tops, scale)
    at_random = [int((index < num_random).sum()) for _, index in basins.tops]
    parts = [part for part, _ in basins.tops if part is not None]
    beyond = halo(target, base)
    parts += [beyond] if beyond is not None else []
    total = _total(exploration, parts)
    parts = [part for part in parts if part.log_mass > total + math.log(LOST_SHARE)]

    return Search(
        len(starts), sum(at_random), len(basins.tops) + basins.num_dropped, at_random.count(1), tuple(parts), added,
        basins.num_dropped,
    )


def _starts(target: Target, exploration: Exploration, base: Base, seen: Exploration) -> tuple[Tensor, int]:
    """Points to climb from, those at random first, and how many these are."""
    count = _NUM_EACH if target.vectorized else _NUM_EACH_SLOWLY
    count = max(_NUM_EACH_SLOWLY, int(count * min(1.0, _MANY_TERMS / max(1, target.num_terms))))
    z = exploration.z[exploration.log_prob.isfinite()]
    spread, passed = (points[points.isfinite().all(-1)] for points in (seen.start, seen.passed))
    spread = spread if len(spread) else z
    kinds = [points[torch.randint(len(points), (count,), device=z.device)] for points in (z, spread)]
    if len(passed):
        kinds.append(passed[torch.randint(len(passed), (count,), device=z.device)])
    kinds.append(around(base, count))
    num_random = sum(map(len, kinds))
    kinds.append(z[spread_out(z, count)])
    if target.vectorized:
        kinds.append(outstanding(target, base, spread))

    return torch.cat([points.to(z) for points in kinds]), num_random


@dataclass(frozen=True)
class _Basins:
    """Tops with the points that came to each, and how many more there are."""

    tops: list[tuple[Part | None, Tensor]]
    num_dropped: int


def _basins(target: Target, tops: Tops, scale: Tensor) -> _Basins:
    """Points at rest, gathered by the top that each came to."""
    evaluate = partial(log_prob_and_score, target.log_prob)
    left = tops.arrived.nonzero()[:, 0]
    found: list[tuple[Part | None, Tensor]] = []
    most = _MAX_TOPS if target.vectorized else _MAX_TOPS_SLOWLY
    while len(left) and len(found) < most:
        highest = left[tops.log_prob[left].argmax()]
        part = basin(evaluate, tops.z[highest], scale, quickly=not target.vectorized)
        metric = scale if part is None else part.scale_tril
        centre = tops.z[highest]
        offset = torch.linalg.solve_triangular(metric, (tops.z[left] - centre).mT, upper=False).mT
        same = offset.square().sum(-1) < _SAME_TOP
        same |= _joined(target, tops, left, highest, ~same)
        found.append((part, left[same]))
        left = left[~same]

    return _Basins(found, len(left))


def _joined(target: Target, tops: Tops, index: Tensor, top: Tensor, asked: Tensor) -> Tensor:
    """Whether the straight lines from points at rest to a top see no valley, for those asked about, ``(A,)``."""
    joined = torch.zeros_like(asked)
    if not asked.any():
        return joined
    shares = torch.tensor(_BETWEEN, dtype=tops.z.dtype, device=tops.z.device)[:, None, None]
    points = torch.lerp(tops.z[index[asked]], tops.z[top], shares)
    with torch.no_grad():
        inside = finite_log_prob(in_chunks(target.log_prob, points.flatten(0, 1))).view(len(shares), -1)
    joined[asked] = inside.amin(0) > tops.log_prob[index[asked]] - _SAME_VALLEY

    return joined


def _total(exploration: Exploration, parts: Sequence[Part]) -> float:
    """The log evidence that shares are of: the exploration's, or that of the largest part where it is larger."""
    return max([exploration.log_evidence, *(part.log_mass for part in parts if part.std_error < _KNOWN)])


# Standard error of a part's mass, nats, up to which it may be the measure of others.
_KNOWN = 0.3


def lost_parts(found: Search | None, target: Target, exploration: Exploration, base: Base) -> tuple[Part, ...]:
    """Parts that the particles, or the draws of the base, lack.

    Arguments:
        found: What search found.
        target: The target.
        exploration: The particles.
        base: What the flow would start from.
    """
    if found is None or not found.parts:
        return ()
    total = _total(exploration, found.parts)
    lost = lost_by_particles(found.parts, exploration.z, exploration.replicate_log_evidence, total)
    if target.vectorized:
        lost += _lost_by_base(found.parts, target, base, total)

    return tuple({id(part): part for part, _ in lost}.values())


def _lost_by_base(
    parts: Sequence[Part], target: Target, base: Base, log_evidence: float
) -> list[tuple[Part, float]]:
    with torch.random.fork_rng(devices=[target.device] if target.device.type == "cuda" else []):
        z = base.sample(_NUM_BASE_DRAWS)
    with torch.no_grad():
        log_weight = finite_log_prob(in_chunks(target.log_prob, z)) - base.log_prob(z)

    return lost_by_draws(parts, z, finite_log_prob(log_weight), log_evidence)


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
    labels = _labels(direct, exploration.z)
    from_particles = mixture_base(exploration.z, labels)
    if not target.vectorized:
        return direct
    bases = [adapt_mixture(candidate, target) for candidate in (direct, from_particles)]

    return max(bases, key=partial(effective_share, target=target))


def _direct(base: Base, parts: Sequence[Part], exploration: Exploration) -> Base:
    """The components that there are beside those of the parts, each with the mass that it is known to have."""
    centres, scales, weights = components(base)
    locs = torch.cat([centres, torch.stack([part.loc for part in parts]).to(centres)])
    factors = torch.cat([scales, torch.stack([part.scale_tril for part in parts]).to(scales)])
    inside = torch.stack([part.holds(exploration.z) for part in parts]).double().mean(1)
    # At least what a few particles would say, so that each component is drawn from and can be adapted.
    shares = inside.clamp(min=0.5 / len(exploration.z)).to(weights)
    rest = (1.0 - shares.sum()).clamp(min=0.05)
    probs = torch.cat([rest * weights / weights.sum(), shares])
    mixture = MixtureSameFamily(
        Categorical(probs=probs / probs.sum()), Gaussian(base.to_whitened(locs), _solved(base, factors)),
        validate_args=False,
    )

    return replace(base, density=mixture)


def _solved(base: Base, factors: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(base.scale_tril, factors, upper=False)


def _labels(base: Base, z: Tensor) -> Tensor:
    """The component of a mixture base that each point most probably belongs to, counted from 0 without gaps, ``(N,)``."""
    density = base.density
    assert isinstance(density, MixtureSameFamily) and isinstance(density.component_distribution, MultivariateNormal)
    log_joint = density.component_distribution.log_prob(base.to_whitened(z)[:, None])
    labels = (log_joint + density.mixture_distribution.logits).argmax(1)

    return labels.unique(return_inverse=True)[1]


def by_component(reference: MixtureSameFamily, z: Tensor) -> Tensor:
    """The component of a reference that each point most probably came from, ``(N,)``: the strata of resampling."""
    log_joint = reference.component_distribution.log_prob(z[:, None])

    return (log_joint + reference.mixture_distribution.logits).argmax(1)


def _upper_bound(count: int, num_draws: int) -> float:
    """Upper end of the binomial interval of a probability, of one that is exceeded with probability 0.05 (Clopper)."""
    if num_draws == 0 or count >= num_draws:
        return 1.0
    low, high = count / num_draws, 1.0
    for _ in range(_NUM_HALVINGS):
        middle = 0.5 * (low + high)
        terms = [
            math.lgamma(num_draws + 1) - math.lgamma(k + 1) - math.lgamma(num_draws - k + 1)
            + k * math.log(middle) + (num_draws - k) * math.log1p(-middle)
            for k in range(count + 1)
        ]
        low, high = (middle, high) if sum(map(math.exp, terms)) > 1.0 - _BOUND else (low, middle)

    return high


_NUM_HALVINGS = 40

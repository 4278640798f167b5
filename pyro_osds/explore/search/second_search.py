r"""A second search, which fails where annealing does not: many ascents, and whose tops hold mass that nobody has met.

Annealing is blind to what is narrow while the target is tempered; ascents are blind to what is broad and shallow. So
points go uphill from the particles, from where these were at every temperature, from widely around, and from where the
density stands out. Each top is a basin; its mass is told by itself alone (:mod:`~pyro_osds.explore.search.parts`), and
held against the share that the particles and the draws of the base have there.

What was not searched is said (:mod:`~pyro_osds.explore.search.coverage`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_osds.explore.annealing import explore
from pyro_osds.explore.journal import Journal
from pyro_osds.explore.modes import spread_out
from pyro_osds.explore.particles import Exploration
from pyro_osds.explore.paths import ReferencePath
from pyro_osds.explore.search.ascent import Tops, ascend
from pyro_osds.explore.search.cover import base_with_halo, base_with_parts, by_component, with_parts
from pyro_osds.explore.search.coverage import Coverage
from pyro_osds.explore.search.lines import bumps
from pyro_osds.explore.search.parts import Part, basin, lost_by_draws, lost_by_particles
from pyro_osds.explore.search.probes import around, components, halo, outstanding
from pyro_osds.flow.base import Base
from pyro_osds.stats.thresholds import LOST_SHARE, LOWER_SIGMAS
from pyro_osds.target import Target, finite_log_prob, in_chunks, log_prob_and_score

# Points of each kind that climb: of the particles, of those on their way, of points spread widely, of probes.
_NUM_EACH, _NUM_EACH_SLOWLY = 48, 12
# With more terms of the log density than this there are as many fewer.
_MANY_TERMS = 20_000
# Dimensions up to which the curvature of a top, four scores for each of them, is affordable.
_MAX_DIM = 128
# Searches at most, each around what the one before has added.
_MAX_SEARCHES = 2
# Tops whose mass is looked at: those that most points came to, and the highest.
_MAX_TOPS, _MAX_TOPS_SLOWLY = 64, 8
# Squared distance, in variances of a part, within which a point at rest has come to its top.
_SAME_TOP = 0.01
# Nats by which the density may fall between two points at rest that count as one top, as in a flat valley.
_SAME_VALLEY = 0.5
# Places between two tops that are looked at.
_BETWEEN = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
# Share of the mass of a part from which on it counts as visited: training and weights find the rest of it.
_VISITED = 0.5
# Draws of the base that tell what it covers.
_NUM_BASE_DRAWS = 4096


@dataclass(frozen=True)
class Search:
    """How the space was searched, and what was found.

    Arguments:
        num_starts: Points that climbed.
        num_random: Those of them that were taken at random, and came to rest.
        num_basins: Basins that were looked at.
        num_single: Random points that came to a basin to which no other did, or to one that was not looked at.
        parts: Parts whose mass matters, each with what its region holds; what is judged is held against them.
        added: Those that annealing had lost.
        num_dropped: Points that came to rest in basins beyond those that were looked at.
    """

    num_starts: int
    num_random: int
    num_basins: int
    num_single: int
    parts: tuple[Part, ...] = ()
    added: tuple[Part, ...] = ()
    num_dropped: int = 0

    @property
    def coverage(self) -> Coverage:
        """The same in numbers, without the parts."""
        return Coverage(
            self.num_starts, self.num_random, self.num_basins, self.num_single, len(self.added), self.num_dropped
        )

    def sentence(self) -> str:
        """How the space was searched, in one line."""
        return self.coverage.sentence()


class Looked(NamedTuple):
    """What is known after a search.

    Arguments:
        search: What was found; None in too many dimensions.
        exploration: The particles: as they were or, where annealing had lost something, annealed anew.
        base: The base, which covers what was found.
        num_evaluations: Points at which the density was evaluated in annealing.
    """

    search: Search | None
    exploration: Exploration
    base: Base
    num_evaluations: int


def search_further(
    target: Target,
    exploration: Exploration,
    base: Base,
    seen: Exploration,
    num_particles: int,
    num_replicates: int,
    journal: Journal | None = None,
) -> Looked:
    """Search and, where that meets what annealing or base had lost, begin annealing again with it, and search again.

    Arguments:
        target: The target.
        exploration: The particles.
        base: What the flow would start from.
        seen: The way on which all of the space was seen: where it began, and what it passed.
        num_particles: Particles on each replicate.
        num_replicates: Independent repeats of the annealing.
        journal: Where all is noted, so that a search that was stopped can be taken up again.
    """
    journal = journal or Journal()
    added: tuple[Part, ...] = ()
    found, num_evaluations = None, 0
    # Point by point, a second search takes as long as the first one, and finds what the first one did.
    for _ in range(_MAX_SEARCHES if target.vectorized else 1):
        found = journal.part(partial(search, target, exploration, base, seen))
        lost = lost_parts(found, target, exploration, base)
        # Of parts that multiply, each is a small share of all: to add some of them changes nothing.
        if not lost or found is None or not found.coverage.is_countable:
            break
        if not lost_parts(found, target, exploration, None):
            # The particles have them, and only the base lacks them.
            base, added = base_with_parts(target, base, lost, exploration), added + lost
            continue
        reference = with_parts(base, lost)
        way, strata = ReferencePath.from_density(target, reference), partial(by_component, reference)
        again = explore(way, num_particles, num_replicates, phase="Explore again", strata=strata, journal=journal)
        num_evaluations += again.num_evaluations
        # A lower evidence than before is no discovery. If something is lost, the verdict will say so.
        if again.log_evidence < exploration.log_evidence - LOWER_SIGMAS * exploration.std_error:
            break
        exploration, base, added = again, base_with_parts(target, base, lost, again), added + lost
    if found is not None:
        base = base_with_halo(target, base, found.parts)
        # What was found once may not be dropped, whether or not it was found again.
        found = replace(found, parts=(*found.parts, *added), added=added)

    return Looked(found, exploration, base, num_evaluations)


def search(target: Target, exploration: Exploration, base: Base, seen: Exploration) -> Search | None:
    """Look for what annealing and base may have lost; random numbers of the caller stay as they are.

    Arguments:
        target: The target.
        exploration: The particles.
        base: What the flow would start from.
        seen: The way on which all of the space was seen: where it began, and what it passed.

    Returns:
        What was found; None in too many dimensions.
    """
    if target.dim > _MAX_DIM or not exploration.log_prob.isfinite().any():
        return None
    with torch.random.fork_rng(devices=[target.device] if target.device.type == "cuda" else []):
        return _searched(target, exploration, base, seen)


def _searched(target: Target, exploration: Exploration, base: Base, seen: Exploration) -> Search:
    scale = base.scale_tril
    evaluate = partial(log_prob_and_score, target.log_prob)
    starts, num_random = _starts(target, exploration, base, seen)
    tops = ascend(evaluate, starts, base.loc, scale)
    basins = _basins(target, tops, scale)
    risen = bumps(target, [part for part, _ in basins.tops], _origins(exploration, seen))
    if len(risen):
        further = ascend(evaluate, risen.to(starts), base.loc, scale)
        tops = Tops(*(torch.cat(both) for both in zip(tops, further, strict=True)))
        basins = _basins(target, tops, scale)
    at_random = [int((index < num_random).sum()) for _, index in basins.tops]
    # Those that were left came to basins that nobody has looked at: as good as unseen.
    num_left = int((basins.left < num_random).sum())
    parts = [part for part, _ in basins.tops]
    beyond = halo(target, base)
    parts += [beyond] if beyond is not None else []
    total = log_total(exploration, parts)
    parts = [part for part in parts if part.log_mass > total + math.log(LOST_SHARE)]

    return Search(
        len(tops.z),
        sum(at_random) + num_left,
        len(basins.tops),
        at_random.count(1) + num_left,
        tuple(parts),
        num_dropped=len(basins.left),
    )


def _starts(target: Target, exploration: Exploration, base: Base, seen: Exploration) -> tuple[Tensor, int]:
    """Points to climb from, those at random first, and how many these are."""
    count = _NUM_EACH if target.vectorized else _NUM_EACH_SLOWLY
    count = max(_NUM_EACH_SLOWLY, int(count * min(1.0, _MANY_TERMS / max(1, target.num_terms))))
    z = exploration.z[exploration.log_prob.isfinite()]
    spread, passed = _spread(exploration, seen)
    spread = spread if len(spread) else z
    kinds = [points[torch.randint(len(points), (count,), device=z.device)] for points in (z, spread)]
    if len(passed):
        kinds.append(passed[torch.randint(len(passed), (count,), device=z.device)])
    kinds.append(around(base, count))
    num_random = sum(map(len, kinds))
    kinds.append(z[spread_out(z, count // 2)])
    if base.num_components > 1:
        # Modes that are known, each from its centre: one to which nothing climbs by chance would be no part, and nobody
        # would see it lost.
        kinds.append(components(base)[0])
    kinds.append(outstanding(target, base, spread))

    return torch.cat([points.to(z) for points in kinds]), num_random


def _spread(exploration: Exploration, seen: Exploration) -> tuple[Tensor, Tensor]:
    """Where the way began, and what it passed; nothing for particles that were not annealed here."""
    none = exploration.z[:0]
    began, passed = (
        points[points.isfinite().all(-1)] if points.numel() else none for points in (seen.start, seen.passed)
    )

    return began, passed


def _origins(exploration: Exploration, seen: Exploration) -> list[Tensor]:
    """Points that lines lead through: the origin, and the middle of where the way began."""
    began, _ = _spread(exploration, seen)
    middle = [began.median(0).values] if len(began) else []

    return [torch.zeros_like(exploration.z[0]), *middle]


@dataclass(frozen=True)
class _Basins:
    """Tops with the points that came to each, and the points that came to further ones."""

    tops: list[tuple[Part, Tensor]]
    left: Tensor


def _basins(target: Target, tops: Tops, scale: Tensor) -> _Basins:
    """Points at rest, gathered by the top that each came to."""
    evaluate = partial(log_prob_and_score, target.log_prob)
    left = tops.arrived.nonzero()[:, 0]
    found: list[tuple[Part, Tensor]] = []
    most = _MAX_TOPS if target.vectorized else _MAX_TOPS_SLOWLY
    while len(left) and len(found) < most:
        highest = left[tops.log_prob[left].argmax()]
        part = basin(evaluate, tops.z[highest], scale, quickly=not target.vectorized)
        if part is None:
            left = left[left != highest]
            continue
        metric = part.scale_tril
        centre = tops.z[highest]
        offset = torch.linalg.solve_triangular(metric, (tops.z[left] - centre).mT, upper=False).mT
        same = offset.square().sum(-1) < _SAME_TOP
        same |= _joined(target, tops, left, highest, ~same)
        found.append((part, left[same]))
        left = left[~same]

    return _Basins(found, left)


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


def log_total(exploration: Exploration, parts: Sequence[Part]) -> float:
    """The log evidence that shares are of: the exploration's, or that of the largest part where it is larger.

    Arguments:
        exploration: The particles.
        parts: What was found.
    """
    return max([exploration.log_evidence, *(part.log_mass for part in parts if part.std_error < _KNOWN)])


# Standard error of a part's mass, nats, up to which it may be the measure of others.
_KNOWN = 0.3


def lost_parts(found: Search | None, target: Target, exploration: Exploration, base: Base | None) -> tuple[Part, ...]:
    """Parts that the particles, or the draws of the base, lack.

    Arguments:
        found: What search found.
        target: The target.
        exploration: The particles.
        base: What the flow would start from; None where that is not known by its density.
    """
    if found is None or not found.parts:
        return ()
    total = log_total(exploration, found.parts)
    lost = lost_by_particles(found.parts, exploration.z, exploration.replicate_log_evidence, total, most=_VISITED)
    if base is not None and target.vectorized:
        # How far out a base reaches is no matter: flows have tails of their own, and the verdict looks at them.
        basins = [part for part in found.parts if not part.is_halo]
        lost += _lost_by_base(basins, target, base, total)

    return tuple({id(part): part for part, _ in lost}.values())


def _lost_by_base(parts: Sequence[Part], target: Target, base: Base, log_evidence: float) -> list[tuple[Part, float]]:
    with torch.random.fork_rng(devices=[target.device] if target.device.type == "cuda" else []):
        z = base.sample(_NUM_BASE_DRAWS)
    with torch.no_grad():
        log_weight = finite_log_prob(in_chunks(target.log_prob, z)) - base.log_prob(z)

    return lost_by_draws(parts, z, finite_log_prob(log_weight), log_evidence, most=_VISITED)

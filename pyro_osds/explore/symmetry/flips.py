r"""Coordinates that may change their signs together: found at the density, with no name having to say it.

The loadings and the scores of a factor, the weights into and out of a hidden unit, two factors of a product: the
density is the same when they all change their signs, so each such row of coordinates doubles the number of modes.

Where coordinates *S* may change their signs, the density has no slope along them at :math:`z_S = 0`: one gradient shows
that most models have none. Candidates among those left are what belongs to one element along axes of one length, whole
sites, and what hangs together: coordinates *i*, *j* whose step makes the other one's slope differ,
:math:`\partial_i \log\gamma(e_j) \neq \partial_i \log\gamma(-e_j)`. What counts in the end is the density.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, islice
from typing import TypeVar

import torch
from torch import Tensor

from pyro_osds.explore.symmetry.ordering import SAME_DENSITY, axes_by_length
from pyro_osds.stats.hashing import hashed_keys
from pyro_osds.target import Site, Target, finite_log_prob, in_chunks, log_prob_and_score

# Points of either kind at which the density has to be the same; the first few of them tell most candidates apart.
_FIRST_POINTS, _NUM_POINTS = 2, 8
# Rows that one candidate may have, sets of axes or of sites that are tried, and how many belong together at most.
_MAX_ROWS, _MAX_SETS, _MAX_TOGETHER = 64, 64, 4
# Coordinates among which connections are looked for, at most: each costs two gradients.
_MAX_CONNECTED = 256
# What rounding leaves of a slope that is none, as a part of the largest one and of a nat.
_ROUNDING = 1e-7

_T = TypeVar("_T")


@dataclass(frozen=True)
class Flip:
    """Signs of K rows of coordinates, each row free to change its own: 2^K points of the same density.

    Arguments:
        rows: The coordinates of each row, ``(K, m)``.
    """

    rows: Tensor

    def apply(self, z: Tensor, signs: Tensor) -> Tensor:
        """Points with each row multiplied by its sign, ``(B, D) -> (B, D)``.

        Arguments:
            z: Points, ``(B, D)``.
            signs: One or minus one for each row, ``(B, K)``.
        """
        index = self.rows.reshape(-1)

        return z.index_copy(1, index, z[:, index] * signs.repeat_interleave(self.rows.shape[1], -1).to(z.dtype))

    def at_random(self, z: Tensor, by: Tensor | None = None) -> Tensor:
        """Points with signs that look random and depend on nothing but the point, ``(B, D) -> (B, D)``.

        Arguments:
            z: Points, ``(B, D)``.
            by: Points whose bits decide, ``(B, D)``; default: the same ones.
        """
        return self.apply(z, 1 - 2 * (hashed_keys(z if by is None else by, len(self.rows)) & 1).to(z.dtype))


def find_flips(target: Target, z: Tensor, spread: Tensor) -> list[Flip]:
    """The rows of coordinates whose signs make no difference to the density; no coordinate is in two of them.

    Arguments:
        target: The target; its ``sites`` say where in ``z`` what lies, without them there is nothing to find.
        z: Points in the posterior, ``(N, D)``.
        spread: Points that are spread widely, ``(S, D)``: two modes may look like mirror images from within.
    """
    points = torch.cat([z[:_NUM_POINTS], spread[:_NUM_POINTS]])
    with torch.no_grad():
        expected = finite_log_prob(in_chunks(target.log_prob, points))
    usable = expected.isfinite() & points.isfinite().all(-1)
    points, expected = points[usable], expected[usable]
    real = _real_sites(target, points)
    level = _level(target, points, real)
    candidates = [] if not level.any() else [rows.to(z.device) for rows in _candidates(target, points, real, level)]
    candidates = [Flip(rows) for rows in candidates if level[rows].all()]
    found: list[Flip] = []
    if not candidates:
        return found
    # Most candidates are none: one evaluation of all of them at a few points leaves those that may be some.
    first = slice(_FIRST_POINTS)
    moved = torch.cat([_flipped(flip, points[first], 0) for flip in candidates])
    same = _same(target, moved, expected[first].repeat(len(candidates))).view(len(candidates), -1).all(-1)
    for flip in (flip for flip, may_be in zip(candidates, same.tolist(), strict=True) if may_be):
        taken = any(torch.isin(flip.rows, known.rows).any() for known in found)
        if not taken and _is_symmetric(target, flip, points, expected):
            found.append(flip)

    return found


def _is_symmetric(target: Target, flip: Flip, points: Tensor, expected: Tensor) -> bool:
    """Whether each row by itself may change its sign."""
    return all(bool(_same(target, _flipped(flip, points, row), expected).all()) for row in range(len(flip.rows)))


def _flipped(flip: Flip, points: Tensor, row: int) -> Tensor:
    """Points with one row of the other sign."""
    signs = points.new_ones(len(points), len(flip.rows))
    signs[:, row] = -1.0

    return flip.apply(points, signs)


def _same(target: Target, moved: Tensor, expected: Tensor) -> Tensor:
    with torch.no_grad():
        return (in_chunks(target.log_prob, moved) - expected).abs() < SAME_DENSITY


def _level(target: Target, points: Tensor, real: Sequence[Site]) -> Tensor:
    """Coordinates along which the density has no slope at zero, as those have that may change their signs, ``(D,)``."""
    index = _coordinates(real).to(points.device)
    level = torch.zeros(target.dim, dtype=torch.bool, device=points.device)
    if len(points) and len(index):
        slope = _slopes(target, points[:_FIRST_POINTS].index_fill(1, index, 0.0))
        # Slopes that are not finite, such as that of a norm, come as zero: they tell nothing.
        level[index] = (slope.abs() <= _ROUNDING * (1.0 + slope.abs().amax())).all(0)[index]

    return level


def _real_sites(target: Target, points: Tensor) -> list[Site]:
    """Sites whose coordinates are their values: nothing else, an angle or a share, has a mirror at zero."""
    sites = [site for site in target.sites if site.shape == site.unconstrained_shape]
    if not sites or not len(points):
        return []
    few = points[:_FIRST_POINTS]
    values = target.constrain(few)

    return [site for site in sites if _is_identity(values[site.name], few[:, site.start : site.stop])]


def _is_identity(values: Tensor, coordinates: Tensor) -> bool:
    return torch.allclose(values.reshape(len(values), -1).to(coordinates), coordinates, rtol=1e-4, atol=1e-4)


def _coordinates(sites: Sequence[Site]) -> Tensor:
    return torch.cat([torch.arange(0), *(torch.arange(site.start, site.stop) for site in sites)])


def _slopes(target: Target, points: Tensor) -> Tensor:
    return log_prob_and_score(target.log_prob, points)[1]


def _candidates(target: Target, points: Tensor, real: Sequence[Site], level: Tensor) -> Iterator[Tensor]:
    """Rows ``(K, m)`` that could change their signs, those with many rows first: they say more than all at once."""
    for axes in axes_by_length(target.sites, target.dims):
        if 1 < len(axes[0]) <= _MAX_ROWS:
            for chosen in _sets(axes):
                rows = torch.cat(chosen, 1)
                # Two axes of one matrix cross each other: their elements are no rows by themselves.
                if rows.unique().numel() == rows.numel():
                    yield rows
    yield from _hanging_together(target, points, real, level.nonzero()[:, 0])
    for chosen in _sets([torch.arange(site.start, site.stop) for site in real]):
        yield torch.cat(chosen)[None]


def _hanging_together(target: Target, points: Tensor, real: Sequence[Site], level: Tensor) -> Iterator[Tensor]:
    """Coordinates that a step along one of them connects, with all others at zero, each group as one row.

    Arguments:
        target: The target.
        points: Points that say where what has no mirror lies, ``(N, D)``.
        real: The sites whose coordinates are their values.
        level: The coordinates in question, ``(L,)``.
    """
    if len(level) > _MAX_CONNECTED:
        return
    origin = points[:1].index_fill(1, _coordinates(real).to(points.device), 0.0)
    steps = torch.zeros(len(level), target.dim, dtype=points.dtype, device=points.device)
    steps[torch.arange(len(level)), level] = 1.0
    change = (_slopes(target, origin + steps) - _slopes(target, origin - steps))[:, level].abs()
    change = torch.where(change.isfinite(), change, torch.zeros(()).to(change))
    reach = (change > _ROUNDING * (1.0 + change.amax())) | torch.eye(len(level), dtype=torch.bool, device=level.device)
    reach = reach | reach.T
    for _ in range(max(1, len(level)).bit_length()):
        reach = (reach.float() @ reach.float()) > 0.0
    for members in reach.unique(dim=0):
        yield level[members][None]


def _sets(things: Sequence[_T]) -> Iterator[tuple[_T, ...]]:
    """Each by itself, pairs, triples, and so on, so many; and all of them."""
    some = chain.from_iterable(combinations(things, size) for size in range(1, _MAX_TOGETHER + 1))
    yield from islice(some, _MAX_SETS)
    if len(things) > _MAX_TOGETHER:
        yield tuple(things)

"""Coordinates that may change their signs together: found at the density, with no name having to say it.

The loadings and the scores of a factor, the weights into and out of a hidden unit, two factors of a product: the
density is the same when they all change their signs, so each such row of coordinates doubles the number of modes.
Candidates are what belongs to one element along axes of one length, and whole sites. What counts is the density.
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
from pyro_osds.target import Target, in_chunks

# Points at which the density has to be the same; the first few of them tell most candidates apart.
_FIRST_POINTS, _NUM_POINTS = 2, 16
# Rows that one candidate may have, sets of axes or of sites that are tried, and how many belong together at most.
_MAX_ROWS, _MAX_SETS, _MAX_TOGETHER = 64, 64, 4

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

    def at_random(self, z: Tensor) -> Tensor:
        """Points with signs that look random and depend on nothing but the point, ``(B, D) -> (B, D)``."""
        return self.apply(z, 1 - 2 * (hashed_keys(z, len(self.rows)) < 0).to(z.dtype))


def find_flips(target: Target, z: Tensor, log_prob: Tensor) -> list[Flip]:
    """The rows of coordinates whose signs make no difference to the density; no coordinate is in two of them.

    Arguments:
        target: The target; its ``sites`` say where in ``z`` what lies, without them there is nothing to find.
        z: Points to try, ``(N, D)``.
        log_prob: Their log densities, ``(N,)``.
    """
    usable = log_prob.isfinite() & z.isfinite().all(-1)
    points, expected = z[usable][:_NUM_POINTS], log_prob[usable][:_NUM_POINTS]
    candidates = [Flip(rows.to(z.device)) for rows in _candidates(target)]
    found: list[Flip] = []
    if not len(points) or not candidates:
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


def _candidates(target: Target) -> Iterator[Tensor]:
    """Rows ``(K, m)`` that could change their signs, those with many rows first: they say more than all at once."""
    for axes in axes_by_length(target.sites, target.dims):
        if 1 < len(axes[0]) <= _MAX_ROWS:
            for chosen in _sets(axes):
                rows = torch.cat(chosen, 1)
                # Two axes of one matrix cross each other: their elements are no rows by themselves.
                if rows.unique().numel() == rows.numel():
                    yield rows
    real = [site for site in target.sites if site.shape == site.unconstrained_shape]
    for chosen in _sets([torch.arange(site.start, site.stop) for site in real]):
        yield torch.cat(chosen)[None]


def _sets(things: Sequence[_T]) -> Iterator[tuple[_T, ...]]:
    """Each by itself, pairs, triples, and so on, so many; and all of them."""
    some = chain.from_iterable(combinations(things, size) for size in range(1, _MAX_TOGETHER + 1))
    yield from islice(some, _MAX_SETS)
    if len(things) > _MAX_TOGETHER:
        yield tuple(things)

r"""Along straight lines from what is known: a bump on one of them is the slope of a basin that nobody has climbed.

In *D* dimensions, points that know nothing reach a basin that is narrower than the known one with a probability that
falls like the *D*-th power of the ratio of widths, and outside of it nothing tells of it: no gradient, no temperature.
Yet modes of a model seldom differ in a direction that means nothing. They differ in one coordinate, in all of them
or in a block of them by the same amount, in sign, or along a direction that the posterior itself stretches in. On such
a line

.. math:: f(t) = \log\gamma(\mu + t\, d)

of a single mode falls on both sides; a value that lies above one nearer to the centre is a bump.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_osds.explore.search.parts import Part
from pyro_osds.target import Target, finite_log_prob, in_chunks

# Points on all lines, and what they may cost in terms of the log density; where densities come point by point; and
# the terms of a density whose cost is not known.
_NUM_POINTS, _MAX_TERMS, _NUM_POINTS_SLOWLY, _UNKNOWN = 32_768, 3e5, 768, 8
# Points on each line at least and at most: where fewer are affordable, there are fewer lines. Sixty-four hit a basin as
# wide as a twelfth of its distance.
_FEWEST, _MOST = 64, 512
# The first and the last point, in standard deviations of what is known along the line.
_FIRST, _LAST = 0.5, 250.0
# Nats by which the density has to rise again: rounding and the noise of a kink do not.
_RISE = 0.5
# The largest parts, from which lines start, and the highest bumps that are followed.
_MAX_CENTRES, _MAX_BUMPS, _MAX_BUMPS_SLOWLY = 4, 48, 8
# Cosine from which on two directions are one.
_SAME = 0.999
# Coordinates are halved so many times into blocks of two at least: a site of several values is one, or nearly.
_HALVINGS = 3
# Lines beside those along the axes, about.
_OTHER_LINES = 24


def bumps(target: Target, parts: Sequence[Part], origins: Sequence[Tensor]) -> Tensor:
    """Points on lines from known tops at which the density has risen again, to be followed uphill.

    Arguments:
        target: The target.
        parts: What is known.
        origins: Points through which a line may lead from each top, ``(D,)`` each, such as the mean of the prior.

    Returns:
        Points, ``(P, D)``, the highest first; none where the density falls along each line.
    """
    largest = sorted((part for part in parts if not part.is_halo), key=lambda part: -part.log_mass)[:_MAX_CENTRES]
    found, heights = [], []
    for part in largest:
        others = [*origins, *(other.loc for other in largest if other is not part)]
        z, height = _along(target, part, others, len(largest))
        found.append(z)
        heights.append(height)
    if not found:
        return torch.empty(0, target.dim, dtype=target.dtype, device=target.device)
    count = _MAX_BUMPS if target.vectorized else _MAX_BUMPS_SLOWLY
    highest = torch.cat(heights).argsort(descending=True, stable=True)[:count]

    return torch.cat(found)[highest]


def _along(target: Target, part: Part, others: Sequence[Tensor], num_centres: int) -> tuple[Tensor, Tensor]:
    """Bumps on the lines from one top, ``(P, D)``, and their log densities, ``(P,)``."""
    num_points = _NUM_POINTS_SLOWLY
    if target.vectorized:
        fewest = 2 * _FEWEST * (target.dim + _OTHER_LINES)
        num_points = int(min(_NUM_POINTS, max(fewest, _MAX_TERMS / (target.num_terms or _UNKNOWN))))
    num_points //= num_centres
    lines = directions(part, others)[: max(1, num_points // (2 * _FEWEST))]
    count = min(_MOST, max(_FEWEST, num_points // (2 * len(lines))))
    radii = torch.logspace(0.0, 1.0, count, base=_LAST / _FIRST, dtype=lines.dtype, device=lines.device) * _FIRST
    both = torch.cat([lines, -lines])
    z = part.loc + radii[:, None, None] * both
    with torch.no_grad():
        inside = finite_log_prob(in_chunks(target.log_prob, torch.cat([part.loc[None], z.flatten(0, 1)])))
    log_prob = torch.cat([inside[:1].expand(1, len(both)), inside[1:].view(count, -1)])
    # The highest point of each rise: where the density falls again, or the line ends.
    lowest = log_prob.cummin(0).values
    after = torch.cat([log_prob[2:], log_prob.new_full((1, len(both)), -torch.inf)])
    is_bump = (log_prob[1:] > lowest[:-1] + _RISE) & (log_prob[1:] >= log_prob[:-1]) & (log_prob[1:] > after)

    return z[is_bump], log_prob[1:][is_bump]


def directions(part: Part, others: Sequence[Tensor]) -> Tensor:
    """Directions of lines from a top, ``(L, D)``, each as long as one standard deviation of the part along it.

    The diagonals come first, with lines to other points; then the axes, blocks, and the axes of the part.

    Arguments:
        part: The part.
        others: Other points that are known, ``(D,)`` each.
    """
    dim, scale = len(part.loc), part.scale_tril
    ones, eye = scale.new_ones(1, dim), torch.eye(dim, dtype=scale.dtype, device=scale.device)
    towards = [(other.to(scale) - part.loc)[None] for other in others]
    # The longest axis of the part first; standard deviations along the axes of coordinates are those of the part.
    stretched = torch.linalg.svd(scale, full_matrices=False)[0].mT
    lines = torch.cat([ones, ones * scale.norm(dim=1), *towards, eye, _blocks(eye), stretched])
    lines = lines / lines.norm(dim=1, keepdim=True)
    lines = lines[lines.isfinite().all(1)]
    same = (lines @ lines.mT).abs().tril(-1) > _SAME
    lines = lines[~same.any(1)]
    lengths = torch.linalg.solve_triangular(scale, lines.mT, upper=False).norm(dim=0)

    return lines / lengths[:, None]


def _blocks(eye: Tensor) -> Tensor:
    """Directions in which a block of coordinates moves by the same amount, and one of alternating signs, ``(L, D)``."""
    levels = [2**level for level in range(1, _HALVINGS + 1) if 2 ** (level + 1) <= len(eye)]
    blocks = [block.sum(0) for count in levels for block in eye.tensor_split(count)]

    return torch.stack([*blocks, eye[::2].sum(0) - eye[1::2].sum(0)])

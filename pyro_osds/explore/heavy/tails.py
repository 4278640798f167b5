r"""Which coordinates have tails that fall like a power.

Far out along a coordinate, the others being where they are, such a density has a slope in doubly logarithmic axes that
no longer changes,

.. math:: a = -\frac{\partial \log\gamma}{\partial \log |z_i - m_i|} \to \alpha + 1,

with a tail index :math:`\alpha`: that of Student's t is its degrees of freedom. An exponential or Gaussian tail has a
slope that grows without bound. It is looked for where particles lie far apart for their median distance, and seen at
the density: no site has to say it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_osds.explore.heavy.radial import RadialTarget, centre_and_scatter
from pyro_osds.explore.heavy.stretched import StretchedTarget, centre_and_scale
from pyro_osds.target import Target, in_chunks

# Farthest particle of some hundred, over the median distance, from which on a coordinate is looked at: a Gaussian's
# five hundred lie within five, those of Student's t with five degrees of freedom within ten.
_FAR = 8.0
# Distances at which the slope is measured, over the median distance.
_DISTANCES = 1e3, 1e4, 1e5, 1e6
# Largest slope that needs another coordinate: tails of a larger index, five and more, hold too little where a flow's
# tails end.
_MAX_SLOPE = 6.0
# Least slope: one has no integral, which others look for, and next to it so much lies at any distance that no number
# holds it.
_MIN_SLOPE = 1.25
# The same of a density of several coordinates that are far out together: by so much more than their number.
_MAX_INDEX = 5.0
# By how much slopes of the last decades may differ: those of a power law do by the inverse of the distance, those of
# exp(-|z|^c) by a factor of 10^c.
_SAME_SLOPE = 0.02
# By how much the logarithms of distances at which the density is the same may differ far out: a scatter of some hundred
# particles is known to a tenth.
_SAME_LEVEL = 0.3
# Nats by which a fall of several coordinates together may differ from that of each, for each of them.
_SAME_FALL = 0.05
# Points from which the coordinate is followed, and coordinates that are looked at, the first ones.
_NUM_POINTS, _MAX_COORDINATES = 8, 128
# So many coordinates are looked at in pairs.
_MAX_PAIRED = 16

DrawnIn = StretchedTarget | RadialTarget


def stretched(target: Target, z: Tensor, log_prob: Tensor) -> DrawnIn | None:
    """The target with coordinates of heavy tails drawn in, or None where there are none.

    No random number is drawn.

    Arguments:
        target: The target.
        z: Particles, ``(N, D)``.
        log_prob: Their log densities, ``(N,)``.
    """
    usable = log_prob.isfinite() & z.isfinite().all(-1)
    if usable.sum() < 2 or not target.is_double:
        # In single precision a far end has too few digits left for its slope.
        return None
    z = z[usable]
    distance = (z - z.median(0).values).abs()
    index = (distance.amax(0) > _FAR * distance.median(0).values).nonzero()[:_MAX_COORDINATES, 0]
    if not len(index):
        return None
    points = z[:: max(1, len(z) // _NUM_POINTS)][:_NUM_POINTS]
    slope = power_slopes(target, points, index, *_apart(z[:, index]))
    alone = index[slope < _MAX_SLOPE]
    if len(alone) and is_sum(target, points, alone, *_apart(z[:, alone])):
        return StretchedTarget(target, alone, *centre_and_scale(z[:, alone]))
    # What is far out together falls faster along each of its coordinates.
    groups = _groups(target, points, index[slope < _MAX_INDEX + len(index)], z)
    single = [group for group in groups if len(group) == 1 and bool(torch.isin(group, alone))]
    around: DrawnIn | None = None
    if single:
        columns = torch.cat(single)
        around = StretchedTarget(target, columns, *centre_and_scale(z[:, columns]))
        z, points = around.outside(z), around.outside(points)
    for group in groups:
        if len(group) > 1:
            around = _by_distance(around or target, points, z, group) or around

    return around


def drawn_in(target: Target | None) -> Tensor | None:
    """The coordinates that were drawn in, ``(K,)``, or None where there are none.

    Arguments:
        target: What :func:`stretched` gave.
    """
    found = []
    while isinstance(target, (StretchedTarget, RadialTarget)):
        found.append(target.index)
        target = target.target

    return torch.cat(found) if found else None


def _groups(target: Target, points: Tensor, index: Tensor, z: Tensor) -> list[Tensor]:
    """Coordinates in groups of those that are far out together, each in one; where pairs take too long, one group."""
    if len(index) > _MAX_PAIRED or not target.vectorized:
        return [index]
    groups: list[list[int]] = []
    for column in index.tolist():
        tied = [group for group in groups if any(_are_tied(target, points, z, column, other) for other in group)]
        groups = [group for group in groups if group not in tied] + [[column, *(k for group in tied for k in group)]]

    return [torch.tensor(sorted(group), device=z.device) for group in groups]


def _are_tied(target: Target, points: Tensor, z: Tensor, first: int, second: int) -> bool:
    pair = torch.tensor([first, second], device=z.device)

    return not is_sum(target, points, pair, *_apart(z[:, pair]))


def _by_distance(target: Target, points: Tensor, z: Tensor, index: Tensor) -> RadialTarget | None:
    """The target with some coordinates drawn in by their distance, or None where it is not that alone which counts."""
    if len(z) <= 2 * len(index):
        return None
    # The scatter is that of directions, which no scale changes.
    loc, scale_tril = centre_and_scatter(z[:, index], 1.0)
    slope = round_slope(target, points, index, loc, scale_tril)
    if slope is None or not is_round(target, z, points[0], index, loc, scale_tril, slope):
        return None
    h = 1.0 / (slope - len(index))

    return RadialTarget(target, index, *centre_and_scatter(z[:, index], h), h)


def round_slope(target: Target, points: Tensor, index: Tensor, loc: Tensor, scale_tril: Tensor) -> float | None:
    """The power by which a density falls in all directions alike, or None where it does not.

    Along each coordinate on either side, along sums and differences of neighbours, and along the sums of all.

    Arguments:
        target: The target.
        points: Points to move, ``(P, D)``, whose other coordinates are kept.
        index: The coordinates, ``(K,)``.
        loc: Their centre, ``(K,)``.
        scale_tril: Their scatter, ``(K, K)``.
    """
    num = len(index)
    eye = torch.eye(num, dtype=points.dtype, device=points.device)
    mixed = torch.stack([torch.ones_like(eye[0]), 1.0 - 2.0 * (torch.arange(num, device=eye.device) % 2)])
    ways = torch.cat([eye, -eye, eye + eye.roll(1, 0), eye - eye.roll(1, 0), mixed])
    ways = ways / ways.norm(dim=1, keepdim=True)
    distance = torch.tensor(_DISTANCES, dtype=points.dtype, device=points.device)
    ends = loc + (ways[:, None] * distance[:, None]) @ scale_tril.mT  # (W, 4, K)
    moved = points.expand(*ends.shape[:2], *points.shape).clone()
    moved[..., index] = ends[:, :, None]
    with torch.no_grad():
        log_prob = in_chunks(target.log_prob, moved.flatten(0, 2)).double().view(moved.shape[:-1])
    slopes = -log_prob.diff(dim=1) / distance.double().log().diff()[:, None]  # (W, 3, P)
    slope = slopes[:, -1].median().item()
    if not ((slopes - slope).abs() < _SAME_SLOPE * slope).all() or not _MIN_SLOPE - 1.0 < slope - num < _MAX_INDEX:
        return None
    level = log_prob[:, -1].median(-1).values

    # How high the density is may differ where the scatter is not known well, by a factor of two in distance.
    return slope if level.max() - level.min() < 2.0 * slope else None


def is_round(
    target: Target, z: Tensor, point: Tensor, index: Tensor, loc: Tensor, scale_tril: Tensor, slope: float
) -> bool:
    """Whether the density knows no more of what is far out than its distance, at places where particles are.

    A ridge, as that of heavy tails along a sum of coordinates, is next to no direction that was not chosen for it; but
    there the particles are.

    Arguments:
        target: The target.
        z: Particles, ``(N, D)``.
        point: Where other coordinates are, ``(D,)``.
        index: The coordinates, ``(K,)``.
        loc: Their centre, ``(K,)``.
        scale_tril: Their scatter, ``(K, K)``.
        slope: The power by which the density falls.
    """
    part = z[:, index]
    far = torch.linalg.solve_triangular(scale_tril, (part - loc).mT, upper=False).norm(dim=0)
    chosen = far.argsort(descending=True)[: max(len(z) // 5, 2)]
    with torch.no_grad():
        log_prob = in_chunks(target.log_prob, point.expand(len(chosen), -1).index_copy(1, index, part[chosen]))
    level = log_prob.double() + slope * far[chosen].double().log()

    return bool(level.std() < _SAME_LEVEL * slope)


def is_sum(target: Target, points: Tensor, index: Tensor, loc: Tensor, scale: Tensor) -> bool:
    """Whether the density falls as much where all of some coordinates are far out as where each of them is, added up.

    If it does not, the tail lies along a sum or a difference of them, or in all directions alike: drawn in one by one
    they would become a ridge that is thinner the farther out it is.

    Arguments:
        target: The target.
        points: Points to move, ``(P, D)``.
        index: The coordinates, ``(K,)``.
        loc: Their centres, ``(K,)``.
        scale: Their scales, ``(K,)``.
    """
    if len(index) < 2:
        return True

    def fall(columns: Tensor, place: Tensor) -> Tensor:
        near, far = (points.index_copy(1, columns, at.expand(len(points), -1)) for at in place)
        with torch.no_grad():
            ends = [in_chunks(target.log_prob, end).double() for end in (near, far)]
        return ends[0] - ends[1]

    sides = 1.0 - 2.0 * (torch.arange(len(index), device=loc.device) % 2)
    for side in (torch.ones_like(sides), sides):
        distance = torch.tensor(_DISTANCES[:2], dtype=loc.dtype, device=loc.device)[:, None]
        place = loc + side.to(loc) * scale * distance  # (2, K)
        alone = [fall(index[k : k + 1], place[:, k : k + 1]) for k in range(len(index))]
        together = fall(index, place)
        if not ((together - torch.stack(alone).sum(0)).abs() < _SAME_FALL * len(index)).all():
            return False

    return True


def _apart(z: Tensor) -> tuple[Tensor, Tensor]:
    loc = z.median(0).values

    return loc, (z - loc).abs().median(0).values


def power_slopes(target: Target, points: Tensor, index: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """The powers by which a density falls far out along each of some coordinates; infinity where it is no power.

    Arguments:
        target: The target.
        points: Points to move along the coordinates, ``(P, D)``.
        index: The coordinates, ``(K,)``.
        loc: Their centres, ``(K,)``.
        scale: Their scales, ``(K,)``.

    Returns:
        Slopes that most of the points agree on, ``(K,)``: the smaller one of the two sides, or the larger one if the
        target has no prior. From there points are thrown around the origin, and no ascent comes back from a steep side
        that is stretched.
    """
    distance = torch.tensor(_DISTANCES, dtype=points.dtype, device=points.device)
    ends = loc[:, None, None] + scale[:, None, None] * torch.stack([-distance, distance])  # (K, 2, 4)
    moved = points.expand(*ends.shape, *points.shape).clone()
    for row, column in enumerate(index):
        moved[row, ..., column] = ends[row, :, :, None]
    with torch.no_grad():
        log_prob = in_chunks(target.log_prob, moved.flatten(0, 3)).double().view(moved.shape[:-1])
    slopes = -log_prob.diff(dim=2) / distance.double().log().diff()[:, None]  # (K, 2, 3, P)
    last = slopes[:, :, -1]
    same = (slopes.diff(dim=2).abs() < _SAME_SLOPE * last[:, :, None]).all(2)
    last = torch.where(same & (last > _MIN_SLOPE), last, torch.inf)
    # That which more than half of the points do not exceed.
    sides = last.sort(-1).values[..., len(points) // 2]

    return sides.amin(-1) if target.can_sample_prior else sides.amax(-1)

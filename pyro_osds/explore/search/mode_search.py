"""Modes that annealing lost: many points looked at, the best ones followed to where they come to rest.

A narrow mode holds few draws of a wide reference, and while the target is still tempered it holds little of the mass:
particles leave it before it counts. A look at very many points costs one evaluation each. Space is cut into cells, and
the best point of each cell, some of the given points, and some particles after gradient ascent run Hamiltonian moves
at the target itself. Where one comes to rest in a mode without particles, annealing has to begin again from a reference
that knows the place.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor
from torch.distributions import MixtureSameFamily

from pyro_osds.explore.modes import find_modes, spread_out
from pyro_osds.explore.reference import Rest, come_to_rest, num_affordable, reference_of_modes
from pyro_osds.explore.search.ascent import ascend
from pyro_osds.explore.search.probes import smoothed
from pyro_osds.runtime.light_adam import LightAdam
from pyro_osds.stats.moments import ENOUGH_PARTICLES, weighted_moments
from pyro_osds.target import Target, finite_log_prob, in_chunks, log_prob_and_score

# Points that are looked at once, and the terms of the log density that they may take: about a second on one core.
_NUM_POINTS = 65536
_MAX_TERMS = 5e7
# The best point of each cell is followed, and others that were spread out; more of them cost time in proportion.
_NUM_CELLS = 256
_NUM_OTHERS = 768
# Particles that climb the gradient, and their steps: enough for a way of some standard deviations.
_NUM_CLIMBERS, _NUM_CLIMBS = 64, 100
# With more terms than this even those are too many, and so are their steps: a quasi-Newton ascent takes a third of
# them at most.
_MANY_TERMS, _NUM_ASCENTS = 5_000, 30
# As far as gradient ascent gets along each coordinate, in standard deviations of the particles.
_CLIMB = 5.0
# Two sets of particles of one mode do not differ as much in their largest log density.
_SPIKE = 3.0
# Nats by which the mass of a mode may lie below that of the particles to be looked at: e^-20 of it decides nothing.
_NEGLIGIBLE = 20.0
# Nor is a gap so much wider than the widest among the particles, of which so many are compared: 128 MB of distances.
_FAR, _MAX_COMPARED = 1.5, 4096
# More modes than a reference can hold cannot be counted: of wells that multiply each point at rest found another one,
# and a way from some of them says no more. Then those count that more than this share of the points came to; all of
# them are taken in only where the reference costs next to nothing, in products of numbers at each point: in 22
# dimensions a way takes some twenty seconds.
_MOST_LOST, _LARGE_SHARE, _CHEAP_PRODUCTS = 128, 0.05, 2**16


def lost_modes(target: Target, start: Tensor, z: Tensor, log_prob: Tensor) -> MixtureSameFamily | None:
    """A reference for another annealing run, with half of its mass on modes that hold none of the particles.

    Arguments:
        target: The target.
        start: Points spread as widely as the posterior may be, ``(M, D)``, such as draws of the prior.
        z: Particles, ``(N, D)``.
        log_prob: Their log densities, ``(N,)``.

    Returns:
        The reference, or None where every point followed came to rest among the particles; and None in many dimensions,
        where the mass lies so far below its mode that whatever climbs would seem to have found another one.
    """
    if len(z) < ENOUGH_PARTICLES * target.dim:
        return None
    known = log_prob.isfinite()
    rest = come_to_rest(target, torch.cat([_chosen(target, start), _climbed(target, z[known])]))
    if not len(rest.z) or not known.any():
        return None
    rest = _of_account(rest, z[known], log_prob[known])
    if not len(rest.z):
        return None
    points, densities = torch.cat([z[known], rest.z]), torch.cat([log_prob[known], rest.log_prob])
    labels = find_modes(points, densities, target.log_prob, min_share=0.0).labels
    labels, among_particles = labels[known.sum() :], labels[: known.sum()].unique()
    # A spike on a broad mode lies behind no valley, but higher than any particle; nor need there be one in front of a
    # mode that is merely far: each of them is a mode of its own.
    alone = (rest.log_prob > log_prob[known].max() + _SPIKE) | _is_far(rest.z, z[known])
    labels = torch.where(alone, labels.max() + 1 + torch.arange(len(labels), device=labels.device), labels)
    lost = _countable(labels, ~torch.isin(labels, among_particles), alone, target.dim)
    if not lost.any():
        return None
    whole = weighted_moments(z, torch.zeros_like(log_prob))

    return reference_of_modes(whole, rest.z[lost], rest.step[lost], labels[lost])


def _countable(labels: Tensor, lost: Tensor, alone: Tensor, dim: int) -> Tensor:
    """Which points are in lost modes, without modes of few points that are too many to be counted and to be afforded.

    Arguments:
        labels: The mode of each point, ``(M,)``.
        lost: Whether none of the particles is in it, ``(M,)``.
        alone: Whether the point counts whatever else was lost, ``(M,)``.
        dim: The number of dimensions.
    """
    _, mode, count = labels[lost].unique(return_inverse=True, return_counts=True)
    if len(labels[lost & ~alone].unique()) <= _MOST_LOST or _MOST_LOST * dim**2 <= _CHEAP_PRODUCTS:
        return lost
    kept = lost.clone()
    kept[lost] = alone[lost] | (count[mode] > _LARGE_SHARE * len(mode))

    return kept


def _of_account(rest: Rest, z: Tensor, log_prob: Tensor) -> Rest:
    r"""Points at rest where a mode may hold mass that counts.

    A mode at a distance of :math:`r` standard deviations of the particles is at most as wide in each direction, so that
    its share of the mass is at most about

    .. math:: e^{\log p - \max \log p_i}\ r^D .

    Draws of a vague prior may be so far out that steps of any size lead to a density still lower: they do not climb,
    and lie in no mode. Nor has a Gaussian around such a place digits left for its own draws.

    Arguments:
        rest: The points, ``(M, D)``.
        z: Particles, ``(N, D)``.
        log_prob: Their log densities, ``(N,)``.
    """
    loc, scale_tril = weighted_moments(z, z.new_zeros(len(z)))
    # Coordinate by coordinate, since squares may overflow.
    reach = torch.linalg.solve_triangular(scale_tril, (rest.z - loc).mT, upper=False).abs().amax(0)
    dim = z.shape[1]
    most = rest.log_prob + dim * reach.clamp(min=1.0).log()
    # Points in a mode lie some D / 2 nats below its top, those of the particles likewise.
    counts = most > log_prob.max() - _NEGLIGIBLE - dim

    return Rest(rest.z[counts], rest.log_prob[counts], rest.step[counts])


def _climbed(target: Target, z: Tensor) -> Tensor:
    """Some particles after gradient ascent: a spike within a broad mode may hold none, and lies uphill of all."""
    loc, scale_tril = weighted_moments(z, z.new_zeros(len(z)))
    chosen = z[spread_out(z, _fewer(target, _NUM_CLIMBERS))]
    if target.num_terms > _MANY_TERMS:
        # So few points take as long as a block of them: one after the other, a hundred steps cost more than they find.
        return ascend(partial(log_prob_and_score, target.log_prob), chosen, loc, scale_tril, _NUM_ASCENTS).z
    u = torch.linalg.solve_triangular(scale_tril, (chosen - loc).mT, upper=False).mT
    optimizer = LightAdam([u], lr=_CLIMB / _NUM_CLIMBS)
    for _ in range(_NUM_CLIMBS):
        _, score = log_prob_and_score(target.log_prob, loc + u @ scale_tril.mT)
        u.grad = -score @ scale_tril
        optimizer.step()

    return loc + u @ scale_tril.mT


def _is_far(points: Tensor, z: Tensor) -> Tensor:
    """Whether points lie farther from all particles than any particle from all others, ``(M,)``."""
    # All distances between very many particles would fill the memory; fewer of them lie farther apart.
    z = z[:: math.ceil(len(z) / _MAX_COMPARED)]
    loc, scale_tril = weighted_moments(z, z.new_zeros(len(z)))
    points, z = (torch.linalg.solve_triangular(scale_tril, (x - loc).mT, upper=False).mT for x in (points, z))
    largest_gap = torch.cdist(z, z).fill_diagonal_(torch.inf).amin(1).max()

    return torch.cdist(points, z).amin(1) > _FAR * largest_gap


def _chosen(target: Target, start: Tensor) -> Tensor:
    """Points to follow: the best of very many in each cell, which find what is narrow, and some of the given ones."""
    num_terms = max(1, target.num_terms)
    num_cells = _fewer(target, _NUM_CELLS)
    points = smoothed(start, int(min(_NUM_POINTS, max(_MAX_TERMS / num_terms, 4 * _NUM_CELLS))))
    with torch.no_grad():
        density = finite_log_prob(in_chunks(target.log_prob, points))
    loc, scale_tril = weighted_moments(start, start.new_zeros(len(start)))
    scale = scale_tril.diagonal()
    centres = points[torch.randint(len(points), (num_cells,), device=points.device)]
    cell = torch.cdist((points - loc) / scale, (centres - loc) / scale).argmin(1)
    order = density.argsort()
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    best = torch.full((num_cells,), -1, dtype=torch.long, device=start.device)
    best = best.scatter_reduce(0, cell, rank, "amax")
    best = order[best[best >= 0]]
    count = num_affordable(target, _NUM_OTHERS, at_least=num_cells)

    return torch.cat([points[best[density[best].isfinite()]], start[spread_out(start, count)]])


def _fewer(target: Target, count: int) -> int:
    """A number of points to follow, smaller where the density has very many terms."""
    return max(16, int(count * min(1.0, _MANY_TERMS / max(1, target.num_terms))))

r"""Walk outwards from the centre of a density along its valleys, and measure how much mass lies there.

Coordinate *i* is held at :math:`c = \mu_i + \lambda \sigma_i` while the others climb to where the density is largest.
There, a Gaussian of the local curvature tells how much mass the slice holds,

.. math::
    \log m(c) = \log \gamma(z^*) + \sum_j \log w_j, \qquad
    z^* = \arg\max_{z_i = c} \gamma(z), \quad w_j = h_j^{-1/2},

with :math:`h_j` the eigenvalues of the curvature across. It is Laplace's approximation of the marginal density of
:math:`z_i`. A straight ray leaves a curved valley, and one that narrows to a point; a walk follows both, and the widths
tell a peak that holds mass from one that does not. Steps are Newton's: widths may shrink by a factor of a thousand from
one distance to the next.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_osds.target import Target, finite_log_prob, in_chunks, log_prob_and_score

# A log scale is worth nothing to double precision some 35 units out, but its posterior sd may be several units: steps
# are fine at first. Heavy tails need decades, and take them later.
DISTANCES = (
    0.0, 1.0, 2.0, 2.8, 4.0, 5.7, 8.0, 11.0, 16.0, 23.0, 32.0, 45.0, 64.0, 128.0, 256.0, 512.0, 1e3, 1e4, 1e5, 1e6, 1e7,
)  # fmt: skip
# A walk that has lost so many nats of mass is over: along a Gaussian valley that is so at eight standard deviations.
_LOST = 20.0
# Walks of a Gaussian take as many evaluations of each point and its D - 1 neighbours.
_EVALUATIONS = 15
# Terms do not tell what a density costs that has loops in it.
_MAX_SECONDS = 2.0
# Smaller batches would not be replayed from a graph.
_MIN_BATCH = 64
# The step of a difference of scores, in local widths: its error is the square of that.
_DIFFERENCE = 0.02
# Points that rounding moves by more than this share of such a step say nothing about curvature.
_MAX_ROUNDING = 0.1
# Newton steps to the top of a slice, and the shares of each that are tried, none among them.
_MAX_CLIMBS, _SHORTER = 12, (0.0, 1.0, 0.3, 0.1, 0.01)
# Where a density is all but straight, Newton's step goes anywhere; some standard deviations uphill are better.
_LENGTHS = (0.3, 1.0, 3.0)
# Nats that Newton's step promises at most where a walk has arrived.
_ARRIVED = 2e-3
# Curvatures below this share of the largest, each in its own units, are rounding.
_MIN_CURVATURE = 1e-10
# A location is as wide as its scale is large, and that grows exponentially along the log of the scale.
_SMALLEST, _WIDEST = 1e-200, 1e20


@dataclass(frozen=True)
class Walks:
    """K walks through T distances; what lies behind the end of a walk is not a number.

    Arguments:
        coordinates: The coordinates held, ``(K,)``.
        distances: How far from the centre, in standard deviations of the coordinate, ``(T,)``.
        z: The points, ``(T, K, D)``.
        log_prob: The log density there, ``(T, K)``.
        log_mass: The log mass of the slice, ``(T, K)``.
    """

    coordinates: Tensor
    distances: Tensor
    z: Tensor
    log_prob: Tensor
    log_mass: Tensor


def walk_outwards(target: Target, loc: Tensor, scale_tril: Tensor, held: Tensor, max_points: int) -> Walks:
    """Walks along the most promising coordinates, to both sides.

    Arguments:
        target: The target.
        loc: Centre of the posterior, ``(D,)``, double precision.
        scale_tril: Its scale, ``(D, D)``, double precision.
        held: The coordinates that may be held, ``(H,)``.
        max_points: Points at which the density may be evaluated, about.

    Example:
        >>> from pyro_osds.target import FunctionTarget
        >>> target = FunctionTarget(lambda z: -0.5 * z.square().sum(-1), dim=2, dtype=torch.float64)
        >>> where = torch.zeros(2).double(), torch.eye(2).double(), torch.tensor([0])
        >>> walk_outwards(target, *where, max_points=1000).log_mass[:3, 0]
        tensor([ 0.0000, -0.5000, -2.0000], dtype=torch.float64)
    """
    rows = scale_tril[held]
    # Held at a distance, the other coordinates of a Gaussian are largest where the regression on it says.
    axes = rows / rows.square().sum(-1, keepdim=True).sqrt()
    axes, coordinates = torch.cat([axes, -axes]), torch.cat([held, held])
    with torch.no_grad():
        near = finite_log_prob(target.log_prob((loc + 3.0 * axes @ scale_tril.mT).to(target.dtype)))
    count = max(2, max_points // (_EVALUATIONS * target.dim))
    best = near.argsort(descending=True)[:count]
    slices = _Slices(target, loc, scale_tril, axes[best], coordinates[best])
    steps = list(_walk(slices, max_points))
    z, log_prob, log_mass = (torch.stack(column) for column in zip(*steps, strict=True))
    distances = torch.tensor(DISTANCES[: len(steps)], dtype=loc.dtype, device=loc.device)

    return Walks(coordinates[best], distances, z, log_prob, log_mass)


def _walk(slices: _Slices, max_points: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """One distance after the other: points, log densities and log masses; walks that have ended stay behind."""
    place = slices.centre()
    passed: list[tuple[float, Tensor]] = []
    alive = torch.ones(len(place), dtype=torch.bool, device=place.device)
    highest = torch.full((len(place),), -torch.inf, dtype=place.dtype, device=place.device)
    start_time = time.perf_counter()
    for distance in DISTANCES:
        late = time.perf_counter() - start_time > _MAX_SECONDS
        if late or slices.num_points > max_points or not alive.any():
            return
        index = alive.nonzero()[:, 0]
        start = slices.start(index, distance, [(0.0, slices.centre()[index]), *((d, p[index]) for d, p in passed[-2:])])
        there, log_prob, log_mass = slices.climb(index, distance, start)
        place = place.index_copy(0, index, there)
        passed.append((distance, place))
        nothing = torch.full_like(highest, torch.nan)
        all_prob, all_mass = nothing.index_copy(0, index, log_prob), nothing.index_copy(0, index, log_mass)
        if distance <= 1.0:
            highest = torch.where(all_mass > highest, all_mass, highest)
        alive = alive & (all_mass + math.log(max(distance, 1.0)) > highest - _LOST)
        yield slices.points(slice(None), distance, place), all_prob, all_mass


class _Slices:
    """Slices through a density, one for each walk, in whitened coordinates: a place is where on its slice a walk is.

    Arguments:
        target: The target.
        loc: Centre, ``(D,)``.
        scale_tril: Scale, ``(D, D)``.
        axes: Unit vectors to walk along, whitened, ``(K, D)``.
        held: The coordinates that they stand for, ``(K,)``.
    """

    def __init__(self, target: Target, loc: Tensor, scale_tril: Tensor, axes: Tensor, held: Tensor) -> None:
        self.target, self.loc, self.scale_tril, self.axes = target, loc, scale_tril, axes @ scale_tril.mT
        # A reflection that takes the first unit vector to the axis takes the others to a basis of the slice.
        normal = axes.clone()
        normal[:, 0] += torch.where(axes[:, 0] < 0, -1.0, 1.0).to(axes)
        reflection = 2 * normal[:, :, None] * normal[:, None] / normal.square().sum(-1)[:, None, None]
        eye = torch.eye(target.dim, dtype=loc.dtype, device=loc.device)
        self.across = (eye - reflection)[:, 1:] @ scale_tril.mT
        # Zero but for rounding, which would drown the small score of a location in the large one of its scale.
        self.across[torch.arange(len(held), device=held.device), :, held] = 0.0
        self.widths = torch.ones(len(axes), target.dim - 1, dtype=loc.dtype, device=loc.device)
        self.num_points = 0

    def centre(self) -> Tensor:
        """The places of the centre, ``(K, D - 1)``."""
        return torch.zeros_like(self.widths)

    def points(self, index: Tensor | slice, distance: float, place: Tensor) -> Tensor:
        """Points of places, ``(..., K, D - 1) -> (..., K, D)``."""
        return self.loc + distance * self.axes[index] + (place[..., None, :] @ self.across[index]).squeeze(-2)

    def start(self, index: Tensor, distance: float, passed: list[tuple[float, Tensor]]) -> Tensor:
        """Where to begin the climb: the best of where valleys lead that are straight, parabolas or logarithms."""
        (before, old), (last, place) = passed[-2:] if len(passed) > 1 else passed * 2
        offers = [place]
        if last > before > 0.0:
            change, ratio = place - old, distance / last
            growth = (ratio - 1.0) / (1.0 - before / last), math.log(ratio) / math.log(last / before)
            offers += [ratio * place, ratio**2 * place, *(place + share * change for share in growth)]

        return self._best(index, distance, torch.stack(offers))

    def _best(self, index: Tensor, distance: float, offers: Tensor) -> Tensor:
        """The places of the largest density, ``(O, K, D - 1) -> (K, D - 1)``."""
        z = self.points(index, distance, offers).to(self.target.dtype)
        with torch.no_grad():
            log_prob = finite_log_prob(in_chunks(self.target.log_prob, self._filled(z.flatten(0, 1))))
        log_prob = log_prob[: z.shape[0] * z.shape[1]].view(offers.shape[:2])
        best = log_prob.argmax(0)

        return offers[best, torch.arange(len(best), device=best.device)]

    def _filled(self, z: Tensor) -> Tensor:
        """Points ``(N, D)``, and repeats of the last one: small batches of a model run far slower than its graph."""
        self.num_points += len(z)
        missing = max(0, _MIN_BATCH - len(z)) if self.target.num_terms else 0

        return torch.cat([z, z[-1:].expand(missing, -1)])

    def climb(self, index: Tensor, distance: float, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Newton's steps on the slices of some walks: places, log densities and log masses; those lost are nan."""
        log_prob = place.new_full((len(index),), torch.nan)
        log_mass = log_prob.clone()
        active = torch.arange(len(index), device=place.device)
        for _ in range(_MAX_CLIMBS):
            rows = index[active]
            density, score, curvature, seen = self._look(rows, distance, place[active])
            step, promise, log_width, widths = _newton(score, curvature, distance)
            diagonal = curvature.diagonal(dim1=-2, dim2=-1)
            # A width that grew until its curvature underflowed is no longer known.
            seen = seen & ~((diagonal.abs() <= _SMALLEST) & (self.widths[rows] > _WIDEST)).any(-1)
            # Differences over another width than the local one are no curvature: look again.
            steady = (widths / self.widths[rows]).log().abs().lt(1.0).all(-1)
            self.widths[rows] = torch.where(seen[:, None], widths, self.widths[rows])
            there = seen & steady & (promise < _ARRIVED)
            log_prob[active[there]] = density[there]
            log_mass[active[there]] = (density + log_width)[there]
            go = seen & ~there
            active, step = active[go], step[go]
            if not len(active):
                break
            place = place.index_copy(0, active, self._best(index[active], distance, place[active] + _shortened(step)))

        return place, log_prob, log_mass

    def _look(self, index: Tensor, distance: float, place: Tensor) -> tuple[Tensor, ...]:
        """Log density, score and curvature on the slice, and whether there are such: ``(K,)``, ... , ``(K,)``."""
        count, dim = len(index), self.target.dim
        steps = _DIFFERENCE * self.widths[index]
        moves = torch.cat([torch.zeros_like(steps)[:, None], torch.diag_embed(steps)], 1)
        exact = self.points(index, distance, (place[:, None] + moves).transpose(0, 1)).transpose(0, 1)
        z = exact.to(self.target.dtype)
        rows = self._filled(z.reshape(-1, dim))
        parts = [log_prob_and_score(self.target.log_prob, chunk) for chunk in rows.split(8192)]
        density = torch.cat([part[0] for part in parts])[: count * dim].double().view(count, dim)
        score = torch.cat([part[1] for part in parts])[: count * dim].double().view(count, dim, dim)
        score = score @ self.across[index].mT
        curvature = (score[:, :1] - score[:, 1:]) / steps[:, :, None]
        curvature = 0.5 * (curvature + curvature.mT)
        wanted = moves[:, 1:] @ self.across[index]
        error = (z[:, 1:].double() - z[:, :1].double() - wanted).reshape(-1, dim).mT
        error = torch.linalg.solve_triangular(self.scale_tril, error, upper=False).mT.reshape(count, dim - 1, dim)
        exact_enough = (error.square().sum(-1).sqrt() < _MAX_ROUNDING * steps).all(-1)
        seen = density.isfinite().all(-1) & curvature.isfinite().flatten(1).all(-1) & exact_enough

        return density[:, 0], score[:, 0], curvature.nan_to_num(0.0, 0.0, 0.0), seen


def _shortened(step: Tensor) -> Tensor:
    """Steps of several lengths in one direction, the first of them none at all, ``(K, D - 1) -> (S, K, D - 1)``."""
    length = step.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-300)
    shares = [*(torch.full_like(length, share) for share in _SHORTER), *((r / length).clamp(max=1.0) for r in _LENGTHS)]

    return torch.stack(shares) * step


def _newton(score: Tensor, curvature: Tensor, distance: float) -> tuple[Tensor, ...]:
    """A step uphill, the nats it promises, the log of the volume across, and the widths, each ``(K, ...)``."""
    diagonal = curvature.diagonal(dim1=-2, dim2=-1).abs()
    # What is exactly flat across makes a cone, as wide as it is far away and not more.
    diagonal = torch.where(diagonal > _SMALLEST, diagonal, 1.0 / (1.0 + distance**2))
    widths = diagonal.rsqrt()
    values, vectors = torch.linalg.eigh(widths[:, :, None] * curvature * widths[:, None])
    values = values.abs().clamp(min=_MIN_CURVATURE)
    along = ((widths * score)[:, None] @ vectors).squeeze(1)
    step = widths * (vectors @ (along / values)[:, :, None]).squeeze(-1)
    promise = 0.5 * (along.square() / values).sum(-1)

    return step, promise, widths.log().sum(-1) - 0.5 * values.log().sum(-1), widths

r"""Has a posterior an integral? It is denied only of what was seen to have none.

Two looks are taken outwards. Along a straight ray :math:`z = \mu + \lambda L d`, the shell at distance :math:`\lambda`
holds about

.. math:: f(\lambda) = \log \gamma(z) + p \log \lambda

nats of mass, with *p* = 1 in a tube around an axis and *p* = *D* in a cone around a random direction; along a valley,
its walk tells the mass of a slice (:mod:`~pyro_osds.explore.valley`), and *p* = 1. A density with an integral has *f*
fall off. One that is denied it keeps *f* up over the last three decades, and about as high as in the centre: a far end
hundreds of nats below is a place where the scale overtakes the residuals, or one where a probability is clamped. Where
numbers end before, as in a scale that underflows, the mass itself must stay up, not only *f*.

A proper prior has the integral :math:`\int p(y \mid z)\, p(z)\, dz \le \sup p(y \mid z)`. So there the likelihood must
also grow beyond all bounds, which that of discrete data never does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_osds.explore.valley import Walks, walk_outwards
from pyro_osds.target import Target, finite_log_prob, in_chunks

# Half decades from 10 to 1e8. Three decades of them that end beyond 1e4 hold 1e4 or 1e5: a ray low at both is left out.
_RAY = tuple(10.0 ** (0.5 * half) for half in range(2, 17))
# The places of 1e4 and 1e5 among them.
_SCREEN = (6, 8)
# Standard deviations that a far end spans at least: three decades.
_SPAN = 1e3
# A power law of exponent -1.02 still counts as one without an integral, -1.05 does not: of f, nats per nat of distance.
_MAX_FALL = 0.02
# Walks arrive close to the top of each slice, not at it.
_NOISE = 0.05
# The far shell may hold less than the centre: a likelihood with one group's variance at zero, for instance.
_BELOW = 5.0
# Clamped at one unit of rounding, each log probability ends on a plateau: so far below the centre it says nothing.
_CLAMPED, _FLAT = 0.8, 0.01
# Where numbers end early: a mass that has not fallen on the last factor of four, or has risen by more than a lost mode
# would make it.
_SHORT_SPAN, _MIN_SHORT, _SAME, _MIN_RISE = 3.9, 8.0, 0.1, 20.0
# Nats that a log likelihood without bound exceeds the centre's by, at the far end.
_GROWN = 10.0
# Unconstrained values at which an edge is looked for: between bounds those are rounded from 37 on, above one from 708
# on. Over the outer half the density may not fall by more than a fortieth of what Beta(0.05, 0.05) falls by.
_EDGE_STEP, _EDGE_END, _EDGE_FALL, _MAX_EDGES = 4.0, 760.0, 0.2, 32
# Rays in random directions, and dimensions up to which every axis has one.
_NUM_RANDOM, _MAX_AXES = 64, 256
# Points that walks may take, and terms of the log density: a tenth of a second and half a second on one core.
_MAX_POINTS, _MAX_TERMS = 20_000, 1e7


@dataclass(frozen=True)
class Endless:
    """Where a density was seen not to fall off.

    Arguments:
        coordinates: The coordinates that run away.
        distance: How far it was followed, in standard deviations of the posterior.
        log_prob: Its log there: of the density itself on a ray, of a coordinate's marginal one in a valley.
        centre_log_prob: Its log at the centre.
        kind: ``"ray"``, ``"edge"`` or ``"valley"``; ``"noted"`` where an earlier version left no more than coordinates.
    """

    coordinates: tuple[int, ...]
    distance: float = math.nan
    log_prob: float = math.nan
    centre_log_prob: float = math.nan
    kind: str = "noted"

    def sentence(self, where: str) -> str:
        """What was seen, and what follows from it.

        Arguments:
            where: The coordinates in words.

        Example:
            >>> Endless((0,), 1e8, -3.2, -2.9, "ray").sentence("site 'b'")[:54]
            "Along site 'b' the posterior density does not fall off"
        """
        if self.kind == "noted":
            return (
                f"An earlier version noted that the density may not fall off along {where}: run again to look closer."
            )
        which = "the posterior density" if self.kind in ("ray", "edge") else "the marginal posterior density"
        log_prob, centre = (f"{value:.4g}" for value in (self.log_prob, self.centre_log_prob))

        return (
            f"Along {where} {which} does not fall off as one with an integral must: at {self.distance:.1g} posterior "
            f"standard deviations from the centre its log is {log_prob}, at the centre {centre}. A density that stays "
            "so has no integral."
        )


def find_endless(target: Target, loc: Tensor, scale_tril: Tensor) -> Endless | None:
    """A direction or a valley along which the density does not fall off as one with an integral must, or None.

    Arguments:
        target: The target.
        loc: Centre of the posterior, ``(D,)``.
        scale_tril: Its scale, ``(D, D)``.

    Example:
        >>> from pyro_osds.target import FunctionTarget
        >>> target = FunctionTarget(lambda z: -0.5 * z[:, 1].square(), dim=2)
        >>> find_endless(target, torch.zeros(2), torch.eye(2)).coordinates
        (0,)
    """
    likelihood = _Likelihood(target)
    if likelihood.is_bounded:
        return None
    # Distances of 1e8 and widths of 1e-12 have no place in single precision.
    loc, scale_tril = loc.double(), scale_tril.double()
    looked = _looked_along(target).to(loc)
    found = _up_to_edges(target, loc, scale_tril)
    if found is not None or not looked.any():
        return found
    found = _along_rays(target, likelihood, loc, scale_tril, looked)
    if not target.vectorized or target.dim > _MAX_AXES:
        return found
    if found is None:
        return _along_valleys(target, likelihood, loc, scale_tril, looked)
    held = torch.tensor(found.coordinates, device=loc.device)

    return None if _is_contradicted(_walks(target, loc, scale_tril, held)) else found


# ---- what the prior promises ----


class _Likelihood:
    """The likelihood of a model whose prior is proper; of any other target it says nothing."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.has_proper_prior = target.can_sample_prior
        self.is_bounded = target.can_sample_prior and target.has_bounded_likelihood

    def grows(self, path: Tensor, loc: Tensor) -> bool:
        """Whether the log likelihood may have no bound along a path: it rises up to its end, far beyond the centre's.

        Arguments:
            path: The last points of the path, ``(T, D)``.
            loc: The centre, ``(D,)``.
        """
        if not self.has_proper_prior:
            return True
        z = torch.cat([loc[None], path]).to(self._target.dtype)
        with torch.no_grad():
            values = self._target.log_prior_and_likelihood(z)[1].double()
        far = values[1:]
        rises = bool((far.diff() > 0).all())

        return rises and bool(far[-1] > values[0].nan_to_num(-torch.inf) + _GROWN)


def _looked_along(target: Target) -> Tensor:
    """One for each coordinate to look along, ``(D,)``; zero where a transform saturates, as that of a simplex does."""
    looked = torch.ones(target.dim, device=target.device)
    for site in target.sites:
        if site.shape != site.unconstrained_shape:
            looked[site.start : site.stop] = 0.0

    return looked


# ---- edges of supports ----


def _up_to_edges(target: Target, loc: Tensor, scale_tril: Tensor) -> Endless | None:
    r"""A flat prior on a support with a bound, under which the density stays up until values are rounded to the bound.

    A prior such as :math:`1 / \tau` is flat in :math:`\log \tau`, which double precision follows to -708 and no
    further: a few standard deviations of a posterior that has no integral, too near for a ray.
    """
    sites = [s for s in target.sites if s.name in target.improper_sites and s.shape == s.unconstrained_shape]
    columns = [(site, index) for site in sites for index in range(site.start, site.stop)][:_MAX_EDGES]
    centre = _centre(target, loc, scale_tril) if columns else 0.0
    for site, index in columns:
        for sign in (-1.0, 1.0):
            places = sign * torch.arange(_EDGE_STEP, _EDGE_END, _EDGE_STEP, dtype=loc.dtype, device=loc.device)
            points = loc.repeat(len(places), 1)
            points[:, index] = places
            density = _density(target, points)
            # A target that does not know what is rounded has no bounds that it could be rounded to.
            rounded = target.saturated_sites(points).get(site.name, torch.zeros_like(density, dtype=torch.bool))
            valid = (density.isfinite() & ~rounded).long().cumprod(0).bool()
            last = int(valid.sum()) - 1
            # Without a bound on this side rays look further.
            if last < 1 or last == len(places) - 1:
                continue
            end, half = density[last].item(), density[last // 2].item()
            if end > centre - _BELOW and half - end < _EDGE_FALL:
                distance = ((places[last] - loc[index]).abs() / scale_tril[index].norm()).item()
                return Endless((index,), distance, end, centre, "edge")

    return None


# ---- straight rays ----


def _along_rays(
    target: Target, likelihood: _Likelihood, loc: Tensor, scale_tril: Tensor, looked: Tensor
) -> Endless | None:
    directions, power = _directions(scale_tril, looked)
    distances = loc.new_tensor(_RAY)
    centre = _centre(target, loc, scale_tril)
    screen = _density(target, loc + distances[list(_SCREEN), None, None] * directions)
    high = screen + power * distances[list(_SCREEN), None].log() > centre - _BELOW
    kept = high.any(0).nonzero()[:, 0]
    if not math.isfinite(centre) or not len(kept):
        return None
    paths = loc + distances[:, None, None] * directions[kept]
    density = _density(target, paths)
    clamped = _clamped(target, centre)
    found = []
    for column, index in enumerate(kept.tolist()):
        shell = density[:, column] + power[index] * distances.log()
        last = _last_finite(shell)
        span = _far_span(distances, shell, density[:, column], centre, clamped, last)
        if span is not None and likelihood.grows(paths[span, column], loc):
            relative = directions[index].abs() / scale_tril.diagonal()
            found.append((shell[last].item(), int(relative.argmax()), last, density[last, column].item()))

    return _told(found, distances, centre, "ray")


def _directions(scale_tril: Tensor, looked: Tensor) -> tuple[Tensor, Tensor]:
    """Rays ``(N, D)`` along axes, principal and random directions, and the powers of the distance that go with them."""
    dim = len(scale_tril)
    axes = torch.eye(dim, dtype=scale_tril.dtype, device=scale_tril.device)[:_MAX_AXES]
    others = torch.randn(_NUM_RANDOM, dim, dtype=scale_tril.dtype, device=scale_tril.device)
    others = others / others.square().sum(-1, keepdim=True).sqrt()
    _, principal = torch.linalg.eigh(scale_tril @ scale_tril.mT)
    principal = principal.mT[-_MAX_AXES:] * scale_tril.square().sum().sqrt()
    tubes = torch.cat([torch.cat([axes, -axes]) @ scale_tril.mT, principal, -principal])
    directions = torch.cat([tubes, others @ scale_tril.mT]) * looked
    power = directions.new_ones(len(directions))
    power[len(tubes) :] = dim
    moves = directions.ne(0).any(-1)

    return directions[moves], power[moves]


def _centre(target: Target, loc: Tensor, scale_tril: Tensor) -> float:
    """The log density of the centre: the largest at it and one standard deviation away."""
    near = torch.cat([loc[None], loc + scale_tril.mT[:_MAX_AXES], loc - scale_tril.mT[:_MAX_AXES]])

    return _density(target, near).max().item()


def _density(target: Target, z: Tensor) -> Tensor:
    """Log densities of points ``(..., D)`` in double precision; -inf where they are no numbers."""
    with torch.no_grad():
        log_prob = in_chunks(target.log_prob, z.reshape(-1, z.shape[-1]).to(target.dtype))

    return finite_log_prob(log_prob).double().view(z.shape[:-1])


# ---- valleys ----


def _along_valleys(
    target: Target, likelihood: _Likelihood, loc: Tensor, scale_tril: Tensor, looked: Tensor
) -> Endless | None:
    walks = _walks(target, loc, scale_tril, looked.nonzero()[:, 0])
    distances, found, centres = walks.distances, [], []
    for column, coordinate in enumerate(walks.coordinates.tolist()):
        mass, density = walks.log_mass[:, column], walks.log_prob[:, column]
        if len(mass) < 2 or not mass[0].isfinite():
            continue
        centre = mass[:2].max().item()
        last = _last_finite(mass)
        shell = mass + distances.clamp(min=1.0).log()
        span = _far_span(distances, shell, density, centre, _clamped(target, density[:2].max().item()), last)
        if span is None:
            span = _short_span(distances, mass, centre, last)
        if span is not None and likelihood.grows(walks.z[span, column], walks.z[0, column]):
            found.append((mass[last].item() - centre, coordinate, last, mass[last].item()))
            centres.append(centre)
    best = max(range(len(found)), key=lambda i: found[i][0], default=0)

    return _told(found, distances, centres[best], "valley") if found else None


def _walks(target: Target, loc: Tensor, scale_tril: Tensor, held: Tensor) -> Walks:
    max_points = int(min(_MAX_POINTS, _MAX_TERMS / max(1, target.num_terms)))

    return walk_outwards(target, loc, scale_tril, held, max_points)


def _is_contradicted(walks: Walks) -> bool:
    """Whether all walks lose their mass: along a ray a density may stay as high, and grow too narrow to count."""
    for mass in walks.log_mass.mT:
        last = _last_finite(mass)
        shell = mass + walks.distances.clamp(min=1.0).log()
        centre = mass[:2].max().item()
        is_far = last > 0 and bool(walks.distances[last] >= 10.0 * _SPAN)
        # Nothing can be clamped here that was not on the ray.
        fell = is_far and _far_span(walks.distances, shell, mass, centre, -math.inf, last) is None
        if last < 1 or not (fell or bool(shell[last] < centre - _BELOW)):
            return False

    return True


# ---- what counts ----


def _last_finite(values: Tensor) -> int:
    """The index before the first value that is no number, -1 if that is the first."""
    bad = (~values.isfinite()).nonzero()[:, 0]

    return int(bad[0]) - 1 if len(bad) else len(values) - 1


def _clamped(target: Target, centre: float) -> float:
    """The log density below which a plateau is put down to clamped probabilities."""
    return centre + _CLAMPED * math.log(torch.finfo(target.dtype).eps)


def _far_span(
    distances: Tensor, shell: Tensor, density: Tensor, centre: float, clamped: float, last: int
) -> list[int] | None:
    """The last three decades of a walk or a ray, if the shells there hold as much as the centre and do not fall."""
    if last < 0 or distances[last] < 10.0 * _SPAN:
        return None
    span = [i for i in range(last + 1) if distances[i] >= 0.99 * distances[last] / _SPAN]
    far = shell[span]
    fall = far[0] - far
    may_fall = _NOISE + _MAX_FALL * (distances[span] / distances[span[0]]).log()
    stays = bool((far > centre - _BELOW).all()) and bool((fall <= may_fall).all())
    plateau = density[span]
    is_clamped = bool(plateau.max() < clamped) and bool(plateau.max() - plateau.min() < _FLAT)

    return span if stays and not is_clamped else None


def _short_span(distances: Tensor, mass: Tensor, centre: float, last: int) -> list[int] | None:
    """The last factor of four of a walk that ended early, if its slices hold more and more, or the same."""
    # Four points at least, none of them the centre.
    if last < 4:
        return None
    span = [i for i in range(1, last + 1) if distances[i] >= distances[last] / _SHORT_SPAN or i > last - 4]
    far = mass[span]
    rises = bool((far.diff() > 0).all()) and bool(far[-1] > centre + _MIN_RISE)
    stays = bool((far.diff() > -_SAME).all()) and bool(far[-1] > max(centre - _BELOW, far[0].item() - _SAME))

    return span if rises or (stays and bool(distances[last] >= _MIN_SHORT)) else None


def _told(found: list[tuple[float, int, int, float]], distances: Tensor, centre: float, kind: str) -> Endless | None:
    """All coordinates that were found, with the numbers of the most striking one."""
    if not found:
        return None
    _, _, last, log_prob = max(found)

    return Endless(tuple(sorted({entry[1] for entry in found})), distances[last].item(), log_prob, centre, kind)

r"""Components that may trade places: found, put in order, and given all their places back.

A mixture's density is the same for all :math:`K!` orders of its components. A run that loses some of the copies loses
up to :math:`\ln K!` nats, and its weights cannot see it. One copy is enough: with the components in order by one of
their coordinates *c*,

.. math::
    \gamma_<(u) = K!\ \gamma\big(z(u)\big) \prod_{k \ge 2} e^{u_{c_k}}, \qquad
    z_{c_1} = u_{c_1}, \quad z_{c_k} = z_{c_{k-1}} + e^{u_{c_k}}, \quad z_i = u_i \text{ elsewhere},

has the same evidence and a single copy of each mode. Draws of it are put back in a random order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions.transforms import StickBreakingTransform

from pyro_osds.stats.hashing import hashed_keys
from pyro_osds.stats.moments import weighted_moments
from pyro_osds.target import MovedTarget, Site, Target

# Points at which all orders have to have the same density: one would do, but for places where it is flat.
_NUM_POINTS = 16
SAME_DENSITY = 1e-3
"""Nats between points that are the same but for a symmetry: their sums round differently, by far less in double
precision and by more where the model insists on single. It is absolute: what differs by more is multiplied wrongly."""
# Coordinates that components may be put in order by, at most: each is tried.
_MAX_ORDERINGS = 64


@dataclass(frozen=True)
class Exchange:
    """A way for the permutations of K components to act on unconstrained points.

    Arguments:
        num_components: K.
        rows: Coordinates that move with their component, each ``(K, m)``.
        simplexes: Unconstrained coordinates of probability vectors over the components, each ``(n, K - 1)``.
    """

    num_components: int
    rows: tuple[Tensor, ...]
    simplexes: tuple[Tensor, ...]

    def permute(self, z: Tensor, order: Tensor) -> Tensor:
        """Points with their components in another order; volumes stay as they are.

        That holds for probability vectors too: the volume of stick-breaking coordinates is the product of all
        probabilities, in any order.

        Arguments:
            z: Points, ``(B, D)``.
            order: The component to put at each place, ``(B, K)``.
        """
        z = z.clone()
        for index in self.rows:
            block = z[:, index]
            z[:, index] = block.gather(1, order[:, :, None].expand_as(block))
        for index in self.simplexes:
            transform: Any = StickBreakingTransform()
            value = transform(z[:, index].double())
            z[:, index] = transform.inv(value.gather(2, order[:, None].expand_as(value))).to(z.dtype)

        return z

    def at_random(self, z: Tensor, by: Tensor | None = None) -> Tensor:
        """Points with their components in an order that looks random and depends on nothing but the point.

        Arguments:
            z: Points, ``(B, D)``.
            by: Points whose bits decide, ``(B, D)``; default: the same ones.
        """
        return self.permute(z, hashed_keys(z if by is None else by, self.num_components).argsort(-1))

    def is_strict_part_of(self, other: Exchange) -> bool:
        """Whether the other one moves all coordinates that this one moves, and more."""
        mine, others = self.coordinates(), other.coordinates()
        same_size = self.num_components == other.num_components

        return same_size and bool(torch.isin(mine, others).all()) and not bool(torch.isin(others, mine).all())

    def orderings(self) -> list[Tensor]:
        """Coordinates ``(K,)`` by which components can be put in order: those that move with them and nothing else."""
        count = self.coordinates().bincount()

        return [column for index in self.rows for column in index.T if (count[column] == 1).all()][:_MAX_ORDERINGS]

    def coordinates(self) -> Tensor:
        """All coordinates that move, ``(M,)``."""
        return torch.cat([index.reshape(-1) for index in (*self.rows, *self.simplexes)])


def find_exchanges(target: Target, z: Tensor, log_prob: Tensor) -> list[Exchange]:
    """The groups of components whose order makes no difference to the density.

    Candidates are axes of one length at the latent sites, and sites whose names differ by a number only. What counts
    is the density: it must be the same after a swap of two components, and after all have moved on by one.

    Arguments:
        target: The target; its ``sites`` say where in ``z`` what lies, without them there is nothing to find.
        z: Points to try, ``(N, D)``.
        log_prob: Their log densities, ``(N,)``.
    """
    points, expected = z[log_prob.isfinite()][:_NUM_POINTS], log_prob[log_prob.isfinite()][:_NUM_POINTS]
    exchanges: list[Exchange] = []
    if not len(points):
        return exchanges
    for candidate in _candidates(target.sites, target.dims, z.device):
        orders = _generators(candidate, z.device)
        if all(_is_invariant(target, candidate, order, points, expected) for order in orders):
            exchanges.append(candidate)

    # Where a part may trade places on its own, so may the rest: two groups of one size are not one group.
    return [whole for whole in exchanges if not any(part.is_strict_part_of(whole) for part in exchanges)]


def _generators(exchange: Exchange, device: torch.device) -> list[Tensor]:
    """A swap and a cycle: all permutations are made of them."""
    cycle = torch.arange(exchange.num_components, device=device).roll(1)
    swap = torch.arange(exchange.num_components, device=device)
    swap[:2] = swap[:2].flip(0)

    return [swap, cycle]


def _is_invariant(target: Target, exchange: Exchange, order: Tensor, points: Tensor, expected: Tensor) -> bool:
    with torch.no_grad():
        difference = target.log_prob(exchange.permute(points, order.expand(len(points), -1))) - expected

    return bool((difference.abs() < SAME_DENSITY).all())


@dataclass(frozen=True)
class _Axis:
    """An axis that may run over components: where, under which name, and what moves with it."""

    site: str
    place: int
    plate: str
    index: Tensor
    is_simplex: bool


def _candidates(sites: Sequence[Site], dims: Mapping[str, Sequence[str]], device: torch.device) -> Iterator[Exchange]:
    """Sets of axes of one length that could belong to the same components, largest sets first."""
    axes: dict[int, list[_Axis]] = {}
    for axis in (*_axes(sites, dims), *_numbered(sites)):
        length = axis.index.shape[-1] + 1 if axis.is_simplex else len(axis.index)
        axes.setdefault(length, []).append(axis)
    for length, found in sorted(axes.items()):
        if length < 2:
            continue
        subsets = [found]
        for plate in dict.fromkeys(axis.plate for axis in found):
            subsets += [[axis for axis in found if axis.is_simplex or axis.plate == plate]]
            subsets += [[axis for axis in found if axis.plate == plate]]
        subsets += [[axis for axis in found if axis.is_simplex or axis.place == place] for place in (0, -1)]
        subsets += [[axis for axis in found if axis.site == name] for name in dict.fromkeys(a.site for a in found)]
        subsets += [[axis] for axis in found]
        for subset in {tuple(map(id, subset)): subset for subset in subsets if subset}.values():
            rows = tuple(axis.index.to(device) for axis in subset if not axis.is_simplex)
            simplexes = tuple(axis.index.to(device) for axis in subset if axis.is_simplex)
            yield Exchange(length, rows, simplexes)


def axes_by_length(sites: Sequence[Site], dims: Mapping[str, Sequence[str]]) -> list[list[Tensor]]:
    """Coordinates that belong to the elements of an axis, ``(K, m)`` for each of them, axes of one length together.

    Arguments:
        sites: The latent sites.
        dims: Names of the dimensions of each site.
    """
    lengths: dict[int, list[Tensor]] = {}
    for axis in (*_axes(sites, dims), *_numbered(sites)):
        if not axis.is_simplex:
            lengths.setdefault(len(axis.index), []).append(axis.index)

    return [lengths[length] for length in sorted(lengths)]


def _axes(sites: Sequence[Site], dims: Mapping[str, Sequence[str]]) -> Iterator[_Axis]:
    """The axes of each site that its unconstrained values have too, and the last one of a probability vector."""
    for site in sites:
        index = torch.arange(site.start, site.stop).reshape(site.unconstrained_shape)
        for place, (size, same) in enumerate(zip(site.shape, site.unconstrained_shape, strict=False)):
            plate = dims.get(site.name, ())[place : place + 1]
            if size == same:
                last = place if place < len(site.shape) - 1 else -1
                rows = index.movedim(place, 0).reshape(size, -1)
                yield _Axis(site.name, last, plate[0] if plate else "", rows, is_simplex=False)
            elif size == same + 1 and place == len(site.shape) - 1 and size > 1:
                yield _Axis(site.name, -1, "", index.reshape(-1, same), is_simplex=True)
            else:
                break


def _numbered(sites: Sequence[Site]) -> Iterator[_Axis]:
    """Sites such as ``mu_0``, ``mu_1`` of one shape, as an axis."""
    groups: dict[Any, list[Site]] = {}
    for site in sites:
        groups.setdefault((re.sub(r"\d+", "#", site.name), site.unconstrained_shape), []).append(site)
    for (name, _), group in groups.items():
        if len(group) > 1:
            rows = torch.stack([torch.arange(site.start, site.stop) for site in group])
            yield _Axis(name, 0, "", rows, is_simplex=False)


class OrderedTarget(MovedTarget):
    """A target whose exchangeable components are in order, with the evidence of all orders.

    All that the target inside declares holds for this one, with the same sites in the same places; values and log
    likelihoods by site are those of :meth:`to_target`. There are no other coordinates: to standardise a site would move
    the coordinate that components are ordered by.

    Arguments:
        target: The target in the coordinates ``z``.
        exchange: How components trade places in it.
        ordering: The coordinate of each component that grows from one to the next, ``(K,)``.

    Example:
        >>> from pyro_osds.target import FunctionTarget
        >>> pair = FunctionTarget(lambda z: -0.5 * z.square().sum(-1), dim=2)
        >>> ordering = torch.tensor([0, 1])
        >>> ordered = OrderedTarget(pair, Exchange(2, (ordering[:, None],), ()), ordering)
        >>> ordered.to_ordered(torch.tensor([[3.0, 2.0]]))
        tensor([[2., 0.]])
    """

    def __init__(self, target: Target, exchange: Exchange, ordering: Tensor) -> None:
        super().__init__(target)
        self.exchange = exchange
        self.ordering = ordering
        self.start = None if target.start is None else self.outside(target.start[None])[0]
        self._log_num_orders = math.lgamma(exchange.num_components + 1)

    def log_abs_det(self, u: Tensor) -> Tensor:
        """Log-determinants of the step from ``u`` to ``z``, ``(B,)``."""
        return u[:, self.ordering[1:]].sum(-1)

    def volume_inside(self, u: Tensor) -> Tensor:
        """Log of how much volume the copies of a point in all orders stand for, ``(B,)``."""
        return self.log_abs_det(u) + self._log_num_orders

    def outside(self, z: Tensor) -> Tensor:
        """Points of the target with their components put in order, ``(B, D) -> (B, D)``."""
        z = self.exchange.permute(z, z[:, self.ordering].argsort(-1))
        values = z[:, self.ordering]
        steps = torch.cat([values[:, :1], values.diff(dim=-1).clamp(min=torch.finfo(z.dtype).tiny).log()], -1)

        return z.index_copy(1, self.ordering, steps)

    def inside(self, u: Tensor) -> Tensor:
        """Points of the target with their components in order, ``(B, D) -> (B, D)``."""
        steps = u[:, self.ordering]
        values = torch.cat([steps[:, :1], steps[:, 1:].exp()], -1).cumsum(-1)

        return u.index_copy(1, self.ordering, values)

    def drawn(self, u: Tensor) -> Tensor:
        """Points of the target with their components in a random order, always the same one for the same ``u``."""
        return self.exchange.permute(self.inside(u), hashed_keys(u, self.exchange.num_components).argsort(-1))


def ordered(target: Target, exchange: Exchange, z: Tensor) -> OrderedTarget | None:
    r"""The target in the order in which particles are closest to a Gaussian, or None where nothing can be ordered.

    The divergence to the best Gaussian is, up to a constant that all orderings share,
    :math:`\tfrac12 \log\det \mathrm{Cov}(u) + \mathrm{E} \log|\det \partial z / \partial u|`.

    Arguments:
        target: The target.
        exchange: How its components trade places.
        z: Particles, ``(N, D)``.
    """
    best, smallest = None, math.inf
    for ordering in exchange.orderings():
        candidate = OrderedTarget(target, exchange, ordering)
        u = candidate.outside(z)
        log_volume = weighted_moments(u, u.new_zeros(len(u)))[1].diagonal().double().log().sum()
        divergence = (log_volume + candidate.log_abs_det(u).double().mean()).item()
        if divergence < smallest:
            best, smallest = candidate, divergence

    return best

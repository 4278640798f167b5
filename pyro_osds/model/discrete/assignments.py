r"""Joint values of discrete latents: one for every element of every plate.

A site with *E* elements of *K* values each has :math:`K^E` of them, and several sites have the product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_osds.model.discrete.supports import single_values
from pyro_osds.model.vmap import VmapCompat


@dataclass(frozen=True)
class Discrete:
    """A discrete latent as plain runs have it.

    Arguments:
        name: The site.
        values: What one element can be, ``(K, *event_shape)``.
        elements: The shape of its elements: plates, dimensions of no plate, and those that ``.to_event()`` declares.
        nesting: How many of these, from the left, are no event dimensions.
    """

    name: str
    values: Tensor
    elements: torch.Size
    nesting: int

    @property
    def num_values(self) -> int:
        """K."""
        return len(self.values)

    @property
    def count(self) -> int:
        """How many joint values its elements have."""
        return self.num_values ** self.elements.numel()

    def at(self, index: Tensor) -> Tensor:
        """Values for indices ``(*, *elements)``."""
        return self.values[index]

    def index_of(self, value: Tensor) -> Tensor:
        """Indices ``(*, *elements)`` of values ``(*, *shape)``; of what is none of them, that of the nearest.

        Example:
            >>> Discrete("n", torch.arange(3.0), torch.Size([2]), 1).index_of(torch.tensor([1.0, 7.0]))
            tensor([1, 2])
        """
        event = self.values.dim() - 1
        values = self.values.to(value.device).double().reshape(len(self.values), -1)
        shape = value.shape[: value.dim() - event]
        given = value.double().reshape(-1, values.shape[1])
        distance = (given[:, None] - values).abs().sum(-1)

        return distance.argmin(1).reshape(shape).cpu()


def discrete_of(site: Mapping[str, Any]) -> Discrete:
    """A discrete latent, read off a plain run.

    Arguments:
        site: The site.

    Example:
        >>> import pyro.distributions as dist
        >>> fn = dist.Bernoulli(0.5).expand([3])
        >>> site = discrete_of({"name": "k", "fn": fn, "infer": {}, "is_observed": False, "value": torch.zeros(3)})
        >>> site.elements, site.count
        (torch.Size([3]), 8)
    """
    values = single_values(site)
    shape, event = site["fn"].shape(), values.dim() - 1
    elements = shape[: len(shape) - event]

    return Discrete(site["name"], values, elements, len(site["fn"].batch_shape))


def num_joint(sites: Iterable[Discrete]) -> int:
    """How many joint values all elements of some sites have."""
    return math.prod(site.count for site in sites)


def all_indices(sites: Iterable[Discrete]) -> dict[str, Tensor]:
    """Every joint value once, as indices by site, ``(A, *elements)``; the last element of the last site moves first.

    Example:
        >>> two = Discrete("k", torch.arange(2.0), torch.Size([2]), 1)
        >>> all_indices([two])["k"].tolist()
        [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    sites = tuple(sites)
    rest = torch.arange(num_joint(sites))
    indices = {}
    for site in reversed(sites):
        digits = []
        for _ in range(site.elements.numel()):
            digits.append(rest % site.num_values)
            rest = rest // site.num_values
        columns = torch.stack(digits[::-1], -1) if digits else rest.new_empty(len(rest), 0)
        indices[site.name] = columns.reshape(-1, *site.elements)

    return {site.name: indices[site.name] for site in sites}


def some_indices(sites: Iterable[Discrete], count: int) -> dict[str, Tensor]:
    """A few joint values, as :func:`all_indices`: the first of each, the last of each, and random ones.

    The random numbers of the caller stay as they are, and the same sites get the same values.
    """
    generator = torch.Generator().manual_seed(0)
    indices = {}
    for site in sites:
        drawn = torch.randint(site.num_values, (count, *site.elements), generator=generator)
        drawn[0] = 0
        drawn[1:2] = site.num_values - 1
        indices[site.name] = drawn

    return indices


def moved_indices(sites: Iterable[Discrete], indices: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Joint values that differ from each of some in one element, as indices ``(C, count, *elements)``.

    The random numbers of the caller stay as they are.

    Arguments:
        sites: The discrete latents.
        indices: The joint values that are changed, ``(C, *elements)``.
        count: How many of each.
    """
    sites = tuple(sites)
    generator = torch.Generator().manual_seed(2)
    moved = {site.name: indices[site.name][:, None].repeat(1, count, *(1,) * len(site.elements)) for site in sites}
    movable = [site for site in sites if site.num_values > 1 and site.elements.numel()]
    if not movable:
        return moved
    num_rows = len(next(iter(indices.values()))) * count
    sizes = torch.tensor([site.elements.numel() for site in movable])
    # Each element of each site alike.
    chosen = torch.randint(int(sizes.sum()), (num_rows,), generator=generator)
    start = 0
    for site, size in zip(movable, sizes.tolist(), strict=True):
        row = ((chosen >= start) & (chosen < start + size)).nonzero()[:, 0]
        flat = moved[site.name].reshape(num_rows, size)
        step = 1 + torch.randint(site.num_values - 1, (len(row),), generator=generator)
        flat[row, chosen[row] - start] = (flat[row, chosen[row] - start] + step) % site.num_values
        start += size

    return moved


def values_at(sites: Iterable[Discrete], indices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values by site, ``(A, *shape)``, of indices ``(A, *elements)``; of single ones without the first dimension."""
    return {site.name: site.at(indices[site.name].to(site.values.device)) for site in sites}


Read = Callable[[Mapping[str, Tensor]], Any]
"""Reads one plain run, given one value for each discrete latent: tensors, in a tuple or a mapping."""


def over_assignments(read: Read, values: Mapping[str, Tensor], batched_factories: bool = False) -> Any:
    """What a run tells at each of some joint values, by one run for all of them.

    Arguments:
        read: Reads one run.
        values: Values by site, ``(A, *shape)``.
        batched_factories: Whether new tensors belong to the batch from the start.

    Returns:
        What was read, stacked, ``(A, *)``.
    """
    # A batch dimension of its own, for models that ask for nothing else.
    first = torch.zeros(len(next(iter(values.values()))), device=next(iter(values.values())).device)

    def one(given: Mapping[str, Tensor], mark: Tensor) -> Any:
        with VmapCompat(mark if batched_factories else None):
            return read(given)

    return torch.func.vmap(one, randomness="error")(dict(values), first)


def one_by_one(read: Read, values: Mapping[str, Tensor]) -> Any:
    """The same by a run for each of them."""
    results = []
    for i in range(len(next(iter(values.values())))):
        with VmapCompat():
            results.append(read({name: value[i] for name, value in values.items()}))
    if isinstance(results[0], dict):
        changed = sorted({str(name) for result in results for name in result.keys() ^ results[0].keys()})
        if changed:
            raise ValueError(
                f"Site {changed[0]!r} comes and goes with the values of discrete latents, which are summed out. Make "
                "the site unconditional, and mask it with poutine.mask where it is not to count."
            )
        return {name: torch.stack([result[name] for result in results]) for name in results[0]}

    return tuple(torch.stack(column) for column in zip(*results, strict=True))

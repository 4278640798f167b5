"""Symmetries that the user declares, as what they do to the coordinates of a target."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_osds.explore.symmetry.flips import Flip
from pyro_osds.explore.symmetry.frames import Rotation
from pyro_osds.explore.symmetry.ordering import Exchange
from pyro_osds.symmetries import PERMUTATIONS, ROTATIONS, Symmetry
from pyro_osds.target import Site, Target


@dataclass(frozen=True)
class Declared:
    """A symmetry that was declared, and how it acts on unconstrained points.

    Arguments:
        symmetry: What the user wrote.
        action: What it does to points; its ``at_random`` gives one of all copies.
    """

    symmetry: Symmetry
    action: Flip | Exchange | Rotation


@dataclass(frozen=True)
class _Values:
    """Values of one site, and which coordinates they are.

    Arguments:
        name: The site.
        shape: The shape of its values.
        index: Its coordinates, of its unconstrained shape.
    """

    name: str
    shape: torch.Size
    index: Tensor

    @property
    def is_plain(self) -> bool:
        """Whether there is one coordinate for each value."""
        return self.shape == self.index.shape


def resolved(symmetries: Sequence[Symmetry], target: Target) -> list[Declared]:
    """Symmetries of named sites as actions on coordinates.

    Arguments:
        symmetries: What the user declared.
        target: The target, in the coordinates of its sites.

    Raises:
        ValueError: If sites, shapes or numbers do not fit the target.

    Example:
        >>> from pyro_osds.symmetries import permutations
        >>> from pyro_osds.target import FunctionTarget
        >>> (declared,) = resolved([permutations("z", num_blocks=3)], FunctionTarget(lambda z: z.sum(-1), dim=6))
        >>> declared.action.rows[0].tolist()
        [[0, 1], [2, 3], [4, 5]]
    """
    values = _values_by_site(target)
    declared = [Declared(symmetry, _action(symmetry, values, target)) for symmetry in symmetries]
    for each in declared:
        if not isinstance(each.action, Exchange):
            _check_real(each, values, target)

    return declared


def _values_by_site(target: Target) -> dict[str, _Values]:
    """All latent sites; a log density has the single site ``z``."""

    def of(site: Site) -> _Values:
        return _Values(site.name, site.shape, torch.arange(site.start, site.stop).reshape(site.unconstrained_shape))

    if not target.sites:
        return {"z": _Values("z", torch.Size([target.dim]), torch.arange(target.dim))}

    return {site.name: of(site) for site in target.sites}


def _action(symmetry: Symmetry, values: Mapping[str, _Values], target: Target) -> Flip | Exchange | Rotation:
    for name in (name for block in symmetry.blocks for name in block):
        if name not in values:
            discrete = name in target.discrete_sites
            why = "it is discrete, and summed out" if discrete else f"the latent sites are {sorted(values)}"
            raise ValueError(f"{symmetry!r} names the site {name!r}, and {why}. Name continuous latent sites.")
    if symmetry.kind == ROTATIONS:
        return Rotation(_particles(symmetry, values).to(target.device), symmetry.reflections)
    rows, simplexes = ([index.to(target.device) for index in part] for part in _blocks(symmetry, values))
    if symmetry.kind == PERMUTATIONS:
        number = len(rows[0]) if rows else simplexes[0].shape[-1] + 1
        return Exchange(number, tuple(rows), tuple(simplexes))

    return Flip(torch.cat(rows, 1))


def _particles(symmetry: Symmetry, values: Mapping[str, _Values]) -> Tensor:
    """The coordinates of each particle, ``(n, d)``."""
    parts = [_elements(symmetry, values[name]) for name in symmetry.blocks[0]]
    index, dim = torch.cat(parts), symmetry.dim
    if len(index) % dim or (symmetry.num_particles or len(index) // dim) * dim != len(index):
        particles = "particles" if symmetry.num_particles is None else f"{symmetry.num_particles} particles"
        raise ValueError(
            f"{symmetry!r} reads {_shapes(symmetry, values)} as {particles} in {dim} dimensions, and there are "
            f"{len(index)} values. Give num_particles and dim whose product that is, or elements= of those that are "
            "coordinates of particles."
        )

    return index.view(-1, dim)


def _blocks(symmetry: Symmetry, values: Mapping[str, _Values]) -> tuple[list[Tensor], list[Tensor]]:
    """Coordinates of each block, ``(K, m)``, and those of probabilities over the blocks, ``(n, K - 1)``."""
    if len(symmetry.blocks) > 1:
        blocks = [torch.cat([_elements(symmetry, values[name]) for name in block]) for block in symmetry.blocks]
        if len({len(block) for block in blocks}) > 1:
            cure = "Declare each block apart" if symmetry.kind != PERMUTATIONS else "Name sites of the same shapes"
            raise ValueError(
                f"{symmetry!r} needs blocks of one size; they have {[len(block) for block in blocks]} values. {cure}."
            )
        return [torch.stack(blocks)], []
    rows: list[Tensor] = []
    simplexes: list[Tensor] = []
    lengths: dict[str, int] = {}
    for name in (name for block in symmetry.blocks for name in block):
        site = values[name]
        if symmetry.kind == PERMUTATIONS and symmetry.elements is None and _is_simplex(site, symmetry.axis):
            simplexes.append(site.index.reshape(-1, site.index.shape[-1]))
            lengths[name] = site.shape[-1]
            continue
        rows.append(_split(symmetry, site))
        lengths[name] = len(rows[-1])
    if len(set(lengths.values())) > 1 or any(length != (symmetry.num_blocks or length) for length in lengths.values()):
        raise ValueError(
            f"{symmetry!r} needs as many blocks of each site; there are {lengths}. Say num_blocks=, or axis= where the "
            "blocks lie along another axis, or declare the sites apart where they are not tied to each other."
        )
    if min(lengths.values()) < 2 and symmetry.kind == PERMUTATIONS:
        raise ValueError(f"{symmetry!r} has one block only, of {_shapes(symmetry, values)}; two are needed to trade.")

    return rows, simplexes


def _is_simplex(site: _Values, axis: int) -> bool:
    """Whether this axis holds probabilities, with a coordinate less than there are of them."""
    shape, index = site.shape, site.index.shape
    has_one_less = len(shape) == len(index) > 0 and shape[:-1] == index[:-1] and shape[-1] == index[-1] + 1

    return has_one_less and (len(shape) == 1 or axis in (-1, len(shape) - 1))


def _split(symmetry: Symmetry, site: _Values) -> Tensor:
    """The coordinates of one site in equal blocks, ``(K, m)``."""
    index = _elements(symmetry, site) if symmetry.elements is not None else site.index
    if symmetry.num_blocks is None and symmetry.kind != PERMUTATIONS:
        return _elements(symmetry, site)[None]
    axis = symmetry.axis
    # Rows of a matrix of probabilities may trade places, though no probability has a coordinate of its own.
    if site.shape[axis : axis + 1] != site.index.shape[axis : axis + 1] or symmetry.kind != PERMUTATIONS:
        _elements(symmetry, site)
    if not -index.dim() <= axis < index.dim():
        blocks = ", ".join(f"({name!r},)" for name in symmetry.blocks[0])
        cure = f"Where sites are the blocks, name each as one: {symmetry.kind}({blocks})." if not index.dim() else ""
        cure = cure if len(symmetry.blocks[0]) > 1 else ""
        raise ValueError(
            f"{symmetry!r}: site {site.name!r} has the shape {tuple(index.shape)}, without an axis {axis}. "
            f"{cure or 'Give axis= of the values of the site, or leave the site out.'}"
        )
    moved = index.movedim(axis, 0)
    number = symmetry.num_blocks or len(moved)
    if len(moved) % number:
        raise ValueError(
            f"{symmetry!r}: axis {axis} of site {site.name!r} has the length {len(moved)}, which {number} equal blocks "
            f"do not make up; the shape is {tuple(index.shape)}. Give num_blocks= that divides it."
        )

    return moved.reshape(number, -1)


def _elements(symmetry: Symmetry, site: _Values) -> Tensor:
    """The coordinates of the values that take part, flattened."""
    if not site.is_plain:
        raise ValueError(
            f"{symmetry!r}: the values of site {site.name!r} have the shape {tuple(site.shape)} and its unconstrained "
            f"coordinates the shape {tuple(site.index.shape)}, so that no value has a coordinate of its own. Leave the "
            "site out, or write it by latents that have one each."
        )
    index = site.index.reshape(-1)
    if symmetry.elements is None:
        return index
    if max(symmetry.elements) >= len(index):
        raise ValueError(
            f"{symmetry!r}: elements go up to {max(symmetry.elements)}, and site {site.name!r} has {len(index)} "
            f"values, counted from 0, of the shape {tuple(site.shape)}."
        )

    return index[torch.tensor(symmetry.elements)]


def _check_real(declared: Declared, values: Mapping[str, _Values], target: Target) -> None:
    """Refuse signs and rotations of values that are not their own coordinates: those have a bound, or a turn."""
    # No random numbers: this is asked again by whoever looks at draws.
    z = torch.linspace(-1.5, 1.5, 2 * target.dim, dtype=target.dtype, device=target.device).view(2, -1)
    inside = target.constrain(z)
    for name in (name for block in declared.symmetry.blocks for name in block):
        coordinates = z[:, values[name].index.reshape(-1).to(z.device)]
        value = inside[name].reshape(2, -1).to(coordinates)
        if value.shape != coordinates.shape or not torch.allclose(value, coordinates, rtol=1e-4, atol=1e-4):
            support = target.supports.get(name, "bounded")
            raise ValueError(
                f"{declared.symmetry!r}: site {name!r} is not on the whole real line, its support is {support}, and "
                "its values have no mirror image there. Leave the site out."
            )


def _shapes(symmetry: Symmetry, values: Mapping[str, _Values]) -> str:
    """The sites with their shapes, in words."""
    return ", ".join(f"{name!r} {tuple(values[name].shape)}" for block in symmetry.blocks for name in block)


def num_copies(action: Flip | Exchange | Rotation) -> float:
    """How many copies a symmetry makes of a point; infinity for rotations.

    Example:
        >>> num_copies(Flip(torch.tensor([[0], [1]])))
        4.0
    """
    if isinstance(action, Flip):
        return 2.0 ** len(action.rows)

    return math.exp(math.lgamma(action.num_components + 1)) if isinstance(action, Exchange) else math.inf

r"""Symmetries of a density that its author knows, in words: sign flips, permutations of blocks, rotations of particles.

.. math:: \gamma(g z) = \gamma(z) \quad \text{for all } g \in G.

What is declared is checked at the density, before anything is trained and at the posterior draws. Log evidence and
draws are those of the whole space, with all copies: to declare a symmetry changes how a posterior is explored and
fitted, never what the result is. A translation is none of them: a density that stays the same when all is shifted has
no integral. Leave the centre out of the coordinates, or give it a proper density.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyro_osds.runtime.arguments import check_counts, check_switches, plain

SIGN_FLIPS, PERMUTATIONS, ROTATIONS = "sign_flips", "permutations", "rotations"
_KINDS = (SIGN_FLIPS, PERMUTATIONS, ROTATIONS)
# Dimensions in which a system of particles can be turned by the frames that there are.
_DIMS = (2, 3)


@dataclass(frozen=True, repr=False)
class Symmetry:
    """One symmetry as :func:`sign_flips`, :func:`permutations` or :func:`rotations` states it.

    Arguments:
        kind: ``"sign_flips"``, ``"permutations"`` or ``"rotations"``.
        blocks: Sites that make up each block; a single block is split along an axis.
        num_blocks: Into how many parts a single block is split; None for the default of the kind.
        axis: The axis of the values of each site along which it is split.
        elements: Elements of the flattened values that take part; None for all.
        num_particles: How many particles are turned; None for as many as the values make up.
        dim: The dimension of the space in which particles are turned.
        reflections: Whether mirror images of all particles have the same density, too.

    Example:
        >>> Symmetry("sign_flips", (("w",),))
        sign_flips('w')
    """

    kind: str
    blocks: tuple[tuple[str, ...], ...]
    num_blocks: int | None = None
    axis: int = 0
    elements: tuple[int, ...] | None = None
    num_particles: int | None = None
    dim: int = 2
    reflections: bool = True

    def __repr__(self) -> str:
        sites = self.blocks[0] if len(self.blocks) == 1 else self.blocks
        said = [repr(site) for site in sites]
        optional = ["num_blocks", "axis", "elements"]
        if self.kind == ROTATIONS:
            optional = ["num_particles", "elements", "reflections"]
            said.append(f"dim={self.dim}")
        for name in optional:
            value = getattr(self, name)
            if value != getattr(type(self), name):
                said.append(f"{name}={list(value) if isinstance(value, tuple) else value!r}")

        return f"{self.kind}({', '.join(said)})"


def sign_flips(
    *sites: str | Sequence[str], num_blocks: int | None = None, axis: int = 0, elements: Sequence[int] | None = None
) -> Symmetry:
    """Values that may all change their signs together, or block by block.

    Arguments:
        sites: Names of sites whose values change their signs together; ``"z"`` is the vector of ``from_log_prob``. A
            sequence of names instead is a block, and each block may change its signs by itself.
        num_blocks: Into how many equal blocks the sites are split along ``axis``, each with signs of its own. Default:
            one, all values together.
        axis: The axis of the values of each site that is split.
        elements: Indices into the flattened values of a single site, if only these take part; they are split in order.

    Returns:
        What ``symmetries=`` of :class:`~pyro_osds.OSDS` takes, alone or in a list.

    Raises:
        TypeError: If sites are no names.
        ValueError: If numbers are out of range.

    Example:
        Two modes far apart, a well each:

        >>> import pyro, torch
        >>> from pyro_osds import OSDS
        >>> from pyro_osds.symmetries import sign_flips
        >>> def wells(z):
        ...     return torch.logaddexp(-0.5 * (z - 9.0).square().sum(-1), -0.5 * (z + 9.0).square().sum(-1))
        >>> pyro.set_rng_seed(0)
        >>> osds = OSDS.from_log_prob(wells, dim=2, symmetries=sign_flips("z"), disable_progbar=True)
        >>> osds.run()
        >>> print(f"{osds.log_evidence:.2f}")  # exact: log(4 pi) = 2.53
        2.53
        >>> positive = (osds.get_samples()["z"][:, 0] > 0).double().mean()
        >>> print(f"{positive:.1f}")
        0.5
    """
    return _splittable(SIGN_FLIPS, sites, num_blocks, axis, elements)


def permutations(
    *sites: str | Sequence[str], num_blocks: int | None = None, axis: int = 0, elements: Sequence[int] | None = None
) -> Symmetry:
    """Equal blocks of values that may trade places.

    Arguments:
        sites: Names of sites that are split along ``axis``, and whose parts trade places together; ``"z"`` is the
            vector of ``from_log_prob``. Or two and more sequences of names, each of them a block.
        num_blocks: Into how many equal blocks they are split. Default: as many as the axis is long.
        axis: The axis of the values of each site that is split; probabilities are split along their last one.
        elements: Indices into the flattened values of a single site, if only these take part; they are split in order.

    Returns:
        What ``symmetries=`` of :class:`~pyro_osds.OSDS` takes, alone or in a list.

    Raises:
        TypeError: If sites are no names.
        ValueError: If numbers are out of range, or there is one block only.

    Example:
        >>> permutations("locs", "scales")
        permutations('locs', 'scales')
        >>> permutations("z", num_blocks=13)  # thirteen particles in one vector
        permutations('z', num_blocks=13)
        >>> permutations(("loc_1", "scale_1"), ("loc_2", "scale_2"))
        permutations(('loc_1', 'scale_1'), ('loc_2', 'scale_2'))
    """
    found = _splittable(PERMUTATIONS, sites, num_blocks, axis, elements)
    if found.num_blocks == 1:
        raise ValueError("permutations needs at least two blocks that trade places, got num_blocks=1.")

    return found


def rotations(
    *sites: str,
    num_particles: int | None = None,
    dim: int,
    elements: Sequence[int] | None = None,
    reflections: bool = True,
) -> Symmetry:
    """Particles that may be turned around the origin together, and seen in a mirror.

    Arguments:
        sites: Names of sites whose values, flattened one after the other, are ``(num_particles, dim)``; ``"z"`` is the
            vector of ``from_log_prob``.
        num_particles: How many particles there are. Default: as many as the values make up.
        dim: The dimension of their space, 2 or 3.
        elements: Indices into the flattened values of a single site, if only these take part.
        reflections: Whether the density is the same for mirror images, too.

    Returns:
        What ``symmetries=`` of :class:`~pyro_osds.OSDS` takes, alone or in a list.

    Raises:
        TypeError: If sites are no names.
        ValueError: If ``dim`` is neither 2 nor 3.

    Example:
        A ring:

        >>> import pyro, torch
        >>> from pyro_osds import OSDS
        >>> from pyro_osds.symmetries import rotations
        >>> def ring(z):
        ...     return -0.5 * ((z.norm(dim=-1) - 5.0) / 0.5).square()
        >>> pyro.set_rng_seed(0)
        >>> turned = rotations("z", num_particles=1, dim=2)
        >>> osds = OSDS.from_log_prob(ring, dim=2, symmetries=turned, disable_progbar=True)
        >>> osds.run()
        >>> print(f"{osds.log_evidence:.2f}")  # exact: log(2 pi 5 0.5 sqrt(2 pi)) = 3.67
        3.67
    """
    symmetry = _splittable(ROTATIONS, sites, None, 0, elements)
    if len(symmetry.blocks) > 1:
        raise TypeError(f"rotations takes names of sites, such as rotations('x', dim=3); got {list(symmetry.blocks)}.")
    num_particles, dim = plain(num_particles), plain(dim)
    check_counts({"dim": dim} | ({} if num_particles is None else {"num_particles": num_particles}))
    check_switches({"reflections": reflections})
    if dim not in _DIMS:
        raise ValueError(
            f"rotations needs dim=2 or dim=3, the dimension of the particles' space, got {dim}. In another one, leave "
            "the symmetry out."
        )

    return Symmetry(
        ROTATIONS,
        symmetry.blocks,
        elements=symmetry.elements,
        num_particles=num_particles,
        dim=dim,
        reflections=reflections,
    )


def check_symmetries(given: Any) -> tuple[Symmetry, ...]:
    """Symmetries as a tuple, whether there is one of them or a sequence.

    Raises:
        TypeError: If something else is among them.

    Example:
        >>> check_symmetries(sign_flips("w"))
        (sign_flips('w'),)
    """
    if given is None:
        return ()
    several = (given,) if isinstance(given, Symmetry) else given
    is_sequence = isinstance(several, Sequence) and not isinstance(several, str)
    wrong = [each for each in several if not isinstance(each, Symmetry)] if is_sequence else [several]
    if wrong:
        name = getattr(wrong[0], "__name__", "")
        call = f" Call it with the names of sites: {name}('w')." if name in _KINDS and callable(wrong[0]) else ""
        raise TypeError(
            "symmetries takes what the functions of pyro_osds.symmetries return, one or a list, such as "
            f"symmetries=[sign_flips('w')]; got {wrong[0]!r}.{call}"
        )

    return tuple(several)


def _splittable(kind: str, sites: Sequence[Any], num_blocks: Any, axis: Any, elements: Any) -> Symmetry:
    """What all kinds have in common, checked."""
    blocks = _blocks(kind, sites)
    num_blocks, axis = plain(num_blocks), plain(axis)
    if num_blocks is not None:
        check_counts({"num_blocks": num_blocks})
    if isinstance(axis, bool) or not isinstance(axis, int):
        raise ValueError(f"axis must be an integer, got {axis!r}.")
    if len(blocks) > 1 and (num_blocks is not None or axis != 0 or elements is not None):
        raise ValueError(
            f"{kind}{blocks} names its blocks, which are not split: leave out num_blocks, axis and elements."
        )
    if elements is not None:
        elements = _indices(kind, blocks, elements)

    return Symmetry(kind, blocks, num_blocks, axis, elements)


def _blocks(kind: str, sites: Sequence[Any]) -> tuple[tuple[str, ...], ...]:
    """Names of sites by block."""
    are_names = all(isinstance(site, str) for site in sites)
    are_blocks = all(
        isinstance(site, Sequence)
        and not isinstance(site, str)
        and site
        and all(isinstance(name, str) for name in site)
        for site in sites
    )
    if not sites or not (are_names or are_blocks):
        raise TypeError(
            f"{kind} takes names of sites, such as {kind}('w'{', dim=3' if kind == ROTATIONS else ''}); got "
            f"{', '.join(map(repr, sites)) or 'none'}."
        )
    blocks = (tuple(sites),) if are_names else tuple(tuple(site) for site in sites)
    names = [name for block in blocks for name in block]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{kind} names the site {twice!r} twice; name each site once.")
    if kind == PERMUTATIONS and not are_names and len(blocks) == 1:
        raise ValueError(
            f"permutations got one block, {blocks[0]}, and needs two to trade places: name the others, or write "
            f"permutations({', '.join(map(repr, blocks[0]))}) to split these sites."
        )

    return blocks


def _indices(kind: str, blocks: tuple[tuple[str, ...], ...], elements: Any) -> tuple[int, ...]:
    """Elements of a single site."""
    if len(blocks[0]) > 1:
        raise ValueError(f"elements belong to a single site; {kind} got {', '.join(map(repr, blocks[0]))}.")
    indices = [plain(element) for element in elements]
    good = all(isinstance(index, int) and not isinstance(index, bool) and index >= 0 for index in indices)
    if not good or not indices or len(set(indices)) < len(indices):
        raise ValueError(f"elements must be different integers from 0 on, got {indices}.")

    return tuple(indices)

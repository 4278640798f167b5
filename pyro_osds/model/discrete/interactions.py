"""What depends on which element of a discrete latent, seen by changing one element after the other in plain runs.

Only where elimination was found to be wrong, or has failed: to say which sites are the reason, and what cures it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_osds.model.discrete.assignments import Discrete, some_indices, values_at
from pyro_osds.model.discrete.factors import aligned, plates, same
from pyro_osds.model.pyro_internals import is_in_markov_scope

# Joint values at which elements are changed, and elements of a site that are.
_NUM_BASES, _MAX_ELEMENTS = 5, 64
# Elements that are held against one of them, to see whether both are read together.
_MAX_OTHERS = 32

HISTORY, PLATE, ELEMENTS, VECTOR = "history", "plate", "elements", "vector"

Evaluate = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Log densities by site, ``(M, *batch_shape)``, of plain runs at values by discrete latent, ``(M, *shape)``."""


@dataclass(frozen=True)
class Interaction:
    """A site depends on a discrete latent in a way that elimination does not see.

    Arguments:
        discrete: The discrete latent.
        reader: The site, or the discrete latent itself where its elements have no plate.
        kind: ``"history"``: further back in a chain than ``pyro.markov`` lets see; ``"plate"``: from outside of its
            plate; ``"elements"``: on another element of the plate that both share; ``"vector"``: its elements have no
            plate.
        num_read: On how many of its elements one element of the reader depends at most.
        num_elements: How many elements it has.
        is_sum: Whether the reader's log density is a sum over the elements, as that of an event of independent ones is.
        in_plates: Whether all elements lie in plates.
        num_rows: How many elements the reader has.
        num_together: How many elements a sum has to go over together, where each is a site of its own.
    """

    discrete: str
    reader: str
    kind: str
    num_read: int
    num_elements: int
    is_sum: bool = False
    in_plates: bool = True
    num_rows: int = 1
    num_together: int = 1


def interactions(
    evaluate: Evaluate,
    sites: Sequence[Discrete],
    nodes: Mapping[str, Any],
    rounding: float,
    special: Mapping[str, Tensor] | None = None,
) -> list[Interaction]:
    """All that elimination would not see.

    Arguments:
        evaluate: Runs the model.
        sites: The discrete latents.
        nodes: All sites of a plain run, by name.
        rounding: By what share of their size, or of one, two equal densities may differ.
        special: Joint values at which elimination was seen to be wrong, as indices of one.
    """
    base = _bases(sites, special or {})
    before = evaluate(values_at(sites, base))
    found = []
    for site in sites:
        moved = _moved(evaluate, sites, site, base, before, rounding)
        found += [seen for name in moved if (seen := _interaction(site, nodes, name, moved[name])) is not None]

    return found


def _bases(sites: Sequence[Discrete], special: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Joint values at which elements are changed: the first of all, the last, any, and those where something was seen.

    The first and the last value of all are special where sites count or compare.
    """
    base = some_indices(sites, _NUM_BASES)
    for name in base.keys() & special.keys():
        base[name][-1] = special[name]

    return base


def is_sum_over(
    evaluate: Evaluate,
    sites: Sequence[Discrete],
    site: Discrete,
    reader: str,
    rounding: float,
    special: Mapping[str, Tensor] | None = None,
) -> bool:
    r"""Whether a log density depends on the elements of a discrete latent one by one, as a sum would.

    .. math:: f(x_i', x_j') - f(x_i', x_j) - f(x_i, x_j') + f(x_i, x_j) = 0

    Arguments:
        evaluate: Runs the model.
        sites: The discrete latents.
        site: The one in question.
        reader: The site whose log density it is.
        rounding: By what share of their size, or of one, two equal densities may differ.
        special: Joint values at which elimination was seen to be wrong, as indices of one.
    """
    total = site.elements.numel()
    if total < 2 or site.num_values < 2:
        return False
    others = torch.linspace(1, total - 1, min(total - 1, _MAX_OTHERS)).round().long().tolist()
    bases = _bases(sites, special or {})
    # The bases, with the first element changed, with each of the others, and with both.
    each = 2 + 2 * len(others)
    changed = {name: rows.repeat_interleave(each, 0) for name, rows in bases.items()}
    flat = changed[site.name].reshape(_NUM_BASES, each, total)
    for base in flat:
        base[1] = _next(base[1], 0, site)
        for row, other in enumerate(others):
            base[2 + row] = _next(base[0], other, site)
            base[2 + len(others) + row] = _next(base[1], other, site)
    density = evaluate(values_at(sites, changed))[reader]
    density = density.reshape(_NUM_BASES, each, *density.shape[1:])
    before, first = density[:, :1], density[:, 1:2]
    rest = density[:, 2:].reshape(_NUM_BASES, 2, len(others), *density.shape[2:])
    # Where nothing changes, nothing is told.
    is_told = not same(first.expand_as(density), density, rounding).all()
    size = rounding * (1.0 + density.nan_to_num(0.0, 0.0, 0.0).abs().max().item())

    return is_told and bool(same(rest[:, 1] - first, rest[:, 0] - before, size).all())


def _next(row: Tensor, element: int, site: Discrete) -> Tensor:
    """The same indices with another value of one element."""
    row = row.clone()
    row[element] = (row[element] + 1) % site.num_values

    return row


def _moved(
    evaluate: Evaluate,
    sites: Sequence[Discrete],
    site: Discrete,
    base: Mapping[str, Tensor],
    before: Mapping[str, Tensor],
    rounding: float,
) -> dict[str, Tensor]:
    """Which elements of each site change with each element of one discrete latent, ``(E, *batch_shape)``."""
    total = site.elements.numel()
    # The same ones every time, spread over the site.
    looked_at = torch.linspace(0, max(total - 1, 0), min(total, _MAX_ELEMENTS)).round().long().tolist()
    if site.num_values < 2 or not looked_at:
        return {}
    step = 1 + torch.randint(
        site.num_values - 1, (_NUM_BASES, len(looked_at)), generator=torch.Generator().manual_seed(1)
    )
    # One row for each element, below each other for each of the joint values.
    changed = {name: rows.repeat_interleave(len(looked_at), 0) for name, rows in base.items()}
    flat = changed[site.name].reshape(_NUM_BASES, len(looked_at), total)
    for row, element in enumerate(looked_at):
        flat[:, row, element] = (flat[:, row, element] + step[:, row]) % site.num_values
    after = evaluate(values_at(sites, changed))
    moved = {}
    for name, log_prob in after.items():
        shape = log_prob.shape[1:]
        rows = log_prob.reshape(_NUM_BASES, len(looked_at), *shape)
        kept = same(rows, before[name].reshape(_NUM_BASES, 1, *shape), rounding).all(0)
        moved[name] = torch.zeros(total, *shape, dtype=torch.bool)
        moved[name][looked_at] = ~kept.cpu()

    return moved


def _interaction(site: Discrete, nodes: Mapping[str, Any], name: str, moved: Tensor) -> Interaction | None:
    """What is wrong with one site's dependence on one discrete latent; None where elimination sees it."""
    node, reader = nodes[site.name], nodes[name]
    total = site.elements.numel()
    num_read = int(moved.reshape(total, -1).sum(0).max()) if moved.numel() else 0
    if name == site.name:
        kind = VECTOR if _has_no_plate(site, node) else None
    elif not moved.any():
        kind = None
    elif not is_in_markov_scope(node, reader):
        kind = HISTORY
    elif plates(node).keys() - plates(reader).keys():
        kind = PLATE
    else:
        kind = ELEMENTS if _is_mixed(site, moved) else None

    if kind is None:
        return None
    in_plates, num_rows = not _has_no_plate(site, node), moved[:1].numel()

    return Interaction(
        site.name, name, kind, num_read, total, False, in_plates, num_rows, max(num_read, _num_together(moved))
    )


def _num_together(moved: Tensor) -> int:
    """How many elements a sum over one after the other has to go over together, the most convenient ones first."""
    columns = moved.reshape(len(moved), -1).T.unique(dim=0)
    groups = [set(column.nonzero()[:, 0].tolist()) for column in columns]
    most = 0
    while any(groups):
        neighbours = {i: set().union(*(group for group in groups if i in group)) for i in set().union(*groups)}
        next_ = min(neighbours, key=lambda i: len(neighbours[i]))
        most = max(most, len(neighbours[next_]))
        groups = [group for group in groups if next_ not in group] + [neighbours[next_] - {next_}]

    return most


def _has_no_plate(site: Discrete, node: Mapping[str, Any]) -> bool:
    """Whether a discrete latent has elements along a dimension that no plate declares."""
    batch, dims = site.elements[: site.nesting], set(plates(node).values())
    is_event = site.elements[site.nesting :].numel() > 1

    return is_event or any(size > 1 and axis - len(batch) not in dims for axis, size in enumerate(batch))


def _is_mixed(site: Discrete, moved: Tensor) -> bool:
    """Whether an element of the reader depends on an element in another place of the plates."""
    rank = max(moved.dim() - 1, len(site.elements))
    rows = aligned(moved, rank)
    if not site.elements:
        return False
    places = torch.stack(torch.meshgrid(*[torch.arange(size) for size in site.elements], indexing="ij"), -1)
    for element, place in enumerate(places.reshape(-1, len(site.elements)).tolist()):
        for axis, here in enumerate(place, rank - len(site.elements)):
            num_others = rows.shape[axis + 1]
            others = torch.tensor([i for i in range(num_others) if i != here or num_others == 1], dtype=torch.long)
            if site.elements[axis - rank] > 1 and rows[element].index_select(axis, others).any():
                return True

    return False

r"""Are enumerated densities those of plain runs?

Elimination takes each element of a plate for a copy of its own. With :math:`x_{d,i}` the element *i* of discrete latent
*d*, the density of site *s* at the element *j* of its plates has to be

.. math:: f_{s,j}(x) = F_{s,j}\big[x_{d,j} : d \in \mathrm{parents}(s)\big]

where *F* is its enumerated density, and *j* names an element of *d* because *s* lies in all the plates of *d*. Both are
looked at: the plates of whatever *F* depends on, and *f* of plain runs at a few joint values *x*.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_osds.model.discrete.enumeration import packed
from pyro_osds.model.pyro_internals import enumerated_symbol, packed_log_prob


def beyond_plates(sites: Iterable[Any]) -> list[tuple[str, str]]:
    """Pairs of a discrete latent and a site that depends on it from outside of its plates.

    Arguments:
        sites: Sites of one enumerated run, each with its ``log_prob``.

    Raises:
        ValueError: If a density has a dimension that belongs neither to a plate nor to a discrete latent.
    """
    trace = packed(sites)
    owners = _owners(trace)
    pairs = []
    for name, site in trace.nodes.items():
        for symbol in packed_log_prob(site)[1]:
            if symbol in owners and plates(trace.nodes[owners[symbol]]).keys() - plates(site).keys():
                pairs.append((owners[symbol], name))

    return pairs


def differing(
    sites: Iterable[Any], plain: Mapping[str, Tensor], indices: Mapping[str, Tensor], rounding: float
) -> list[str]:
    """Sites whose enumerated density is another one than that of plain runs.

    Arguments:
        sites: Sites of one enumerated run, none of which is beyond the plates of what it depends on.
        plain: Log densities by site at some joint values, ``(M, *batch_shape)``.
        indices: The joint values of what is enumerated, as indices, ``(M, *elements)``.
        rounding: By what share of their size, or of one, two equal densities may differ.
    """
    trace = packed(sites)
    owners = _owners(trace)
    names = []
    for name, site in trace.nodes.items():
        log_prob, symbols = packed_log_prob(site)
        frames = {trace.plate_to_symbol[f.name]: f.dim for f in site["cond_indep_stack"] if f.vectorized}
        read = {owners[symbol] for symbol in symbols if symbol in owners}
        ranks = [plain[name].dim() - 1, *(-dim for dim in frames.values()), *(indices[d].dim() - 1 for d in read)]
        places = []
        for axis, symbol in enumerate(symbols):
            if symbol in owners:
                places.append(aligned(indices[owners[symbol]], max(ranks)))
            else:
                places.append(torch.arange(log_prob.shape[axis]).reshape(-1, *(1,) * (-frames[symbol] - 1)))
        if not _close(log_prob[tuple(places)] if places else log_prob, aligned(plain[name], max(ranks)), rounding):
            names.append(name)

    return names


def plates(site: Mapping[str, Any]) -> dict[str, int]:
    """The plates of a site with more than one element, and their dimensions; copies of one element are that one."""
    return {frame.name: frame.dim for frame in site["cond_indep_stack"] if frame.vectorized and frame.size != 1}


def aligned(rows: Tensor, rank: int) -> Tensor:
    """Rows ``(M, *shape)`` whose shapes have ``rank`` dimensions, filled up from the left."""
    return rows.reshape(len(rows), *(1,) * (rank - rows.dim() + 1), *rows.shape[1:])


def same(got: Tensor, expected: Tensor, rounding: float) -> Tensor:
    """Where two log densities are equal but for rounding; infinities and what is not a number are equal, too."""
    size = torch.maximum(got.abs(), expected.abs()).clamp(min=1.0)
    both = got.isfinite() & expected.isfinite()
    close = (got - expected).abs() <= rounding * size

    return torch.where(both, close, (got == expected) | (got.isnan() & expected.isnan()))


def _close(got: Tensor, expected: Tensor, rounding: float) -> bool:
    try:
        got, expected = torch.broadcast_tensors(got, expected)
    except RuntimeError:
        return False

    return bool(same(got, expected, rounding).all())


def _owners(trace: Any) -> dict[str, str]:
    """Discrete latents by the letter of their dimension."""
    symbols = {enumerated_symbol(site): name for name, site in trace.nodes.items()}

    return {symbol: name for symbol, name in symbols.items() if symbol is not None}

r"""Are enumerated densities those of plain runs?

Elimination takes each element of a plate for a copy of its own. With :math:`x_{d,i}` the element *i* of discrete latent
*d*, the density of site *s* at the element *j* of its plates has to be

.. math:: f_{s,j}(x) = F_{s,j}\big[x_{d,j} : d \in \mathrm{parents}(s)\big]

where *F* is its enumerated density, and *j* names an element of *d* because *s* lies in all the plates of *d*. Both are
looked at: the plates of whatever *F* depends on, and *f* of plain runs at a few joint values *x*.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_osds.model.discrete.enumeration import packed
from pyro_osds.model.pyro_internals import enumerated_symbol, packed_log_prob

# Below this log density, a probability may have been rounded to zero on its way.
_UNDERFLOWS = -80.0


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


@dataclass(frozen=True)
class Enumerated:
    """Log densities of an enumerated run, and which of their dimensions is whose.

    Arguments:
        log_probs: By site, ``(*, *dims)``, with a dimension for each letter.
        letters: The letters of each site's dimensions.
        frames: Of each site, its plates by letter, as dimensions from the right.
        owners: Discrete latents by letter.
    """

    log_probs: Mapping[str, Tensor]
    letters: Mapping[str, str]
    frames: Mapping[str, Mapping[str, int]]
    owners: Mapping[str, str]


@dataclass(frozen=True)
class Rounding:
    """By how much two equal densities may differ.

    Arguments:
        share: By what share of their size, or of one.
        lenient: Whether what is not a number, or not to be told from zero, is equal to anything alike.
        noise: By how much besides, by site.
    """

    share: float
    lenient: bool = False
    noise: Mapping[str, Tensor] = field(default_factory=dict)


def read_enumerated(sites: Iterable[Any]) -> Enumerated:
    """Log densities of some sites of one enumerated run.

    Arguments:
        sites: The sites, each with its ``log_prob``.
    """
    trace = packed(sites)
    read = {name: packed_log_prob(site) for name, site in trace.nodes.items()}
    frames = {
        name: {trace.plate_to_symbol[f.name]: f.dim for f in site["cond_indep_stack"] if f.vectorized}
        for name, site in trace.nodes.items()
    }

    return Enumerated(
        {name: pair[0] for name, pair in read.items()},
        {name: pair[1] for name, pair in read.items()},
        frames,
        _owners(trace),
    )


def differing(
    seen: Enumerated, plain: Mapping[str, Tensor], indices: Mapping[str, Tensor], case: Tensor, rounding: Rounding
) -> Tensor:
    """Which plain runs have a site whose enumerated density is another one, ``(M,)``.

    Arguments:
        seen: Densities of enumerated runs at some points, ``(C, *dims)``; no site is beyond the plates of what it
            depends on.
        plain: Log densities by site of plain runs, ``(M, *batch_shape)``.
        indices: The joint values of what is enumerated, as indices, ``(M, *elements)``.
        case: At which of the points each of them is, ``(M,)``.
        rounding: By how much two equal densities may differ.
    """
    wrong = torch.zeros(len(case), dtype=torch.bool)
    for name, log_prob in seen.log_probs.items():
        letters, frames = seen.letters[name], seen.frames[name]
        read = {seen.owners[letter] for letter in letters if letter in seen.owners}
        ranks = [plain[name].dim() - 1, *(-dim for dim in frames.values()), *(indices[d].dim() - 1 for d in read)]
        rank = max(ranks)
        places = [case.reshape(-1, *(1,) * rank)]
        for axis, letter in enumerate(letters, 1):
            if letter in seen.owners:
                places.append(aligned(indices[seen.owners[letter]], rank))
            else:
                places.append(torch.arange(log_prob.shape[axis]).reshape(-1, *(1,) * (-frames[letter] - 1)))
        noise = rounding.noise.get(name)
        equal = _equal(
            log_prob[tuple(places)],
            aligned(plain[name], rank),
            rounding,
            0.0 if noise is None else aligned(noise, rank),
        )
        wrong |= ~equal.reshape(len(case), -1).all(1).cpu()

    return wrong


def plates(site: Mapping[str, Any]) -> dict[str, int]:
    """The plates of a site with more than one element, and their dimensions; copies of one element are that one."""
    return {frame.name: frame.dim for frame in site["cond_indep_stack"] if frame.vectorized and frame.size != 1}


def aligned(rows: Tensor, rank: int) -> Tensor:
    """Rows ``(M, *shape)`` whose shapes have ``rank`` dimensions, filled up from the left."""
    return rows.reshape(len(rows), *(1,) * (rank - rows.dim() + 1), *rows.shape[1:])


def same(got: Tensor, expected: Tensor, rounding: float, lenient: bool = False, noise: Tensor | float = 0.0) -> Tensor:
    """Where two log densities are equal but for rounding; infinities and what is not a number are equal, too.

    Arguments:
        got: The one.
        expected: The other.
        rounding: By what share of their size, or of one, they may differ.
        lenient: Whether what is no number is equal to anything, and a density that underflows to one of zero.
        noise: By how much they may differ besides.
    """
    size = torch.maximum(got.abs(), expected.abs()).clamp(min=1.0)
    both = got.isfinite() & expected.isfinite()
    close = (got - expected).abs() <= rounding * size + noise
    equal = torch.where(both, close, (got == expected) | (got.isnan() & expected.isnan()))
    if not lenient:
        return equal
    unknown = got.isnan() | expected.isnan() | (got == torch.inf) | (expected == torch.inf)

    return equal | unknown | (~both & (torch.maximum(got, expected) < _UNDERFLOWS))


def _equal(got: Tensor, expected: Tensor, rounding: Rounding, noise: Tensor | float) -> Tensor:
    try:
        got, expected = torch.broadcast_tensors(got, expected)
    except RuntimeError:
        return torch.zeros(len(got), dtype=torch.bool)

    return same(got, expected, rounding.share, rounding.lenient, noise)


def _owners(trace: Any) -> dict[str, str]:
    """Discrete latents by the letter of their dimension."""
    symbols = {enumerated_symbol(site): name for name, site in trace.nodes.items()}

    return {symbol: name for symbol, name in symbols.items() if symbol is not None}

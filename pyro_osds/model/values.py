"""Values at the sites of many draws: one graph in the place of a run of the model for each batch of them.

A run of the model computes all of its densities, and values need none of them. Recorded, with what no value comes from
left out, a million draws of a regression take a hundredth of the time. Recording takes as long as a few runs, so the
first draws wait for those that have more to come.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pyro_osds.model.batching import Ladder
from pyro_osds.model.graph import MIN_BATCH, Graph, in_blocks
from pyro_osds.runtime.errors.told import first_line

# Draws that go by runs of the model first: four times as many as a posterior has by default.
_NUM_DRAWS_BEFORE = 16_384
_log = logging.getLogger(__name__)

Values = Callable[[Tensor], Mapping[str, Tensor]]
"""Maps one point ``(D,)`` to values by site."""


class _Recorded:
    """What is known of the values of one ladder: how many draws there were, and the graph once there is one."""

    def __init__(self) -> None:
        self.num_draws = 0
        self.names: tuple[str, ...] = ()
        self.graph: Graph | None = None
        self.has_failed = False


# By ladder, as long as it lives; copies, pickles and other processes begin anew.
_KNOWN: WeakKeyDictionary[Ladder, _Recorded] = WeakKeyDictionary()


def values_at(ladder: Ladder, read: Values, z: Tensor) -> dict[str, Tensor]:
    """Values of a batch of draws, by runs of the model at first, then by a graph.

    Arguments:
        ladder: How the model is run for batches; a ladder has one such function.
        read: The values of one point.
        z: Points, ``(B, D)``.

    Returns:
        ``{name: (B, *shape)}``.
    """
    known = _KNOWN.setdefault(ladder, _Recorded())
    known.num_draws += len(z)
    is_asked = known.num_draws > _NUM_DRAWS_BEFORE and len(z) >= MIN_BATCH and not torch.is_grad_enabled()
    if not is_asked or known.has_failed or not ladder.may_record:
        return ladder.map(read, z)
    if known.graph is None:
        _record(known, ladder, read, z)
    if known.graph is None:
        return ladder.map(read, z)
    with ladder.replayed():
        return dict(zip(known.names, in_blocks(known.graph, z), strict=True))


def _record(known: _Recorded, ladder: Ladder, read: Values, z: Tensor) -> None:
    """Record values at the first draws; what a graph gives that runs do not is not used."""
    # A whole block, though these draws may be fewer than later ones.
    rows = torch.arange(ladder.large_block_size, device=z.device) % len(z)
    block = z[rows]
    expected: dict[str, Tensor] = {}

    def values(block: Tensor) -> tuple[Tensor, ...]:
        expected.update(ladder.map(read, block))
        return tuple(expected.values())

    try:
        graph = ladder.record(values, block)
        # At other points than those where it was recorded.
        other = z.flip(0)[rows]
        with ladder.replayed():
            got = in_blocks(graph, other)
        expected = dict(ladder.map(read, other))
    except Exception as error:  # noqa: BLE001 - any failure means the same: no graph, values by runs of the model
        known.has_failed = True
        _log.info("values at sites are not captured: %s", first_line(error))
        return
    pairs = list(zip(got, expected.values(), strict=True))
    if all(a.dtype == b.dtype and a.shape == b.shape and _close(a, b) for a, b in pairs):
        known.names, known.graph = tuple(expected), graph
    else:
        known.has_failed = True
        _log.info("values at sites are not captured: the graph differs from runs of the model")


def _close(got: Tensor, expected: Tensor) -> bool:
    """Whether values are the same but for the order of sums."""
    if not expected.is_floating_point():
        return torch.equal(got, expected)
    digits = 0.5 * torch.finfo(expected.dtype).eps ** 0.75

    return torch.allclose(got, expected, rtol=digits, atol=digits, equal_nan=True)

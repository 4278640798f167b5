"""What draws mean at the sites of a model, some at a time: the memory is that of a chunk, however many there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_osds.runtime.chunks import stack_chunks
from pyro_osds.runtime.parallel import by_rows
from pyro_osds.target import Target

# A run of the model for many draws at once makes tensors as large as this, or a few times as large: 32 MB of doubles.
_VALUES_AT_ONCE = 2**22
# A smaller chunk spends its time in Python, and a larger one gains none.
_MIN_CHUNK, _MAX_CHUNK = 64, 8192


def by_draw(function: Callable[[Tensor], dict[str, Tensor]], target: Target, z: Tensor) -> dict[str, Tensor]:
    """What a function makes of draws, some at a time: the fewer, the more observations the target has.

    Arguments:
        function: From some draws, ``(B, D)``, to values by name, ``(B, ...)``.
        target: The target of the draws.
        z: The draws, ``(S, D)``.

    Returns:
        Values by name, ``(S, ...)``.
    """
    size = target.dim + sum(torch.as_tensor(value).numel() for value in target.observed.values())
    chunk_size = max(_MIN_CHUNK, min(_MAX_CHUNK, _VALUES_AT_ONCE // max(size, 1)))
    names: list[Any] = []

    @torch.no_grad()
    def evaluate(chunk: Tensor) -> tuple[Tensor, ...]:
        values = function(chunk)
        names[:] = values
        return tuple(values.values())

    columns = stack_chunks((by_rows(evaluate, chunk) for chunk in z.split(chunk_size)), len(z))

    return dict(zip(names, columns, strict=True))


def by_chain(values: dict[str, Tensor], num_chains: int) -> dict[str, Tensor]:
    """``(num_chains * num_samples, ...)`` to ``(num_chains, num_samples, ...)``."""
    return {name: value.unflatten(0, (num_chains, -1)) for name, value in values.items()}

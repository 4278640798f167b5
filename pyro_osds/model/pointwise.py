"""Functions of one point at the points of a batch, one after the other; where a density fails, that point has none."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_osds.model.foreign.factorisations import is_failure
from pyro_osds.model.vmap import VmapCompat
from pyro_osds.runtime.clock import check_time
from pyro_osds.runtime.source import is_foreign

Single = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps one point ``(D,)`` to its log prior and log likelihood, two scalars."""


def in_loop(read: Callable[[Tensor], Any], z: Tensor) -> Any:
    """A function at each of some points: tensors, tuples or mappings of them, stacked.

    Arguments:
        read: The function, of one point ``(D,)``.
        z: The points, ``(B, D)``.

    Example:
        >>> in_loop(lambda row: (row.sum(),), torch.ones(2, 3))
        (tensor([3., 3.]),)
    """
    results = []
    for row in z:
        check_time()
        with VmapCompat():
            results.append(read(row))
    if isinstance(results[0], dict):
        return {name: torch.stack([result[name] for result in results]) for name in results[0]}

    return tuple(torch.stack(column) for column in zip(*results, strict=True))


def or_nan(single: Single) -> Single:
    """A density that is nan at a point where linear algebra, Python or another package's solver fails.

    Arguments:
        single: The density of one point.

    Example:
        >>> or_nan(lambda row: 1 / 0)(torch.zeros(1))
        (tensor(nan), tensor(nan))
    """

    def densities(row: Tensor) -> tuple[Tensor, Tensor]:
        try:
            return single(row)
        except Exception as error:
            # Python's math raises where torch gives infinity or nan; solvers of other packages give up where an
            # equation is too stiff.
            python = isinstance(error, ArithmeticError) or "math domain error" in str(error)
            solver = isinstance(error, (AssertionError, RuntimeError, ValueError)) and is_foreign(error)
            if not (is_failure(error) or python or solver):
                raise
        nan = torch.nan * row.sum()

        return nan, nan

    return densities


def seconds_of(function: Callable[[Tensor], Any], z: Tensor) -> float:
    """What a function takes on a device, the shortest of three times, after one that does not count."""
    times = []
    for _ in range(4):
        torch.cuda.synchronize()
        start = time.perf_counter()
        function(z)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)

    return min(times[1:])

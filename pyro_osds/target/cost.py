r"""What a log density costs, counted rather than timed: plans made from it are the same on every machine.

One evaluation is seen by the dispatcher. Its *o* operations, and the *n* numbers that these read or write for a point,
give the cost in terms of a log density, such as one observation of a regression,

.. math:: c = \frac{o + n}{4}.

A matrix product counts one number for sixteen multiplications, and a part of a tensor one for eight of the whole, which
its gradient fills. Where a density has about as many terms as that, or is
small, the number of its terms stays what it is: what every model spends on its operations is no reason for a plan.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_osds.runtime.torch_internals import DispatchMode, memory_of

# Operations and numbers that take as long as one term with its gradient, 30 ns: measured costs of eleven models, 30 to
# 12,000 terms, lay within a factor of four of it.
_PER_TERM, _SECONDS = 4.0, 3e-8
# A cost beyond so many times the terms, and so many terms more, is another order of magnitude.
_FACTOR, _FREE = 2.0, 1000.0
# Multiplications of a matrix product or factorisation that take as long as one number of an elementwise function.
_PER_NUMBER = 16
_PRODUCTS = frozenset({"mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "dot"})
_FACTORISATIONS = ("linalg", "cholesky", "triangular", "lu_", "inverse")
# Parts of a tensor, whose gradients fill whole ones: numbers filled and added up for one of an elementwise function.
_PER_FILLED = 8
_PICKS = frozenset({"select", "slice", "index", "gather", "index_select", "unbind", "split"})
# Functions that go through their numbers more than once, and how often.
_PASSES = {"logsumexp": 4, "_softmax": 4, "_log_softmax": 4, "logcumsumexp": 4, "sort": 8, "lgamma": 4, "digamma": 4}


class CostCounter(DispatchMode):
    """Counts operations, and the numbers that they read or write.

    Arguments:
        num_points: Points of which the numbers are.
        num_calls: Evaluations that are counted together.

    Example:
        >>> counter, z = CostCounter(), torch.ones(100)
        >>> with counter:
        ...     _ = counter.watch(z).exp().view(10, 10) @ torch.ones(10)
        >>> counter.num_operations, counter.num_numbers
        (3, 110)
    """

    def __init__(self, num_points: int = 1, num_calls: int = 1) -> None:
        super().__init__()
        self.num_points, self.num_calls = num_points, num_calls
        self.num_operations = 0
        self.num_numbers = 0
        self._depends: set[int] = set()
        # A place in memory belongs to a tensor as long as the tensor lives.
        self._alive: list[Tensor] = []

    def watch(self, z: Tensor) -> Tensor:
        """The points themselves; what does not come from them is data, made once for all points."""
        self._depends.add(memory_of(z))

        return z

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        given, made = _tensors(args), _tensors(result if isinstance(result, (tuple, list)) else (result,))
        places = set(map(memory_of, given))
        if self._depends.isdisjoint(places):
            return result
        self.num_operations += 1
        self._depends.update(map(memory_of, made))
        self._alive += made
        name = operation.name().removeprefix("aten::").partition(".")[0]
        if name in _PICKS:
            # The gradient of a part is a tensor of the size of the whole.
            self.num_numbers += given[0].numel() // _PER_FILLED
        elif not made or memory_of(made[0]) not in places:  # a view moves no numbers
            self.num_numbers += _numbers(name, given, made)

        return result

    def terms(self, num_terms: int, times: int = 1) -> int:
        """What the density costs, in terms: those that it is known to have, or what was counted where that is far more.

        Arguments:
            num_terms: Terms that it is known to have.
            times: How often what was counted is done for one point.

        Example:
            >>> counter = CostCounter()
            >>> counter.num_operations, counter.num_numbers = 2_000, 10_000
            >>> counter.terms(10), counter.terms(2_000)
            (3000, 2000)
        """
        once = (self.num_operations + self.num_numbers / self.num_points) / self.num_calls
        counted = times * once / _PER_TERM

        return num_terms if counted < _FACTOR * num_terms + _FREE else int(counted)


def terms_in(seconds: float, num_points: int) -> int:
    """Terms that would take as long as points did: a power of eight, so that machines agree; 0 if they took no time.

    Arguments:
        seconds: What an evaluation took that nobody can look into.
        num_points: Its points.

    Example:
        >>> terms_in(1e-4, num_points=8), terms_in(5.0, num_points=8)
        (0, 16777216)
    """
    terms = seconds / num_points / _SECONDS

    return 0 if terms < _FREE else 8 ** round(math.log(terms, 8))


def _tensors(values: Any) -> list[Tensor]:
    """The tensors among arguments or results whose numbers lie in memory one after the other."""
    nested = [value if isinstance(value, (tuple, list)) else (value,) for value in values]
    flat = [value for part in nested for value in part]

    return [value for value in flat if isinstance(value, Tensor) and value.layout is torch.strided]


def _numbers(name: str, given: list[Tensor], made: list[Tensor]) -> int:
    """Numbers that an operation goes through, at least those that it makes."""
    name = name.removeprefix("aten::").partition(".")[0]
    num_made = max((x.numel() for x in made), default=0)
    if name in _PRODUCTS:
        # Data that a product reads are read once for a whole batch.
        return max(num_made, num_made * max(x.shape[-1] for x in given if x.dim()) // _PER_NUMBER)
    largest = max(given, key=Tensor.numel, default=None)
    if largest is None:
        return num_made
    if largest.dim() > 1 and any(part in name for part in _FACTORISATIONS):
        return max(num_made, largest.numel() * largest.shape[-1] // _PER_NUMBER)

    return max(num_made, largest.numel()) * _PASSES.get(name, 1)

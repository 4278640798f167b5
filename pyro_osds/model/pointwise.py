"""Functions of one point at the points of a batch, one after the other; where a density fails, that point has none."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_osds.model.foreign.factorisations import is_failure
from pyro_osds.model.foreign.saved import KeepSaved
from pyro_osds.model.vmap import VmapCompat, vmappable_pyro
from pyro_osds.runtime.clock import check_time, now
from pyro_osds.runtime.errors.lines import is_foreign
from pyro_osds.runtime.precision import in_double
from pyro_osds.runtime.workers import Sent

Single = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps one point ``(D,)`` to its log prior and log likelihood, two scalars."""

# What a density takes with its gradient, in densities.
_WITH_GRADIENT = 2.0

Weights = tuple[float | None, float | None]
"""What log prior and log likelihood count in a gradient; None for one that is not asked for."""


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

    return _stacked(results)


def _stacked(results: list[Any]) -> Any:
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


@dataclass
class OnePoint:
    """A function of one point and what has to be in force around it: all that another process needs to know.

    Arguments:
        read: The function.
        is_double: Whether it runs in double precision.
        keeps_saved: Whether it changes in place what its gradient needs.
    """

    read: Callable[[Tensor], Any]
    is_double: bool
    keeps_saved: bool

    def around(self) -> contextlib.ExitStack:
        """What has to be in force while the function runs; gradients are taken outside of it."""
        stack = contextlib.ExitStack()
        stack.enter_context(vmappable_pyro())
        if self.is_double:
            stack.enter_context(in_double())
        if self.keeps_saved and torch.is_grad_enabled():
            stack.enter_context(KeepSaved())

        return stack

    def __call__(self, row: Tensor, weights: Weights | None) -> Any:
        """Results at a point, and the gradient of their weighted sum, ``(D,)``; no gradient where no weights are."""
        with torch.set_grad_enabled(weights is not None):
            row = row.detach().requires_grad_(weights is not None)
            with self.around(), VmapCompat():
                results = self.read(row)
            if weights is None:
                return results
            factors = [None if w is None else v.new_tensor(w) for v, w in zip(results, weights, strict=True)]
            gradient = _pulled(results, factors, row)

        return tuple(result.detach() for result in results), gradient


class Loop:
    """A function at the points of a batch: one after the other, or some at once in other processes if it takes long.

    Arguments:
        point: The function.
        is_density: Whether its results are two numbers that may be differentiated.
    """

    def __init__(self, point: OnePoint, is_density: bool) -> None:
        self.point, self._is_density = point, is_density
        self._sent = Sent(point)
        # What a sampler weighs log priors and log likelihoods with; it mostly asks for the same again.
        self._weights: Weights = 1.0, 1.0

    def at(self, z: Tensor) -> Any:
        """Results at points ``(B, D)``, stacked.

        Raises:
            OutOfTimeError: If the time is over.
        """
        has_gradient = torch.is_grad_enabled() and z.requires_grad
        if z.is_cuda or (has_gradient and not self._is_density):
            return self.here(z)
        if has_gradient:
            found = self.scored(z, [self._weights] * len(z))
            return self.here(z) if found is None else _Elsewhere.apply(z, self, *found)
        rows, first = z.detach(), []
        if not self._is_density and len(z) > 1:
            # How long it takes is not known.
            first, rows = [self.here(rows[:1])], rows[1:]
        check_time()
        answers = self._sent.answers([(row, None) for row in rows.unbind()])
        rest = self.here(rows) if answers is None else _stacked(answers)
        if not first:
            return rest
        if isinstance(rest, dict):
            return {name: torch.cat([first[0][name], rest[name]]) for name in rest}

        return tuple(map(torch.cat, zip(*first, rest, strict=True)))

    def here(self, z: Tensor) -> Any:
        """Results by this process; how long they take is noted."""
        start = now()
        with self.point.around():
            results = in_loop(self.point.read, z)
        self._sent.took(now() - start, len(z))

        return results

    def scored(self, z: Tensor, weights: Sequence[Weights]) -> tuple[Tensor, ...] | None:
        """Densities ``(B,), (B,)``, gradients of weighted sums ``(B, D)``; None where this process is to do it."""
        check_time()
        answers = self._sent.answers(list(zip(z.detach().unbind(), weights, strict=True)), _WITH_GRADIENT)
        if answers is None:
            return None
        densities, gradients = zip(*answers, strict=True)

        return *_stacked(list(densities)), torch.stack(gradients)

    def expect(self, weights: Weights) -> None:
        """Gradients are asked for with other weights from now on."""
        self._weights = weights

    @property
    def expected(self) -> Weights:
        """The weights with which gradients are asked for."""
        return self._weights


class _Elsewhere(torch.autograd.Function):
    """Densities that other processes evaluated, with the gradients that were asked for last time."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, loop: Loop, log_prior: Tensor, log_likelihood: Tensor, gradients: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Log priors and log likelihoods, ``(B,)`` each."""
        ctx.save_for_backward(z, gradients)
        ctx.loop, ctx.weights = loop, loop.expected
        ctx.set_materialize_grads(False)

        return log_prior, log_likelihood

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradient of the weighted sum, by the operations that differentiate a single run."""
        z, known = ctx.saved_tensors
        loop: Loop = ctx.loop
        if torch.is_grad_enabled():
            # To be differentiated again: that takes runs with all that they keep.
            return _pulled(loop.here(z), gradients, z, again=True), None, None, None, None
        columns = [[None] * len(z) if gradient is None else gradient.tolist() for gradient in gradients]
        weights: list[Any] = list(zip(*columns, strict=True))
        if any(each != ctx.weights for each in weights):
            loop.expect(weights[0])
            found = loop.scored(z, weights)
            if found is None:
                with torch.enable_grad():
                    z = z.detach().requires_grad_()
                    known = _pulled(loop.here(z), gradients, z)
            else:
                known = found[-1]

        return known, None, None, None, None


def _pulled(results: Sequence[Tensor], factors: Sequence[Tensor | None], z: Tensor, again: bool = False) -> Tensor:
    """The gradient of a weighted sum of results, like ``z``."""
    pairs = [(v, w) for v, w in zip(results, factors, strict=True) if w is not None and v.requires_grad]
    if not pairs:
        return torch.zeros_like(z)
    values, weights = zip(*pairs, strict=True)

    return torch.autograd.grad(values, z, weights, create_graph=again, materialize_grads=True)[0]


def seconds_of(function: Callable[[Tensor], Any], z: Tensor) -> float:
    """What a function takes on a device, the shortest of three times, after one that does not count; 1 if it fails."""
    times = []
    try:
        for _ in range(4):
            torch.cuda.synchronize()
            start = time.perf_counter()
            function(z)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    except Exception:  # noqa: BLE001 - what does not run in a batch takes Python's time, in any precision
        return 1.0

    return min(times[1:])

"""Solutions of initial value problems as functions with a gradient, and as one operation each in a record."""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.library import Library

from pyro_osds.model.foreign.integration import Integration
from pyro_osds.runtime.torch_internals import without_dispatch_modes

_numbers = itertools.count()
_by_number: weakref.WeakValueDictionary[int, Integration] = weakref.WeakValueDictionary()


def _solve(number: int, y0: Tensor, taken: list[Tensor]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return _by_number[number].solve(y0, taken)


def _pull(
    number: int, gradient: Tensor, times: Tensor, states: Tensor, velocities: Tensor, taken: list[Tensor]
) -> list[Tensor]:
    with torch.no_grad():
        return _by_number[number].pull(gradient, times, states, velocities, taken)


_operations = Library("pyro_osds", "DEF")
_operations.define("solve(int number, Tensor y0, Tensor[] taken) -> (Tensor, Tensor, Tensor, Tensor, Tensor)")
_operations.define(
    "pull(int number, Tensor gradient, Tensor times, Tensor states, Tensor velocities, Tensor[] taken) -> Tensor[]"
)
_operations.impl("solve", _solve, "CompositeExplicitAutograd")
_operations.impl("pull", _pull, "CompositeExplicitAutograd")


class _Whole(Function):
    """The solution for a whole batch, and which points were given up."""

    @staticmethod
    def forward(ctx: Any, integration: Integration, y0: Tensor, *taken: Tensor) -> tuple[Tensor, Tensor]:
        ctx.integration = integration
        if integration.is_recorded:
            results = torch.ops.pyro_osds.solve(integration.number, y0, list(taken))
        else:
            results = integration.solve(y0, taken)
        solution, lost, *path = results
        ctx.save_for_backward(*path, *taken)
        ctx.mark_non_differentiable(lost)

        return solution, lost

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[Any, ...]:
        times, states, velocities, *taken = ctx.saved_tensors
        integration = ctx.integration
        if integration.is_recorded:
            pulled = torch.ops.pyro_osds.pull(integration.number, gradient, times, states, velocities, taken)
        else:
            pulled = integration.pull(gradient, times, states, velocities, taken)

        return None, *pulled


class Solution(Function):
    """The solution at the points of a batch, ``(T, *shape)`` each, and whether a point was given up."""

    @staticmethod
    def forward(integration: Integration, y0: Tensor, *taken: Tensor) -> tuple[Tensor, Tensor]:
        """A solver of one point is not for here.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("an initial value problem of a batch was asked for outside of a batch")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept: what is differentiated is the whole batch."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        """The solution for a whole batch, from arguments in whole."""
        integration, *tensors = args
        if integration.number < 0:
            integration.number = next(_numbers)
            _by_number[integration.number] = integration
        size = info.batch_size
        y0, *taken = (
            tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            for tensor, dim in zip(tensors, in_dims[1:], strict=True)
        )
        if not integration.is_recorded:
            with without_dispatch_modes():
                integration.record(y0.detach().contiguous(), [each.detach().contiguous() for each in taken])

        return _Whole.apply(integration, y0.contiguous(), *[each.contiguous() for each in taken]), (1, 0)

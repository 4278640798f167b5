"""Code that asks whether a factorisation worked: it is told yes, and points at which it did not have no density.

Libraries factorise a matrix, look whether that failed, and if so try again with a jitter. A batch cannot go both ways.
So it goes on as if nothing had failed, and notes the points at which something had.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_osds.model.pyro_internals import is_numerical
from pyro_osds.runtime.torch_internals import is_batchedtensor

FACTORISATIONS = {
    torch.linalg.cholesky_ex, torch.linalg.inv_ex, torch.linalg.solve_ex, torch.linalg.lu_factor_ex,
    torch.linalg.ldl_factor_ex,
}  # fmt: skip
"""Functions whose last result tells whether they worked: zero if so."""

# What is asked of that result on the way to a truth value.
_FOLLOWED = {
    torch.any, torch.all, torch.sum, torch.max, torch.ne, torch.eq, torch.gt, torch.lt, torch.ge, torch.le,
    torch.logical_not, torch.count_nonzero, Tensor.any, Tensor.all, Tensor.sum, Tensor.max, Tensor.amax, Tensor.ne,
    Tensor.eq, Tensor.gt, Tensor.lt, Tensor.__ne__, Tensor.__eq__, Tensor.__gt__, Tensor.__lt__, Tensor.__ge__,
    Tensor.__le__, Tensor.__invert__, Tensor.logical_not, Tensor.bool, Tensor.detach,
}  # fmt: skip
# Errors of linear_operator, which gpytorch computes with.
_FOREIGN_FAILURES = {"NotPSDError", "NanError"}


def is_failure(error: BaseException) -> bool:
    """Whether an exception says that linear algebra failed at a point, which then has no density.

    Example:
        >>> is_failure(RuntimeError("singular U.")), is_failure(KeyError("singular U."))
        (True, False)
    """
    if type(error).__name__ in _FOREIGN_FAILURES:
        return True

    return isinstance(error, RuntimeError) and is_numerical(error)


class Factorisations:
    """What was asked about factorisations in one run for a batch."""

    def __init__(self) -> None:
        # Each with what it would be if nothing failed; ids belong to tensors that live.
        self._known: dict[int, tuple[Tensor, Tensor]] = {}
        self._asked: list[tuple[Tensor, Tensor]] = []

    def __bool__(self) -> bool:
        return bool(self._known)

    def knows(self, tensor: Any) -> bool:
        """Whether a tensor tells of a factorisation in a batch."""
        return id(tensor) in self._known

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Note what tells of a factorisation, directly or not."""
        if func in FACTORISATIONS:
            info = result[-1]
            if is_batchedtensor(info):
                self._known[id(info)] = info, torch.zeros(info.shape, dtype=info.dtype, device=info.device)
        elif func in _FOLLOWED and args and self.knows(args[0]) and _is_batched(result):
            self._known[id(result)] = result, func(self._known[id(args[0])][1], *args[1:], **kwargs)

    def taken_as_done(self, tensor: Tensor) -> Tensor:
        """What a tensor would be if nothing had failed; from now on it counts where that is not so."""
        self._asked.append(self._known[id(tensor)])

        return self._known[id(tensor)][1]

    def note(self, failed: Tensor) -> None:
        """Something else failed at the points where this is true."""
        self._asked.append((failed, torch.zeros(failed.shape, dtype=failed.dtype, device=failed.device)))

    def failed(self, like: Tensor) -> Tensor | None:
        """Whether something that was asked about failed, a scalar for each point; None where nothing was asked."""
        if not self._asked:
            return None
        failed = torch.zeros((), dtype=torch.bool, device=like.device)
        for value, done in self._asked:
            failed = failed | value.ne(done).any()

        return failed


def _is_batched(value: Any) -> bool:
    return isinstance(value, Tensor) and is_batchedtensor(value)

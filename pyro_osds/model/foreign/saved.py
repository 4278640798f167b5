"""What autograd keeps for a gradient, as it was when it was kept, whatever is changed in place afterwards.

Plain torch refuses the gradient of ``a = x * y; y += 1``: it would need *y* as it was. Here *y* is copied at the moment
at which it is changed, and only if a gradient still needs it.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from pyro_osds.runtime.torch_internals import DispatchMode, is_mutable, memory_of, written_arguments

_CHANGED = (
    "modified by an inplace operation",
    "is a view and its base or another view of its base has been modified inplace",
    "is being used in an in-place operation",
    "is a view and is being modified inplace",
)


def is_about_changes(error: BaseException) -> bool:
    """Whether autograd refused a gradient because something was changed in place.

    Example:
        >>> x, y = torch.ones(1, requires_grad=True), torch.ones(1)
        >>> a = x * y
        >>> y += 1
        >>> try:
        ...     a.backward()
        ... except RuntimeError as error:
        ...     is_about_changes(error)
        True
    """
    return any(words in str(error) for words in _CHANGED)


class _Kept:
    """A tensor that a gradient needs."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class KeepSaved(DispatchMode):
    """Gradients of what is computed in here need nothing that was changed since.

    Example:
        >>> x, y = torch.ones(1, requires_grad=True), torch.ones(1)
        >>> with KeepSaved():
        ...     a = x * y
        ...     y += 1
        >>> torch.autograd.grad(a, x)
        (tensor([1.]),)
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[int, list[weakref.ref[_Kept]]] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)

    def __enter__(self) -> KeepSaved:
        self._hooks.__enter__()
        super().__enter__()

        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._hooks.__exit__(*error)
        self._kept.clear()

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if is_mutable(operation):
            written = [*written_arguments(operation, args), (kwargs or {}).get("out")]
            for tensor in written:
                if isinstance(tensor, Tensor):
                    self._copy(tensor)

        return operation(*args, **(kwargs or {}))

    def _pack(self, tensor: Tensor) -> _Kept:
        kept = _Kept(tensor)
        self._kept.setdefault(memory_of(tensor), []).append(weakref.ref(kept))

        return kept

    def _copy(self, tensor: Tensor) -> None:
        """What gradients need of a tensor's memory is copied before it is written to."""
        for reference in self._kept.pop(memory_of(tensor), ()):
            kept = reference()
            if kept is not None:
                kept.tensor = kept.tensor.clone()


def _unpack(kept: _Kept) -> Tensor:
    return kept.tensor

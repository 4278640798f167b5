"""Tensors that a model fills in: masks that differ from point to point, and tensors that become part of a batch.

A batch has a mask of its own for each point, so ``x[mask] = value`` becomes a ``where`` over what the rest of the index
chooses. A tensor that is the same for all points, and came about where no mode of torch looks (from numpy, by
``torch.Tensor(n)``, as data), cannot take values of a batch; from the first of them on, another one stands for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_osds.runtime.torch_internals import is_batchedtensor

_BY_OPERATOR = {
    "__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__idiv__", "__ifloordiv__", "__imod__",
    "__ipow__", "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__",
}  # fmt: skip


class Joined:
    """Tensors that others stand for while the model runs.

    Arguments:
        zero: A zero of the batch.

    Example:
        >>> joined, out, ones = Joined(torch.zeros(())), torch.zeros(2), torch.ones(2)
        >>> joined.replaced(Tensor.add_, (out, ones))[0] is out  # nothing here is of a batch
        True
    """

    def __init__(self, zero: Tensor) -> None:
        self._zero = zero
        # The first one is kept, too: an id belongs to a tensor as long as the tensor lives.
        self._others: dict[int, tuple[Tensor, Tensor]] = {}

    def replaced(self, func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of a function, with what stands for them; a first one that is written to joins the batch."""
        if self._others:
            args = tuple(self._other(value) for value in args)
        if not (args and isinstance(args[0], Tensor) and is_in_place(func)):
            return args
        target, *values = args
        if is_batchedtensor(target) or not any(map(_is_of_batch, values)):
            return args
        is_flag = target.dtype == torch.bool
        other = target | self._zero.bool() if is_flag else target + self._zero.to(target.dtype)
        self._others[id(target)] = target, other

        return other, *values

    def named(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The same for arguments by name."""
        return {name: self._other(value) for name, value in kwargs.items()}

    def _other(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            found = self._others.get(id(value))
            return value if found is None else found[1]
        if type(value) in (list, tuple):
            return type(value)(self._other(each) for each in value)

        return value


def is_in_place(func: Any) -> bool:
    """Whether a function of torch changes its first argument.

    Example:
        >>> is_in_place(Tensor.add_), is_in_place(Tensor.__setitem__), is_in_place(Tensor.__add__)
        (True, True, False)
    """
    name = getattr(func, "__name__", "")

    return (name.endswith("_") and not name.endswith("__")) or name in _BY_OPERATOR


def _is_of_batch(value: Any) -> bool:
    if isinstance(value, Tensor):
        return is_batchedtensor(value)

    return isinstance(value, (list, tuple)) and any(map(_is_of_batch, value))


# ---- answers ----


def _setitem(tensor: Tensor, index: Any, value: Any) -> None:
    mask = _only_mask(index)
    if mask is None or not _is_number(value):
        tensor[index] = value
        return
    target, after = _around_mask(tensor, index, mask)
    mask = mask.reshape(mask.shape + (1,) * after)
    target.copy_(torch.where(mask, value.reshape(()) if isinstance(value, Tensor) else value, target))


def _index_put(tensor: Tensor, indices: Any, values: Tensor, accumulate: bool = False) -> Tensor:
    if accumulate or _only_mask(tuple(indices)) is None or not _is_number(values):
        return tensor.index_put_(indices, values, accumulate)
    _setitem(tensor, tuple(indices), values)

    return tensor


def _is_number(value: Any) -> bool:
    return value.numel() == 1 if isinstance(value, Tensor) else torch.as_tensor(value).dim() == 0


def _only_mask(index: Any) -> Tensor | None:
    """The one tensor of an index, if it is a mask and all else of the index is slices and numbers."""
    parts = index if isinstance(index, tuple) else (index,)
    masks = [part for part in parts if isinstance(part, Tensor) and part.dtype == torch.bool]
    others = [part for part in parts if not any(part is mask for mask in masks)]
    plain = all(part is None or part is Ellipsis or type(part) in (slice, int) for part in others)

    return masks[0] if len(masks) == 1 and plain else None


def _around_mask(tensor: Tensor, index: Any, mask: Tensor) -> tuple[Tensor, int]:
    """What an index chooses from where its mask is all true, a view, and how many dimensions follow the mask's."""
    parts = index if isinstance(index, tuple) else (index,)
    place = next(place for place, part in enumerate(parts) if part is mask)
    before, after = parts[:place], parts[place + 1 :]
    chosen = tensor[(*before, *(slice(None),) * mask.dim(), *after)]

    def kept(some: Any) -> int:
        return sum(part is None or isinstance(part, slice) for part in some)

    if any(part is Ellipsis for part in before):
        return chosen, kept(after)

    return chosen, chosen.dim() - kept(before) - mask.dim()


def _clamp_in_place(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return tensor.copy_(tensor.clone().clamp(*args, **kwargs))


def _slice_scatter(
    tensor: Tensor, src: Tensor, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Tensor:
    filled = tensor.clone()
    filled[(slice(None),) * (dim % tensor.dim()) + (slice(start, end, step),)] = src

    return filled


def _select_scatter(tensor: Tensor, src: Tensor, dim: int, index: int) -> Tensor:
    filled = tensor.clone()
    filled.select(dim, index).copy_(src)

    return filled


ANSWERS: dict[Any, Callable[..., Any]] = {
    Tensor.__setitem__: _setitem,
    Tensor.index_put_: _index_put,
    torch.Tensor.clamp_: _clamp_in_place,
    torch.slice_scatter: _slice_scatter,
    Tensor.slice_scatter: _slice_scatter,
    torch.select_scatter: _select_scatter,
    Tensor.select_scatter: _select_scatter,
}
"""What torch's functions are answered with in a batch, and in a single run with the same result."""

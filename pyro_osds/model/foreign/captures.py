"""What a function takes from outside beside its arguments, found while it runs once; and the function of that, too.

A vector field ``lambda t, y: -rate * y`` has its rate from the model around it. To differentiate it, or to run it for
other points, the rate has to be an argument.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_osds.runtime.torch_internals import function_modes, is_batchedtensor


class _Outside(TorchFunctionMode):
    """Notes tensors of a batch that torch's functions get and that did not come about in here."""

    def __init__(self, own: Sequence[Any]) -> None:
        super().__init__()
        # An id belongs to a tensor as long as the tensor lives.
        self._own = {id(leaf): leaf for leaf in _leaves(tuple(own))}
        self.found: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.note((args, kwargs))
        result = func(*args, **kwargs)
        self._own.update({id(leaf): leaf for leaf in _leaves(result) if id(leaf) not in self.found})

        return result

    def note(self, value: Any) -> None:
        """Note those of a value's tensors that come from outside."""
        for leaf in _leaves(value):
            if id(leaf) not in self._own and is_batchedtensor(leaf):
                self.found[id(leaf)] = leaf


class _Replaced(TorchFunctionMode):
    """Torch's functions get other tensors in the place of some."""

    def __init__(self, others: dict[int, Tensor], own: Sequence[Any]) -> None:
        super().__init__()
        self._others = others
        self._own = {id(leaf): leaf for leaf in (*_leaves(tuple(own)), *others.values())}
        self._entries: dict[tuple[int, int], Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = self.replaced(args)
        # The same entry of a state, asked for twice, is the same view: one operation less, backwards three.
        entry = (id(args[0]), args[1]) if func is Tensor.__getitem__ and type(args[1]) is int else None
        if entry is not None and entry in self._entries:
            return self._entries[entry]
        result = func(*args, **self.replaced(kwargs or {}))
        self._own.update({id(leaf): leaf for leaf in _leaves(result)})
        if entry is not None:
            self._entries[entry] = result

        return result

    def replaced(self, value: Any) -> Any:
        """The same value with the other tensors in it."""
        if isinstance(value, Tensor):
            other = self._others.get(id(value), value)
            if id(other) not in self._own and is_batchedtensor(other):
                raise RuntimeError("a function uses a value of the batch that it did not use when it was first run")
            return other
        if isinstance(value, dict):
            return {name: self.replaced(part) for name, part in value.items()}
        if type(value) in (list, tuple):
            return type(value)(map(self.replaced, value))

        return value


def taken_from_outside(function: Callable[..., Any], *args: Any) -> tuple[Any, tuple[Tensor, ...]]:
    """The result of a function, and the tensors of a batch that it takes from outside.

    Arguments:
        function: The function.
        args: Its arguments.

    Example:
        >>> import torch
        >>> seen = []
        >>> def single(rate):
        ...     result, taken = taken_from_outside(lambda y: -rate * y, torch.ones(1))
        ...     seen.append(taken[0] is rate)
        ...     return result
        >>> _ = torch.func.vmap(single)(torch.ones(2))
        >>> seen
        [True]
    """
    mode = _Outside(args)
    with mode:
        result = function(*args)
        mode.note(result)

    return result, tuple(mode.found.values())


def with_taken(
    function: Callable[..., Any], taken: Sequence[Tensor], others: Sequence[Tensor], *args: Any, **kwargs: Any
) -> Any:
    """The result of a function that takes other tensors from outside.

    Arguments:
        function: The function.
        taken: What it takes.
        others: What it is to take instead, one by one.
        args: Its arguments.
        kwargs: Its keyword arguments.

    Raises:
        RuntimeError: If it takes another tensor of a batch, too.

    Example:
        >>> import torch
        >>> rate = torch.ones(1)
        >>> with_taken(lambda y: -rate * y, (rate,), (torch.tensor([2.0]),), torch.ones(1))
        tensor([-2.])
    """
    mode = _Replaced({id(tensor): other for tensor, other in zip(taken, others, strict=True)}, args)
    with mode:
        return mode.replaced(function(*args, **kwargs))


@contextlib.contextmanager
def modes_again(modes: Sequence[Any]) -> Iterator[None]:
    """What answers torch's functions answers them in here, too: torch takes its modes away on some ways.

    Arguments:
        modes: What has to be in force.
    """
    present = function_modes()
    with contextlib.ExitStack() as stack:
        for mode in modes:
            if not any(mode is other for other in present):
                stack.enter_context(mode)
        yield


def _leaves(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _leaves(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _leaves(part)

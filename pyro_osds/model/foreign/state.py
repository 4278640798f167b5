"""Runs of a model that leave the user's tensors as they were, and the name of what a model remembers between them.

The first runs are watched: what they change is put back after each of them. A model that changes none of its tensors in
place runs as it is from then on; one that does gets copies of those tensors, which it may change.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from pyro_osds.model.foreign.belongings import CONTAINERS, Slot, belongings, copied, is_same, put_back
from pyro_osds.runtime.torch_internals import memory_of, same_view

Call = Callable[..., Any]
# Of so many changes each is tried by itself; a model with more of them is told of all.
_MAX_TRIED = 20


class State:
    """What a model can change, as it was before its first run.

    Arguments:
        function: The model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Example:
        >>> import torch
        >>> def model(y):
        ...     y += 1
        ...     return y.sum()
        >>> y = torch.zeros(2)
        >>> state = State(model, (y,), {})
        >>> state.call((y,), {}), y, sorted(state.changing)
        (tensor(2.), tensor([0., 0.]), ["argument 'y'"])
        >>> state.settle()
        >>> state.call((y,), {}), y
        (tensor(2.), tensor([0., 0.]))
    """

    def __init__(self, function: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.function = function
        self.changing: set[str] = set()
        self._args, self._kwargs = list(args), dict(kwargs)
        self._before: dict[str, tuple[Slot, Any, int]] | None = {
            name: (slot, copied(slot.value), _version(slot.value)) for name, slot in self._slots().items()
        }
        self._is_free = False

    def settle(self) -> None:
        """Enough runs were watched."""
        self._before, self._args, self._kwargs = None, [], {}

    def call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run the model; the user's tensors are afterwards as they were, also where it fails."""
        if self._before is not None:
            if self._is_free:
                return self.function(*args, **kwargs)
            try:
                return self.function(*args, **kwargs)
            finally:
                self._put_back_tensors()
        if not self.changing:
            return self.function(*args, **kwargs)
        with self._copies(list(args), dict(kwargs)) as (own_args, own_kwargs):
            return self.function(*own_args, **own_kwargs)

    @contextlib.contextmanager
    def remembering(self) -> Iterator[None]:
        """Runs in here find what the one before left; in the end all is as it was before the first of all runs."""
        self.put_back()
        self._is_free = True
        try:
            yield
        finally:
            self._is_free = False
            for name, (slot, _, _) in (self._before or {}).items():
                self._restore(name, everything=isinstance(slot.value, (Tensor, np.ndarray)) and slot.is_kept)

    def changed(self) -> dict[str, Any]:
        """What is not as it was before the first run, by name, and what it is now."""
        now = self._slots()
        names = {name for name, (slot, before, _) in (self._before or {}).items() if name in now
                 if not is_same(before, now[name].value)}  # fmt: skip
        # Of a container and its parts the parts say more.
        return {
            name: copied(now[name].value)
            for name in names
            if not any(other != name and other.startswith(f"{name}[") for other in names)
        }

    def put_back(self) -> None:
        """Everything is as it was before the first run; tensors that were changed in any way are noted."""
        for name in self._before or {}:
            self._restore(name, everything=True)

    def culprits(self, is_other: Callable[[], bool], num_runs: int) -> list[str]:
        """Which changes a density depends on.

        Arguments:
            is_other: Whether the density, evaluated now, is not the first one. To be called while remembering.
            num_runs: After so many runs it was another one.

        Returns:
            Names of what has to be as it was, or none if it is something else that changes the density.
        """
        changes = self.changed()
        for _ in range(num_runs):
            self.put_back()
            if not changes or is_other():
                return []
        found = []
        for name, value in list(changes.items())[:_MAX_TRIED]:
            self.put_back()
            self._give(name, value)
            if is_other():
                found.append(name)
        self.put_back()

        return found or sorted(changes)

    # ---- inside ----

    def _slots(self) -> dict[str, Slot]:
        return belongings(self.function, self._args, self._kwargs)

    def _put_back_tensors(self) -> None:
        """Tensors, and what lies in the place of arguments and buffers, as they were."""
        for name, (slot, _, _) in (self._before or {}).items():
            if isinstance(slot.value, (Tensor, np.ndarray)):
                self._restore(name)

    def _restore(self, name: str, everything: bool = False) -> None:
        """A tensor that was written to has a new version; what bypasses versions is looked for in the end."""
        assert self._before is not None
        slot, before, version = self._before[name]
        value, place = slot.value, slot.place
        is_replaced = place is not None and (slot.is_kept or everything) and place.get() is not value
        if place is not None and is_replaced:
            place.put(value)
        is_changed = _version(value) != version
        if (is_changed or everything) and (before is not None or not isinstance(value, Tensor)):
            is_other = not is_same(before, value)
            is_changed |= is_other
            if is_other:
                put_back(value, before)
            self._before[name] = slot, before, _version(value)
        if isinstance(value, (Tensor, np.ndarray)) and (is_changed or (is_replaced and slot.is_kept)):
            self.changing.add(name)

    def _give(self, name: str, value: Any) -> None:
        slot = (self._before or {})[name][0]
        if isinstance(slot.value, (Tensor, np.ndarray, *CONTAINERS)) and value is not None:
            put_back(slot.value, value)
        elif slot.place is not None:
            slot.place.put(value)

    @contextlib.contextmanager
    def _copies(self, args: list[Any], kwargs: dict[str, Any]) -> Iterator[tuple[list[Any], dict[str, Any]]]:
        """Copies in the places of what the model changes; views of the same memory are views of the same copy."""
        slots = belongings(self.function, args, kwargs)
        memories = {memory_of(slots[name].value) for name in self.changing if _is_tensor(slots, name)}
        copies: dict[int, Tensor] = {}
        given, kept = [], []
        try:
            for name, slot in slots.items():
                value = slot.value
                if isinstance(value, np.ndarray) and name in self.changing:
                    given.append(slot)
                    if slot.place is None:
                        kept.append((value, value.copy()))
                    else:
                        slot.place.put(value.copy())
                elif isinstance(value, Tensor) and memory_of(value) in memories:
                    given.append(slot)
                    if slot.place is None:
                        kept.append((value, copied(value)))
                    else:
                        slot.place.put(_like(value, same_view(value, copies)))
            yield args, kwargs
        finally:
            for slot in given:
                if slot.place is not None:
                    slot.place.put(slot.value)
            for value, before in kept:
                put_back(value, before)


def _version(value: Any) -> int:
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def _is_tensor(slots: Mapping[str, Slot], name: str) -> bool:
    return name in slots and isinstance(slots[name].value, Tensor)


def _like(value: Tensor, copy: Tensor) -> Tensor:
    return nn.Parameter(copy, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else copy

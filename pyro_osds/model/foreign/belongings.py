"""What a model can reach and change: its arguments, buffers, attributes, global and closure variables, by name.

A posterior needs a density that is the same each time, so what a run of the model leaves behind matters: tensors that
it changes in place are the user's, and state that it reads again makes the next density another one.
"""

from __future__ import annotations

import collections
import operator
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_osds.runtime.torch_internals import is_batchedtensor

# Enough for every model that keeps its state where somebody could find it; data in long lists are not walked through.
_MAX_SLOTS, _MAX_DEPTH, _MAX_LENGTH = 5000, 8, 200
_NUMBERS = (bool, int, float, complex, str, bytes, type(None), torch.Size, torch.dtype, torch.device)
CONTAINERS = (list, dict, set, collections.deque)
# Packages whose objects change by themselves, and whose functions are not the user's.
_FOREIGN = (
    "torch",
    "pyro",
    "pyro_osds",
    "numpy",
    "scipy",
    "builtins",
    "functools",
    "itertools",
    "collections",
    "typing",
)
# What a module keeps for itself.
_OF_MODULES = set(vars(nn.Module())) - {"training", "_parameters", "_buffers", "_modules"}


@dataclass(frozen=True)
class Place:
    """Where something lies that can be replaced: an entry, an attribute, or a variable that functions share.

    Arguments:
        holder: A list, a mapping, an object or a cell.
        key: The entry's, or the attribute's name.
        is_attribute: Whether it is an attribute.
    """

    holder: Any
    key: Any
    is_attribute: bool = False

    def put(self, value: Any) -> None:
        """Put something there."""
        if isinstance(self.holder, type):
            setattr(self.holder, self.key, value)
        elif self.is_attribute:
            # A module, or something frozen, may have ideas of its own about its attributes.
            object.__setattr__(self.holder, self.key, value)
        else:
            self.holder[self.key] = value

    def get(self) -> Any:
        """What lies there now."""
        if not self.is_attribute:
            return self.holder[self.key]

        return getattr(self.holder, self.key, None)


@dataclass(frozen=True)
class Slot:
    """One thing that a model can reach.

    Arguments:
        value: The thing.
        place: Where it lies; None where nothing else can be put there, as in a tuple.
        is_kept: Whether it has to lie there after a run, as arguments and buffers have to.
    """

    value: Any
    place: Place | None
    is_kept: bool


def belongings(function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> dict[str, Slot]:
    """Everything that a call of a function may change, by name.

    Arguments:
        function: The function; a module, a bound method, a partial or something wrapped in handlers are ones, too.
        args: Positional arguments of the call, in a list that may be changed.
        kwargs: Keyword arguments, in a dictionary that may be changed.

    Example:
        >>> def model(y, count=[0]):
        ...     count[0] += 1
        >>> sorted(belongings(model, [torch.zeros(1)], {}))
        ["argument 'y'", "default of argument 'count'", "default of argument 'count'[0]"]
    """
    walk = _Walk()
    names = _parameters(function)
    for index, value in enumerate(args):
        name = names[index] if index < len(names) else str(index)
        walk.visit(value, f"argument {name!r}", Place(args, index), True)
    for name, value in kwargs.items():
        walk.visit(value, f"argument {name!r}", Place(kwargs, name), True)
    walk.visit(function, "the model", None, True)

    return walk.slots


class _Walk:
    """A walk through what can be reached, each object once."""

    def __init__(self) -> None:
        self.slots: dict[str, Slot] = {}
        self._seen: dict[int, Any] = {}

    def visit(self, value: Any, name: str, place: Place | None, is_kept: bool, depth: int = 0) -> None:
        """Note what lies in one place, and go on to what it holds."""
        if len(self.slots) >= _MAX_SLOTS or depth > _MAX_DEPTH or name in self.slots:
            return
        if isinstance(value, (Tensor, np.ndarray, *_NUMBERS)):
            self.slots[name] = Slot(value, place, is_kept)
            return
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, (*CONTAINERS, tuple)):
            self._container(value, name, place, is_kept, depth)
        elif isinstance(value, nn.Module):
            self._module(value, name, depth)
        elif isinstance(value, types.FunctionType):
            self._function(value, name, depth)
        elif isinstance(value, types.MethodType):
            self.visit(value.__self__, name, None, is_kept, depth + 1)
            self.visit(value.__func__, name, None, is_kept, depth + 1)
        elif hasattr(value, "func") and hasattr(value, "keywords"):  # a partial
            self.visit(value.args, f"{name}'s arguments", None, True, depth + 1)
            self.visit(value.keywords, f"{name}'s arguments", None, True, depth + 1)
            self.visit(value.func, name, None, is_kept, depth + 1)
        elif isinstance(value, type):
            if _is_own(value.__module__):
                self._attributes(dict(vars(value)), f"class {value.__name__}", value, depth)
        elif not isinstance(value, (types.ModuleType, types.BuiltinFunctionType)):
            self._object(value, name, depth)

    def _container(self, value: Any, name: str, place: Any, is_kept: bool, depth: int) -> None:
        if not isinstance(value, tuple):
            self.slots[name] = Slot(value, place, is_kept)
        if len(value) > _MAX_LENGTH or isinstance(value, set):
            return
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in list(items):
            place_part = None if isinstance(value, tuple) else Place(value, key)
            self.visit(part, f"{name}[{key!r}]", place_part, is_kept, depth + 1)

    def _module(self, module: nn.Module, name: str, depth: int) -> None:
        where = "" if name == "the model" else f" of {name}"
        for kind, held in (("parameter", "_parameters"), ("buffer", "_buffers")):
            values = vars(module)[held]
            for key in values:
                self.visit(values[key], f"{kind} {key!r}{where}", Place(values, key), True, depth + 1)
        for key, child in vars(module)["_modules"].items():
            self.visit(child, f"module {key!r}{where}", None, True, depth + 1)
        own = {key: value for key, value in vars(module).items() if key not in _OF_MODULES and key[:5] != "_pyro"}
        held = {"_parameters", "_buffers", "_modules"}
        self._attributes({key: value for key, value in own.items() if key not in held}, name, module, depth)
        self._class_and_code(module, name, depth, ("forward", "model", "__call__"))

    def _object(self, value: Any, name: str, depth: int) -> None:
        own = dict(vars(value)) if hasattr(value, "__dict__") else {}
        for kind in type(value).__mro__ if _is_own(type(value).__module__) else ():
            slots = vars(kind).get("__slots__", ())
            names = (slots,) if isinstance(slots, str) else tuple(slots)
            own.update({key: getattr(value, key) for key in names if hasattr(value, key)})
        self._attributes(own, name, value, depth)
        self._class_and_code(value, name, depth, ("__call__",))

    def _class_and_code(self, value: Any, name: str, depth: int, methods: tuple[str, ...]) -> None:
        kind = type(value)
        if not _is_own(kind.__module__):
            return
        self.visit(kind, f"class {kind.__name__}", None, False, depth + 1)
        for key in methods:
            if isinstance(method := getattr(kind, key, None), types.FunctionType):
                self.visit(method, name, None, False, depth + 1)

    def _attributes(self, attributes: Mapping[str, Any], name: str, owner: Any, depth: int) -> None:
        for key, value in attributes.items():
            if key.startswith("__") or isinstance(value, (property, staticmethod, classmethod)):
                continue
            if isinstance(owner, type) and isinstance(value, types.FunctionType):
                continue
            self.visit(value, f"attribute {key!r} of {name}", Place(owner, key, True), False, depth + 1)

    def _function(self, function: types.FunctionType, name: str, depth: int) -> None:
        if (wrapped := getattr(function, "__wrapped__", None)) is not None:
            self.visit(wrapped, name, None, False, depth)
        for cell_name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # a variable that has no value yet
                continue
            self.visit(value, f"closure variable {cell_name!r}", Place(cell, "cell_contents", True), False, depth + 1)
        for key, value in _defaults(function).items():
            self.visit(value, f"default of argument {key!r}", None, False, depth + 1)
        if not _is_own(function.__module__ or ""):
            return
        for key in _globals(function.__code__):
            if key in function.__globals__:
                place = Place(function.__globals__, key)
                self.visit(function.__globals__[key], f"global variable {key!r}", place, False, depth + 1)
        own = {key: value for key, value in vars(function).items() if not key.startswith("_")}
        self._attributes(own, f"function {function.__name__}", function, depth)


def copied(value: Any) -> Any:
    """What has to be kept of a value to know it again, and to put it back."""
    if isinstance(value, Tensor):
        return None if is_batchedtensor(value) or value.layout != torch.strided else value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, CONTAINERS):
        if type(value) in CONTAINERS:
            return type(value)(value)
        return dict(value) if isinstance(value, dict) else set(value) if isinstance(value, set) else list(value)

    return value


def is_same(before: Any, now: Any) -> bool:
    """Whether a value is what was kept of it."""
    if isinstance(now, Tensor):
        if is_batchedtensor(now) or not isinstance(before, Tensor) or before.shape != now.shape:
            return before is None
        return before.dtype == now.dtype and _same_numbers(before, now.detach())
    if isinstance(now, np.ndarray):
        return isinstance(before, np.ndarray) and _same_arrays(before, now)
    if isinstance(now, dict):
        return isinstance(before, dict) and _same_items(list(before.items()), list(now.items()))
    if isinstance(now, set):
        return before == now
    if isinstance(now, CONTAINERS):
        if not isinstance(before, CONTAINERS) or len(before) != len(now):
            return False
        if len(now) > _MAX_LENGTH:
            return all(map(operator.is_, before, now))
        return _same_items([(0, part) for part in before], [(0, part) for part in now])
    try:
        return type(before) is type(now) and bool(before == now or before != before)
    except Exception:  # noqa: BLE001 - what cannot be compared cannot be told from another
        return before is now


def put_back(value: Any, before: Any) -> None:
    """Give a changed value the contents that it had."""
    if isinstance(value, Tensor):
        with torch.no_grad():
            if value.shape == before.shape:
                value.data.copy_(before)
            else:
                value.data = before.clone()
    elif isinstance(value, np.ndarray):
        value[...] = before
    elif isinstance(value, list):
        value[:] = before
    elif isinstance(value, (dict, set)):
        value.clear()
        value.update(before)
    elif isinstance(value, collections.deque):
        value.clear()
        value.extend(before)


def _same_items(before: list[Any], now: list[Any]) -> bool:
    """Whether the same objects lie under the same keys; what changed in them is told of themselves."""
    return len(before) == len(now) and all(
        a[0] == b[0] and (a[1] is b[1] or (isinstance(a[1], _NUMBERS) and a[1] == b[1]))
        for a, b in zip(before, now, strict=True)
    )


def _same_numbers(before: Tensor, now: Tensor) -> bool:
    if torch.equal(before, now):
        return True
    return (
        now.is_floating_point()
        and torch.equal(before.nan_to_num(0.0), now.nan_to_num(0.0))
        and torch.equal(before.isnan(), now.isnan())
    )


def _same_arrays(before: Any, now: Any) -> bool:
    if before.shape != now.shape or before.dtype != now.dtype:
        return False
    return bool(np.array_equal(before, now, equal_nan=np.issubdtype(now.dtype, np.inexact)))


def _parameters(function: Any) -> list[str]:
    """Names of positional arguments, as far as they are known."""
    is_bound = not isinstance(function, types.FunctionType)
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    if isinstance(function, nn.Module):
        function = type(function).forward
    elif not isinstance(function, (types.FunctionType, types.MethodType)):
        function = None if hasattr(function, "func") else vars(type(function)).get("__call__")
    code = getattr(function, "__code__", None)
    if code is None:
        return []
    names = list(code.co_varnames[: code.co_argcount])

    return names[1:] if is_bound and names[:1] == ["self"] else names


def _defaults(function: types.FunctionType) -> dict[str, Any]:
    code = function.__code__
    values = function.__defaults__ or ()
    names = code.co_varnames[code.co_argcount - len(values) : code.co_argcount]

    return {**dict(zip(names, values, strict=True)), **(function.__kwdefaults__ or {})}


def _globals(code: types.CodeType) -> Iterator[str]:
    """Names that code, and functions inside it, look up among global variables."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals(constant)


def _is_own(module: str) -> bool:
    return module.split(".")[0] not in _FOREIGN

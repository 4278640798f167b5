"""What a function reads beside its arguments: globals of modules, which a new process would have as they were written.

A function that is sent takes the globals of its own script along, by value, but a module that it imports is imported
anew by a worker: whoever has set ``settings.RATE = 2.0`` since would compute with another rate there. So the values of
such globals go along.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from pyro_osds.runtime.errors.lines import is_library

Values = dict[str, dict[str, Any]]
"""By module, the values of its globals by name."""


def module_values(dumps: Callable[[Any], Any]) -> Values:
    """The globals of the user's modules that hold values and can be sent; no functions, classes and modules.

    Arguments:
        dumps: What turns a value into bytes, or fails.

    Example:
        >>> import pickle
        >>> "torch" in module_values(pickle.dumps)
        False
    """
    found: Values = {}
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if name == "__main__" or not isinstance(path, str) or is_library(path):
            continue
        values = {key: value for key, value in vars(module).items() if _is_value(key, value, dumps)}
        if values:
            found[name] = values

    return found


def _is_value(name: str, value: Any, dumps: Callable[[Any], Any]) -> bool:
    if name.startswith("__") or isinstance(value, ModuleType) or callable(value):
        return False
    try:
        dumps(value)
    except Exception:  # noqa: BLE001 - a lock, a file: what cannot be sent is as the module has it
        return False

    return True


def set_module_values(values: Values) -> None:
    """Give the modules that are there the globals that they have elsewhere.

    Arguments:
        values: What :func:`module_values` gave.

    Example:
        >>> set_module_values({"no such module": {"RATE": 2.0}})
    """
    for name, each in values.items():
        if name in sys.modules:
            vars(sys.modules[name]).update(each)

"""What runs in a worker process: it loads a function once, and answers calls of it."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

# Functions are large, and a run has few of them at a time.
_MOST_KEPT = 8
# Seconds between two looks at whether the process that started this one is still there.
_LOOK = 1.0

_functions: dict[str, Callable[..., Any]] = {}


def begin(parent: int, num_threads: int) -> None:
    """Make a process like the one that started it, as far as numbers depend on it.

    Arguments:
        parent: The number of the process that started this one; without it there is nothing left to do.
        num_threads: Threads of torch there: with another number sums would be rounded in another way.
    """
    # Ctrl-C in a terminal reaches all processes of it, and is for the first one to answer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a function warns of was seen where it ran first.
    warnings.simplefilter("ignore")
    torch.set_num_threads(num_threads)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os._exit(1)


def answer(path: str, calls: bytes, dtype: torch.dtype) -> bytes:
    """What a function makes of some arguments, one after the other.

    Plain bytes go forth and back: torch would put tensors that a queue carries into memory of its own, one file each.

    Arguments:
        path: The file that holds the function.
        calls: A list of tuples of arguments.
        dtype: The default type of floating point numbers.

    Returns:
        A list of results.
    """
    function = _loaded(path)
    torch.set_default_dtype(dtype)

    return pickle.dumps([function(*arguments) for arguments in pickle.loads(calls)])


def _loaded(path: str) -> Callable[..., Any]:
    if path not in _functions:
        while len(_functions) >= _MOST_KEPT:
            _functions.pop(next(iter(_functions)))
        with open(path, "rb") as file:
            _functions[path] = pickle.load(file)

    return _functions[path]

"""What runs in a worker process: it loads a function once, and answers calls of it."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from pyro_osds.runtime.workers.surroundings import set_module_values

# Functions are large, and a run has few of them at a time.
_MOST_KEPT = 8
# Seconds between two looks at whether the process that started this one is still there.
_LOOK = 1.0

_functions: dict[str, Callable[..., Any]] = {}


def begin(parent: int, folder: str, num_threads: int) -> None:
    """Make a process like the one that started it, as far as numbers depend on it.

    Arguments:
        parent: The number of the process that started this one; without it there is nothing left to do.
        folder: Where functions are; without it neither.
        num_threads: Threads of torch there: with another number sums would be rounded in another way.
    """
    # Ctrl-C in a terminal reaches all processes of it, and is for the first one to answer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a function warns of was seen where it ran first.
    warnings.simplefilter("ignore")
    torch.set_num_threads(num_threads)
    threading.Thread(target=_end_with, args=(parent, folder), daemon=True).start()


def _end_with(parent: int, folder: str) -> None:
    while os.getppid() == parent and os.path.isdir(folder):
        time.sleep(_LOOK)
    os._exit(1)


def answer(calls: bytes, path: str, wanted: str, dtype: torch.dtype) -> bytes:
    """What a function makes of some arguments, one after the other.

    Plain bytes go forth and back: torch would put tensors that a queue carries into memory of its own, one file each.

    Arguments:
        calls: A list of tuples of arguments.
        path: The file that holds the function.
        wanted: A file that is there as long as somebody waits for the answers.
        dtype: The default type of floating point numbers.

    Returns:
        A list of results; of some only, if nobody waits any longer.
    """
    function = _loaded(path)
    torch.set_default_dtype(dtype)
    still_wanted = itertools.takewhile(lambda _: os.path.exists(wanted), pickle.loads(calls))

    return pickle.dumps([function(*arguments) for arguments in still_wanted])


def _loaded(path: str) -> Callable[..., Any]:
    if path not in _functions:
        while len(_functions) >= _MOST_KEPT:
            _functions.pop(next(iter(_functions)))
        with open(path, "rb") as file:
            function, values = pickle.load(file)
        # After it is loaded: only now are the modules there that it imports.
        set_module_values(pickle.loads(values))
        _functions[path] = function

    return _functions[path]

"""Where a run stands: what it takes for an interrupted one to go on as if nothing had happened."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import torch


def random_state() -> dict[str, Any]:
    """The state of torch's random numbers, on the CPU and on all GPUs in use.

    Example:
        >>> state = random_state()
        >>> first = torch.rand(1)
        >>> set_random_state(state)
        >>> bool(torch.rand(1) == first)
        True
    """
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Go on with the random numbers that would have come next."""
    torch.set_rng_state(state["cpu"].cpu())
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([each.cpu() for each in state["cuda"]])


@contextlib.contextmanager
def uncut() -> Iterator[None]:
    """A stretch that Ctrl-C does not cut in two: the first one waits for its end, the second one does not."""
    handler = signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
    if not callable(handler):
        yield
        return
    waiting: list[tuple[int, Any]] = []

    def wait(number: int, frame: Any) -> None:
        if waiting:
            handler(number, frame)
        waiting.append((number, frame))

    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if waiting:
            handler(*waiting[0])

"""Where a run stands: what it takes for an interrupted one to go on as if nothing had happened."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
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


def sets_seed(call: Callable[[], Any]) -> bool:
    """Whether a function sets torch's seed: from two states of random numbers it leaves the same one behind.

    The caller's random numbers stay where they are. A function that draws none runs once.

    Arguments:
        call: The function.

    Example:
        >>> sets_seed(lambda: torch.manual_seed(0)), sets_seed(lambda: torch.rand(1)), sets_seed(lambda: None)
        (True, False, False)
    """
    left = []
    with torch.random.fork_rng(devices=[]):
        for seed in (1, 2):
            # Without torch.manual_seed, which would set the seeds of GPUs, too.
            start = torch.Generator().manual_seed(seed).get_state()
            torch.set_rng_state(start)
            call()
            left.append(torch.get_rng_state())
            if torch.equal(start, left[-1]):
                return False

    return torch.equal(*left)


def seed_refusal(what: str) -> str:
    """The sentences for a density that :func:`sets_seed`."""
    return (
        f"{what} sets the seed of random numbers, as by pyro.set_rng_seed or torch.manual_seed: with every evaluation "
        "those of the sampler would begin again. Set the seed once, before run(), and draw what is meant to be fixed "
        "outside of the model."
    )


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

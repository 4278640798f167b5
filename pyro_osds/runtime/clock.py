"""The time that a run may take: whoever evaluates a density asks whether it is over.

A run spends its time in the density of the model, so that is where the question is put: between blocks of a batch and,
where a density goes point by point, between points. What is stopped is left by :class:`OutOfTimeError`, from wherever
it is; no part of the sampler needs to know how long another one takes.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from contextvars import ContextVar

_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)


class OutOfTimeError(BaseException):
    """The time is over. No ``Exception``, as little as Ctrl-C: it says nothing about the density that it stops."""


def now() -> float:
    """Seconds of a clock that only goes forward."""
    return time.perf_counter()


@contextlib.contextmanager
def time_limit(deadline: float) -> Iterator[None]:
    """A stretch that is left when its time is over; one within another ends with that at the latest.

    Arguments:
        deadline: Time of :func:`now`; infinity for no limit of its own.

    Example:
        >>> with time_limit(now() + 60.0):
        ...     check_time()
        >>> try:
        ...     with time_limit(now() - 1.0):
        ...         check_time()
        ... except OutOfTimeError:
        ...     print("late")
        late
    """
    token = _deadline.set(min(deadline, _deadline.get()))
    try:
        yield
    finally:
        _deadline.reset(token)


def is_limited() -> bool:
    """Whether there is a limit of time.

    Example:
        >>> is_limited()
        False
    """
    return _deadline.get() < math.inf


def check_time() -> None:
    """Go on, if there is time left.

    Raises:
        OutOfTimeError: If there is none.
    """
    if is_limited() and is_past(_deadline.get()):
        raise OutOfTimeError


def is_past(deadline: float) -> bool:
    """Whether :func:`now` is beyond a deadline.

    Example:
        >>> is_past(math.inf), is_past(-math.inf)
        (False, True)
    """
    return now() > deadline

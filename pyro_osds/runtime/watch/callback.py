"""Who watches a run: a function that is told how it goes and may stop it, and a file of where it stands.

As with the progress bar, no module hands these to the next one: training and stages call :func:`tell` and
:func:`keep_place` wherever they are, and within :func:`watched` that reaches whoever watches.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from pyro_osds.runtime.clock import now
from pyro_osds.runtime.resume import random_state, set_random_state
from pyro_osds.runtime.warnings import InterruptedWarning, warn

CHECKPOINT_SECONDS = 60.0
"""Seconds between two files of a training: writing one takes some milliseconds, and a minute is soon made up for."""


@dataclass(frozen=True)
class RunProgress:
    """What a callback is told.

    Arguments:
        stage: ``"exploration"``, ``"training"`` after each round of it, or the stage that has just been judged:
            ``"flow"``, ``"larger flow"``, ``"annealed refinement"``, ``"few-step diffusion"``, ``"annealed SMC"``.
        iteration: Optimiser steps so far.
        elbo: ELBO on fresh draws, nats; nan before there is a flow.
        log_evidence: Log evidence so far, nats: a preliminary one, but for that of a stage.
        std_error: Its standard error, nats; nan where it is not known.
        seconds: Seconds since the run began.
        reliable: The verdict on it; None before a stage was judged.

    Example:
        >>> RunProgress("training", 250, -31.32, -31.31, 0.002, 4.0).stage
        'training'
    """

    stage: str
    iteration: int
    elbo: float
    log_evidence: float
    std_error: float
    seconds: float
    reliable: bool | None = None


@dataclass
class _Watch:
    """Who watches the present run."""

    callback: Callable[[RunProgress], Any] | None
    save: Callable[[bool], None] | None
    start: float = field(default_factory=now)
    saved: float = field(default_factory=now)
    is_stopped: bool = False


_watch: ContextVar[_Watch | None] = ContextVar("watch", default=None)


@contextlib.contextmanager
def watched(callback: Callable[[RunProgress], Any] | None, save: Callable[[bool], None] | None) -> Iterator[None]:
    """A run that is watched.

    Arguments:
        callback: Called with a :class:`RunProgress`; if it returns True, numpy's and torch's included, the run stops,
            as by Ctrl-C.
        save: Writes a file of where the run stands, given whether there is something to resume.

    Example:
        >>> seen = []
        >>> with watched(seen.append, None):
        ...     tell("flow", 10, -1.0, -0.9)
        >>> seen[0].stage, seen[0].iteration
        ('flow', 10)
    """
    token = _watch.set(None if callback is None and save is None else _Watch(callback, save))
    try:
        yield
    finally:
        _watch.reset(token)


def is_watched() -> bool:
    """Whether anybody watches.

    Example:
        >>> is_watched()
        False
    """
    return _watch.get() is not None


def tell(
    stage: str,
    iteration: int,
    elbo: float,
    log_evidence: float,
    std_error: float = math.nan,
    reliable: bool | None = None,
) -> None:
    """Tell the callback how the run goes, if there is one; random numbers stay as they are.

    Arguments:
        stage: As for :class:`RunProgress`, and so are the others.
        iteration: Optimiser steps.
        elbo: ELBO, nats.
        log_evidence: Log evidence so far, nats.
        std_error: Its standard error, nats.
        reliable: The verdict.

    Raises:
        KeyboardInterrupt: If the callback returned True, or failed, which a warning tells.
    """
    watch = _watch.get()
    if watch is None or watch.callback is None or watch.is_stopped:
        return
    seconds, random = now() - watch.start, random_state()
    try:
        progress = RunProgress(stage, iteration, elbo, log_evidence, std_error, seconds, reliable)
        stop = says_stop(watch.callback(progress))
    except Exception as error:  # noqa: BLE001 - whatever a user's function raises must not cost what there is
        watch.is_stopped = True
        warn(
            f"The callback failed with {type(error).__name__}: {error}. The run ends with what it has; resume() goes "
            "on, without the callback if you set it to None.",
            InterruptedWarning,
        )
        raise KeyboardInterrupt from error
    finally:
        set_random_state(random)
    if stop:
        watch.is_stopped = True
        raise KeyboardInterrupt


def says_stop(answer: Any) -> bool:
    """Whether what a callback returned stops the run: a truth value of Python, numpy or torch, or None for none.

    Arguments:
        answer: What it returned.

    Raises:
        TypeError: If it is no truth value.

    Example:
        >>> says_stop(None), says_stop(False), says_stop(True)
        (False, False, True)
    """
    if answer is None or isinstance(answer, bool):
        return bool(answer)
    # Those of other packages, jax for instance, are arrays to numpy.
    array = np.asarray(answer.detach().cpu() if isinstance(answer, Tensor) else answer)
    if array.shape == () and array.dtype == bool:
        return bool(array)
    got = f"{type(answer).__name__} of shape {tuple(answer.shape)}" if hasattr(answer, "shape") else repr(answer)
    raise TypeError(
        f"it returned {got}, and only a single truth value says whether to stop: return True to stop the run, and "
        "False or None to go on"
    )


def is_file_due() -> bool:
    """Whether a file of where the run stands is due: a minute after the last one.

    Example:
        >>> is_file_due()
        False
    """
    watch = _watch.get()

    return watch is not None and watch.save is not None and now() - watch.saved >= CHECKPOINT_SECONDS


def keep_place(resumable: bool) -> None:
    """Write a file of where the run stands, if one was asked for.

    Arguments:
        resumable: Whether there is more to do.
    """
    watch = _watch.get()
    if watch is not None and watch.save is not None:
        watch.save(resumable)
        watch.saved = now()

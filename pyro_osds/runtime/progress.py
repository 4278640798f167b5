"""The progress bar of a run: one bar that goes through all phases, or none.

A hidden bar does not even exist, since tqdm takes a lock that forked chains wait for. Exploration, training, weighing
and refinements call :func:`progress_bar` wherever they are; within :func:`run_bar` they all share the run's bar, so
that no module has to hand it to the next one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm.auto import tqdm

from pyro_osds.runtime.parallel import is_silent

# Seconds between two pictures of the bar: on a screen, and in a file, where all of them stay.
_ON_SCREEN, _IN_A_FILE = 0.1, 10.0
_FORMAT = "{l_bar}{bar}| [{elapsed}<{remaining}{postfix}]"

_run: ContextVar[RunBar | None] = ContextVar("run", default=None)


class NoBar:
    """What a phase asks of a progress bar, without one.

    Example:
        >>> bar = progress_bar(10, "Train", disable=True)
        >>> bar.update()
        >>> bar.n
        1
    """

    def __init__(self, total: float) -> None:
        self.total = total
        self.n: float = 0

    def update(self, amount: float = 1) -> None:
        """So much further."""
        self.n += amount

    def set_postfix(self, **values: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Phase(NoBar):
    """One phase of a bar: it starts at zero, shows what it is told when the bar is drawn next, and ends full.

    Arguments:
        bar: The bar of tqdm.
        total: How far the phase goes.
        description: What happens in it.
        alone: Whether the bar ends with the phase.
    """

    def __init__(self, bar: Any, total: float, description: str, alone: bool) -> None:
        super().__init__(total)
        self._bar = bar
        self._alone = alone
        self._values: dict[str, str] = {}
        bar.set_description(description, refresh=False)
        bar.set_postfix(refresh=False)
        bar.reset(total)

    def update(self, amount: float = 1) -> None:
        """So much further."""
        self.n += amount
        self._bar.update(amount)

    def set_postfix(self, **values: str) -> None:
        """Numbers behind the bar, by name; earlier ones of the phase stay."""
        self._values |= values
        self._bar.set_postfix(self._values, refresh=False)

    def close(self) -> None:
        """The end; a phase that stopped early was quick, so its bar is full."""
        self._bar.n = self._bar.total
        self._bar.refresh()
        if self._alone:
            self._bar.close()


class RunBar:
    """The one bar of a run."""

    def __init__(self) -> None:
        self._start = time.time()
        self._bar = _tqdm()

    def phase(self, total: float, description: str) -> Phase:
        """The next phase."""
        return Phase(self._bar, total, description, alone=False)

    def close(self, result: str) -> None:
        """The end: what came out, and the seconds of all phases."""
        self._bar.set_description("Done" if result else "Stopped", refresh=False)
        self._bar.set_postfix_str(result, refresh=False)
        self._bar.start_t = self._start
        self._bar.close()


@contextmanager
def run_bar(disable: bool) -> Iterator[list[str]]:
    """A bar for all phases inside; none if disabled, and none of its own where a run is on already.

    Arguments:
        disable: Whether there is no bar.

    Yields:
        A list for the words that the bar ends with.

    Example:
        >>> with run_bar(disable=True) as result:
        ...     result.append("log evidence 0")
    """
    result: list[str] = []
    if disable or _run.get() is not None or is_silent():
        yield result
        return
    bar = RunBar()
    token = _run.set(bar)
    try:
        yield result
    finally:
        _run.reset(token)
        bar.close(", ".join(result))


def progress_bar(total: float, description: str, disable: bool = True) -> NoBar:
    """A phase of ``total`` steps: of the present run's bar, or with a bar of its own, or with none.

    Arguments:
        total: How far the phase goes.
        description: What happens in it.
        disable: Outside a run: whether there is no bar.
    """
    run = _run.get()
    if run is not None:
        return run.phase(total, description)

    return NoBar(total) if disable or is_silent() else Phase(_tqdm(), total, description, alone=True)


def _tqdm() -> Any:
    """An empty bar."""
    in_notebook = any("notebook" in base.__module__ for base in tqdm.__mro__)
    seconds = _ON_SCREEN if in_notebook or sys.stderr.isatty() else _IN_A_FILE

    # Without miniters, a phase of slow steps would inherit how often one of fast steps was drawn. With a delay, however
    # short, nothing is drawn before the first phase has a name.
    return tqdm(total=1, bar_format=_FORMAT, mininterval=seconds, miniters=0, delay=1e-9)

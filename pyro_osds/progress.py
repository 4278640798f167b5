"""The progress bar, or none: a hidden one does not even exist, since tqdm takes a lock that forked chains wait for."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm


class NoBar:
    """What training asks of a progress bar, without one.

    Example:
        >>> bar = progress_bar(10, "Train", disable=True)
        >>> bar.update()
        >>> bar.n
        1
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.n = 0

    def update(self) -> None:
        """One step further."""
        self.n += 1

    def set_postfix(self, **values: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def progress_bar(total: int, description: str, disable: bool) -> Any:
    """A progress bar of ``total`` steps, or its stand-in."""
    return NoBar(total) if disable else tqdm(total=total, desc=description)

"""Which line of the user's code: for warnings and errors that name the operation."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_LIBRARY = (
    "site-packages", "dist-packages", sysconfig.get_paths()["stdlib"], str(Path(__file__).parents[1]), "<",
)  # fmt: skip


def user_line(error: BaseException | None = None) -> str:
    """The user's line at which an exception was raised, or that is running now; or the innermost one.

    Arguments:
        error: The exception; default: the present stack.
    """
    frames = traceback.extract_stack()[:-1] if error is None else traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _in(frame.filename, _LIBRARY)]
    frame = (own or frames)[-1]

    return f"`{frame.line or frame.name}` (line {frame.lineno} of {Path(frame.filename).name})"


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, without its full stop."""
    return str(error).strip().split("\n")[0].rstrip(".")


def _in(filename: str, parts: Iterable[str]) -> bool:
    return any(part in filename for part in parts)


def failed_message(error: BaseException) -> tuple[dict[str, Any] | None, set[str]]:
    """The Pyro message that was being answered when an exception was raised, and the functions that it went through.

    Arguments:
        error: The exception.

    Returns:
        The innermost message of a sample site, or None; and the names of all functions on the way.
    """
    found, functions, step = None, set(), error.__traceback__
    while step is not None:
        functions.add(step.tb_frame.f_code.co_name)
        msg = step.tb_frame.f_locals.get("msg")
        if isinstance(msg, dict) and msg.get("type") == "sample":
            found = msg
        step = step.tb_next

    return found, functions

"""Which line of the user's code it was, and whose code an exception was raised in."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_PACKAGE = str(Path(__file__).parents[2])
# Code that some library or torch has written. What else has no file, as in "<string>" or "<stdin>", is the user's own.
_GENERATED = ("<frozen", "<eval_with_key", "<__array_function__", "<attrs", "<lambdifygenerated", "<decorator-gen")
_LIBRARY = ("site-packages", "dist-packages", sysconfig.get_paths()["stdlib"], _PACKAGE, *_GENERATED)


def user_line(error: BaseException | None = None) -> str:
    """The user's line at which an exception was raised, or that is running now; or the innermost one.

    Arguments:
        error: The exception; default: the present stack.
    """
    frames = traceback.extract_stack()[:-1] if error is None else traceback.extract_tb(error.__traceback__)

    beyond = [frame for frame in frames if not _in(frame.filename, (_PACKAGE,))]

    return _shown((_own(frames) or beyond or frames)[-1])


def own_line(error: BaseException) -> str:
    """The user's line at which an exception was raised; empty where none of theirs was running.

    Example:
        >>> own_line(ValueError("never raised"))
        ''
    """
    own = _own(traceback.extract_tb(error.__traceback__))

    return _shown(own[-1]) if own else ""


def is_ours() -> bool:
    """Whether what calls a handler of torch is this package itself, not code of the user or of another package.

    The handler asks, so its own frame, those of other handlers and those of torch do not count.

    Example:
        >>> def handler():
        ...     return is_ours()
        >>> handler()
        False
    """
    frames = [frame for frame in traceback.extract_stack()[:-2] if frame.name != "__torch_function__"]
    callers = [frame for frame in frames if "/torch/" not in frame.filename]

    return bool(callers) and callers[-1].filename.startswith(_PACKAGE)


def is_refusal(error: BaseException) -> bool:
    """Whether an exception is one of this package's own sentences, which needs no explanation."""
    frames = traceback.extract_tb(error.__traceback__)

    return bool(frames) and frames[-1].filename.startswith(_PACKAGE) and (frames[-1].line or "").startswith("raise ")


def is_foreign(error: BaseException) -> bool:
    """Whether an exception was raised in a package that is neither torch, nor Pyro, nor this one.

    Example:
        >>> import json
        >>> try:
        ...     json.loads("{")
        ... except ValueError as error:
        ...     print(is_foreign(error))
        True
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return False
    last = frames[-1].filename

    return _in(last, _LIBRARY) and not _in(last, (_PACKAGE, "/torch/", "/pyro/", "<"))


def is_library(path: str) -> bool:
    """Whether a file is of this package, of another installed one or of Python itself, and so not the user's.

    Example:
        >>> is_library(traceback.__file__), is_library("/home/me/model.py")
        (True, False)
    """
    return _in(path, _LIBRARY)


def frames_of(error: BaseException) -> Iterator[tuple[str, dict[str, Any]]]:
    """The functions that an exception went through, the outermost first, with their local variables.

    Example:
        >>> def half(number):
        ...     return 1 / number
        >>> try:
        ...     half(0)
        ... except ZeroDivisionError as error:
        ...     [name for name, values in frames_of(error) if values.get("number") == 0]
        ['half']
    """
    step = error.__traceback__
    while step is not None:
        yield step.tb_frame.f_code.co_name, step.tb_frame.f_locals
        step = step.tb_next


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


def _own(frames: Iterable[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    return [frame for frame in frames if not _in(frame.filename, _LIBRARY)]


def _shown(frame: traceback.FrameSummary) -> str:
    return f"`{frame.line or frame.name}` (line {frame.lineno} of {Path(frame.filename).name})"


def _in(filename: str, parts: Iterable[str]) -> bool:
    return any(part in filename for part in parts)

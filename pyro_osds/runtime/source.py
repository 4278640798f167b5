"""Which line of the user's code, and what went wrong there: for warnings and errors that name the operation."""

from __future__ import annotations

import contextlib
import functools
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

_PACKAGE = str(Path(__file__).parents[1])
# Code that some library or torch has written. What else has no file, as in "<string>" or "<stdin>", is the user's own.
_GENERATED = ("<frozen", "<eval_with_key", "<__array_function__", "<attrs", "<lambdifygenerated", "<decorator-gen")
_LIBRARY = ("site-packages", "dist-packages", sysconfig.get_paths()["stdlib"], _PACKAGE, *_GENERATED)
# What torch says of code that cannot run in batches, as an expression, and what it means for a model.
_MEANINGS = (
    (r"data-dependent control flow", "an if or a while asks for the value of a latent; torch.where(...) needs none"),
    (
        r"calling \.item\(\)",
        "a latent becomes a Python number, by .item(), float(), int() or math; stay in torch",
    ),
    (r"have storage|Cannot access data pointer", "a latent leaves torch, for numpy or scipy; use torch's functions"),
    (r"dynamic shape|data.dependent shape", "a size depends on the value of a latent; torch.where(...) keeps the size"),
    (r"called random operation", "random numbers are drawn outside of pyro.sample"),
)
# Advice that would leave the gradient wrong.
_DETACH = " Use tensor.detach().numpy() instead."
# Requests to somebody else's users.
_REQUEST = re.compile(r"(\.\s+|;\s+|,\s*)?[^.;,]*(please (file|try|open|report|rewrite|either)|file an issue).*", re.I)


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
        >>> is_library(re.__file__), is_library("/home/me/model.py")
        (True, False)
    """
    return _in(path, _LIBRARY)


def first_line(error: BaseException) -> str:
    """What an exception says, in one line, without its full stop and in words for the user of a model.

    Example:
        >>> first_line(RuntimeError("It failed. Please file a bug report."))
        'It failed'
    """
    text = str(error).strip().split("\n")[0]
    for expression, meaning in _MEANINGS:
        if re.search(expression, text):
            return meaning

    return _REQUEST.sub("", text.replace(_DETACH, "")).rstrip(".") or text.rstrip(".")


class Place(NamedTuple):
    """Where in a run of a model an exception was raised.

    Arguments:
        where: In words: at which site, or after which.
        point: The unconstrained values that the run had been given by site; empty where it drew them itself.
    """

    where: str
    point: Mapping[str, Any]


def note_place(error: BaseException | None, at: str, after: str, point: Mapping[str, Any]) -> None:
    """Note at an exception where it was raised; the innermost run is the one that counts.

    Arguments:
        error: The exception; None and what is no :class:`Exception` are left alone.
        at: The site whose statement was running, or nothing.
        after: The last site before, or nothing.
        point: Unconstrained values by site.
    """
    if not isinstance(error, Exception) or place_of(error) is not None:
        return
    where = f"at site {at!r}" if at else f"after site {after!r}" if after else "before its first site"
    with contextlib.suppress(AttributeError, TypeError):
        error.__dict__["_pyro_osds_place"] = Place(where, point)


def place_of(error: BaseException) -> Place | None:
    """What :func:`note_place` noted."""
    return getattr(error, "__dict__", {}).get("_pyro_osds_place")


def told(error: Exception, sentence: str, also: type[Exception] | None = None) -> Exception:
    """An exception that says more, and can be caught as what it is.

    Arguments:
        error: What was raised. It stays as it is.
        sentence: What the new one says.
        also: A further class that it is caught as.

    Returns:
        An exception of a class of its own below that of ``error``, with its arguments and attributes; ``error`` itself,
        with the sentence as a note where Python has notes, if its class allows no other below it.

    Example:
        >>> new = told(KeyError("a"), "There is no 'a'.", ValueError)
        >>> print(new, new.args, isinstance(new, KeyError), isinstance(new, ValueError))
        There is no 'a'. ('a',) True True
    """
    kind = type(error)
    bases = (kind,) if also is None or issubclass(kind, also) else (also,) if issubclass(also, kind) else (kind, also)
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    # Tensors of a run, which no other process can have.
    getattr(error, "__dict__", {}).pop("_pyro_osds_place", None)
    try:
        told_kind: Any = type(kind.__name__, bases, {"__str__": _sentence, "__reduce__": _as_told, **names})
        new = told_kind.__new__(told_kind, *error.args)
        # Only Python's own classes keep values that are neither arguments nor in the dictionary.
        next(each for each in kind.__mro__ if each.__module__ == "builtins").__init__(new, *error.args)
        new.args = error.args
        new.__dict__.update(error.__dict__)
        new.__dict__["_pyro_osds_told"] = error, sentence, also
    except Exception:  # noqa: BLE001 - whatever the user's class has against it, the exception itself is there
        if hasattr(error, "add_note"):
            error.add_note(sentence)  # type: ignore[attr-defined]
        return error
    slots = [getattr(each, "__slots__", ()) for each in kind.__mro__]
    own = [name for names in slots for name in ([names] if isinstance(names, str) else names)]
    for name in ("name", "obj", "path", "filename", "filename2", *own):
        with contextlib.suppress(AttributeError, TypeError):
            setattr(new, name, getattr(error, name))

    return new


def is_told(error: BaseException) -> bool:
    """Whether an exception is one that :func:`told` made."""
    return "_pyro_osds_told" in getattr(error, "__dict__", {})


def _sentence(error: BaseException) -> str:
    return error.__dict__["_pyro_osds_told"][1]


def _as_told(error: BaseException) -> tuple[Any, ...]:
    return told, error.__dict__["_pyro_osds_told"]


def telling(explain: Callable[[Any, Exception], str], *names: str) -> Callable[[Any], Any]:
    """A decorator for classes: what the user's code raises in some of their methods is told by a sentence.

    Refusals, warnings and what was raised outside of the user's code go through as they are.

    Arguments:
        explain: The sentence, given the object and the exception.
        names: The methods.
    """

    def wrapped(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return method(self, *args, **kwargs)
            except Exception as error:
                if is_told(error) or is_refusal(error) or isinstance(error, Warning) or not own_line(error):
                    raise
                new = told(error, explain(self, error))
                if new is error:
                    raise
                raise new from error

        return call

    def decorate(owner: Any) -> Any:
        for name in names:
            setattr(owner, name, wrapped(getattr(owner, name)))
        return owner

    return decorate


def named(error: BaseException) -> str:
    """Class and text of an exception, which may have none.

    Example:
        >>> named(AssertionError()), named(OSError("It is away."))
        ('AssertionError', 'OSError: It is away')
    """
    text = first_line(error)

    return f"{type(error).__name__}: {text}" if text else type(error).__name__


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

"""What went wrong, told again: an exception of the same class, with site, line and what it means for a model."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pyro_osds.runtime.errors.lines import is_refusal, own_line

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


def named(error: BaseException) -> str:
    """Class and text of an exception, which may have none.

    Example:
        >>> named(AssertionError()), named(OSError("It is away."))
        ('AssertionError', 'OSError: It is away')
    """
    text = first_line(error)

    return f"{type(error).__name__}: {text}" if text else type(error).__name__


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


def _sentence(error: BaseException) -> str:
    return error.__dict__["_pyro_osds_told"][1]


def _as_told(error: BaseException) -> tuple[Any, ...]:
    return told, error.__dict__["_pyro_osds_told"]

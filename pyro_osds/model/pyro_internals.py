"""Every private name of Pyro that the front-end uses, so that a new Pyro has one place to break, and one to mend.

Each name says what it is for and what happens when it is gone. "No import" means that importing the package then fails
with an error that names it; a test for each name says so first, in ``tests/model/test_pyro_internals.py``.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import pyro.ops.special
from pyro.ops.integrator import _EXCEPTION_HANDLERS
from pyro.poutine import trace_messenger
from pyro.poutine.markov_messenger import MarkovMessenger
from pyro.poutine.runtime import _ENUM_ALLOCATOR
from pyro.poutine.subsample_messenger import _Subsample

Subsample = _Subsample
"""The distribution of a plate's own site, which is no latent. Gone: no import."""


def is_numerical(error: RuntimeError) -> bool:
    """Whether Pyro's samplers count an exception as a point of no density. Gone: no import.

    Example:
        >>> is_numerical(RuntimeError("singular U.")), is_numerical(RuntimeError("something else"))
        (True, False)
    """
    return any(handler(error) for handler in _EXCEPTION_HANDLERS.values())


def allotted_dims() -> dict[str, Any]:
    """Which tensor dimensions Pyro has allotted to discrete latents, in one place for everybody. Gone: no import.

    Example:
        >>> sorted(allotted_dims())
        ['dim_to_id', 'next_available_dim', 'next_available_id']
    """
    return dict(vars(_ENUM_ALLOCATOR))


def restore_allotted_dims(dims: Mapping[str, Any]) -> None:
    """Put back what :func:`allotted_dims` told."""
    vars(_ENUM_ALLOCATOR).clear()
    vars(_ENUM_ALLOCATOR).update(dims)


@contextlib.contextmanager
def safe_log_replaced(replacement: Any) -> Iterator[None]:
    """Another logarithm with a bounded gradient in the place of Pyro's, which vmap refuses.

    Gone: entering raises, so vmap counts as failing and the model runs point by point, with a warning that says why.

    Arguments:
        replacement: A class with a static method ``apply``, ``(*) -> (*)``.
    """
    before = pyro.ops.special._SafeLog
    pyro.ops.special._SafeLog = replacement
    try:
        yield
    finally:
        pyro.ops.special._SafeLog = before


def is_shown(site: Mapping[str, Any]) -> bool:
    """Whether a site is a ``pyro.deterministic``. Gone: it is recognised by its distribution alone.

    Example:
        >>> is_shown({"infer": {"_deterministic": True}}), is_shown({"infer": {}})
        (True, False)
    """
    return bool(site["infer"].get("_deterministic"))


def enumerated_dim(site: Mapping[str, Any]) -> int | None:
    """The tensor dimension along which a discrete latent takes its values. Gone: no pointwise log likelihood there.

    Example:
        >>> enumerated_dim({"infer": {"_enumerate_dim": -2}})
        -2
    """
    return site["infer"].get("_enumerate_dim")


def packed_log_prob(site: Mapping[str, Any]) -> tuple[Any, str]:
    """A site's log density in a packed trace, and one letter for each of its dimensions. Gone: an error in each fit.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> trace = poutine.trace(lambda: pyro.sample("x", pyro.distributions.Normal(0.0, 1.0))).get_trace()
        >>> trace.compute_log_prob()
        >>> trace.pack_tensors()
        >>> packed_log_prob(trace.nodes["x"])[1]
        ''
    """
    log_prob = site["packed"]["log_prob"]

    return log_prob, log_prob._pyro_dims


def enumerated_symbol(site: Mapping[str, Any]) -> str | None:
    """The letter of the dimension along which a discrete latent of a packed trace takes its values.

    Gone: no discrete latent is found to be beyond its reach, so the test for it comes first.

    Example:
        >>> enumerated_symbol({"infer": {"_enumerate_symbol": "b"}})
        'b'
    """
    return site["infer"].get("_enumerate_symbol")


@contextlib.contextmanager
def longer_history(more: int) -> Iterator[list[int]]:
    """All ``pyro.markov`` contexts see further back for a while; to find out whether that is what a model needs.

    Gone: entering raises where the name is, so that an error does not say which history would do.

    Arguments:
        more: By how many steps.

    Returns:
        A list with the largest history that was seen, these steps included; zero without any.
    """
    before, longest = MarkovMessenger._pyro_sample, [0]

    def see_further(self: Any, msg: Any) -> None:
        history = self.history
        self.history = history + more
        longest[0] = max(longest[0], self.history)
        try:
            before(self, msg)
        finally:
            self.history = history

    MarkovMessenger._pyro_sample = see_further  # type: ignore[method-assign]
    try:
        yield longest
    finally:
        MarkovMessenger._pyro_sample = before  # type: ignore[method-assign]


def is_in_markov_scope(site: Mapping[str, Any], reader: Mapping[str, Any]) -> bool:
    """Whether ``pyro.markov`` lets one site depend on another. Gone: an error names no chain.

    Example:
        >>> first, later = {"name": "a", "infer": {"_markov_scope": {}, "_markov_depth": 1}}, {"infer": {}}
        >>> is_in_markov_scope(first, later), is_in_markov_scope(later, first)
        (False, True)
    """
    if site["infer"].get("_markov_scope") is None:
        return True
    scope = reader["infer"].get("_markov_scope") or {}

    return scope.get(site["name"]) == site["infer"].get("_markov_depth")


def mask_of(fn: Any) -> Any:
    """The mask of a ``MaskedDistribution``: a tensor or a bool; None for distributions of other kinds.

    Gone: the same as for other kinds, so the test for it comes first.

    Example:
        >>> import pyro.distributions as dist
        >>> mask_of(dist.Normal(0.0, 1.0).mask(False)), mask_of(dist.Normal(0.0, 1.0))
        (False, None)
    """
    return getattr(fn, "_mask", None)


def as_raised(error: Exception) -> Exception:
    """What a model raised under a trace: of errors of value and at run time Pyro makes another, or fails to.

    The new one has the shapes of all sites in its text, and nothing else of what the user's class knows; a class of
    more arguments than a text cannot be made at all.

    Arguments:
        error: What came out of the trace. Gone: the user's own exceptions of those two kinds lose their attributes.
    """
    own = error.__cause__ or error.__context__
    if not isinstance(own, (ValueError, RuntimeError)):
        return error
    is_copy = type(own) is type(error) and str(error).startswith(f"{own}\n")
    frames = traceback.extract_tb(error.__traceback__)
    is_failed = any(
        frame.filename == trace_messenger.__file__ and "exc_type(" in (frame.line or "") for frame in frames
    )

    return own if is_copy or is_failed else error

"""Every private name of Pyro that the front-end uses, so that a new Pyro has one place to break, and one to mend.

Each name says what it is for and what happens when it is gone. "No import" means that importing the package then fails
with an error that names it; a test for each name says so first, in ``tests/model/test_pyro_internals.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import pyro.ops.special
from pyro.ops.integrator import _EXCEPTION_HANDLERS
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


def mask_of(fn: Any) -> Any:
    """The mask of a ``MaskedDistribution``: a tensor or a bool; None for distributions of other kinds.

    Gone: the same as for other kinds, so the test for it comes first.

    Example:
        >>> import pyro.distributions as dist
        >>> mask_of(dist.Normal(0.0, 1.0).mask(False)), mask_of(dist.Normal(0.0, 1.0))
        (False, None)
    """
    return getattr(fn, "_mask", None)

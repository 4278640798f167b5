"""Targets of other classes: each capability is checked once, and what is not declared gets its default."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_osds.target.protocol import Target

REQUIRED = ("dim", "dtype", "device", "log_prob")
"""What a target must have; everything else has a default."""
RESERVED = ("is_model", "unordered", "to_target", "in_order", "to_ordered", "log_volume")
"""What only the package's own classes may declare."""
# What a capability promises to come with.
_COMES_WITH = {
    "can_sample_prior": ("sample_prior", "log_prior_and_likelihood"),
    "has_other_coordinates": ("other_coordinates",),
}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_floating(value: Any) -> bool:
    return isinstance(value, torch.dtype) and value.is_floating_point


def _is_names(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(name, str) for name in value)


def _is_sites(value: Any) -> bool:
    parts = ("name", "start", "stop", "shape", "unconstrained_shape")

    return isinstance(value, Sequence) and all(hasattr(site, part) for site in value for part in parts)


_MAPPING = "a mapping by site", lambda value: isinstance(value, Mapping)
_NAMES = "a sequence of strings", _is_names
_SWITCH = "True or False", _is_bool
_METHOD = "a method", callable
KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "dim": ("an integer of at least 0", _is_count),
    "dtype": ("a floating point torch.dtype", _is_floating),
    "device": ("a torch.device", lambda value: isinstance(value, torch.device)),
    "draw_dtype": ("a floating point torch.dtype", _is_floating),
    "num_terms": ("an integer of at least 0", _is_count),
    "vectorized": _SWITCH,
    "num_at_once": ("an integer of at least 1", lambda value: _is_count(value) and value > 0),
    "is_double": _SWITCH,
    "has_tolerance": _SWITCH,
    "backend": ("a string", lambda value: isinstance(value, str)),
    "sites": ("a sequence of sites with name, start, stop, shape and unconstrained_shape", _is_sites),
    "supports": _MAPPING,
    "dims": _MAPPING,
    "observed": _MAPPING,
    "improper_sites": _NAMES,
    "discrete_sites": _NAMES,
    "discrete_observations": _NAMES,
    "notes": _NAMES,
    "mistakes": _NAMES,
    "start": ("a tensor or None", lambda value: value is None or isinstance(value, Tensor)),
    "can_sample_prior": _SWITCH,
    "has_bounded_likelihood": _SWITCH,
    "has_other_coordinates": _SWITCH,
    "standardized": _SWITCH,
    "log_prob": _METHOD,
    "sample_prior": _METHOD,
    "log_prior_and_likelihood": _METHOD,
    "constrain": _METHOD,
    "from_samples": _METHOD,
    "unconstrain": _METHOD,
    "saturated_sites": _METHOD,
    "beyond_bounds": _METHOD,
    "unseen_dependence": _METHOD,
    "out_of_range": _METHOD,
    "has_closed_form": _METHOD,
    "not_finite_sites": _METHOD,
    "log_likelihood": _METHOD,
    "by_group": _METHOD,
    "other_coordinates": _METHOD,
    "plain_coordinates": _METHOD,
}
"""What each capability must be, in words and as a check."""


def as_target(given: Any) -> Target:
    """A target with all capabilities declared.

    Arguments:
        given: A :class:`Target`, which is returned as it is; or any object with ``dim``, ``dtype``, ``device`` and
            ``log_prob``. It may declare further capabilities under the names that :class:`Target` gives them.

    Returns:
        The target; what the object does not declare has its default.

    Raises:
        TypeError: If something required is missing, or a capability is not what it must be.

    Example:
        >>> from types import SimpleNamespace
        >>> normal = {"dim": 2, "dtype": torch.float64, "device": torch.device("cpu")}
        >>> target = as_target(SimpleNamespace(**normal, log_prob=lambda z: -0.5 * z.square().sum(-1), num_terms=7))
        >>> target.num_terms, target.vectorized
        (7, True)
        >>> as_target(SimpleNamespace(**normal, log_prob=None))
        Traceback (most recent call last):
        TypeError: SimpleNamespace.log_prob must be a method, got None. A target needs dim, dtype, device, log_prob.
    """
    # By inheritance, not by isinstance: a protocol asks for names only, and evaluates properties to see them.
    if Target not in type(given).__mro__:
        return _Adapted(given)
    for member in KINDS:
        value = inspect.getattr_static(given, member, None)
        # What is computed when it is asked for is not asked for here: a model records its graph then.
        if not isinstance(value, property):
            _check(type(given).__name__, member, value)

    return given


class _Adapted(Target):
    """An object of another class, with the defaults for what it does not declare."""

    def __init__(self, given: Any) -> None:
        self.given = given
        name = type(given).__name__
        for member in RESERVED:
            if hasattr(given, member):
                raise TypeError(
                    f"{name}.{member} is a name that only the package's own targets may declare, got "
                    f"{getattr(given, member)!r}. Rename it; a Pyro model goes to OSDS itself."
                )
        for member in REQUIRED:
            if not hasattr(given, member):
                raise TypeError(f"{name} is no target: it has no {member}. A target needs {', '.join(REQUIRED)}.")
        declared = {member: getattr(given, member) for member in KINDS if hasattr(given, member)}
        for member, value in declared.items():
            _check(name, member, value)
        for member, methods in _COMES_WITH.items():
            for method in methods:
                if declared.get(member) and method not in declared:
                    raise TypeError(
                        f"{name}.{member} is True, but there is no {method}. Write it, or leave {member} out."
                    )
        self.dim, self.dtype, self.device = given.dim, given.dtype, given.device
        # On the instance they come before the defaults of the class.
        own = ("log_prob", "other_coordinates")
        self.__dict__.update({member: value for member, value in declared.items() if member not in own})
        _check_shape(name, self)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of a batch, ``(B, D) -> (B,)``."""
        return self.given.log_prob(z)

    def other_coordinates(self, z: Tensor) -> tuple[Target, Tensor, Tensor]:
        """As the object has them; its target there is adapted as well."""
        if not self.has_other_coordinates:
            return super().other_coordinates(z)
        other, u, log_abs_det = self.given.other_coordinates(z)

        return as_target(other), u, log_abs_det


def _check(name: str, member: str, value: Any) -> None:
    words, is_right = KINDS[member]
    if is_right(value):
        return
    if member in REQUIRED:
        cure = f"A target needs {', '.join(REQUIRED)}."
    elif words == "a method":
        cure = "Make it one, or leave it out for the default."
    else:
        cure = f"Correct it, or leave it out for the default, {getattr(Target, member)!r}."

    raise TypeError(f"{name}.{member} must be {words}, got {value!r}. {cure}")


def _check_shape(name: str, target: Target) -> None:
    with torch.no_grad():
        got = target.log_prob(torch.zeros(2, target.dim, dtype=target.dtype, device=target.device))
    if not isinstance(got, Tensor) or got.shape != (2,):
        shape = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
        raise TypeError(
            f"{name}.log_prob must map (B, {target.dim}) to (B,); for a (2, {target.dim}) batch it returned {shape}. "
            "Sum over the last dimension, not over the batch."
        )

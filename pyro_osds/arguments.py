"""Arguments: of the sampler, checked before anything runs; of the model, kept and compared by value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def check_counts(counts: Mapping[str, Any]) -> None:
    """Refuse what is not an integer of at least 1.

    Example:
        >>> check_counts({"num_samples": 0})
        Traceback (most recent call last):
        ValueError: num_samples must be an integer of at least 1, got 0.
    """
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {count!r}.")


def check_powers_of_two(counts: Mapping[str, Any]) -> None:
    """Refuse what is not a power of two."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1 or count & (count - 1):
            raise ValueError(f"{name} must be a power of two, got {count!r}.")


def check_choices(choices: Mapping[str, tuple[Any, Sequence[Any]]]) -> None:
    """Refuse what is not among the values allowed."""
    for name, (choice, allowed) in choices.items():
        if choice not in allowed:
            raise ValueError(f"{name} must be one of {allowed}, got {choice!r}.")


def same_arguments(left: Any, right: Any) -> bool:
    """Whether two sets of model arguments are the same, tensors by value."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.shape == right.shape and left.dtype == right.dtype and bool((left == right).all())
    if isinstance(left, (tuple, list)) and isinstance(right, (tuple, list)):
        return len(left) == len(right) and all(map(same_arguments, left, right))
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same_arguments(left[key], right[key]) for key in left)

    plain = isinstance(left, (bool, int, float, complex, str, bytes)) and type(left) is type(right)

    return left is right or (plain and left == right)


def kept_arguments(values: Any) -> Any:
    """The same arguments, with tensors of their own: data that change in place are other data."""
    if isinstance(values, Tensor):
        return values.detach().clone()
    if type(values) in (tuple, list):
        return type(values)(map(kept_arguments, values))
    if type(values) is dict:
        return {name: kept_arguments(value) for name, value in values.items()}

    return values

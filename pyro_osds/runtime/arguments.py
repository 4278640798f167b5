"""Arguments: of the sampler, checked before anything runs; of the model, kept and compared by value."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


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


def constant_arguments(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], observed: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Tensors and arrays among the arguments of a model, by name, which are not its observations.

    Arguments:
        model: The model.
        args: Positional arguments.
        kwargs: Keyword arguments.
        observed: Observations by site. An argument is one if it equals one, or if they are made of its memory.

    Example:
        >>> x, y = torch.arange(3.0), torch.ones(3)
        >>> constant_arguments(lambda x, y, steps: None, (x, y), {"steps": 2}, {"y": y})
        {'x': tensor([0., 1., 2.])}
    """
    named = _named_arguments(model, args, kwargs)
    tensors = {name: torch.as_tensor(value) for name, value in named.items() if isinstance(value, (Tensor, np.ndarray))}

    return {name: value for name, value in tensors.items() if not _is_observed(value, list(observed.values()))}


def _named_arguments(model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    function = model.forward if isinstance(model, nn.Module) else model
    try:
        signature = inspect.signature(function)
        bound = signature.bind(*args, **kwargs).arguments
    except (TypeError, ValueError):  # a callable that does not tell its arguments
        return {**{f"args_{i}": value for i, value in enumerate(args)}, **kwargs}
    named: dict[str, Any] = {}
    for name, value in bound.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            named |= {f"{name}_{i}": part for i, part in enumerate(value)}
        else:
            named |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}

    return named


def _is_observed(value: Tensor, observed: Sequence[Tensor]) -> bool:
    if any(other.shape == value.shape and _equal(other, value) for other in observed):
        return True
    memory = value.untyped_storage().data_ptr()
    parts = [other.numel() for other in observed if other.untyped_storage().data_ptr() == memory]

    return bool(parts) and sum(parts) >= value.numel()


def _equal(left: Tensor, right: Tensor) -> bool:
    """Whether values are equal, where missing ones are nan in both."""
    return torch.allclose(left.detach().double().cpu(), right.detach().double().cpu(), rtol=0, atol=0, equal_nan=True)

"""Arguments: of the sampler, checked before anything runs; of the model, kept and compared by value."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_osds.runtime.options import is_alias, nearest, short, unknown_option


def check_counts(counts: Mapping[str, Any]) -> None:
    """Refuse what is not an integer of at least 1.

    Example:
        >>> check_counts({"num_samples": 0})
        Traceback (most recent call last):
        ValueError: num_samples must be an integer of at least 1, got 0.
    """
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {short(count)}.{_instead(name, count)}")


def _instead(name: str, given: Any) -> str:
    """What to write in the place of something that is no count; empty where nobody knows."""
    number = plain(given)
    if isinstance(number, str):
        number = float(number) if number.strip().replace(".", "", 1).isdigit() else number
    if isinstance(number, (int, float)) and not isinstance(number, bool):
        return f" Write {int(number)}." if math.isfinite(number) and number >= 1 and number == int(number) else ""
    if name != "num_samples":
        return ""
    if isinstance(getattr(given, "shape", None), tuple) or isinstance(given, (list, tuple, Mapping)):
        return " Data are arguments of run(): write osds = OSDS(model), then osds.run(data)."

    return " OSDS needs no guide and no optimiser: OSDS(model) is enough." if callable(given) else ""


def check_positive(numbers: Mapping[str, Any]) -> None:
    """Refuse what is not a positive, finite number.

    Example:
        >>> check_positive({"learning_rate": -1})
        Traceback (most recent call last):
        ValueError: learning_rate must be a positive number, got -1.
    """
    for name, number in numbers.items():
        is_number = isinstance(number, (int, float, np.integer, np.floating)) and not isinstance(number, bool)
        if not (is_number and math.isfinite(number) and number > 0):
            raise ValueError(f"{name} must be a positive number, got {short(number)}.")


def check_share(name: str, share: Any) -> None:
    """Refuse what is not a probability between 0 and 1.

    Example:
        >>> check_share("prob", 90)
        Traceback (most recent call last):
        ValueError: prob must lie between 0 and 1, got 90. Write 0.9 for 90 percent.
    """
    is_number = isinstance(share, (int, float, np.integer, np.floating)) and not isinstance(share, bool)
    if not (is_number and 0 < share < 1):
        percent = f" Write {share / 100:g} for {share:g} percent." if is_number and 1 < share < 100 else ""
        raise ValueError(f"{name} must lie between 0 and 1, got {short(share)}.{percent}")


def check_switches(switches: Mapping[str, Any]) -> None:
    """Refuse what is neither True nor False.

    Example:
        >>> check_switches({"escalate": "no"})
        Traceback (most recent call last):
        ValueError: escalate must be True or False, got 'no'.
    """
    for name, switch in switches.items():
        if not isinstance(switch, (bool, np.bool_)):
            raise ValueError(f"{name} must be True or False, got {short(switch)}.")


def check_mapping(name: str, given: Any, cure: str) -> None:
    """Refuse what is no mapping by name.

    Arguments:
        name: The argument.
        given: What was given.
        cure: What to pass instead.

    Example:
        >>> check_mapping("dims", ["school"], "Pass {'theta': ['school']}.")
        Traceback (most recent call last):
        TypeError: dims must be a mapping, got a list of 1. Pass {'theta': ['school']}.
    """
    if not isinstance(given, Mapping):
        many = f"a {type(given).__name__} of {len(given)}" if isinstance(given, (list, tuple, set)) else ""
        raise TypeError(f"{name} must be a mapping, got {many or type(given).__name__}. {cure}")


def check_transforms(transforms: Any) -> None:
    """Refuse what is no mapping from sites to transforms; None is none.

    Example:
        >>> check_transforms({"a": 3})
        Traceback (most recent call last):
        TypeError: transforms['a'] must be a torch.distributions.Transform from the support to the real line, such as torch.distributions.biject_to(constraints.positive).inv, got 3.
    """  # noqa: E501 - one line is printed
    if transforms is None:
        return
    check_mapping("transforms", transforms, 'Pass them by site, such as {"x": transform}.')
    for name, transform in transforms.items():
        if not hasattr(transform, "log_abs_det_jacobian") or isinstance(transform, type):
            raise TypeError(
                f"transforms[{name!r}] must be a torch.distributions.Transform from the support to the real line, such "
                f"as torch.distributions.biject_to(constraints.positive).inv, got {short(transform)}."
            )


def wrong_start(target: Any, shape: tuple[int, ...]) -> str:
    """The sentence for a tensor of initial values that has another shape than the target's coordinates.

    Arguments:
        target: The target.
        shape: What was given.
    """
    sites = [f"{site.name!r}: a tensor {tuple(site.unconstrained_shape)}" for site in target.sites]
    by_site = f" Or pass unconstrained values by site, {{{', '.join(sites)}}}." if sites else ""

    return f"initial_params must end in {target.dim} coordinates; got shape {shape}.{by_site}"


@contextlib.contextmanager
def draws_are_named(function: str, model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[None]:
    """A count of draws in the place of the model's arguments is told where the model cannot do with it.

    Arguments:
        function: The method, which takes the model's arguments and ``num_draws``.
        model: The model.
        args: Positional arguments for the model.
        kwargs: Keyword arguments for the model.

    Raises:
        TypeError: For a count by position that fails, and for an option that the model has not.
    """
    known = parameters_of(model) if callable(model) else {}
    if known is not None and not any(each.kind is each.VAR_KEYWORD for each in known.values()):
        for name in kwargs:
            if name not in known and is_alias(name, "num_draws"):
                raise unknown_option(function, name, ["num_draws"])
    is_count = len(args) == 1 and isinstance(args[0], int) and not kwargs
    try:
        yield
    except Exception as error:
        if not is_count:
            raise
        raise TypeError(
            f"{function} takes the model's arguments by position, got {short(args[0])}. Write "
            f"{function}(num_draws={args[0]}) for the number of draws."
        ) from error


def plain(value: Any) -> Any:
    """A scalar of numpy or torch as Python's own; everything else as it is.

    Example:
        >>> plain(np.int64(3)), plain("auto")
        (3, 'auto')
    """
    is_scalar = isinstance(value, np.generic) or (isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0)

    is_kept = isinstance(value, Tensor) and value.is_meta

    return value.item() if is_scalar and not is_kept else value


def check_powers_of_two(counts: Mapping[str, Any]) -> None:
    """Refuse what is not a power of two."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1 or count & (count - 1):
            raise ValueError(f"{name} must be a power of two, got {count!r}.")


def check_choices(choices: Mapping[str, tuple[Any, Sequence[Any]]]) -> None:
    """Refuse what is not among the values allowed."""
    for name, (choice, allowed) in choices.items():
        # A tensor or an array among them would be compared element by element.
        if not isinstance(choice, (str, bool, int, type(None))) or choice not in allowed:
            raise ValueError(f"{name} must be one of {allowed}, got {choice!r}.{nearest(choice, allowed)}")


def same_arguments(left: Any, right: Any) -> bool:
    """Whether two sets of model arguments are the same, tensors by value."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.shape == right.shape and left.dtype == right.dtype and bool((left == right).all())
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        same = left.shape == right.shape and left.dtype == right.dtype
        return same and (left is right if left.dtype == object else bool((left == right).all()))
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
    if isinstance(values, np.ndarray) and values.dtype != object:
        return values.copy()
    if type(values) in (tuple, list):
        return type(values)([kept_arguments(value) for value in values])
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
    named = named_arguments(model, args, kwargs)
    tensors = {name: torch.as_tensor(value) for name, value in named.items() if isinstance(value, (Tensor, np.ndarray))}

    return {name: value for name, value in tensors.items() if not _is_observed(value, list(observed.values()))}


def parameters_of(model: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    """The parameters of a model by name; None for a callable that does not tell them."""
    try:
        return inspect.signature(_function(model)).parameters
    except (TypeError, ValueError):
        return None


def signature_of(model: Callable[..., Any]) -> str:
    """What a model takes, as its definition says it.

    Example:
        >>> signature_of(lambda x, y=None, *more, **options: None)
        '(x, y, *more, **options)'
    """
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}

    return (
        f"({', '.join(f'{stars.get(each.kind, str())}{name}' for name, each in (parameters_of(model) or {}).items())})"
    )


def _function(model: Callable[..., Any]) -> Callable[..., Any]:
    """What says which arguments a model takes: of a module, its forward; of what wraps a module, too."""
    inner = inspect.unwrap(model)

    return inner.forward if isinstance(inner, nn.Module) else model


def misfit(model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """What is wrong with the arguments that a model is called with, in words; empty if nothing, or nobody can tell.

    Example:
        >>> misfit(lambda x, y: None, (1.0,), {})
        "the argument 'y' is missing"
        >>> misfit(lambda x: None, (1.0,), {"z": 2.0})
        "there is no argument 'z'"
    """
    parameters = parameters_of(model)
    if parameters is None:
        return ""
    named = [each for each in parameters.values() if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    kinds = {each.kind for each in parameters.values()}
    positional = [each.name for each in named if each.kind is not each.KEYWORD_ONLY]
    given = positional[: len(args)]
    if len(args) > len(positional) and inspect.Parameter.VAR_POSITIONAL not in kinds:
        return f"{len(args)} arguments were given, where it takes {len(positional)}"
    unknown = [name for name in kwargs if name not in {each.name for each in named}]
    if unknown and inspect.Parameter.VAR_KEYWORD not in kinds:
        meant = nearest(unknown[0], [each.name for each in named]).strip(" ?").replace("Did", "did")
        return f"there is no argument {unknown[0]!r}{f' ({meant}?)' if meant else ''}"
    twice = [name for name in given if name in kwargs]
    if twice:
        return f"the argument {twice[0]!r} was given twice, by position and by name"
    missing = [
        each.name for each in named if each.default is each.empty and each.name not in given and each.name not in kwargs
    ]
    if not missing:
        return ""
    are = f"the argument{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))}"

    return f"{are} {'are' if len(missing) > 1 else 'is'} missing"


def named_arguments(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], defaults: bool = False
) -> dict[str, Any]:
    """The arguments of a call by the names that the model has for them.

    Arguments:
        model: The model.
        args: Positional arguments.
        kwargs: Keyword arguments.
        defaults: Whether to add the defaults of those that were not given.
    """
    parameters = parameters_of(model)
    if parameters is None or misfit(model, args, kwargs):
        return {**{f"args_{i}": value for i, value in enumerate(args)}, **kwargs}
    bound = inspect.signature(_function(model)).bind(*args, **kwargs)
    if defaults:
        bound.apply_defaults()
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            named |= {f"{name}_{i}": part for i, part in enumerate(value)}
        else:
            named |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}

    return named


def positional_names(model: Callable[..., Any], names: Iterable[str]) -> dict[str, str]:
    """The model's own names of ``args[0]``, ``args[1]`` and so on; other names stay.

    Example:
        >>> positional_names(lambda x, y: None, ["args[1]", "x"])
        {'args[1]': 'y', 'x': 'x'}
    """
    parameters = (parameters_of(model) or {}).values()
    positional = [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    own = {f"args[{i}]": name for i, name in enumerate(positional)}

    return {name: own.get(name, name) for name in names}


def _is_observed(value: Tensor, observed: Sequence[Tensor]) -> bool:
    if any(other.shape == value.shape and _equal(other, value) for other in observed):
        return True
    memory = value.untyped_storage().data_ptr()
    parts = [other.numel() for other in observed if other.untyped_storage().data_ptr() == memory]

    return bool(parts) and sum(parts) >= value.numel()


def _equal(left: Tensor, right: Tensor) -> bool:
    """Whether values are equal, where missing ones are nan in both."""
    return torch.allclose(left.detach().double().cpu(), right.detach().double().cpu(), rtol=0, atol=0, equal_nan=True)

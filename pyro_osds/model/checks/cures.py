"""What cures a model that fails: a cure that can be tried is tried before it is told.

Arguments are turned into tensors, and only if the model runs with them is it they that are to blame. All of it happens
after a failure; a model that runs pays for none of it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_osds.model.pyro_internals import Subsample
from pyro_osds.runtime.arguments import named_arguments, parameters_of

Attempt = Callable[..., Any]
"""Runs the model with other arguments, as far as it failed; raises what it raises."""

_DTYPES = re.compile(r"same dtype|data type|dtype|scalar type|must be Float|Float but found|Long", re.I)
_SHAPES = re.compile(r"size|shape|dimension|broadcast|mat1|expand", re.I)
_is_trying = False


@dataclass
class Reached:
    """A sample site that a run reached.

    Arguments:
        name: Its name.
        fn: Its distribution; for a plate, the plate's own.
        line: The user's line.
        value: Its value, once it has one.
        is_observed: Whether the value was given.
        is_done: Whether the run went on beyond it.
    """

    name: str
    fn: Any
    line: str
    value: Any = None
    is_observed: bool = False
    is_done: bool = False


def misfit_sentence(wrong: str, model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """The sentence for a model that was called with other arguments than it takes.

    Arguments:
        wrong: What :func:`pyro_osds.runtime.arguments.misfit` says.
        model: The model.
        args: Positional arguments.
        kwargs: Keyword arguments.
    """
    takes = ", ".join(parameters_of(model) or {})
    given = ", ".join((*map(describe, args), *(f"{name}={describe(value)}" for name, value in kwargs.items())))

    return (
        f"The model was called with {given or 'no arguments'}: {wrong}. It takes ({takes}), and run() hands its own "
        "arguments on to it: call run() with all of these."
    )


def cure(
    error: Exception,
    seen: list[Reached],
    site: Reached | None,
    model: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    attempt: Attempt,
) -> str:
    """The sentences with the cure, the most certain one first; none where nobody knows one."""
    text = str(error).split("\n")[0]  # Pyro adds the shapes of all sites below
    twice = re.search(r"Multiple sample sites named '(.*)'", text)
    if twice:
        return _twice(twice[1], seen)
    if isinstance(error, NotImplementedError) and "transform" in text.lower():
        return (
            "Its support has no map from the real line. Write the site in terms of latents that have one: a mixture, "
            "for instance, as a Categorical, which is summed out, and the component that it chooses."
        )
    if isinstance(error, ZeroDivisionError) and "size cannot be zero" in text:
        empty = [name for name, value in named_arguments(model, args, kwargs).items() if _length(value) == 0]
        got = f" The argument {empty[0]!r} has no rows." if empty else ""
        return f"A plate needs at least one row.{got} Pass data, or leave the plate and its sites out."
    inside = re.search(r"inside plate\('(.*)'\) at site (.*) dim (-\d+), (\d+) vs (\d+)", text)
    if inside:
        plate, name, dim, size, got = inside.groups()
        return (
            f"Site {name!r} has size {got} along dimension {dim}, which belongs to the plate {plate!r} of size {size}. "
            f"Give the plate that size, pyro.plate({plate!r}, {got}), or declare the site's own dimension with "
            ".to_event(1)."
        )
    if "on the same device" in text or "found at least two devices" in text:
        on = {name: value.device for name, value in named_arguments(model, args, kwargs).items() if _is_tensor(value)}
        got = ", ".join(f"{name!r} on {device}" for name, device in on.items())
        return (
            f"Arguments are {got or 'none'}. Put data and the model's constants on one device, such as "
            "torch.zeros(3, device=y.device)."
        )

    return _observed_shape(site) or argument_cure(args, kwargs, model, attempt) or constant_cure(error)


def _twice(name: str, seen: list[Reached]) -> str:
    """Two sites of one name: which, and what they should be."""
    both = [site for site in seen if site.name == name]
    lines = " and at ".join(dict.fromkeys(site.line for site in both))
    plates = [site.fn.size for site in both if isinstance(site.fn, Subsample)]
    if len(plates) > 1:
        sizes = " and ".join(map(str, dict.fromkeys(plates)))
        cure = "make it once, and enter it twice" if len(set(plates)) == 1 else "give each size a name of its own"
        return f"Plate {name!r} is made twice, of size {sizes}, at {lines}. A name is one plate: {cure}."
    if plates:
        return f"Both a plate and a site are called {name!r}, at {lines}. Rename one of them."

    return (
        f"Site {name!r} is there twice, at {lines}. Give each a name of its own, such as f'{name}_{{i}}' in a loop, or "
        "put all values into one site in a pyro.plate."
    )


def _observed_shape(site: Reached | None) -> str:
    """What an observed site and its values look like, where these do not fit."""
    if site is None or not site.is_observed or not hasattr(site.fn, "shape"):
        return ""
    if isinstance(site.value, (int, float)):
        return (
            f"Site {site.name!r} has the value {site.value!r}, which is no tensor. Pass torch.tensor({site.value!r})."
        )
    if not isinstance(site.value, Tensor):
        return ""
    shape, got = tuple(site.fn.shape()), tuple(site.value.shape)
    try:
        np.broadcast_shapes(shape, got)
    except ValueError:
        cure = _fitting(got, shape)
        return f"Its values have shape {got}, and its distribution, plates included, has shape {shape}. {cure}"

    return ""


def _fitting(got: tuple[int, ...], shape: tuple[int, ...]) -> str:
    if got == shape[::-1]:
        return "Pass the transpose of the data, .T."
    if len(got) == len(shape) == 1:
        return (
            f"Make the distribution as long as the data, {got[0]}, and so the plate if it is in one, or pass "
            f"{shape[0]} values."
        )

    return "Make plates and distribution as long as the data, or pass data of that shape."


def argument_cure(args: tuple[Any, ...], kwargs: Mapping[str, Any], model: Any, attempt: Attempt) -> str:
    """The arguments that are to blame: with them as tensors of the default type, the model runs."""
    global _is_trying
    if _is_trying:
        return ""
    names = {id(value): name for name, value in named_arguments(model, args, kwargs).items()}
    other = [value for value in (*args, *kwargs.values()) if _as_tensor(value) is not None]
    sets = [[value] for value in other]
    sets += [[value for value in other if not isinstance(value, Tensor)], other]
    for blamed in sets:
        if not blamed:
            continue
        with trying():
            changed = {id(value): _as_tensor(value) for value in blamed}
            try:
                attempt(
                    tuple(changed.get(id(value), value) for value in args),
                    {name: changed.get(id(value), value) for name, value in kwargs.items()},
                )
            except Exception:  # noqa: BLE001 - another cure is looked for
                continue
        return " ".join(_argument(names.get(id(value), "?"), value) for value in blamed)

    return ""


@contextlib.contextmanager
def trying() -> Iterator[None]:
    """Cures are not looked for in tries of cures, and tries leave random numbers as they are."""
    global _is_trying
    _is_trying = True
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        _is_trying = False


def _argument(name: str, value: Any) -> str:
    dtype = torch.get_default_dtype()
    short = str(dtype).removeprefix("torch.")
    if isinstance(value, Tensor):
        cast = ".float()" if dtype == torch.float32 else f".to({dtype})"
        return f"Argument {name!r} is {describe(value)}, and the model computes in {short}: pass {name}{cast}."
    numpy = ".to_numpy()" if hasattr(value, "to_numpy") else ""
    made = f"torch.tensor({name}, dtype={dtype})" if isinstance(value, (list, tuple)) else ""
    made = made or f"torch.as_tensor({name}{numpy}, dtype={dtype})"

    return f"Argument {name!r} is {describe(value)}, and torch computes with tensors only: pass {made}."


def constant_cure(error: Exception) -> str:
    """What may be wrong on the line itself, by what the exception says."""
    text = str(error).split("\n")[0]  # Pyro adds the shapes of all sites below
    if isinstance(error, ArithmeticError) or "math domain error" in text:
        return "Python's math raises where torch gives infinity or nan: use torch's functions of tensors."
    if re.search(r"numpy|ndarray", text):
        return (
            "Numpy and scipy cannot follow a latent, nor compute with one. Use torch's functions, such as torch.exp in "
            "the place of np.exp, and make constants tensors by torch.as_tensor."
        )
    if re.search(r"'(list|tuple|Series|DataFrame)' and 'Tensor'|'Tensor' and '(list|tuple|Series|DataFrame)'", text):
        return "A value on this line is no tensor: make it one by torch.tensor."
    if "modified by an inplace operation" in text:
        return "A tensor that the gradient needs is changed in place: change a clone(), or make a new tensor."
    if "requires_grad" in text or "does not require grad" in text:
        return "Compute in torch from the latents to the density, without .detach(), .item() and torch.no_grad()."
    if _DTYPES.search(text):
        return "Give all tensors on this line one dtype, such as x.float()."
    if isinstance(error, (RuntimeError, ValueError, IndexError)) and _SHAPES.search(text):
        return "Check the shapes on this line."

    return ""


# ---- what was got ----


def describe(value: Any) -> str:
    """A value in words: its kind, and its shape or length.

    Example:
        >>> describe(torch.zeros(2, 3)), describe(np.zeros(4)), describe([1, 2])
        ('torch.float32 (2, 3)', 'a numpy array float64 (4,)', 'a list of 2')
    """
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"a numpy array {value.dtype} {value.shape}"
    if type(value).__module__.partition(".")[0] == "pandas":
        return f"a pandas {type(value).__name__} {tuple(getattr(value, 'shape', ()))}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"

    return type(value).__name__


def _as_tensor(value: Any) -> Tensor | None:
    """The same numbers as a tensor of the default type; None where it is one already, or none can be made."""
    dtype = torch.get_default_dtype()
    if isinstance(value, Tensor):
        return value.to(dtype) if value.dtype != dtype and not value.is_complex() else None
    if isinstance(value, (str, bytes, Mapping, int, float)) or value is None:
        return None
    try:
        array = np.asarray(value.to_numpy() if hasattr(value, "to_numpy") else value)
        return torch.as_tensor(array.astype(float), dtype=dtype) if array.dtype.kind in "biuf" else None
    except (TypeError, ValueError, RuntimeError):
        return None


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _length(value: Any) -> int:
    try:
        return len(value)
    except TypeError:
        return -1

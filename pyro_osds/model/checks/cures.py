"""What cures a model that fails: a cure that can be tried is tried before it is told.

Arguments are turned into tensors, and only if the model runs with them is it they that are to blame. All of it happens
after a failure; a model that runs pays for none of it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
from pyro import distributions
from pyro.distributions import Categorical
from torch import Tensor
from torch.distributions import Distribution

from pyro_osds.model.checks.data import Attempt, argument_cure, describe, tensor_code
from pyro_osds.model.distributions.wrappers import unwrap
from pyro_osds.model.pyro_internals import Subsample
from pyro_osds.runtime.arguments import named_arguments, parameters_of, signature_of
from pyro_osds.runtime.errors.lines import frames_of
from pyro_osds.runtime.options import place_of_option

_DTYPES = re.compile(r"same dtype|data type|dtype|scalar type|must be Float|Float but found|Long", re.I)
_SHAPES = re.compile(r"size|shape|dimension|broadcast|mat1|expand", re.I)
_MORE_LISTS = "only integer tensors of a single element can be converted to an index"
_NO_GPU = re.compile(r"not compiled with CUDA|No CUDA GPUs|no NVIDIA driver|Found no NVIDIA", re.I)


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
    given = ", ".join((*map(describe, args), *(f"{name}={describe(value)}" for name, value in kwargs.items())))
    unknown = re.search(r"there is no argument '(\w+)'$", wrong)
    place = place_of_option(unknown[1]) if unknown else ""
    takes = f"It takes {signature_of(model)}"
    cure = f"{takes}, and run() hands its own arguments on to it: call run() with all of these."
    if place:
        cure = f"{takes}. {place}"
    known = list(parameters_of(model) or ())
    packed = args[0] if len(args) == 1 and not kwargs else None
    if isinstance(packed, Mapping) and packed and set(packed) <= set(known):
        cure = f"{takes}: hand its entries on by name, run(**data)."
    if isinstance(packed, (tuple, list)) and 1 < len(packed) == len(known):
        cure = f"{takes}: hand its entries on one by one, run(*data)."
    if known[:1] == ["self"]:
        cure = f"{takes}, the first of which is self: make an object of its class, and pass the method of that object."

    return f"The model was called with {given or 'no arguments'}: {wrong}. {cure}"


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
    if re.search(r"on the same device|at least two devices|not on the expected device", text):
        on = {name: value.device for name, value in named_arguments(model, args, kwargs).items() if _is_tensor(value)}
        got = ", ".join(f"{name!r} on {device}" for name, device in on.items())
        return (
            f"Arguments are {got or 'none'}. Put data and the model's constants on one device, such as "
            "torch.zeros(3, device=y.device)."
        )

    keys = [each.kind for each in (parameters_of(model) or {}).values()]
    if isinstance(error, KeyError) and any(kind is kind.VAR_KEYWORD for kind in keys) and error.args[0] not in kwargs:
        return f"The model takes its arguments by name: call run({error.args[0]}=...)."

    return (
        _observed_shape(site)
        or argument_cure(args, kwargs, model, attempt, error)
        or _observed_kind(site)
        or constant_cure(error)
    )


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
            f"Site {site.name!r} has the value {site.value!r}, which is no tensor. Pass torch.tensor({+site.value!r})."
        )
    if not isinstance(site.value, Tensor):
        return ""
    if labels := _labels(site):
        return labels
    shape, got = tuple(site.fn.shape()), tuple(site.value.shape)
    try:
        np.broadcast_shapes(shape, got)
    except ValueError:
        cure = _fitting(got, shape)
        return f"Its values have shape {got}, and its distribution, plates included, has shape {shape}. {cure}"

    return ""


def _observed_kind(site: Reached | None) -> str:
    """What an observed site got that is no tensor."""
    code = tensor_code(site.value, "y") if site is not None and site.is_observed else ""
    if site is None or not code or isinstance(site.value, Tensor):
        return ""

    return f"Site {site.name!r} observes {describe(site.value)}, which is no tensor. Write obs={code}."


def _labels(site: Reached) -> str:
    """Labels that a Categorical does not have, counted from one for instance."""
    fn, value = unwrap(site.fn), site.value
    if not isinstance(fn, Categorical) or not value.numel() or value.is_complex():
        return ""
    low, high, number = int(value.min()), int(value.max()), fn.param_shape[-1]
    if low >= 0 and high < number:
        return ""
    cure = "Give it as many categories as there are labels, and code these from 0 on"
    if low == 1 and high == number:
        cure = "Pass the labels minus 1"

    return (
        f"Site {site.name!r} has labels from {low} to {high}, and its Categorical has {number} categories, 0 to "
        f"{number - 1}. {cure}."
    )


def _fitting(got: tuple[int, ...], shape: tuple[int, ...]) -> str:
    if got == shape[::-1]:
        return "Pass the transpose of the data, .T."
    if len(got) == len(shape) == 1:
        return (
            f"Make the distribution as long as the data, {got[0]}, and so the plate if it is in one, or pass "
            f"{shape[0]} values."
        )

    return "Make plates and distribution as long as the data, or pass data of that shape."


def constant_cure(error: Exception) -> str:
    """What may be wrong on the line itself, by what the exception says."""
    text = str(error).split("\n")[0]  # Pyro adds the shapes of all sites below
    if told := _parameter(error) or _call(error, text) or _statement(error, text):
        return told
    if isinstance(error, ArithmeticError) or "math domain error" in text:
        return "Python's math raises where torch gives infinity or nan: use torch's functions of tensors."
    if isinstance(error, AssertionError):
        return (
            "An assert about a latent ends the run wherever it does not hold. Give the latent a prior with that "
            "support, or write pyro.factor('bound', torch.where(condition, 0.0, -torch.inf))."
        )
    if "Boolean value of Tensor" in text:
        return "Python's if, and, or and max ask for one value: write torch.where(condition, a, b) for a tensor."
    if _MORE_LISTS in text or re.search(r"'(list|tuple)' object", text):
        return (
            "A list and a tensor meet on this line: make the list a tensor, by torch.tensor([1.0, 2.0]) for numbers "
            "and torch.stack([a, b]) for tensors."
        )
    if re.search(r"numpy|ndarray", text) and "has no len()" not in text:
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
    if told := _index(text):
        return told
    if _DTYPES.search(text):
        return "Give all tensors on this line one dtype, such as x.float()."
    if isinstance(error, (RuntimeError, ValueError, IndexError)) and _SHAPES.search(text):
        return "Check the shapes on this line."

    return ""


def _index(text: str) -> str:
    """What is wrong with an index: its type, or that it counts from one."""
    if re.search(r"used as ind(ex|ices)|int(32|64)? for index|argument #\d+ 'indices'|\(\): Expected dtype int", text):
        return "An index is a whole number: write x.long() for the tensor that is used as an index, as in a[x.long()]."
    found = re.search(r"index (-?\d+) is out of bounds .*size (\d+)", text)
    if found is None:
        beyond = "index out of range" in text
        return "Indices count from 0: for groups that are numbered from 1 write a[group - 1] instead." if beyond else ""
    index, size = int(found[1]), int(found[2])
    first = f"Indices count from 0, so the last of {size} is {size - 1}, and {index} was asked for"
    if index == size:
        return f"{first}: for groups that are numbered from 1 write group - 1, as in a[group - 1]; else make it longer."

    return (
        f"{first}: make what is indexed as long as there are groups, or number these from 0 without gaps, by "
        "torch.unique(group, return_inverse=True)[1]."
    )


def _parameter(error: Exception) -> str:
    """A parameter of a distribution that is neither a number nor a tensor, where that is why it could not be made."""
    for name, values in frames_of(error):
        made = values.get("self")
        if name != "__init__" or not isinstance(made, Distribution):
            continue
        for parameter, value in values.items():
            if parameter not in _parameters(made) or value is None or isinstance(value, (int, float, complex, Tensor)):
                continue
            code = f"float({parameter})" if isinstance(value, np.generic) else tensor_code(value, parameter)
            if isinstance(value, (list, tuple)) and all(isinstance(each, Tensor) for each in value):
                code = f"torch.stack({parameter})"  # keeps the gradients, which torch.tensor would not
            write = f" Write {code}." if code else ""
            got = f"{parameter} = {describe(value)}"
            return f"{type(made).__name__} has {got}, which is neither a number nor a tensor.{write}"

    return ""


def _parameters(fn: Distribution) -> set[str]:
    allowed = getattr(type(fn), "arg_constraints", None)

    # Some compute theirs from what was given, and were given nothing yet.
    return {*inspect.signature(type(fn).__init__).parameters} & {*(allowed if isinstance(allowed, dict) else ()), "v"}


def _call(error: Exception, text: str) -> str:
    """What a distribution, or a method of one, takes, where it was called otherwise."""
    made = re.search(r"(\w+)\.__init__\(\) (missing|got|takes)", text)
    kind = getattr(distributions, made[1], None) if made else None
    if made and made[1] == "SubsampleMessenger":
        return f"pyro.plate takes {signature_of(pyro.plate)}."
    if isinstance(kind, type):
        names = [name for name in inspect.signature(kind.__init__).parameters if name not in ("self", "validate_args")]
        return f"{made[1] if made else ''} takes ({', '.join(names)})."
    if "reinterpreted_batch_ndims" in text:
        return (
            ".to_event(n) takes n dimensions on the right of the batch shape, and there are fewer. Leave it out for a "
            "single number, or give the distribution its shape first, by .expand([3])."
        )
    if "'int' object is not iterable" in text and any(name == "expand" for name, _ in frames_of(error)):
        return ".expand takes a shape: write .expand([3])."

    return ""


def _statement(error: Exception, text: str) -> str:
    """What is wrong with a statement of Pyro's that failed before it had a site, or with where it runs."""
    if "sample() missing" in text and "'fn'" in text:
        return "The name comes first: write pyro.sample('x', distribution)."
    if _NO_GPU.search(text):
        return 'This torch has no GPU to compute on: leave device="cuda" out, or use a machine with one.'
    for name, values in frames_of(error):
        if name == "deterministic" and "value" in values and "name" in values:
            site, value = values["name"], values["value"]
            return (
                f"pyro.deterministic({site!r}, ...) got {describe(value)}, and keeps tensors only. Write "
                f"torch.as_tensor(value), or leave out what is no number."
            )
        if isinstance(error, KeyError) and name == "get_param" and error.args:
            which = error.args[0]
            return (
                f"No parameter {which!r} was trained or loaded before: give it a value, pyro.param({which!r}, "
                "torch.tensor(1.0)), or make it a latent by pyro.sample."
            )
        size = values.get("size")
        if (
            isinstance(error, TypeError)
            and isinstance(size, Tensor)
            and size.numel() != 1
            and "subsample_size" in values
        ):
            return f"The size of a plate is a number, got {describe(size)}. Write len(y) for its rows."

    return ""


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _length(value: Any) -> int:
    try:
        return len(value)
    except TypeError:
        return -1

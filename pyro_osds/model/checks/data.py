"""What is wrong with the data that a model was called with: arguments that are to blame, what they are, and the cure.

An argument is turned into a tensor, and only if the model runs with it is it blamed. What cannot be turned into one,
text for instance, is blamed where the error speaks of it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_osds.runtime.arguments import named_arguments

Attempt = Callable[..., Any]
"""Runs the model with other arguments, as far as it failed; raises what it raises."""

_is_trying = False


def argument_cure(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], model: Any, attempt: Attempt, error: Exception
) -> str:
    """The arguments that are to blame, in sentences: with them as tensors the model runs; empty if none is.

    Arguments:
        args: Positional arguments.
        kwargs: Keyword arguments.
        model: The model.
        attempt: Runs the model.
        error: What it raised with these arguments.
    """
    if _is_trying:
        return ""
    names = {id(value): name for name, value in named_arguments(model, args, kwargs).items()}
    given = [value for value in (*args, *kwargs.values())]
    cures = {id(value): made for value in given if (made := _as_tensor(value)) is not None}
    other = [value for value in given if id(value) in cures]
    sets = [[value] for value in other]
    sets += [[value for value in other if not isinstance(value, Tensor)], other]
    for blamed in sets:
        if not blamed:
            continue
        changed = {id(value): cures[id(value)][0] for value in blamed}
        with trying():
            try:
                attempt(
                    tuple(changed.get(id(value), value) for value in args),
                    {name: changed.get(id(value), value) for name, value in kwargs.items()},
                )
            except Exception:  # noqa: BLE001 - another cure is looked for
                continue
        told = [_argument(names.get(id(value), "?"), value, cures[id(value)][1]) for value in blamed]
        # Arguments of the same kind would be the next ones to fail.
        kinds = {type(value) for value in blamed} - {Tensor, int, float}
        alike = [value for value in other if type(value) in kinds and all(value is not each for each in blamed)]
        told += [_also(names.get(id(value), "?"), cures[id(value)][1]) for value in alike]
        return " ".join(told)
    text = str(error).split("\n")[0]
    for value in given:
        name = names.get(id(value), "?")
        told = _hopeless(name, value, text)
        if told:
            return told
        # Something else is wrong, too; that no tensor was passed is what the error says.
        is_array = isinstance(value, np.ndarray) or hasattr(value, "to_numpy")
        columns: Any = getattr(value, "columns", ())
        if len(columns) and re.search(r"data type|dtype|kind|DataFrame|Series", text):
            column = f"torch.tensor({name}[{columns[0]!r}].to_numpy(), dtype={torch.get_default_dtype()})"
            return (
                f"Argument {name!r} is {describe(value)}, and torch computes with tensors only: make one of each "
                f"column that is read, such as {column}."
            )
        if is_array and id(value) in cures and re.search(r"ndarray|Series|DataFrame|objects implementing", text):
            return _argument(name, value, cures[id(value)][1])

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


def describe(value: Any) -> str:
    """A value in words: its kind, and its shape or length.

    Example:
        >>> describe(torch.zeros(2, 3)), describe(np.zeros(4)), describe([1, 2]), describe(None)
        ('torch.float32 (2, 3)', 'a numpy array float64 (4,)', 'a list of 2', 'None')
    """
    if isinstance(value, Tensor):
        sparse = "" if value.layout is torch.strided else ", sparse"
        return f"{value.dtype} {tuple(value.shape)}{sparse}"
    if isinstance(value, np.ndarray):
        masked = "masked " if isinstance(value, np.ma.MaskedArray) else ""
        return f"a {masked}numpy array {value.dtype} {value.shape}"
    if type(value).__module__.partition(".")[0] == "pandas":
        return f"a pandas {type(value).__name__} {tuple(getattr(value, 'shape', ()))}"
    if isinstance(value, (list, tuple, set, dict)):
        return f"a {type(value).__name__} of {len(value)}"

    if isinstance(value, np.generic):
        return f"a numpy number {value.dtype}"
    name = type(value).__name__

    return "None" if value is None else f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def tensor_code(value: Any, code: str) -> str:
    """What to write for a tensor of a value's numbers; empty where it has none.

    Arguments:
        value: The value.
        code: How the user calls it.

    Example:
        >>> tensor_code([1.0, 2.0], "x"), tensor_code([torch.ones(2), torch.ones(2)], "x"), tensor_code("text", "x")
        ('torch.tensor(x, dtype=torch.float32)', 'torch.stack(list(x))', '')
    """
    made = _as_tensor(value)

    return "" if made is None else made[1].format(code)


def _argument(name: str, value: Any, code: str) -> str:
    dtype = torch.get_default_dtype()
    pass_it = f"pass {code.format(name)}"
    is_of = f"Argument {name!r} is {describe(value)}"
    if isinstance(value, Tensor):
        if value.is_complex():
            return f"{is_of}, and a log density is real: {pass_it}, or both parts by torch.view_as_real({name})."
        short = str(dtype).removeprefix("torch.")
        return f"{is_of}, and the model computes in {short}: {pass_it}."
    if isinstance(value, np.ma.MaskedArray):
        pass_it += f", and leave out what is masked by poutine.mask(mask=torch.as_tensor(~{name}.mask))"
    if isinstance(value, (int, float, np.number)):
        return f"{is_of}, a single number, where the model reads several: {pass_it}."

    return f"{is_of}, and torch computes with tensors only: {pass_it}."


def _also(name: str, code: str) -> str:
    return f"Argument {name!r} is of that kind, too: pass {code.format(name)}."


def _as_tensor(value: Any) -> tuple[Tensor, str] | None:
    """The same numbers as a tensor of the default type, and the code for it; None where there is none to be made."""
    dtype = torch.get_default_dtype()
    if isinstance(value, Tensor):
        return _as_plain(value, dtype)
    if isinstance(value, (str, bytes, Mapping, bool, set)) or value is None or isinstance(value, Iterator):
        return None
    if isinstance(value, (int, float, np.number)):
        return torch.tensor([float(value)], dtype=dtype), f"torch.tensor([{{}}], dtype={dtype})"
    try:
        if isinstance(value, (list, tuple)):
            if value and all(isinstance(each, Tensor) and each.dim() for each in value):
                return torch.stack(list(value)).to(dtype), "torch.stack(list({}))"
            made = f"torch.tensor({{}}, dtype={dtype})"
            array = np.asarray(value)
            return (torch.as_tensor(array.astype(float), dtype=dtype), made) if array.dtype.kind in "biuf" else None
        return _of_array(value, dtype)
    except (TypeError, ValueError, RuntimeError):
        return None


def _as_plain(value: Tensor, dtype: torch.dtype) -> tuple[Tensor, str] | None:
    """A tensor that is dense, real and of the default type; None where it is one already."""
    if value.layout is not torch.strided:
        return value.to_dense().to(dtype), "{}.to_dense()"
    if value.is_complex():
        return value.real.to(dtype), "{}.real"
    cast = "{}.float()" if dtype == torch.float32 else f"{{}}.to({dtype})"

    return (value.to(dtype), cast) if value.dtype != dtype else None


def _of_array(value: Any, dtype: torch.dtype) -> tuple[Tensor, str] | None:
    """The numbers of what numpy can read."""
    code = "{}"
    if isinstance(value, np.ma.MaskedArray):
        array, code = np.asarray(value.filled(0)), "{}.filled(0)"
    elif hasattr(value, "to_numpy"):
        array, code = value.to_numpy(), "{}.to_numpy()"
        if array.dtype == object:  # nullable numbers, or columns of several types
            array, code = value.to_numpy(dtype="float64", na_value=np.nan), "{}.to_numpy('float64', na_value=np.nan)"
    else:
        array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        return None
    if any(stride < 0 for stride in array.strides) or not array.dtype.isnative:  # torch reads neither
        code = f"{code}.astype(float)"

    # What torch may not write to, as the numbers of pandas, it copies.
    make = "torch.as_tensor" if array.flags.writeable else "torch.tensor"

    return torch.tensor(array.astype(float), dtype=dtype), f"{make}({code}, dtype={dtype})"


# ---- what has no numbers ----


def _hopeless(name: str, value: Any, text: str) -> str:
    """The sentence for an argument without numbers that an error speaks of; empty for others."""
    is_of = f"Argument {name!r} is {describe(value)}"
    spoken = re.search(rf"\b({re.escape(type(value).__name__)}|index)\b", text)
    if value is None:
        return f"{is_of}, and the model reads it: pass the data to run()." if spoken else ""
    if isinstance(value, Mapping):
        one = f"one of its entries, such as {name}[{next(iter(value), '...')!r}]"
        return f"{is_of}, and the model reads it as one tensor: pass {one}." if spoken else ""
    if isinstance(value, set):
        return f"{is_of}, which have no order: pass torch.tensor of a list." if spoken else ""
    if isinstance(value, Iterator):
        made = f"torch.tensor(list({name}))"
        return f"{is_of}, which can be read once, and a model runs many times: pass {made}." if spoken else ""
    kind = _kind_of_entries(value)
    if kind and (spoken or re.search(r"ndarray|Categorical|Datetime|NoneType|kind|dtype|str\b|<U|ufunc|index", text)):
        return f"{is_of} that holds {kind}, and torch computes with numbers: {_KINDS[kind]}."

    return ""


_KINDS = {
    "text": "code the labels as 0, 1 and so on, such as torch.as_tensor(pandas.factorize(labels)[0])",
    "dates": "pass the time since the first one, in days for instance, as a tensor of floats",
    "objects": "pass floats only, with float('nan') for what is missing",
}


def _kind_of_entries(value: Any) -> str:
    """What a list or an array holds in the place of numbers; empty for numbers, and for what is neither."""
    if not isinstance(value, (list, tuple, np.ndarray)) and not hasattr(value, "to_numpy"):
        return ""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        return ""
    if array.dtype.kind in "mM":
        return "dates"
    if array.dtype.kind in "US" or (array.size and all(isinstance(each, str) for each in array.flat)):
        return "text"

    return "objects" if array.dtype == object else ""

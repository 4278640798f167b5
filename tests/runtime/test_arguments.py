"""Arguments: what is out of range is named, and model arguments are the same only by value."""

import functools
import math

import numpy as np
import pytest
import torch

from pyro_osds.runtime.arguments import (
    check_choices,
    check_counts,
    check_powers_of_two,
    constant_arguments,
    kept_arguments,
    same_arguments,
)


@pytest.mark.parametrize("count", [0, -1, 1.0, "3", True, None, float("nan")])
def test_counts(count):
    # Integers from one on pass; the name and the value of anything else are in the error.
    check_counts({"num_samples": 1, "num_chains": 10**6})
    with pytest.raises(ValueError, match=rf"num_chains must be an integer of at least 1, got {count!r}\."):
        check_counts({"num_samples": 1, "num_chains": count})


@pytest.mark.parametrize("count", [0, 3, 6, -2, 2.0, True, "4", None])
def test_powers_of_two(count):
    # One is a power of two.
    check_powers_of_two({name: 2**power for power, name in enumerate("abcdef")})
    with pytest.raises(ValueError, match=rf"num_steps must be a power of two, got {count!r}\."):
        check_powers_of_two({"num_steps": count})


def test_choices():
    # What is allowed is in the error as well.
    check_choices({"correction": ("imh", ("imh", "none")), "capture": (False, ("auto", False))})
    with pytest.raises(ValueError, match=r"correction must be one of \('imh', 'none'\), got 'mcmc'\."):
        check_choices({"correction": ("mcmc", ("imh", "none"))})


def test_the_same_by_value():
    # Tensors and containers by what is in them, at any depth.
    first = ((torch.tensor([1.0, 2.0]), [3, {"x": torch.zeros(2, 2)}]), {"y": torch.ones(1)})
    second = ((torch.tensor([1.0, 2.0]), [3, {"x": torch.zeros(2, 2)}]), {"y": torch.ones(1)})
    assert same_arguments(first, second)
    second[0][1][1]["x"][0, 1] = 1.0
    assert not same_arguments(first, second)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (torch.ones(2), torch.ones(3)),
        (torch.ones(2), torch.ones(2, 1)),
        (torch.ones(2), torch.ones(2, dtype=torch.float64)),
        (torch.ones(1), 1.0),
        ((1, 2), (1, 2, 3)),
        ({"x": 1}, {"y": 1}),
        ({"x": 1}, {"x": 1, "y": 2}),
        (torch.tensor([float("nan")]), torch.tensor([float("nan")])),
        (object(), object()),
        (None, 0),
    ],
)
def test_not_the_same(left, right):
    # Shape, type, length, names, and what cannot be compared.
    assert same_arguments(left, left) or isinstance(left, torch.Tensor)
    assert not same_arguments(left, right) and not same_arguments(right, left)


def test_data_that_change_in_place_are_other_data():
    # Kept tensors are copies, containers keep their types, and everything else is kept as it is.
    data, helper = torch.zeros(3, requires_grad=True), object()
    given = ((data, helper), {"x": [data.detach(), 5]})
    kept = kept_arguments(given)
    assert same_arguments(kept, given) and kept[0][1] is helper
    assert isinstance(kept[0], tuple) and isinstance(kept[1]["x"], list) and not kept[0][0].requires_grad
    with torch.no_grad():
        data[0] = 1.0
    assert not same_arguments(kept, given) and kept[0][0][0] == 0.0


# ---- what among them is constant data ----

X, Y = torch.arange(4.0), torch.tensor([1.0, math.nan, 3.0, 4.0])


def names(model, *args, observed=None, **kwargs):
    return list(constant_arguments(model, args, kwargs, {"y": Y} if observed is None else observed))


def test_constant_arguments():
    # Tensors and arrays by the model's own names; neither the observations, nor what is no tensor.
    def model(x, table, y, *more, scale=1.0, **rest):
        pass

    assert names(model, X, np.ones(2), Y, X, 3, scale=X, family="normal", weights=X) == [
        "x", "table", "more_0", "scale", "weights",
    ]  # fmt: skip
    assert names(functools.partial(model, X), np.ones(2), Y) == ["table"]
    assert constant_arguments(model, (X, np.ones(2)), {"y": Y}, {})["table"].tolist() == [1.0, 1.0]


def test_constant_arguments_of_a_module():
    # Those of its forward method.
    class Model(torch.nn.Module):
        def forward(self, x, y):
            pass

    assert names(Model(), X, Y) == ["x"]


def test_constant_arguments_of_what_tells_no_names():
    # By position.
    assert names(max, X, Y) == ["args_0"]


def test_observations_in_other_forms():
    # A copy, another type, or a series that is observed step by step; but not a table with other columns, too.
    table = torch.stack([X, Y], 1)
    assert names(lambda y: None, Y.clone()) == [] and names(lambda y: None, Y.double()) == []
    assert names(lambda y: None, Y, observed={f"y_{t}": Y[t] for t in range(4)}) == []
    assert names(lambda table: None, table, observed={"y": table[:, 1]}) == ["table"]

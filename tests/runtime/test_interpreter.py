"""The interpreter: one line an operation, values let go, constants made once, and never those that change."""

import weakref

import pytest
import torch
from torch.overrides import TorchFunctionMode

from pyro_osds.runtime.recording.interpreter import FUNCTIONS, Interpreter
from pyro_osds.runtime.recording.recorder import record_operations

POINT = torch.tensor([0.3, -1.2])
A, B, S = torch.randn(7, dtype=torch.float64), torch.randn(7, dtype=torch.float64), torch.randn(7)
N, M = torch.arange(7), torch.randn(7, 3)


def test_the_code_of_a_graph():
    # What the docstring of the module shows; names are those of the operations.
    code = Interpreter(record_operations(lambda z: (2 * z.exp(), z.sum()), torch.zeros(2))).code
    assert code.splitlines() == [
        "def run(v0):",
        "    v1 = exp_default(v0)",
        "    v2 = mul_Tensor(v1, 2); v1 = None",
        "    v3 = sum_default(v0); v0 = None",
        "    return (v2, v3, )",
    ]


def test_constants_are_computed_once():
    # What depends on no point: one operation is left of four.
    run = Interpreter(record_operations(lambda z: (z + torch.ones(2).exp().sum(),), POINT))
    assert len(run.code.splitlines()) == 3 and torch.equal(run(POINT)[0], POINT + torch.ones(2).exp().sum())


def test_what_is_changed_is_made_anew():
    # Also where it is changed through one view and read through another.
    def function(z):
        whole = torch.zeros(2)
        whole[:1].add_(z[:1])
        return (whole[1:] + whole[0],)

    run = Interpreter(record_operations(function, POINT))
    assert torch.equal(run(POINT)[0], run(POINT)[0]) and torch.equal(run(POINT)[0], POINT[:1])


def test_chance_is_not_a_constant():
    run = Interpreter(record_operations(lambda z: (z + torch.rand(2),), POINT))
    torch.manual_seed(0)
    first, second = run(POINT)[0], run(POINT)[0]
    torch.manual_seed(0)
    assert not torch.equal(first, second) and torch.equal(run(POINT)[0], first)


def test_values_are_let_go_where_they_were_last_used():
    # The exponential is gone when its square root is there, while the function still runs.
    run = Interpreter(record_operations(lambda z: (z.exp().sqrt().log(),), POINT))
    alive, names = [], run._run.__globals__
    for name in ("exp_default", "sqrt_default", "log_default"):
        names[name] = watched(names[name], alive)
    run(POINT)
    assert [number for _, number in alive] == [0, 1, 1]


def watched(operation, alive):
    """An operation that notes how many results of earlier ones live."""

    def call(*args):
        number = sum(value() is not None for value, _ in alive)
        result = operation(*args)
        alive.append((weakref.ref(result), number))
        return result

    return call


class _Doubled(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return 2 * result if isinstance(result, torch.Tensor) else result


def test_function_modes_are_not_seen():
    # As in TorchScript: the mode of whoever asks has no part in the record.
    run = Interpreter(record_operations(lambda z: (z.exp(),), POINT))
    with _Doubled():
        got = run(POINT)[0]
    assert torch.equal(got, POINT.exp())


ARGUMENTS = {
    "mul.Tensor": [(A, B), (A, 0.1), (S, 0.1), (N, 0.3), (N, 2), (A, S), (N, A)],
    "add.Tensor": [(A, B), (A, 1), (S, 0.1), (N, 0.3), (A, B, {"alpha": 2.0})],
    "sub.Tensor": [(A, B), (A, 1.5), (A, B, {"alpha": 3})],
    "div.Tensor": [(A, B), (N, 3), (S, 0.3)],
    "where.self": [(A > 0, A, B), (A > 0, S, A)],
    "permute.default": [(M, [1, 0]), (M, [-1, 0])],
    "select.int": [(M, 1, 0), (M, -1, -1)],
    "unbind.int": [(M, 1), (M,), (M, -1)],
    "unsqueeze.default": [(A, 0), (A, -1)],
    "stack.default": [([A, B],), ([A, B], 1), ([A, B], -1)],
    "cat.default": [([A, B],), ([M, M], 1)],
}


@pytest.mark.parametrize("operation", FUNCTIONS, ids=str)
def test_functions_have_the_bits_of_their_operations(operation):
    name = str(operation).removeprefix("aten.")
    for args in ARGUMENTS.get(name, [(A.abs(),), (S.abs(),)]):
        kwargs = args[-1] if isinstance(args[-1], dict) else {}
        given = args[: len(args) - bool(kwargs)]
        expected, got = operation(*given, **kwargs), FUNCTIONS[operation](*given, **kwargs)
        pairs = zip(got, expected, strict=True) if isinstance(expected, (list, tuple)) else [(got, expected)]
        for one, other in pairs:
            assert one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(one, other)

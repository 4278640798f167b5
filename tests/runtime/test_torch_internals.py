"""Private names of torch: each is there and does what it is for; and what happens when it is gone."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.distributions import Distribution, Normal
from torch.overrides import TorchFunctionMode
from torch.utils import _python_dispatch

from pyro_osds.runtime import torch_internals
from pyro_osds.runtime.recording.interpreter import Interpreter
from pyro_osds.runtime.recording.recorder import record_operations

ADD, ADD_IN_PLACE = torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor
POINT = torch.tensor([0.3, -1.2])


class _Seen(torch_internals.DispatchMode):
    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations.append(func)
        return func(*args, **(kwargs or {}))


def test_dispatch_mode():
    # Sees operations below vmap and autograd, and is what torch asks whether a compiler may be skipped.
    with _Seen() as seen:
        torch.func.vmap(lambda x: x.exp())(POINT)
    assert torch.ops.aten.exp.default in seen.operations
    assert _python_dispatch.TorchDispatchMode._should_skip_dynamo.__name__ in vars(torch_internals.DispatchMode)


def test_operations_to_python():
    # A number and a comparison pass through them.
    with _Seen() as seen:
        POINT.sum().item(), torch.equal(POINT, POINT)
    expected = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default}
    assert torch_internals.TO_PYTHON & set(seen.operations) == expected


def test_what_an_operation_changes():
    assert torch_internals.is_mutable(ADD_IN_PLACE) and not torch_internals.is_mutable(ADD)
    assert torch_internals.written_arguments(ADD_IN_PLACE, (1, 2)) == [1]
    assert torch_internals.written_arguments(ADD, (1, 2)) == []


def test_direct_calls():
    # The same result; without the name the operation itself, which is what the interpreter then calls.
    direct = torch_internals.direct_call(ADD)
    assert direct is not ADD and torch.equal(direct(POINT, 1.0), POINT + 1.0)
    assert torch_internals.direct_call(torch.exp) is torch.exp


def test_interpreter_without_direct_calls(monkeypatch):
    monkeypatch.setattr("pyro_osds.runtime.recording.interpreter.direct_call", lambda operation: operation)
    run = Interpreter(record_operations(lambda z: (z.exp(),), POINT))
    assert torch.equal(run(POINT)[0], POINT.exp())


def test_memory_is_told_apart():
    # Empty tensors too, whose addresses are all zero.
    first, second = torch.empty(0), torch.empty(0)
    assert torch_internals.memory_of(first) == torch_internals.memory_of(first.view(0, 1))
    assert torch_internals.memory_of(first) != torch_internals.memory_of(second)


def test_batched_tensors():
    seen = []
    torch.func.vmap(lambda x: seen.append(torch_internals.is_batchedtensor(x)) or x)(POINT)
    assert seen == [True] and not torch_internals.is_batchedtensor(POINT)


def test_checks_of_arguments():
    # Distributions check with it, so under vmap it has another answer.
    assert (torch._is_all_true,) == torch_internals.ARGUMENT_CHECKS


@pytest.mark.parametrize(
    ("layer", "is_batch"),
    [
        (nn.BatchNorm1d(2), True),
        (nn.SyncBatchNorm(2), True),
        (nn.LazyBatchNorm2d(), True),
        (nn.InstanceNorm1d(2), False),
    ],
)
def test_normalisation_layers(layer, is_batch):
    assert isinstance(layer, torch_internals.NormLayer)
    assert isinstance(layer, torch_internals.BatchNorm) == is_batch


def test_layers_without_statistics():
    assert not isinstance(nn.LayerNorm(2), torch_internals.NormLayer)


class _Refusing(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        raise AssertionError("seen")


def test_without_function_modes():
    with _Refusing():
        with torch_internals.without_function_modes():
            value = ADD(POINT, 1.0)
        with pytest.raises(AssertionError, match="seen"):
            ADD(POINT, 1.0)
    assert torch.equal(value, POINT + 1.0)


@pytest.mark.parametrize("is_on", [True, False])
def test_validation_is_put_back(is_on):
    # Also when what ran inside failed.
    before = Distribution._validate_args
    try:
        Distribution.set_default_validate_args(is_on)
        with pytest.raises(ZeroDivisionError), torch_internals.unchanged_validation():
            Distribution.set_default_validate_args(not is_on)
            raise ZeroDivisionError
        assert Distribution._validate_args == is_on == Normal(0.0, 1.0)._validate_args
    finally:
        Distribution.set_default_validate_args(before)


def test_validation_survives_the_import_of_zuko():
    code = (
        "import torch; from pyro_osds.flow import network; import zuko; "
        "print(torch.distributions.Distribution._validate_args)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_adam_is_wrapped_and_unwrapped():
    # What wraps it imports a compiler; what was never wrapped stays as it is.
    step = torch_internals.undecorated(torch.optim.Adam.step)
    assert step is not torch.optim.Adam.step and not hasattr(step, "__wrapped__")
    assert torch_internals.undecorated(step) is step


def test_a_shared_covariance_has_one_factor():
    fn = torch.distributions.MultivariateNormal(torch.zeros(5, 2), torch.eye(2)).expand([3, 5])
    assert hasattr(fn, "_unbroadcasted_scale_tril")
    assert torch_internals.unexpanded_factor(fn).shape == (2, 2)
    # Without the private name, the expanded one stands in.
    assert torch_internals.unexpanded_factor(type("Gone", (), {"scale_tril": torch.eye(2)})()).shape == (2, 2)


def test_batches_and_gradients_behind_them():
    # get_unwrapped, maybe_get_bdim: whether a gradient is wanted of a batch, and where its points lie.
    seen = []

    def look(x):
        seen.append((torch_internals.has_gradient(x), torch_internals.whole_batch(x)[1], x.shape))
        return x

    torch.func.vmap(look, in_dims=1)(torch.ones(3, 2, requires_grad=True))
    torch.func.vmap(look)(torch.ones(2, 3))
    assert seen == [(True, 1, (3,)), (False, 0, (3,))]
    assert torch_internals.whole_batch(torch.ones(1))[1] == -1


def test_function_modes_are_listed():
    # _get_current_function_mode_stack, innermost last.
    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    before = len(torch_internals.function_modes())
    with Mode() as outer, Mode() as inner:
        assert torch_internals.function_modes()[before:] == [outer, inner]


def test_views_of_a_copy():
    x, copies = torch.arange(6.0).reshape(2, 3), {}
    row, column = torch_internals.same_view(x[1], copies), torch_internals.same_view(x[:, 0], copies)
    row += 10.0
    assert row.tolist() == [13.0, 14.0, 15.0] and column.tolist() == [0.0, 13.0]
    assert x.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]] and len(copies) == 1


def test_without_dispatch_modes():
    # _disable_current_modes, under which a record in the making sees nothing.
    seen = []

    class Mode(torch_internals.DispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            seen.append(operation)
            return operation(*args, **(kwargs or {}))

    with Mode():
        torch.ones(1).exp()
        count = len(seen)
        with torch_internals.without_dispatch_modes():
            torch.ones(1).exp()
    assert count == len(seen) > 0


def test_the_fused_adam_is_adam_by_hand():
    # _fused_adam_, against the formula: x - lr * m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps).
    x, m, v, steps = torch.ones(3), torch.zeros(3), torch.zeros(3), torch.zeros(())
    mean, square, expected = torch.zeros(3).double(), torch.zeros(3).double(), torch.ones(3).double()
    for step in range(1, 4):
        gradient = torch.tensor([1.0, -2.0, 0.5]) * step
        torch_internals.fused_adam(x, gradient, m, v, steps, 0.1, 0.9, 0.99, 1e-8)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.99 * square + 0.01 * gradient.double().square()
        expected -= 0.1 * mean / (1 - 0.9**step) / ((square / (1 - 0.99**step)).sqrt() + 1e-8)
    torch.testing.assert_close(x.double(), expected, rtol=1e-6, atol=1e-6)
    assert steps.item() == 3

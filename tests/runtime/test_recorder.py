"""The recorder: what it replays is what the function does, and what cannot be replayed is an error."""

import subprocess
import sys

import pytest
import torch

from pyro_osds.runtime.recording.execution import freeze
from pyro_osds.runtime.recording.recorder import record_operations

POINTS = torch.tensor([[0.3, -1.2], [2.0, 0.7], [-0.4, 0.1]])
OTHERS = torch.tensor([[1.5, 0.2], [-0.3, 1.1], [0.9, -2.0]])
WEIGHTS = torch.tensor([2.0, -3.0])


def written_in_place(z):
    # A tensor of zeros, views of it, and changes through the views.
    out = torch.zeros(len(z), 3)
    first = out[:, 0]
    first.copy_(z[:, 0])
    out[:, 1:] += z.cumsum(-1)
    first.mul_(2.0)
    return (out,)


def several_results(z):
    value, index = z.max(-1)
    first, second = z.unbind(-1)
    return value, index, first * second


def under_vmap(z):
    return torch.func.vmap(lambda row: (row @ WEIGHTS, (row * torch.arange(2.0)).sum()))(z)


def with_gradient(z):
    z = z.detach().requires_grad_()
    with torch.enable_grad():
        value = (z.sigmoid() * WEIGHTS).sum(-1).exp()
        (gradient,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), gradient


def with_constants_read(z):
    # A number that Python takes from a constant is a constant of the record.
    return (z * WEIGHTS.sum().item() + torch.tensor(0.5),)


def with_constants_changed(z):
    # Nothing here is known before the first replay: what is written to later is made anew each time, views too.
    zeros = torch.zeros(2, 2)
    first, second = zeros.unbind(0)
    shared = torch.ones(2).cumsum(0)
    second.add_(shared)
    first.sub_(z.sum(0))
    return zeros.sum(0), second * shared, zeros


def with_indices(z):
    # Lists with gaps among the arguments, numbers that are not finite, and a result that is an input.
    bounded = z.clamp(min=-torch.inf, max=1.0)
    return bounded[:, torch.tensor([1, 0])], torch.stack([z, bounded], 1), z.split([1, 1], -1)[1], z


FUNCTIONS = [
    written_in_place, several_results, under_vmap, with_gradient, with_constants_read, with_constants_changed,
    with_indices,
]  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_record_does_what_the_function_does(function, replay):
    # At other points than the recorded ones, more than once: nothing of one replay is left in the next.
    graph = record_operations(function, POINTS)
    frozen = freeze(graph, (POINTS,))
    for z in (OTHERS, POINTS, OTHERS):
        before = z.clone()
        for run in (graph, frozen):
            for got, expected in zip(run(z), function(z), strict=True):
                assert torch.equal(got, expected)
        assert torch.equal(z, before)


def test_constants_are_copied_by_reference():
    # What belongs to somebody else is neither copied nor changed.
    graph = record_operations(lambda z: (z @ WEIGHTS,), POINTS)
    assert [buffer.data_ptr() for buffer in graph.buffers()] == [WEIGHTS.data_ptr()]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda z: (z * z.sum().item(),), "brings a value that depends on the point to Python"),
        (lambda z: (z if z.sum() > 0 else -z,), "brings a value that depends on the point to Python"),
        (lambda z: (WEIGHTS.add_(z.sum()),), "changes a tensor that was there before"),
        (lambda z: (z.mul_(2.0),), "changes a tensor that was there before"),
        (lambda z: (WEIGHTS[1:].mul_(2.0),), "changes a tensor that was there before"),
        (lambda z: (3.0,), "must give tensors, got float"),
    ],
)
def test_what_cannot_be_replayed(function, message):
    before = WEIGHTS.clone()
    with pytest.raises(RuntimeError, match=message):
        record_operations(function, POINTS.clone())
    assert torch.equal(WEIGHTS, before)


def test_no_compiler_is_imported():
    # TorchDynamo takes seconds to import, as long as many a run takes in all.
    code = (
        "import sys, torch; from pyro_osds.runtime.recording.recorder import record_operations; "
        "record_operations(lambda z: (z.exp(),), torch.zeros(2)); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def operations(function, *shape):
    """The names of the operations of a function that are recorded, and whether the record gives its values."""
    z = torch.randn(*shape, dtype=torch.float64)
    graph = record_operations(function, z)
    other = torch.randn_like(z)
    for got, expected in zip(graph(other), function(other), strict=True):
        assert torch.equal(got, expected)
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


def test_what_repeats_is_computed_once():
    def twice(z):
        return ((2.0 * z).exp() + (2.0 * z).exp() * (2 * z), z.square().pow(1.0) - z)

    names = operations(twice, 4)
    # Two and two point nought are not the same argument; a square to the power of one is the square.
    assert names.count("aten.mul.Tensor") == 3 and names.count("aten.exp.default") == 1
    assert names.count("aten.pow.Tensor_Scalar") == 1


def test_axes_that_stay_in_order_are_no_operation():
    names = operations(lambda z: (z.permute(0).exp(), z[:, None].permute(0, 1) + z[:, None].permute(1, 0)), 3)
    assert names.count("aten.permute.default") == 1


def test_what_is_written_is_computed_as_often_as_it_is_asked_for():
    def written(z):
        first, second = z * 2.0, z * 2.0
        first += 1.0
        return (first, second)

    def through_a_view(z):
        first, second = torch.zeros_like(z), torch.zeros_like(z)
        first[1:] = z[1:]
        return (first + second, z)

    def between(z):
        own = z.clone()
        before = own.exp()
        own += 1.0
        return (before, own.exp())

    def parts(z):
        (one, _), (other, _) = z.sort(), z.sort()
        one += 1.0
        return (one, other)

    def random(z):
        return (torch.zeros_like(z).add(z), z + 0.0)

    for function in (written, through_a_view, between, parts, random):
        operations(function, 5)


def test_chance_is_never_merged():
    graph = record_operations(lambda z: (torch.rand_like(z), torch.rand_like(z)), torch.zeros(8))
    first, second = graph(torch.zeros(8))
    assert not torch.equal(first, second)


def test_results_never_share_memory_that_they_did_not_share():
    graph = record_operations(lambda z: (z * 2.0, z * 2.0, torch.zeros_like(z), torch.zeros_like(z)), torch.zeros(3))
    parts = graph(torch.ones(3))
    parts[0].add_(1.0)
    parts[2].add_(1.0)
    assert parts[1].tolist() == [2.0] * 3 and parts[3].tolist() == [0.0] * 3
    assert graph(torch.ones(3))[2].tolist() == [0.0] * 3

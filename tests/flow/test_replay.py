"""Replayed passes of a flow: the same numbers to the last bit, also after its parameters have changed.

The leap with its score is in closed form: the same numbers as autograd's but for rounding, and to the last bit those of
its own first calls.
"""

import subprocess
import sys

import pytest
import torch

from pyro_osds.flow.coupling import FlowMap
from pyro_osds.flow.replay import ReplayedFlow
from pyro_osds.train.flat import FlatParameters


def flow_of(dim, num_spline_blocks=1, dtype=torch.float32):
    """A flow that is not the identity."""
    flow = FlowMap(dim, num_blocks=4, num_spline_blocks=num_spline_blocks, hidden_features=16).to(dtype)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return flow


def passes(flow, x, calls):
    """Values and gradients of passes forward and back, of each of some calls, with parameters that change."""
    seen = []
    for _ in range(calls):
        y, log_abs_det, score = flow.forward_with_score(x, -x, 0.0, 1.0)
        back, log_back = flow.inverse(x, 0.0, 1.0)
        total = (y * x).sum() + log_abs_det.square().sum() + (back * log_back[:, None]).sum()
        parameters = list(flow.parameters())
        gradients = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
        seen += [y, log_abs_det, score, back, log_back, *gradients]
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= 1e-3 * gradient / (1 + gradient.norm())
    return [value.detach() for value in seen]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_spline_blocks", [0, 1, 2])
@pytest.mark.parametrize("dim", [1, 5])
def test_replays_are_the_passes(dim, num_spline_blocks, dtype, replay):
    torch.manual_seed(0)
    flow = flow_of(dim, num_spline_blocks, dtype)
    weights = {name: value.clone() for name, value in flow.state_dict().items()}
    x = torch.randn(32, dim, dtype=dtype)
    expected = passes(flow, x, 14)
    flow.load_state_dict(weights)
    replayed = ReplayedFlow(flow)
    got = passes(replayed, x, 14)
    assert len(replayed._replays) == 1 and [leap._forward is None for leap in replayed._leaps.values()] == [False]
    tolerance = 1e-9 if dtype is torch.float64 else 2e-4
    for one, other in zip(got, expected, strict=True):
        assert torch.allclose(one, other, atol=tolerance * (1.0 + other.abs().max().item()), rtol=0.0)
        assert one.dtype == other.dtype and one.shape == other.shape


@pytest.mark.parametrize("with_vector", [False, True])
def test_recorded_leaps_are_the_first_ones_to_the_last_bit(with_vector, replay):
    # A run that was paused begins with calls that are not recorded, where one that was not goes on with a record.
    torch.manual_seed(0)
    flow = flow_of(4, 2)
    vector = FlatParameters(flow).vector if with_vector else None
    leaves = list(flow.parameters()) if vector is None else [vector]
    late, x = ReplayedFlow(flow, vector), torch.randn(16, 4)

    def asked(replayed):
        y, log_abs_det, score = replayed.forward_with_score(x, -x, 0.0, 1.0)
        gradients = torch.autograd.grad((y * x).sum() + log_abs_det.square().sum(), leaves)
        return [y, log_abs_det, score, *gradients]

    for _ in range(12):
        got = asked(late)
    for one, other in zip(got, asked(ReplayedFlow(flow, vector)), strict=True):
        assert torch.equal(one, other)


def test_another_kind_of_call_is_another_replay(replay):
    # Shapes, times and step sizes are constants of a replay; each kind has its own.
    torch.manual_seed(0)
    flow = flow_of(3)
    replayed = ReplayedFlow(flow)
    for size, t, d in [(8, 0.0, 1.0), (9, 0.0, 1.0), (8, 0.5, 0.5), (8, 0.0, 1.0)]:
        x = torch.randn(size, 3)
        for _ in range(12):
            got = replayed.forward_with_score(x, -x, t, d)
        for one, other in zip(got, flow.forward_with_score(x, -x, t, d), strict=True):
            assert torch.allclose(one, other.to(one.dtype), atol=1e-4)
    assert len(replayed._leaps) == 3


def test_two_steps_hand_gradients_through_points(replay):
    # The second step's points carry the gradient back to the first one's weights, also where both are of one kind.
    torch.manual_seed(0)
    flow = flow_of(3, 1, torch.float64)
    replayed, x = ReplayedFlow(flow), torch.randn(16, 3, dtype=torch.float64)
    parameters = list(flow.parameters())

    def gradients(given):
        y, first, score = given.forward_with_score(x, -x, 0.0, 0.5)
        y, second, score = given.forward_with_score(y, score, 0.0, 0.5)
        return torch.autograd.grad((y.square() * x).sum() + (first * second).sum(), parameters)

    for _ in range(12):
        got = gradients(replayed)
    for one, other in zip(got, gradients(flow), strict=True):
        assert torch.allclose(one, other, atol=1e-9 * (1.0 + other.abs().max().item()), rtol=0.0)


def test_weights_that_change_between_leap_and_gradient_are_noticed():
    flow = flow_of(2)
    replayed, x = ReplayedFlow(flow), torch.randn(8, 2)
    y, _, _ = replayed.forward_with_score(x, -x, 0.0, 1.0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_what_is_not_replayed():
    # Times as tensors, points with a gradient of their own, and evaluations without gradients run as they are.
    flow = flow_of(2)
    replayed = ReplayedFlow(flow)
    x = torch.randn(4, 2)
    for _ in range(12):
        replayed.inverse(x, torch.zeros(4, 1), torch.ones(4, 1))
        y, _ = replayed.inverse(x.clone().requires_grad_(), 0.0, 1.0)
        with torch.no_grad():
            replayed.inverse(x, 0.0, 1.0)
    assert not replayed._replays and y.requires_grad
    (gradient,) = torch.autograd.grad(y.sum(), y)
    assert torch.equal(gradient, torch.ones(4, 2))


def test_a_run_imports_no_compiler(replay):
    # TorchDynamo and symbolic algebra take as long to import as a small posterior takes to fit.
    code = """
import sys, torch, pyro, pyro.distributions as dist
from pyro_osds import OSDS
def model():
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, 10.0), obs=torch.arange(8.0))
osds = OSDS(model, num_samples=50, num_iterations=15, escalate=False, disable_progbar=True)
osds.run()
osds.draw(100)
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

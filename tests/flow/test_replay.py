"""Replayed passes of a flow: the same numbers to the last bit, also after its parameters have changed."""

import subprocess
import sys

import pytest
import torch

from pyro_osds.flow.coupling import FlowMap
from pyro_osds.flow.replay import ReplayedFlow


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
    assert len(replayed._replays) == 2
    for one, other in zip(got, expected, strict=True):
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
            assert torch.equal(one, other)
    assert len(replayed._replays) == 3


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

"""Parameters that are views of one vector, and Adam on it."""

import copy

import pytest
import torch
from torch import nn

from pyro_osds.runtime.light_adam import LightAdam
from pyro_osds.train.flat import FlatAdam, FlatParameters


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))


def test_parameters_and_vector_are_one():
    module = network()
    before = [parameter.detach().clone() for parameter in module.parameters()]
    flat = FlatParameters(module)
    assert all(torch.equal(one, other) for one, other in zip(before, module.parameters(), strict=True))
    module.load_state_dict({name: value + 1.0 for name, value in module.state_dict().items()})
    joined = torch.cat([value.flatten() + 1.0 for value in before])
    assert torch.equal(flat.vector.detach(), joined) and not flat.keep()


def test_a_module_that_got_other_memory_is_followed():
    module = network()
    flat = FlatParameters(module)
    values = {name: value + 2.0 for name, value in module.state_dict().items()}
    module.load_state_dict(values, assign=True)
    # Assigned parameters are other objects; their values are those that count.
    assert flat.keep() is True or list(module.parameters())[0] is not flat.parameters[0]
    module.double()
    flat = FlatParameters(module)
    assert flat.vector.dtype == torch.float64
    module.float()
    assert flat.keep() and flat.vector.dtype == torch.float32
    with torch.no_grad():
        flat.vector.fill_(1.0)
    assert all(bool((parameter == 1.0).all()) for parameter in module.parameters())


@pytest.mark.parametrize("at", [0, 3])
def test_adam_on_the_vector_is_adam(at):
    # Step by step, the rate and the first beta changing as in a one-cycle schedule; a state goes either way.
    one, other = network(), network()
    plain, flat = LightAdam(one.parameters(), lr=0.1, fused=True), FlatParameters(other)
    ours = FlatAdam(flat, lr=0.1)
    for step in range(6):
        gradient = torch.randn(len(flat.vector))
        flat.vector.grad = gradient
        for parameter, part in zip(one.parameters(), flat.views(gradient), strict=True):
            parameter.grad = part
        for optimizer in (plain, ours):
            optimizer.param_groups[0].update(lr=0.1 / (1 + step), betas=(0.95 - 0.01 * step, 0.999))
            optimizer.step()
        if step == at:
            state = copy.deepcopy(plain.state_dict())
            assert state["state"].keys() == ours.state_dict()["state"].keys()
            plain.load_state_dict(copy.deepcopy(ours.state_dict()))
            ours.load_state_dict(state)
    joined = torch.cat([parameter.detach().flatten() for parameter in one.parameters()])
    torch.testing.assert_close(flat.vector.detach(), joined, rtol=1e-6, atol=1e-6)


def test_a_state_without_a_step_is_a_start():
    flat = FlatParameters(network())
    ours = FlatAdam(flat, lr=0.1)
    empty = copy.deepcopy(ours.state_dict())
    flat.vector.grad = torch.ones_like(flat.vector)
    start = flat.vector.detach().clone()
    ours.step()
    ours.load_state_dict(empty)
    with torch.no_grad():
        flat.vector.copy_(start)
    ours.step()
    torch.testing.assert_close(start - flat.vector.detach(), torch.full_like(start, 0.1))


def test_a_closure_is_refused():
    with pytest.raises(ValueError, match="takes no closure"):
        FlatAdam(FlatParameters(network()), lr=0.1).step(lambda: 0.0)

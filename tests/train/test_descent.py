"""What optimiser steps have in common: gradients that are clipped or left out, and the average of the weights."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import get_total_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pyro_osds.train.descent import MovingAverage, clip_flat, clipped, flat_gradient, gradients_of
from pyro_osds.train.flat import FlatParameters


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def test_the_average_is_that_of_torch():
    # Bit for bit, the first one included, and its state is read by torch's own.
    module = network()
    ours, torchs = MovingAverage(module), AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.98))
    for _ in range(4):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))
        ours.update()
        torchs.update_parameters(module)
    assert ours.state_dict().keys() == torchs.state_dict().keys()
    assert all(torch.equal(value, torchs.state_dict()[name]) for name, value in ours.state_dict().items())


def test_an_average_goes_on_from_a_state():
    # What was loaded is what the next update starts from.
    module = network()
    average = MovingAverage(module)
    average.update()
    again = MovingAverage(module)
    again.load_state_dict(average.state_dict())
    with torch.no_grad():
        module[0].weight.add_(1.0)
    average.update()
    again.update()
    assert torch.equal(average.module[0].weight, again.module[0].weight)
    assert not torch.equal(average.module[0].weight, module[0].weight)


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_gradients_have_a_norm_of_one_at_most(factor):
    # Shorter ones stay as they are, longer ones keep their direction.
    module = network()
    parameters = list(module.parameters())
    gradients = gradients_of(module(torch.ones(1, 3)).sum(), parameters)
    gradients = tuple(factor * gradient / get_total_norm(gradients) for gradient in gradients)
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    assert clipped(parameters, gradients, get_total_norm(gradients))
    put = torch.cat([parameter.grad.flatten() for parameter in parameters])
    torch.testing.assert_close(put, flat * min(1.0, 1.0 / factor))
    clipped_in_place = flat.clone()
    assert clip_flat(clipped_in_place)
    torch.testing.assert_close(clipped_in_place, put)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_gradients_that_are_not_finite_are_left_out(value):
    # A single entry is enough; gradients from before are not touched.
    parameters = list(network().parameters())
    gradients = [torch.zeros_like(parameter) for parameter in parameters]
    assert clipped(parameters, gradients, get_total_norm(gradients))
    gradients = [gradient.clone() for gradient in gradients]
    gradients[2][0, 1] = value
    assert not clipped(parameters, gradients, get_total_norm(gradients))
    assert all(not parameter.grad.any() for parameter in parameters)
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    before = flat.clone()
    assert not clip_flat(flat) and torch.equal(flat.nan_to_num(7.0), before.nan_to_num(7.0))


def test_what_a_loss_does_not_depend_on_has_a_gradient_of_zero():
    # Rather than none, which an optimiser would skip.
    module = network()
    gradients = gradients_of(module[0](torch.ones(1, 3)).sum(), list(module.parameters()))
    assert gradients[0].any() and not gradients[2].any() and gradients[2].shape == (2, 4)


def test_a_gradient_by_vector_and_by_parameters_adds_up():
    # A loss may see the vector, single parameters, both, or neither.
    module = network()
    flat = FlatParameters(module)
    weight = module[0].weight
    expected = torch.full_like(flat.vector, 3.0).detach()
    expected[: weight.numel()] += 2.0 * weight.detach().flatten()
    assert torch.equal(flat_gradient(3.0 * flat.vector.sum() + weight.square().sum(), flat), expected)
    torch.testing.assert_close(flat_gradient(weight.square().sum(), flat), expected - 3.0)
    assert not flat_gradient(torch.zeros(1, requires_grad=True).sum(), flat).any()


def test_an_average_on_one_vector_is_the_average():
    # The same numbers, and the same state, as parameter by parameter.
    torch.manual_seed(0)
    module = network()
    flat = FlatParameters(module)
    one, other = MovingAverage(module), MovingAverage(module, flat)
    for _ in range(4):
        with torch.no_grad():
            flat.vector.add_(torch.randn_like(flat.vector))
        one.update()
        other.update()
    expected, got = one.state_dict(), other.state_dict()
    assert expected.keys() == got.keys() and got["n_averaged"] == 4
    assert all(torch.equal(value, got[name]) for name, value in expected.items())

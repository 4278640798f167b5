"""The network room: zero at the start, then a function of the fixed coordinates, the time and the step."""

import torch
from helpers import perturbed

from pyro_osds.network import Conditioner


def column(*values):
    return torch.tensor(values)[:, None]


def test_untrained_output_is_zero():
    # Zero heads: the flow starts as the identity, wherever it is asked.
    network = Conditioner(3, 4, hidden_features=8)
    assert not network(10 * torch.randn(5, 3), column(0.3), column(0.7)).any()


def test_untrained_heads_still_learn():
    # A zero output with a zero gradient would never move: both heads have one.
    network = Conditioner(2, 1, hidden_features=8)
    network(torch.randn(5, 2), column(0.3), column(0.7)).sum().backward()
    assert network.curve[-1].weight.grad.any() and network.line.weight.grad.any()


def test_every_input_matters():
    # Perturbed weights: each coordinate, the time and the step change the output.
    network = perturbed(Conditioner(2, 3, hidden_features=8), 0.3)
    x, t, d = torch.randn(1, 2), column(0.25), column(0.5)
    output = network(x, t, d)
    for changed in [
        (x + torch.tensor([1.0, 0.0]), t, d),
        (x + torch.tensor([0.0, 1.0]), t, d),
        (x, t + 0.5, d),
        (x, t, d + 0.5),
    ]:
        assert (network(*changed) - output).abs().max() > 1e-4


def test_one_time_for_all_rows_is_the_same_as_one_each():
    # (1, 1) and (B, 1) times give the same output.
    network = perturbed(Conditioner(2, 3, hidden_features=8))
    x = torch.randn(4, 2)
    shared = network(x, column(0.25), column(0.5))
    torch.testing.assert_close(network(x, column(*[0.25] * 4), column(*[0.5] * 4)), shared)


def test_without_fixed_coordinates_one_row_serves_all():
    # Nothing but time and step is read: as many rows as there are different times.
    network = perturbed(Conditioner(0, 3, hidden_features=8))
    assert network(torch.zeros(6, 0), column(0.0), column(1.0)).shape == (1, 3)
    assert network(torch.zeros(2, 0), column(0.0, 0.5), column(1.0)).shape == (2, 3)


def test_linear_part():
    # With the curve's head at zero the network is exactly the linear map of (x, t, d).
    network = Conditioner(2, 3, hidden_features=8)
    perturbed(network.line, 1.0)
    x, t, d = torch.randn(4, 2), column(0.25), column(0.5)
    expected = torch.cat([x, t.expand(4, 1), d.expand(4, 1)], -1) @ network.line.weight.T
    torch.testing.assert_close(network(x, t, d), expected)

"""Network: zero, or guidance alone, at the start; then a function of coordinates, time and step."""

import torch
from helpers import perturbed

from pyro_osds.flow.network import Conditioner, ControlNetwork


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


def test_untrained_control_is_the_guidance():
    # Zero head, gate one: exactly, at any time and step.
    network = ControlNetwork(3, hidden_features=8)
    guidance = torch.randn(5, 3)
    assert torch.equal(network(10 * torch.randn(5, 3), column(0.3), column(0.7), guidance), guidance)


def test_untrained_control_still_learns():
    # The zero heads of curve and gate both have a gradient.
    network = ControlNetwork(2, hidden_features=8)
    network(torch.randn(5, 2), column(0.3), column(0.7), torch.randn(5, 2)).square().sum().backward()
    assert network.curve[-1].weight.grad.any() and network.gate[-1].weight.grad.any()


def test_every_input_of_the_control_matters():
    # Perturbed weights: each coordinate, the time, the step and the guidance change the output.
    network = perturbed(ControlNetwork(2, hidden_features=8), 0.3)
    x, t, d, guidance = torch.randn(1, 2), column(0.25), column(0.5), torch.randn(1, 2)
    output = network(x, t, d, guidance)
    for changed in [
        (x + torch.tensor([1.0, 0.0]), t, d, guidance),
        (x + torch.tensor([0.0, 1.0]), t, d, guidance),
        (x, t + 0.5, d, guidance),
        (x, t, d + 0.5, guidance),
        (x, t, d, guidance + 1),
    ]:
        assert (network(*changed) - output).abs().max() > 1e-3


def test_gate_scales_guidance_by_time_and_step_alone():
    # The control is affine in the guidance, with a slope that no point changes.
    network = perturbed(ControlNetwork(2, hidden_features=8), 0.3)
    x, guidance = torch.randn(4, 2), torch.randn(4, 2)
    slopes = [
        (network(x, t, d, guidance) - network(x, t, d, 0 * guidance)) / guidance
        for t, d in [(column(0.25), column(0.5)), (column(0.75), column(0.5)), (column(0.25), column(0.25))]
    ]
    for slope in slopes:
        torch.testing.assert_close(slope, slope[:1].expand(4, 2), rtol=1e-4, atol=1e-4)
    assert all((slopes[0] - slope).abs().max() > 1e-3 for slope in slopes[1:])


def test_control_with_one_time_for_all_rows():
    # (1, 1) and (B, 1) times give the same output, row by row.
    network = perturbed(ControlNetwork(2, hidden_features=8), 0.3)
    x, guidance = torch.randn(4, 2), torch.randn(4, 2)
    shared = network(x, column(0.25), column(0.5), guidance)
    torch.testing.assert_close(network(x, column(*[0.25] * 4), column(0.5), guidance), shared)
    torch.testing.assert_close(network(x, column(*[0.25] * 4), column(*[0.5] * 4), guidance), shared)
    mixed = network(x, column(0.25, 0.0, 0.5, 0.25), column(0.5, 0.5, 0.5, 0.5), guidance)
    torch.testing.assert_close(mixed[[0, 3]], shared[[0, 3]])
    assert (mixed[[1, 2]] - shared[[1, 2]]).abs().max() > 1e-4


def test_one_time_and_many_steps():
    # Either of time and step size may be shared by all points.
    network, x = perturbed(ControlNetwork(2, 8)), torch.randn(3, 2)
    t, d = torch.full((1, 1), 0.5), torch.tensor([[0.1], [0.2], [0.5]])
    torch.testing.assert_close(network(x, t, d, x), network(x, t.expand(3, 1), d, x))


def test_between_many_coordinates_the_linear_part_has_a_low_rank(float64):
    # Still the identity's zeros before training, and weights that grow linearly with the number of coordinates.
    networks = [Conditioner(size, 2 * size, hidden_features=8) for size in (400, 800)]
    fewer, more = (sum(weights.numel() for weights in network.parameters()) for network in networks)
    assert more < 2 * fewer
    x, t, d = torch.randn(3, 400), torch.zeros(3, 1), torch.ones(3, 1)
    assert networks[0](x, t, d).eq(0).all()
    line = perturbed(networks[0], 0.3).line(torch.eye(402))
    assert torch.linalg.matrix_rank(line) == 8

"""Passes in closed form, against autograd in double precision and against differences."""

import pytest
import torch

from pyro_osds.flow import curve, network
from pyro_osds.flow.coupling import FlowMap
from pyro_osds.flow.folding import Folding
from pyro_osds.flow.passes import Passes

BOUND, OFFSET = 6.0, 4.0


def folded(flow, d):
    folding = Folding(flow, d)
    folding.fill(torch.cat([parameter.detach().flatten() for parameter in flow.parameters()]))
    return folding


def flow_of(dim, num_blocks, num_spline_blocks, size=0.1, groups=()):
    flow = FlowMap(dim, groups, num_blocks, num_spline_blocks, hidden_features=16).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return flow


@pytest.mark.parametrize("is_narrow", [False, True])
@pytest.mark.parametrize(("t", "d"), [(0.0, 1.0), (0.5, 0.25)])
@pytest.mark.parametrize(("num_blocks", "num_spline_blocks"), [(1, 1), (4, 0), (5, 1), (6, 2), (3, 3)])
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_passes_are_those_of_autograd(dim, num_blocks, num_spline_blocks, t, d, is_narrow, monkeypatch):
    # A narrow line is the product of two matrices, as between very many coordinates.
    monkeypatch.setattr(network, "_MAX_WEIGHTS", 4 if is_narrow else 2**17)
    torch.manual_seed(1)
    assert_those_of_autograd(flow_of(dim, num_blocks, num_spline_blocks), t, d)


def compositions(total):
    """All ways to cut a row of coordinates into sites."""
    firsts = range(1, total + 1)
    return [(first, *rest) for first in firsts for rest in (compositions(total - first) if first < total else [()])]


@pytest.mark.parametrize("num_blocks", [4, 5, 6, 8])
@pytest.mark.parametrize("dim", [2, 3, 4, 5, 6])
def test_passes_are_those_of_autograd_however_sites_cut_the_coordinates(dim, num_blocks):
    # Blocks that cut the same row of coordinates at another place: four scalar sites have them.
    torch.manual_seed(2)
    for groups in compositions(dim):
        assert_those_of_autograd(flow_of(dim, num_blocks, 1, groups=groups), 0.0, 1.0)


def assert_those_of_autograd(flow, t, d):
    dim = flow.dim
    x = (2.0 * torch.randn(30, dim, dtype=torch.float64)).requires_grad_()
    v, c = torch.randn(30, dim, dtype=torch.float64), torch.randn(30, dtype=torch.float64)
    y, log_abs_det, score = flow.forward_with_score(x, -x, t, d)
    leaves = [x, *flow.parameters()]
    for_x, *gradients = torch.autograd.grad(
        (v * y).sum() + (c * log_abs_det).sum(), leaves, allow_unused=True, materialize_grads=True
    )
    passes, folding = Passes(flow, t, d), folded(flow, d)
    with torch.no_grad():
        *got, kept = passes.forward_with_score(folding.matrices, x.detach(), -x.detach())
        gradient, got_x = passes.backward(folding.matrices, kept, v, c)
        plain = passes.forward(folding.matrices, x.detach())
    joined = torch.cat([value.flatten() for value in gradients])
    pairs = [
        (got[0], y),
        (got[1], log_abs_det),
        (got[2], score),
        (plain[0], y),
        (plain[1], log_abs_det),
        (got_x, for_x),
        (folding.gradient(gradient), joined),
    ]
    for one, other in pairs:
        assert torch.allclose(one, other, rtol=0.0, atol=1e-9 * (1.0 + other.abs().max().item()))


def test_the_score_is_the_slope_of_the_density():
    # Brute force: the density at shifted points by the inverse, differenced; no gradient of any kind.
    torch.manual_seed(0)
    flow = flow_of(3, 5, 1, size=0.1)
    x = torch.randn(20, 3, dtype=torch.float64)
    with torch.no_grad():
        y, _, score, _ = Passes(flow, 0.0, 1.0).forward_with_score(folded(flow, 1.0).matrices, x, -x)

        def log_density(points):
            back, log_abs_det = flow.inverse(points)
            return -0.5 * back.square().sum(-1) - log_abs_det

        for axis in range(3):
            step = torch.zeros(3, dtype=torch.float64)
            step[axis] = 1e-5
            slope = (log_density(y + step) - log_density(y - step)) / 2e-5
            assert torch.allclose(score[:, axis], slope, atol=1e-5 * (1.0 + score.abs().max().item()))


@pytest.mark.parametrize("num_columns", [1, 40])
@pytest.mark.parametrize("d", [1.0, 0.25])
def test_gradients_of_curves_are_differences(num_columns, d):
    # Points inside of the spline and beyond its ends, on either side.
    torch.manual_seed(0)
    parameters = 1.5 * torch.randn(2, 25, num_columns, dtype=torch.float64)
    x = torch.linspace(-8.0, 8.0, 40, dtype=torch.float64).repeat(2, 1) + 0.01
    v, c = torch.randn(2, 40, dtype=torch.float64), torch.randn(1, 40, dtype=torch.float64)
    bending = curve.bending(8, parameters)

    def total(parameters, x):
        on = curve.curve(x, curve.knots(parameters, bending, BOUND, OFFSET, d), BOUND)
        return v * on.y + c * on.slope.log(), on.slope.log()

    at = curve.knots(parameters, bending, BOUND, OFFSET, d)
    on = curve.curve(x, at, BOUND)
    for_x, for_parameters = curve.pull(on, at, BOUND, v, c)
    step = 1e-6
    for got, index in ((for_x, 0), (curve.curvature(on), 1)):
        change = (total(parameters, x + step)[index] - total(parameters, x - step)[index]) / (2 * step)
        assert torch.allclose(got, change, atol=1e-6 * (1.0 + change.abs().max().item()))
    for place in ((0, 3, 0), (1, 11, 0), (1, 20, num_columns // 2), (0, 23, 0), (1, 24, num_columns - 1)):
        moved = torch.zeros_like(parameters)
        moved[place] = step
        change = (total(parameters + moved, x)[0] - total(parameters - moved, x)[0]).sum() / (2 * step)
        assert torch.allclose(for_parameters[place], change, atol=1e-6 * (1.0 + change.abs().item()))


def test_an_end_of_the_spline_is_smooth():
    # Exactly on the bound, and a hair beyond: the slope is one on both sides.
    parameters = torch.randn(1, 25, 1, dtype=torch.float64)
    at = curve.knots(parameters, curve.bending(8, parameters), BOUND, 1e3, 1.0)
    x = torch.tensor([[-6.0 - 1e-9, -6.0, -6.0 + 1e-9, 6.0 - 1e-9, 6.0, 6.0 + 1e-9]], dtype=torch.float64)
    on = curve.curve(x, at, BOUND)
    assert torch.allclose(on.y, x, atol=1e-12) and torch.allclose(on.slope, torch.ones_like(x), atol=1e-6)


@pytest.mark.parametrize("is_narrow", [False, True])
@pytest.mark.parametrize(("dim", "num_blocks", "num_spline_blocks"), [(1, 2, 1), (5, 6, 2), (10, 5, 1), (8, 9, 0)])
def test_draws_have_the_bits_of_training(dim, num_blocks, num_spline_blocks, is_narrow, monkeypatch):
    # What is changed in place is the pass's own: points stay as they were.
    monkeypatch.setattr(network, "_MAX_WEIGHTS", 4 if is_narrow else 2**17)
    flow = flow_of(dim, num_blocks, num_spline_blocks).float()
    x = 3.0 * torch.randn(100, dim)
    before = x.clone()
    passes, folding = Passes(flow, 0.0, 1.0), folded(flow, 1.0)
    with torch.no_grad():
        y, log_abs_det = passes.forward(folding.matrices, x)
        expected, trained, *_ = passes.forward_with_score(folding.matrices, x, -x)

    assert torch.equal(x, before)
    assert torch.equal(y, expected)
    torch.testing.assert_close(log_abs_det, trained, rtol=0.0, atol=1e-5)

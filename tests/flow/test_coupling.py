"""Flow map: a bijection with the log-determinant that it claims, and the identity for a step of no size."""

import pytest
import torch
from helpers import log_abs_det_of_jacobian, perturbed

from pyro_osds.flow.coupling import CouplingBlock, FlowMap, coupling_splits

TIMES = [(0.0, 1.0), (0.25, 0.5), (0.5, 0.0)]
FLOWS = {
    "one coordinate": {"dim": 1, "num_blocks": 3, "num_spline_blocks": 1},
    "affine": {"dim": 3, "num_blocks": 4},
    "splines": {"dim": 4, "num_blocks": 5, "num_spline_blocks": 5},
    "groups": {"dim": 5, "groups": (1, 1, 3), "num_blocks": 5, "num_spline_blocks": 1},
    "one block": {"dim": 2, "num_blocks": 1, "num_spline_blocks": 1},
}


@pytest.fixture(params=FLOWS, ids=lambda name: name.replace(" ", "_"))
def flow(request, float64):
    return perturbed(FlowMap(hidden_features=8, **FLOWS[request.param]))


def draws(flow, rows=5):
    # Wide enough to reach the splines' linear ends beyond +-6 as well.
    return 3 * torch.randn(rows, flow.dim)


@pytest.mark.parametrize(("t", "d"), TIMES)
def test_log_abs_det_is_that_of_the_jacobian(flow, t, d):
    # Against slogdet of the Jacobian by autograd.
    x = draws(flow)
    _, log_abs_det = flow(x, t, d)
    torch.testing.assert_close(
        log_abs_det, log_abs_det_of_jacobian(lambda x: flow(x, t, d)[0], x), rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize(("t", "d"), TIMES)
def test_inverse_takes_the_leap_back(flow, t, d):
    # Round trip both ways, with the same log-determinant.
    x = draws(flow)
    y, log_abs_det = flow(x, t, d)
    back, log_abs_det_back = flow.inverse(y, t, d)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(log_abs_det_back, log_abs_det)
    torch.testing.assert_close(flow(flow.inverse(x, t, d)[0], t, d)[0], x)


def test_no_step_is_the_identity(flow):
    # At d = 0 nothing moves, whatever the weights.
    x = draws(flow)
    y, log_abs_det = flow(x, 0.3, 0.0)
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(log_abs_det, torch.zeros(len(x)), atol=1e-12, rtol=0)


def test_weights_move_the_points(flow):
    # The perturbed flows above are not the identity, or nothing would have been proved.
    x = draws(flow)
    assert (flow(x)[0] - x).abs().max() > 1e-3 and flow(x)[1].abs().max() > 1e-4


@pytest.mark.parametrize("options", [{"dim": 1}, {"dim": 3}, {"dim": 4, "groups": (1, 3)}])
def test_an_untrained_affine_flow_is_the_identity(float64, options):
    # Zero heads, a full step.
    flow = FlowMap(hidden_features=8, num_blocks=4, **options)
    x = draws(flow)
    y, log_abs_det = flow(x)
    torch.testing.assert_close(y, x)
    assert not log_abs_det.any()


def test_an_untrained_spline_flow_is_nearly_the_identity(float64):
    # The spline is exact; only the tails start at a small weight, softplus(-4), instead of zero.
    flow = FlowMap(3, num_blocks=4, num_spline_blocks=1, hidden_features=8)
    x = draws(flow)
    y, log_abs_det = flow(x)
    weight = torch.nn.functional.softplus(torch.tensor(-4.0))
    torch.testing.assert_close(y, x + weight * x * x.abs())
    torch.testing.assert_close(log_abs_det, torch.log1p(2 * weight * x.abs()).sum(-1))


def test_each_row_may_have_its_own_time_and_step(flow):
    # Tensors of times and steps are the same as one call for each row.
    x, t, d = draws(flow), torch.rand(5), torch.rand(5)
    y, log_abs_det = flow(x, t, d)
    back, log_abs_det_back = flow.inverse(y, t, d)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(log_abs_det_back, log_abs_det)
    for i in range(5):
        row, row_log_abs_det = flow(x[i : i + 1], t[i].item(), d[i].item())
        torch.testing.assert_close(y[i : i + 1], row)
        torch.testing.assert_close(log_abs_det[i : i + 1], row_log_abs_det)


def test_equal_times_by_row_are_the_scalar(flow):
    # (B,) tensors that all hold the same number change nothing.
    x = draws(flow)
    for got, expected in zip(flow(x, torch.full((5,), 0.25), torch.full((5,), 0.5)), flow(x, 0.25, 0.5), strict=True):
        torch.testing.assert_close(got, expected)


def test_rows_do_not_see_each_other(flow):
    # The same points in another batch land in the same place.
    x = draws(flow)
    torch.testing.assert_close(flow(x[2:4])[0], flow(x)[0][2:4])


@pytest.mark.parametrize(("t", "d"), TIMES)
def test_score_that_the_leap_carries_along(flow, t, d):
    # From a standard normal: against the gradient of log N(inverse(y)) - log|det| by autograd.
    x = draws(flow)
    y, log_abs_det, score = flow.forward_with_score(x, -x, t, d)
    point = y.detach().requires_grad_()
    back, log_abs_det_back = flow.inverse(point, t, d)
    (expected,) = torch.autograd.grad((-0.5 * back.square().sum(-1) - log_abs_det_back).sum(), point)
    torch.testing.assert_close(score, expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(y, flow(x, t, d)[0])
    torch.testing.assert_close(log_abs_det, flow(x, t, d)[1])
    assert y.requires_grad and not score.requires_grad


def test_points_with_their_score_carry_the_gradient_of_the_weights(flow):
    # Differentiating points and log-determinants of forward_with_score is differentiating those of forward.
    x = draws(flow)
    parameters = list(flow.parameters())
    direction, weight = torch.randn_like(x), torch.randn(len(x))
    got, expected = (
        torch.autograd.grad((direction * result[0]).sum() + (weight * result[1]).sum(), parameters)
        for result in (flow.forward_with_score(x, -x), flow(x))
    )
    for left, right in zip(got, expected, strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("num_bins", [0, 8])
@pytest.mark.parametrize("num_fixed", [0, 2])
def test_block(float64, num_fixed, num_bins):
    # One block: Jacobian, inverse, and the identity at d = 0.
    block = perturbed(CouplingBlock(num_fixed, 3, hidden_features=8, num_bins=num_bins))
    fixed, moving = torch.randn(4, num_fixed), 3 * torch.randn(4, 3)
    t, d = torch.full((4, 1), 0.25), torch.full((4, 1), 0.5)
    moved, log_slope = block(fixed, moving, t, d)
    assert log_slope.shape == (4, 3)
    for i in range(4):
        rows = (fixed[i : i + 1], t[:1], d[:1])
        expected = log_abs_det_of_jacobian(lambda m, rows=rows: block(rows[0], m, *rows[1:])[0], moving[i : i + 1])
        torch.testing.assert_close(log_slope[i].sum(), expected[0])
    back, log_slope_back = block.inverse(fixed, moved, t, d)
    torch.testing.assert_close(back, moving)
    torch.testing.assert_close(log_slope_back, log_slope)
    torch.testing.assert_close(block(fixed, moving, t, 0 * d)[0], moving)


@pytest.mark.parametrize("dim", [1, 2, 3, 6])
@pytest.mark.parametrize("num_blocks", [1, 2, 5])
def test_splits_are_partitions(dim, num_blocks):
    # Each split holds every coordinate once, and there are as many as asked for (one coordinate has one block).
    splits = coupling_splits(dim, (), num_blocks)
    assert all(sorted(fixed + moving) == list(range(dim)) and moving for fixed, moving in splits)
    assert len(splits) == (1 if dim == 1 else num_blocks)


def test_parents_steer_children_last():
    # The last split that a draw passes conditions the large group on all that comes before it.
    assert coupling_splits(6, (1, 1, 4), 5)[-1] == ([0, 1], [2, 3, 4, 5])
    assert coupling_splits(6, (6,), 5)[-1] == ([0, 1, 2], [3, 4, 5])


def test_flow_survives_save_and_load(tmp_path, float64):
    # A state dict brings back the same map, the coordinates' layout included.
    flow = perturbed(FlowMap(4, (1, 3), num_blocks=5, num_spline_blocks=1, hidden_features=8))
    torch.save(flow.state_dict(), tmp_path / "flow.pt")
    other = FlowMap(4, (1, 3), num_blocks=5, num_spline_blocks=1, hidden_features=8)
    other.load_state_dict(torch.load(tmp_path / "flow.pt", weights_only=True))
    x = draws(flow)
    assert torch.equal(other(x)[0], flow(x)[0])


def test_splits_do_not_depend_on_the_default_device():
    # They are drawn on the CPU, also where tensors are made on a GPU by default, or here on a device without values.
    expected = coupling_splits(7, (), 6)
    with torch.device("meta"):
        assert coupling_splits(7, (), 6) == expected

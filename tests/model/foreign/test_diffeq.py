"""Differential equations by torchdiffeq in batches: closed forms decide, and the density of single runs."""

import math
import time
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_osds.model import ModelTarget
from pyro_osds.model.agreement import agree_within_tolerances
from pyro_osds.model.foreign.integration import integrations_used, limited_steps
from pyro_osds.model.vmap import VmapCompat, vmappable_pyro
from pyro_osds.posterior.reasons import rounding_reasons
from pyro_osds.runtime.clock import OutOfTimeError, now, time_limit
from pyro_osds.target import log_prob_and_score

torchdiffeq = pytest.importorskip("torchdiffeq")

TIMES = torch.tensor([0.0, 0.7, 1.0, 2.5, 4.0], dtype=torch.float64)
Y = torch.tensor([5.0, 6.0, 4.0, 2.0])
LOOSE = {"rtol": 1e-6, "atol": 1e-6}


def in_batch(function, z):
    """A function of single points at all of them, with the gradient of a weighted sum."""
    z = z.detach().requires_grad_()

    def single(row):
        with VmapCompat() as compat:
            result = function(row)
            failed = compat.factorisations.failed(row)
        return result, row.new_zeros(()).bool() if failed is None else failed

    with vmappable_pyro():
        result, failed = torch.func.vmap(single)(z)
    weights = torch.linspace(0.5, 1.5, result.numel(), dtype=z.dtype).reshape(result.shape)
    (gradient,) = torch.autograd.grad((weights * result).sum(), z)

    return result.detach(), gradient, failed, weights


def decay(**options):
    """y' = -a y + b t, from y(0) = a: the initial state and the field depend on latents."""

    def solve(row):
        a, b = row[0].exp(), row[1]
        return torchdiffeq.odeint(lambda t, y: -a * y + b * t, a[None], options.pop("t", TIMES), **options)[:, 0]

    return solve


def decay_exactly(z, times=TIMES):
    a, b = z[:, :1].exp(), z[:, 1:]
    return (a + b / a**2) * torch.exp(-a * times) + b * times / a - b / a**2


def points(count=5):
    return 0.4 * torch.randn(count, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3", "adaptive_heun", "fehlberg2"])
def test_adaptive_solutions_are_those_of_the_equation(method):
    z = points()
    got, gradient, failed, weights = in_batch(decay(method=method, rtol=1e-7, atol=1e-7), z)
    own = z.clone().requires_grad_()
    exact = decay_exactly(own)
    (expected,) = torch.autograd.grad((weights * exact).sum(), own)
    # Tolerances are those of a step; and the solvers' interpolation is of fourth order, whatever their own.
    tolerance = {"dopri5": 1e-5, "dopri8": 1e-3}.get(method, 1e-4)
    torch.testing.assert_close(got, exact.detach(), rtol=0, atol=tolerance)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=10 * tolerance)
    assert not failed.any()


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun2", "heun3", "rk4"])
@pytest.mark.parametrize("options", [None, {"step_size": 0.3}, {"step_size": 0.3, "perturb": True}])
def test_fixed_steps_are_those_of_single_runs(method, options):
    z = points()
    solve = decay(method=method, options=options)
    got, gradient, _, weights = in_batch(solve, z)
    own = z.clone().requires_grad_()
    expected = torch.stack([solve(row) for row in own])
    (slopes,) = torch.autograd.grad((weights * expected).sum(), own)
    torch.testing.assert_close(got, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, slopes, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_a_state_may_be_a_single_number(method):
    def solve(row):
        return torchdiffeq.odeint(lambda t, y: -row[1].exp() * y, row[0], TIMES, method=method, rtol=1e-7, atol=1e-7)

    z = points()
    got, gradient, _, weights = in_batch(solve, z)
    own = z.clone().requires_grad_()
    expected = torch.stack([solve(row) for row in own])
    (slopes,) = torch.autograd.grad((weights * expected).sum(), own)
    torch.testing.assert_close(got, expected.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient, slopes, rtol=0, atol=1e-5)
    if method == "dopri5":
        exact = z[:, :1] * torch.exp(-z[:, 1:].exp() * TIMES)
        torch.testing.assert_close(got, exact, rtol=0, atol=1e-5)


def test_solutions_may_differ_more_far_below_the_others():
    # By 0.004 nats at a point 700 nats below the best, not at one that is among the best.
    best, slopes = torch.tensor([-355.0, -1070.0]).double(), torch.ones(2, 1)
    far, near = best + torch.tensor([0.0, 0.004]), best + torch.tensor([0.004, 0.0])
    nothing = torch.zeros(2).double()
    assert agree_within_tolerances((nothing, far, slopes, slopes), (nothing, best, slopes, slopes))
    assert not agree_within_tolerances((nothing, near, slopes, slopes), (nothing, best, slopes, slopes))


def test_one_point_has_the_steps_of_its_own_solver():
    z = points(1)
    with integrations_used() as used:
        got, gradient, _, weights = in_batch(decay(), z)
    own = z.clone().requires_grad_()
    expected = torch.stack([decay()(row) for row in own])
    (slopes,) = torch.autograd.grad((weights * expected).sum(), own)
    torch.testing.assert_close(got, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, slopes, rtol=1e-9, atol=1e-9)
    assert used[0].is_recorded and used[0].is_adaptive


def test_backwards_in_time_tuples_and_tolerances_of_parts():
    z, times = points(), TIMES.flip(0)

    def solve(row):
        a = row[0].exp()
        start = (a[None], torch.ones(2, dtype=row.dtype))
        first, second = torchdiffeq.odeint(
            lambda t, y: (-a * y[0], row[1] * y[1]), start, times, rtol=(1e-7, 1e-6), atol=(1e-8, 1e-7)
        )
        return torch.cat([first[:, 0], second[:, 1]])

    got, _, _, _ = in_batch(solve, z)
    since = times - times[0]
    a = z[:, :1].exp()
    exact = torch.cat([a * torch.exp(-a * since), torch.exp(z[:, 1:] * since)], 1)
    torch.testing.assert_close(got, exact, rtol=1e-4, atol=1e-4)


def test_jumps_are_met_from_both_sides():
    z, at = points(), 1.3

    def solve(row):
        def field(t, y):
            return torch.where(t < at, row[0], row[1]) + 0.0 * y

        options = {"jump_t": torch.tensor([at], dtype=torch.float64)}
        return torchdiffeq.odeint(field, row[:1], TIMES, method="dopri5", options=options)[:, 0]

    got, gradient, _, weights = in_batch(solve, z)
    own = z.clone().requires_grad_()
    exact = own[:, :1] + own[:, :1] * TIMES.clamp(max=at) + own[:, 1:] * (TIMES - at).clamp(min=0.0)
    (slopes,) = torch.autograd.grad((weights * exact).sum(), own)
    torch.testing.assert_close(got, exact.detach(), rtol=0, atol=1e-9)
    torch.testing.assert_close(gradient, slopes, rtol=0, atol=1e-9)


def test_a_point_that_explodes_leaves_the_others_alone():
    """y' = y² + c ends at a finite time where it does; there, and only there, is no solution."""
    z = torch.tensor([[-1.0], [0.1], [9.0], [-0.5]], dtype=torch.float64)
    times = torch.linspace(0.0, 1.0, 3, dtype=torch.float64)
    solve = lambda row: torchdiffeq.odeint(lambda t, y: y**2 + row, torch.zeros_like(row), times)[:, 0]  # noqa: E731
    got, _, failed, _ = in_batch(solve, z)
    assert failed.tolist() == [False, False, True, False]
    expected = [math.sqrt(0.1) * math.tan(math.sqrt(0.1)), -math.sqrt(0.5) * math.tanh(math.sqrt(0.5))]
    torch.testing.assert_close(got[[1, 3], -1], torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_a_point_with_too_many_steps_is_given_up():
    z = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.5, 0.0]], dtype=torch.float64)
    with limited_steps(500):
        got, _, failed, _ = in_batch(decay(**LOOSE), z)
    assert failed.tolist() == [False, True, False] and got[1].isnan().any()
    torch.testing.assert_close(got[[0, 2]], decay_exactly(z[[0, 2]]), rtol=0, atol=1e-4)


def compartment(method="dopri5", adjoint=False, **options):
    """One compartment with absorption; ``method`` None for its closed form."""

    def model():
        ka = pyro.sample("ka", dist.LogNormal(0.5, 0.4))
        ke = pyro.sample("ke", dist.LogNormal(-1.0, 0.4))
        times = TIMES.to(ka.dtype)
        if method is None:
            amount = 10.0 * ka / (ka - ke) * (torch.exp(-ke * times) - torch.exp(-ka * times))
        else:

            def field(t, y):
                return torch.stack([-ka * y[0], ka * y[0] - ke * y[1]])

            start = torch.tensor([10.0, 0.0])
            if adjoint:
                more = {"adjoint_params": (ka, ke)}
                amount = torchdiffeq.odeint_adjoint(field, start, times, method=method, **options, **more)[:, 1]
            else:
                amount = torchdiffeq.odeint(field, start, times, method=method, **options)[:, 1]
        with pyro.plate("time", 4):
            pyro.sample("y", dist.Normal(amount[1:], 0.5), obs=Y)

    return model


@pytest.mark.parametrize("adjoint", [False, True])
def test_a_compartment_model_is_captured_and_has_its_evidence(adjoint):
    """The sum of the density over a grid of both latents, against the same of the closed form."""
    target, exact = ModelTarget(compartment(adjoint=adjoint, **LOOSE)), ModelTarget(compartment(None))
    assert target.backend == "captured" and not target.vectorized
    grid = torch.linspace(-3.5, 3.5, 24, dtype=torch.float64)
    z = torch.cartesian_prod(0.5 + 0.4 * grid, -1.0 + 0.4 * grid)
    with torch.no_grad():
        log_evidence, expected = (torch.logsumexp(each.log_prob(z), 0).item() for each in (target, exact))
    assert log_evidence == pytest.approx(expected, abs=1e-4)
    z = z[::37]
    (got, slopes), (by_hand, by_hand_slopes) = (log_prob_and_score(each.log_prob, z) for each in (target, exact))
    assert agree_within_tolerances((got, got, slopes, slopes), (by_hand, by_hand, by_hand_slopes, by_hand_slopes))


def test_rough_tolerances_stay_on_the_loop():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert ModelTarget(compartment(rtol=0.1, atol=0.3)).backend == "loop"
    assert any("point by point" in str(each.message) for each in caught)


def test_a_fixed_grid_is_captured():
    target = ModelTarget(compartment("rk4", options={"step_size": 0.1}))
    assert target.backend == "captured"
    z = points(9)
    got = log_prob_and_score(target.log_prob, z)
    expected = log_prob_and_score(
        ModelTarget(compartment("rk4", options={"step_size": 0.1}), vectorize="loop").log_prob, z
    )
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_a_limit_of_time_ends_a_solution():
    target = ModelTarget(compartment(**LOOSE))
    assert target.backend == "captured"
    with pytest.raises(OutOfTimeError), time_limit(now() - 1.0):
        target.log_prob(points(64))


def test_stiff_points_are_given_up_soon_and_leave_the_others_alone():
    """Rates up to 1e20 beside rates near one: points with a solution have it, whatever stands beside them."""
    target, exact = ModelTarget(compartment()), ModelTarget(compartment(None))
    assert target.backend == "captured"
    # Equal rates have no closed form.
    mild = torch.cartesian_prod(*[torch.linspace(low, 1.5, 7, dtype=torch.float64) for low in (-1.0, -1.1)])
    mild = mild[(mild[:, 0] - mild[:, 1]).abs() > 0.01]
    wild = torch.linspace(8.0, 46.0, 15, dtype=torch.float64)
    z = torch.cat([mild, torch.stack([wild, wild.flip(0)], 1)])
    start = time.process_time()
    with torch.no_grad():
        got, expected = target.log_prob(z), exact.log_prob(mild)
    assert time.process_time() - start < 60.0
    torch.testing.assert_close(got[: len(mild)], expected, rtol=1e-4, atol=1e-4)
    assert not got[len(mild) :].isfinite().any()


def test_one_point_is_not_blamed_for_the_steps_of_another():
    """The steps that a fast point needs are so short for a slow one that its error is rounding."""
    z = torch.tensor([[0.0, 0.0], [6.0, 0.0], [-3.0, 0.0]], dtype=torch.float64)
    with limited_steps(100):
        got, _, failed, _ = in_batch(decay(rtol=1e-9, atol=1e-12), z)
    assert failed.tolist() == [False, True, False] and got[1].isnan().any()
    torch.testing.assert_close(got[[0, 2]], decay_exactly(z[[0, 2]]), rtol=0, atol=1e-6)


def test_noise_of_a_solver_is_told_as_such():
    model = compartment(rtol=0.02, atol=0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target = ModelTarget(model, vectorize="loop")
    assert target.has_tolerance and not ModelTarget(compartment(None)).has_tolerance
    (reason,) = rounding_reasons(0.3, target.has_tolerance)
    assert "tolerances of a differential equation's solver add 0.3 nats" in reason.text and "rtol=" in reason.text
    assert "dtype" not in reason.text and "Rounding" not in reason.text

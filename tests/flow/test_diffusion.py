"""Diffusion: exact weights for any number of steps and any network."""

import math

import pytest
import torch
from helpers import assert_within_standard_error, perturbed
from models import mixture_draws, mixture_log_prob
from torch.distributions import MultivariateNormal, Normal

from pyro_osds.flow.base import Base, gaussian_base
from pyro_osds.flow.diffusion import Diffusion
from pyro_osds.flow.network import ControlNetwork
from pyro_osds.flow.schedule import CosineSchedule, LinearSchedule
from pyro_osds.target import FunctionTarget

STEPS = [1, 2, 4, 16]


def standard_base(dim=2, loc=0.0, scale=1.0):
    """Whitening by hand: ``z = loc + scale u``."""
    return Base(torch.full((dim,), loc), scale * torch.eye(dim), MultivariateNormal(torch.zeros(dim), torch.eye(dim)))


def exact_diffusion(offset=3.0, **options):
    """The target is the base, times exp(offset)."""
    base = gaussian_base(torch.randn(200, 2) @ torch.tensor([[3.0, 1.0], [0.0, 0.1]]) + 5)
    target = FunctionTarget(lambda z: base.log_prob(z) + offset, 2)

    return Diffusion(target, base, ControlNetwork(2, hidden_features=8), **options)


def two_modes(noise=0.3, scale=0.5, offset=2.0, **options):
    """Two modes beside each other in whitened coordinates, with an arbitrary network and log evidence ``offset``."""
    base = standard_base(loc=1.0, scale=2.0)
    places = base.from_whitened(torch.tensor([[-0.8, 0.0], [0.8, 0.5]]))
    log_prob = mixture_log_prob(places, [0.3, 0.7], scale=2 * scale)
    network = perturbed(ControlNetwork(2, hidden_features=8), noise)

    return Diffusion(FunctionTarget(lambda z: log_prob(z) + offset, 2), base, network, **options), places


# ---- where the posterior is the base ----


@pytest.mark.parametrize("num_steps", STEPS)
@pytest.mark.parametrize("schedule", [CosineSchedule(), LinearSchedule()], ids=["cosine", "linear"])
def test_weights_are_the_evidence_where_the_posterior_is_the_base(float64, num_steps, schedule):
    # Every path, simulated or noised, has the log weight 3 before any training.
    diffusion = exact_diffusion(schedule=schedule)
    simulated = diffusion.simulate(20, num_steps)
    noised = diffusion.noise(diffusion.base.sample(20) * 2 + 1, num_steps)
    for paths in (simulated, noised):
        assert paths.guidance.abs().max() < 1e-9
        torch.testing.assert_close(diffusion.log_weight(paths), torch.full((20,), 3.0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("num_steps", STEPS)
def test_the_flow_stands_still_where_the_posterior_is_the_base(float64, num_steps):
    # All states are the first one.
    x = 3 * torch.randn(20, 2)
    states = exact_diffusion().flow(x, num_steps)
    assert states.shape == (num_steps + 1, 20, 2)
    torch.testing.assert_close(states, x.expand_as(states), rtol=1e-9, atol=1e-9)


# ---- weights ----


def log_weight_by_hand(diffusion, paths):
    """Transition by transition, from densities of torch."""
    log_weight = paths.log_prob - Normal(0.0, 1.0).log_prob(paths.x[0]).sum(-1)
    for step in range(paths.num_steps):
        t, d = torch.full((1, 1), step / paths.num_steps), torch.full((1, 1), 1 / paths.num_steps)
        a = (diffusion.schedule.log_signal(t) - diffusion.schedule.log_signal(t + d)).exp()
        before, after, sd = paths.x[step], paths.x[step + 1], (1 - a**2).sqrt()
        control = diffusion.network(before, t, d, diffusion.guidance(before, t))
        log_weight = log_weight + Normal(a * after, sd).log_prob(before).sum(-1)
        log_weight = log_weight - Normal(a * before + 2 * (1 - a) * control, sd).log_prob(after).sum(-1)

    return log_weight


@pytest.mark.parametrize("num_steps", STEPS)
def test_log_weight_by_hand(float64, num_steps):
    # A loop over the steps, with the guidance computed afresh, for paths of either kind.
    diffusion, places = two_modes()
    for paths in (diffusion.simulate(10, num_steps), diffusion.noise(places.repeat(5, 1), num_steps)):
        got = diffusion.log_weight(paths)
        torch.testing.assert_close(got, log_weight_by_hand(diffusion, paths))
        assert got.std() > 0.1


@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
@pytest.mark.parametrize("guided", [True, False])
def test_mean_weight_is_the_evidence(float64, num_steps, guided):
    # For any number of steps and an untrained, arbitrary network: E w = Z, within its standard error.
    diffusion, _ = two_modes(guided=guided)
    with torch.no_grad():
        weight = (diffusion.log_weight(diffusion.simulate(20_000, num_steps)) - 2.0).exp()
    std_error = weight.std().item() / math.sqrt(len(weight))
    assert std_error < 0.1
    assert_within_standard_error(weight.mean(), 1.0, std_error)


@pytest.mark.parametrize("num_steps", [1, 4])
def test_mean_inverse_weight_of_noised_draws_is_the_inverse_evidence(float64, num_steps):
    # Read backwards: paths that end at exact draws follow the numerator's law, so E 1/w = 1/Z.
    diffusion, places = two_modes(noise=0.02, scale=0.9)
    z = mixture_draws(places, [3000, 7000], scale=1.8)
    with torch.no_grad():
        inverse = (2.0 - diffusion.log_weight(diffusion.noise(z, num_steps))).exp()
    assert_within_standard_error(inverse.mean(), 1.0, inverse.std().item() / math.sqrt(len(inverse)))


@pytest.mark.parametrize("value", [-math.inf, math.nan, math.inf])
def test_paths_to_impossible_points_have_no_weight(float64, value):
    # Half of the space is no part of the target: -inf there, never nan; the other half has ordinary weights.
    diffusion, _ = two_modes()
    inner = diffusion.target.log_prob
    diffusion.target = FunctionTarget(lambda z: torch.where(z[:, 0] > 1, inner(z), value), 2)
    z = diffusion.base.from_whitened(torch.randn(50, 2))
    for paths in (diffusion.simulate(50, 4), diffusion.noise(z, 4)):
        log_weight, inside = diffusion.log_weight(paths), diffusion.base.from_whitened(paths.x[-1])[:, 0] > 1
        assert 0 < inside.sum() < 50
        assert log_weight[inside].isfinite().all() and (log_weight[~inside] == -torch.inf).all()


# ---- paths ----


@pytest.mark.parametrize("num_steps", [1, 3])
def test_shapes_of_paths(num_steps):
    # States at both ends of each step, guidance at the start of each, densities at the end of all.
    diffusion, _ = two_modes()
    z = torch.randn(5, 2)
    for paths in (diffusion.simulate(5, num_steps), diffusion.noise(z, num_steps)):
        assert paths.x.shape == (num_steps + 1, 5, 2) and paths.guidance.shape == (num_steps, 5, 2)
        assert paths.log_prob.shape == (5,) and paths.num_steps == num_steps
        torch.testing.assert_close(paths.log_prob, diffusion.log_prob(paths.x[-1]))
        times = torch.arange(num_steps)[:, None, None] / num_steps
        for x, guidance, t in zip(paths.x[:-1], paths.guidance, times, strict=True):
            # The networks are in single precision.
            torch.testing.assert_close(guidance, diffusion.guidance(x.detach(), t), rtol=1e-6, atol=1e-5)


def test_noised_paths_end_where_they_were_told():
    # The last states are the given points, whitened; the first ones have forgotten them.
    diffusion, _ = two_modes()
    z = torch.full((2000, 2), 9.0)
    paths = diffusion.noise(z, 4)
    torch.testing.assert_close(diffusion.base.from_whitened(paths.x[-1]), z)
    for i in range(2):
        first = paths.x[0][:, i]
        # What is left of the point (4 in whitened coordinates) is its signal at the base.
        assert_within_standard_error(first.mean(), 4 * math.sin(0.0025 * math.pi), 1 / math.sqrt(2000))
        assert_within_standard_error(first.square().mean(), 1.0, math.sqrt(2 / 2000))


def test_simulated_paths_carry_gradients_and_noised_ones_do_not():
    # The network moves the former.
    diffusion, places = two_modes()
    simulated, noised = diffusion.simulate(5, 2), diffusion.noise(places, 2)
    gradients = torch.autograd.grad(diffusion.log_weight(simulated).sum(), list(diffusion.network.parameters()))
    assert all(gradient.any() for gradient in gradients)
    assert not noised.x.requires_grad


class ExactControl(torch.nn.Module):
    """The control of a whitened posterior N(0, s^2): x minus x over the noised variance."""

    def __init__(self, schedule, sd):
        super().__init__()
        self.schedule, self.sd = schedule, sd

    def variance(self, t):
        signal_variance = (2 * self.schedule.log_signal(t)).exp()

        return signal_variance * self.sd**2 + 1 - signal_variance

    def forward(self, x, t, d, guidance):
        return x - x / self.variance(t)


def gaussian_diffusion(sd):
    target = FunctionTarget(lambda z: Normal(0.0, sd).log_prob(z).sum(-1), 2)
    diffusion = Diffusion(target, standard_base(), ControlNetwork(2), guided=False)
    diffusion.network = ExactControl(diffusion.schedule, sd)

    return diffusion


@pytest.mark.parametrize("sd", [0.5, 2.0])
def test_flow_of_an_exact_control_converges_to_the_posterior(float64, sd):
    # A normal is stretched by the ratio of its standard deviations; the error of Euler's steps is of first order.
    diffusion = gaussian_diffusion(sd)
    x = torch.randn(20, 2)
    exact = x * sd / diffusion.network.variance(torch.zeros(1, 1)).sqrt()
    errors = [(diffusion.flow(x, num_steps)[-1] - exact).abs().max().item() for num_steps in (400, 800, 1600)]
    assert errors[0] < 0.1
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05) and errors[1] / errors[2] == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("sd", [0.5, 2.0])
def test_weights_of_an_exact_control_become_equal(float64, sd):
    # The more steps, the less they spread, for paths from either end.
    diffusion = gaussian_diffusion(sd)
    z = sd * torch.randn(500, 2)
    spreads = [
        torch.stack(
            [diffusion.log_weight(paths).std() for paths in (diffusion.simulate(500, n), diffusion.noise(z, n))]
        )
        for n in (8, 32, 128)
    ]
    assert (spreads[1] < 0.7 * spreads[0]).all() and (spreads[2] < 0.7 * spreads[1]).all()
    assert (spreads[2] < 0.4).all()


# ---- guidance ----


@pytest.mark.parametrize("slope", [1e-3, 1.0, 1e8])
def test_guidance_by_hand(float64, slope):
    # A score of slope (1, 2) in whitened coordinates: bounded at ten per coordinate, in the same direction.
    base = standard_base()
    target = FunctionTarget(lambda z: slope * (z[:, 0] + 2 * z[:, 1]), 2)
    diffusion = Diffusion(target, base, ControlNetwork(2))
    x, t = torch.randn(10, 2), torch.tensor([[0.3]])
    excess = slope * torch.tensor([1.0, 2.0]) + x
    expected = excess / (1 + excess.square().sum(-1, keepdim=True) / (100 * 2)).sqrt()
    expected = math.sin(0.5 * math.pi * (0.005 + 0.995 * 0.3)) ** 2 * expected
    got = diffusion.guidance(x, t)
    torch.testing.assert_close(got, expected)
    assert (got.norm(dim=-1) < 10 * math.sqrt(2)).all()


def test_guidance_is_of_whitened_coordinates(float64):
    # Units and place of the target do not matter: the same posterior in other coordinates has the same guidance.
    x, t = torch.randn(10, 2), torch.tensor([[0.7]])
    found = []
    for loc, scale in [(0.0, 1.0), (50.0, 1e3)]:
        base = standard_base(loc=loc, scale=scale)
        target = FunctionTarget(lambda z, base=base: -base.to_whitened(z).pow(4).sum(-1), 2)
        found.append(Diffusion(target, base, ControlNetwork(2)).guidance(x, t))
    torch.testing.assert_close(*found)
    assert found[0].abs().max() > 0.1


def test_guidance_fades_at_the_base():
    # It carries the square of the signal: less than 1e-4 of its value at the posterior.
    diffusion, _ = two_modes()
    x = torch.randn(10, 2)
    at_base, at_posterior = (diffusion.guidance(x, torch.full((1, 1), t)) for t in (0.0, 1.0))
    torch.testing.assert_close(at_base, math.sin(0.0025 * math.pi) ** 2 * at_posterior)
    assert at_posterior.norm(dim=-1).min() > 0.1


def test_no_guidance():
    # Unguided, no density is asked for.
    diffusion, _ = two_modes(guided=False)
    diffusion.target.log_prob = None
    assert not diffusion.guidance(torch.randn(5, 2), torch.ones(1, 1)).any()


def test_differentiable_guidance_has_the_same_value(float64):
    # And the gradient that central differences of the constant one give.
    diffusion, _ = two_modes()
    x, t = torch.randn(6, 2, requires_grad=True), torch.full((1, 1), 0.8)
    guidance = diffusion.guidance(x, t, differentiable=True)
    torch.testing.assert_close(guidance.detach(), diffusion.guidance(x, t))
    (gradient,) = torch.autograd.grad(guidance.sum(), x)
    for i in range(2):
        shift = 1e-5 * torch.eye(2)[i]
        with torch.no_grad():
            above, below = diffusion.guidance(x + shift, t), diffusion.guidance(x - shift, t)
        torch.testing.assert_close(gradient[:, i], (above - below).sum(-1) / 2e-5, rtol=1e-6, atol=1e-6)


def test_guidance_is_a_constant_for_gradients():
    # Unless it is asked to be differentiable: simulated paths are differentiated through the network alone.
    diffusion, _ = two_modes()
    assert not diffusion.guidance(torch.randn(5, 2, requires_grad=True), torch.ones(1, 1)).requires_grad
    assert not diffusion.simulate(5, 2).guidance.requires_grad

"""The diffusion in few steps: exact weights of paths, for any number of steps and whatever was learnt."""

import math

import pytest
import torch
from helpers import assert_within_standard_error, perturbed
from models import mixture_draws, mixture_log_prob
from torch.distributions import Normal

from pyro_osds.flow.base import gaussian_base, standard_base
from pyro_osds.flow.kernel import KernelNetwork
from pyro_osds.flow.walk import Walk
from pyro_osds.stats.weights import log_weights_at, weigh
from pyro_osds.target import FunctionTarget

STEPS = [1, 2, 4, 16]


def two_modes(noise=0.2, dim=2, scale=0.8, log_evidence=2.0):
    """Two modes beside each other, kernels that nobody has trained, and the log evidence 2."""
    base = standard_base(torch.full((dim,), 1.0), 2.0 * torch.eye(dim))
    places = base.from_whitened(torch.tensor([[-0.6, 0.0], [0.6, 0.4]])[:, :dim])
    log_prob = mixture_log_prob(places, [0.3, 0.7], scale=2 * scale)
    target = FunctionTarget(lambda z: log_prob(z) + log_evidence, dim)

    return Walk(target, base, perturbed(KernelNetwork(dim, hidden_features=8), noise)), places


@pytest.mark.parametrize("num_steps", STEPS)
def test_weights_are_the_evidence_where_the_posterior_is_the_base(float64, num_steps):
    base = gaussian_base(torch.randn(200, 2) @ torch.tensor([[3.0, 1.0], [0.0, 0.1]]) + 5)
    target = FunctionTarget(lambda z: base.log_prob(z) + 3.0, 2)
    walk = Walk(target, base, KernelNetwork(2, hidden_features=8), num_steps)
    draws = weigh(walk, target, 20)
    assert draws.log_abs_det.isnan().all()
    # Ornstein-Uhlenbeck steps and noise are each other backwards, so that no path weighs more than any other.
    for log_weight in (draws.log_weight, log_weights_at(walk, target, 2.0 * base.sample(20) + 1.0)):
        torch.testing.assert_close(log_weight, torch.full((20,), 3.0), rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("num_steps", STEPS)
def test_mean_weight_is_the_evidence_whatever_the_kernels(float64, num_steps):
    walk, _ = two_modes()
    walk = walk.in_steps(num_steps)
    weights = (weigh(walk, walk.target, 20_000).log_weight - 2.0).exp()
    assert weights.std() > 0.2
    assert_within_standard_error(weights.mean(), 1.0, weights.std() / len(weights) ** 0.5)


@pytest.mark.parametrize("num_steps", STEPS)
def test_paths_back_from_draws_have_the_weights_of_the_posterior(float64, num_steps):
    # E_q 1/w = 1/Z, and E_q log w >= log Z >= E_p log w.
    walk, places = two_modes()
    walk = walk.in_steps(num_steps)
    z = mixture_draws(places, [6_000, 14_000], 1.6)
    log_weight = log_weights_at(walk, walk.target, z) - 2.0
    inverse = (-log_weight).exp()
    assert_within_standard_error(inverse.mean(), 1.0, inverse.std() / len(inverse) ** 0.5)
    forward = weigh(walk, walk.target, 20_000).log_weight - 2.0
    assert log_weight.mean() > 0.0 > forward.mean()


@torch.no_grad()
@pytest.mark.parametrize("num_steps", [1, 2])
def test_paths_back_give_the_density_of_the_end(float64, num_steps):
    # One dimension: kernels on a grid, multiplied as matrices, give the density of where paths end.
    walk, _ = two_modes(dim=1)
    walk = walk.in_steps(num_steps)
    grid = torch.linspace(-9.0, 9.0, 1801)[:, None]
    density = Normal(0.0, 1.0).log_prob(grid[:, 0]).exp()
    for step in range(num_steps):
        t, d = torch.full((1, 1), step / num_steps), torch.full((1, 1), 1.0 / num_steps)
        kernel = walk.ahead(grid, t, d)
        ahead = Normal(kernel.mean, kernel.scale * (-kernel.log_diagonal).exp()).log_prob(grid[:, 0]).exp()
        density = 0.01 * density @ ahead
    for place in (700, 900, 1100):
        z = walk.base.from_whitened(grid[place].expand(50_000, 1))
        estimates = (walk.log_prob(z) + walk.base.log_abs_det).exp()
        assert_within_standard_error(estimates.mean(), density[place], estimates.std() / len(estimates) ** 0.5)


def test_simulated_paths_are_weighed_as_they_were_drawn(float64):
    # The same states, taken back one by one, say the same of their end.
    walk, _ = two_modes()
    walk = walk.in_steps(4)
    steps = walk.simulate(7)
    assert steps.x.shape == (5, 7, 2)
    log_ratio = -Normal(0.0, 1.0).log_prob(steps.x[0]).sum(-1)
    for step in range(4):
        t, d = torch.full((1, 1), step / 4), torch.full((1, 1), 0.25)
        before, after = steps.x[step], steps.x[step + 1]
        log_ratio += walk.back(after, t, d).log_prob(before) - walk.ahead(before, t, d).log_prob(after)
    torch.testing.assert_close(steps.log_ratio, log_ratio)


def test_noise_keeps_the_variance(float64):
    walk, _ = two_modes()
    for t, d in ((0.0, 1.0), (0.5, 0.25), (0.875, 0.125)):
        noise = walk.step_noise(torch.full((1, 1), t), torch.full((1, 1), d))
        torch.testing.assert_close(noise.decay**2 + noise.scale**2, torch.ones(1, 1))
        level = 1.0 - math.sin(0.5 * math.pi * (0.005 + 0.995 * t)) ** 2
        torch.testing.assert_close(noise.level**2, torch.full((1, 1), level))


def test_guidance_is_bounded_and_vanishes_for_the_base(float64):
    walk, _ = two_modes()
    hard = Walk(FunctionTarget(lambda z: -1e6 * z.abs().sum(-1), 2), walk.base, walk.network)
    x, half = torch.randn(5, 2), torch.full((1, 1), 0.5)
    assert hard.guidance(x, half).norm(dim=-1).max() < 10.0 * 2**0.5
    own = Walk(FunctionTarget(walk.base.log_prob, 2), walk.base, walk.network)
    assert own.guidance(x, half).abs().max() < 1e-9


def test_a_hard_core_has_weight_zero(float64):
    # Infinite energy within the unit disc: what lies there weighs nothing, and what is left is a Gaussian's outside.
    core = FunctionTarget(lambda z: torch.where(z.norm(dim=-1) > 1.0, -0.5 * z.square().sum(-1), -math.inf), 2)
    walk = Walk(core, standard_base(torch.zeros(2), torch.eye(2)), KernelNetwork(2, hidden_features=8), 4)
    weights = weigh(walk, core, 20_000).log_weight.exp()
    assert weights.isfinite().all()
    # The integral of r exp(-r^2 / 2) from one on, times the circle.
    assert_within_standard_error(weights.mean(), 2 * math.pi * math.exp(-0.5), weights.std() / 20_000**0.5)

"""Training of the diffusion in few steps: the loss against brute force, and a ring that it learns."""

import math

import pytest
import torch
from helpers import assert_within_standard_error, perturbed

from pyro_osds.flow.base import gaussian_base, standard_base
from pyro_osds.flow.kernel import KernelNetwork
from pyro_osds.flow.walk import Walk
from pyro_osds.runtime.clock import OutOfTimeError, now, time_limit
from pyro_osds.stats.weights import log_weights_at, summarize_weights, weigh
from pyro_osds.target import FunctionTarget
from pyro_osds.train import walk as training
from pyro_osds.train.walk import WalkBudget, step_loss, train_walk

# Two pi times the mean radius times the width, in closed form: the origin is fifteen standard deviations away.
RADIUS, WIDTH = 3.0, 0.2
RING = math.log(2 * math.pi * RADIUS * WIDTH * math.sqrt(2 * math.pi))


def ring(z):
    return -0.5 * ((z.norm(dim=-1) - RADIUS) / WIDTH).square()


def ring_draws(count):
    # Radii of density r exp(-(r - 3)^2 / 0.08), by weights of a normal.
    radius = RADIUS + WIDTH * torch.randn(4 * count)
    radius = radius[torch.multinomial(radius.clamp(min=0.0), count, replacement=True)]
    angle = 2 * math.pi * torch.rand(count)

    return radius[:, None] * torch.stack([angle.cos(), angle.sin()], -1)


def ring_walk(hidden_features=32):
    z = ring_draws(512)
    return Walk(FunctionTarget(ring, 2), gaussian_base(z), KernelNetwork(2, hidden_features)), z


def test_loss_is_zero_for_a_gaussian_before_training(float64):
    walk = Walk(FunctionTarget(lambda z: -0.5 * z.square().sum(-1), 2), *standard(2))
    losses = torch.stack([step_loss(walk, torch.randn(2000, 2)) for _ in range(30)]).detach()
    assert_within_standard_error(losses.mean(), 0.0, losses.std() / 30**0.5)


@pytest.mark.parametrize("num_steps", [1, 4])
def test_loss_is_the_upper_bound_of_the_evidence(float64, monkeypatch, num_steps):
    # Times the number of steps, the loss changes as the mean log weight of paths back from draws does.
    shares = [0.0] * 7
    shares[int(math.log2(num_steps))] = 1.0
    monkeypatch.setattr(training, "_SHARES", tuple(shares))
    bounds, losses = [], []
    z = ring_draws(40_000)
    for size in (0.0, 0.2):
        walk = Walk(FunctionTarget(ring, 2), gaussian_base(z), perturbed(KernelNetwork(2, 8), size), num_steps)
        u = walk.base.to_whitened(z)
        losses.append(torch.stack([step_loss(walk, part) for part in u.split(2000)]) * num_steps)
        bounds.append(log_weights_at(walk, walk.target, z))
    by_loss, by_bound = losses[1].mean() - losses[0].mean(), bounds[1].mean() - bounds[0].mean()
    variance = sum(part.var() / len(part) for part in (*losses, *bounds))
    assert by_loss > 0.05
    assert_within_standard_error(by_loss.detach(), by_bound, variance.sqrt().detach())


def test_a_ring_is_learnt_for_all_numbers_of_steps():
    # No bijection of a Gaussian covers a ring.
    torch.manual_seed(0)
    walk, z = ring_walk()
    history = train_walk(walk, z.double(), WalkBudget(num_iterations=500, batch_size=256, hidden_features=32))
    assert not history.has_diverged and history.num_skipped == 0
    assert len(history.held_out) == 3 and len(history.loss) == 2
    shares = []
    for num_steps in (4, 16, 64):
        few = walk.in_steps(num_steps)
        weights = summarize_weights(weigh(few, few.target, 4096).log_weight)
        assert_within_standard_error(weights.log_mean_weight, RING, weights.std_error)
        upper = log_weights_at(few, few.target, walk.base.from_whitened(history.u)).mean().item()
        assert upper > RING > weights.elbo
        shares.append(weights.ess / 4096)
    assert shares[1] > 0.3 and shares[2] > shares[0]


def test_few_particles_are_not_learnt_by_heart():
    # Eight points that move on give the ring all the same.
    torch.manual_seed(1)
    walk, z = ring_walk()
    history = train_walk(walk, z[:8].double(), WalkBudget(num_iterations=300, batch_size=256, hidden_features=32))
    assert history.u.unique(dim=0).shape[0] > 4000
    angle = torch.atan2(*walk.base.from_whitened(history.u).unbind(-1)[::-1])
    assert torch.histc(angle.float(), 8, -math.pi, math.pi).min() > 100
    assert history.held_out[-1] < history.held_out[0]


def test_a_training_that_diverges_leaves_the_walk_as_it_was():
    torch.manual_seed(0)
    walk, z = ring_walk()
    before = {name: value.clone() for name, value in walk.network.state_dict().items()}
    budget = WalkBudget(num_iterations=20, batch_size=64, learning_rate=1e4, hidden_features=32)
    history = train_walk(walk, z.double(), budget)
    assert history.has_diverged
    for name, value in walk.network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_nothing_to_learn_is_no_divergence():
    torch.manual_seed(0)
    walk = Walk(FunctionTarget(lambda z: -0.5 * z.square().sum(-1), 2), *standard(2))
    walk.base = standard_base(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    history = train_walk(walk, torch.randn(512, 2).double(), WalkBudget(20, 64, hidden_features=8))
    assert not history.has_diverged


def test_training_ends_with_the_time():
    walk, z = ring_walk()
    with pytest.raises(OutOfTimeError), time_limit(now() + 0.5):
        train_walk(walk, z.double(), WalkBudget(num_iterations=10**6))


def standard(dim):
    return standard_base(torch.zeros(dim), torch.eye(dim)), KernelNetwork(dim, hidden_features=8)

r"""Training the diffusion in few steps: maximum likelihood along noised particles, with no simulation.

A particle :math:`x_1`, noised to a time *t*, is to be taken one step ahead, to :math:`t + d`. Between its two ends a
noised path is Gaussian, so that the likelihood of the step needs no draw of where it leads,

.. math::
    \min_p\ \mathrm E_{x_1, t, d, x_t} \Big[-\mathrm E_{q(x_{t+d} \mid x_t, x_1)} \log p(x_{t+d} \mid x_t)\Big],

which is, summed over the steps, the upper bound of the log evidence. All numbers of steps come from one training.
Particles go on moving at the posterior meanwhile (``explore.hmc``), so that none is learnt by heart; those of some
replicates are held out, and tell which weights are kept.

Source: the likelihood of a diffusion's steps, Ho, Jain, Abbeel 2020 (2006.11239), with learnt covariances.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from pyro_osds.explore.hmc import Pool
from pyro_osds.flow.kernel import KernelNetwork
from pyro_osds.flow.walk import MAX_STEPS, Walk
from pyro_osds.runtime.clock import check_time
from pyro_osds.runtime.light_adam import LightAdam
from pyro_osds.runtime.progress import progress_bar
from pyro_osds.train.descent import MovingAverage, clipped, gradients_of
from pyro_osds.train.optimizer import one_cycle

# How often each number of steps is trained, 1, 2, 4, ..., 64: few steps are soon learnt as well as they can be.
_SHARES = (0.05, 0.05, 0.1, 0.2, 0.2, 0.2, 0.2)
# Optimiser steps from one move of the particles to the next, and to the next look at those that are held out.
_MOVE_EVERY, _LOOK_EVERY = 25, 250
# Particles that move: in fewer, neighbours are learnt by heart before they have moved on.
_NUM_MOVING = 4096
# Nats a step beyond which a held-out loss is no noise, nor that of a training that has hardly begun.
_FAR_WORSE = 1.0
# Moves before training, which part the copies of a particle.
_FIRST_MOVES = 4
# Part of the particles, the last replicates, that is held out; and of the points at which held-out likelihood is taken.
_HELD_OUT, _NUM_LOOKED = 4, 4096


@dataclass(frozen=True)
class WalkBudget:
    """How long and how hard to train.

    Arguments:
        num_iterations: Optimiser steps.
        batch_size: Noised particles of each.
        learning_rate: Peak of a one-cycle schedule.
        hidden_features: Width of the network.
    """

    num_iterations: int = 4000
    batch_size: int = 512
    learning_rate: float = 3e-3
    hidden_features: int = 128

    def evaluations(self) -> int:
        """Points at which training evaluates the density, with its score."""
        moves = _FIRST_MOVES + self.num_iterations // _MOVE_EVERY
        looks = self.num_iterations // _LOOK_EVERY

        return self.num_iterations * self.batch_size + (5 * moves + looks) * _NUM_MOVING


@dataclass
class WalkHistory:
    """What training saw.

    Arguments:
        loss: Mean loss between looks, nats a step.
        held_out: Loss on held-out particles at each look; the first one is before training.
        num_skipped: Iterations whose gradient was not finite, and that were left out.
        u: The particles where they are now, whitened, ``(N, D)``.
    """

    loss: list[float] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)
    num_skipped: int = 0
    u: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def has_diverged(self) -> bool:
        """Whether training ended far worse on held-out particles than the noise that it began with.

        No better is no fault: where the posterior is the base, there is nothing to learn.
        """
        return not self.held_out[-1] < self.held_out[0] + _FAR_WORSE


def train_walk(walk: Walk, z: Tensor, budget: WalkBudget | None = None) -> WalkHistory:
    """Train a walk in place; it ends up with the weights that were best on held-out particles.

    Arguments:
        walk: The walk.
        z: Particles that stand for the posterior, replicate after replicate, ``(N, D)``.
        budget: How long and how hard.

    Raises:
        ~pyro_osds.runtime.clock.OutOfTimeError: If the time is over.
    """
    budget = budget or WalkBudget()
    history, network = WalkHistory(), walk.network
    pool = Pool(walk.log_prob_whitened, _enough(walk.base.to_whitened(z)))
    for _ in range(_FIRST_MOVES):
        pool.move()
    held_out = len(pool.u) - len(pool.u) // _HELD_OUT
    parameters, average = list(network.parameters()), MovingAverage(network)
    rate = budget.learning_rate
    optimizer, scheduler = one_cycle(LightAdam(network.parameters(), lr=rate, fused=True), rate, budget.num_iterations)
    history.held_out.append(_held_out_loss(walk, pool.u[held_out:]))
    best, total = network.state_dict(), 0.0
    best = {name: value.clone() for name, value in best.items()}
    progress = progress_bar(budget.num_iterations, "Teach few steps")
    for iteration in range(1, budget.num_iterations + 1):
        check_time()
        chosen = torch.randint(held_out, (budget.batch_size,), device=z.device)
        loss = step_loss(walk, pool.u[chosen].to(network.frequencies))
        gradients = gradients_of(loss, parameters)
        total += loss.item()
        if clipped(parameters, gradients, get_total_norm(gradients)):
            optimizer.step()
            average.update()
        else:
            history.num_skipped += 1
        scheduler.step()
        progress.update()
        if iteration % _MOVE_EVERY == 0:
            pool.move()
        if iteration % _LOOK_EVERY == 0 or iteration == budget.num_iterations:
            walk.network = cast("KernelNetwork", average.module)
            look = _held_out_loss(walk, pool.u[held_out:])
            walk.network = network
            if look < min(history.held_out):
                best = {name: value.clone() for name, value in average.module.state_dict().items()}
            history.held_out.append(look)
            history.loss.append(total / _LOOK_EVERY)
            total = 0.0
            progress.set_postfix(loss=f"{look:.3f}")
    progress.close()
    network.load_state_dict(best)
    history.u = pool.u

    return history


def step_loss(walk: Walk, u: Tensor) -> Tensor:
    """What steps along noised particles cost, nats a step; zero on average for a Gaussian posterior before training.

    Arguments:
        walk: The walk.
        u: Particles in whitened coordinates, in the precision of the network, ``(B, D)``.
    """
    shares = torch.tensor(_SHARES, device=u.device)
    count = 2.0 ** torch.multinomial(shares, len(u), replacement=True)[:, None].to(u)
    d = 1.0 / count
    t = torch.floor(torch.rand_like(count) * count) * d
    noise, after = walk.step_noise(t, d), walk.step_noise(t + d, torch.zeros_like(d)).level
    signal = (walk.schedule.log_signal(t + d)).exp()
    x = noise.decay * signal * u + noise.level * torch.randn_like(u)
    # Where a path between its two ends is, and how far it spreads there in units of the step's noise.
    mean = signal * (noise.scale / noise.level).square() * u + noise.decay * (after / noise.level).square() * x
    variance = (after / noise.level).square()
    kernel = walk.network(x, t, d, noise, walk.guidance(x, t))

    return (kernel.cross_entropy(mean, variance) - 0.5 * u.shape[1]).mean()


def _held_out_loss(walk: Walk, u: Tensor) -> float:
    """The same on particles that were held out, at the same noise each time."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        loss = step_loss(walk, u.repeat(math.ceil(_NUM_LOOKED / len(u)), 1).to(walk.network.frequencies)).item()

    return loss if math.isfinite(loss) else math.inf


def _enough(u: Tensor) -> Tensor:
    """Copies of particles, side by side so that replicates stay together, where there are too few; some of too many."""
    if len(u) > _NUM_MOVING:
        return u[torch.linspace(0, len(u) - 1, _NUM_MOVING, device=u.device).long()]

    return u.repeat_interleave(math.ceil(_NUM_MOVING / len(u)), 0)


assert len(_SHARES) == 1 + int(math.log2(MAX_STEPS)), "every number of steps is trained"

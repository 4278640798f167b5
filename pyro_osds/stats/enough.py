"""When a flow is good enough: what its draws give, not how near its ELBO comes to the log evidence.

Draws are cheaper than training. A look at some draws tells what many would give: the standard error of the log evidence
falls with their square root, and chains thinned out of more proposals mix better. Where that is as precise as was asked
for, further training would serve nobody.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_osds.stats.chains import expected_mixing
from pyro_osds.stats.thresholds import (
    ENOUGH_CHAIN_ESS,
    ENOUGH_STD_ERROR,
    GOOD_PARETO_K,
    HEAVY_SHARE,
    MANY_EFFECTIVE,
    MAX_PARETO_K,
    MAX_SIGMAS,
    MIN_UNSEEN,
    TARGET_STD_ERROR,
    UNSEEN_SIGMAS,
)
from pyro_osds.stats.weights import WeightSummary

MAX_DRAWS = 32768
"""Weighted draws at most, at the default precision: beyond, the standard error falls too slowly for what they take."""
# The same for whoever asks for a smaller error, and the numbers that so many draws may hold: 256 MiB in double
# precision.
_MOST_DRAWS, _MOST_NUMBERS = 2**20, 2**25
# Weights from which on particles are counted, as multiples of their mean.
_MULTIPLES = 5.0, 10.0, 20.0, 50.0


@dataclass(frozen=True)
class Enough:
    """What is good enough for a user.

    Arguments:
        std_error: Standard error of the log evidence, nats.
        num_draws: Posterior draws in all.
        max_draws: Weighted draws that may be made for it.

    Example:
        >>> from pyro_osds.stats.weights import summarize_weights
        >>> log_weight = torch.randn(4096, generator=torch.Generator().manual_seed(0))
        >>> summary = summarize_weights(0.5 * log_weight)
        >>> round(Enough(0.01).shortfall(summary, 0.5 * log_weight), 2)
        0.51
        >>> round(Enough(0.001).shortfall(summary, 0.5 * log_weight), 2)
        3.14
    """

    std_error: float = TARGET_STD_ERROR
    num_draws: int = 4000
    max_draws: int = MAX_DRAWS

    @property
    def stop_at(self) -> float:
        """Standard error at which no more draws are made, nats: draws cost little, so below what was asked for."""
        return min(self.std_error, max(ENOUGH_STD_ERROR, ENOUGH_STD_ERROR / TARGET_STD_ERROR * self.std_error))

    def shortfall(self, weights: WeightSummary, log_weight: Tensor) -> float:
        """By what factor draws of a flow, as many as may be made, would miss what is enough; up to 1 they are enough.

        Arguments:
            weights: What some of its weights say.
            log_weight: These weights, ``(S,)``, logs.
        """
        k = max(weights.pareto_k, GOOD_PARETO_K)
        if not k <= MAX_PARETO_K:
            return math.inf
        # As the standard error is stated: by the square root of the number of draws, and more slowly in heavy tails.
        std_error = weights.std_error * (weights.num_draws / self.max_draws) ** (1.0 - k)

        return max(std_error / self.std_error, self._least_mixing / self._mixing(log_weight, self.max_draws))

    def is_reached(self, weights: WeightSummary, log_weight: Tensor) -> bool:
        """Whether there are enough draws already.

        Arguments:
            weights: What the weights of the draws say.
            log_weight: These weights, ``(S,)``, logs.
        """
        mixing = self._mixing(log_weight, len(log_weight))

        return not weights.std_error > self.stop_at and mixing >= self._least_mixing

    def _mixing(self, log_weight: Tensor, num_proposals: int) -> float:
        """Share of effective draws in chains thinned out of so many proposals; a little, where there are none."""
        return 1e-9 + expected_mixing(log_weight, max(num_proposals // self.num_draws, 1))

    @property
    def _least_mixing(self) -> float:
        return min(ENOUGH_CHAIN_ESS, MANY_EFFECTIVE / self.num_draws)


def tails_agree(log_weight: Tensor, of_particles: Tensor) -> bool:
    """Whether particles lie among the largest weights as often as these weights say.

    Of the posterior, a share of :data:`HEAVY_SHARE` lies where the flow's weights are largest. Particles that were
    explored without the flow have to lie there as often, within three standard errors. Fewer of them, and exploration
    does not reach where the flow's own tail is found to be too light; more, and draws of the flow do not.

    Arguments:
        log_weight: Log weights of draws of the flow, ``(S,)``.
        of_particles: Log weights at the particles, ``(N,)``.

    Example:
        >>> log_weight = torch.linspace(-1.0, 1.0, 4096)
        >>> tails_agree(log_weight, torch.full((512,), 1.5)), tails_agree(log_weight, torch.full((512,), -1.5))
        (False, False)
    """
    if unseen(log_weight, of_particles):
        return False

    return confirms_tail(share_in_tail(log_weight, of_particles), len(of_particles))


def confirms_tail(share: float, num_particles: int) -> bool:
    """Whether a share of so many particles is that of the posterior, within three standard errors.

    Arguments:
        share: Share of the particles where weights are largest.
        num_particles: How many particles there are.

    Example:
        >>> confirms_tail(0.06, 512), confirms_tail(0.0, 512)
        (True, False)
    """
    error = math.sqrt(HEAVY_SHARE * (1.0 - HEAVY_SHARE) / num_particles)

    return abs(share - HEAVY_SHARE) <= MAX_SIGMAS * error


class Unseen(NamedTuple):
    """Where particles lie and draws of a flow hardly do.

    Arguments:
        multiple: Weights from here on are meant, as multiples of their mean.
        by_particles: Share of the particles with such weights.
        by_draws: Share of the posterior with such weights, as draws tell it.
    """

    multiple: float
    by_particles: float
    by_draws: float


def unseen(log_weight: Tensor, of_particles: Tensor) -> Unseen | None:
    """Where particles lie far more often than draws of a flow say; None where both agree.

    A part of the posterior that the flow hardly proposes has weights many times their mean. Draws meet it by luck or
    not at all, and neither their standard error nor the shape of their tail tells what was not met. Particles that were
    explored without the flow lie there as often as anywhere else in the posterior.

    Arguments:
        log_weight: Log weights of draws of the flow, ``(S,)``.
        of_particles: Log weights at the particles, ``(N,)``.

    Example:
        >>> log_weight = torch.zeros(4096)
        >>> unseen(log_weight, torch.zeros(512)) is None
        True
        >>> unseen(log_weight, torch.cat([torch.zeros(480), torch.full((32,), 9.0)]))
        Unseen(multiple=5.0, by_particles=0.0625, by_draws=0.0)
    """
    share = torch.softmax(log_weight.double(), 0)
    # Over the mean of all draws, those of no weight included.
    over_mean, particles = share * len(share), of_particles.double() - torch.logsumexp(log_weight.double(), 0)
    particles = particles + math.log(len(share))
    for multiple in _MULTIPLES:
        tail = share[over_mean > multiple]
        by_draws, by_particles = tail.sum().item(), (particles > math.log(multiple)).double().mean().item()
        both = max(0.5 * (by_draws + by_particles), 1.0 / len(of_particles))
        error = math.sqrt(both * (1.0 - both) / len(of_particles) + tail.square().sum().item())
        if by_particles - by_draws > max(MIN_UNSEEN, UNSEEN_SIGMAS * error):
            return Unseen(multiple, by_particles, by_draws)

    return None


def share_in_tail(log_weight: Tensor, of_particles: Tensor) -> float:
    """Share of particles where weights are largest, which holds a share of :data:`HEAVY_SHARE` of the posterior.

    Arguments:
        log_weight: Log weights of draws of the flow, ``(S,)``.
        of_particles: Log weights at the particles, ``(N,)``.

    Example:
        >>> share_in_tail(torch.zeros(4096), torch.tensor([-1.0, 1.0]))
        0.5
    """
    largest = log_weight.sort(descending=True).values
    reached = torch.softmax(largest.double(), 0).cumsum(0)
    bound = largest[min(int((reached < HEAVY_SHARE).sum()), len(largest) - 1)]

    return (of_particles > bound).double().mean().item()


def most_draws(std_error: float, dim: int) -> int:
    """Weighted draws that may be made for a standard error; a power of two times the usual number.

    Arguments:
        std_error: The standard error of the log evidence that was asked for, nats.
        dim: Coordinates of a draw.

    Example:
        >>> most_draws(0.01, dim=10), most_draws(0.0015, dim=10), most_draws(1e-6, dim=10), most_draws(1e-6, dim=1000)
        (32768, 131072, 1048576, 32768)
    """
    most = min(_MOST_DRAWS, _MOST_NUMBERS // max(dim, 1))
    count = MAX_DRAWS
    while 2 * count <= most and MAX_DRAWS * (ENOUGH_STD_ERROR / std_error) ** 2 > count:
        count *= 2

    return count

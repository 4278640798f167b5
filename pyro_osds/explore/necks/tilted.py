r"""Particles tilted into a neck: how much of the posterior lies there, whatever a flow knows of it.

From draws that are weighed to the posterior :math:`\pi`, sequential Monte Carlo goes on to

.. math:: \pi_t(z) \propto \pi(z)\, e^{t(z)}, \qquad t(z) = \min\big(\beta\,(s z_i - q) / \sigma_i,\; t_{\max}\big)_+,

which favours what lies beyond a quantile *q* of the coordinate that leads into the neck. Most particles end up there,
and go on by Hamiltonian moves in its own scale. The share of a region *R* in the posterior is

.. math:: \pi(R) = \frac{\sum_r \rho_r\, \mathrm{E}_r\big[\mathbf{1}_R\, e^{-t}\big]}
    {\sum_r \rho_r\, \mathrm{E}_r\big[e^{-t}\big]},

over replicates *r*, each with its own particles and its own estimate :math:`\rho_r` of the ratio of both integrals;
what they differ by gives the error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_osds.explore.annealing import explore
from pyro_osds.explore.necks.narrowing import Way
from pyro_osds.stats.weights import log_weights_at
from pyro_osds.target import Target

# The fifth of the posterior that is furthest out is tilted, by so many nats for a standard deviation, and so many in
# all: a part that holds a hundredth of the posterior then holds a third of the particles.
_TILTED_SHARE, _NATS_PER_SD, _MOST_NATS = 0.2, 1.5, 4.0
_NUM_REPLICATES = 8
# A weight of twice the mean is the least that says that a flow lacks something: noise of its weights reaches up to it.
_LACKING = 2.0


@dataclass(frozen=True)
class Tilted:
    """Particles of a posterior that is tilted into a neck.

    Arguments:
        z: Particles, replicate after replicate, ``(R * N, D)``.
        log_tilt: Nats by which the posterior is tilted there, ``(R * N,)``.
        log_ratio: Log of the integral of the tilted posterior over that of the posterior, by replicate, ``(R,)``.
        coordinate: The coordinate that leads into the neck.
        sign: In which direction, 1 or -1.
    """

    z: Tensor
    log_tilt: Tensor
    log_ratio: Tensor
    coordinate: int
    sign: int

    def mean(self, value: Tensor) -> tuple[float, float]:
        """Mean of a function over the posterior, and its standard error from the spread of the replicates.

        Arguments:
            value: The function at the particles, ``(R * N,)``.
        """
        count, weight = len(self.log_ratio), (-self.log_tilt).exp()
        # What replicates differ by in their own estimate of the ratio cancels.
        part, whole = ((each * weight).view(count, -1).mean(1) * self.log_ratio.exp() for each in (value.double(), 1.0))
        mean = part.sum() / whole.sum()
        std_error = (part - mean * whole).std() / (whole.mean() * math.sqrt(count))

        return mean.item(), std_error.item()


def lacking(log_over_mean: Tensor) -> Tensor:
    r"""What of a point a flow lacks, between 0 and 1.

    .. math:: (1 - 2 \bar w / w)_+

    Arguments:
        log_over_mean: Logs of the flow's weights over their mean, ``(N,)``.

    Example:
        >>> lacking(torch.tensor([0.0, 1.0, 4.0]).log()).round(decimals=3).tolist()
        [0.0, 0.0, 0.5]
    """
    return (1.0 - _LACKING * (-log_over_mean.double()).exp()).clamp(min=0.0)


class _TiltedPath:
    """From a posterior to the same one tilted into a neck.

    Arguments:
        target: The posterior.
        z: Draws, ``(S, D)``.
        log_weight: Their log weights, ``(S,)``.
        way: The way into the neck.
    """

    patience = 1

    def __init__(self, target: Target, z: Tensor, log_weight: Tensor, way: Way) -> None:
        self.dim = target.dim
        self._target, self._z, self._way = target, z, way
        self._probs = torch.softmax(log_weight.double(), 0)
        outwards = way.sign * z[:, way.coordinate].double()
        order = outwards.argsort()
        inside = int((self._probs[order].cumsum(0) < 1.0 - _TILTED_SHARE).sum())
        self._from = outwards[order[min(inside, len(order) - 1)]]
        mean = self._probs @ outwards
        self._rate = _NATS_PER_SD / (self._probs @ (outwards - mean).square()).sqrt()

    def sample(self, num_draws: int, /) -> Tensor:
        """Draws of the posterior, ``(num_draws, D)``."""
        return self._z[torch.multinomial(self._probs, num_draws, replacement=True)]

    def log_tilt(self, z: Tensor) -> Tensor:
        """Nats by which the posterior is tilted, ``(B, D) -> (B,)``."""
        return (self._rate * (self._way.sign * z[:, self._way.coordinate] - self._from)).clamp(0.0, _MOST_NATS)

    def log_densities(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log densities of the posterior and of the tilted one, ``(B, D) -> (B,), (B,)``."""
        log_prob = self._target.log_prob(z)

        return log_prob, log_prob + self.log_tilt(z).to(log_prob)


def tilt(
    target: Target, z: Tensor, log_weight: Tensor, way: Way, num_particles: int, num_moves: int, num_temperatures: int
) -> Tilted:
    """Particles tilted into a neck.

    Arguments:
        target: The posterior.
        z: Draws, ``(S, D)``.
        log_weight: Their log weights, ``(S,)``.
        way: The way into the neck.
        num_particles: Particles on each of eight replicates.
        num_moves: Hamiltonian moves at each temperature.
        num_temperatures: Temperatures on the way at least.
    """
    path = _TiltedPath(target, z, log_weight, way)
    found = explore(
        path,
        num_particles,
        _NUM_REPLICATES,
        num_moves=num_moves,
        min_temperatures=num_temperatures,
        max_settling=num_temperatures,
        phase="Necks",
    )

    return Tilted(
        found.z,
        path.log_tilt(found.z).double(),
        found.replicate_log_evidence.double(),
        way.coordinate,
        way.sign,
    )


def log_over_mean(leap: object, target: Target, necks: Tilted, log_mean: float) -> Tensor:
    """Logs of a flow's weights at tilted particles, over the mean weight of its draws, ``(N,)``.

    Arguments:
        leap: The flow.
        target: The posterior.
        necks: The particles.
        log_mean: Log of the mean weight.
    """
    return log_weights_at(leap, target, necks.z).double() - log_mean

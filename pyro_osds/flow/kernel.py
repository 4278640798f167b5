r"""Gaussian kernels of a diffusion's steps, as a network gives them.

From a state :math:`x`, over a step whose noise has the scale *s* where *a* is left of the state, the next one is

.. math::
    x' = a\,x + s\,\big(m(x, t, d) + P(x, t, d)^{-1} \varepsilon\big), \qquad \varepsilon \sim \mathcal N(0, I),

with a lower triangular :math:`P` that is full in few dimensions: on a ring the kernel is narrow across and wide along,
and which way that is turns with the state. With :math:`m = 0` and :math:`P = I` it is the Ornstein-Uhlenbeck
transition, and so it begins. What the network says of :math:`m` counts as the share *s* of all noise that there is at
the time, and what it says of :math:`P` as the square of that: kernels of small steps are those of the diffusion but for
so much.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from pyro_osds.runtime.torch_internals import unchanged_validation

# Importing zuko turns the checks of all torch distributions off.
with unchanged_validation():
    import zuko

# Coordinates up to which kernels have all their correlations: the entries grow as the square of them.
_MAX_FULL = 16
# Log scales of kernels are bounded by this: no posterior is e^10 times narrower than a step of its diffusion.
_MAX_LOG_SCALE = 10.0
_NUM_FREQUENCIES = 4
# Halvings of the finest step, and the size of the guidance, which inputs of the network are scaled by.
_FINEST, _GUIDANCE_SCALE = 6.0, 5.0


class StepNoise(NamedTuple):
    """What noise does over steps, ``(B, 1)`` or ``(1, 1)`` each.

    Arguments:
        decay: What is left of a state on the way back to the base, *a*.
        scale: Scale of the noise that takes its place, *s*.
        level: Scale of all noise in the state nearer to the base.
    """

    decay: Tensor
    scale: Tensor
    level: Tensor


class Kernel(NamedTuple):
    """Gaussian kernels, one for each of ``B`` states.

    Arguments:
        mean: Means, ``(B, D)``.
        scale: Scale of the step's noise, ``(B, 1)`` or ``(1, 1)``.
        log_diagonal: Log of the diagonal of the precision's factor *P*, ``(B, D)``.
        lower: What is below that diagonal, ``(B, D, D)``; None where it is zero.
    """

    mean: Tensor
    scale: Tensor
    log_diagonal: Tensor
    lower: Tensor | None = None

    def whitened(self, x: Tensor) -> Tensor:
        r"""The noise behind states, :math:`\varepsilon = P (x - \mu) / s`, ``(B, D) -> (B, D)``."""
        x = (x - self.mean) / self.scale
        noise = self.log_diagonal.exp() * x

        return noise if self.lower is None else noise + (self.lower @ x[..., None])[..., 0]

    def moved(self, noise: Tensor) -> Tensor:
        """States from noise, ``(B, D) -> (B, D)``: the inverse of :meth:`whitened`."""
        if self.lower is None:
            x = noise * (-self.log_diagonal).exp()
        else:
            factor = self.lower + torch.diag_embed(self.log_diagonal.exp())
            x = torch.linalg.solve_triangular(factor, noise[..., None], upper=False)[..., 0]

        return self.mean + self.scale * x

    def log_prob(self, x: Tensor) -> Tensor:
        """Log densities of states, ``(B, D) -> (B,)``."""
        return self.log_prob_of_noise(self.whitened(x))

    def log_prob_of_noise(self, noise: Tensor) -> Tensor:
        """Log densities of the states that come from this noise, ``(B, D) -> (B,)``."""
        dim = noise.shape[-1]
        constant = 0.5 * dim * math.log(2.0 * math.pi) + dim * self.scale[..., 0].log()

        return self.log_diagonal.sum(-1) - 0.5 * noise.square().sum(-1) - constant

    def cross_entropy(self, mean: Tensor, variance: Tensor) -> Tensor:
        r"""What draws of other Gaussians cost in these kernels, nats, but for constants.

        .. math:: -\mathrm E \log p(x') = \tfrac12 |P r|^2 + \tfrac v2 |P|_F^2 - \log\det P + \dots, \quad
            r = (\bar x - \mu) / s

        Arguments:
            mean: Means of the others, ``(B, D)``.
            variance: Their variance in units of the step's noise, *v*, the same in all directions, ``(B, 1)``.

        Returns:
            The cost that changes with the kernels, ``(B,)``.
        """
        size = (2.0 * self.log_diagonal).exp().sum(-1)
        if self.lower is not None:
            size = size + self.lower.square().sum((-1, -2))

        return 0.5 * self.whitened(mean).square().sum(-1) + 0.5 * variance[:, 0] * size - self.log_diagonal.sum(-1)


class KernelNetwork(nn.Module):
    r"""Means and precisions of kernels, as corrections to Ornstein-Uhlenbeck transitions.

    Arguments:
        dim: The number of coordinates.
        hidden_features: Width of the hidden layers.

    Example:
        >>> network = KernelNetwork(2, hidden_features=8)
        >>> x, half = torch.randn(3, 2, dtype=torch.float64), torch.full((1, 1), 0.5, dtype=torch.float64)
        >>> kernel = network(x, half, half, StepNoise(half, half, half), guidance=torch.zeros_like(x))
        >>> torch.equal(kernel.mean, 0.5 * x), kernel.log_prob(x).dtype
        (True, torch.float64)
    """

    frequencies: Tensor
    below: Tensor

    def __init__(self, dim: int, hidden_features: int = 128) -> None:
        super().__init__()
        self.dim = dim
        self.num_below = dim * (dim - 1) // 2 if dim <= _MAX_FULL else 0
        num_times = 2 * _NUM_FREQUENCIES + 3
        self.curve = zuko.nn.MLP(
            2 * dim + num_times, 2 * dim + self.num_below, [hidden_features] * 3, activation=nn.SiLU
        )
        self.gate = zuko.nn.MLP(num_times, dim, [hidden_features // 2], activation=nn.SiLU)
        # Zero heads: the untrained kernels are those of the noise.
        for head in (self.curve[-1], self.gate[-1]):
            nn.init.zeros_(cast("nn.Linear", head).weight)
            nn.init.zeros_(cast("nn.Linear", head).bias)
        self.register_buffer("frequencies", 0.5 * torch.pi * 2.0 ** torch.arange(_NUM_FREQUENCIES))
        self.register_buffer("below", torch.tril_indices(dim, dim, -1), persistent=False)

    def forward(self, x: Tensor, t: Tensor, d: Tensor, noise: StepNoise, guidance: Tensor) -> Kernel:
        """Kernels from states and guidance ``(B, D)``, times and step sizes ``(B, 1)`` or ``(1, 1)``."""
        like = self.frequencies
        share, angles = (noise.scale / noise.level).to(like), t.to(like) * like
        help_ = guidance.to(like)
        log_scale = noise.scale.log().to(like)
        time = torch.cat([t.to(like), d.log2().to(like) / _FINEST, log_scale, angles.sin(), angles.cos()], -1)
        inputs = torch.cat([x.to(like), help_ / _GUIDANCE_SCALE, time.expand(len(x), -1)], -1)
        shift, log_diagonal, below = self.curve(inputs).split([self.dim, self.dim, self.num_below], -1)
        shift = share * (shift + self.gate(time) * noise.level.to(like) * help_)
        log_diagonal = _MAX_LOG_SCALE * torch.tanh(share.square() * log_diagonal / _MAX_LOG_SCALE)
        lower = None
        if self.num_below:
            # Beside a narrow diagonal its correlations are as large.
            below = share.square() * below * log_diagonal.exp()[:, self.below[0]]
            lower = x.new_zeros(len(x), self.dim, self.dim)
            lower[:, self.below[0], self.below[1]] = below.to(x)

        return Kernel(noise.decay * x + noise.scale * shift.to(x), noise.scale, log_diagonal.to(x), lower)

r"""A diffusion in few steps whose kernels are learnt: what no single bijection covers.

A path leads from noise, :math:`x_0 \sim \mathcal N(0, I)` at time 0, to the posterior, :math:`x_K` at time 1, by *K*
learnt Gaussian kernels *p* (module ``kernel``). Held against noise that takes it back, *q*, it has an exact weight,

.. math::
    \log w = \log\gamma(x_K) + \sum_{k=0}^{K-1} \log q(x_k \mid x_{k+1})
    - \log\mathcal N(x_0; 0, I) - \sum_{k=0}^{K-1} \log p(x_{k+1} \mid x_k), \qquad \mathrm{E}_p\, w = Z,

for every number of steps and whatever was learnt. From draws of the posterior, noised backwards, the same weights
average to an upper bound of the log evidence, :math:`\mathrm{E}_q \log w \ge \log Z \ge \mathrm{E}_p \log w`.

Unlike a bijection of a Gaussian, a diffusion has no topology to respect: rings, shells and modes that multiply are as
near to it as anything.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyro_osds.flow.base import Base
from pyro_osds.flow.kernel import Kernel, KernelNetwork, StepNoise
from pyro_osds.flow.schedule import CosineSchedule, NoiseSchedule
from pyro_osds.target import Target, log_prob_and_score

MAX_STEPS = 64
"""Steps of the finest grid: beyond, kernels are as near to the diffusion as they get, and draws only take longer."""

# Scores of the target are cut to this size in whitened coordinates, where those of a Gaussian are a few units.
_MAX_GUIDANCE = 10.0
# The score is asked for where a state would be without the decay; where less than this is left, nearer to the base.
_LEAST_SIGNAL = 0.5


class Steps(NamedTuple):
    """Paths in whitened coordinates, with what their steps say.

    Arguments:
        x: States, ``(num_steps + 1, B, D)``, from the base to the posterior.
        log_ratio: Log density of noise that goes back over that of the path itself, ``(B,)``: minus the log density of
            its end, as this path estimates it.
    """

    x: Tensor
    log_ratio: Tensor


class Walk(nn.Module):
    """The diffusion in few steps; its draws have the exact weights of their paths.

    Arguments:
        target: The target, whose score helps the kernels.
        base: The whitening; paths start from the standard normal in whitened coordinates.
        network: The kernels.
        num_steps: Steps of each path, a power of two.
        schedule: The noise schedule.

    Example:
        >>> from pyro_osds.flow.base import gaussian_base
        >>> from pyro_osds.target import FunctionTarget
        >>> torch.manual_seed(0) and None
        >>> base = gaussian_base(torch.randn(500, 2, dtype=torch.float64))
        >>> walk = Walk(FunctionTarget(base.log_prob, 2), base, KernelNetwork(2), num_steps=4)
        >>> z, log_q, _ = walk.sample(5)  # untrained, it walks to its base, and all of its paths say so
        >>> torch.allclose(log_q, base.log_prob(z), atol=1e-3)
        True
    """

    can_invert = False
    has_exact_density = False

    def __init__(
        self,
        target: Target,
        base: Base,
        network: KernelNetwork,
        num_steps: int = 16,
        schedule: NoiseSchedule | None = None,
    ) -> None:
        super().__init__()
        self.target, self.base, self.network, self.num_steps = target, base, network, num_steps
        self.schedule = schedule or CosineSchedule()

    def in_steps(self, num_steps: int) -> Walk:
        """The same kernels in another number of steps, which they have learnt, too.

        Arguments:
            num_steps: Steps of each path, a power of two.
        """
        other = copy.copy(self)
        other.num_steps = num_steps

        return other

    # ---- kernels ----

    def ahead(self, x: Tensor, t: Tensor, d: Tensor) -> Kernel:
        """The kernels from states at a time towards the posterior; times and steps are ``(B, 1)`` or ``(1, 1)``."""
        return self.network(x, t, d, self.step_noise(t, d), self.guidance(x, t))

    def back(self, x: Tensor, t: Tensor, d: Tensor) -> Kernel:
        """The kernels from states at ``t + d`` back to ``t``: noise."""
        noise = self.step_noise(t, d)

        return Kernel(noise.decay * x, noise.scale, torch.zeros_like(x))

    def step_noise(self, t: Tensor, d: Tensor) -> StepNoise:
        """What noise does over steps."""
        log_signal = self.schedule.log_signal(t)
        log_decay = log_signal - self.schedule.log_signal(t + d)

        return StepNoise(
            log_decay.exp(), (-torch.expm1(2.0 * log_decay)).sqrt(), (-torch.expm1(2.0 * log_signal)).sqrt()
        )

    @torch.no_grad()
    def guidance(self, x: Tensor, t: Tensor) -> Tensor:
        r"""What the score of the target says, bounded, and faded out towards the base: ``(B, D)``.

        .. math:: \alpha^2 h\big(\nabla \log\gamma(y) + y\big), \quad y = x / \max(\alpha, \tfrac12), \qquad
            h(g) = g \big/ \sqrt{1 + |g|^2 / (c^2 D)}
        """
        signal = self.schedule.log_signal(t).exp()
        y = (x / signal.clamp(min=_LEAST_SIGNAL)).to(self.base.loc)
        excess = log_prob_and_score(self.log_prob_whitened, y)[1] + y
        bounded = excess / torch.sqrt(1.0 + excess.square().mean(-1, keepdim=True) / _MAX_GUIDANCE**2)

        return signal.square() * bounded.to(x)

    def log_prob_whitened(self, u: Tensor) -> Tensor:
        """Log density of the target in whitened coordinates, ``(B, D) -> (B,)``."""
        return self.target.log_prob(self.base.from_whitened(u)) + self.base.log_abs_det

    # ---- paths ----

    @torch.no_grad()
    def simulate(self, num_paths: int) -> Steps:
        """Paths from fresh noise to the posterior.

        Arguments:
            num_paths: How many, ``B``.
        """
        like = self.base.loc
        x = torch.randn(num_paths, len(like), dtype=like.dtype, device=like.device)
        states, log_ratio = [x], -_standard_log_prob(x)
        for t, d in self._grid():
            kernel, noise = self.ahead(x, t, d), torch.randn_like(x)
            after = kernel.moved(noise)
            log_ratio = log_ratio + self.back(after, t, d).log_prob(x) - kernel.log_prob_of_noise(noise)
            x = after
            states.append(x)

        return Steps(torch.stack(states), log_ratio)

    @torch.no_grad()
    def retrace(self, u: Tensor) -> Steps:
        """Paths that end at given points, noised backwards.

        Arguments:
            u: Points in whitened coordinates, ``(B, D)``.
        """
        x, states, log_ratio = u, [u], u.new_zeros(len(u))
        for t, d in reversed(self._grid()):
            kernel, noise = self.back(x, t, d), torch.randn_like(x)
            before = kernel.moved(noise)
            log_ratio = log_ratio + kernel.log_prob_of_noise(noise) - self.ahead(before, t, d).log_prob(x)
            x = before
            states.append(x)

        return Steps(torch.stack(states[::-1]), log_ratio - _standard_log_prob(x))

    def _grid(self) -> list[tuple[Tensor, Tensor]]:
        """Time and size of each step, ``(1, 1)`` each."""
        d = self.base.loc.new_full((1, 1), 1.0 / self.num_steps)

        return [(d * step, d) for step in range(self.num_steps)]

    # ---- draws in the target's coordinates ----

    def sample(self, num_draws: int) -> tuple[Tensor, Tensor, Tensor]:
        r"""Draws, what their paths say of their log density, and nan, since there is no one map behind them.

        :math:`\gamma(z) / \hat q(z)` is the weight of the path: on average the evidence.

        Arguments:
            num_draws: How many.
        """
        steps = self.simulate(num_draws)
        log_q = -steps.log_ratio - self.base.log_abs_det

        return self.base.from_whitened(steps.x[-1]), log_q, torch.full_like(log_q, math.nan)

    def log_prob(self, z: Tensor) -> Tensor:
        """What one path back from each point says of its log density, ``(B, D) -> (B,)``; another one each time.

        At draws of the posterior, the weights with it are those of paths drawn from the posterior on paths.
        """
        return -self.retrace(self.base.to_whitened(z)).log_ratio - self.base.log_abs_det


def _standard_log_prob(x: Tensor) -> Tensor:
    return -0.5 * (x.square().sum(-1) + x.shape[-1] * math.log(2.0 * math.pi))

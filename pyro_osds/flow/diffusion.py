r"""The teacher: a controlled diffusion that walks from noise to the posterior in many small steps.

In whitened coordinates, with base :math:`\mathcal N(0, I)` and signal :math:`\alpha` (module ``schedule``), noise
enters in exact Ornstein-Uhlenbeck transitions and is taken out again with the help of a control :math:`r`,

.. math::
    x_t \mid x_{t+d} \sim \mathcal N\big(a\,x_{t+d},\ (1 - a^2) I\big), \qquad
    x_{t+d} \mid x_t \sim \mathcal N\big(a\,x_t + 2 (1 - a)\, r(x_t, t, d),\ (1 - a^2) I\big),
    \qquad a = \alpha(t) / \alpha(t + d).

The control is what the score of the noised posterior has beyond the score of the base, :math:`r = \nabla\log p_t + x`.
Where the whitened posterior is :math:`\mathcal N(0, I)` it vanishes, and every path has the same weight before any
training. The same control drives the probability flow, a differential equation with the same marginals,

.. math:: x_{t+d} = x_t - \log a \; r(x_t, t, d).

Source: arXiv 2512.05251, section 2, whose Euler-Maruyama steps and whose control of the whole score these replace.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyro_osds.flow.base import Base
from pyro_osds.flow.network import ControlNetwork
from pyro_osds.flow.schedule import CosineSchedule, NoiseSchedule
from pyro_osds.target import Target, finite_log_prob, log_prob_and_score

# Scores of the target are cut to this size in whitened coordinates, where those of a Gaussian are a few units.
_MAX_GUIDANCE = 10.0


class Paths(NamedTuple):
    """Trajectories of the diffusion in whitened coordinates, from the base to the posterior.

    Arguments:
        x: States, ``(num_steps + 1, B, D)``.
        guidance: Guidance at all states but the last, ``(num_steps, B, D)``.
        log_prob: Log density of the whitened target at the last states, ``(B,)``; ``-inf`` where not finite.
    """

    x: Tensor
    guidance: Tensor
    log_prob: Tensor

    @property
    def num_steps(self) -> int:
        """Steps of each path."""
        return len(self.guidance)


class Diffusion(nn.Module):
    """The controlled diffusion of one target.

    Arguments:
        target: The target.
        base: The whitening; the diffusion itself starts from the standard normal in whitened coordinates.
        network: The control's network.
        schedule: The noise schedule.
        guided: Whether the score of the target helps the network, which costs a density evaluation at each step.

    Example:
        >>> from pyro_osds.flow.base import gaussian_base
        >>> from pyro_osds.target import FunctionTarget
        >>> torch.manual_seed(0) and None
        >>> base = gaussian_base(torch.randn(500, 2, dtype=torch.float64))
        >>> diffusion = Diffusion(FunctionTarget(base.log_prob, 2), base, ControlNetwork(2))
        >>> log_weight = diffusion.log_weight(diffusion.simulate(5, num_steps=4))  # the target is the base: log Z = 0
        >>> bool((log_weight.abs() < 1e-4).all())
        True
    """

    def __init__(
        self,
        target: Target,
        base: Base,
        network: ControlNetwork,
        schedule: NoiseSchedule | None = None,
        guided: bool = True,
    ) -> None:
        super().__init__()
        self.target = target
        self.base = base
        self.network = network
        self.schedule = schedule or CosineSchedule()
        self.guided = guided

    def log_prob(self, u: Tensor) -> Tensor:
        """Log density of the whitened target, ``(B, D) -> (B,)``."""
        return self.target.log_prob(self.base.from_whitened(u)) + self.base.log_abs_det

    def guidance(self, x: Tensor, t: Tensor, differentiable: bool = False) -> Tensor:
        r"""What the target's score says of the control, bounded: ``(B, D)`` and ``(B, 1)`` to ``(B, D)``.

        .. math:: \alpha(t)^2\, h\big(\nabla \log\gamma(x) + x\big), \qquad h(g) = g \big/ \sqrt{1 + |g|^2 / (c^2 D)}

        It fades out towards the base, where noise has left nothing of the posterior. It is a constant for gradients
        unless it is asked to be ``differentiable``.
        """
        if not self.guided:
            return torch.zeros_like(x)
        if differentiable:
            (score,) = torch.autograd.grad(self.log_prob(x).sum(), x, create_graph=True)
        else:
            x = x.detach()
            score = log_prob_and_score(self.log_prob, x)[1]
        excess = score + x
        bounded = excess / torch.sqrt(1.0 + excess.square().mean(-1, keepdim=True) / _MAX_GUIDANCE**2)

        return (2.0 * self.schedule.log_signal(t)).exp() * bounded

    def log_decay(self, t: Tensor, d: Tensor) -> Tensor:
        r""":math:`\log a`: minus half the rate, integrated over the step; shaped like ``t``."""
        return self.schedule.log_signal(t) - self.schedule.log_signal(t + d)

    def simulate(self, num_paths: int, num_steps: int) -> Paths:
        """Paths of the diffusion from fresh base draws; they carry gradients for the network unless told not to.

        Arguments:
            num_paths: How many, ``B``.
            num_steps: Steps of equal size from ``t = 0`` to 1.
        """
        x = self._base_draws(num_paths)
        states, guidances = [x], []
        for t, d in self._grid(num_steps, x):
            log_a = self.log_decay(t, d)
            guidances.append(self.guidance(x, t))
            mean = log_a.exp() * x - 2.0 * torch.expm1(log_a) * self.network(x, t, d, guidances[-1])
            x = mean + torch.sqrt(-torch.expm1(2.0 * log_a)) * torch.randn_like(x)
            states.append(x)

        return Paths(torch.stack(states), torch.stack(guidances), finite_log_prob(self.log_prob(x)))

    def noise(self, z: Tensor, num_steps: int) -> Paths:
        """Paths that end at given points: noise is added backwards, so they visit whatever modes the points do.

        Arguments:
            z: Points in the target's coordinates, ``(B, D)``.
            num_steps: Steps of equal size.
        """
        x = self.base.to_whitened(z)
        states, guidances = [x], []
        for t, d in reversed(list(self._grid(num_steps, x))):
            log_a = self.log_decay(t, d)
            x = log_a.exp() * x + torch.sqrt(-torch.expm1(2.0 * log_a)) * torch.randn_like(x)
            states.append(x)
            guidances.append(self.guidance(x, t))

        return Paths(torch.stack(states[::-1]), torch.stack(guidances[::-1]), finite_log_prob(self.log_prob(states[0])))

    def log_weight(self, paths: Paths) -> Tensor:
        r"""Log weights of paths, ``(B,)``: the noised target's density of a path over the diffusion's.

        .. math::
            \log w = \log\gamma(x_1) - \log\mathcal N(x_0; 0, I)
            + \sum_t \log \frac{p(x_t \mid x_{t+d})}{p_r(x_{t+d} \mid x_t)}, \qquad \mathrm{E}\,w = Z

        The mean weight is the evidence for any number of steps and any network. All steps of all paths go through the
        network in one batch.
        """
        before, after = paths.x[:-1], paths.x[1:]
        num_steps, num_paths, dim = before.shape
        t = torch.arange(num_steps, dtype=before.dtype, device=before.device)[:, None, None] / num_steps
        d = torch.full_like(t, 1.0 / num_steps)
        columns = t.expand(-1, num_paths, 1).reshape(-1, 1), d.expand(-1, num_paths, 1).reshape(-1, 1)
        control = self.network(before.reshape(-1, dim), *columns, paths.guidance.reshape(-1, dim)).view_as(before)
        log_a = self.log_decay(t, d)
        a, variance = log_a.exp(), -torch.expm1(2.0 * log_a)
        forward = after - a * before + 2.0 * torch.expm1(log_a) * control
        backward = before - a * after
        log_ratio = 0.5 * ((forward.square() - backward.square()) / variance).sum((0, -1))
        log_base = -0.5 * (paths.x[0].square().sum(-1) + dim * math.log(2 * math.pi))

        return paths.log_prob - log_base + log_ratio

    def flow(self, x: Tensor, num_steps: int) -> Tensor:
        """The probability flow from whitened base points: states ``(num_steps + 1, B, D)``."""
        states = [x]
        for t, d in self._grid(num_steps, x):
            states.append(self.flow_step(states[-1], t, d))

        return torch.stack(states)

    def flow_step(self, x: Tensor, t: Tensor, d: Tensor) -> Tensor:
        """One step of the probability flow, ``(B, D)``; ``t`` and ``d`` are ``(B, 1)`` or ``(1, 1)``."""
        return x - self.log_decay(t, d) * self.network(x, t, d, self.guidance(x, t))

    def _base_draws(self, num_draws: int) -> Tensor:
        return torch.randn(num_draws, self.target.dim, dtype=self.target.dtype, device=self.target.device)

    @staticmethod
    def _grid(num_steps: int, like: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Time and size of each step, ``(1, 1)`` each."""
        d = like.new_full((1, 1), 1.0 / num_steps)

        return [(d * step, d) for step in range(num_steps)]

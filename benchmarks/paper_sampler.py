r"""The paper's sampler: one velocity network for all numbers of steps, and three ways to weigh its draws.

Time goes from the prior, :math:`N(0, s^2)` at :math:`t = 1`, to the target at :math:`t = 0`. With the rate
:math:`\beta`, :math:`\sigma = s \sqrt\beta`, step size :math:`d` and all coefficients at the noisier end of a step, it
walks by

.. math:: x' = x + (\sigma u + \tfrac12 \beta x)\, d + \sigma \sqrt d\, \varepsilon \qquad\text{or}\qquad
    x' = x + \tfrac12 (\sigma u + \beta x)\, d

(noisy, and without noise). The control is :math:`u = r(x, t, d) + g(t, d)\, \ell(x, t)` with the guidance
:math:`\ell = \sigma\,\big((1 - t)\, \nabla \log \rho(x) - t\, x / s^2\big)`.

* **Backward kernel**: paths with noise against :math:`N(x;\, x' - \tfrac12 \beta x' d,\, \sigma^2 d)`; exact for any
  number of steps.
* **Published volume**: steps without noise, each with the volume
  :math:`d\,(\tfrac12 \beta D + \tfrac12 \sigma\, v^\top (\partial r / \partial x)\, v)` for one probe *v* of signs.
* **Exact volume**: :math:`\log|\det \partial x' / \partial x|` of the same steps, guidance and all.

What the published volume is too large by has two parts, which are told apart: the *curvature* of the guidance that its
trace leaves out, and the *trace* where a log-determinant is needed, :math:`\mathrm{tr} A - \log|\det(1 + A)|`.

Source: arXiv 2512.05251 and what its released code does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# The rate: twice cosine, between 0.005 and 5.
_LOWEST_RATE, _HIGHEST_RATE, _SHIFT = 0.01, 10.0, 0.008
_MAX_GUIDANCE = 1e2


@dataclass(frozen=True)
class PaperTarget:
    """A log density on R^dim with its score in closed form, its log evidence, and what the paper sets for it."""

    name: str
    log_prob: Callable[[Tensor], Tensor]
    score: Callable[[Tensor], Tensor]
    dim: int
    log_evidence: float
    std_error: float
    scale: float = 1.0
    learning_rate: float = 5e-4
    sample: Callable[[int], Tensor] | None = None
    # The log density of one coordinate, where all are independent and alike.
    alone: Callable[[Tensor], Tensor] | None = None


def rate(t: Tensor) -> Tensor:
    """How fast noise is taken out at time t."""
    wave = torch.cos(0.5 * math.pi * (1.0 + _SHIFT - t) / (1.0 + _SHIFT)).square()

    return 0.5 * (_HIGHEST_RATE - _LOWEST_RATE) * wave + 0.5 * _LOWEST_RATE


class Velocity(nn.Module):
    """The published network: two hidden layers of 64, features of time and step size, a gain for the guidance."""

    def __init__(self, dim: int, width: int = 64) -> None:
        super().__init__()
        self.register_buffer("frequency", torch.linspace(0.1, 100.0, width))
        self.phase = nn.Parameter(torch.zeros(width))
        self.time = _layers(4 * width, width, width)
        self.gain = nn.Sequential(_layers(4 * width, width, width, width), nn.Linear(width, dim))
        self.from_x, self.from_time = nn.Linear(dim, width, bias=False), nn.Linear(width, width)
        self.hidden, self.out = nn.Linear(width, width), nn.Linear(width, dim)
        for layer, bias in ((self.gain[-1], 1.0), (self.out, 0.0)):
            nn.init.constant_(layer.weight, 1e-8)
            nn.init.constant_(layer.bias, bias)

    def clock(self, t: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """What times and step sizes ``(N,)`` add to the first layer ``(N, width)``, and the gain ``(N, D)``."""
        angles = torch.cat([self.frequency * value[:, None] + self.phase for value in (t, d)], -1)
        features = torch.cat([angles.sin(), angles.cos()], -1)

        return self.from_time(self.time(features)), self.gain(features)

    def forward(self, x: Tensor, clock: Tensor) -> Tensor:
        """The free part r of the control, ``(B, D)``."""
        first = nn.functional.gelu(torch.addmm(clock.expand(len(x), -1), x, self.from_x.weight.T), approximate="tanh")
        second = nn.functional.gelu(self.hidden(first), approximate="tanh")

        return self.out(second)


def _layers(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(before, after), nn.GELU(approximate="tanh")]

    return nn.Sequential(*layers[:-1])


class Sampler:
    """The target, the network, and the ways from the prior to a draw."""

    def __init__(self, target: PaperTarget, network: nn.Module) -> None:
        self.target = target
        self.network = network

    def prior(self, num_draws: int, like: Tensor) -> Tensor:
        """Points of the prior, ``(B, D)``."""
        return self.target.scale * torch.randn(num_draws, self.target.dim, dtype=like.dtype)

    def log_prior(self, x: Tensor) -> Tensor:
        """Its log density, ``(B,)``."""
        scale = self.target.scale

        return -0.5 * (x / scale).square().sum(-1) - x.shape[1] * math.log(scale * math.sqrt(2.0 * math.pi))

    def guidance(self, x: Tensor, t: Tensor | float, sigma: Tensor | float) -> Tensor:
        """The score between prior and target, scaled and clipped; it carries gradients if the points do."""
        between = self.target.score(x) * (sigma * (1.0 - t)) - x * (sigma * t / self.target.scale**2)

        return between.clamp(-_MAX_GUIDANCE, _MAX_GUIDANCE)

    # ---- with noise ----

    def paths(self, x: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
        """Noisy paths ``(K + 1, B, D)`` from points of the prior, and log weights ``(B,)``; both carry gradients."""
        t, d, beta, sigma, clock, gain = self.grid(num_steps, x)
        noise = torch.randn(num_steps, *x.shape, dtype=x.dtype)
        keep, push, spread = 1.0 + 0.5 * beta * d, sigma * d, sigma * d.sqrt()
        shaken, path = spread[:, None, None] * noise, [x]
        for k in range(num_steps):
            with torch.no_grad():
                guidance = self.guidance(x, t[k], sigma[k])
            control = torch.addcmul(self.network(x, clock[k]), gain[k], guidance)
            x = torch.add(keep[k] * x + shaken[k], control, alpha=float(push[k]))
            path.append(x)
        states = torch.stack(path)
        back = states[:-1] - (1.0 - 0.5 * beta * d)[:, None, None] * states[1:]
        ratio = -0.5 * (back / spread[:, None, None]).square() + 0.5 * noise.square()
        log_weight = self.target.log_prob(x) - self.log_prior(states[0]) + ratio.sum((0, 2))

        return states, log_weight

    def grid(self, num_steps: int, like: Tensor) -> tuple[Tensor, ...]:
        """Times of the steps, their size, rates, noises, and what the network makes of the times."""
        t = torch.arange(num_steps, 0, -1).to(like) / num_steps
        d = torch.ones_like(t[0]) / num_steps
        beta = rate(t)

        return (t, d, beta, self.target.scale * beta.sqrt(), *self.network.clock(t, d.expand(num_steps)))

    # ---- without noise ----

    def step(self, network: nn.Module, x: Tensor, t: Tensor, d: Tensor, probe: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step without noise of points at times and sizes ``(B,)``: as training sees it.

        Returns where it lands ``(B, D)``, its published volume ``(B,)``, and the Jacobian of the free part times the
        probe ``(B, D)``; they carry gradients for the weights.
        """
        beta = rate(t)
        sigma = self.target.scale * beta.sqrt()
        guidance = self.guidance(x, t[:, None], sigma[:, None])
        clock, gain = network.clock(t, d)
        free, pushed = torch.func.jvp(lambda x: network(x, clock), (x,), (probe,))
        landed = x + 0.5 * d[:, None] * (sigma[:, None] * (free + gain * guidance) + beta[:, None] * x)
        volume = d * (0.5 * beta * x.shape[1] + 0.5 * sigma * (probe * pushed).sum(-1))

        return landed, volume, pushed

    def flow(self, x: Tensor, num_steps: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Draws without noise from points of the prior, and by each way to count it, the volume of all steps ``(B,)``.

        ``"published"``; ``"traced"``: the same with the whole trace in the place of a probe; ``"curved"``: with the
        curvature of the guidance, too; ``"exact"``: the log-determinant; ``"folded"``: 1 where a step had a negative
        determinant.
        """
        t, d, beta, sigma, clock, gain = self.grid(num_steps, x)
        counts = {name: torch.zeros_like(x[:, 0]) for name in ("published", "traced", "curved", "exact", "folded")}
        eye = torch.eye(x.shape[1]).to(x)
        for k in range(num_steps):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                free, guided = self.network(x, clock[k]), gain[k] * self.guidance(x, t[k], sigma[k])
                stretch, bend = (0.5 * sigma[k] * d * jacobian(part, x) for part in (free, guided))
            probe = torch.randint_like(x, 2) * 2.0 - 1.0
            grown = 0.5 * beta[k] * d
            sign, log_abs_det = torch.linalg.slogdet(eye * (1.0 + grown) + stretch + bend)
            traced = grown * x.shape[1] + trace(stretch)
            probed = torch.einsum("bi,bij,bj->b", probe, stretch, probe)
            counts["published"] += grown * x.shape[1] + probed
            counts["traced"] += traced
            counts["curved"] += traced + trace(bend)
            counts["exact"] += log_abs_det
            counts["folded"] = torch.maximum(counts["folded"], (sign < 0).to(x))
            x = (x + 0.5 * d * (sigma[k] * (free + guided) + beta[k] * x)).detach()

        return x, counts


def least_gap(target: PaperTarget, num_steps: int) -> float | None:
    """How far below log Z the backward kernel's ELBO stays whatever the network is, nats, where quadrature can tell.

    Paths begin at the prior, and noise that starts from the target does not end there: the divergence of the one from
    the other is part of every gap.
    """
    if target.alone is None:
        return None
    shrink, variance = 1.0, 0.0
    for k in range(1, num_steps + 1):
        beta = rate(torch.tensor(k / num_steps, dtype=torch.float64)).item()
        shrink *= 1.0 - 0.5 * beta / num_steps
        variance = (1.0 - 0.5 * beta / num_steps) ** 2 * variance + target.scale**2 * beta / num_steps
    clean = torch.linspace(-6.0, 6.0, 2401, dtype=torch.float64)
    log_clean = target.alone(clean[:, None])
    x = torch.linspace(-8.0 * target.scale, 8.0 * target.scale, 801, dtype=torch.float64)
    log_kernel = torch.distributions.Normal(shrink * clean, math.sqrt(variance)).log_prob(x[:, None])
    log_noised = torch.logsumexp(log_kernel + log_clean - torch.logsumexp(log_clean, 0), 1)
    log_prior = torch.distributions.Normal(0.0, target.scale).log_prob(x)

    return target.dim * torch.trapezoid(log_prior.exp() * (log_prior - log_noised), x).item()


def jacobian(y: Tensor, x: Tensor) -> Tensor:
    """The Jacobian of y ``(B, E)``, whose rows depend on the same rows of x ``(B, D)`` alone: ``(B, E, D)``."""
    rows = [
        torch.autograd.grad(column.sum(), x, retain_graph=True, materialize_grads=True)[0] for column in y.unbind(-1)
    ]

    return torch.stack(rows, 1)


def trace(matrix: Tensor) -> Tensor:
    """Traces ``(B,)`` of matrices ``(B, D, D)``."""
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)

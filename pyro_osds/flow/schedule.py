r"""How fast the diffusion turns noise into signal.

.. math::
    x_t = \alpha(t)\, x_1 + \sqrt{1 - \alpha(t)^2}\;\varepsilon, \qquad
    \log \alpha(t) = -\tfrac12 \int_t^1 \beta(s)\, ds

A variance-preserving diffusion is fixed by its signal :math:`\alpha`, which falls from 1 at the posterior, ``t = 1``,
to less than one percent at the base, ``t = 0``: what noise keeps of the posterior's location is negligible. Schedules
give :math:`\log\alpha` itself, in closed form: every integral of the rate :math:`\beta` is a difference of two values.

Sources: cosine (Nichol, Dhariwal 2021), linear (Ho et al. 2020); arXiv 2512.05251 ends at 29 percent.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor


class NoiseSchedule(Protocol):
    """A noise schedule is its log signal."""

    def log_signal(self, t: Tensor) -> Tensor:
        r""":math:`\log \alpha(t)` at times in ``[0, 1]``, any shape."""
        ...


class CosineSchedule:
    r"""The signal is a sine of time: slow at both ends, so that the last steps to the posterior are small.

    .. math:: \alpha(t) = \sin\big(\tfrac{\pi}{2}\,(s + (1-s)\,t)\big)

    Arguments:
        offset: The offset *s*; about two thirds of the signal that is left at the base.

    Example:
        >>> CosineSchedule().log_signal(torch.tensor([0.0, 1.0])).exp()
        tensor([0.0079, 1.0000])
    """

    def __init__(self, offset: float = 0.005) -> None:
        self.offset = offset

    def log_signal(self, t: Tensor) -> Tensor:
        """Log of the signal, shaped like ``t``."""
        return torch.sin(0.5 * math.pi * (self.offset + (1.0 - self.offset) * t)).log()


class LinearSchedule:
    r"""The rate falls linearly in time from the base to the posterior.

    .. math:: \beta(t) = \beta_1 + (\beta_0 - \beta_1)(1 - t)

    Arguments:
        rate_at_base: The rate at ``t = 0``.
        rate_at_posterior: The rate at ``t = 1``.

    Example:
        >>> LinearSchedule().log_signal(torch.tensor([0.0, 1.0])).exp()
        tensor([0.0066, 1.0000])
    """

    def __init__(self, rate_at_base: float = 20.0, rate_at_posterior: float = 0.1) -> None:
        self.rate_at_base = rate_at_base
        self.rate_at_posterior = rate_at_posterior

    def log_signal(self, t: Tensor) -> Tensor:
        """Log of the signal, shaped like ``t``."""
        left = 1.0 - t

        return -0.5 * (self.rate_at_posterior * left + 0.5 * (self.rate_at_base - self.rate_at_posterior) * left**2)

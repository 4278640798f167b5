r"""Exponential tails from Gaussian ones, side by side and coordinate by coordinate.

.. math:: y = x + \kappa_{\pm}\, x\,|x|, \qquad x = \frac{2 y}{1 + \sqrt{1 + 4 \kappa_{\pm} |y|}}

A scale parameter lives on the log scale, where its posterior falls like an exponential: half-normal, half-Cauchy and
gamma priors all do. A Gaussian base falls faster, so the weights of rare draws would grow without bound. This map turns
:math:`e^{-x^2/2}` into :math:`e^{-|y| / 2\kappa}`, with one weight for either side.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Transform, constraints


class TailTransform(Transform):
    """The elementwise map above.

    Arguments:
        weights: Tail weights, at least 0, left and right, ``(*, 2)``; 0 is the identity.

    Example:
        >>> transform = TailTransform(torch.tensor([0.5, 0.0]))
        >>> y, log_slope = transform.call_and_ladj(torch.tensor([-2.0, 2.0]))
        >>> y, transform.inv(y)
        (tensor([-4.,  2.]), tensor([-2.,  2.]))
    """

    domain = constraints.real
    codomain = constraints.real
    bijective = True

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.left, self.right = weights.unbind(-1)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The image of ``x`` and the log of the slope there, both shaped like ``x``."""
        bend = self._weight(x) * x.abs()

        return x + bend * x, torch.log1p(2 * bend)

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return 2 * y / (1 + torch.sqrt(1 + 4 * self._weight(y) * y.abs()))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The log of the slope at ``x``."""
        return self.call_and_ladj(x)[1]

    def _weight(self, x: Tensor) -> Tensor:
        return torch.where(x < 0, self.left, self.right)

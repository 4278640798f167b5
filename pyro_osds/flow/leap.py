r"""Base, flow and whitening put together: draws with an exact density, in one network evaluation.

.. math:: x \sim b, \quad u = \Phi(x; 0, 1), \quad z = \mathrm{loc} + L u, \qquad
    \log q(z) = \log b(x) - \log|\det \partial u / \partial x| - \log|\det L|

With ``num_steps = k`` the leap is made in k steps of size ``1/k``; it stays a bijection and its log-determinant a sum.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from pyro_osds.flow.base import Base
from pyro_osds.flow.coupling import FlowMap
from pyro_osds.flow.passes import WithoutGradients
from pyro_osds.runtime.parallel import by_rows
from pyro_osds.stats.gaussian import Gaussian
from pyro_osds.target import log_prob_and_score


def is_bijective(leap: Any) -> TypeGuard[Leap]:
    """Whether a leap declares that it can be inverted, as this one can and others cannot."""
    return leap.can_invert


class Leap(nn.Module):
    """A distribution on ``R^D``: the base pushed through the flow.

    Arguments:
        base: Where draws start, and the whitening.
        flow: The flow map, on whitened coordinates.
        num_steps: Network evaluations per draw.

    Example:
        >>> from pyro_osds.flow.base import gaussian_base
        >>> leap = Leap(gaussian_base(torch.randn(100, 2)), FlowMap(2))
        >>> z, log_prob, log_abs_det = leap.sample(5)
        >>> torch.allclose(leap.log_prob(z), log_prob, atol=1e-4)
        True
    """

    can_invert = True
    has_exact_density = True

    def __init__(self, base: Base, flow: FlowMap, num_steps: int = 1) -> None:
        super().__init__()
        self.base = base
        self.flow = flow
        self.num_steps = num_steps

    @property
    def plain(self) -> Leap:
        """The leap as it was trained, without base draws that only weights make right."""
        base = self.base.plain

        return self if base is self.base else Leap(base, self.flow, self.num_steps)

    def sample(self, num_draws: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draws ``(n, D)``, their log densities ``(n,)`` and the log-determinants ``(n,)`` of the whole leap."""
        z, log_prob, log_abs_det = by_rows(self._weighed, self.base.density.sample(torch.Size([num_draws])))

        return z, log_prob, log_abs_det

    def _weighed(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, log_abs_det = self(x)

        return z, self.base.density.log_prob(x) - log_abs_det, log_abs_det

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From whitened base draws to ``z``, with the log-determinants of the whole map."""
        log_abs_det = self.base.log_abs_det.expand(len(x))
        leap = self.flow if torch.is_grad_enabled() or type(self.flow) is not FlowMap else WithoutGradients(self.flow)
        for step in range(self.num_steps):
            x, log_abs_det_step = leap(x, step / self.num_steps, 1.0 / self.num_steps)
            log_abs_det = log_abs_det + log_abs_det_step

        return self.base.from_whitened(x), log_abs_det

    def with_score(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From whitened base points ``(B, D)`` to ``z``, with its log density and the score of that density.

        The first two carry gradients for the weights, the score does not.
        """
        density = self.base.density
        if isinstance(density, Gaussian) and density.is_standard:
            log_prob, score = density.log_prob(x), -x
        else:
            log_prob, score = log_prob_and_score(density.log_prob, x)
        for step in range(self.num_steps):
            x, log_abs_det, score = self.flow.forward_with_score(x, score, step / self.num_steps, 1.0 / self.num_steps)
            log_prob = log_prob - log_abs_det

        return (
            self.base.from_whitened(x),
            log_prob - self.base.log_abs_det,
            self.base.score_from_whitened(score),
        )

    def log_prob(self, z: Tensor) -> Tensor:
        """Exact log density of any points, through the inverse, ``(B, D) -> (B,)``."""
        u = self.base.to_whitened(z)
        log_abs_det = self.base.log_abs_det.expand(len(z))
        for step in reversed(range(self.num_steps)):
            u, log_abs_det_step = self.flow.inverse(u, step / self.num_steps, 1.0 / self.num_steps)
            log_abs_det = log_abs_det + log_abs_det_step

        return self.base.density.log_prob(u) - log_abs_det

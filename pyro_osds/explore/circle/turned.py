r"""A target whose circles are cut elsewhere, with the same evidence.

A phase on :math:`[0, 2\pi)` is mapped to the line by the logit of its share :math:`s` of the turn. The line ends where
the turn begins, so what lies on both sides of zero becomes two modes at infinity. Turned by a cut *c* it is whole,

.. math::
    s(u) = \sigma(u) + c \bmod 1, \qquad z(u) = \log \frac{s}{1 - s}, \qquad
    \left|\frac{\partial z}{\partial u}\right| = \frac{\sigma(u)\,\sigma(-u)}{s\,(1 - s)},

since a rotation keeps lengths. That holds for every density: one that is no circle is as exact, and has a seam.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_osds.target import MovedTarget, Target

# What double precision can tell from the ends of a turn.
_END = 2.0**-53


class TurnedTarget(MovedTarget):
    """A target with some of its coordinates, logits of shares of a turn, turned.

    Arguments:
        target: The target in the coordinates ``z``.
        index: The coordinates that are turned, ``(K,)``.
        cut: The share of the turn at which each circle is cut, in [0, 1), ``(K,)``.

    Example:
        >>> from pyro_osds.target import FunctionTarget
        >>> uniform = FunctionTarget(lambda z: log_share_volume(z).sum(-1), dim=1)
        >>> turned = TurnedTarget(uniform, torch.tensor([0]), torch.tensor([0.5], dtype=torch.float64))
        >>> turned.inside(torch.tensor([[-2.0], [2.0]])).round(decimals=3).tolist()
        [[0.486...], [-0.486...]]
    """

    def __init__(self, target: Target, index: Tensor, cut: Tensor) -> None:
        super().__init__(target)
        self.index, self.cut = index, cut
        self.has_other_coordinates = target.has_other_coordinates
        self.start = None if target.start is None else self.outside(target.start[None])[0]

    def inside(self, u: Tensor) -> Tensor:
        """Points of the target, ``(B, D) -> (B, D)``."""
        return u.index_copy(1, self.index, turn(u[:, self.index], self.cut))

    def outside(self, z: Tensor) -> Tensor:
        """Points of the target as points of this one, ``(B, D) -> (B, D)``."""
        return z.index_copy(1, self.index, turn(z[:, self.index], -self.cut))

    def volume_inside(self, u: Tensor) -> Tensor:
        """Log-determinants of the step from ``u`` to ``z``, ``(B,)``."""
        u = u[:, self.index]

        return (log_share_volume(u) - log_share_volume(turn(u, self.cut))).sum(-1)

    def other_coordinates(self, z: Tensor) -> tuple[Target, Tensor, Tensor]:
        """The same density with location-scale sites standardised or no longer so; see the class inside."""
        other, moved, log_abs_det = self.target.other_coordinates(self.inside(z))
        around = TurnedTarget(other, self.index, self.cut)
        u = around.outside(moved)

        return around, u, log_abs_det + around.volume_inside(u) - self.volume_inside(z)


def turn(u: Tensor, by: Tensor) -> Tensor:
    """Logits of shares of a turn, turned on, ``(..., K) -> (..., K)``.

    Arguments:
        u: Logits of the shares.
        by: How far, in turns between -1 and 1, ``(K,)``.
    """
    # In double precision whatever the coordinates are: what is rounded here is where a circle ends.
    share = u.double().sigmoid() + by
    share = torch.where(share >= 1.0, share - 1.0, torch.where(share < 0.0, share + 1.0, share))

    return torch.logit(share.clamp(_END, 1.0 - _END)).to(u.dtype)


def log_share_volume(u: Tensor) -> Tensor:
    """Log derivative of a share by its logit, log s (1 - s), of any shape."""
    return logsigmoid(u) + logsigmoid(-u)

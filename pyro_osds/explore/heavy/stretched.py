r"""A target whose heavy tails are drawn in, with the same evidence.

A flow has exponential tails at best. A density that falls like a power of its coordinate has mass at all distances,
and what lies beyond the flow's reach no weight tells. By the inverse of a hyperbolic sine,

.. math:: z(u) = m + s \sinh u, \qquad \log \frac{\partial z}{\partial u} = \log s + \log \cosh u,

a tail :math:`|z|^{-\alpha - 1}` becomes :math:`e^{-\alpha |u|}`, while the middle stays as it is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_osds.target import MovedTarget, Target

# From here on a point stays where it is, 1e43 scales out, whose fourth power is still a number. Of a tail of index 1/4
# a share of exp(-25) lies farther out.
_END = 100.0


class StretchedTarget(MovedTarget):
    """A target with some of its coordinates drawn in.

    Arguments:
        target: The target in the coordinates ``z``.
        index: The coordinates that are drawn in, ``(K,)``.
        loc: Their centres, ``(K,)``.
        scale: Their scales, ``(K,)``.

    Example:
        >>> from pyro_osds.target import FunctionTarget
        >>> cauchy = FunctionTarget(lambda z: -torch.log1p(z.square()).sum(-1), dim=1)
        >>> target = StretchedTarget(cauchy, torch.tensor([0]), torch.zeros(1), torch.ones(1))
        >>> target.log_prob(torch.tensor([[0.0], [5.0], [10.0]])).round().tolist()
        [0.0, -4.0, -9.0]
    """

    def __init__(self, target: Target, index: Tensor, loc: Tensor, scale: Tensor) -> None:
        super().__init__(target)
        self.index, self.loc, self.scale = index, loc, scale
        self.has_other_coordinates = target.has_other_coordinates
        self.start = None if target.start is None else self.outside(target.start[None])[0]

    def inside(self, u: Tensor) -> Tensor:
        """Points of the target, ``(B, D) -> (B, D)``."""
        moved = self.loc.to(u) + self.scale.to(u) * u[:, self.index].clamp(-_END, _END).sinh()

        return u.index_copy(1, self.index, moved)

    def outside(self, z: Tensor) -> Tensor:
        """Points of the target as points of this one, ``(B, D) -> (B, D)``."""
        moved = ((z[:, self.index] - self.loc.to(z)) / self.scale.to(z)).asinh()

        return z.index_copy(1, self.index, moved)

    def volume_inside(self, u: Tensor) -> Tensor:
        """Log-determinants of the step from ``u`` to ``z``, ``(B,)``."""
        far = u[:, self.index].abs()
        # log cosh, without the overflow of cosh.
        log_cosh = far + torch.log1p((-2.0 * far).exp()) - math.log(2.0)

        # Beyond the end it falls by as much as it grew, so that what has lost its way there is led back.
        return (log_cosh - 2.0 * (far - _END).clamp(min=0.0)).sum(-1) + self.scale.to(u).log().sum()

    def other_coordinates(self, z: Tensor) -> tuple[Target, Tensor, Tensor]:
        """The same density with location-scale sites standardised or no longer so; see the class inside."""
        other, moved, log_abs_det = self.target.other_coordinates(self.inside(z))
        # Of a few points nothing is known but that they are some.
        loc, scale = centre_and_scale(moved[:, self.index]) if len(moved) > 1 else (self.loc, self.scale)
        around = StretchedTarget(other, self.index, loc, scale)
        u = around.outside(moved)

        return around, u, log_abs_det + around.volume_inside(u) - self.volume_inside(z)


def centre_and_scale(z: Tensor) -> tuple[Tensor, Tensor]:
    """Median and median distance from it, of each coordinate: the same for coordinates that are much alike.

    Coordinates that may trade places, or change their signs, can still do so when they are seen alike; a centre next
    to zero is zero.

    Arguments:
        z: Points, ``(N, K)``.

    Example:
        >>> centre_and_scale(torch.tensor([[-1.0, 8.0], [0.0, 9.0], [1.1, 10.0]]))
        (tensor([0., 9.]), tensor([1., 1.]))
    """
    loc = z.median(0).values
    scale = (z - loc).abs().median(0).values.clamp(min=torch.finfo(z.dtype).tiny)
    common = scale.log().mean().exp()
    alike = (scale / common).log().abs().amax() < _SAME_SCALE
    if alike:
        scale = common.expand_as(scale).clone()
    centre = loc.mean()
    if alike and ((loc - centre).abs() < _SAME_CENTRE * scale).all():
        loc = centre.expand_as(loc).clone()

    return torch.where(loc.abs() < _SAME_CENTRE * scale, torch.zeros_like(loc), loc), scale


# Centres within so many scales, and scales within such a factor, a log, count as the same: the middle of a hyperbolic
# sine is straight, and where exactly it lies changes little.
_SAME_CENTRE, _SAME_SCALE = 0.5, 0.7

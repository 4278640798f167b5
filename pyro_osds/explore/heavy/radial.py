r"""A target whose heavy tails in all directions alike are drawn in together, with the same evidence.

Multivariate Student-t numbers are far out together. Drawn in one by one they would become a ridge, thinner the farther
out it is. They are drawn in by their distance from the centre, by the map that gives a Gaussian a tail of index
:math:`1 / h` (Tukey 1977),

.. math:: z(u) = m + L\,u\,e^{h r^2 / 2}, \qquad r = |u|, \qquad
          \log\Big|\frac{\partial z}{\partial u}\Big| = \log|L| + \tfrac12 K h r^2 + \log(1 + h r^2),

so that a tail :math:`|z|^{-\alpha - K}` with :math:`\alpha = 1 / h` becomes nearly Gaussian in every direction.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_osds.target import MovedTarget, Target

# From here on the exponent grows no more: e^100 scales out, where next to nothing lies.
_END = 100.0
# Rounds of Newton's method for the way back, which doubles its digits each time, from a start within a factor of two.
_NUM_NEWTON = 12
# Rounds of the scatter, each of which halves its error at least.
_NUM_ROUNDS = 30


class RadialTarget(MovedTarget):
    """A target with some of its coordinates drawn in by their distance from a centre.

    Arguments:
        target: The target in the coordinates ``z``.
        index: The coordinates that are drawn in, ``(K,)``.
        loc: Their centre, ``(K,)``.
        scale_tril: Their scatter, a lower triangular matrix ``(K, K)``.
        h: The inverse of the tail index.

    Example:
        >>> from pyro_osds.target import FunctionTarget
        >>> cauchy = FunctionTarget(lambda z: -1.5 * torch.log1p(z.square().sum(-1)), dim=2)
        >>> target = RadialTarget(cauchy, torch.arange(2), torch.zeros(2), torch.eye(2), 1.0)
        >>> target.inside(torch.tensor([[0.0, 2.0]])).round().tolist()  # 2 e^2 = 14.8
        [[0.0, 15.0]]
    """

    def __init__(self, target: Target, index: Tensor, loc: Tensor, scale_tril: Tensor, h: float) -> None:
        super().__init__(target)
        self.index, self.loc, self.scale, self.h = index, loc, scale_tril, h
        self.has_other_coordinates = target.has_other_coordinates
        self.start = None if target.start is None else self.outside(target.start[None])[0]

    def inside(self, u: Tensor) -> Tensor:
        """Points of the target, ``(B, D) -> (B, D)``."""
        part = u[:, self.index]
        grown = (0.5 * self.h * part.square().sum(1, keepdim=True)).clamp(max=_END).exp()
        moved = self.loc.to(u) + (part * grown) @ self.scale.to(u).mT

        return u.index_copy(1, self.index, moved)

    def outside(self, z: Tensor) -> Tensor:
        """Points of the target as points of this one, ``(B, D) -> (B, D)``."""
        far = torch.linalg.solve_triangular(self.scale.to(z), (z[:, self.index] - self.loc.to(z)).mT, upper=False).mT
        # With v = h r^2 it is v e^v = h R^2, or v + log v = log(h R^2).
        v = _lambert((self.h * far.square().sum(1, keepdim=True)).clamp(min=1e-300).log())

        return z.index_copy(1, self.index, far * (-0.5 * v).clamp(min=-_END).exp())

    def volume_inside(self, u: Tensor) -> Tensor:
        """Log-determinants of the step from ``u`` to ``z``, ``(B,)``."""
        v = self.h * u[:, self.index].square().sum(1)
        stretch = torch.where(v < 2.0 * _END, torch.log1p(v), 0.0)

        return 0.5 * len(self.index) * v.clamp(max=2.0 * _END) + stretch + self.scale.to(u).diagonal().log().sum()

    def other_coordinates(self, z: Tensor) -> tuple[Target, Tensor, Tensor]:
        """The same density with location-scale sites standardised or no longer so; see the class inside."""
        other, moved, log_abs_det = self.target.other_coordinates(self.inside(z))
        # Of a few points nothing is known but that they are some.
        is_known = len(moved) > 2 * len(self.index)
        loc, scale = centre_and_scatter(moved[:, self.index], self.h) if is_known else (self.loc, self.scale)
        around = RadialTarget(other, self.index, loc, scale, self.h)
        u = around.outside(moved)

        return around, u, log_abs_det + around.volume_inside(u) - self.volume_inside(z)


def _lambert(log_y: Tensor) -> Tensor:
    """The solution of ``v + log v = log y``, by Newton's method in ``log v``."""
    log_v = torch.where(log_y > 1.0, log_y.clamp(min=1.0).log(), log_y - log_y.exp().clamp(max=1.0))
    for _ in range(_NUM_NEWTON):
        v = log_v.exp()
        log_v = log_v - (v + log_v - log_y) / (v + 1.0)

    return log_v.exp()


def centre_and_scatter(z: Tensor, h: float) -> tuple[Tensor, Tensor]:
    """Medians, and a scatter that no tail spoils (Tyler 1987), in units that half of a Gaussian's points lie within.

    Arguments:
        z: Points, ``(N, K)``.
        h: The inverse of the tail index.

    Returns:
        The centre ``(K,)`` and the scatter, a lower triangular matrix ``(K, K)``.

    Example:
        >>> torch.manual_seed(0) and None
        >>> z = torch.randn(10_000, 2, dtype=torch.float64) / torch.rand(10_000, 1, dtype=torch.float64) ** 2
        >>> centre_and_scatter(z, 2.0)[1][1, 0].abs() < 0.2
        tensor(True)
    """
    loc = z.median(0).values
    scale = (z - loc).abs().median(0).values.clamp(min=torch.finfo(z.dtype).tiny)
    rows = ((z - loc) / scale).double()
    rows = rows[rows.abs().sum(1) > 0]
    directions = rows / rows.norm(dim=1, keepdim=True)
    count, dim = directions.shape
    # As many points of no direction as there are coordinates: a scatter of few points stays a matrix of full rank.
    scatter = torch.eye(dim, dtype=rows.dtype, device=rows.device)
    for _ in range(_NUM_ROUNDS):
        distance = torch.linalg.solve_triangular(torch.linalg.cholesky(scatter), directions.mT, upper=False)
        weighted = directions / distance.square().sum(0)[:, None]
        scatter = (dim * directions.mT @ weighted + dim * torch.eye(dim).to(scatter)) / (count + dim)
        scatter = scatter * dim / scatter.trace()
    root = torch.linalg.cholesky(scatter)
    median = torch.linalg.solve_triangular(root, rows.mT, upper=False).norm(dim=0).median()
    # Where the median of a chi distribution comes to lie (Wilson and Hilferty 1931).
    square = dim * (1.0 - 2.0 / (9.0 * dim)) ** 3
    unit = median / (square**0.5 * math.exp(0.5 * h * square))

    return loc, (scale[:, None] * (root * unit).to(z)).contiguous()

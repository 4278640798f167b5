r"""A target whose mirror images are folded into one, with the same evidence.

Where the density is the same for both signs of each of K rows of coordinates, the posterior has :math:`2^K` copies of
each mode. One copy is enough: with one coordinate :math:`c_k` of each row positive,

.. math::
    \gamma_+(u) = 2^K\ \gamma\big(z(u)\big) \prod_k \sigma(u_{c_k} / s), \qquad
    z_{c_k} = s \log\big(1 + e^{u_{c_k} / s}\big), \quad z_i = u_i \text{ elsewhere},

has the same evidence. Farther from the mirror than a few of the small lengths :math:`s`, nothing changes its place, and
what is left on the mirror falls off fast. Draws are given back signs at random.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from pyro_osds.explore.symmetry.flips import Flip
from pyro_osds.stats.moments import weighted_moments
from pyro_osds.stats.thresholds import MIN_MIRROR_GAIN
from pyro_osds.target import MovedTarget, Target

# Coordinates of a row that may be the positive one, at most: each is tried.
_MAX_COLUMNS = 64
# The share of particles that may be nearer to the mirror than this part of their typical distance: particles do not
# walk over a mirror, and what lies on both sides of one that runs through a mode would be parted. A mode four of its
# standard deviations off leaves less there, one that lies on the mirror eight times as much.
_NEAR, _MAY_BE_NEAR = 0.1, 0.01
# The length s, as a part of the typical distance from the mirror: less than the width of modes that are seen.
_LENGTH = 0.05


class MirroredTarget(MovedTarget):
    """A target that is the same for both signs of some rows of coordinates, with one coordinate of each row positive.

    There are no other coordinates: to standardise a site would move the coordinate that is positive.

    Arguments:
        target: The target in the coordinates ``z``.
        flip: The rows whose signs make no difference to it.
        column: The coordinate of each row that is positive, ``(K,)``.
        length: From where on the mirror is felt, the same for all rows, so that these may still trade places.

    Example:
        >>> from pyro_osds.target import FunctionTarget
        >>> two = FunctionTarget(lambda z: -0.5 * (z.square() - 9.0).square().sum(-1), dim=1)
        >>> mirror = MirroredTarget(two, Flip(torch.tensor([[0]])), torch.tensor([0]), length=0.1)
        >>> mirror.outside(torch.tensor([[-3.0], [3.0]])).round().tolist()
        [[3.0], [3.0]]
    """

    def __init__(self, target: Target, flip: Flip, column: Tensor, length: float) -> None:
        super().__init__(target)
        self.flip, self.column, self.length = flip, column, length
        self.start = None if target.start is None else self.outside(target.start[None])[0]

    def outside(self, z: Tensor) -> Tensor:
        """Points of the target with their rows folded, ``(B, D) -> (B, D)``."""
        z = self.flip.apply(z, 1 - 2 * (z[:, self.column] < 0).to(z.dtype))
        share = (z[:, self.column] / self.length).clamp(min=torch.finfo(z.dtype).tiny)

        return z.index_copy(1, self.column, self.length * (share + torch.log(-torch.expm1(-share))))

    def inside(self, u: Tensor) -> Tensor:
        """Points of the target on the positive side, ``(B, D) -> (B, D)``."""
        # Torch takes softplus for the identity from 20 on unless it is told otherwise: exact in double from 40 on.
        share = softplus(u[:, self.column] / self.length, threshold=40.0)

        return u.index_copy(1, self.column, self.length * share)

    def drawn(self, u: Tensor) -> Tensor:
        """Points of the target with signs at random, always the same ones for the same ``u``."""
        return self.flip.at_random(self.inside(u))

    def volume_inside(self, u: Tensor) -> Tensor:
        """Log of how much volume all mirror images of a point stand for, ``(B,)``."""
        return logsigmoid(u[:, self.column] / self.length).sum(-1) + len(self.column) * math.log(2.0)


def mirrored(target: Target, flip: Flip, z: Tensor) -> MirroredTarget | None:
    r"""The target folded so that particles are closest to a Gaussian, or None where they are as close without.

    The divergence to the best Gaussian is, up to a constant that all coordinates share,
    :math:`\tfrac12 \log\det \mathrm{Cov}(u) + \mathrm{E} \log|\det \partial z / \partial u| + K \log 2`: one of the
    copies has 2^K times the density of all of them together.

    Arguments:
        target: The target.
        flip: Rows whose signs make no difference to it.
        z: Particles, ``(N, D)``.
    """
    best, smallest = None, _log_volume(flip.at_random(z)) - MIN_MIRROR_GAIN
    for place in range(min(flip.rows.shape[1], _MAX_COLUMNS)):
        column = flip.rows[:, place]
        if _is_among(z[:, column]):
            continue
        candidate = MirroredTarget(target, flip, column, _LENGTH * z[:, column].square().mean().sqrt().item())
        u = candidate.outside(z)
        divergence = _log_volume(u) + candidate.volume_inside(u).double().mean().item()
        if divergence < smallest:
            best, smallest = candidate, divergence

    return best


def _is_among(values: Tensor) -> bool:
    """Whether a mirror of one of some coordinates lies among particles, ``(N, K)``."""
    near = values.abs() < _NEAR * values.square().mean(0).sqrt()

    return bool((near.double().mean(0) > _MAY_BE_NEAR).any())


def _log_volume(z: Tensor) -> float:
    """Half the log-determinant of the covariance of particles."""
    return weighted_moments(z, z.new_zeros(len(z)))[1].diagonal().double().log().sum().item()

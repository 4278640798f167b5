r"""Particles that may be turned together, seen from one or two of them, with the same evidence.

Where a density of *n* particles :math:`z_i \in \mathbb{R}^d` stays the same under rotations :math:`z_i \to Q z_i`, its
modes are rings or shells, which no Gaussian and no countable mixture of them covers. Seen from a frame that turns with
the particles they are points. In the plane particle *p* lies on the first axis,

.. math::
    z_p = e^{\rho} Q(a)\, e_1, \quad z_i = Q(a)\, u_i, \quad a = 2\pi \Phi(v) - \pi, \qquad
    \left|\frac{\partial z}{\partial (u, \rho, v)}\right| = e^{2\rho}\ 2\pi\ \varphi(v),

and in space particle *q* lies in the half of the plane of the first two axes, with :math:`e^\sigma` as its second
coordinate:

.. math::
    \left|\frac{\partial z}{\partial (u, \rho, \sigma, v)}\right| = e^{3\rho + 2\sigma}\ 8\pi^2 \prod_k \varphi(v_k).

The step is a bijection for every density. Of one with the symmetry the angles are independent of all else and standard
normal in *v*, so the volume of the group is counted, and every draw has a random rotation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.special import ndtr, ndtri

from pyro_osds.explore.symmetry.flips import Flip
from pyro_osds.explore.symmetry.ordering import Exchange
from pyro_osds.stats.hashing import hashed_normals
from pyro_osds.stats.moments import weighted_moments
from pyro_osds.stats.thresholds import MIN_FRAME_GAIN
from pyro_osds.target import MovedTarget, Target

# Frames that are tried at most: of many particles that are alike any one does.
_MAX_FRAMES = 64
# What double precision can tell from the ends of a turn.
_END = 2.0**-53


@dataclass(frozen=True)
class Rotation:
    """Particles that are turned around the origin together.

    Arguments:
        rows: The coordinates of each particle, ``(n, d)`` with d = 2 or 3.
        reflections: Whether their mirror images belong to the symmetry.
    """

    rows: Tensor
    reflections: bool

    def turn(self, z: Tensor, matrix: Tensor) -> Tensor:
        """Points with each particle multiplied by a matrix, ``(B, D) -> (B, D)``.

        Arguments:
            z: Points, ``(B, D)``.
            matrix: Orthogonal matrices, ``(B, d, d)``.
        """
        index = self.rows.reshape(-1)
        turned = z[:, index].view(len(z), *self.rows.shape) @ matrix.mT

        return z.index_copy(1, index, turned.flatten(1))

    def at_random(self, z: Tensor, by: Tensor | None = None) -> Tensor:
        """Points turned by matrices that look random and depend on nothing but the point, ``(B, D) -> (B, D)``.

        Arguments:
            z: Points, ``(B, D)``.
            by: Points whose bits decide, ``(B, D)``; default: the same ones.
        """
        dim = self.rows.shape[1]
        normals = hashed_normals(z if by is None else by, dim * dim).view(len(z), dim, dim)
        matrix, upper = torch.linalg.qr(normals)
        # With a positive diagonal the factors of normal numbers are spread evenly over all orthogonal matrices.
        matrix = matrix * upper.diagonal(dim1=-2, dim2=-1).sign()[:, None]
        if not self.reflections:
            matrix = _without_mirror(matrix)

        return self.turn(z, matrix.to(z.dtype))

    @property
    def num_in_frame(self) -> int:
        """How many particles make a frame."""
        return min(len(self.rows), self.rows.shape[1] - 1)

    def frames(self) -> Iterator[tuple[int, ...]]:
        """The particles that may make a frame, one or two of them."""
        number = len(self.rows)
        if self.num_in_frame == 1:
            yield from ((first,) for first in range(number))
        else:
            yield from ((first, second) for first in range(number) for second in range(number) if first != second)


def _without_mirror(matrix: Tensor) -> Tensor:
    """Matrices with the last column turned round where they are mirrors, ``(B, d, d)``."""
    sign = torch.ones_like(matrix[:, 0])
    sign[:, -1] = matrix.det().sign()

    return matrix * sign[:, None]


class FramedTarget(MovedTarget):
    """A target whose particles are seen from a frame that turns with them.

    There are no other coordinates: to standardise a site would move the particles.

    Arguments:
        target: The target in the coordinates ``z``.
        rotation: Which coordinates are particles.
        frame: The particle on the first axis and, in space, the one in the plane of the first two axes.

    Example:
        >>> from pyro_osds.target import FunctionTarget
        >>> ring = FunctionTarget(lambda z: -0.5 * ((z.norm(dim=-1) - 5.0) / 0.1).square(), dim=2)
        >>> framed = FramedTarget(ring, Rotation(torch.tensor([[0, 1]]), True), (0,))
        >>> framed.outside(torch.tensor([[5.0, 0.0], [0.0, 5.0]])).round(decimals=2).tolist()
        [[1.6..., 0.0], [1.6..., 0.67...]]
    """

    def __init__(self, target: Target, rotation: Rotation, frame: tuple[int, ...]) -> None:
        super().__init__(target)
        self.rotation, self.frame = rotation, tuple(int(particle) for particle in frame)
        rows, first = rotation.rows, rotation.rows[self.frame[0]]
        second = rows[self.frame[1]] if len(self.frame) > 1 else first[:0]
        # Coordinates that are logarithms of lengths, with the power of each in the volume, and that stand for angles.
        lengths = [first[:1], *([second[1:2]] if len(self.frame) > 1 else [])]
        self.lengths = torch.cat(lengths)
        self.powers = torch.tensor([len(first), 2][: len(lengths)], dtype=target.dtype, device=target.device)
        self.angles = torch.cat([first[1:], second[2:]])
        self.start = None if target.start is None else self.outside(target.start[None])[0]
        self._log_group = math.log({1: 2.0 * math.pi, 2: 4.0 * math.pi, 3: 8.0 * math.pi**2}[len(self.angles)])

    @property
    def log_group(self) -> float:
        """Log of the volume of all rotations that move the frame."""
        return self._log_group

    def inside(self, u: Tensor) -> Tensor:
        """Points of the target, ``(B, D) -> (B, D)``."""
        share = ndtr(u[:, self.angles].double()).clamp(_END, 1.0 - _END)
        matrix = self._matrix(share).to(u.dtype)
        rest = u.index_copy(1, self.lengths, u[:, self.lengths].exp())
        rest = rest.index_fill(1, self.angles, 0.0)

        return self.rotation.turn(rest, matrix)

    def outside(self, z: Tensor) -> Tensor:
        """Points of the target as seen from the frame, ``(B, D) -> (B, D)``."""
        rows, tiny = self.rotation.rows, torch.finfo(z.dtype).tiny
        first = z[:, rows[self.frame[0]]].double()
        radius = first.norm(dim=-1).clamp(min=tiny)
        around = 0.5 + torch.atan2(first[:, 1], first[:, 0]) / (2.0 * math.pi)
        share = around[:, None] if rows.shape[1] == 2 else torch.stack([0.5 + 0.5 * first[:, 2] / radius, around], -1)
        if len(self.frame) > 1:
            # Turned by two of three angles, the second particle shows the third.
            level = torch.cat([share, torch.full_like(share[:, :1], 0.5)], -1)
            second = (z[:, None, rows[self.frame[1]]].double() @ self._matrix(level))[:, 0]
            share = torch.cat([share, 0.5 + torch.atan2(second[:, 2:], second[:, 1:2]) / (2.0 * math.pi)], -1)
        share = share.clamp(_END, 1.0 - _END)
        u = self.rotation.turn(z, self._matrix(share).mT.to(z.dtype))
        u = u.index_copy(1, self.lengths, u[:, self.lengths].clamp(min=tiny).log())

        return u.index_copy(1, self.angles, ndtri(share).to(z.dtype))

    def volume_inside(self, u: Tensor) -> Tensor:
        """Log-determinants of the step from ``u`` to ``z``, ``(B,)``."""
        normal = -0.5 * (u[:, self.angles].square() + math.log(2.0 * math.pi)).sum(-1)

        return (self.powers * u[:, self.lengths]).sum(-1) + normal + self._log_group

    def mirror(self) -> Flip | None:
        """Coordinates off the frame, whose signs change in a mirror; None where there are none."""
        if not self.rotation.reflections or len(self.rotation.rows) <= len(self.frame):
            return None

        return Flip(self._others()[:, -1][None])

    def without_frame(self, exchange: Exchange) -> Exchange | None:
        """What may trade places without the particles that make the frame; None where fewer than two are left."""
        if exchange.simplexes:
            return None
        used = self.rotation.rows[list(self.frame)]
        free = ~torch.stack([torch.isin(rows, used).any(-1) for rows in exchange.rows]).any(0)

        return Exchange(int(free.sum()), tuple(rows[free] for rows in exchange.rows), ()) if free.sum() > 1 else None

    def _others(self) -> Tensor:
        """The coordinates of particles that are not in the frame, ``(n - k, d)``."""
        return self.rotation.rows[[i for i in range(len(self.rotation.rows)) if i not in self.frame]]

    def _matrix(self, share: Tensor) -> Tensor:
        """Rotations whose first column is the first particle's direction, of shares of their angles, ``(B, d, d)``."""
        if self.rotation.rows.shape[1] == 2:
            return _around(share[:, 0])
        height, side = 2.0 * share[:, 0] - 1.0, 2.0 * (share[:, 0] * (1.0 - share[:, 0])).sqrt()
        zero, one = torch.zeros_like(height), torch.ones_like(height)
        upwards = torch.stack([side, zero, -height, zero, one, zero, height, zero, side], -1).view(-1, 3, 3)
        matrix = _padded(_around(share[:, 1]), 2) @ upwards

        return matrix @ _padded(_around(share[:, 2]), 0) if share.shape[1] > 2 else matrix


def _around(share: Tensor) -> Tensor:
    """Rotations in the plane by shares of a turn that begins at -pi, ``(B,)`` to ``(B, 2, 2)``."""
    angle = 2.0 * math.pi * (share - 0.5)
    cos, sin = angle.cos(), angle.sin()

    return torch.stack([cos, -sin, sin, cos], -1).view(-1, 2, 2)


def _padded(plane: Tensor, axis: int) -> Tensor:
    """Rotations of the other two axes as rotations around this one, the first or the last, ``(B, 3, 3)``."""
    whole = torch.nn.functional.pad(plane, (1, 0, 1, 0) if axis == 0 else (0, 1, 0, 1))
    keep = torch.zeros(3, 3, dtype=plane.dtype, device=plane.device)
    keep[axis, axis] = 1.0

    return whole + keep


def framed(target: Target, rotation: Rotation, z: Tensor) -> FramedTarget | None:
    r"""The target seen from the frame in which particles are closest to a Gaussian, or None where they are without.

    The divergence to the best Gaussian is, up to a constant that all coordinates share,
    :math:`\tfrac12 \log\det \mathrm{Cov}(u) + \mathrm{E} \log|\det \partial z / \partial u|`.

    Arguments:
        target: The target.
        rotation: Which of its coordinates are particles.
        z: Points in the posterior, ``(N, D)``.
    """
    best, smallest = None, _log_volume(rotation.at_random(z)) - MIN_FRAME_GAIN
    for frame in islice(rotation.frames(), _MAX_FRAMES):
        candidate = FramedTarget(target, rotation, frame)
        u = candidate.outside(z)
        # Angles of a density with the symmetry are standard normal, whatever of them the points happen to show.
        u = u.index_copy(1, candidate.angles, hashed_normals(u, len(candidate.angles)).to(u.dtype))
        mirror = candidate.mirror()
        u = u if mirror is None else mirror.at_random(u)
        divergence = _log_volume(u) + candidate.volume_inside(u).double().mean().item()
        if divergence < smallest:
            best, smallest = candidate, divergence

    return best


def _log_volume(z: Tensor) -> float:
    """Half the log-determinant of the covariance of points."""
    return weighted_moments(z, z.new_zeros(len(z)))[1].diagonal().double().log().sum().item()

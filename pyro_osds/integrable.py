r"""Does a density fall off in every direction, as one with an integral must?

Along a ray :math:`z = \mu + \lambda L d` of any direction *d*, :math:`\lambda\, \gamma(z)` must vanish as
:math:`\lambda` grows, or the integral over a tube around the ray has no limit; along one of random direction,
:math:`\lambda^D \gamma(z)` must, or that over a cone has none. A flat direction, a separable regression without a
prior, or a factor that undoes the prior show up so; weights of a sampler need not show them at all.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_osds.target import Target, finite_log_prob

_NEAR, _FAR = 1e3, 1e6
# A tail as heavy as that of a Student t with a twentieth of a degree of freedom falls by more, nats.
_MIN_FALL = 0.3
_NUM_RANDOM, _MAX_AXES = 64, 256


def endless_coordinates(target: Target, loc: Tensor, scale_tril: Tensor) -> list[int]:
    """Coordinates that carry most of a direction along which the density does not fall off.

    Arguments:
        target: The target.
        loc: Centre of the posterior, ``(D,)``.
        scale_tril: Its scale, ``(D, D)``.

    Example:
        >>> from pyro_osds.target import FunctionTarget
        >>> target = FunctionTarget(lambda z: -0.5 * z[:, 1].square(), dim=2)
        >>> endless_coordinates(target, torch.zeros(2), torch.eye(2))
        [0]
    """
    axes = torch.eye(target.dim, dtype=loc.dtype, device=loc.device)[:_MAX_AXES]
    others = torch.randn(_NUM_RANDOM, target.dim, dtype=loc.dtype, device=loc.device)
    others = others / others.square().sum(-1, keepdim=True).sqrt()
    _, principal = torch.linalg.eigh(scale_tril @ scale_tril.mT)
    principal = principal.mT[-_MAX_AXES:] * scale_tril.square().sum().sqrt()
    tubes = torch.cat([torch.cat([axes, -axes]) @ scale_tril.mT, principal, -principal])
    directions = torch.cat([tubes, others @ scale_tril.mT]) * _looked_along(target).to(loc)
    power = torch.ones(len(directions), dtype=torch.float64, device=loc.device)
    power[len(tubes) :] = target.dim
    with torch.no_grad():
        near, far = (finite_log_prob(target.log_prob(loc + size * directions)).double() for size in (_NEAR, _FAR))
    fall = near - far - power * math.log(_FAR / _NEAR)
    # Where one end is zero or not a number there is nothing to see.
    moves = directions.ne(0).any(-1)
    endless = directions[moves & near.isfinite() & far.isfinite() & (fall < _MIN_FALL)]
    relative = endless.abs() / scale_tril.diagonal()

    return sorted(set(relative.argmax(-1).tolist()))


def _looked_along(target: Target) -> Tensor:
    """One for each coordinate to look along, ``(D,)``; zero where a transform saturates, as that of a simplex does."""
    looked = torch.ones(target.dim, device=target.device)
    for site in getattr(target, "sites", ()):
        if site.shape != site.unconstrained_shape:
            looked[site.start : site.stop] = 0.0

    return looked

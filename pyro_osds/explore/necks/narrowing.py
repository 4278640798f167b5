r"""Which coordinates lead into a neck: the others become narrower the further out they are.

The scale of a hierarchy that goes to zero takes all of its members along. What the others fill, given that coordinate
*i* is as far out as a tenth of the posterior on one side, is held against what they fill in the middle,

.. math:: \tfrac12 \log\det \mathrm{Cov}(z_{-i} \mid z_i \text{ in the middle})
    - \tfrac12 \log\det \mathrm{Cov}(z_{-i} \mid z_i \text{ far out}),

both without what is linear in :math:`z_i`. A Gaussian has zero nats of it on every side.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_osds.stats.thresholds import MIN_NARROWING

# Draws with equal weights that are looked at, and the tenth of them that is far out.
_NUM_DRAWS, _FAR_OUT = 4000, 400
# Standard errors of the difference of two volumes that chance may reach on some side of some coordinate.
_SIGMAS = 4.0
# The first draw that counts as the middle.
_MIDDLE = (_NUM_DRAWS - _FAR_OUT) // 2


class Way(NamedTuple):
    """A way into a neck.

    Arguments:
        coordinate: The coordinate that leads there.
        sign: In which direction, 1 or -1.
        narrowing: Nats of volume that the other coordinates lose.
    """

    coordinate: int
    sign: int
    narrowing: float


def ways_into_necks(z: Tensor, log_weight: Tensor, most: int = 3) -> list[Way]:
    """The coordinates along which the others become narrow, the strongest first.

    Arguments:
        z: Draws, ``(S, D)``.
        log_weight: Their log weights, ``(S,)``.
        most: How many at most.

    Example:
        >>> torch.manual_seed(0) and None
        >>> v, x = torch.randn(4000, 1), torch.randn(4000, 5)
        >>> [way[:2] for way in ways_into_necks(torch.cat([v, v.exp() * x], 1), torch.zeros(4000))]
        [(0, -1)]
        >>> ways_into_necks(torch.cat([v, v + x], 1), torch.zeros(4000))
        []
    """
    dim = z.shape[1]
    if dim < 2 or dim > _FAR_OUT // 2:
        return []
    share = torch.softmax(log_weight.double(), 0)
    z = z.double()[torch.multinomial(share, _NUM_DRAWS, replacement=True)]
    # The log volume of n draws in D dimensions has a standard error of sqrt(D / 2n).
    effective = _FAR_OUT * min(1.0, 1.0 / (share.square().sum().item() * _NUM_DRAWS))
    least = MIN_NARROWING + _SIGMAS * math.sqrt(dim / effective)
    found = []
    for i in range(dim):
        ordered = z[z[:, i].argsort()]
        middle = _log_volume(ordered[_MIDDLE : _MIDDLE + _FAR_OUT], i)
        for sign, far in ((-1, ordered[:_FAR_OUT]), (1, ordered[-_FAR_OUT:])):
            found.append(Way(i, sign, middle - _log_volume(far, i)))
    found = [way for way in found if way.narrowing > least]

    return sorted(found, key=lambda way: -way.narrowing)[:most]


def _log_volume(z: Tensor, i: int) -> float:
    """Half the log-determinant of the covariance of all coordinates but one, without what is linear in that one."""
    rest = torch.cat([z[:, :i], z[:, i + 1 :]], 1)
    given = torch.stack([torch.ones_like(z[:, i]), z[:, i]], 1)
    left = rest - given @ torch.linalg.lstsq(given, rest).solution

    return 0.5 * torch.linalg.slogdet(left.mT @ left / len(left))[1].item()

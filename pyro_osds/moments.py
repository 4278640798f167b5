r"""Location and scale of weighted points, safe where the units of the coordinates differ by a factor of 1e5.

.. math::
    \mu = \sum_i w_i z_i, \qquad
    LL^\top = (1-\alpha) S + \alpha\,\mathrm{diag}(S), \qquad \alpha = \frac{D}{D + \mathrm{ESS}}
"""

from __future__ import annotations

import torch
from torch import Tensor


def weighted_moments(z: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and Cholesky factor of the covariance of weighted points, shrunk to the diagonal where points are few.

    Arguments:
        z: Points, ``(N, D)``.
        log_weight: Log weights, ``(N,)``.

    Returns:
        Mean ``(D,)`` and lower triangular factor ``(D, D)``, in the points' dtype.
    """
    points = z.double()
    weights = torch.softmax(log_weight.double(), 0)
    ess = 1.0 / weights.square().sum()
    loc = weights @ points
    centred = (points - loc) * weights.sqrt()[:, None]
    covariance = centred.mT @ centred
    variance = covariance.diagonal().clamp(min=1e-30)
    shrinkage = z.shape[1] / (z.shape[1] + ess)
    scale = variance.sqrt()
    # Factorised as a correlation matrix, which stays well scaled when the coordinates' units differ by 1e5.
    correlation = covariance / scale / scale[:, None] * (1 - shrinkage)
    correlation.diagonal().fill_(1.0 + 1e-9)
    scale_tril = scale[:, None] * torch.linalg.cholesky(correlation)

    return loc.to(z.dtype), scale_tril.to(z.dtype)

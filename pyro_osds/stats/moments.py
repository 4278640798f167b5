r"""Location and scale of points, safe where the units of the coordinates differ by a factor of 1e5.

From weighted points alone,

.. math::
    \mu = \sum_i w_i z_i, \qquad
    LL^\top = (1-\alpha) S + \alpha\,\mathrm{diag}(S), \qquad \alpha = \frac{D}{D + \mathrm{ESS}}.

Where the scores :math:`g_i = \nabla\log\gamma(z_i)` are known too, the Gaussian whose scores come closest to them is
the geometric mean of the points' covariance and the inverse covariance of the scores,

.. math::
    LL^\top = C_z \mathbin{\#} C_g^{-1}
    = C_z^{1/2} \big(C_z^{-1/2} C_g^{-1} C_z^{-1/2}\big)^{1/2} C_z^{1/2}, \qquad
    \mu = \bar z + LL^\top \bar g.

If the target is Gaussian, this is its mean and covariance but for rounding and shrinkage, from some ten D points. From
fewer than D points, only the scale of each coordinate by itself is taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

ENOUGH_PARTICLES = 4
"""With fewer for each dimension, the scale of particles is mostly noise."""

# How far the Fisher scale may lie from the points' own, as a ratio of variances: at a hard edge, of which scores
# say nothing, they would widen it without end, and at a spike, of which they say too much, shrink it.
_MIN_RATIO, _MAX_RATIO = 1e-2, 2.0
# The least variance of a coordinate, so that none is divided by: far below that of any that moves.
_TINY = 1e-30
# Scores in units of the points' own scale at most: a spike that the ratios above are kept from long before, and squares
# of what overflows have no eigenvalues.
_STEEPEST = 1e7
# What rounding takes from a correlation matrix of some thousand points, put back on its diagonal.
_JITTER = 1e-9


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
    shrinkage = z.shape[1] / (z.shape[1] + ess)
    correlation, scale = _correlation(centred.mT @ centred, shrinkage)
    scale_tril = scale[:, None] * _root(correlation)

    return loc.to(z.dtype), scale_tril.to(z.dtype)


def fisher_moments(z: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and Cholesky factor of the Gaussian that is closest to a target in Fisher divergence.

    The scale is kept between a tenth and one and a half times the points' own, in any direction: scores say nothing of
    a hard edge, and too much of a spike.

    Arguments:
        z: Equally weighted points, ``(N, D)``.
        score: Scores of the target there, ``(N, D)``.

    Returns:
        Mean ``(D,)`` and lower triangular factor ``(D, D)``, in the points' dtype.

    Example:
        >>> z = 1.0 + 2.0 * torch.randn(50, 3)
        >>> _, scale_tril = fisher_moments(z, -(z - 1.0) / 4.0)  # the scores of N(1, 2^2 I)
        >>> scale_tril.diagonal().round(decimals=3)
        tensor([2., 2., 2.])

    Source: preconditioning by Fisher divergence, Seyboldt, Carlson, Carpenter (arXiv 2603.18845).
    """
    points, scores = z.double(), score.double()
    num_points, dim = z.shape
    if num_points < dim:
        return _diagonal_fisher_moments(z, score)
    # The two estimates err in opposite directions, so far less shrinkage is needed than for either alone.
    # The fourth power leaves half of it at D points, and a hundredth at three times as many.
    shrinkage = 1.0 / (1.0 + (num_points / dim) ** 4)
    loc = points.mean(0)
    centred = points - loc
    correlation, scale = _correlation(centred.mT @ centred / num_points, shrinkage)
    root = _root(correlation)
    scores = scores.clamp(-_STEEPEST / scale, _STEEPEST / scale)
    mean_score = scores.mean(0)
    scores = (scores - mean_score) * scale
    fisher = scores.mT @ scores / num_points
    fisher = (1.0 - shrinkage) * fisher + shrinkage * fisher.diagonal().diag()
    # In coordinates whitened by the points the geometric mean is the root of the inverse.
    precision, vectors = torch.linalg.eigh(root.mT @ fisher @ root)
    variance = precision.clamp(min=_MAX_RATIO**-2, max=_MIN_RATIO**-2).rsqrt()
    half = root @ (vectors * variance.sqrt())
    covariance = half @ half.mT
    size = covariance.diagonal().sqrt()
    scale_tril = (scale * size)[:, None] * _root(covariance / size / size[:, None])

    return (loc + scale_tril @ (scale_tril.mT @ mean_score)).to(z.dtype), scale_tril.to(z.dtype)


def _diagonal_fisher_moments(z: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """The same, coordinate by coordinate: noise of the correlations would be larger than the correlations."""
    loc, mean_score = z.double().mean(0), score.double().mean(0)
    variance = (z.double() - loc).square().mean(0).clamp(min=_TINY)
    fisher = (score.double() - mean_score).square().mean(0) * variance
    variance = variance * fisher.clamp(min=_MAX_RATIO**-2, max=_MIN_RATIO**-2).rsqrt()

    return (loc + variance * mean_score).to(z.dtype), variance.sqrt().diag().to(z.dtype)


def _correlation(covariance: Tensor, shrinkage: Tensor | float) -> tuple[Tensor, Tensor]:
    """Shrunk correlation matrix and scales; factorised so, a covariance stays well scaled whatever the units."""
    scale = covariance.diagonal().clamp(min=_TINY).sqrt()
    correlation = covariance / scale / scale[:, None] * (1 - shrinkage)
    correlation.diagonal().fill_(1.0 + _JITTER)

    return correlation, scale


def _root(correlation: Tensor) -> Tensor:
    """The Cholesky factor; of a matrix that rounding has made singular, that of one a little closer to the identity."""
    eye, share = torch.eye(len(correlation), dtype=correlation.dtype, device=correlation.device), 0.0
    while True:
        factor, info = torch.linalg.cholesky_ex((1.0 - share) * correlation + share * eye)
        if not info or share >= 1.0:
            return factor
        # From the rounding of double precision on, tenfold: the least that makes it regular to a factor of ten.
        share = min(1.0, max(1e-10, 10.0 * share))

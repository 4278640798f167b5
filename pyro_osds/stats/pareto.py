r"""The tail of importance weights: its shape, pareto k, and weights smoothed by it.

What the largest weights *w* exceed a cutoff *u* by follows a generalised Pareto distribution,

.. math:: \Pr[w - u > x] = (1 + k x / \sigma)^{-1/k},

whose number of finite moments is about ``1/k``: above 0.5 the variance of the weights, and above 1 their mean, is not
to be trusted.

Source: Pareto-smoothed importance sampling, Vehtari et al. 2024 (1507.02646).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor

from pyro_osds.stats.thresholds import EQUAL_MAX_OVER_MEAN, EQUAL_SHARE, MAX_PARETO_K, NEGLIGIBLE_TAIL

# The tail is the largest fifth of few weights and three roots of many (1507.02646, section 3.1).
_TAIL_SHARE, _TAIL_ROOTS = 0.2, 3.0
# Fewer points have no shape: the same limit as in the R package loo.
_MIN_TAIL = 5
# Excesses over the cutoff, as shares of the largest weight, that differ by no more than double precision makes them.
_ROUNDING = 1e-12
# A largest weight that exceeds the cutoff by half of itself is no rounding of an equal one.
_STANDS_OUT = 0.5


class TailFit(NamedTuple):
    """A generalised Pareto distribution of what the largest weights exceed a cutoff by; weights over the largest one.

    Arguments:
        size: How many weights are in the tail.
        cutoff: The weight at which it starts.
        k: Its shape: ``-inf`` where weights are so nearly equal that their tail cannot matter (it holds less than a
            thousandth of all weight), and ``inf`` where a few weights carry everything or none is finite.
        sigma: Its scale.
    """

    size: int
    cutoff: float
    k: float
    sigma: float

    @property
    def mean_beyond(self) -> float:
        r"""Mean of the weights that exceed the largest one that was drawn, over that one; 0 where there is no tail.

        .. math:: 1 + \frac{\sigma + k (1 - u)}{1 - k}

        A shape beyond what is trusted counts as the largest that is: at 1 there is no mean.

        Example:
            >>> TailFit(100, 0.25, 0.5, 0.125).mean_beyond
            2.0
        """
        if self.k == -math.inf:
            return 0.0
        k = min(self.k, MAX_PARETO_K)
        sigma = self.sigma if math.isfinite(self.sigma) else 0.0
        cutoff = self.cutoff if math.isfinite(self.cutoff) else 0.0

        # A negative shape has an end, which the largest weight may lie beyond by the noise of the fit.
        return 1.0 + max(sigma + k * (1.0 - cutoff), 0.0) / (1.0 - k)


def fit_tail(log_weight: Tensor) -> TailFit:
    """The tail of the weights.

    Arguments:
        log_weight: Log weights, ``(S,)``; ``-inf`` counts as weight zero.

    Example:
        >>> torch.manual_seed(0) and None
        >>> fit_tail(torch.randn(5000)).k < 0.5
        True
    """
    if not log_weight.isfinite().any():
        return TailFit(0, math.nan, math.inf, math.nan)
    ascending = (log_weight.double() - log_weight.max()).sort().values
    tail = _tail(ascending)
    if tail is None:
        return TailFit(0, math.nan, -math.inf, math.nan)
    size, cutoff = tail
    excess = ascending[-size:].exp() - cutoff
    if not excess[_quarter(size)] > _ROUNDING:
        # So few weights carry all of it that there is no tail to fit.
        return TailFit(size, cutoff, math.inf, math.nan)

    with torch.device("cpu"):  # Pyro makes tensors where torch makes them by default
        k, sigma = fit_generalized_pareto(excess.cpu())

    return TailFit(size, cutoff, k, sigma)


def pareto_k(log_weight: Tensor) -> float:
    """Shape of the tail of the weights; ``-inf`` where they are nearly equal, ``inf`` where none is finite.

    Example:
        >>> torch.manual_seed(0) and None
        >>> bool(pareto_k(torch.randn(5000)) < 0.5)
        True
    """
    return fit_tail(log_weight).k


def pareto_smooth(log_weight: Tensor, tail: TailFit | None = None) -> tuple[Tensor, float]:
    """Log weights with their largest values replaced by those of the fitted Pareto tail, and the tail's shape.

    Arguments:
        log_weight: Log weights, ``(S,)``.
        tail: The tail of these weights, where it is known. Default: fitted here.

    Returns:
        Normalised smoothed log weights ``(S,)`` and pareto k.
    """
    log_weight = log_weight.double()
    log_weight = log_weight - log_weight.max()
    order = log_weight.argsort()
    size, cutoff, k, sigma = fit_tail(log_weight) if tail is None else tail
    smoothed = log_weight.clone()
    if math.isfinite(k):
        probabilities = (torch.arange(size, dtype=torch.float64, device=log_weight.device) + 0.5) / size
        quantiles = cutoff + sigma / k * torch.expm1(-k * torch.log1p(-probabilities))
        smoothed[order[-size:]] = quantiles.log().clamp(max=0.0)

    return smoothed - torch.logsumexp(smoothed, 0), k


def _quarter(size: int) -> int:
    """Where Pyro's fit looks for the lower quartile of a tail, by which it divides."""
    return int(size / 4 - 0.5)


def _tail(ascending: Tensor) -> tuple[int, float] | None:
    """Size of the tail and the weight at which it starts, or None where there is nothing to fit."""
    count = len(ascending)
    size = math.ceil(min(_TAIL_SHARE * count, _TAIL_ROOTS * math.sqrt(count)))
    if size < _MIN_TAIL or count <= size:
        return None
    cutoff = max(ascending[-size - 1].item(), math.log(torch.finfo(torch.float64).tiny))
    excess = ascending[-size:].exp() - math.exp(cutoff)
    # Weights equal up to rounding have no tail; the fit would divide by zero.
    if not excess[_quarter(size)] > _ROUNDING and excess[-1] < _STANDS_OUT:
        return None
    # Nor is there one to speak of where weights are nearly equal; its shape would be that of noise.
    weights = ascending.exp()
    total = weights.sum()
    nearly_equal = total.square() > EQUAL_SHARE * count * weights.square().sum() and total * EQUAL_MAX_OVER_MEAN > count
    if nearly_equal and excess.sum() < NEGLIGIBLE_TAIL * total:
        return None

    return size, math.exp(cutoff)

r"""Two sets of particles, each from annealing of its own: do they lie at the same places?

A flow tells places apart by its weights: where they are large, it proposes too little. The share of either set where
the weights are more than some multiple of their mean is compared, replicate by replicate, so that the spread of the
replicates is the error, whatever made it:

.. math:: \bar s_1 - \bar s_2 \quad\text{against}\quad \sqrt{\mathrm{Var}(s_1) / R_1 + \mathrm{Var}(s_2) / R_2}.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from pyro_osds.stats.thresholds import CHECK_QUANTILE, MAX_SIGMAS, MIN_UNLIKE

# Weights from which on particles are counted, as multiples of their mean.
_MULTIPLES = 1.0, 3.0, 10.0


class Unlike(NamedTuple):
    """Where two sets of particles lie in other shares.

    Arguments:
        multiple: Weights from here on are meant, as multiples of their mean.
        first: Share of the first set with such weights.
        second: Share of the second set.
    """

    multiple: float
    first: float
    second: float


def unlike(first: Tensor, second: Tensor, log_mean: float) -> Unlike | None:
    """Where two sets of particles lie in shares that differ by more than chance and by what matters; None if nowhere.

    Arguments:
        first: Log weights of a flow at the particles of the first set, by replicate ``(R, N)``.
        second: The same of the second set, ``(R', N')``.
        log_mean: Log of the mean weight of the flow's own draws.

    Example:
        >>> import torch
        >>> torch.manual_seed(0) and None
        >>> weights = torch.randn(8, 512), torch.randn(16, 125), torch.randn(16, 125) + 2.0
        >>> unlike(weights[0], weights[1], 0.0) is None, unlike(weights[0], weights[2], 0.0) is None
        (True, False)
    """
    for multiple in _MULTIPLES:
        shares = [(weights > log_mean + math.log(multiple)).double().mean(1) for weights in (first, second)]
        means = [share.mean().item() for share in shares]
        variance = 0.0
        for share, mean, weights in zip(shares, means, (first, second), strict=True):
            by_chance = max(mean * (1.0 - mean), 1.0 / weights.numel()) / weights.numel()
            variance += max(share.var().item() / len(share), by_chance)
        if abs(means[0] - means[1]) > max(MIN_UNLIKE, MAX_SIGMAS * CHECK_QUANTILE * math.sqrt(variance)):
            return Unlike(multiple, *means)

    return None

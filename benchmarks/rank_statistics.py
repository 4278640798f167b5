"""Ranks of true parameters among posterior draws, and whether they are as uniform as they must be.

If the truth and the data come from the model, the truth is one more draw of the posterior: among L independent draws,
its rank is uniform on 0, ..., L. The band around the distribution function of N such ranks holds all of it at once.

Sources: simulation-based calibration, Talts et al. 2018 (1804.06788); simultaneous bands, Sailynoja et al. 2022
(2103.10522), section 2.2.
"""

from functools import cache

import numpy as np
from scipy import stats

_NUM_SIMULATIONS = 4000


def thin(draws: np.ndarray, num_kept: int) -> np.ndarray:
    """Draws as far from each other as possible, `(num_kept, *)` of `(S, *)`."""
    return draws[np.linspace(0, len(draws) - 1, num_kept).round().astype(int)]


def rank(draws: np.ndarray, truth: float) -> int:
    """How many draws `(L,)` lie below the truth."""
    return int((draws < truth).sum())


def is_central(draws: np.ndarray, truth: float, mass: float) -> bool:
    """Whether the central interval of the draws `(S,)` with that mass holds the truth."""
    low, high = np.quantile(draws, [(1 - mass) / 2, (1 + mass) / 2])

    return bool(low <= truth <= high)


def ecdf_points(num_draws: int) -> np.ndarray:
    """The distribution function of a uniform rank on `0, ..., L`, at `0, ..., L - 1`: `(L,)`."""
    return np.arange(1, num_draws + 1) / (num_draws + 1)


def ecdf(ranks: np.ndarray, num_draws: int) -> np.ndarray:
    """Share of ranks `(N,)` up to each of `0, ..., L - 1`: `(L,)`."""
    return np.bincount(ranks, minlength=num_draws + 1).cumsum()[:-1] / len(ranks)


def uniformity(ranks: np.ndarray, num_draws: int) -> float:
    """A p-value: how often uniform ranks leave the middle at some point as far as these do."""
    simulated = _least_tails(len(ranks), num_draws)

    return float((simulated <= _least_tail(ecdf(ranks, num_draws), len(ranks))).mean())


def band(num_fits: int, num_draws: int, mass: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end, `(L,)` each, that hold all of the ECDF of uniform ranks with that probability."""
    level = np.quantile(_least_tails(num_fits, num_draws), 1 - mass)
    points = ecdf_points(num_draws)
    low, high = (stats.binom.ppf(tail, num_fits, points) for tail in (level / 2, 1 - level / 2))

    return low / num_fits, high / num_fits


def _least_tail(share: np.ndarray, num_fits: int) -> np.ndarray:
    """The least two-sided tail probability along ECDFs `(*, L)`: `(*)`."""
    points, count = ecdf_points(share.shape[-1]), np.rint(share * num_fits)
    below, above = stats.binom.cdf(count, num_fits, points), stats.binom.sf(count - 1, num_fits, points)

    return 2 * np.minimum(below, above).min(-1)


@cache
def _least_tails(num_fits: int, num_draws: int) -> np.ndarray:
    """Those of simulated uniform ranks."""
    rng = np.random.default_rng(0)
    ranks = rng.integers(0, num_draws + 1, (_NUM_SIMULATIONS, num_fits))

    return np.array([_least_tail(ecdf(row, num_draws), num_fits) for row in ranks])

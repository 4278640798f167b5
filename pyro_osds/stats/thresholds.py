"""What the verdicts ask for, each number with its reason.

Thresholds are shares and nats, so that they mean the same for a thousand draws and for a million.
"""

from __future__ import annotations

import math

MIN_WEIGHT_ESS = 0.01
"""Share of effective draws among the weighted ones. With fewer than one in a hundred the flow hardly meets the
posterior, and the spread of its weights, from which their standard error comes, is itself hardly known."""

MIN_CHAIN_ESS = 0.2
"""Share of effective draws among the posterior draws of a run, in its worst coordinate. Of the default of 4,000 that is
800: the error of a mean is 0.035 standard deviations, and one of 0.1 is improbable (Gaussian, 0.5 %)."""

MAX_R_HAT = 1.05
"""Split R-hat of the chains in their worst coordinate. 1.01 is the usual limit for chains that walk; independent
proposals of a good flow stay far below it, and the noise of 800 effective draws reaches 1.02."""

MAX_STD_ERROR = 0.1
"""Standard error of a log evidence, nats. Bayes factors are read in steps of about one nat ("positive" begins there);
a tenth of it decides nothing, and half of it does."""

MAX_ROUNDING = 0.05
"""Standard deviation of what rounding adds to a log density, nats: what the evidence may be wrong by without a word."""

MAX_NOT_FINITE = 0.001
"""Share of draws with a log density of nan or +inf. Their mass is lost: a share of 0.001 loses about 0.001 nats."""

MAX_UNDEFINED = 0.01
"""Share of the draws of a prior with a density that is not a number: heavy tails overflow at fewer."""

MAX_SATURATED = 0.001
"""Share of the posterior, by weight, whose values are rounded to a bound: a share of 0.001 hides about as many nats."""

SAME_LIKELIHOOD = 0.01
"""Nats by which a log likelihood may still change, on average over draws, just before values are rounded to a bound."""

MAX_SIGMAS = 3.0
"""Combined standard errors between two estimates of one log evidence: 0.3 % of honest pairs lie further apart."""

CHECK_QUANTILE = 1.5
"""Factor on the standard error from the spread of eight replicates: their t distribution has the quantile at 4.5 that a
normal has at 3."""

MIN_CHECK_ERROR = 0.03
"""Least standard error of an exploration, nats: replicates share temperatures and scales, so that their spread claims a
little too much."""

MIN_BRIDGE_ERROR = 0.01
"""The same for annealing from the flow, whose path is short."""

UNREACHED = 0.005
"""Nats that annealing from the flow may leave unreached in a narrow neck, the same in all its replicates."""

MIN_ACCEPTANCE = 0.3
"""Mean acceptance of Hamiltonian moves below which particles hardly move; they aim at 0.75."""

EQUAL_SHARE = 0.99
"""Share of effective particles from which on the tail of their weights has the shape of noise."""

# Neighbours of single precision need nine; what needs more is written as Python does it.
_MAX_DIGITS = 15


def pareto_k_threshold(num_draws: int) -> float:
    """The largest trustworthy pareto k for a number of draws: ``min(1 - 1 / log10(S), 0.7)``.

    Source: Vehtari et al. 2024 (1507.02646), section 3.2.4.

    Example:
        >>> pareto_k_threshold(10_000)
        0.7
    """
    return min(1.0 - 1.0 / math.log10(max(num_draws, 2)), 0.7)


def apart(value: float, bound: float, digits: int = 2) -> tuple[str, str]:
    """Both numbers, with as many digits as it takes to tell them apart.

    Arguments:
        value: What was seen.
        bound: What it is held against.
        digits: Digits after the point at least.

    Example:
        >>> apart(0.7004, 0.7)
        ('0.7004', '0.7000')
        >>> apart(0.93, 0.7)
        ('0.93', '0.70')
    """
    while value != bound and digits < _MAX_DIGITS and float(f"{value:.{digits}f}") == float(f"{bound:.{digits}f}"):
        digits += 1
    if value != bound and digits == _MAX_DIGITS:
        return repr(value), repr(bound)

    return f"{value:.{digits}f}", f"{bound:.{digits}f}"

"""What runs with a known log evidence say about estimates, standard errors and verdicts.

All functions take a table of runs, one a row, with the columns `case`, `log_evidence`, `std_error`, `truth`,
`truth_se`, `error`, `elbo` and `reliable`. The error is measured in standard errors, z, where the standard error is the
stated one and that of the truth together.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

# Below so many steps between float32 numbers of the size of the log evidence, a standard error only says that the
# weights are constant: the error is that of the densities, which all draws share.
ROUNDING_STEPS = 10
# An error that changes nothing for anybody is no false assurance, however small its standard error.
NOTICEABLE = 0.05
NUM_SIGMAS = 3.0


@dataclass(frozen=True)
class Share:
    """How many of so many, with the binomial standard error of their share."""

    count: int
    total: int

    @property
    def value(self) -> float:
        return self.count / self.total if self.total else math.nan

    @property
    def std_error(self) -> float:
        return math.sqrt(self.value * (1 - self.value) / self.total) if self.total else math.nan


@dataclass(frozen=True)
class Mean:
    """A mean with its standard error, and the median."""

    value: float
    std_error: float
    median: float


@dataclass(frozen=True)
class Spread:
    """The standard deviation over seeds in terms of the stated standard error, with its 95 % interval."""

    ratio: float
    low: float
    high: float
    degrees: int


def with_z(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with `z`, their error in standard errors, and `is_rounding`, where that means nothing."""
    std_error = np.hypot(runs["std_error"], runs["truth_se"])

    return runs.assign(z=runs["error"] / std_error, is_rounding=std_error < ROUNDING_STEPS * rounding(runs["truth"]))


def coverage(z: pd.Series, num_sigmas: float) -> Share:
    """How many truths lie within so many standard errors; a nan is outside."""
    return Share(int((z.abs() <= num_sigmas).sum()), len(z))


def bias(values: pd.Series) -> Mean:
    values = values.astype(float)

    return Mean(values.mean(), values.std() / math.sqrt(max(len(values), 1)), values.median())


def spread(runs: pd.DataFrame) -> Spread:
    """Of the log evidence over the seeds of each case, against the root mean square of what is stated.

    Several cases are pooled, each in units of its own standard error and with as many degrees of freedom as it has
    seeds besides the first. The interval is that of a normal estimate: of chi-square, over its degrees of freedom.
    """
    cases = runs.groupby("case")
    stated = cases["std_error"].apply(lambda std_error: (std_error**2).mean())
    degrees = cases.size() - 1
    relative = (cases["log_evidence"].var() / stated)[degrees > 0]
    total = int(degrees.sum())
    if not total:
        return Spread(math.nan, math.nan, math.nan, 0)
    ratio = math.sqrt((relative * degrees[degrees > 0]).sum() / total)
    low, high = (ratio * math.sqrt(total / stats.chi2.ppf(p, total)) for p in (0.975, 0.025))

    return Spread(ratio, low, high, total)


def false_assurances(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs that call themselves reliable and are wrong: by more than three standard errors, and noticeably."""
    is_wrong = ~(runs["z"].abs() <= NUM_SIGMAS) & ~(runs["error"].abs() <= NOTICEABLE)

    return runs[is_wrong & runs["reliable"].astype(bool)]


def elbos_above(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs whose lower bound lies above the truth by more than three standard errors, and more than rounding."""
    std_error = np.hypot(runs["std_error"], runs["truth_se"]).clip(lower=rounding(runs["truth"]))

    return runs[runs["elbo"] > runs["truth"] + NUM_SIGMAS * std_error]


def rounding(log_evidence: pd.Series) -> np.ndarray:
    """What a log density of that size is rounded to, in float32; at least the distance of numbers around 1."""
    return np.spacing(log_evidence.abs().clip(lower=1.0).to_numpy(dtype=np.float32)).astype(float)

"""Random conjugate models, written as Pyro models with plates, each with its log evidence in closed form.

A seed makes the sizes, the hyperparameters and the data of a model; the data come from the model itself. Evidences are
those of the data as the model sees them, rounded to float32, and computed in double precision.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.random import Generator
from scipy import stats
from scipy.special import betaln, gammaln
from torch import Tensor

Conjugate = tuple[Callable[[], None], float]

# ---- normal, variance known ----


def normal_means(rng: Generator, size: int) -> Conjugate:
    """Means of `size` groups."""
    num_rows, loc = int(rng.integers(1, 31)), _loc(rng)
    prior_sd, noise_sd = _scale(rng, -0.5, 1.5), _scale(rng)
    y = _float32(rng.normal(rng.normal(loc, prior_sd, size), noise_sd, (num_rows, size)))

    def model() -> None:
        with pyro.plate("group", size, dim=-1):
            mean = pyro.sample("mean", dist.Normal(loc, prior_sd))
            with pyro.plate("row", num_rows, dim=-2):
                pyro.sample("y", dist.Normal(mean, noise_sd), obs=y)

    covariance = noise_sd**2 * np.eye(num_rows) + prior_sd**2
    log_evidence = sum(_normal(column, np.full(num_rows, loc), covariance) for column in _double(y).T)

    return model, log_evidence


def normal_vector(rng: Generator, size: int) -> Conjugate:
    """The mean of vectors, with dense covariances in prior and likelihood."""
    num_rows = int(rng.integers(1, 16))
    loc, prior, noise = _float32(rng.normal(0, 2, size)), _covariance(rng, size, 2.0), _covariance(rng, size, 1.0)
    mean = rng.multivariate_normal(_double(loc), _double(prior))
    y = _float32(rng.multivariate_normal(mean, _double(noise), num_rows))

    def model() -> None:
        mean = pyro.sample("mean", dist.MultivariateNormal(loc, prior))
        with pyro.plate("row", num_rows):
            pyro.sample("y", dist.MultivariateNormal(mean, noise), obs=y)

    covariance = np.kron(np.eye(num_rows), _double(noise)) + np.kron(np.ones((num_rows, num_rows)), _double(prior))

    return model, _normal(_double(y).ravel(), np.tile(_double(loc), num_rows), covariance)


def normal_regression(rng: Generator, size: int) -> Conjugate:
    """`size` weights with a dense prior covariance, noise known."""
    num_rows, noise_sd = int(rng.integers(2, 101)), _scale(rng)
    loc, prior = _float32(rng.normal(0, 1, size)), _covariance(rng, size, _scale(rng, -0.5, 1.0))
    x = _float32(rng.normal(0, 1, (num_rows, size)))
    weights = rng.multivariate_normal(_double(loc), _double(prior))
    y = _float32(rng.normal(_double(x) @ weights, noise_sd))

    def model() -> None:
        weights = pyro.sample("weights", dist.MultivariateNormal(loc, prior))
        with pyro.plate("row", num_rows):
            pyro.sample("y", dist.Normal(x @ weights, noise_sd), obs=y)

    design = _double(x)
    covariance = design @ _double(prior) @ design.T + noise_sd**2 * np.eye(num_rows)

    return model, _normal(_double(y), design @ _double(loc), covariance)


def normal_hierarchy(rng: Generator, size: int) -> Conjugate:
    """`size` groups around a common mean, all scales known."""
    num_rows, loc = int(rng.integers(1, 11)), _loc(rng)
    mean_sd, group_sd, noise_sd = _scale(rng, 0.0, 1.0), _scale(rng), _scale(rng)
    means = rng.normal(rng.normal(loc, mean_sd), group_sd, size)
    y = _float32(rng.normal(means, noise_sd, (num_rows, size)))

    def model() -> None:
        mean = pyro.sample("mean", dist.Normal(loc, mean_sd))
        with pyro.plate("group", size, dim=-1):
            group_mean = pyro.sample("group_mean", dist.Normal(mean, group_sd))
            with pyro.plate("row", num_rows, dim=-2):
                pyro.sample("y", dist.Normal(group_mean, noise_sd), obs=y)

    covariance = mean_sd**2 + np.kron(
        np.eye(size), group_sd**2 * np.ones((num_rows, num_rows)) + noise_sd**2 * np.eye(num_rows)
    )

    return model, _normal(_double(y).T.ravel(), np.full(y.numel(), loc), covariance)


def crossed_effects(rng: Generator, size: int) -> Conjugate:
    """A table of `size` rows: an effect of each row, one of each column, and what they have in common."""
    num_columns = int(rng.integers(1, 9))
    common_sd, row_sd, column_sd, noise_sd = _scale(rng, 0.0, 1.0), _scale(rng), _scale(rng), _scale(rng)
    effects = rng.normal(0, row_sd, (size, 1)) + rng.normal(0, column_sd, num_columns)
    y = _float32(rng.normal(rng.normal(0, common_sd) + effects, noise_sd))

    def model() -> None:
        common = pyro.sample("common", dist.Normal(0.0, common_sd))
        rows, columns = pyro.plate("rows", size, dim=-2), pyro.plate("columns", num_columns, dim=-1)
        with rows:
            row = pyro.sample("row", dist.Normal(0.0, row_sd))
        with columns:
            column = pyro.sample("column", dist.Normal(0.0, column_sd))
        with rows, columns:
            pyro.sample("y", dist.Normal(common + row + column, noise_sd), obs=y)

    same_row = np.kron(np.eye(size), np.ones((num_columns, num_columns)))
    same_column = np.kron(np.ones((size, size)), np.eye(num_columns))
    covariance = common_sd**2 + row_sd**2 * same_row + column_sd**2 * same_column + noise_sd**2 * np.eye(y.numel())

    return model, _normal(_double(y).ravel(), np.zeros(y.numel()), covariance)


def random_walk(rng: Generator, size: int) -> Conjugate:
    """`size` steps of a random walk, seen with noise; scales known."""
    step_sd, noise_sd = _scale(rng), _scale(rng)
    y = _float32(rng.normal(rng.normal(0, step_sd, size).cumsum(), noise_sd))

    def model() -> None:
        position = torch.zeros(())
        for t in pyro.markov(range(size)):
            position = pyro.sample(f"position_{t}", dist.Normal(position, step_sd))
            pyro.sample(f"y_{t}", dist.Normal(position, noise_sd), obs=y[t])

    steps = np.arange(1, size + 1)
    covariance = step_sd**2 * np.minimum(steps, steps[:, None]) + noise_sd**2 * np.eye(size)

    return model, _normal(_double(y), np.zeros(size), covariance)


# ---- normal, variance unknown ----


def regression(rng: Generator, size: int) -> Conjugate:
    """`size` weights and the variance: normal-inverse-gamma."""
    num_rows, shape, rate, prior_sd = int(rng.integers(2, 61)), _shape(rng, 1.5), _scale(rng), _scale(rng, -0.5, 1.0)
    x = _float32(rng.normal(0, 1, (num_rows, size)))
    sd = np.sqrt(rate / rng.gamma(shape))
    y = _float32(rng.normal(_double(x) @ rng.normal(0, prior_sd * sd, size), sd))

    def model() -> None:
        variance = pyro.sample("variance", dist.InverseGamma(shape, rate))
        with pyro.plate("column", size):
            weights = pyro.sample("weights", dist.Normal(0.0, prior_sd * variance.sqrt()))
        with pyro.plate("row", num_rows):
            pyro.sample("y", dist.Normal(x @ weights, variance.sqrt()), obs=y)

    design = _double(x)

    return model, _student(_double(y), 0.0, np.eye(num_rows) + prior_sd**2 * design @ design.T, shape, rate)


def normal_gamma(rng: Generator, size: int) -> Conjugate:
    """Mean and precision of each of `size` groups."""
    num_rows, loc = int(rng.integers(1, 31)), _loc(rng)
    shape, rate, strength = _shape(rng, 1.5), _scale(rng), _scale(rng, -1.5, 0.5)
    precision = rng.gamma(shape, 1 / rate, size)
    means = rng.normal(loc, 1 / np.sqrt(strength * precision))
    y = _float32(rng.normal(means, 1 / np.sqrt(precision), (num_rows, size)))

    def model() -> None:
        with pyro.plate("group", size, dim=-1):
            precision = pyro.sample("precision", dist.Gamma(shape, rate))
            mean = pyro.sample("mean", dist.Normal(loc, (strength * precision).rsqrt()))
            with pyro.plate("row", num_rows, dim=-2):
                pyro.sample("y", dist.Normal(mean, precision.rsqrt()), obs=y)

    spread = np.eye(num_rows) + 1 / strength

    return model, sum(_student(column, loc, spread, shape, rate) for column in _double(y).T)


def variance_hierarchy(rng: Generator, size: int) -> Conjugate:
    """`size` groups around a common mean; one unknown variance scales everything."""
    num_rows, shape, rate = int(rng.integers(1, 11)), _shape(rng, 1.5), _scale(rng)
    mean_ratio, group_ratio = _scale(rng, 0.0, 1.0), _scale(rng)
    sd = np.sqrt(rate / rng.gamma(shape))
    means = rng.normal(rng.normal(0, mean_ratio * sd), group_ratio * sd, size)
    y = _float32(rng.normal(means, sd, (num_rows, size)))

    def model() -> None:
        sd = pyro.sample("variance", dist.InverseGamma(shape, rate)).sqrt()
        mean = pyro.sample("mean", dist.Normal(0.0, mean_ratio * sd))
        with pyro.plate("group", size, dim=-1):
            group_mean = pyro.sample("group_mean", dist.Normal(mean, group_ratio * sd))
            with pyro.plate("row", num_rows, dim=-2):
                pyro.sample("y", dist.Normal(group_mean, sd), obs=y)

    within = group_ratio**2 * np.ones((num_rows, num_rows)) + np.eye(num_rows)
    spread = mean_ratio**2 + np.kron(np.eye(size), within)

    return model, _student(_double(y).T.ravel(), 0.0, spread, shape, rate)


def normal_variances(rng: Generator, size: int) -> Conjugate:
    """Variances of `size` groups of known mean."""
    num_rows, shape, rate = int(rng.integers(1, 31)), _shape(rng, 1.5), _scale(rng)
    y = _float32(rng.normal(0, np.sqrt(rate / rng.gamma(shape, size=size)), (num_rows, size)))

    def model() -> None:
        with pyro.plate("group", size, dim=-1):
            variance = pyro.sample("variance", dist.InverseGamma(shape, rate))
            with pyro.plate("row", num_rows, dim=-2):
                pyro.sample("y", dist.Normal(0.0, variance.sqrt()), obs=y)

    return model, sum(_student(column, 0.0, np.eye(num_rows), shape, rate) for column in _double(y).T)


# ---- counts, shares, waiting times ----


def beta_binomial(rng: Generator, size: int) -> Conjugate:
    """Shares of `size` groups, from counts of different totals."""
    a, b, total = _shape(rng), _shape(rng), rng.integers(1, 201, size)
    y = rng.binomial(total, rng.beta(a, b, size))
    totals, counts = _float32(total), _float32(y)

    def model() -> None:
        with pyro.plate("group", size):
            share = pyro.sample("share", dist.Beta(a, b))
            pyro.sample("y", dist.Binomial(totals, share), obs=counts)

    log_choose = gammaln(total + 1) - gammaln(y + 1) - gammaln(total - y + 1)

    return model, float((log_choose + betaln(a + y, b + total - y) - betaln(a, b)).sum())


def beta_negative_binomial(rng: Generator, size: int) -> Conjugate:
    """Shares of successes of `size` groups, each counted until a number of failures."""
    a, b, num_rows, failures = _shape(rng), _shape(rng, 1.5), int(rng.integers(1, 11)), int(rng.integers(1, 11))
    share = rng.beta(a, b, size)
    y = rng.negative_binomial(failures, 1 - share, (num_rows, size))
    counts = _float32(y)

    def model() -> None:
        with pyro.plate("group", size, dim=-1):
            share = pyro.sample("share", dist.Beta(a, b))
            with pyro.plate("row", num_rows, dim=-2):
                pyro.sample("y", dist.NegativeBinomial(float(failures), share), obs=counts)

    log_choose = gammaln(y + failures) - gammaln(y + 1) - gammaln(failures)
    log_ratio = betaln(a + y.sum(0), b + num_rows * failures) - betaln(a, b)

    return model, float(log_choose.sum() + log_ratio.sum())


def gamma_poisson(rng: Generator, size: int) -> Conjugate:
    """Rates of `size` groups with different exposures."""
    shape, rate = _shape(rng), _scale(rng, -1.0, 0.5)
    exposure = _float32(rng.uniform(0.5, 20.0, size))
    y = rng.poisson(_double(exposure) * rng.gamma(shape, 1 / rate, size))
    counts = _float32(y)

    def model() -> None:
        with pyro.plate("group", size):
            intensity = pyro.sample("intensity", dist.Gamma(shape, rate))
            pyro.sample("y", dist.Poisson(intensity * exposure), obs=counts)

    share = rate / (rate + _double(exposure))

    return model, float(stats.nbinom.logpmf(y, shape, share).sum())


def gamma_exponential(rng: Generator, size: int) -> Conjugate:
    """Rates of the waiting times of `size` groups."""
    shape, rate, num_rows = _shape(rng), _scale(rng), int(rng.integers(1, 31))
    y = _float32(rng.exponential(1 / rng.gamma(shape, 1 / rate, size), (num_rows, size)))

    def model() -> None:
        with pyro.plate("group", size, dim=-1):
            intensity = pyro.sample("intensity", dist.Gamma(shape, rate))
            with pyro.plate("row", num_rows, dim=-2):
                pyro.sample("y", dist.Exponential(intensity), obs=y)

    log_ratio = gammaln(shape + num_rows) - gammaln(shape) + shape * np.log(rate)

    return model, float((log_ratio - (shape + num_rows) * np.log(rate + _double(y).sum(0))).sum())


def dirichlet_multinomial(rng: Generator, size: int) -> Conjugate:
    """Shares of `size + 1` categories in one to four groups."""
    num_groups, total = int(rng.integers(1, 1 + min(4, 20 // size))), int(rng.integers(5, 201))
    concentration = _float32(rng.uniform(0.5, 5.0, size + 1))
    y = rng.multinomial(total, rng.dirichlet(_double(concentration), num_groups))
    counts = _float32(y)

    def model() -> None:
        with pyro.plate("group", num_groups):
            shares = pyro.sample("shares", dist.Dirichlet(concentration))
            pyro.sample("y", dist.Multinomial(total, shares), obs=counts)

    return model, float(stats.dirichlet_multinomial.logpmf(y, _double(concentration), total).sum())


def pareto_uniform(rng: Generator, size: int) -> Conjugate:
    """Upper ends of `size` uniform distributions: posteriors that start with a jump at the largest observation."""
    least, shape, num_rows = _scale(rng), _shape(rng, 1.5), int(rng.integers(1, 11))
    upper = least * (1 + rng.pareto(shape, size))
    y = _float32(rng.uniform(0, upper, (num_rows, size)))

    def model() -> None:
        with pyro.plate("group", size, dim=-1):
            upper = pyro.sample("upper", dist.Pareto(least, shape))
            with pyro.plate("row", num_rows, dim=-2):
                pyro.sample("y", dist.Uniform(0.0, upper), obs=y)

    start = np.maximum(least, _double(y).max(0))
    log_ratio = np.log(shape) + shape * np.log(least) - np.log(shape + num_rows)

    return model, float((log_ratio - (shape + num_rows) * np.log(start)).sum())


# Families with the largest of their sizes: up to 20 dimensions.
FAMILIES: dict[str, tuple[Callable[[Generator, int], Conjugate], int]] = {
    "normal means": (normal_means, 20),
    "normal vector": (normal_vector, 20),
    "normal regression": (normal_regression, 20),
    "normal hierarchy": (normal_hierarchy, 19),
    "crossed effects": (crossed_effects, 11),
    "random walk": (random_walk, 20),
    "regression": (regression, 19),
    "normal-gamma": (normal_gamma, 10),
    "variance hierarchy": (variance_hierarchy, 18),
    "normal variances": (normal_variances, 20),
    "beta-binomial": (beta_binomial, 20),
    "beta-negative-binomial": (beta_negative_binomial, 20),
    "gamma-Poisson": (gamma_poisson, 20),
    "gamma-exponential": (gamma_exponential, 20),
    "Dirichlet-multinomial": (dirichlet_multinomial, 20),
    "Pareto-uniform": (pareto_uniform, 3),
}


def conjugate_model(family: str, seed: int) -> Conjugate:
    """The model of a family that a seed makes, with its log evidence."""
    make, max_size = FAMILIES[family]
    rng = np.random.default_rng([list(FAMILIES).index(family), seed])

    return make(rng, int(rng.integers(1, max_size + 1)))


# ---- random hyperparameters, and the two densities behind most evidences ----


def _loc(rng: Generator) -> float:
    return round(float(rng.normal(0, 3)), 2)


def _scale(rng: Generator, low: float = -0.5, high: float = 0.5) -> float:
    """A positive number, its decimal logarithm uniform."""
    return round(float(10 ** rng.uniform(low, high)), 3)


def _shape(rng: Generator, least: float = 0.5) -> float:
    return round(float(rng.uniform(least, 6.0)), 2)


def _covariance(rng: Generator, size: int, scale: float) -> Tensor:
    """A dense one, `(size, size)`: correlations of both signs, standard deviations around `scale`."""
    factor = rng.normal(0, 1, (size, size + 3))

    return _float32(scale**2 * factor @ factor.T / (size + 3))


def _normal(y: np.ndarray, loc: np.ndarray, covariance: np.ndarray) -> float:
    return float(stats.multivariate_normal.logpdf(y, loc, covariance))


def _student(y: np.ndarray, loc: float, spread: np.ndarray, shape: float, rate: float) -> float:
    """Of `y ~ Normal(loc, variance * spread)` with `variance ~ InverseGamma(shape, rate)`."""
    return float(stats.multivariate_t.logpdf(y, np.full(len(y), loc), rate / shape * spread, df=2 * shape))


def _float32(values: Any) -> Tensor:
    return torch.as_tensor(np.asarray(values), dtype=torch.float32)


def _double(values: Tensor) -> np.ndarray:
    return values.double().numpy()

"""Flat priors with a proper posterior: no log evidence, good draws."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import special
from torch.distributions import constraints

from .base import Kind, undefined
from .integrals import data, exact, integrate_log
from .propriety import flat, sharp_x, sharp_y, spread_y
from .support import schools_given_tau, schools_sd, schools_y

propriety = Kind("propriety")


def moments(x, log_f) -> tuple[float, float]:
    """Mean and sd of x under a density on an even grid."""
    weight = np.exp(log_f - log_f.max())
    weight = weight / weight.sum()
    mean = weight @ x

    return float(mean), math.sqrt(weight @ (x - mean) ** 2)


def log_gamma_moments(shape: float) -> tuple[float, float]:
    """Of the logarithm of a gamma number with rate one."""
    return float(special.digamma(shape)), math.sqrt(special.polygamma(1, shape))


def mean_posterior():
    y = exact(spread_y)
    return {"m": (y.mean(), 0.5 / math.sqrt(len(y)))}


@propriety.model(1, undefined, posterior=mean_posterior)
def flat_mean() -> None:
    """A mean."""
    m = pyro.sample("m", flat())
    with pyro.plate("n", 12):
        pyro.sample("y", dist.Normal(m, 0.5), obs=spread_y)


def mean_and_sd_posterior():
    """Student-t for the mean; the log sd is half of the logarithm of an inverse chi-square."""
    y = exact(spread_y)
    n, squares = len(y), ((y - y.mean()) ** 2).sum()
    log_mean, log_sd = log_gamma_moments((n - 1) / 2)
    mean_sd = math.sqrt(squares / (n - 1) / n * (n - 1) / (n - 3))
    return {"m": (y.mean(), mean_sd), "u": (0.5 * (math.log(squares / 2) - log_mean), 0.5 * log_sd)}


@propriety.model(2, undefined, posterior=mean_and_sd_posterior)
def flat_mean_and_log_sd() -> None:
    """Mean and log sd, both flat."""
    m = pyro.sample("m", flat())
    u = pyro.sample("u", flat())
    with pyro.plate("n", 12):
        pyro.sample("y", dist.Normal(m, u.exp()), obs=spread_y)


def weights_posterior():
    x, y = exact(sharp_x), exact(sharp_y)
    return {"w": (np.linalg.lstsq(x, y, rcond=None)[0], 0.02 * np.sqrt(np.diag(np.linalg.inv(x.T @ x))))}


@propriety.model(3, undefined, posterior=weights_posterior)
def flat_regression() -> None:
    """Three weights with posterior sds of 0.001."""
    w = pyro.sample("w", flat(3))
    with pyro.plate("n", 400):
        pyro.sample("y", dist.Normal((sharp_x * w.unsqueeze(-2)).sum(-1), 0.02), obs=sharp_y)


def weights_and_sd_posterior():
    x, y = exact(sharp_x), exact(sharp_y)
    fit, (n, dim) = np.linalg.lstsq(x, y, rcond=None)[0], x.shape
    squares = ((y - x @ fit) ** 2).sum()
    log_mean, log_sd = log_gamma_moments((n - dim) / 2)
    sds = np.sqrt(np.diag(np.linalg.inv(x.T @ x)) * squares / (n - dim - 2))
    return {"w": (fit, sds), "u": (0.5 * (math.log(squares / 2) - log_mean), 0.5 * log_sd)}


@propriety.model(4, undefined, posterior=weights_and_sd_posterior)
def flat_regression_log_sd() -> None:
    """Weights and log sd, all flat: the textbook regression, whose far rays mislead."""
    w = pyro.sample("w", flat(3))
    u = pyro.sample("u", flat())
    with pyro.plate("n", 400):
        loc = (sharp_x * w.unsqueeze(-2)).sum(-1)
        pyro.sample("y", dist.Normal(loc, u.exp().unsqueeze(-1)), obs=sharp_y)


flat_k = data([3, 0, 2, 4, 1])


@propriety.model(1, undefined, posterior=lambda: {"r": (11 / 5, math.sqrt(11) / 5)})
def flat_rate() -> None:
    """A Poisson rate, flat on the half line."""
    r = pyro.sample("r", dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("n", 5):
        pyro.sample("k", dist.Poisson(r), obs=flat_k)


def logit_posterior():
    (mean, sd), (other_mean, other_sd) = log_gamma_moments(7), log_gamma_moments(13)
    return {"a": (mean - other_mean, math.hypot(sd, other_sd))}


@propriety.model(1, undefined, posterior=logit_posterior)
def flat_logit() -> None:
    """A flat logit, Haldane's prior, and both outcomes seen."""
    a = pyro.sample("a", flat())
    pyro.sample("k", dist.Binomial(20, logits=a), obs=torch.tensor(7.0))


def schools_posterior():
    """By a grid of log tau: the mean given tau is normal."""
    u = np.linspace(-12, 9, 4201)
    y, variances = exact(schools_y), np.exp(2 * u)[:, None] + exact(schools_sd) ** 2
    weight = np.exp(schools_given_tau(2 * u, 1e12) + u - integrate_log(schools_given_tau(2 * u, 1e12) + u, u))
    weight = weight / weight.sum()
    mean, variance = (y / variances).sum(1) / (1 / variances).sum(1), 1 / (1 / variances).sum(1)
    mu = weight @ mean
    return {"mu": (mu, math.sqrt(weight @ (variance + (mean - mu) ** 2)))}


@propriety.model(10, undefined, posterior=schools_posterior)
def schools_flat() -> None:
    """Eight schools with a flat mean and a flat tau on the half line, as in the book."""
    mu = pyro.sample("mu", flat())
    tau = pyro.sample("tau", dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("school", 8):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * eta, schools_sd), obs=schools_y)

"""Supports of observations that move with a latent, and correlations that round to one."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import special, stats
from torch.distributions import AffineTransform

from .integrals import integrate_log
from .support import support

ONE = torch.tensor(1.0)


def log_quadrature(log_density, low: float, high: float) -> float:
    x = np.linspace(low, high, 200_001)[1:-1]

    return integrate_log(log_density(x), x)


@support.model(1, lambda: log_quadrature(lambda s: math.log(3) + 4 * np.log(s) - s, 0, 1))
def pareto_scale() -> None:
    """An observation that no scale above it can have made."""
    pyro.sample("y", dist.Pareto(pyro.sample("scale", dist.Gamma(2.0, 1.0)), 3.0), obs=ONE)


def shifted(name: str, base, log_density) -> None:
    @support.model(1, lambda: log_quadrature(lambda t: stats.norm.logpdf(t) + log_density(1 - t), -9, 1), name)
    def model() -> None:
        """A waiting time after a start that is not known, and never after its end."""
        start = pyro.sample("start", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.TransformedDistribution(base, [AffineTransform(start, ONE)]), obs=ONE)


shifted("shifted_exponential", dist.Exponential(5.0), lambda x: stats.expon.logpdf(x, scale=0.2))
shifted("shifted_log_normal", dist.LogNormal(0.0, 0.5), lambda x: stats.lognorm.logpdf(x, 0.5))
shifted("shifted_gamma", dist.Gamma(3.0, 2.0), lambda x: stats.gamma.logpdf(x, 3, scale=0.5))


@support.model(2, lambda: stats.norm.logpdf(1.0, 0.0, math.sqrt(2.0)))
def correlation_unseen() -> None:
    """Most of LKJ(0.05) rounds to a correlation of one, about which nothing is known."""
    pyro.sample("factor", dist.LKJCholesky(2, torch.tensor(0.05)))
    pyro.sample("y", dist.Normal(pyro.sample("x", dist.Normal(0.0, 1.0)), 1.0), obs=ONE)


def correlation_truth() -> float:
    log_prior = lambda u: 0.1 * (2 * math.log(2) - 2 * np.abs(u) - 2 * np.log1p(np.exp(-2 * np.abs(u))))  # noqa: E731
    log_likelihood = lambda u: stats.norm.logpdf(1.0, np.tanh(u), 2.0)  # noqa: E731
    constant = (2 * 0.1 - 1) * math.log(2) + special.betaln(0.1, 0.1)

    return log_quadrature(lambda u: log_prior(u) + log_likelihood(u), -150, 150) - constant


@support.model(1, correlation_truth)
def correlation_seen() -> None:
    """The same with a correlation that is measured, roughly."""
    factor = pyro.sample("factor", dist.LKJCholesky(2, torch.tensor(0.1)))
    pyro.sample("y", dist.Normal(factor[1, 0], 2.0), obs=ONE)

"""Honest posteriors: what must be right, and must not be doubted."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from conjugate import conjugate_model
from scipy import special

from .base import Kind
from .integrals import Gaussians, data, exact, gamma_poisson, normal, normal_mean, normal_regression, rotation

controls = Kind("controls")


# ---- Gaussians ----


def gaussian(name: str, loc, sds, seed: int) -> None:
    sds = np.asarray(sds, float)
    why = f"A plain Gaussian with sds of {sds.min():g} to {sds.max():g}, rotated."
    log_prob = Gaussians([1.0], [np.broadcast_to(loc, sds.shape)], [sds], [rotation(len(sds), seed)])
    controls.density(len(sds), 0.0, name, why)(log_prob)


gaussian("gaussian_3d", 1.0, [0.5, 1.0, 2.0], 59)
gaussian("gaussian_20d", -2.0, np.geomspace(0.1, 3.0, 20), 62)
gaussian("condition_1e8_8d", 0.0, np.geomspace(1e-4, 1.0, 8), 60)
gaussian("condition_1e12_4d", 3.0, np.geomspace(1e-5, 10.0, 4), 61)

# ---- one and two latents ----

mean_y, counts = data([1.2, 0.4, 2.1, 1.7, 0.9]), data([3, 0, 2, 5, 1, 2])


@controls.model(1, lambda: normal_mean(exact(mean_y), 0.0, 2.0, 1.0))
def normal_mean_5() -> None:
    """Five readings, a normal mean."""
    m = pyro.sample("m", dist.Normal(0.0, 2.0))
    with pyro.plate("n", 5):
        pyro.sample("y", dist.Normal(m, 1.0), obs=mean_y)


@controls.model(1, special.betaln(8, 4) - special.betaln(1, 1))
def coin_7_of_10() -> None:
    """Ten tosses, a uniform prior."""
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    with pyro.plate("n", 10):
        pyro.sample("y", dist.Bernoulli(p), obs=torch.tensor([1.0] * 7 + [0.0] * 3))


@controls.model(1, lambda: gamma_poisson(exact(counts), 2.0, 0.5))
def poisson_rate() -> None:
    """Six small counts."""
    r = pyro.sample("r", dist.Gamma(2.0, 0.5))
    with pyro.plate("n", 6):
        pyro.sample("k", dist.Poisson(r), obs=counts)


@controls.model(2, lambda: normal(3.0, 0, math.sqrt(2e8 + 1e-6)))
def sum_ridge_1e4() -> None:
    """Two latents of width 1e4 whose sum is known to 0.001."""
    a = pyro.sample("a", dist.Normal(0.0, 1e4))
    b = pyro.sample("b", dist.Normal(0.0, 1e4))
    pyro.sample("y", dist.Normal(a + b, 1e-3), obs=torch.tensor(3.0))


# ---- more latents ----

wide_y = data(np.random.default_rng(54).normal(0, 50.0, 20))


@controls.model(20, lambda: normal(exact(wide_y), 0, math.sqrt(1e8 + 0.01)).sum())
def wide_prior_20d() -> None:
    """Twenty means, priors 1e5 times as wide as the posterior."""
    x = pyro.sample("x", dist.Normal(0.0, 1e4).expand([20]).to_event(1))
    pyro.sample("y", dist.Normal(x, 0.1).to_event(1), obs=wide_y)


@controls.model(10, lambda: 10 * normal(40.0, 0, math.sqrt(1.01)))
def prior_conflict_10d() -> None:
    """Data forty prior sds away."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([10]).to_event(1))
    pyro.sample("y", dist.Normal(x, 0.1).to_event(1), obs=torch.full((10,), 40.0))


rng = np.random.default_rng(550)
design = data(rng.normal(size=(60, 5)))
response = data(exact(design) @ rng.normal(size=5) + 0.7 * rng.normal(size=60))


@controls.model(5, lambda: normal_regression(exact(response), exact(design), np.zeros(5), 2.0, 0.7))
def regression_5d() -> None:
    """A regression with known noise."""
    w = pyro.sample("w", dist.Normal(0.0, 2.0).expand([5]).to_event(1))
    with pyro.plate("n", 60):
        pyro.sample("y", dist.Normal((design * w.unsqueeze(-2)).sum(-1), 0.7), obs=response)


# ---- random conjugate models, of seeds that the calibration does not use ----


def conjugate(family: str, seed: int, dim: int) -> None:
    name = f"{family} {seed}".replace(" ", "_").lower()
    model, log_evidence = conjugate_model(family, seed)
    model.__doc__ = "A random conjugate model."
    controls.model(dim, log_evidence, name)(model)


conjugate("normal hierarchy", 101, 15)
conjugate("regression", 102, 7)
conjugate("Dirichlet-multinomial", 103, 4)
conjugate("beta-negative-binomial", 104, 12)
conjugate("variance hierarchy", 105, 17)

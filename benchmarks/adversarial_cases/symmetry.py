"""Components and signs that may trade places, and some that may only nearly."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import special

from .base import Kind
from .integrals import data, exact, integrate_log, integrate_log_2d, normal, normal_mean

symmetry = Kind("symmetry")


# ---- two means ----

two_y = data(np.concatenate([np.random.default_rng(9).normal(-4, 1, 10), np.random.default_rng(10).normal(4, 1, 10)]))


def two_means_truth(locs, sds, weight: float) -> float:
    y, grid = exact(two_y), np.linspace(-9, 9, 1801)
    first, second = (np.exp(normal(y[:, None], grid, sd)) for sd in sds)
    log_f = normal(grid, locs[0], 1.0)[:, None] + normal(grid, locs[1], 1.0)
    for one, other in zip(first, second, strict=True):
        log_f += np.log(weight * one[:, None] + (1 - weight) * other)
    return integrate_log_2d(log_f, grid, grid)


def two_means(name: str, locs=(0.0, 0.0), sds=(1.0, 1.0), weight: float = 0.5, constant: float = -3e4) -> None:
    @symmetry.model(2, lambda: two_means_truth(locs, sds, weight) + constant, name)
    def model() -> None:
        """Two means whose orders differ by less than the rounding of a large constant."""
        mu = pyro.sample("mu", dist.Normal(torch.tensor(locs), 1.0).to_event(1))
        parts, weights = dist.Normal(mu.unsqueeze(-2), torch.tensor(sds)), torch.tensor([weight, 1 - weight])
        with pyro.plate("n", 20):
            pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weights), parts), obs=two_y)
        pyro.factor("constant", torch.tensor(constant))


two_means("nearly_exchangeable_prior", locs=(-0.05, 0.05))
two_means("nearly_exchangeable_prior_2", locs=(-0.018, 0.018))
two_means("nearly_exchangeable_sds", sds=(1.0, 1.004))
two_means("nearly_exchangeable_weights", weight=0.501, constant=-1e5)
two_means("exchangeable_constant")

photons = data(
    np.concatenate([np.random.default_rng(310).normal(-3, 1, 4020), np.random.default_rng(311).normal(3, 1, 3980)])
)


def photons_truth() -> float:
    """Around both orders."""
    logs, y = [], exact(photons)
    for sign in (-1, 1):
        grids = [side * 3 * sign + np.linspace(-0.15, 0.15, 61) for side in (1, -1)]
        first, second = (np.exp(normal(y, grid[:, None], 1.0)) for grid in grids)
        log_f = np.array([[np.log(0.503 * one + 0.497 * other).sum() for other in second] for one in first])
        prior = normal(grids[0], 0, 5)[:, None] + normal(grids[1], 0, 5)
        logs.append(integrate_log_2d(log_f + prior, *grids))
    return special.logsumexp(logs)


@symmetry.model(2, photons_truth)
def nearly_equal_weights_8000() -> None:
    """Weights of 0.503 and 0.497: many data tell the orders apart, by a few nats of 17,000."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
    with pyro.plate("n", len(photons)):
        weights = dist.Categorical(torch.tensor([0.503, 0.497]))
        pyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu.unsqueeze(-2), 1.0)), obs=photons)


# ---- three components, by enumeration ----

three_k, three_y = data([0, 1, 2, 9, 11, 8, 30, 27]), data([-5.2, -4.8, -5.6, 0.1, -0.3, 0.4, 4.7, 5.3, 5.1])


def assignments(size: int) -> np.ndarray:
    """All ways to deal data to three components, `(3^size, size)`."""
    return np.array(list(itertools.product(range(3), repeat=size)))


def poisson_mixture_truth(rates) -> float:
    k, dealt, logs = exact(three_k), assignments(8), 0.0
    for j, rate in enumerate(rates):
        number, total = (dealt == j).sum(1), (dealt == j) @ k
        logs = logs + 2 * math.log(rate) + special.gammaln(2 + total) - (2 + total) * np.log(rate + number)
    return special.logsumexp(logs) - special.gammaln(k + 1).sum() - 8 * math.log(3)


def poisson_mixture(name: str, rates) -> None:
    @symmetry.model(3, lambda: poisson_mixture_truth(rates), name)
    def model() -> None:
        """Three Poisson rates: six orders, all alike or nearly so."""
        with pyro.plate("c", 3):
            r = pyro.sample("r", dist.Gamma(2.0, torch.tensor(rates)))
        with pyro.plate("n", 8):
            pyro.sample("k", dist.MixtureSameFamily(dist.Categorical(torch.ones(3) / 3), dist.Poisson(r)), obs=three_k)


poisson_mixture("poisson_mixture_3", (0.2, 0.2, 0.2))
poisson_mixture("poisson_mixture_nearly", (0.2, 0.2, 0.21))


def three_means_truth(weights) -> float:
    y, dealt, logs = exact(three_y), assignments(9), 0.0
    for j, weight in enumerate(weights):
        mine = dealt == j
        number, total = mine.sum(1), mine @ y
        inner = -0.5 * (mine @ y**2) + 0.5 * total**2 / (number + 0.04) - 0.5 * np.log1p(25 * number)
        logs = logs + number * math.log(weight) + inner
    return special.logsumexp(logs) - 4.5 * math.log(2 * math.pi)


def three_means(name: str, weights) -> None:
    @symmetry.model(3, lambda: three_means_truth(weights), name)
    def model() -> None:
        """Three means, two of them with equal weights: two orders are alike, not six."""
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0).expand([3]).to_event(1))
        parts = dist.Normal(mu.unsqueeze(-2), 1.0)
        with pyro.plate("n", 9):
            pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(torch.tensor(weights)), parts), obs=three_y)


three_means("three_means_two_alike", (0.3, 0.3, 0.4))
three_means("three_means_nearly_alike", (0.333, 0.333, 0.334))

# ---- groups with nearly the same data ----

group_y = data(0.7 + np.random.default_rng(540).normal(size=30))


@symmetry.model(2, lambda: normal_mean(exact(group_y), 0, 1, 1) + normal_mean(exact(group_y) + 1e-3, 0, 1, 1) - 2e4)
def nearly_same_groups() -> None:
    """Two groups whose data differ by 0.001: two plateless latents that are almost, not quite, the same."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("n", 30):
        pyro.sample("y", dist.Normal(a, 1.0), obs=group_y)
        pyro.sample("z", dist.Normal(b, 1.0), obs=group_y.double() + 1e-3)
    pyro.factor("constant", torch.tensor(-2e4))


# ---- signs ----

abilities = np.random.default_rng(71).normal(size=16)
answers = data(np.random.default_rng(72).binomial(5, 1 / (1 + np.exp(-2.0 * abilities))))


def item_truth(loc: float) -> float:
    """Abilities by Gauss-Hermite, the slope on a grid."""
    a = np.linspace(-24, 24, 4801)
    x, w = np.polynomial.hermite_e.hermegauss(180)
    eta, log_f = a[:, None] * x, normal(a, loc, 3.0)
    for k, count in zip(*np.unique(exact(answers), return_counts=True), strict=True):
        each = math.log(special.comb(5, k)) - k * np.logaddexp(0, -eta) - (5 - k) * np.logaddexp(0, eta)
        log_f = log_f + count * special.logsumexp(each, axis=1, b=w / w.sum())
    return integrate_log(log_f, a)


def item_response(name: str, loc: float) -> None:
    @symmetry.model(17, lambda: item_truth(loc), name)
    def model() -> None:
        """A slope and sixteen abilities whose signs turn together, or nearly so."""
        a = pyro.sample("a", dist.Normal(loc, 3.0))
        with pyro.plate("p", 16):
            t = pyro.sample("t", dist.Normal(0.0, 1.0))
            pyro.sample("k", dist.Binomial(5, logits=a * t), obs=answers)


item_response("irt_sign_17d", 0.0)
item_response("irt_nearly_sign_17d", 0.6)


def product_truth() -> float:
    """y ~ Normal(a b, 0.3), b integrated out."""
    a = np.linspace(-12, 12, 24_001)
    n, y = 5, np.array([1.9, 2.2, 1.7, 2.1, 2.0])
    mean, inner = y.mean(), 0.09 / n
    rest = normal(y, mean, 0.3).sum() - normal(0.0, 0.0, math.sqrt(inner))
    return rest + integrate_log(normal(a, 0.05, 1.0) + normal(mean, 0.1 * a, np.sqrt(a**2 + inner)), a)


@symmetry.model(2, product_truth)
def product_sign_nearly() -> None:
    """Only a product is seen, and the priors prefer one sign a little."""
    a = pyro.sample("a", dist.Normal(0.05, 1.0))
    b = pyro.sample("b", dist.Normal(0.1, 1.0))
    with pyro.plate("n", 5):
        pyro.sample("y", dist.Normal(a * b, 0.3), obs=torch.tensor([1.9, 2.2, 1.7, 2.1, 2.0]).double())

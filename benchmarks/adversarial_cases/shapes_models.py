"""Hierarchies, latent variables, discrete latents, Gaussian processes."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import special
from scipy.integrate import trapezoid

from .base import Kind
from .integrals import LOG_2PI, data, exact, half_cauchy_log, integrate_log, integrate_log_2d, normal
from .support import schools_given_tau, schools_sd, schools_y

shapes = Kind("shapes")


# ---- hierarchies ----

sparse_y = data([0.3, -0.5, 0.1, 6.2, -0.9, 0.4, -7.5, 0.2, 0.05, 1.1])


def horseshoe_truth() -> float:
    """Local scales integrated one by one, for each global one."""
    u, v = np.linspace(-14, 12, 521), np.linspace(-16, 16, 1601)
    log_f, variances = half_cauchy_log(u, 1.0), np.exp(2 * (u[:, None] + v)) + 1.0
    for y in exact(sparse_y):
        inner = half_cauchy_log(v, 1.0) - 0.5 * y * y / variances - 0.5 * np.log(variances) - 0.5 * LOG_2PI
        log_f = log_f + np.log(trapezoid(np.exp(inner), v, axis=1))
    return integrate_log(log_f, u)


@shapes.model(21, horseshoe_truth)
def horseshoe_means() -> None:
    """Ten means with horseshoe priors, centred: funnels with heavy tails."""
    t = pyro.sample("t", dist.HalfCauchy(1.0))
    with pyro.plate("j", 10):
        scale = pyro.sample("lam", dist.HalfCauchy(1.0))
        b = pyro.sample("b", dist.Normal(0.0, t * scale))
        pyro.sample("y", dist.Normal(b, 1.0), obs=sparse_y)


random_k = data([0, 2, 1, 9, 0, 0, 4, 1, 0, 17, 3, 0])


def random_effects_truth() -> float:
    mu, u = np.linspace(-6, 6, 161), np.linspace(-6, 4, 161)
    x, w = np.polynomial.hermite_e.hermegauss(200)
    eta, log_f = mu[:, None, None] + np.exp(u)[None, :, None] * x, np.zeros((161, 161))
    for k, count in zip(*np.unique(exact(random_k), return_counts=True), strict=True):
        each = k * eta - np.exp(eta) - special.gammaln(k + 1)
        log_f += count * special.logsumexp(each, axis=-1, b=w / w.sum())
    return integrate_log_2d(log_f + normal(mu, 0, 2)[:, None] + normal(u, -1, 1.0), mu, u)


@shapes.model(14, random_effects_truth)
def poisson_random_effects() -> None:
    """Overdispersed counts, centred."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    u = pyro.sample("l", dist.Normal(-1.0, 1.0))
    with pyro.plate("g", 12):
        e = pyro.sample("e", dist.Normal(mu, u.exp()))
        pyro.sample("k", dist.Poisson(e.exp()), obs=random_k)


def schools_log_normal_truth() -> float:
    u = np.linspace(-25, 18, 4301)
    return integrate_log(schools_given_tau(2 * u, 25.0) + normal(u, 0.0, 3.0), u)


@shapes.model(10, schools_log_normal_truth)
def schools_log_normal() -> None:
    """Eight schools, centred, with a scale between them that may be next to nothing."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.LogNormal(0.0, 3.0))
    with pyro.plate("school", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, schools_sd), obs=schools_y)


# ---- latent variables ----

errors_rng = np.random.default_rng(50)
true_x = errors_rng.normal(size=25)
noisy_x = data(true_x + 0.5 * errors_rng.normal(size=25))
noisy_y = data(1.0 - 2.0 * true_x + 0.3 * errors_rng.normal(size=25))


def errors_truth() -> float:
    """For each slope, y given the noisy x is normal, and so is the intercept."""
    b, x, y, n = np.linspace(-40, 40, 16_001), exact(noisy_x), exact(noisy_y), 25
    variance = 0.2 * b**2 + 0.09
    residual = y - b[:, None] * x / 1.25
    precision = n / variance + 1 / 25
    quadratic = (residual**2).sum(1) / variance - (residual.sum(1) / variance) ** 2 / precision
    log_f = -0.5 * (n * LOG_2PI + n * np.log(variance) + np.log(25 * precision) + quadratic)
    return normal(x, 0, math.sqrt(1.25)).sum() + integrate_log(log_f + normal(b, 0, 5.0), b)


@shapes.model(27, errors_truth)
def errors_in_variables() -> None:
    """A regression whose covariate has errors."""
    a = pyro.sample("a", dist.Normal(0.0, 5.0))
    b = pyro.sample("b", dist.Normal(0.0, 5.0))
    with pyro.plate("n", 25):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("xo", dist.Normal(x, 0.5), obs=noisy_x)
        pyro.sample("y", dist.Normal(a + b * x, 0.3), obs=noisy_y)


# ---- discrete latents ----

flipped = data([2.1, -1.9, 2.3, 1.8, -2.2, -2.0])


def flips_truth() -> float:
    x = np.linspace(-15, 15, 60_001)
    sides = sum(np.logaddexp(normal(y, x, 0.2), normal(y, -x, 0.2)) - math.log(2) for y in exact(flipped))
    return integrate_log(normal(x, 0.3, 3.0) + sides, x)


@shapes.model(1, flips_truth)
def discrete_sign_flips() -> None:
    """Six discrete signs, enumerated, and a magnitude."""
    x = pyro.sample("x", dist.Normal(0.3, 3.0))
    with pyro.plate("n", 6):
        s = pyro.sample("s", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal((2 * s - 1) * x, 0.2), obs=flipped)


disasters = data([4, 5, 4, 1, 0, 4, 3, 4, 0, 6, 3, 3, 1, 0, 1, 1, 0, 0, 3, 1, 0, 2])


def disasters_truth() -> float:
    k, n = exact(disasters), 22
    logs = [
        sum(special.gammaln(2 + part.sum()) - (2 + part.sum()) * math.log(1 + len(part)) for part in (k[:t], k[t:]))
        for t in range(n)
    ]
    return special.logsumexp(logs) - math.log(n) - special.gammaln(k + 1).sum()


@shapes.model(2, disasters_truth)
def coal_discrete_change() -> None:
    """A discrete change point, enumerated."""
    t = pyro.sample("t", dist.Categorical(torch.ones(22) / 22), infer={"enumerate": "parallel"})
    a = pyro.sample("a", dist.Gamma(2.0, 1.0))
    b = pyro.sample("b", dist.Gamma(2.0, 1.0))
    early = torch.arange(22) < t.unsqueeze(-1)
    rate = torch.where(early, a.unsqueeze(-1) * torch.ones(22), b.unsqueeze(-1) * torch.ones(22))
    pyro.sample("k", dist.Poisson(rate).to_event(1), obs=disasters)


labelled = data([1, 1, 0, 1, 1, 0, 1])


def labels_truth() -> float:
    """All labels; given them, two beta integrals."""
    y, logs = exact(labelled), []
    for labels in itertools.product((0, 1), repeat=7):
        heads = np.array([(y * (np.array(labels) == j)).sum() for j in (0, 1)])
        number = np.array([labels.count(j) for j in (0, 1)])
        prior = (number * np.log([0.6, 0.4])).sum()
        logs.append(prior + special.betaln(0.5 + heads, 0.5 + number - heads).sum() - 2 * special.betaln(0.5, 0.5))
    return special.logsumexp(logs)


@shapes.model(2, labels_truth)
def two_coins_enumerated() -> None:
    """Which of two coins was tossed, enumerated: beta priors with their mass at the ends."""
    p = pyro.sample("p", dist.Beta(0.5, 0.5).expand([2]).to_event(1))
    with pyro.plate("n", 7):
        coin = pyro.sample("coin", dist.Bernoulli(0.4), infer={"enumerate": "parallel"})
        probability = torch.where(coin > 0.5, p[..., 1], p[..., 0])
        pyro.sample("y", dist.Bernoulli(probability), obs=labelled)


# ---- a Gaussian process with two explanations ----

gp_rng = np.random.default_rng(7)
gp_x = data(np.sort(gp_rng.uniform(-5, 5, 9)))
gp_y = data(np.sin(1.8 * exact(gp_x)) + 0.25 * gp_rng.normal(size=9))


def gp_truth() -> float:
    length, noise, x = np.linspace(-6, 6, 301), np.linspace(-9, 4, 261), exact(gp_x)
    log_f = np.empty((301, 261))
    for i, u in enumerate(length):
        values, vectors = np.linalg.eigh(np.exp(-0.5 * (x[:, None] - x) ** 2 * math.exp(-2 * u)))
        variances = np.maximum(values, 0) + np.exp(2 * noise)[:, None] + 1e-5
        log_f[i] = -0.5 * ((vectors.T @ exact(gp_y)) ** 2 / variances + np.log(variances) + LOG_2PI).sum(1)
    return integrate_log_2d(log_f + normal(length, 0.0, 1.2)[:, None] + normal(noise, -2.0, 1.2), length, noise)


@shapes.model(2, gp_truth)
def gp_two_explanations() -> None:
    """A short wave without noise, or noise."""
    u = pyro.sample("l", dist.Normal(0.0, 1.2))
    s = pyro.sample("s", dist.Normal(-2.0, 1.2))
    distance = (gp_x[:, None] - gp_x).square()
    noise = (2 * s).exp()[..., None, None] + 1e-5
    covariance = torch.exp(-0.5 * distance / (2 * u).exp()[..., None, None]) + noise * torch.eye(9)
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(9), covariance), obs=gp_y)

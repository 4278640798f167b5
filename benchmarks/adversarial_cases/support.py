"""Mass at the edge of a support, where transforms saturate and numbers underflow; wide priors, circles, simplices."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import special

from .base import Kind
from .integrals import (
    LOG_2PI,
    data,
    dirichlet_categorical,
    exact,
    gamma_log,
    gamma_poisson,
    half_cauchy_log,
    integrate_log,
    integrate_log_2d,
    log_multinomial,
    normal,
)

support = Kind("support")


# ---- beta, Dirichlet, Kumaraswamy ----


def coins(name: str, shape: float, y) -> None:
    heads, n = float(y.sum()), len(y)
    truth = special.betaln(shape + heads, shape + n - heads) - special.betaln(shape, shape)

    @support.model(1, truth, name)
    def model() -> None:
        """All tosses alike, and a prior with its mass at both ends: closer to one than a number can be."""
        a = torch.as_tensor(shape, dtype=y.dtype)
        p = pyro.sample("p", dist.Beta(a, a))
        with pyro.plate("n", n):
            pyro.sample("y", dist.Bernoulli(p), obs=y)


coins("beta_0.1_all_successes", 0.1, torch.ones(5))
coins("beta_0.05_all_failures", 0.05, torch.zeros(9))
coins("beta_0.05_double", 0.05, torch.ones(6, dtype=torch.float64))
coins("beta_0.02_all_successes", 0.02, torch.ones(4))
coins("beta_0.05_both", 0.05, torch.tensor([1.0, 0, 1, 1, 0, 1]))


@support.model(1, math.log(0.1) + special.betaln(1 + 7 / 0.1, 0.1))
def kumaraswamy_0_1() -> None:
    """Seven of seven successes under Kumaraswamy(0.1, 0.1), which piles up at both ends."""
    p = pyro.sample("p", dist.Kumaraswamy(0.1, 0.1))
    with pyro.plate("n", 7):
        pyro.sample("y", dist.Bernoulli(p), obs=torch.ones(7))


@support.model(8, 0.0)
def beta_flat_8d() -> None:
    """A prior alone, eight times Beta(0.3, 0.3)."""
    pyro.sample("p", dist.Beta(0.3, 0.3).expand([8]).to_event(1))
    pyro.factor("y", torch.tensor(0.0))


words = data([7, 0, 0, 3, 0, 0, 0, 0, 0, 0])


@support.model(9, lambda: log_multinomial(exact(words)) + dirichlet_categorical(exact(words), 0.1), "dirichlet_0.1")
def sparse_topic() -> None:
    """Ten words, of which two occur."""
    p = pyro.sample("p", dist.Dirichlet(torch.full((10,), 0.1)))
    pyro.sample("k", dist.Multinomial(10, probs=p), obs=words)


@support.model(4, dirichlet_categorical(np.array([12.0, 0, 0, 0, 0]), 0.02), "dirichlet_0.02")
def one_word() -> None:
    """Five words, of which one occurs, and a concentration of 0.02."""
    p = pyro.sample("p", dist.Dirichlet(torch.full((5,), 0.02)))
    pyro.sample("k", dist.Multinomial(12, probs=p), obs=torch.tensor([12.0, 0, 0, 0, 0]))


document = data([5, 0, 1, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0])


@support.model(
    28,
    lambda: 2 * (log_multinomial(exact(document)) + dirichlet_categorical(exact(document), 0.05)),
    "dirichlet_0.05_two_docs",
)
def two_documents() -> None:
    """Two documents of fifteen words, most of which do not occur."""
    with pyro.plate("d", 2):
        p = pyro.sample("p", dist.Dirichlet(torch.full((15,), 0.05)))
        pyro.sample("k", dist.Multinomial(15, probs=p), obs=torch.stack([document, document.flip(0)]))


@support.model(5, math.log(0.4**5 - 0.35**5))
def simplex_band() -> None:
    """A band of the simplex with sharp edges."""
    p = pyro.sample("p", dist.Dirichlet(torch.ones(6)))
    inside = (p[..., 0] > 0.6) & (p[..., 0] < 0.65)
    pyro.factor("band", torch.where(inside, 0.0, -math.inf))


@support.model(3, math.log(0.7**3 - 0.68**3))
def simplex_stripe() -> None:
    """A narrower band, of the last component: all sticks depend on it."""
    p = pyro.sample("p", dist.Dirichlet(torch.ones(4)))
    inside = (p[..., 3] > 0.3) & (p[..., 3] < 0.32)
    pyro.factor("band", torch.where(inside, 0.0, -math.inf))


pairs = data([[1.0, 0.98], [-0.4, -0.41], [0.2, 0.21], [-1.3, -1.32], [0.7, 0.69]])


def lkj_truth() -> float:
    """By the inverse hyperbolic tangent of the correlation."""
    t, y, shape = np.linspace(-60, 60, 240_001), exact(pairs), 0.1
    log_edge = 2 * math.log(2) - 2 * np.abs(t) - 2 * np.log1p(np.exp(-2 * np.abs(t)))  # log of 1 - rho^2
    with np.errstate(over="ignore"):
        # The quadratic form by sum and difference: 1 - rho is too small to subtract.
        plus, minus = y.sum(1) ** 2, (y[:, 0] - y[:, 1]) ** 2
        sums = 0.25 * (plus.sum() * (1 + np.exp(-2 * t)) + minus.sum() * (1 + np.exp(2 * t)))
    prior = shape * log_edge - (2 * shape - 1) * math.log(2) - special.betaln(shape, shape)
    return integrate_log(prior - 0.5 * sums - 2.5 * log_edge - 5 * LOG_2PI, t)


@support.model(1, lkj_truth)
def lkj_edge() -> None:
    """A correlation near one, under LKJ(0.1), which piles up at -1 and 1."""
    factor = pyro.sample("L", dist.LKJCholesky(2, 0.1))
    with pyro.plate("n", 5):
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), scale_tril=factor), obs=pairs)


# ---- gamma and its kin ----


@support.model(1, gamma_poisson(np.zeros(8), 0.02, 1.0), "gamma_0.02_zero_counts")
def zero_counts() -> None:
    """A rate that is next to nothing: two fifths of the prior underflow in single precision."""
    r = pyro.sample("rate", dist.Gamma(0.02, 1.0))
    with pyro.plate("n", 8):
        pyro.sample("k", dist.Poisson(r), obs=torch.zeros(8))


@support.model(6, 6 * gamma_poisson(np.zeros(1), 0.1, 1.0, 3.0), "gamma_0.1_zero_counts_x6")
def zero_counts_6() -> None:
    """Six rates next to nothing."""
    with pyro.plate("g", 6):
        r = pyro.sample("rate", dist.Gamma(0.1, 1.0))
        pyro.sample("k", dist.Poisson(3 * r), obs=torch.zeros(6))


@support.model(1, gamma_poisson(np.array([0.0, 0, 1, 0]), 0.001, 0.001), "gamma_0.001_one_count")
def one_count() -> None:
    """The BUGS prior on a rate, and one event."""
    r = pyro.sample("rate", dist.Gamma(1e-3, 1e-3))
    with pyro.plate("n", 4):
        pyro.sample("k", dist.Poisson(r), obs=torch.tensor([0.0, 0.0, 1.0, 0.0]))


bugs_y = data(np.random.default_rng(6).normal(3.0, 2.0, 25))


def bugs_truth() -> float:
    u, y = np.linspace(-6, 4, 20_001), exact(bugs_y)
    n, squares = len(y), ((y - y.mean()) ** 2).sum()
    inner = 1 / (n * np.exp(u))
    given_mean = -0.5 * n * (LOG_2PI - u) - 0.5 * np.exp(u) * squares + 0.5 * (LOG_2PI + np.log(inner))
    return integrate_log(given_mean + normal(y.mean(), 0, np.sqrt(1e4 + inner)) + gamma_log(u, 1e-3, 1e-3), u)


@support.model(2, bugs_truth, "bugs_gamma_0.001")
def bugs_gamma() -> None:
    """The BUGS prior on a precision: hundreds of orders of magnitude."""
    tau = pyro.sample("tau", dist.Gamma(1e-3, 1e-3))
    mu = pyro.sample("mu", dist.Normal(0.0, 100.0))
    with pyro.plate("n", len(bugs_y)):
        pyro.sample("y", dist.Normal(mu, tau.rsqrt()), obs=bugs_y)


def inverse_gamma_truth() -> float:
    squares, a = (exact(bugs_y) ** 2).sum(), 0.001
    return (
        -12.5 * LOG_2PI
        + a * math.log(a)
        - special.gammaln(a)
        + special.gammaln(a + 12.5)
        - (a + 12.5) * math.log(a + squares / 2)
    )


@support.model(1, inverse_gamma_truth, "inverse_gamma_0.001")
def inverse_gamma() -> None:
    """A variance with the vaguest of the usual priors."""
    v = pyro.sample("v", dist.InverseGamma(1e-3, 1e-3))
    with pyro.plate("n", 25):
        pyro.sample("y", dist.Normal(0.0, v.sqrt()), obs=bugs_y)


schools_y, schools_sd = data([28, 8, -3, 7, -1, 1, 18, 12]), data([15, 10, 16, 11, 9, 11, 10, 18])


def schools_given_tau(log_variance, mu_variance: float):
    """Log likelihoods of between-school variances, the schools and a normal mean integrated out."""
    y, variances = exact(schools_y), np.exp(log_variance)[:, None] + exact(schools_sd) ** 2
    weight, mean = (1 / variances).sum(1) + 1 / mu_variance, (y / variances).sum(1)
    quadratic = (y**2 / variances).sum(1) - mean**2 / weight
    return -0.5 * (quadratic + np.log(variances).sum(1) + math.log(mu_variance) + np.log(weight) + 8 * LOG_2PI)


def schools_inverse_gamma(a: float) -> None:
    def truth() -> float:
        u = np.linspace(-14, 30, 40_001)
        return integrate_log(schools_given_tau(u, 400.0) + gamma_log(-u, a, a), u)

    @support.model(10, truth, f"schools_inverse_gamma_{a}")
    def model() -> None:
        """Eight schools, the variance between them with a vague inverse gamma."""
        mu = pyro.sample("mu", dist.Normal(0.0, 20.0))
        t2 = pyro.sample("t2", dist.InverseGamma(a, a))
        with pyro.plate("s", 8):
            th = pyro.sample("th", dist.Normal(mu, t2.sqrt()))
            pyro.sample("y", dist.Normal(th, schools_sd), obs=schools_y)


schools_inverse_gamma(0.001)
schools_inverse_gamma(0.1)

# ---- wide priors, half lines, boxes ----

wide_y = data(np.random.default_rng(520).normal(0.0, 0.02, 10))


def half_cauchy_truth() -> float:
    u, squares = np.linspace(-12, 40, 52_001), (exact(wide_y) ** 2).sum()
    return integrate_log(-5 * LOG_2PI - 10 * u - 0.5 * squares * np.exp(-2 * u) + half_cauchy_log(u, 1e6), u)


@support.model(1, half_cauchy_truth)
def half_cauchy_1e6() -> None:
    """A scale of 0.02 under a prior whose median is a million."""
    s = pyro.sample("s", dist.HalfCauchy(1e6))
    with pyro.plate("n", 10):
        pyro.sample("y", dist.Normal(0.0, s), obs=wide_y)


def wide_log_normal_truth() -> float:
    u = np.linspace(-130, 12, 142_001)
    return integrate_log(2 * u - 5 * np.exp(u) - math.log(2) + normal(u, 0.0, 10.0), u)


@support.model(1, wide_log_normal_truth)
def log_normal_wide() -> None:
    """A rate over twenty orders of magnitude, and two events."""
    r = pyro.sample("r", dist.LogNormal(0.0, 10.0))
    with pyro.plate("n", 5):
        pyro.sample("k", dist.Poisson(r), obs=torch.tensor([0.0, 2.0, 0.0, 0.0, 0.0]))


def half_normal_truth() -> float:
    """Normal times half-normal: a normal tail."""
    sd = 1 / math.sqrt(1 + 1 / 0.01)
    return math.log(2) + normal(-0.5, 0, math.sqrt(1.01)) + special.log_ndtr(sd * -0.5 / 0.01)


@support.model(1, half_normal_truth)
def half_normal_pressed() -> None:
    """A reading five sds on the wrong side of zero presses a positive number to its bound."""
    x = pyro.sample("x", dist.HalfNormal(1.0))
    pyro.sample("y", dist.Normal(x, 0.1), obs=torch.tensor(-0.5))


@support.model(5, 0.0)
def narrow_in_cube_5d() -> None:
    """A point of width 1e-4 in the unit cube."""
    x = pyro.sample("x", dist.Uniform(0.0, 1.0).expand([5]).to_event(1))
    pyro.sample("y", dist.Normal(x, 1e-4).to_event(1), obs=torch.tensor([0.5, 0.31, 0.62, 0.77, 0.15]))


@support.model(8, 8 * math.log(0.5))
def corner_in_cube_8d() -> None:
    """Mass in a corner of the cube."""
    x = pyro.sample("x", dist.Uniform(0.0, 1.0).expand([8]).to_event(1))
    pyro.sample("y", dist.Normal(x, 0.01).to_event(1), obs=torch.tensor([0.0, 1, 0, 1, 1, 0, 0, 1]))


effect_y = data(np.random.default_rng(51).normal(3.0, 0.8, 20))


def effect_truth() -> float:
    d, u, y = np.linspace(0, 12, 4001), np.linspace(-3, 4, 2001), exact(effect_y)
    s, n = np.exp(u)[None], len(y)
    log_f = -0.5 * n * LOG_2PI - n * u - 0.5 * (y @ y / s**2 - 2 * d[:, None] * y.sum() / s + n * d[:, None] ** 2)
    prior = math.log(2 / (math.pi * 0.707)) - np.log1p((d / 0.707) ** 2)
    return integrate_log_2d(log_f + prior[:, None] + normal(u, 0, 2.0), d, u)


@support.model(2, effect_truth)
def one_sided_cauchy_effect() -> None:
    """A one-sided Bayesian t test."""
    d = pyro.sample("d", dist.HalfCauchy(0.707))
    u = pyro.sample("l", dist.Normal(0.0, 2.0))
    with pyro.plate("n", 20):
        pyro.sample("y", dist.Normal(d * u.exp(), u.exp()), obs=effect_y)


# ---- circles ----

doubled_y, turned_y = data([2.9, -3.0, 3.1, -2.6, 2.2]), data([3.0, -3.1, 2.8, -2.9, 3.14, -3.0])


def log_von_mises(x, loc, k):
    return k * np.cos(x - loc) - LOG_2PI - np.log(special.ive(0, k)) - k


def circle_truth(y, loc: float, prior: float, times: int, k: float) -> float:
    t = np.linspace(-np.pi, np.pi, 200_001)
    return integrate_log(log_von_mises(t, loc, prior) + sum(log_von_mises(v, times * t, k) for v in exact(y)), t)


def circle(name: str, y, loc: float, prior: float, times: int, k: float) -> None:
    @support.model(1, lambda: circle_truth(y, loc, prior, times, k), name)
    def model() -> None:
        """A circle, not a line: the ends at -pi and pi are one point, and multiples of an angle have several modes."""
        t = pyro.sample("t", dist.VonMises(loc, prior))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.VonMises(times * t, k), obs=y)


circle("von_mises_doubled", doubled_y, 0.0, 1.0, 2, 4.0)
circle("von_mises_tripled", doubled_y, 1.0, 0.5, 3, 6.0)
circle("von_mises_at_pi", turned_y, 3.1, 2.0, 1, 20.0)

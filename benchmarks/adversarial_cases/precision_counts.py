"""Log densities that are small differences of large numbers: counts, sizes, concentrations, kernels, constants."""

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
    exact,
    gamma_log,
    gamma_poisson,
    half_cauchy_log,
    integrate_log,
    integrate_log_2d,
    log_multinomial,
    normal,
)

precision = Kind("precision")


# ---- Poisson, binomial, multinomial ----


def poisson_counts(name: str, k, shape: float, rate: float) -> None:
    k = data(k)

    @precision.model(1, lambda: gamma_poisson(exact(k), shape, rate), name)
    def model() -> None:
        """Each log density is a difference of numbers as large as the count times its logarithm."""
        mean = pyro.sample("rate", dist.Gamma(shape, rate))
        with pyro.plate("n", len(k)):
            pyro.sample("k", dist.Poisson(mean), obs=k)


poisson_counts("poisson_1000_x1000", np.random.default_rng(301).poisson(1030, 1000), 4.0, 0.004)
poisson_counts("poisson_huge_counts", np.random.default_rng(1).poisson(9.5e4, 200), 4.0, 4e-5)
poisson_counts("poisson_counts_2e6", np.random.default_rng(500).poisson(2.1e6, 60), 2.0, 1e-6)
poisson_counts("poisson_counts_8e6", np.random.default_rng(501).poisson(8.2e6, 30), 3.0, 3e-7)


def binomial_counts(name: str, trials: int, k, alpha: float, beta: float) -> None:
    k = data(k)

    def truth() -> float:
        y, n = exact(k), len(k)
        choices = special.gammaln(trials + 1) - special.gammaln(y + 1) - special.gammaln(trials - y + 1)
        ends = special.betaln(alpha + y.sum(), beta + n * trials - y.sum()) - special.betaln(alpha, beta)
        return choices.sum() + ends

    @precision.model(1, truth, name)
    def model() -> None:
        """Binomial coefficients of many trials."""
        p = pyro.sample("p", dist.Beta(alpha, beta))
        with pyro.plate("n", len(k)):
            pyro.sample("k", dist.Binomial(trials, p), obs=k)


binomial_counts("binomial_1000_x500", 1000, np.random.default_rng(302).binomial(1000, 0.31, 500), 1.0, 1.0)
binomial_counts("binomial_3e6_trials", 3_000_000, np.random.default_rng(502).binomial(3_000_000, 0.27, 25), 2.0, 5.0)
binomial_counts("beta_big_concentrations", 2_000_000, np.random.default_rng(503).binomial(2_000_000, 0.3, 10), 3e5, 7e5)

multinomial_k = data(np.random.default_rng(504).multinomial(5_000_000, [0.1, 0.2, 0.3, 0.4]))


def multinomial_truth() -> float:
    k, prior = exact(multinomial_k), np.array([2.0, 3.0, 4.0, 5.0])
    parts = special.gammaln(prior + k) - special.gammaln(prior)
    return log_multinomial(k) + special.gammaln(14.0) - special.gammaln(14.0 + k.sum()) + parts.sum()


@precision.model(3, multinomial_truth)
def multinomial_5e6() -> None:
    """Five million draws of four kinds in one multinomial coefficient."""
    p = pyro.sample("p", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0, 5.0])))
    pyro.sample("k", dist.Multinomial(5_000_000, probs=p), obs=multinomial_k)


# ---- sizes, degrees of freedom, concentrations ----

negbin_k = data(np.random.default_rng(303).poisson(20, 100))


def log_negbin(k: float, mean, size):
    """Stable for any size: the gamma functions as a sum of logarithms."""
    growth = sum(np.log1p(j / size) for j in range(int(k)))
    return growth + k * np.log(mean) - special.gammaln(k + 1) - (k + size) * np.log1p(mean / size)


def negbin_truth(log_prior, top: float) -> float:
    u, mean = np.linspace(-11, top, 801), np.linspace(15, 27, 241)
    values, counts = np.unique(exact(negbin_k), return_counts=True)
    log_f = sum(c * log_negbin(k, mean[:, None], np.exp(u)[None]) for k, c in zip(values, counts, strict=True))
    mean_prior = gamma_log(np.log(mean), 2.0, 0.05) - np.log(mean)
    return integrate_log_2d(log_f + mean_prior[:, None] + log_prior(u), mean, u)


def negbin(name: str, prior: dist.Distribution, truth) -> None:
    @precision.model(2, truth, name)
    def model() -> None:
        """Counts without overdispersion: the size goes to infinity, and two log-gammas of it cancel."""
        m = pyro.sample("m", dist.Gamma(2.0, 0.05))
        r = pyro.sample("r", prior)
        with pyro.plate("n", len(negbin_k)):
            pyro.sample("k", dist.GammaPoisson(r, r / m), obs=negbin_k)


negbin("negbin_size_wide", dist.LogNormal(4.0, 3.0), lambda: negbin_truth(lambda u: normal(u, 4.0, 3.0), 25.0))
negbin("negbin_halfcauchy_size", dist.HalfCauchy(2.0), lambda: negbin_truth(lambda u: half_cauchy_log(u, 2.0), 40.0))

inflated_k = data(np.where(np.arange(60) < 22, 0, np.random.default_rng(505).poisson(9, 60)))


def inflated_truth() -> float:
    """The gate integrated term by term: how many zeros it made; then a grid of mean and size."""
    k, u, mean = exact(inflated_k), np.linspace(-9, 36, 601), np.linspace(5, 15, 241)
    n, n0 = len(k), int((k == 0).sum())
    j = np.arange(n0 + 1)
    gate = special.betaln(1 + j, 1 + n - j) + np.log(special.comb(n0, j))
    size = np.exp(u)[None]
    zero = log_negbin(0.0, mean[:, None], size)
    log_f = special.logsumexp(gate[:, None, None] + (n0 - j)[:, None, None] * zero, axis=0)
    for value, count in zip(*np.unique(k[k > 0], return_counts=True), strict=True):
        log_f = log_f + count * log_negbin(value, mean[:, None], size)
    prior = (gamma_log(np.log(mean), 2.0, 0.1) - np.log(mean))[:, None] + half_cauchy_log(u, 2.0)
    return integrate_log_2d(log_f + prior, mean, u)


@precision.model(3, inflated_truth)
def zero_inflated_negbin() -> None:
    """A zero-inflated negative binomial of counts that are Poisson, with a heavy-tailed size."""
    gate = pyro.sample("gate", dist.Beta(1.0, 1.0))
    m = pyro.sample("m", dist.Gamma(2.0, 0.1))
    r = pyro.sample("r", dist.HalfCauchy(2.0))
    with pyro.plate("n", len(inflated_k)):
        zinb = dist.ZeroInflatedNegativeBinomial(r, logits=m.log() - r.log(), gate=gate)
        pyro.sample("k", zinb, obs=inflated_k)


student_y = data(np.random.default_rng(304).normal(0.3, 1.0, 500))


def log_student(y, df):
    """Standard Student-t, stable for any number of degrees of freedom."""
    half = df / 2
    series = 0.5 * np.log(half) - 1 / (8 * half) + 1 / (192 * half**3)
    ratio = np.where(half > 1e3, series, special.gammaln(half + 0.5) - special.gammaln(half))
    return ratio - 0.5 * np.log(df * math.pi) - 0.5 * (df + 1) * np.log1p(y**2 / df)


def student_flat_truth() -> float:
    m, df = np.linspace(-0.1, 0.7, 161), np.linspace(2.0, 5000.0, 4999)
    log_f = sum(log_student(y - m[:, None], df[None]) for y in exact(student_y))
    return integrate_log_2d(log_f + normal(m, 0, 2.0)[:, None] - math.log(4998.0), m, df)


@precision.model(2, student_flat_truth)
def student_df_flat() -> None:
    """Normal data: degrees of freedom up to 5,000, whose log-gammas cancel."""
    m = pyro.sample("m", dist.Normal(0.0, 2.0))
    v = pyro.sample("v", dist.Uniform(2.0, 5000.0))
    with pyro.plate("n", 500):
        pyro.sample("y", dist.StudentT(v, m, 1.0), obs=student_y)


def student_huge_truth() -> float:
    u = np.linspace(-6, 26, 6401)
    log_f = sum(log_student(y, np.exp(u)) for y in exact(student_y))
    return integrate_log(log_f + normal(u, 10.0, 2.0), u)


@precision.model(1, student_huge_truth)
def student_df_huge() -> None:
    """Degrees of freedom around 1e3 to 1e6, and beyond."""
    v = pyro.sample("v", dist.LogNormal(10.0, 2.0))
    with pyro.plate("n", 500):
        pyro.sample("y", dist.StudentT(v, 0.0, 1.0), obs=student_y)


beta_binomial_k = data(np.random.default_rng(506).binomial(50, 0.3, 60))


def beta_binomial_truth() -> float:
    u = np.linspace(-12, 33, 9001)
    c = np.exp(u)
    log_f = normal(u, 9.0, 3.0)
    for k in exact(beta_binomial_k).astype(int):
        rises = sum(np.log(0.3 * c + j) for j in range(k)) + sum(np.log(0.7 * c + j) for j in range(50 - k))
        log_f = log_f + math.log(special.comb(50, k)) + rises - sum(np.log(c + j) for j in range(50))
    return integrate_log(log_f, u)


@precision.model(1, beta_binomial_truth)
def beta_binomial_concentration() -> None:
    """Binomial data in a beta-binomial: the concentration goes to infinity, and beta functions of it cancel."""
    c = pyro.sample("c", dist.LogNormal(9.0, 3.0))
    with pyro.plate("n", 60):
        pyro.sample("k", dist.BetaBinomial(0.3 * c, 0.7 * c, 50), obs=beta_binomial_k)


gamma_y = data(np.random.default_rng(507).gamma(1e5, 1 / 25.0, 40))


def gamma_shape_truth() -> float:
    y, shape = exact(gamma_y), 1e5
    total = 2.0 + len(y) * shape
    likelihood = ((shape - 1) * np.log(y) - special.gammaln(shape)).sum()
    return likelihood + 2 * math.log(0.01) + special.gammaln(total) - total * math.log(0.01 + y.sum())


@precision.model(1, gamma_shape_truth)
def gamma_shape_1e5() -> None:
    """Gamma readings of shape 1e5: terms of a million each."""
    r = pyro.sample("r", dist.Gamma(2.0, 0.01))
    with pyro.plate("n", 40):
        pyro.sample("y", dist.Gamma(1e5, r), obs=gamma_y)


# ---- probabilities next to zero and one ----

rare_k = data([1, 0, 2, 0, 1])


def rare_truth() -> float:
    a, k = np.linspace(-60, 20, 80_001), exact(rare_k)
    choices = sum(math.log(special.comb(1_000_000, int(x), exact=True)) for x in k)
    return integrate_log(choices + k.sum() * a - 5e6 * np.logaddexp(0, a) + normal(a, -12.0, 4.0), a)


@precision.model(1, rare_truth)
def rare_events() -> None:
    """Four events in five million: a logit of -14."""
    a = pyro.sample("a", dist.Normal(-12.0, 4.0))
    with pyro.plate("n", 5):
        pyro.sample("k", dist.Binomial(1_000_000, logits=a), obs=rare_k)


def near_one_truth() -> float:
    a = np.linspace(-20, 50, 70_001)
    log_f = math.log(300_000) - 299_999 * np.logaddexp(0, -a) - np.logaddexp(0, a)
    return integrate_log(log_f + normal(a, 14.0, 3.0), a)


@precision.model(1, near_one_truth)
def probability_near_one() -> None:
    """One failure in 300,000, the probability computed by a sigmoid: single precision has no digits left below one."""
    a = pyro.sample("a", dist.Normal(14.0, 3.0))
    pyro.sample("k", dist.Binomial(300_000, probs=torch.sigmoid(a)), obs=torch.tensor(299_999.0))


# ---- Gaussian processes whose kernel is nearly singular ----

gp_x = data(np.linspace(-3, 3, 40))
gp_y = data(np.sin(exact(gp_x)) + 0.01 * np.random.default_rng(320).normal(size=40))


def gp_log_likelihood(length: float, noise_sd) -> np.ndarray:
    x, y = exact(gp_x), exact(gp_y)
    values, vectors = np.linalg.eigh(np.exp(-0.5 * ((x[:, None] - x) / length) ** 2))
    variances = np.maximum(values, 0)[None] + noise_sd[:, None] ** 2
    return -0.5 * ((vectors.T @ y) ** 2 / variances + np.log(variances) + LOG_2PI).sum(1)


def gp_covariance(length, noise_sd):
    kernel = torch.exp(-0.5 * (gp_x[:, None] - gp_x).square() / length[..., None, None].square())
    return kernel + noise_sd[..., None, None].square() * torch.eye(40)


def gp_smooth_truth() -> float:
    u, s = np.linspace(-2.5, 4, 261), np.linspace(-9, 0, 361)
    log_f = np.stack([gp_log_likelihood(math.exp(a), np.exp(s)) for a in u])
    return integrate_log_2d(log_f + normal(u, 0.5, 0.7)[:, None] + normal(s, -4.5, 0.7), u, s)


@precision.model(2, gp_smooth_truth)
def gp_smooth_40() -> None:
    """A smooth kernel of 40 points with little noise: the Cholesky factor has no digits left."""
    u = pyro.sample("l", dist.Normal(0.5, 0.7))
    s = pyro.sample("s", dist.Normal(-4.5, 0.7))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(40), gp_covariance(u.exp(), s.exp())), obs=gp_y)


def gp_noise_truth() -> float:
    s = np.linspace(-11, 0, 2201)
    return integrate_log(gp_log_likelihood(1.5, np.exp(s)) + normal(s, -5.0, 0.7), s)


@precision.model(1, gp_noise_truth)
def gp_known_length() -> None:
    """The same with a known length, longer than the data like."""
    s = pyro.sample("s", dist.Normal(-5.0, 0.7))
    covariance = gp_covariance(torch.tensor(1.5), s.exp())
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(40), covariance), obs=gp_y)

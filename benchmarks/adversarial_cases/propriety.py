"""Posteriors without an integral, and proper ones that look as if they had none."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import special
from torch.distributions import constraints

from .base import Kind, no_integral
from .integrals import LOG_2PI, data, exact, gamma_log, integrate_log, integrate_log_2d, normal
from .support import schools_sd, schools_y

propriety = Kind("propriety")


def flat(size: int = 0) -> dist.ImproperUniform:
    if size:
        return dist.ImproperUniform(constraints.real_vector, (), (size,))
    return dist.ImproperUniform(constraints.real, (), ())


# ---- no integral ----


@propriety.density(2, no_integral)
def endless_parabola(z):
    """A valley of constant width along a parabola: straight rays leave it."""
    return -0.5 * ((z[:, 1] - z[:, 0].square()) / 0.5).square()


@propriety.density(2, no_integral)
def flat_direction(z):
    """Only a sum is seen."""
    return -0.5 * (z[:, 0] + z[:, 1] - 1.0).square()


@propriety.density(3, no_integral)
def flat_diagonal_3d(z):
    """Only two differences are seen."""
    return -0.5 * (z[:, 1:] - z[:, :-1]).square().sum(-1)


@propriety.density(1, no_integral)
def harmonic_tail(z):
    """A density that falls off like 1 / |z|: too slowly."""
    return -0.5 * torch.log1p(z[:, 0].square())


@propriety.model(2, no_integral)
def constant_data() -> None:
    """Equal readings: the integral diverges where the scale goes to zero, though both priors are proper."""
    m = pyro.sample("m", dist.Normal(0.0, 10.0))
    s = pyro.sample("s", dist.HalfCauchy(1.0))
    with pyro.plate("n", 4):
        pyro.sample("y", dist.Normal(m, s), obs=torch.full((4,), 3.0))


@propriety.model(1, no_integral)
def constant_zeros() -> None:
    """The same with a known mean, a half-normal scale and two zeros."""
    s = pyro.sample("s", dist.HalfNormal(1.0))
    with pyro.plate("n", 2):
        pyro.sample("y", dist.Normal(0.0, s), obs=torch.zeros(2))


@propriety.model(2, no_integral)
def one_observation_flat() -> None:
    """Location and scale, both with flat priors, from one reading."""
    m = pyro.sample("m", flat())
    s = pyro.sample("s", dist.ImproperUniform(constraints.positive, (), ()))
    pyro.sample("y", dist.Normal(m, s), obs=torch.tensor(1.3))


logistic_x = data([-2.0, -1.5, -0.3, 0.2, 1.0, 1.7])
logistic_y = torch.tensor([0.0, 0, 0, 1, 1, 1])


def logistic(prior) -> None:
    w = pyro.sample("w", prior)
    with pyro.plate("n", 6):
        pyro.sample("y", dist.Bernoulli(logits=w[..., :1] + w[..., 1:] * logistic_x), obs=logistic_y)


@propriety.model(2, no_integral)
def separable_logistic_flat() -> None:
    """Separable labels and flat weights: the likelihood rises for ever."""
    logistic(flat(2))


@propriety.model(1, no_integral)
def factor_undoes_prior() -> None:
    """A factor that cancels the prior."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("undo", 0.5 * x.square())


@propriety.model(1, no_integral)
def factor_outgrows_prior() -> None:
    """A factor that grows a little faster than the prior falls."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("grow", 0.52 * x.square())


@propriety.model(10, no_integral)
def schools_flat_log_tau() -> None:
    """Eight schools with a flat log tau: as tau goes to zero, the likelihood goes to a constant."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    log_tau = pyro.sample("log_tau", flat())
    with pyro.plate("school", 8):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + log_tau.exp() * eta, schools_sd), obs=schools_y)


# ---- proper, and not to be doubted ----

pressures = data(1013.25 + 0.01 * np.random.default_rng(321).normal(size=400))


def mean_integrated(y, log_sd):
    """Log likelihoods of log sds, integrated over the mean."""
    n, squares = len(y), ((y - y.mean()) ** 2).sum()
    return -0.5 * (n - 1) * LOG_2PI - (n - 1) * log_sd - 0.5 * squares * np.exp(-2 * log_sd) - 0.5 * math.log(n)


def normal_known_prior(y, log_sd, loc: float, sd: float):
    """Log likelihoods of log sds, a normal mean integrated out."""
    return mean_integrated(y, log_sd) + normal(y.mean(), loc, np.sqrt(sd**2 + np.exp(2 * log_sd) / len(y)))


def pressure_truth() -> float:
    u = np.linspace(-6, -3, 3001)
    return integrate_log(normal_known_prior(exact(pressures), u, 1000.0, 20.0) + normal(u, -4.0, 1.0), u)


@propriety.model(2, pressure_truth)
def pressure_readings() -> None:
    """Readings that differ in the second decimal: far rays see the likelihood only."""
    m = pyro.sample("m", dist.Normal(1000.0, 20.0))
    u = pyro.sample("l", dist.Normal(-4.0, 1.0))
    with pyro.plate("n", 400):
        pyro.sample("y", dist.Normal(m, u.exp()), obs=pressures)


sharp_rng = np.random.default_rng(530)
sharp_x = data(sharp_rng.normal(size=(400, 3)))
sharp_y = data(exact(sharp_x) @ [1.0, -2.0, 0.5] + 0.02 * sharp_rng.normal(size=400))


def sharp_truth() -> float:
    """The weights integrated out for each log sd."""
    x, y, u = exact(sharp_x), exact(sharp_y), np.linspace(-5, -2.5, 2001)
    values, vectors = np.linalg.eigh(x.T @ x)
    fit = np.linalg.lstsq(x, y, rcond=None)[0]
    squares, turned = ((y - x @ fit) ** 2).sum(), vectors.T @ fit
    spread = 1e4 + np.exp(2 * u)[:, None] / values
    given = -0.5 * (400 - 3) * (LOG_2PI + 2 * u) - 0.5 * squares * np.exp(-2 * u) - 0.5 * np.log(values).sum()
    prior = normal(turned[None], 0.0, np.sqrt(spread)).sum(1)
    return integrate_log(given + prior + normal(u, 0.0, 2.0), u)


@propriety.model(4, sharp_truth)
def sharp_regression() -> None:
    """Posterior sds of 0.001 under priors of width 100."""
    w = pyro.sample("w", dist.Normal(0.0, 100.0).expand([3]).to_event(1))
    s = pyro.sample("s", dist.LogNormal(0.0, 2.0))
    with pyro.plate("n", 400):
        pyro.sample("y", dist.Normal((sharp_x * w.unsqueeze(-2)).sum(-1), s.unsqueeze(-1)), obs=sharp_y)


tilted_y = torch.linspace(-1.5, 1.5, 10, dtype=torch.float64)


def tilted_truth() -> float:
    inner = -4.5 * LOG_2PI - 0.5 * math.log(10) + special.gammaln(4.5) - math.log(2)
    return inner - 4.5 * math.log((exact(tilted_y) ** 2).sum() / 2) - math.log(0.3 * 0.25)


def tilted(tilt: float) -> None:
    @propriety.density(2, tilted_truth, f"tilted_scale_{tilt:g}")
    def density(z):
        """Mean and log sd, on axes tilted a little: on a far ray the sd overtakes the residual."""
        mean, log_sd = 0.3 * z[:, 0], tilt * z[:, 0] + 0.25 * z[:, 1]
        u = (tilted_y.to(z) - mean[:, None]) * torch.exp(-log_sd)[:, None]
        return -0.5 * u.square().sum(-1) - 10 * log_sd - 5 * LOG_2PI


tilted(0.0)
tilted(1e-5)
tilted(1e-4)

spread_y = data(np.random.default_rng(531).normal(2.0, 0.5, 12))


@propriety.model(1, lambda: mean_integrated(exact(spread_y), math.log(0.5)) - math.log(2000.0))
def uniform_1000() -> None:
    """A uniform prior 14,000 posterior sds wide."""
    m = pyro.sample("m", dist.Uniform(-1000.0, 1000.0))
    with pyro.plate("n", 12):
        pyro.sample("y", dist.Normal(m, 0.5), obs=spread_y)


def constant_proper_truth() -> float:
    u = np.linspace(-12, 14, 26_001)  # log variance
    return integrate_log(normal_known_prior(np.full(4, 3.0), u / 2, 0.0, 10.0) + gamma_log(-u, 2.0, 1.0), u)


@propriety.model(2, constant_proper_truth)
def constant_data_proper() -> None:
    """Equal readings again, with a variance whose prior keeps it from zero."""
    m = pyro.sample("m", dist.Normal(0.0, 10.0))
    v = pyro.sample("v", dist.InverseGamma(2.0, 1.0))
    with pyro.plate("n", 4):
        pyro.sample("y", dist.Normal(m, v.sqrt()), obs=torch.full((4,), 3.0))


def wide_scale_truth() -> float:
    u, y = np.linspace(-30, 60, 90_001), exact(spread_y)
    return integrate_log(-6 * LOG_2PI - 12 * u - 0.5 * (y @ y) * np.exp(-2 * u) + normal(u, 0.0, 100.0), u)


@propriety.model(1, wide_scale_truth)
def log_sd_100() -> None:
    """A log sd with a prior of width 100."""
    u = pyro.sample("u", dist.Normal(0.0, 100.0))
    with pyro.plate("n", 12):
        pyro.sample("y", dist.Normal(0.0, u.exp()), obs=spread_y)


def loggamma(u):
    return u - u.exp()


def standard_normal(u):
    return -0.5 * u.square() - 0.5 * LOG_2PI


@propriety.model(10, -10 * math.log(60.0))
def loggamma_10d() -> None:
    """Four modes in a box, with tails that are exponential on one side."""
    x = pyro.sample("x", dist.Uniform(-30.0, 30.0).expand([10]).to_event(1))
    first = torch.logaddexp(loggamma(x[..., 0] - 10), loggamma(x[..., 0] + 10)) - math.log(2)
    second = torch.logaddexp(standard_normal(x[..., 1] - 10), standard_normal(x[..., 1] + 10)) - math.log(2)
    pyro.factor("f", first + second + loggamma(x[..., 2:6]).sum(-1) + standard_normal(x[..., 6:]).sum(-1))


@propriety.model(8, -3.7)
def flat_likelihood_heavy_priors() -> None:
    """Nothing but heavy-tailed and edged priors."""
    pyro.sample("c", dist.Cauchy(0.0, 1.0))
    pyro.sample("h", dist.HalfCauchy(2.0))
    pyro.sample("t", dist.StudentT(1.5))
    pyro.sample("b", dist.Beta(0.3, 0.3))
    pyro.sample("g", dist.Gamma(0.3, 1.0))
    pyro.sample("i", dist.InverseGamma(0.5, 1.0))
    pyro.sample("p", dist.Dirichlet(torch.full((3,), 0.4)))
    pyro.factor("y", torch.tensor(-3.7))


def separable_truth() -> float:
    """In polar coordinates."""
    angle, log_r = np.linspace(0, 2 * np.pi, 4001), np.linspace(math.log(1e-3), math.log(7e4), 2501)
    eta = np.cos(angle)[:, None] + np.sin(angle)[:, None] * exact(logistic_x)
    log_f = sum(
        -np.logaddexp(0, -(1 if y else -1) * eta[:, [i]] * np.exp(log_r)) for i, y in enumerate(logistic_y.tolist())
    )
    prior = -LOG_2PI - 2 * math.log(1e4) - 0.5 * np.exp(2 * log_r) / 1e8
    return integrate_log_2d(log_f + prior + 2 * log_r, angle, log_r)


@propriety.model(2, separable_truth)
def separable_logistic_1e4() -> None:
    """Separable labels and weights with a prior of width 1e4, which is all that holds them."""
    logistic(dist.Normal(0.0, 1e4).expand([2]).to_event(1))

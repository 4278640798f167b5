"""Pyro models of every kind that users write, each small, with its exact log evidence where there is one.

Models make their data when they run, so the default type decides about precision. Evidences are computed with numpy and
scipy, far from the code under test.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.contrib.gp as gp
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib.autoname import scope
from pyro.distributions import constraints, transforms
from pyro.infer import config_enumerate
from pyro.infer.reparam import (
    DiscreteCosineReparam,
    LinearHMMReparam,
    LocScaleReparam,
    ProjectedNormalReparam,
    StudentTReparam,
    SymmetricStableReparam,
    TransformReparam,
)
from pyro.nn import PyroModule, PyroParam, PyroSample, pyro_method
from pyro.ops.indexing import Vindex
from scipy import stats
from scipy.special import betaln, gammaln, logsumexp
from torch import Tensor, nn, tensor


@dataclass(frozen=True)
class Case:
    """A model and what is known about it.

    Arguments:
        name: Name of the test.
        function: The model; or, if it is ``built``, what makes the model.
        args: Makes the positional arguments.
        kwargs: Makes the keyword arguments.
        backend: The best backend that the model can reach.
        built: Whether ``function`` makes the model, for those that own modules.
        default_dtype: Type of Python numbers while the model runs.
        reference: A model with the same latents whose density by Pyro is the right one, where the model's own is not.
        exact: Computes the exact log evidence.
    """

    name: str
    function: Callable[..., Any]
    args: Callable[[], tuple[Any, ...]] = tuple
    kwargs: Callable[[], dict[str, Any]] = dict
    backend: str = "captured"
    built: bool = False
    default_dtype: torch.dtype = torch.float64
    reference: Callable[..., Any] | None = None
    exact: Callable[[], float] | None = None

    def model(self) -> Callable[..., Any]:
        """The model itself."""
        return self.function() if self.built else self.function


ZOO: dict[str, Case] = {}


def case(name: str | None = None, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Put a model into the zoo, under its own name or, where a handler hides that, under a given one."""

    def put(function: Callable[..., Any]) -> Callable[..., Any]:
        key = name or function.__name__
        assert key not in ZOO, key
        ZOO[key] = Case(key, function, **options)
        return function

    return put


def log_integral(log_density: Callable[..., Any], *ranges: tuple[float, float], num_nodes: int = 120) -> float:
    """Log of an integral over a box, by Gauss-Legendre quadrature; ``log_density`` maps arrays to an array."""
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    axes = [0.5 * (high - low) * nodes + 0.5 * (high + low) for low, high in ranges]
    log_weight = sum(np.meshgrid(*[np.log(weights * (high - low) / 2) for low, high in ranges], indexing="ij"))

    return float(logsumexp(log_density(*np.meshgrid(*axes, indexing="ij")) + log_weight))


def gaussian_log_evidence(y: Any, design: Any, prior_sd: Any, noise_sd: float) -> float:
    """Log evidence of a linear model with independent zero-mean normal coefficients."""
    design = np.asarray(design, dtype=float) * np.asarray(prior_sd)
    covariance = design @ design.T + noise_sd**2 * np.eye(len(design))

    return float(stats.multivariate_normal.logpdf(y, np.zeros(len(design)), covariance))


# ---- every kind of support ----

COUNTS = (3, 1, 4, 2)


def gamma_poisson_log_evidence():
    total = sum(COUNTS)
    log_evidence = 2 * math.log(1.5) - gammaln(2) + gammaln(2 + total) - (2 + total) * math.log(1.5 + len(COUNTS))

    return log_evidence - sum(gammaln(np.add(COUNTS, 1)))


@case(exact=gamma_poisson_log_evidence)
def gamma_poisson():
    """A positive rate with its conjugate prior."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.5))
    with pyro.plate("days", len(COUNTS)):
        pyro.sample("y", dist.Poisson(rate), obs=tensor(COUNTS).to(rate.dtype))


@case()
def positive_scales():
    """Every usual prior of a scale at once."""
    cauchy = pyro.sample("cauchy", dist.HalfCauchy(2.0))
    normal = pyro.sample("normal", dist.HalfNormal(1.0))
    inverse = pyro.sample("inverse", dist.InverseGamma(3.0, 2.0))
    log_normal = pyro.sample("log_normal", dist.LogNormal(0.0, 0.5))
    exponential = pyro.sample("exponential", dist.Exponential(2.0))
    weibull = pyro.sample("weibull", dist.Weibull(1.0, 2.0))
    chi = pyro.sample("chi", dist.Chi2(3.0))
    scale = (cauchy + normal + inverse.sqrt()) * log_normal + exponential * weibull + chi
    pyro.sample("y", dist.Normal(0.0, scale).expand([3]).to_event(1), obs=tensor([0.5, -2.0, 3.0]))


def normal_inverse_gamma_log_evidence():
    shape = 2.0 / 3.0 * (np.eye(4) + 4.0)

    return float(stats.multivariate_t.logpdf([0.3, 1.9, 1.1, 2.4], np.zeros(4), shape, df=6.0))


@case(exact=normal_inverse_gamma_log_evidence)
def normal_inverse_gamma():
    """Unknown mean and variance with their conjugate prior: the data are jointly Student."""
    variance = pyro.sample("variance", dist.InverseGamma(3.0, 2.0))
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0 * variance.sqrt()))
    with pyro.plate("data", 4):
        pyro.sample("y", dist.Normal(mean, variance.sqrt()), obs=tensor([0.3, 1.9, 1.1, 2.4]))


def beta_geometric_log_evidence():
    waits = np.array([2.0, 0.0, 5.0])

    return float(betaln(2.0 + len(waits), 3.0 + waits.sum()) - betaln(2.0, 3.0))


@case(exact=beta_geometric_log_evidence)
def beta_geometric():
    """Failures before the first success."""
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Geometric(p), obs=tensor([2.0, 0.0, 5.0]))


@case()
def locations():
    """Latents on the real line by every usual family."""
    families = [
        dist.Cauchy(0.0, 1.0), dist.Laplace(0.0, 1.0), dist.Logistic(0.0, 1.0), dist.Gumbel(0.0, 1.0),
        dist.StudentT(3.0, 0.0, 1.0), dist.SoftLaplace(0.0, 1.0), dist.AsymmetricLaplace(0.0, 1.0, 2.0),
        dist.SkewLogistic(0.0, 1.0, 0.5),
    ]  # fmt: skip
    total = sum(pyro.sample(f"x_{i}", family) for i, family in enumerate(families))
    pyro.sample("y", dist.Normal(total, 1.0), obs=tensor(1.2))


@case()
def unit_intervals():
    """Probabilities, by several families, and a binomial likelihood."""
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    q = pyro.sample("q", dist.Kumaraswamy(2.0, 2.0))
    r = pyro.sample("r", dist.ContinuousBernoulli(0.3))
    s = pyro.sample("s", dist.TransformedDistribution(dist.Normal(0.0, 1.0), transforms.SigmoidTransform()))
    t = pyro.sample("t", dist.RelaxedBernoulli(tensor(0.7), probs=tensor(0.4)))
    pyro.sample("y", dist.Binomial(10, (p + q + r + s + t) / 5), obs=tensor(4.0))


@case()
def bounded_interval():
    """Bounded locations."""
    x = pyro.sample("x", dist.Uniform(-2.0, 3.0))
    z = pyro.sample("z", dist.AffineBeta(2.0, 3.0, -1.0, 4.0))
    pyro.sample("y", dist.Laplace(x + z, 0.5), obs=tensor(1.2))


@case()
def lower_bounded():
    """A size above a threshold, and the largest of uniform data."""
    size = pyro.sample("size", dist.Pareto(2.0, 3.0))
    wait = 2.0 + pyro.sample("excess", dist.Exponential(1.0))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Uniform(0.0, size * wait), obs=tensor([0.3, 1.9, 1.1]))


def dirichlet_categorical_log_evidence():
    alpha, counts = np.array([1.0, 2.0, 3.0]), np.array([2.0, 1.0, 4.0])
    log_evidence = gammaln(alpha.sum()) - gammaln(alpha.sum() + counts.sum())

    return float(log_evidence + (gammaln(alpha + counts) - gammaln(alpha)).sum())


@case(exact=dirichlet_categorical_log_evidence)
def dirichlet_categorical():
    """A point of the simplex with its conjugate prior."""
    p = pyro.sample("p", dist.Dirichlet(tensor([1.0, 2.0, 3.0])))
    with pyro.plate("data", 7):
        pyro.sample("y", dist.Categorical(p), obs=tensor([0, 2, 2, 1, 0, 2, 2]))


@case()
def relaxed_simplex():
    """Points of the simplex that are no Dirichlet's, in a plate."""
    with pyro.plate("data", 2):
        p = pyro.sample("p", dist.RelaxedOneHotCategorical(tensor(0.8), probs=tensor([0.2, 0.3, 0.5])))
        q = pyro.sample("q", dist.LogisticNormal(torch.zeros(2), torch.ones(2)))
        pyro.sample("y", dist.Categorical((p + q) / 2), obs=tensor([0, 2]))


@case()
def stick_breaking():
    """A truncated Dirichlet process mixture with its sticks written out."""
    with pyro.plate("sticks", 3):
        stick = pyro.sample("stick", dist.Beta(1.0, 2.0))
    left = torch.cat([stick.new_ones(1), (1 - stick).cumprod(-1)])
    weights = torch.cat([stick, stick.new_ones(1)]) * left
    with pyro.plate("components", 4):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("data", 5):
        mixture = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(loc, 1.0))
        pyro.sample("y", mixture, obs=tensor([-2.0, -1.8, 0.4, 3.1, 2.7]))


@case()
def ordered_cutpoints():
    """Ordinal regression; the cutpoints are the image of a normal vector."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    cutpoints = pyro.sample("cutpoints", dist.TransformedDistribution(base, transforms.OrderedTransform()))
    with pyro.plate("data", 5):
        predictor = slope * tensor([-1.0, -0.5, 0.0, 0.5, 1.0])
        pyro.sample("y", dist.OrderedLogistic(predictor, cutpoints), obs=tensor([0, 1, 1, 3, 2]))


@case()
def improper_vectors():
    """Flat priors on ordered, positive and Cholesky-shaped values, as a factor graph."""
    ordered = pyro.sample("ordered", dist.ImproperUniform(constraints.ordered_vector, (), (3,)))
    rates = pyro.sample("rates", dist.ImproperUniform(constraints.positive_ordered_vector, (), (2,)))
    scale = pyro.sample("scale", dist.ImproperUniform(constraints.softplus_positive, (), ()))
    pyro.sample("ordered_prior", dist.Normal(0.0, scale).expand([3]).to_event(1), obs=ordered)
    pyro.sample("rates_prior", dist.Exponential(1.0).expand([2]).to_event(1), obs=rates)
    pyro.sample("scale_prior", dist.Gamma(2.0, 1.0), obs=scale)


@case()
def lkj_normal():
    """Correlations by LKJ, scales apart."""
    corr = pyro.sample("corr", dist.LKJCholesky(3, 2.0))
    scale = pyro.sample("scale", dist.HalfNormal(1.0).expand([3]).to_event(1))
    with pyro.plate("data", 2):
        y = tensor([[0.1, 0.2, 0.3], [1.0, -1.0, 2.0]])
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(3), scale_tril=scale[:, None] * corr), obs=y)


PAIRS = ((1.2, 0.8), (-0.7, -1.5), (0.3, 0.9), (-1.1, 0.2))


def lkj_pair_log_evidence():
    # Of two variables, (1 + r) / 2 is Beta(2, 2).
    x, y = np.transpose(PAIRS)

    def log_density(r):
        r = r[:, None]
        energy = (x**2 - 2 * r * x * y + y**2) / (1 - r**2)
        log_likelihood = -0.5 * energy - 0.5 * np.log1p(-(r**2)) - math.log(2 * math.pi)
        return stats.beta.logpdf((1 + r[:, 0]) / 2, 2.0, 2.0) - math.log(2) + log_likelihood.sum(-1)

    return log_integral(log_density, (-1.0, 1.0))


@case(exact=lkj_pair_log_evidence)
def lkj_pair():
    """One correlation of two standardised variables."""
    corr = pyro.sample("corr", dist.LKJCholesky(2, 2.0))
    with pyro.plate("data", len(PAIRS)):
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), scale_tril=corr), obs=tensor(PAIRS))


@case()
def correlation_matrix():
    """A correlation matrix rather than its Cholesky factor, and a scatter matrix as the observation."""
    corr = pyro.sample("corr", dist.LKJ(3, 1.5))
    scatter = tensor([[2.0, 0.5, 0.1], [0.5, 1.5, -0.3], [0.1, -0.3, 1.0]])
    pyro.sample("scatter", dist.Wishart(tensor(5.0), covariance_matrix=corr), obs=scatter)


@case()
def directions():
    """A mean direction and a concentration."""
    loc = pyro.sample("loc", dist.Uniform(-math.pi, math.pi))
    concentration = pyro.sample("concentration", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.VonMises(loc, concentration), obs=tensor([0.3, 0.8, -0.1]))


@case()
def latent_direction():
    """A latent angle."""
    angle = pyro.sample("angle", dist.VonMises(0.5, 2.0))
    pyro.sample("y", dist.Normal(torch.stack([angle.cos(), angle.sin()]), 0.5).to_event(1), obs=tensor([0.2, 0.9]))


def dynamic_support_log_evidence():
    def log_density(top):
        inside = stats.norm.cdf(top, 1.5, 0.5) - stats.norm.cdf(0.0, 1.5, 0.5)
        return stats.gamma.logpdf(top, 3.0) + np.log(inside) - np.log(top)

    return log_integral(log_density, (0.0, 40.0), num_nodes=400)


@case(exact=dynamic_support_log_evidence)
def dynamic_support():
    """An interval that ends at another latent."""
    top = pyro.sample("top", dist.Gamma(3.0, 1.0))
    x = pyro.sample("x", dist.Uniform(0.0, top))
    pyro.sample("y", dist.Normal(x, 0.5), obs=tensor(1.5))


@case()
def multivariate_latents():
    """Correlated priors given by covariance, precision, factors, and with heavy tails."""
    covariance = tensor([[2.0, 0.5], [0.5, 1.0]])
    a = pyro.sample("a", dist.MultivariateNormal(torch.zeros(2), covariance_matrix=covariance))
    b = pyro.sample("b", dist.MultivariateNormal(a, precision_matrix=covariance))
    c = pyro.sample("c", dist.LowRankMultivariateNormal(b, tensor([[1.0], [0.5]]), tensor([0.3, 0.4])))
    d = pyro.sample("d", dist.MultivariateStudentT(tensor(4.0), c, torch.linalg.cholesky(covariance)))
    pyro.sample("y", dist.Normal(d, 0.5).to_event(1), obs=tensor([0.4, -0.7]))


# ---- likelihoods ----


@case()
def low_rank_covariance():
    """Factor analysis: loadings and uniquenesses."""
    loading = pyro.sample("loading", dist.Normal(0.0, 1.0).expand([3, 1]).to_event(2))
    unique = pyro.sample("unique", dist.LogNormal(0.0, 0.5).expand([3]).to_event(1))
    with pyro.plate("data", 2):
        y = tensor([[0.1, 0.2, 0.3], [1.0, -1.0, 2.0]])
        pyro.sample("y", dist.LowRankMultivariateNormal(torch.zeros(3), loading, unique), obs=y)


@case()
def multivariate_student():
    """Heavy tails in two dimensions with unknown degrees of freedom."""
    df = pyro.sample("df", dist.Gamma(2.0, 0.1))
    loc = pyro.sample("loc", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    with pyro.plate("data", 3):
        y = tensor([[0.5, 0.1], [1.1, -0.3], [8.0, 7.0]])
        pyro.sample("y", dist.MultivariateStudentT(df, loc, torch.eye(2)), obs=y)


@case()
def count_families():
    """Over-dispersed and zero-inflated counts."""
    gate = pyro.sample("gate", dist.Beta(2.0, 2.0))
    rate = pyro.sample("rate", dist.Gamma(2.0, 0.5))
    spread = pyro.sample("spread", dist.Gamma(2.0, 1.0))
    logits = pyro.sample("logits", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 4):
        y = tensor([0.0, 3.0, 0.0, 5.0])
        pyro.sample("poisson", dist.ZeroInflatedPoisson(rate, gate=gate), obs=y)
        pyro.sample("negative", dist.ZeroInflatedNegativeBinomial(spread, logits=logits, gate=gate), obs=y)
        pyro.sample("binomial", dist.NegativeBinomial(total_count=spread, logits=logits), obs=y)
        pyro.sample("gamma_poisson", dist.GammaPoisson(spread, rate), obs=y)
        pyro.sample("beta_binomial", dist.BetaBinomial(spread, rate, total_count=8), obs=y)


@case()
def contingency_table():
    """Multinomial counts, and the same with over-dispersion."""
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    concentration = pyro.sample("concentration", dist.Gamma(2.0, 0.2))
    with pyro.plate("data", 2):
        y = tensor([[3.0, 0.0, 2.0], [1.0, 2.0, 2.0]])
        pyro.sample("y", dist.Multinomial(5, probs=p), obs=y)
        pyro.sample("x", dist.DirichletMultinomial(concentration * p, 5), obs=y)


@case()
def masked_mixture():
    """One of two likelihoods by a known mask."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    mask = tensor([True, False, True])
    with pyro.plate("data", 3):
        likelihood = dist.MaskedMixture(mask, dist.Normal(loc, scale), dist.Cauchy(loc, scale))
        pyro.sample("y", likelihood, obs=tensor([0.5, 4.0, 1.0]))


@case()
def poisson_regression():
    """Log-linear rates with an offset."""
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 0.5).to_event(1))
    x = tensor([[1.0, -1.0], [1.0, 0.0], [1.0, 1.0]])
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Poisson((x @ w + tensor([0.1, 0.2, 0.3])).exp()), obs=tensor([0.0, 2.0, 3.0]))


@case()
def robust_regression():
    """Student noise with unknown degrees of freedom."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    nu = pyro.sample("nu", dist.Gamma(2.0, 0.1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(1.0))
    with pyro.plate("data", 4):
        mean = slope * tensor([-1.0, 0.0, 1.0, 2.0])
        pyro.sample("y", dist.StudentT(nu, mean, sigma), obs=tensor([-1.2, 0.1, 0.9, 9.0]))


@case()
def probit_regression():
    """Probabilities by the normal distribution function."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    x = tensor([[1.0, -1.0], [1.0, 0.2], [1.0, 1.5]])
    with pyro.plate("data", 3):
        p = dist.Normal(0.0, 1.0).cdf(x @ w).clamp(1e-6, 1 - 1e-6)
        pyro.sample("y", dist.Bernoulli(p), obs=tensor([0.0, 1.0, 1.0]))


@case()
def logistic_regression():
    """Latents and rows without plates or events, as Pyro's own samplers allow."""
    w = pyro.sample("w", dist.Normal(torch.zeros(3), torch.ones(3)))
    x = tensor([[1.0, -1.0, 0.3], [1.0, 0.2, -0.4], [1.0, 1.5, 0.1], [1.0, 0.5, 2.0]])
    pyro.sample("y", dist.Bernoulli(logits=(x * w).sum(-1)), obs=tensor([0.0, 1.0, 1.0, 0.0]))


@case()
def horseshoe():
    """Sparse regression: a scale for each coefficient."""
    tau = pyro.sample("tau", dist.HalfCauchy(1.0))
    with pyro.plate("columns", 3):
        lam = pyro.sample("lam", dist.HalfCauchy(1.0))
        w = pyro.sample("w", dist.Normal(0.0, tau * lam))
    x = tensor([[1.0, -1.0, 0.3], [1.0, 0.2, -0.4]])
    with pyro.plate("rows", 2):
        pyro.sample("y", dist.Normal(x.matmul(w), 0.5), obs=tensor([1.0, -0.5]))


@case(backend="loop")
def wrapped_pairs():
    """Two angles, by a distribution whose constant is a series that only single runs can sum."""
    concentration = pyro.sample("concentration", dist.Gamma(3.0, 2.0))
    y = tensor([0.4, -0.2])
    likelihood = dist.SineBivariateVonMises(
        tensor(0.0), tensor(0.0), concentration, concentration, weighted_correlation=tensor(0.3)
    )
    pyro.sample("y", likelihood, obs=y)


@case()
def whole_numbers():
    """Counts as integers, which stay integers."""
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    with pyro.plate("data", 3):
        pyro.sample("poisson", dist.Poisson(3 * p), obs=tensor([0, 2, 5]))
        pyro.sample("binomial", dist.Binomial(5, p), obs=tensor([0, 2, 5]))
        pyro.sample("geometric", dist.Geometric(p), obs=tensor([0, 2, 5]))


@case()
def normal_mixtures():
    """Mixtures of normals in two dimensions."""
    with pyro.plate("components", 2):
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    y = tensor([[0.5, -0.3], [2.0, 1.0]])
    with pyro.plate("data", 2):
        components = dist.MultivariateNormal(loc, torch.eye(2))
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weights), components), obs=y)
        pyro.sample("x", dist.MixtureOfDiagNormals(loc, torch.ones(2, 2), weights.log()), obs=y)


@case()
def factors():
    """Energies without a distribution, one of them with rows."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    pyro.factor("quartic", -(x**4).sum())
    with pyro.plate("data", 3):
        pyro.factor("rows", -(x[0] - tensor([0.0, 0.5, 1.0])).abs())


# ---- plates and handlers ----


@case()
def nested_plates():
    """A table with effects of rows and columns."""
    scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
    columns, rows = pyro.plate("columns", 3, dim=-1), pyro.plate("rows", 2, dim=-2)
    with columns:
        loc = pyro.sample("loc", dist.Normal(0.0, scale))
    with rows:
        effect = pyro.sample("effect", dist.Laplace(0.0, scale))
    with columns, rows:
        x = pyro.sample("x", dist.LogNormal(loc + effect, scale))
        pyro.sample("y", dist.Exponential(x), obs=tensor([[0.3, 1.0, 2.0], [0.1, 0.2, 0.7]]))


@case()
def decorated_plates():
    """Plates around functions, and data subsampled in full."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    data = tensor([[0.5, 1.0], [1.5, 0.0], [0.2, 0.1]])

    @pyro.plate("rows", 3)
    def local():
        return pyro.sample("x", dist.Normal(loc, 1.0).expand([2]).to_event(1))

    x = local()
    with pyro.plate("data", 3):
        batch = pyro.subsample(data, event_dim=1)
        pyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=batch)


@case()
def sequential_plates():
    """A Python loop over rows, with another one inside."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    y = tensor([[0.5, 1.0], [1.5, 0.0]])
    for i in pyro.plate("rows", 2):
        x = pyro.sample(f"x_{i}", dist.Normal(loc, 1.0))
        for j in pyro.plate(f"columns_{i}", 2):
            pyro.sample(f"y_{i}_{j}", dist.Normal(x, 0.5), obs=y[i, j])


@case()
def radon():
    """Varying intercepts by group index, centred."""
    group = tensor([0, 0, 1, 2, 2, 2])
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("groups", 3):
        a = pyro.sample("a", dist.Normal(mu, tau))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("data", 6):
        mean = a[group] + slope * tensor([0.0, 1.0, 0.0, 0.0, 1.0, 1.0])
        pyro.sample("y", dist.Normal(mean, sigma), obs=tensor([1.0, 0.5, 1.4, 0.1, -0.2, 0.3]))


@case()
def masks():
    """Rows that do not count, and a latent within the mask's reach that does."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3), poutine.mask(mask=tensor([True, False, True])):
        pyro.sample("y", dist.Normal(x, 1.0), obs=tensor([0.5, 1e6, 1.5]))
    with poutine.mask(mask=True):
        pyro.sample("z", dist.Normal(x, 1.0).mask(tensor(True)), obs=tensor(0.3))


@case("scales")
@poutine.scale(scale=0.5)
def scales():
    """A tempered model, and within it rows that count sevenfold."""
    x = pyro.sample("x", dist.Gamma(3.0, 1.0))
    with pyro.plate("data", 3), poutine.scale(scale=7.0):
        pyro.sample("y", dist.Normal(x, 1.0), obs=tensor([0.5, 1.0, 1.5]))


def unconditioned():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("data", 3):
        return pyro.sample("y", dist.Normal(mu, sigma))


@case(built=True)
def conditioned():
    """Data and one of the latents fixed from outside."""
    return poutine.condition(unconditioned, data={"y": tensor([0.5, 1.0, 1.5]), "sigma": tensor(0.7)})


@case(built=True)
def intervened():
    """A latent set by intervention has no density at all."""
    return pyro.do(poutine.condition(unconditioned, data={"y": tensor([0.5, 1.0, 1.5])}), data={"sigma": tensor(0.7)})


@case("reparametrised_schools")
@poutine.reparam(config={"theta": LocScaleReparam(0.0), "shift": LocScaleReparam(0.3)})
def reparametrised_schools():
    """A hierarchy made non-centred from outside, in full and in part."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 3):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        shift = pyro.sample("shift", dist.Normal(theta, 1.0))
        pyro.sample("y", dist.Normal(shift, tensor([15.0, 10.0, 16.0])), obs=tensor([28.0, 8.0, -3.0]))


@case("cosine_walk")
@poutine.reparam(config={"walk": DiscreteCosineReparam(), "level": TransformReparam()})
def cosine_walk():
    """A series in cosines, and a transformed site by its base."""
    level = pyro.sample("level", dist.LogNormal(0.0, 1.0))
    walk = pyro.sample("walk", dist.Normal(0.0, level).expand([5]).to_event(1))
    y = tensor([0.1, 0.5, 0.2, -0.4, 0.0])
    pyro.sample("y", dist.Normal(walk.cumsum(-1), 0.5).to_event(1), obs=y)


@case("stable_jump", backend="loop")
@poutine.reparam(config={"jump": SymmetricStableReparam()})
def stable_jump():
    """A stable latent by its auxiliaries, among which Pyro asserts signs."""
    jump = pyro.sample("jump", dist.Stable(1.7, 0.0, 0.5, 0.0))
    pyro.sample("y", dist.Normal(jump, 0.5), obs=tensor(0.4))


@case("projected_direction")
@poutine.reparam(config={"direction": ProjectedNormalReparam()})
def projected_direction():
    """A unit vector, by the normal vector that it is the direction of."""
    direction = pyro.sample("direction", dist.ProjectedNormal(tensor([0.5, 0.2])))
    pyro.sample("y", dist.Normal(direction, 0.5).to_event(1), obs=tensor([0.3, 0.9]))


def learnt_priors():
    loc = pyro.param("loc", lambda: tensor(0.0))
    scale = pyro.param("scale", lambda: tensor(1.0), constraint=constraints.positive)
    with pyro.plate("data", 2):
        pyro.sample("y", dist.Normal(loc, scale), obs=tensor([0.5, 1.5]))


@case(built=True)
def lifted_parameters():
    """Parameters made latent from outside."""
    return poutine.lift(learnt_priors, prior={"loc": dist.Normal(0.0, 1.0), "scale": dist.HalfNormal(1.0)})


@case()
def fixed_parameters():
    """What SVI would learn is constant here."""
    scale = pyro.param("scale", lambda: tensor(2.0), constraint=constraints.positive)
    weights = pyro.param("weights", lambda: tensor([0.2, 0.8]), constraint=constraints.simplex)
    x = pyro.sample("x", dist.Normal(0.0, scale).expand([2]).to_event(1))
    pyro.sample("y", dist.Normal((weights * x).sum(), 1.0), obs=tensor(1.0))


@case()
def deterministic_sites():
    """Values by name that have no density."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    rate = pyro.deterministic("rate", x.exp(), event_dim=1)
    pyro.deterministic("total", rate.sum())
    pyro.sample("y", dist.Poisson(rate).to_event(1), obs=tensor([1.0, 3.0]))


# ---- arguments ----


@dataclass(frozen=True)
class Table:
    """Columns of data with a title."""

    x: Tensor
    y: Tensor
    title: str = "yield"


@case(args=lambda: (Table(tensor([0.0, 1.0, 2.0]), tensor([0.1, 0.8, 2.2])),), kwargs=lambda: {"noise": 0.5})
def dataclass_argument(table, noise=1.0):
    """An object with tensors in it."""
    slope = pyro.sample(f"slope_{table.title}", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(table.x)):
        pyro.sample("y", dist.Normal(slope * table.x, noise), obs=table.y)


@case(
    args=lambda: ({"north": tensor([1.0, 2.0]), "south": tensor([0.5])}, [0.5, 1.5], None),
    kwargs=lambda: {"family": "student", "options": {"df": 4}},
)
def nested_arguments(data: Mapping[str, Tensor], scales, mask=None, *, family="normal", options=None):
    """A mapping of tensors, a list of numbers, None, a string and a mapping of numbers."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    for (region, y), scale in zip(data.items(), scales, strict=True):
        local = pyro.sample(f"mu_{region}", dist.Normal(mu, scale))
        likelihood = dist.StudentT(options["df"], local, 1.0) if family == "student" else dist.Normal(local, 1.0)
        with pyro.plate(f"data_{region}", len(y)):
            pyro.sample(f"y_{region}", likelihood if mask is None else likelihood.mask(mask), obs=y)


@case(args=lambda: (tensor([0.5, 1.0]), tensor([2.0])), kwargs=lambda: {"loc": tensor(0.3), "scale": 2})
def starred_arguments(*series, **priors):
    """As many series as there are."""
    mu = pyro.sample("mu", dist.Normal(priors["loc"], priors["scale"]))
    for i, y in enumerate(series):
        pyro.sample(f"y_{i}", dist.Normal(mu, 1.0 + i).expand([len(y)]).to_event(1), obs=y)


class Counter:
    """A model with a state of its own."""

    def __init__(self, y):
        self.y = y

    def __call__(self, rate_scale):
        rate = pyro.sample("rate", dist.Exponential(1.0 / rate_scale))
        pyro.sample("y", dist.Poisson(rate).expand(self.y.shape).to_event(1), obs=self.y)


@case(built=True)
def partial_of_an_object():
    """A callable object with an argument filled in."""
    return functools.partial(Counter(tensor([1.0, 3.0])), rate_scale=2.0)


@case("scoped_names")
@scope(prefix="outer")
def scoped_names():
    """Sites in a name space, some of them nested."""
    with scope(prefix="inner"):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x, 1.0), obs=tensor(0.4))


DOUBLES = torch.tensor([1.0, 2.5, 0.5], dtype=torch.float64)


@case(default_dtype=torch.float32)
def global_doubles():
    """Data in double precision beside latents in single."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(torch.ones((), dtype=torch.float64)))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Normal(mu, sigma), obs=DOUBLES)


# ---- tensors made and changed by hand ----


@case()
def written_into_zeros():
    """A vector filled entry by entry."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    mean = torch.zeros(3)
    mean[0] = a
    mean[1:] = b * tensor([1.0, 2.0])
    mean[2] += a
    pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=tensor([0.1, 0.5, 1.5]))


@case()
def boolean_assignment():
    """Entries set where a mask holds, of data and of latents."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
    rectified = x.clone()
    rectified[x < 0] = 0.0
    rectified[tensor([True, False, False, False])] = 1.0
    pyro.sample("y", dist.Normal(rectified, 0.5).to_event(1), obs=tensor([0.1, 0.5, 1.5, 0.0]))


def stack_of_latents():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.HalfNormal(1.0))
    mean = torch.stack([a, 2.0 * b])
    off_diagonal, one = tensor(0.3), tensor(1.0)
    covariance = torch.stack([torch.stack([1.0 + b, off_diagonal]), torch.stack([off_diagonal, one])])
    pyro.sample("y", dist.MultivariateNormal(mean, covariance_matrix=covariance), obs=tensor([0.1, 0.5]))


@case(reference=stack_of_latents)
def tensor_of_latents():
    """Latents collected by torch.tensor, nested: on its own it would lose their gradients."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.HalfNormal(1.0))
    mean = torch.tensor([a, 2.0 * b])
    covariance = torch.tensor([[1.0 + b, 0.3], [0.3, 1.0]])
    pyro.sample("y", dist.MultivariateNormal(mean, covariance_matrix=covariance), obs=tensor([0.1, 0.5]))


@case()
def imputed_by_hand():
    """Missing entries are latents, written into a copy of the data."""
    data, missing = tensor([0.3, math.nan, 1.1, math.nan]), tensor([1, 3])
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    imputed = pyro.sample("imputed", dist.Normal(mu, 1.0).expand([2]).to_event(1).mask(False))
    y = data.clone()
    y[missing] = imputed
    with pyro.plate("data", 4):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@case()
def arithmetic_in_place():
    """Latents added into tensors of data."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    line = torch.linspace(-1.0, 1.0, 3)
    line *= slope
    mean = torch.cat([tensor([0.5]), torch.arange(2.0)])
    mean += level
    grid = torch.ones(2).repeat(2)[:3]
    grid[1] = level
    pyro.sample("y", dist.Normal(line + mean + grid, 1.0).to_event(1), obs=tensor([0.1, 0.5, 1.5]))


@case()
def index_operations():
    """Latents gathered, scattered, sorted, rolled and looked up."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
    group = tensor([0, 1, 0, 1])
    sums = torch.zeros(2).index_add(0, group, x) + torch.zeros(2).scatter_add(0, group, x.square())
    knots = x.exp().cumsum(-1)
    interval = torch.searchsorted(knots.detach(), tensor([0.5, 2.5])).clamp(max=3)
    mean = torch.cat([sums[group], knots.gather(0, interval), x.sort().values.roll(1).flip(0), x.unfold(0, 2, 2)[:, 0]])
    pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=torch.ones(12))


@case()
def linear_algebra():
    """Latent matrices solved, inverted, exponentiated and decomposed."""
    x = pyro.sample("x", dist.Normal(0.0, 0.5).expand([3]).to_event(1))
    matrix = torch.diag_embed(x.exp()) + 0.3
    solved = torch.linalg.solve(matrix, torch.ones(3)) + torch.inverse(matrix)[0]
    factor = torch.linalg.cholesky(matrix)
    triangular = torch.linalg.solve_triangular(factor, torch.ones(3, 1), upper=False)[:, 0]
    exponential = torch.einsum("ij,j->i", torch.matrix_exp(0.1 * matrix), x)
    spectrum = torch.linalg.eigvalsh(matrix) + torch.fft.rfft(x, n=4).abs()
    pyro.factor("volume", torch.logdet(matrix))
    pyro.sample("y", dist.Normal(solved + triangular + exponential + spectrum, 1.0).to_event(1), obs=torch.ones(3))


@case()
def special_functions():
    """Latents in functions of mathematical physics."""
    x = pyro.sample("x", dist.Gamma(2.0, 1.0))
    terms = [
        x.lgamma(), x.digamma(), x.erf(), torch.special.i0e(x), torch.special.log_ndtr(x), torch.logaddexp(x, -x),
        torch.xlogy(x, x), torch.polygamma(1, x), torch.special.expit(x), torch.sinc(x), nn.functional.softplus(x),
    ]  # fmt: skip
    pyro.sample("y", dist.Normal(torch.stack(terms).sum(), 1.0), obs=tensor(1.0))


# ---- series and differential equations ----

SERIES = (0.2, 0.9, 1.1, 0.6, 0.1, -0.4, -0.2)


def autoregression_log_evidence():
    lags = np.stack([SERIES[1:-1], SERIES[:-2]], -1)

    return gaussian_log_evidence(SERIES[2:], lags, 0.8, 0.5)


@case(exact=autoregression_log_evidence)
def autoregression():
    """Two lags, step by step; given its lags it is a linear model."""
    phi = pyro.sample("phi", dist.Normal(0.0, 0.8).expand([2]).to_event(1))
    y = tensor(SERIES)
    for t in range(2, len(SERIES)):
        pyro.sample(f"y_{t}", dist.Normal(phi[0] * y[t - 1] + phi[1] * y[t - 2], 0.5), obs=y[t])


@case()
def stochastic_volatility():
    """A latent random walk of log variances."""
    step = pyro.sample("step", dist.Exponential(5.0))
    log_variance = pyro.sample("h_0", dist.Normal(0.0, 1.0))
    for t, y in enumerate(tensor([0.1, -0.4, 1.2, -2.0, 0.3])):
        log_variance = pyro.sample(f"h_{t + 1}", dist.Normal(0.95 * log_variance, step))
        pyro.sample(f"y_{t}", dist.Normal(0.0, (0.5 * log_variance).exp()), obs=y)


def runge_kutta(derivative, state, step):
    k1 = derivative(state)
    k2 = derivative(state + 0.5 * step * k1)
    k3 = derivative(state + 0.5 * step * k2)
    k4 = derivative(state + step * k3)

    return state + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


@case()
def predators_and_prey():
    """Lotka-Volterra, solved in the model."""
    rates = pyro.sample("rates", dist.Uniform(tensor([0.2, 0.01, 0.2, 0.01]), tensor([1.0, 0.1, 1.0, 0.1])).to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(-1.0, 0.5))

    def derivative(state):
        prey, predators = state.unbind(-1)
        birth, hunting, death, growth = rates.unbind(-1)
        return torch.stack([birth * prey - hunting * prey * predators, growth * prey * predators - death * predators])

    state = tensor([10.0, 5.0])
    for t, y in enumerate(tensor([[11.0, 5.0], [13.0, 6.0], [14.0, 6.5]])):
        state = runge_kutta(derivative, state, 0.3)
        pyro.sample(f"y_{t}", dist.LogNormal(state.log(), sigma).to_event(1), obs=y)


@case()
def epidemic():
    """Susceptible, infected, recovered; the path is stacked and observed at once."""
    transmission = pyro.sample("transmission", dist.Uniform(0.1, 3.0))
    recovery = pyro.sample("recovery", dist.Uniform(0.05, 1.0))

    def derivative(state):
        infections = transmission * state[0] * state[1]
        return torch.stack([-infections, infections - recovery * state[1], recovery * state[1]])

    path = [tensor([0.95, 0.05, 0.0])]
    for _ in range(4):
        path.append(runge_kutta(derivative, path[-1], 0.5))
    infected = torch.stack(path[1:])[:, 1]
    with pyro.plate("days", 4):
        pyro.sample("cases", dist.Poisson(100 * infected), obs=tensor([6.0, 9.0, 11.0, 15.0]))


@case()
def gaussian_hmm():
    """A linear state space model with its states integrated out."""
    drift = pyro.sample("drift", dist.Uniform(0.3, 0.9))
    noise = pyro.sample("noise", dist.LogNormal(-1.0, 0.5))
    eye = torch.eye(1)
    start, step = dist.Normal(torch.zeros(1), 1.0).to_event(1), dist.Normal(torch.zeros(1), 0.5).to_event(1)
    observation = dist.Normal(torch.zeros(1), noise).to_event(1)
    hmm = dist.GaussianHMM(start, drift * eye, step, eye, observation, duration=4)
    pyro.sample("y", hmm, obs=tensor([[0.1], [0.5], [0.3], [0.9]]))


@case("linear_hmm")
@poutine.reparam(config={"y": LinearHMMReparam(StudentTReparam(), StudentTReparam(), StudentTReparam())})
def linear_hmm():
    """A state space model with heavy tails, normal given auxiliary scales."""
    drift = pyro.sample("drift", dist.Uniform(0.3, 0.9))
    eye, zero = torch.eye(1), torch.zeros(1)
    student = dist.StudentT(4.0, zero, 1.0).to_event(1)
    hmm = dist.LinearHMM(student, drift * eye, student, eye, dist.StudentT(4.0, zero, 0.5).to_event(1), duration=3)
    pyro.sample("y", hmm, obs=tensor([[0.1], [0.5], [4.0]]))


@case()
def discrete_hmm():
    """A hidden chain, summed out by its own distribution."""
    transition = pyro.sample("transition", dist.Dirichlet(tensor([[3.0, 1.0], [1.0, 3.0]])).to_event(1))
    loc = pyro.sample("loc", dist.Normal(tensor([-1.0, 1.0]), 1.0).to_event(1))
    hmm = dist.DiscreteHMM(torch.zeros(2), transition.log(), dist.Normal(loc, 0.7))
    pyro.sample("y", hmm, obs=tensor([-0.8, -1.1, 0.9, 1.2, 1.0]))


@case()
def gaussian_markov_field():
    """A chain of normal potentials."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
    start = dist.MultivariateNormal(torch.zeros(1), torch.eye(1))
    step = dist.MultivariateNormal(torch.zeros(2), tensor([[1.0, 0.4], [0.4, 1.0]]) * scale)
    observation = dist.MultivariateNormal(torch.zeros(2), tensor([[1.0, 0.3], [0.3, 1.0]]))
    y = tensor([[0.1], [0.5], [0.3]])
    pyro.sample("y", dist.GaussianMRF(start, step, observation), obs=y)


# ---- Gaussian processes and modules ----

INPUTS, OUTPUTS = (0.0, 0.7, 1.1, 2.0, 2.6), (0.1, 0.8, 1.0, 0.7, 0.2)


def gaussian_process_log_evidence():
    square = np.subtract.outer(INPUTS, INPUTS) ** 2
    y = np.array(OUTPUTS)

    def log_density(log_length, log_size):
        kernel = np.exp(2 * log_size - 0.5 * np.multiply.outer(square, np.exp(-2 * log_length)))
        covariance = np.moveaxis(kernel, (0, 1), (-2, -1)) + 0.01 * np.eye(len(y))
        energy = y * np.linalg.solve(covariance, np.broadcast_to(y[:, None], (*log_size.shape, len(y), 1)))[..., 0]
        log_prior = stats.norm.logpdf(log_length) + stats.norm.logpdf(log_size)
        return log_prior - 0.5 * (energy.sum(-1) + np.linalg.slogdet(2 * math.pi * covariance).logabsdet)

    return log_integral(log_density, (-7.0, 7.0), (-7.0, 7.0))


@case(exact=gaussian_process_log_evidence)
def gaussian_process():
    """A squared exponential kernel and its Cholesky factor by hand."""
    length = pyro.sample("length", dist.LogNormal(0.0, 1.0))
    size = pyro.sample("size", dist.LogNormal(0.0, 1.0))
    x, y = tensor(INPUTS), tensor(OUTPUTS)
    kernel = size**2 * (-0.5 * ((x[:, None] - x) / length) ** 2).exp() + 0.01 * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), scale_tril=torch.linalg.cholesky(kernel)), obs=y)


@case(built=True)
def gp_regression():
    """Pyro's own Gaussian process with priors on what its kernel has."""
    kernel = gp.kernels.RBF(1)
    kernel.lengthscale = PyroSample(dist.LogNormal(0.0, 1.0))
    kernel.variance = PyroSample(dist.LogNormal(0.0, 1.0))

    return gp.models.GPRegression(tensor(INPUTS), tensor(OUTPUTS), kernel, noise=tensor(0.1)).model


class Regression(PyroModule):
    """A linear model as a module, with a fixed noise parameter and a method that samples."""

    def __init__(self):
        super().__init__()
        self.weight = PyroSample(dist.Normal(0.0, 2.0).expand([2]).to_event(1))
        self.bias = PyroSample(lambda self: dist.Normal(0.0, 1.0))
        self.noise = PyroParam(tensor(0.5), constraint=constraints.positive)

    @pyro_method
    def mean(self, x):
        return x @ self.weight + self.bias

    def forward(self, x, y):
        mean = self.mean(x)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(mean, self.noise), obs=y)


DESIGN, RESPONSE = ((-1.5, 0.2), (-0.5, 1.0), (0.7, -0.3), (1.6, 0.4), (2.0, -1.0)), (-2.1, -0.3, 1.9, 3.2, 4.4)


def module_regression_log_evidence():
    return gaussian_log_evidence(RESPONSE, np.column_stack([DESIGN, np.ones(5)]), [2.0, 2.0, 1.0], 0.5)


@case(built=True, args=lambda: (tensor(DESIGN), tensor(RESPONSE)), exact=module_regression_log_evidence)
def module_regression():
    """A PyroModule is a model."""
    return Regression()


class Network(PyroModule):
    """Two layers whose weights are all latent."""

    def __init__(self):
        super().__init__()
        self.first = PyroModule[nn.Linear](1, 3)
        self.second = PyroModule[nn.Linear](3, 1)
        for layer in (self.first, self.second):
            layer.weight = PyroSample(dist.Normal(0.0, 1.0).expand(layer.weight.shape).to_event(2))
            layer.bias = PyroSample(dist.Normal(0.0, 1.0).expand(layer.bias.shape).to_event(1))

    def forward(self, x, y):
        mean = self.second(self.first(x).tanh()).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 0.3), obs=y)


@case(built=True, args=lambda: (tensor(INPUTS)[:, None], tensor(OUTPUTS)))
@case("network_in_single_precision", built=True, args=lambda: (tensor(INPUTS)[:, None], tensor(OUTPUTS)),
      default_dtype=torch.float32)  # fmt: skip
def network():
    """A Bayesian neural network."""
    return Network()


@case(built=True, args=lambda: (tensor(INPUTS)[:, None], tensor(OUTPUTS)))
def converted_network():
    """An ordinary network made Bayesian afterwards; the last layer stays fixed."""
    net = nn.Sequential(nn.Linear(1, 2), nn.Softplus(), nn.Linear(2, 1))
    head = net[2]
    pyro.nn.module.to_pyro_module_(net[0])
    for name, value in list(net[0].named_parameters()):
        setattr(net[0], name, PyroSample(dist.Laplace(0.0, 1.0).expand(value.shape).to_event(value.dim())))

    def model(x, y):
        hidden = nn.functional.softplus(net[0](x))
        fixed = pyro.module("head", head)
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(fixed(hidden).squeeze(-1), scale), obs=y)

    return model


# ---- discrete latents ----


def discrete_parent_log_evidence():
    log_density = stats.norm.logpdf(1.0, [0.0, 3.0], math.sqrt(1.25))

    return float(logsumexp(log_density, b=[0.7, 0.3]))


@case(exact=discrete_parent_log_evidence)
def discrete_parent():
    """A continuous latent whose prior depends on a switch."""
    switch = pyro.sample("switch", dist.Bernoulli(0.3))
    mu = pyro.sample("mu", dist.Normal(3 * switch, 1.0))
    pyro.sample("y", dist.Normal(mu, 0.5), obs=tensor(1.0))


MIXED = (-2.3, -1.8, 0.9, 1.4, 0.2)


def mixture_log_evidence():
    def log_density(weight, loc):
        first = np.log1p(-weight)[..., None] + stats.norm.logpdf(MIXED, -2.0, 1.0)
        second = np.log(weight)[..., None] + stats.norm.logpdf(MIXED, loc[..., None], 1.0)
        log_prior = stats.beta.logpdf(weight, 2.0, 2.0) + stats.norm.logpdf(loc, 1.0, 2.0)
        return log_prior + np.logaddexp(first, second).sum(-1)

    return log_integral(log_density, (0.0, 1.0), (-15.0, 17.0))


@case(exact=mixture_log_evidence)
def mixture():
    """A component for each row, nothing said about enumeration."""
    weight = pyro.sample("weight", dist.Beta(2.0, 2.0))
    loc = pyro.sample("loc", dist.Normal(1.0, 2.0))
    with pyro.plate("data", len(MIXED)):
        k = pyro.sample("k", dist.Categorical(torch.stack([1 - weight, weight])))
        locs = torch.stack([tensor(-2.0), loc])
        pyro.sample("y", dist.Normal(locs[k], 1.0), obs=tensor(MIXED))


@case("decorated_mixture")
@config_enumerate
def decorated_mixture():
    """Three components with a scale each."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("components", 3):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", 3):
        k = pyro.sample("k", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(loc[k], scale[k]), obs=tensor([-2.0, 0.1, 2.2]))


@case()
def parallel_and_sequential():
    """Two switches that ask for different ways of enumeration."""
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    a = pyro.sample("a", dist.Bernoulli(p), infer={"enumerate": "parallel"})
    b = pyro.sample("b", dist.Categorical(tensor([0.2, 0.5, 0.3])), infer={"enumerate": "sequential"})
    pyro.sample("y", dist.Normal(a + tensor([0.0, 2.0, 4.0])[b], 1.0), obs=tensor(2.5))


@case()
def dependent_switches():
    """One discrete latent decides about the probabilities of the next; the rows of a plate share them."""
    table = pyro.sample("table", dist.Dirichlet(torch.ones(2, 3)).to_event(1))
    a = pyro.sample("a", dist.Categorical(tensor([0.4, 0.6])))
    b = pyro.sample("b", dist.Categorical(Vindex(table)[a]))
    loc = pyro.sample("loc", dist.Normal(0.0, 2.0).expand([2, 3]).to_event(2))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Normal(Vindex(loc)[a, b], 1.0), obs=tensor([0.5, 0.8, 0.2]))


@case()
def tempered_mixture():
    """Rows of a mixture that count twice, as where a data set was thinned."""
    loc = pyro.sample("loc", dist.Normal(tensor([-1.0, 1.0]), 1.0).to_event(1))
    with pyro.plate("data", 3), poutine.scale(scale=2.0):
        k = pyro.sample("k", dist.Categorical(torch.ones(2)))
        pyro.sample("y", dist.Normal(loc[k], 1.0), obs=tensor([-2.0, 0.1, 2.2]))


@case()
def grouped_mixture():
    """A component for each row of a table, a switch for all of it, and a factor that reads both."""
    loc = pyro.sample("loc", dist.Normal(tensor([-1.0, 1.0]), 1.0).to_event(1))
    rows, columns = pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1)
    wide = pyro.sample("wide", dist.Bernoulli(0.4))
    with columns:
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    with rows:
        k = pyro.sample("k", dist.Categorical(tensor([0.3, 0.7])))
        pyro.factor("coupling", 0.5 * k * wide)
        with columns:
            y = tensor([[-1.2, -0.8, -0.5], [1.4, 0.3, 0.9]])
            pyro.sample("y", dist.Normal(loc[k] + shift, 0.5 + wide), obs=y)


@case()
def one_hot_switch():
    """Discrete latents with an event dimension, and a continuous latent below them in a plate."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("data", 2):
        k = pyro.sample("k", dist.OneHotCategorical(weights))
        x = pyro.sample("x", dist.Normal((k * tensor([-1.0, 1.0])).sum(-1), 0.5))
        pyro.sample("y", dist.Normal(x, 0.5), obs=tensor([-0.7, 1.3]))


HIDDEN = (-0.9, -1.3, 0.8, 1.1, -0.6)


def hidden_markov_log_evidence():
    def log_density(stay, loc):
        log_prior = stats.beta.logpdf(stay, 3.0, 1.5) + stats.norm.logpdf(loc, 1.0, 0.5)
        stay, loc = stay[..., None], loc[..., None]
        forward = np.broadcast_to(np.log([0.5, 0.5]), (*log_prior.shape, 2))
        for t, y in enumerate(HIDDEN):
            if t:
                swapped = forward[..., ::-1]
                forward = np.logaddexp(np.log(stay) + forward, np.log1p(-stay) + swapped)
            forward = forward + stats.norm.logpdf(y, loc * np.array([-1.0, 1.0]), 0.7)
        return log_prior + np.logaddexp(forward[..., 0], forward[..., 1])

    return log_integral(log_density, (0.0, 1.0), (-4.0, 6.0))


@case(exact=hidden_markov_log_evidence)
def hidden_markov():
    """A chain of states, step by step; its evidence is by the forward algorithm."""
    stay = pyro.sample("stay", dist.Beta(3.0, 1.5))
    loc = pyro.sample("loc", dist.Normal(1.0, 0.5))
    state = tensor(0)
    for t in pyro.markov(range(len(HIDDEN))):
        same = torch.stack([stay, 1 - stay])
        transition = torch.stack([same, same.flip(0)])
        probs = Vindex(transition)[state] if t else tensor([0.5, 0.5])
        state = pyro.sample(f"x_{t}", dist.Categorical(probs))
        pyro.sample(f"y_{t}", dist.Normal(loc * (2 * state - 1), 0.7), obs=tensor(HIDDEN)[t])


@case()
def hidden_markov_sequences():
    """Several chains with the same transitions, in a plate."""
    transition = pyro.sample("transition", dist.Dirichlet(tensor([[3.0, 1.0], [1.0, 3.0]])).to_event(1))
    loc = pyro.sample("loc", dist.Normal(tensor([-1.0, 1.0]), 1.0).to_event(1))
    y = tensor([[-0.8, -1.1, 0.9], [1.2, 1.0, -0.7]])
    with pyro.plate("sequences", 2):
        state = torch.zeros(2, dtype=torch.long)
        for t in pyro.markov(range(3)):
            state = pyro.sample(f"x_{t}", dist.Categorical(Vindex(transition)[state]))
            pyro.sample(f"y_{t}", dist.Normal(loc[state], 0.7), obs=y[:, t])


@case()
def ragged_markov():
    """Chains of different lengths: what lies after the end of one is masked, states and all."""
    transition = pyro.sample("transition", dist.Dirichlet(tensor([[3.0, 1.0], [1.0, 3.0]])).to_event(1))
    y, lengths = tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]), tensor([3, 1])
    with pyro.plate("sequences", 2):
        state = torch.zeros(2, dtype=torch.long)
        for t in pyro.markov(range(3)):
            with poutine.mask(mask=t < lengths):
                state = pyro.sample(f"x_{t}", dist.Categorical(Vindex(transition)[state]))
                pyro.sample(f"y_{t}", dist.Bernoulli(tensor([0.2, 0.9])[state]), obs=y[:, t])


ZEROS = (0, 3, 0, 0, 2, 4)


def zero_inflation_log_evidence():
    def log_density(gate, log_rate):
        rate = np.exp(log_rate)
        log_prior = stats.beta.logpdf(gate, 2.0, 2.0) + stats.gamma.logpdf(rate, 2.0) + log_rate
        log_zero = np.log(gate)[..., None] + np.where(np.equal(ZEROS, 0), 0.0, -np.inf)
        log_count = np.log1p(-gate)[..., None] + stats.poisson.logpmf(ZEROS, rate[..., None])
        return log_prior + np.logaddexp(log_zero, log_count).sum(-1)

    return log_integral(log_density, (0.0, 1.0), (-12.0, 4.0))


@case(exact=zero_inflation_log_evidence)
def zero_inflation():
    """Zeros of two kinds, told apart by a switch for each row."""
    gate = pyro.sample("gate", dist.Beta(2.0, 2.0))
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(ZEROS)):
        closed = pyro.sample("closed", dist.Bernoulli(gate))
        # A closed gate leaves a rate so small that anything but zero is out of the question.
        pyro.sample("y", dist.Poisson(torch.where(closed == 1, 1e-12, rate)), obs=tensor(ZEROS).to(rate.dtype))


def latent_count_log_evidence():
    n = np.arange(5)

    def log_density(p):
        log_joint = stats.binom.logpmf(n, 4, p[:, None]) + stats.norm.logpdf([1.8, 2.9], n[:, None], 1.0).sum(-1)
        return stats.beta.logpdf(p, 2.0, 2.0) + logsumexp(log_joint, axis=-1)

    return log_integral(log_density, (0.0, 1.0))


@case(exact=latent_count_log_evidence)
def latent_count():
    """How many of four, seen through noise."""
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    n = pyro.sample("n", dist.Binomial(4, p))
    with pyro.plate("data", 2):
        pyro.sample("y", dist.Normal(n, 1.0), obs=tensor([1.8, 2.9]))


def discrete_only_log_evidence():
    terms = []
    for a, b in itertools.product(range(2), range(3)):
        log_prior = math.log([0.7, 0.3][a]) + math.log([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]][a][b])
        terms.append(log_prior + stats.norm.logpdf([0.5, 1.5], a + b, 1.0).sum())

    return float(logsumexp(terms))


@case(backend="vmap", exact=discrete_only_log_evidence)
def discrete_only():
    """Nothing but discrete latents: the evidence is a finite sum."""
    a = pyro.sample("a", dist.Categorical(tensor([0.7, 0.3])))
    b = pyro.sample("b", dist.Categorical(tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])[a]))
    with pyro.plate("data", 2):
        pyro.sample("y", dist.Normal(a + b, torch.ones(2)), obs=tensor([0.5, 1.5]))


def no_latents_log_evidence():
    return float(stats.norm.logpdf([0.5, 1.5], 0.3, 1.0).sum())


@case(backend="vmap", exact=no_latents_log_evidence)
def no_latents():
    """Nothing is unknown: the evidence is the likelihood."""
    with pyro.plate("data", 2):
        pyro.sample("y", dist.Normal(0.3, torch.ones(2)), obs=tensor([0.5, 1.5]))


# ---- missing observations ----

SEEN = (True, False, True, True, False)
PARTLY = (0.4, 9.9, 1.1, 0.2, 9.9)


def missing_rows_log_evidence():
    return gaussian_log_evidence([0.4, 1.1, 0.2], np.ones((3, 1)), 2.0, 0.8)


def missing_rows_reference():
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", 5):
        pyro.sample("y_observed", dist.Normal(mu, 0.8).mask(tensor(SEEN)), obs=tensor(PARTLY))
        pyro.sample("y_unobserved", dist.Normal(mu, 0.8))


@case(reference=missing_rows_reference, exact=missing_rows_log_evidence)
def missing_rows():
    """Some rows were never seen."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", 5):
        pyro.sample("y", dist.Normal(mu, 0.8), obs=tensor(PARTLY), obs_mask=tensor(SEEN))


PAIRED = ((0.4, 0.1), (0.0, 0.0), (1.1, 0.7))


def missing_events_reference():
    corr = pyro.sample("corr", dist.LKJCholesky(2, 2.0))
    likelihood = dist.MultivariateNormal(torch.zeros(2), scale_tril=corr)
    with pyro.plate("data", 3):
        pyro.sample("y_observed", likelihood.mask(tensor([True, False, True])), obs=tensor(PAIRED))
        y = pyro.sample("y_unobserved", likelihood)
        y = torch.where(tensor([[True], [False], [True]]), tensor(PAIRED), y)
        pyro.sample("z", dist.Normal(y.sum(-1), 1.0), obs=tensor([0.5, 2.0, 1.0]))


@case(reference=missing_events_reference)
def missing_events():
    """A whole vector is missing, and something else was seen that depends on it."""
    corr = pyro.sample("corr", dist.LKJCholesky(2, 2.0))
    likelihood = dist.MultivariateNormal(torch.zeros(2), scale_tril=corr)
    with pyro.plate("data", 3):
        y = pyro.sample("y", likelihood, obs=tensor(PAIRED), obs_mask=tensor([True, False, True]))
        pyro.sample("z", dist.Normal(y.sum(-1), 1.0), obs=tensor([0.5, 2.0, 1.0]))


def missing_answers_reference():
    p = pyro.sample("p", dist.Beta(2.0, 1.0))
    seen, answers = tensor([True, False, True]), tensor([1.0, 0.0, 0.0])
    with pyro.plate("data", 3):
        pyro.sample("y_observed", dist.Bernoulli(p).mask(seen), obs=answers)
        y = torch.where(seen, answers, pyro.sample("y_unobserved", dist.Bernoulli(p)))
        pyro.sample("z", dist.Normal(y, 1.0), obs=tensor([0.8, 0.9, 0.1]))


@case(reference=missing_answers_reference)
def missing_answers():
    """A missing answer is discrete and summed out."""
    p = pyro.sample("p", dist.Beta(2.0, 1.0))
    seen, answers = tensor([True, False, True]), tensor([1.0, 0.0, 0.0])
    with pyro.plate("data", 3):
        y = pyro.sample("y", dist.Bernoulli(p), obs=answers, obs_mask=seen)
        pyro.sample("z", dist.Normal(y, 1.0), obs=tensor([0.8, 0.9, 0.1]))


# ---- models that look at their values ----


@case(backend="loop")
def branch():
    """A choice by the sign of a latent."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    scale = 1.0 if x > 0 else 2.0
    pyro.sample("y", dist.Normal(x, scale), obs=tensor(0.7))


@case(backend="loop")
def python_number():
    """A latent read as a Python number, for a table."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    level = [0.0, 0.5, 1.0][min(int(abs(x.item())), 2)]
    pyro.sample("y", dist.Normal(x + level, 1.0), obs=tensor(0.7))


@case(backend="loop")
def selection():
    """As many entries as happen to be positive."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    pyro.sample("y", dist.Normal(x[x > 0].sum(), 1.0), obs=tensor(0.7))


@case(backend="loop")
def assertion():
    """A check of a value that the model makes itself."""
    scale = pyro.sample("scale", dist.HalfNormal(1.0).expand([2]).to_event(1))
    assert (scale > 0).all()
    pyro.sample("y", dist.Normal(0.0, scale).to_event(1), obs=tensor([0.7, -0.2]))

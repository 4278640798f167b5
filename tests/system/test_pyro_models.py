"""The models of Pyro's own tests of HMC, NUTS and its random walk, in their sizes, at half their tolerances.

Pyro compares most posterior means with the parameters that made the data. Here data are evenly spaced quantiles where
that is possible, so that the parameters are where the posterior is; and everything is compared with the exact posterior
and the exact log evidence as well, by formulas and quadrature written down here, in double precision.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_error
from pyro import poutine
from pyro.contrib.conjugate.infer import BetaBinomialPair, GammaPoissonPair, collapse_conjugate, posterior_replay
from pyro.infer import Predictive
from pyro.infer.autoguide.initialization import (
    init_to_feasible,
    init_to_generated,
    init_to_mean,
    init_to_median,
    init_to_sample,
    init_to_uniform,
    init_to_value,
)
from pyro.infer.reparam import LatentStableReparam
from scipy import stats
from torch.distributions import biject_to

from pyro_osds import OSDS
from pyro_osds.explore.propriety import find_endless
from pyro_osds.model import ModelTarget, PotentialTarget, VectorizationWarning

HALF = 0.5
# Enough for all but the hardest posteriors here; the others, and a few easy ones, take what is the default.
QUICK = {"num_iterations": 50, "num_particles": 16}
QUANTILES_OF_2000 = (np.arange(2000) + 0.5) / 2000


# ---- what every test needs ----


def fit(model=None, *args, **options):
    pyro.set_rng_seed(0)
    osds = OSDS(model, **{"num_samples": 500, "disable_progbar": True, **options})
    osds.run(*args)

    return osds


@pytest.fixture(scope="module")
def fitted():
    """Runs that several tests read, by the name of the model."""
    runs = {}

    def run(name, model, *args, **options):
        if name not in runs:
            with torch.random.fork_rng():
                runs[name] = fit(model, *args, **options)
        return runs[name]

    return run


def double(value):
    return torch.as_tensor(np.asarray(value), dtype=torch.float64)


@dataclass(frozen=True)
class Quadrature:
    """A posterior on weighted nodes.

    Arguments:
        log_evidence: Log of the integral of the density.
        points: Nodes, ``(S, D)``.
        weight: Their normalised weights, ``(S,)``.
    """

    log_evidence: float
    points: torch.Tensor
    weight: torch.Tensor

    def moments(self, value):
        """Mean and standard deviation of ``value(points)``, ``(S, *shape)``."""
        values = value(self.points)
        mean = torch.tensordot(self.weight, values, 1)

        return mean, torch.tensordot(self.weight, (values - mean).square(), 1).sqrt()


def on_nodes(log_density, points, log_volume):
    log_prob = torch.cat([log_density(part) for part in points.split(1000)]) + log_volume
    log_evidence = log_prob.logsumexp(0)

    return Quadrature(log_evidence.item(), points, (log_prob - log_evidence).exp())


def trapezoid(log_density, *axes):
    """The trapezoidal rule on a grid, exponentially accurate for a smooth density that vanishes at its border.

    Arguments:
        log_density: Maps points ``(S, D)`` to ``(S,)``.
        axes: First node, last node and number of nodes of each dimension.
    """
    grid = [torch.linspace(first, last, number, dtype=torch.float64) for first, last, number in axes]
    log_volume = sum(math.log((last - first) / (number - 1)) for first, last, number in axes)

    return on_nodes(log_density, torch.cartesian_prod(*grid).reshape(-1, len(axes)), log_volume)


def around_mode(log_density, start, num_nodes):
    """Gauss-Hermite quadrature in coordinates in which the posterior is a standard normal to second order."""

    def single(z):
        return log_density(z[None])[0]

    mode = start
    for _ in range(30):
        hessian = torch.func.hessian(single)(mode)
        mode = mode - torch.linalg.solve(hessian, torch.func.grad(single)(mode))
    scale = torch.linalg.cholesky(torch.linalg.inv(-torch.func.hessian(single)(mode)))
    nodes, weights = (double(values) for values in np.polynomial.hermite_e.hermegauss(num_nodes))
    steps = torch.cartesian_prod(*[nodes] * len(start))
    log_volume = torch.cartesian_prod(*[weights.log() + 0.5 * nodes**2] * len(start)).sum(-1)

    return on_nodes(log_density, mode + steps @ scale.T, log_volume + scale.diag().log().sum())


def check_evidence(osds, exact, size=None):
    """Reliable, and within three standard errors of the exact log evidence plus rounding in single precision.

    Arguments:
        osds: The sampler after its run.
        exact: The log evidence.
        size: Sum of the terms that the density is made of; default: that of their sum.
    """
    evidence = osds.evidence
    assert evidence.reliable, evidence
    rounding = torch.finfo(torch.float32).eps * (10 + (abs(exact) if size is None else size))
    assert abs(evidence.log_evidence - exact) <= 4 * evidence.std_error + rounding, (
        evidence,
        exact,
    )  # of hundreds, some lie beyond 3


def check_moments(draws, n_eff, mean, sd):
    """Means and standard deviations of draws ``(S, *shape)``, each within five standard errors of the exact ones."""
    draws, mean, sd = draws.double().flatten(1), double(mean).flatten(), double(sd).flatten()
    n_eff = n_eff.double().flatten().clamp(max=len(draws))
    kurtosis = ((draws - mean) / sd).pow(4).mean(0)
    of_mean, of_sd = sd / n_eff.sqrt(), sd * ((kurtosis - 1) / (4 * n_eff)).sqrt()
    for i in range(len(mean)):
        assert_within_standard_error(draws[:, i].mean(), mean[i], of_mean[i].item())
        assert_within_standard_error(draws[:, i].std(), sd[i], of_sd[i].item())


def check_site(osds, name, mean, sd):
    draws, n_eff = osds.get_samples()[name], osds.diagnostics()[name]["n_eff"]
    check_moments(draws[:, None] if draws.dim() == 1 else draws, n_eff, mean, sd)


def check_mean(draws, truth, tolerance):
    """Posterior means within half of Pyro's tolerance."""
    error = (draws.double().mean(0) - double(truth)).abs().max().item()
    assert error <= HALF * tolerance, error


def rmse(values, truth):
    return (values.double() - double(truth)).square().mean().sqrt().item()


def successes(counts, total):
    """Columns of ones followed by zeros, ``counts[j]`` of ``total`` ones in column ``j``."""
    return (torch.arange(total)[:, None] < torch.tensor(counts)).float()


def beta_moments(a, b):
    return a / (a + b), (a * b / ((a + b) ** 2 * (a + b + 1))).sqrt()


def log_beta(a, b):
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)


# ---- conjugate pairs ----


def coins(data, a, b):
    p = pyro.sample("p", dist.Beta(a, b))
    with pyro.plate("tosses", len(data), dim=-2):
        pyro.sample("obs", dist.Bernoulli(p), obs=data)


def undeclared_coins(data, a, b):
    p = pyro.sample("p", dist.Beta(a, b))
    pyro.sample("obs", dist.Bernoulli(p), obs=data)


def check_coins(osds, data, a, b):
    a, b, ones = a.double(), b.double(), data.double().sum(0)
    after = a + ones, b + len(data) - ones
    check_evidence(osds, (log_beta(*after) - log_beta(a, b)).sum().item())
    check_site(osds, "p", *beta_moments(*after))

    return beta_moments(*after)


def test_five_tosses(fitted):
    # Random walk on beta-bernoulli: exact conjugate mean and variance; Pyro allows 0.03 and 0.005.
    a = b = torch.tensor([1.1, 2.2])
    data = successes([4, 1], 5)
    osds = fitted("five tosses", coins, data, a, b, **QUICK)
    mean, sd = check_coins(osds, data, a, b)
    check_mean(osds.get_samples()["p"], mean, 0.03)
    assert (osds.get_samples()["p"].double().var(0) - sd**2).abs().max() <= HALF * 0.005


@pytest.mark.parametrize(("model", "tolerance"), [(coins, 0.05), (undeclared_coins, 0.02)])
def test_thousand_tosses(fitted, model, tolerance):
    # HMC with a plate and NUTS without on beta-bernoulli: Pyro allows 0.05 and 0.02 to the true probabilities.
    a = b = torch.tensor([1.1, 1.1])
    data = successes([900, 100], 1000)
    osds = fitted(model.__name__, model, data, a, b, **QUICK)
    check_coins(osds, data, a, b)
    check_mean(osds.get_samples()["p"], [0.9, 0.1], tolerance)


def test_dirichlet_categorical(fitted):
    # HMC and NUTS on 2000 undeclared observations: Pyro allows 0.02 to the true probabilities.
    counts = torch.tensor([200, 1200, 600])

    def model(data):
        p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
        pyro.sample("obs", dist.Categorical(p), obs=data)

    osds = fitted("dirichlet", model, torch.arange(3).repeat_interleave(counts), **QUICK)
    after = 1.0 + counts.double()
    check_evidence(osds, (math.lgamma(3) + torch.lgamma(after).sum() - torch.lgamma(after.sum())).item())
    check_site(osds, "p", *beta_moments(after, after.sum() - after))
    check_mean(osds.get_samples()["p"], [0.1, 0.6, 0.3], 0.02)


@dataclass(frozen=True)
class Chain:
    """Locations in a row, each normal around the last with scale one, and observations around the last of all.

    Arguments:
        dim: Independent copies of the chain; no plate says so.
        length: Locations.
        num_obs: Observations, all of them one.
        mean_tolerance: What Pyro allows the root mean square error of the means to be.
        sd_tolerance: The same for the standard deviations.
        options: For the sampler.
    """

    dim: int
    length: int
    num_obs: int
    mean_tolerance: float
    sd_tolerance: float
    options: Mapping[str, int]

    def model(self, data):
        loc = torch.zeros(self.dim)
        for i in range(self.length):
            loc = pyro.sample(f"loc_{i}", dist.Normal(loc, torch.ones(self.dim)))
        pyro.sample("obs", dist.Normal(loc, torch.ones(self.dim)), obs=data)

    def exact(self):
        """Log evidence, and the mean and standard deviation of each location."""
        precision = 2 * torch.eye(self.length, dtype=torch.float64)
        precision.diagonal(1).fill_(-1.0)
        precision.diagonal(-1).fill_(-1.0)
        precision[-1, -1] = 1.0 + self.num_obs
        covariance = precision.inverse()
        grown = 1.0 + self.num_obs * self.length
        log_evidence = -0.5 * (self.num_obs * math.log(2 * math.pi) + math.log(grown) + self.num_obs / grown)

        return self.dim * log_evidence, covariance[:, -1] * self.num_obs, covariance.diag().sqrt()


CHAINS = [
    Chain(10, 3, num_obs=1, mean_tolerance=0.08, sd_tolerance=0.08, options=QUICK),
    Chain(10, 4, num_obs=1, mean_tolerance=0.07, sd_tolerance=0.06, options={"num_samples": 1000, **QUICK}),
    Chain(5, 2, num_obs=100, mean_tolerance=0.08, sd_tolerance=0.08, options=QUICK),
    # Half of what is allowed is the Monte Carlo error of 4,000 draws; so there are four times as many.
    Chain(5, 9, num_obs=1, mean_tolerance=0.08, sd_tolerance=0.08, options={"num_samples": 4000}),
]


# A minute of one large case is not worth waiting for each time.
_CHAINS = [pytest.param(chain, marks=[pytest.mark.long] if chain.length == 9 else []) for chain in CHAINS]


@pytest.mark.parametrize("chain", _CHAINS, ids=lambda chain: f"{chain.dim}x{chain.length}")
def test_gaussian_chain(fitted, chain):
    # HMC and NUTS on up to 45 dimensions: Pyro allows a root mean square error of 0.06 to 0.08.
    data = torch.ones(chain.num_obs, chain.dim)
    osds = fitted(str(chain), chain.model, data, **chain.options)
    log_evidence, means, sds = chain.exact()
    check_evidence(osds, log_evidence)
    for i, (mean, sd) in enumerate(zip(means, sds, strict=True)):
        check_site(osds, f"loc_{i}", mean.expand(chain.dim), sd.expand(chain.dim))
        draws = osds.get_samples()[f"loc_{i}"]
        assert rmse(draws.mean(0), mean) <= HALF * chain.mean_tolerance
        assert rmse(draws.std(0), sd) <= HALF * chain.sd_tolerance


# ---- regression and scales ----


def regression_data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 3, generator=generator)
    labels = torch.bernoulli((x @ torch.arange(1.0, 4.0)).sigmoid(), generator=generator)

    return x, labels


@pytest.fixture(scope="module")
def regression():
    x, labels = (values.double() for values in regression_data())
    normal = torch.distributions.Normal(double(0.0), 1.0)

    def log_density(beta):
        logits = beta @ x.T
        log_likelihood = torch.where(labels.bool(), -logits, logits)
        return normal.log_prob(beta).sum(-1) - torch.nn.functional.softplus(log_likelihood).sum(-1)

    return around_mode(log_density, double([1.0, 2.0, 3.0]), num_nodes=11)


def logistic_regression(x, labels):
    beta = pyro.sample("beta", dist.Normal(torch.zeros(3), torch.ones(3)))
    pyro.sample("y", dist.Bernoulli(logits=(beta * x).sum(-1)), obs=labels)


def logistic_regression_with_a_parameter(x, labels):
    loc = pyro.param("loc", torch.zeros(3))
    beta = pyro.sample("beta", dist.Normal(loc, torch.ones(3)))
    pyro.sample("y", dist.Bernoulli(logits=(beta * x).sum(-1)), obs=labels)


def test_logistic_regression(fitted, regression):
    # NUTS on undeclared rows: Pyro allows 0.1 to the true ones; here to the exact means.
    osds = fitted("logistic regression", logistic_regression, *regression_data(), **QUICK)
    mean, sd = regression.moments(lambda beta: beta)
    check_evidence(osds, regression.log_evidence)
    check_site(osds, "beta", mean, sd)
    assert rmse(osds.get_samples()["beta"].mean(0), mean) <= HALF * 0.1


def test_logistic_regression_with_a_parameter():
    # HMC with pyro.param: its value is a constant of the density, here by numpy, wherever it is.
    x, labels = regression_data()
    pyro.get_param_store().setdefault("loc", torch.tensor([0.5, -1.0, 2.0]))
    target = ModelTarget(logistic_regression_with_a_parameter, (x, labels))
    beta = torch.randn(64, 3, dtype=torch.float64)
    logits = beta.numpy() @ x.double().numpy().T
    log_likelihood = -np.logaddexp(0.0, np.where(labels.bool().numpy(), -logits, logits)).sum(-1)
    log_prior = stats.norm.logpdf(beta.numpy(), [0.5, -1.0, 2.0]).sum(-1)
    torch.testing.assert_close(target.log_prob(beta), double(log_prior + log_likelihood), rtol=1e-6, atol=1e-5)


def test_scales_of_a_normal(fitted):
    # HMC and NUTS on a gamma prior over two scales: Pyro allows 0.05 to the true ones.
    true = double([0.5, 2.0])
    data = (3.0 + true * double(stats.norm.ppf(QUANTILES_OF_2000))[:, None]).float()

    def model(data):
        scale = pyro.sample("scale", dist.Gamma(torch.ones(2), torch.ones(2)))
        pyro.sample("obs", dist.Normal(3, scale), obs=data)

    osds = fitted("scales", model, data, **QUICK)
    squares = (data.double() - 3.0).square().sum(0)
    by_column = [
        trapezoid(
            lambda u, squares=squares[j]: (
                u - u.exp() - 2000 * (u + 0.5 * math.log(2 * math.pi)) - 0.5 * squares * (-2 * u).exp()
            )[:, 0],
            (true[j].log().item() - 0.3, true[j].log().item() + 0.3, 401),
        )
        for j in range(2)
    ]
    check_evidence(osds, sum(column.log_evidence for column in by_column))
    moments = [column.moments(torch.exp) for column in by_column]
    check_site(osds, "scale", *(torch.cat(values) for values in zip(*moments, strict=True)))
    check_mean(osds.get_samples()["scale"], true, 0.05)


@pytest.mark.long
def test_shape_of_a_beta(fitted):
    # NUTS on both parameters of a beta with 5000 observations: Pyro allows 0.08 and 0.05 to the true ones.
    data = double(stats.beta.ppf((np.arange(5000) + 0.5) / 5000, 5.0, 1.0)).float()

    def model(data):
        alpha = pyro.sample("alpha", dist.Gamma(1.0, 1.0))
        beta = pyro.sample("beta", dist.Gamma(1.0, 1.0))
        pyro.sample("x", dist.Beta(alpha, beta), obs=data)

    def log_density(u):
        a, b = u.exp().unbind(-1)
        log_likelihood = (a - 1) * data.double().log().sum() + (b - 1) * (-data.double()).log1p().sum()
        return u.sum(-1) - a - b + log_likelihood - 5000 * log_beta(a, b)

    osds = fitted("shape", model, data, **QUICK)
    exact = trapezoid(log_density, (math.log(5.0) - 0.25, math.log(5.0) + 0.25, 301), (-0.25, 0.25, 301))
    check_evidence(osds, exact.log_evidence)
    for i, (name, true, tolerance) in enumerate([("alpha", 5.0, 0.08), ("beta", 1.0, 0.05)]):
        check_site(osds, name, *exact.moments(lambda u, i=i: u[:, i].exp()))
        check_mean(osds.get_samples()[name], true, tolerance)


# ---- discrete latents ----


def mixture(data):
    phi = pyro.sample("phi", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("components", 3):
        locs = pyro.sample("locs", dist.Normal(torch.arange(3.0), 1.0))
    with pyro.plate("data", len(data)):
        component = pyro.sample("component", dist.Categorical(phi))
        pyro.sample("obs", dist.Normal(locs[component], 1.0), obs=data)


MIXTURE_PHI, MIXTURE_LOCS = (0.1, 0.3, 0.6), (1.0, 5.0, 10.0)


def mixture_data():
    parts = []
    for share, loc in zip(MIXTURE_PHI, MIXTURE_LOCS, strict=True):
        number = round(1000 * share)
        parts.append(loc + double(stats.norm.ppf((np.arange(number) + 0.5) / number)))

    return torch.cat(parts).float()


def in_order(phi, locs):
    """Components by location, within each draw."""
    order = locs.argsort(-1)

    return phi.gather(-1, order), locs.gather(-1, order)


@pytest.fixture(scope="module")
def exact_mixture():
    """One quadrature for each order of the labels, which the prior does not treat alike."""
    data, prior_locs = mixture_data().double(), torch.arange(3.0, dtype=torch.float64)

    def shares(u):
        return torch.cat([u, u.new_zeros(len(u), 1)], -1).softmax(-1)

    def log_density(point):
        phi, locs = shares(point[:, :2]), point[:, 2:]
        normal = -0.5 * (data[:, None] - locs[:, None]).square() - 0.5 * math.log(2 * math.pi)
        log_prior = -0.5 * (locs - prior_locs).square().sum(-1) - 1.5 * math.log(2 * math.pi) + math.log(2)
        return log_prior + phi.log().sum(-1) + (normal + phi.log()[:, None]).logsumexp(-1).sum(-1)

    parts = []
    for order in itertools.permutations(range(3)):
        phi, locs = double(MIXTURE_PHI)[list(order)], double(MIXTURE_LOCS)[list(order)]
        part = around_mode(log_density, torch.cat([(phi[:2] / phi[2]).log(), locs]), num_nodes=5)
        parts.append((part.log_evidence, torch.cat(in_order(shares(part.points[:, :2]), part.points[:, 2:]), -1), part))
    log_evidence = torch.logsumexp(double([part[0] for part in parts]), 0)
    weight = torch.cat([part.weight * (part.log_evidence - log_evidence).exp() for *_, part in parts])

    return Quadrature(log_evidence.item(), torch.cat([points for _, points, _ in parts]), weight)


@pytest.mark.long
def test_gaussian_mixture(fitted, exact_mixture):
    # NUTS on three components, in order within each draw: Pyro allows 0.05 to the shares and 0.2 to the locations.
    # Exploration finds the second order of the labels, 2.5 % of the mass, and a short training does not do for two.
    osds = fitted("mixture", mixture, mixture_data())
    samples = osds.get_samples()
    phi, locs = in_order(samples["phi"], samples["locs"])
    mean, sd = exact_mixture.moments(lambda points: points)
    check_moments(torch.cat([phi, locs], -1), osds.diagnostics()["locs"]["n_eff"].min().expand(6), mean, sd)
    check_mean(phi, MIXTURE_PHI, 0.05)
    check_mean(locs, MIXTURE_LOCS, 0.2)


SWITCH_OFF, SWITCH_ON = 0.1, 0.75


def switch_data():
    """Normals around zero and two: the second with probability 0.3 times 0.75 plus 0.7 times 0.1."""
    return torch.cat(
        [loc + double(stats.norm.ppf((np.arange(number) + 0.5) / number)) for loc, number in [(0.0, 1410), (2.0, 590)]]
    ).float()


def log_switched(data, p):
    """Log density of the data when a share ``p`` of them lies around two, ``(S, 1) -> (S, N)``."""
    low, high = (-0.5 * (data.double() - loc).square() - 0.5 * math.log(2 * math.pi) for loc in (0.0, 2.0))

    return torch.logaddexp(low + (-p).log1p(), high + p.log())


@pytest.mark.long
def test_switches_of_every_observation(fitted):
    # NUTS on two layers of Bernoulli latents in a plate: Pyro allows 0.05 to the true probability.
    data = switch_data()

    def model(data):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("data", len(data)):
            y = pyro.sample("y", dist.Bernoulli(p))
            z = pyro.sample("z", dist.Bernoulli(0.65 * y + 0.1))
            pyro.sample("obs", dist.Normal(2.0 * z, 1.0), obs=data)

    def log_density(u):
        p = u.sigmoid()
        log_prior = (p.log() + (-p).log1p())[:, 0]
        return log_prior + log_switched(data, SWITCH_ON * p + SWITCH_OFF * (1 - p)).sum(-1)

    osds = fitted("switches", model, data, **QUICK)
    exact = trapezoid(log_density, (-10.0, 5.0, 601))
    check_evidence(osds, exact.log_evidence)
    check_site(osds, "p", *exact.moments(torch.sigmoid))
    check_mean(osds.get_samples()["p"], 0.3, 0.05)


def test_one_switch_for_all_observations(fitted):
    # HMC on one Bernoulli above a plate of others, and one beside it: Pyro allows 0.06; the exact mean is 1/3.
    data = switch_data()

    def model(data):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        y = pyro.sample("y", dist.Bernoulli(p))
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Bernoulli(0.65 * y + 0.1))
            pyro.sample("obs", dist.Normal(2.0 * z, 1.0), obs=data)
        pyro.sample("nuisance", dist.Bernoulli(0.3))

    osds = fitted("switch", model, data)
    off, on = log_switched(data, double([[SWITCH_OFF], [SWITCH_ON]])).sum(-1)
    assert off - on > 100  # so that the posterior is Beta(1, 2)
    check_evidence(osds, torch.logaddexp(off, on).item() - math.log(2))
    check_site(osds, "p", *(value[None] for value in beta_moments(double(1.0), double(2.0))))
    check_mean(osds.get_samples()["p"], 1 / 3, 0.06)


# ---- hidden Markov models ----


def hidden_markov(data):
    start = pyro.sample("start", dist.Dirichlet(torch.ones(4)))
    with pyro.plate("states", 4):
        moves = pyro.sample("moves", dist.Dirichlet(torch.ones(4, 4)))
        loc = pyro.sample("loc", dist.Normal(torch.zeros(4), torch.ones(4)))
        scale = pyro.sample("scale", dist.LogNormal(torch.zeros(4), torch.ones(4)))
    state = None
    for t, y in pyro.markov(enumerate(data)):
        state = pyro.sample(f"state_{t}", dist.Categorical(start if state is None else moves[state]))
        pyro.sample(f"y_{t}", dist.Normal(loc[state], scale[state]), obs=y)


def hidden_markov_data(num_steps):
    """A walk over states with locations 0 to 3 and scale one, as Pyro makes it; ``num_steps + 1`` observations."""
    generator = torch.Generator().manual_seed(0)
    moves = torch.rand(4, 4, generator=generator)
    states = [1]
    for _ in range(num_steps):
        states.append(torch.multinomial(moves[states[-1]], 1, generator=generator).item())

    return torch.tensor(states) + torch.randn(num_steps + 1, generator=generator)


def forward(start, moves, log_emission):
    """Log likelihood of a hidden Markov model, ``(S, K), (S, K, K), (S, T, K) -> (S,)``."""
    alpha = start.log() + log_emission[:, 0]
    for t in range(1, log_emission.shape[1]):
        alpha = (alpha[:, :, None] + moves.log()).logsumexp(1) + log_emission[:, t]

    return alpha.logsumexp(-1)


@pytest.mark.parametrize("num_steps", [2, 3, 30])
def test_density_of_a_hidden_markov_model(float64, num_steps):
    # NUTS on pyro.markov only has to run at Pyro; here the density, against the forward algorithm.
    data = hidden_markov_data(num_steps).double()
    target = ModelTarget(hidden_markov, (data,))
    z = torch.randn(8, target.dim)
    values = target.constrain(z)
    log_emission = dist.Normal(values["loc"][:, None], values["scale"][:, None]).log_prob(data[:, None])
    log_prior, log_likelihood = target.log_prior_and_likelihood(z)
    torch.testing.assert_close(log_likelihood, forward(values["start"], values["moves"], log_emission))
    # In the model's own coordinates the prior of the simplex is 3!, and stick breaking has a triangular Jacobian.
    sticks = z[:, :15].reshape(-1, 5, 3) - torch.tensor([3.0, 2.0, 1.0]).log()
    simplices = torch.cat([values["start"][:, None], values["moves"]], 1)
    remaining = 1 - torch.cat([torch.zeros(8, 5, 1), simplices[..., :2].cumsum(-1)], -1)
    jacobian = remaining.log() + torch.nn.functional.logsigmoid(sticks) + torch.nn.functional.logsigmoid(-sticks)
    normals = dist.Normal(0.0, 1.0).log_prob(z[:, 15:]).sum(-1)
    torch.testing.assert_close(log_prior, 5 * math.log(6) + jacobian.sum((1, 2)) + normals)


def one_state(y):
    """Log evidence of the observations of one state, with location N(0, 1) and scale LogNormal(0, 1), and their sum's
    share in the location's posterior mean."""
    if not len(y):
        return 0.0, 0.0

    def log_density(u):
        variance = (2 * u[:, 0]).exp()
        log_det = 2 * (len(y) - 1) * u[:, 0] + (variance + len(y)).log()
        square = (y.square().sum() - y.sum() ** 2 / (variance + len(y))) / variance
        log_scale = -0.5 * u[:, 0] ** 2 - 0.5 * math.log(2 * math.pi)
        return log_scale - 0.5 * (len(y) * math.log(2 * math.pi) + log_det + square)

    posterior = trapezoid(log_density, (-10.0, 10.0, 801))
    mean, _ = posterior.moments(lambda u: y.sum() / (len(y) + (2 * u[:, 0]).exp()))

    return posterior.log_evidence, mean.item()


def exact_hidden_markov(data):
    """Log evidence and posterior mean of a location, by summing over all sequences of states."""
    num_obs, subsets = len(data), {}
    log_weights, means = [], []
    for states in itertools.product(range(4), repeat=num_obs):
        log_weight, total = -math.log(4), 0.0
        for k in range(4):
            subset = tuple(t for t in range(num_obs) if states[t] == k)
            if subset not in subsets:
                subsets[subset] = one_state(data[list(subset)])
            counts = [sum(pair == (k, j) for pair in itertools.pairwise(states)) for j in range(4)]
            log_weight += math.lgamma(4) - math.lgamma(4 + sum(counts)) + sum(map(math.lgamma, np.array(counts) + 1.0))
            log_weight += subsets[subset][0]
            total += subsets[subset][1] / 4
        log_weights.append(log_weight)
        means.append(total)
    log_weights = double(log_weights)

    return log_weights.logsumexp(0).item(), (log_weights.softmax(0) * double(means)).sum().item()


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [2])
def test_short_hidden_markov_model(fitted, num_steps):
    # NUTS only has to run at Pyro; here 23 dimensions with 24 orders of the labels, against the sum over sequences.
    data = hidden_markov_data(num_steps)
    osds = fitted(f"hidden Markov {num_steps}", hidden_markov, data, num_iterations=300)
    log_evidence, loc = exact_hidden_markov(data.double())
    check_evidence(osds, log_evidence)
    check_labels(osds)
    locs = osds.get_samples()["loc"]
    n_eff = osds.diagnostics()["loc"]["n_eff"]
    for k in range(4):
        assert_within_standard_error(locs[:, k].mean(), loc, (locs[:, k].std() / n_eff[k].sqrt()).item())


def check_labels(osds):
    """By symmetry every state is as good as every other."""
    samples, diagnostics = osds.get_samples(), osds.diagnostics()
    start, n_eff = samples["start"], diagnostics["start"]["n_eff"]
    for k in range(4):
        assert_within_standard_error(start[:, k].mean(), 0.25, (start[:, k].std() / n_eff[k].sqrt()).item())
    loc, n_eff = samples["loc"], diagnostics["loc"]["n_eff"].min()
    for j, k in itertools.combinations(range(4), 2):
        difference = loc[:, j] - loc[:, k]
        assert_within_standard_error(difference.mean(), 0.0, (difference.std() / n_eff.sqrt()).item())


@pytest.mark.long
def test_hidden_markov_model_with_two_unknowns(fitted):
    # Thirty steps of two states with unknown locations only, which Pyro does not have: against quadrature.
    start, moves = torch.tensor([0.5, 0.5]), torch.tensor([[0.9, 0.1], [0.3, 0.7]])
    data = hidden_markov_data(30)

    def model(data):
        with pyro.plate("states", 2):
            loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
        state = None
        for t, y in pyro.markov(enumerate(data)):
            state = pyro.sample(f"state_{t}", dist.Categorical(start if state is None else moves[state]))
            pyro.sample(f"y_{t}", dist.Normal(loc[state], 1.0), obs=y)

    def log_density(loc):
        log_emission = dist.Normal(loc[:, None], 1.0).log_prob(data.double()[:, None])
        chain = start.double()[None], moves.double()[None]
        return dist.Normal(double(0.0), 3.0).log_prob(loc).sum(-1) + forward(*chain, log_emission)

    osds = fitted("two unknowns", model, data)
    exact = trapezoid(log_density, (-16.0, 16.0, 257), (-16.0, 16.0, 257))
    check_evidence(osds, exact.log_evidence)
    check_site(osds, "loc", *exact.moments(lambda loc: loc))


# ---- conjugate pairs below priors of their own ----

TOTALS, PROBS = np.array([[1000, 600], [400, 800]]), np.array([[0.7, 0.4], [0.6, 0.4]])
RATES = np.array([3.0, 10.0])


def binomial_data():
    quantiles = (np.arange(10) + 0.5) / 10

    return double(stats.binom.ppf(quantiles[:, None, None], TOTALS, PROBS)).to(torch.get_default_dtype())


def poisson_data():
    quantiles = (np.arange(100) + 0.5) / 100

    return double(stats.poisson.ppf(quantiles[:, None], RATES)).to(torch.get_default_dtype())


def hyper(name, is_latent):
    return pyro.sample(name, dist.HalfCauchy(1.0)) if is_latent else torch.ones(2)


def beta_binomial(data, hyperpriors):
    total = torch.tensor(TOTALS).to(data.dtype)
    with pyro.plate("columns", 2):
        alpha, beta = hyper("alpha", hyperpriors), hyper("beta", hyperpriors)
        pair = BetaBinomialPair()
        with pyro.plate("rows", 2):
            probs = pyro.sample("probs", pair.latent(alpha, beta))
            with pyro.plate("data", len(data)):
                pyro.sample("obs", pair.conditional(probs=probs, total_count=total), obs=data)


def gamma_poisson(data, hyperpriors):
    with pyro.plate("columns", 2):
        alpha, beta = hyper("alpha", hyperpriors), hyper("beta", hyperpriors)
        pair = GammaPoissonPair()
        rate = pyro.sample("rate", pair.latent(alpha, beta))
        with pyro.plate("data", len(data)):
            pyro.sample("obs", pair.conditional(rate), obs=data)


def log_binomials(column, a, b, collapsed):
    """Log density of a column of binomials, ``(S,)``; collapsed, Pyro gives every count a probability of its own."""
    data, totals = binomial_data().double()[..., column], double(TOTALS)[:, column]
    choose = (torch.lgamma(totals + 1) - torch.lgamma(data + 1) - torch.lgamma(totals - data + 1)).sum()
    if not collapsed:
        data, totals = data.sum(0, keepdim=True), len(data) * totals
    ones, zeros = data.flatten(), (totals - data).flatten()
    mixed = log_beta(a[:, None] + ones, b[:, None] + zeros) - log_beta(a, b)[:, None]

    return choose + mixed.sum(-1)


def log_poissons(column, a, b, collapsed):
    """Log density of a column of counts, ``(S,)``; collapsed, Pyro gives every count a rate of its own."""
    data = poisson_data().double()[:, column]
    factorials = torch.lgamma(data + 1).sum()
    counts, number = (data, 1) if collapsed else (data.sum()[None], len(data))
    a, b = a[:, None], b[:, None]
    mixed = torch.lgamma(a + counts) - torch.lgamma(a) + a * b.log() - (a + counts) * (b + number).log()

    return mixed.sum(-1) - factorials


def compound_binomial(data, hyperpriors):
    with pyro.plate("columns", 2):
        alpha, beta = hyper("alpha", hyperpriors), hyper("beta", hyperpriors)
        with pyro.plate("rows", 2), pyro.plate("data", len(data)):
            pyro.sample("obs", dist.BetaBinomial(alpha, beta, torch.tensor(TOTALS).to(data.dtype)), obs=data)


def compound_poisson(data, hyperpriors):
    with pyro.plate("columns", 2):
        alpha, beta = hyper("alpha", hyperpriors), hyper("beta", hyperpriors)
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.GammaPoisson(alpha, beta), obs=data)


@dataclass(frozen=True)
class Pair:
    """A conjugate pair and what Pyro allows the mean of its latent site to be off the truth."""

    model: object
    compound: object
    data: object
    log_likelihood: object
    site: str
    truth: np.ndarray
    tolerance: float

    def log_evidence(self, hyperpriors, collapsed):
        """By formula, or by quadrature over the logarithms of one parameter and of the ratio of both."""
        ones = torch.ones(1, dtype=torch.float64)
        if not hyperpriors:
            return sum(self.log_likelihood(column, ones, ones, collapsed).item() for column in range(2))

        def log_density(u, column):
            log_a, log_b = u[:, 0], u[:, 0] + u[:, 1]
            log_prior = sum(math.log(2 / math.pi) + v - torch.logaddexp(0 * v, 2 * v) for v in (log_a, log_b))
            return log_prior + self.log_likelihood(column, log_a.exp(), log_b.exp(), collapsed)

        # Collapsed, the ratio is known well; otherwise only where both parameters are large.
        box = ((-4.0, 12.0, 161), (-4.0, 4.0, 801)) if collapsed else ((-16.0, 14.0, 151), (-14.0, 14.0, 2801))

        return sum(trapezoid(partial(log_density, column=column), *box).log_evidence for column in range(2))

    def size(self):
        """Sum of the log factorials in the density of the data, which cancel to a part."""
        counts = self.data()
        totals = 10 * torch.tensor(TOTALS) if self.site == "probs" else counts

        return torch.lgamma(totals.double() + 1).sum().item() + torch.lgamma(counts.double() + 1).sum().item()


PAIRS = {
    "beta_binomial": Pair(beta_binomial, compound_binomial, binomial_data, log_binomials, "probs", PROBS, 0.05),
    "gamma_poisson": Pair(gamma_poisson, compound_poisson, poisson_data, log_poissons, "rate", RATES, 0.3),
}
HYPERPRIORS = pytest.mark.parametrize(
    "hyperpriors", [False, pytest.param(True, marks=pytest.mark.long)], ids=["fixed", "hyperpriors"]
)


@HYPERPRIORS
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_conjugate_pair(fitted, pair, hyperpriors):
    # The models as they stand: Pyro allows 0.05 to the true probabilities and 0.3 to the true rates.
    options = {} if hyperpriors else QUICK
    osds = fitted(f"{pair.site} {hyperpriors}", pair.model, pair.data(), hyperpriors, **options)
    check_evidence(osds, pair.log_evidence(hyperpriors, collapsed=False), pair.size())
    check_mean(osds.get_samples()[pair.site], pair.truth, pair.tolerance)
    if not hyperpriors and pair.site == "probs":
        ones, totals = pair.data().double().sum(0), 10 * double(TOTALS)
        check_site(osds, "probs", *beta_moments(1 + ones, 1 + totals - ones))
    if not hyperpriors and pair.site == "rate":
        counts = 1 + pair.data().double().sum(0)
        check_site(osds, "rate", counts / 101, counts.sqrt() / 101)


@pytest.mark.filterwarnings("ignore:The model runs point by point:UserWarning")  # Pyro samples what it collapses
@pytest.mark.parametrize("collapse", [False, True], ids=["compound", "collapsed"])
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_collapsed_conjugate_pair(fitted, float64, pair, collapse):
    # NUTS on models without the latent, by hand or by collapse_conjugate: Pyro allows 0.05 and 0.3 after its replay.
    model = collapse_conjugate(pair.model) if collapse else pair.compound
    osds = fitted(f"{collapse} {pair.site}", model, pair.data(), False)
    assert set(osds.get_samples()) == set()
    check_evidence(osds, pair.log_evidence(False, collapsed=True), pair.size())
    replayed = posterior_replay(pair.model, {}, pair.data(), False, num_samples=100)
    check_mean(replayed[pair.site], pair.truth, pair.tolerance)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compound_poisson_whose_log_gammas_do_not_cancel(fitted, float64):
    # Where both hyperparameters are near exp(30) the density that Pyro computes is rounding, of thousands of nats, and
    # the flow finds it. NUTS does not get there; here the verdict has to speak.
    pair = PAIRS["gamma_poisson"]
    osds = fitted("compound rate", pair.compound, pair.data(), True, **QUICK)
    assert not osds.evidence.reliable


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compound_binomial_with_hyperpriors(fitted, float64):
    pair = PAIRS["beta_binomial"]
    osds = fitted("compound probs", pair.compound, pair.data(), True, **QUICK)
    check_evidence(osds, pair.log_evidence(True, collapsed=True), pair.size())


# ---- potential functions ----


def test_unnormalised_normal(fitted):
    # HMC and NUTS on a potential function: Pyro allows 5 % of the mean 5 and of the standard deviation 1.
    def potential_fn(params):
        return 0.5 * (params["z"] - 5.0).square().sum()

    options = {"potential_fn": potential_fn, "initial_params": {"z": torch.tensor(0.0)}}
    osds = fitted("unnormalised", None, num_samples=2000, **options)
    check_evidence(osds, 0.5 * math.log(2 * math.pi))
    check_site(osds, "z", [5.0], [1.0])
    z = osds.get_samples()["z"]
    assert abs(z.mean() - 5.0) <= HALF * 0.05 * 5.0 and abs(z.std() - 1.0) <= HALF * 0.05


def test_potential_of_one_element(fitted):
    # A potential of shape (1,) for a site of shape (1, 2) only has to run at Pyro; here its moments and evidence.
    def potential_fn(params):
        return -dist.Normal(torch.tensor([10.0, 0.0]), 1.0).log_prob(params["points"]).sum(-1)

    options = {"potential_fn": potential_fn, "initial_params": {"points": torch.zeros(1, 2)}}
    osds = fitted("points", None, **options, **QUICK)
    assert osds.get_samples()["points"].shape == (2000, 1, 2)
    check_evidence(osds, 0.0)
    check_site(osds, "points", [[10.0, 0.0]], [[1.0, 1.0]])


def test_potential_that_falls_without_an_end():
    # The same, asked of the density alone.
    target = PotentialTarget(lambda params: params["z"], {"z": torch.tensor(0.0)})
    assert find_endless(target, torch.zeros(1).double(), torch.eye(1).double()) is not None


@pytest.mark.long  # a run follows it as far as numbers reach
def test_potential_without_a_posterior():
    # HMC takes ten steps along the potential z at Pyro, whose integral is infinite; here that is an error.
    with pytest.raises(ValueError, match="not finite"):
        fit(potential_fn=lambda params: params["z"], initial_params={"z": torch.tensor(0.0)}, **QUICK)


@pytest.mark.parametrize("operation", [torch.inverse, torch.linalg.cholesky])
def test_singular_matrix(operation):
    # A point at which linear algebra fails has no density, and the others of its batch keep theirs.
    target = PotentialTarget(lambda params: operation(params["cov"]).sum(), {"cov": torch.eye(3)})
    log_prob = target.log_prob(torch.stack([torch.eye(3), torch.ones(3, 3)]).reshape(2, 9))
    assert log_prob[0] == -3.0 and not log_prob[1].isfinite()


# ---- Gaussians for mass matrices ----


def blocks(covariance):
    w = pyro.sample("w", dist.Normal(0, 1000).expand([2]).to_event(1))
    x, y, z = (pyro.sample(name, dist.Normal(0, 1000).expand([1]).to_event(1)) for name in "xyz")
    gaussian = dist.MultivariateNormal(torch.zeros(5), covariance)
    pyro.sample("obs", gaussian, obs=torch.cat([w, x, y, z]))


def arrowhead(covariance):
    w = pyro.sample("w", dist.Normal(0, 1000).expand([2]).to_event(1))
    x, y = (pyro.sample(name, dist.Normal(0, 1000).expand([1]).to_event(1)) for name in "xy")
    z = pyro.sample("z", dist.Normal(0, 1000).expand([2]).to_event(1))
    gaussian = dist.MultivariateNormal(torch.zeros(6), precision_matrix=covariance.inverse())
    pyro.sample("obs", gaussian, obs=torch.cat([w, x, y, z]))


def block_covariance():
    covariance = torch.block_diag(torch.tensor([[1.5, 0.5], [0.5, 1.5]]), torch.tensor([[2.0, 1.0], [1.0, 3.0]]))

    return torch.block_diag(covariance, torch.tensor(2.5))


def dense_covariance():
    root = torch.randn(6, 12, generator=torch.Generator().manual_seed(0))

    return (0.1 * root @ root.T).inverse()


@pytest.mark.parametrize(("model", "covariance"), [(blocks, block_covariance()), (arrowhead, dense_covariance())])
def test_gaussian_below_wide_priors(fitted, model, covariance):
    # NUTS's mass matrix: Pyro allows 0.5 plus 50 % of covariances, 0.2 plus 20 % of precisions; here of the draws'.
    osds = fitted(model.__name__, model, covariance, **({} if model is blocks else QUICK))
    wide = covariance.double() + 1e6 * torch.eye(len(covariance))
    check_evidence(osds, dist.MultivariateNormal(wide.new_zeros(len(wide)), wide).log_prob(0 * wide[0]).item())
    exact = (covariance.double().inverse() + 1e-6 * torch.eye(len(covariance))).inverse()
    draws = torch.cat([osds.get_samples()[name] for name in "wxyz"], -1)
    n_eff = torch.cat([osds.diagnostics()[name]["n_eff"] for name in "wxyz"])
    check_moments(draws, n_eff, torch.zeros(len(exact)), exact.diag().sqrt())
    sampled = draws.double().T.cov()
    std_error = ((exact**2 + exact.diag()[:, None] * exact.diag()) / n_eff.min()).sqrt()
    for i, j in itertools.product(range(len(exact)), repeat=2):
        assert_within_standard_error(sampled[i, j], exact[i, j], std_error[i, j].item())
    if model is blocks:
        assert torch.all((sampled - exact).abs() <= HALF * (0.5 + 0.5 * exact.abs()))
    else:
        assert torch.all((sampled.inverse() - exact.inverse()).abs() <= HALF * (0.2 + 0.2 * exact.inverse().abs()))


# ---- the interface ----


def normal_normal(data):
    y = pyro.sample("y", dist.Normal(torch.tensor([0.0]), torch.ones(data.shape)))
    pyro.sample("obs", dist.Normal(y, torch.tensor([1.0])), obs=data)


@pytest.mark.parametrize("num_chains", [1, 2])
def test_shapes_and_moments_of_samples(fitted, num_chains):
    # With and without a number of draws, by chain or not: Pyro allows 0.1 to mean and standard deviation.
    data = torch.tensor([1.0])
    osds = fitted(f"normal {num_chains}", normal_normal, data, num_samples=2000, num_chains=num_chains, **QUICK)
    check_evidence(osds, stats.norm.logpdf(1.0, 0.0, math.sqrt(2)))
    check_site(osds, "y", [0.5], [math.sqrt(0.5)])
    assert osds.diagnostics()["y"]["n_eff"].shape == osds.diagnostics()["y"]["r_hat"].shape == data.shape
    assert set(osds.diagnostics()["acceptance rate"]) == {f"chain {i}" for i in range(num_chains)}
    for num_draws in (None, 1800, 2200):
        assert osds.get_samples(num_draws, group_by_chain=True)["y"].shape == (num_chains, num_draws or 2000, 1)
        draws = osds.get_samples(num_draws)["y"]
        assert draws.shape == (num_draws or num_chains * 2000, 1)
        assert abs(draws.mean() - 0.5) <= HALF * 0.1 and abs(draws.std() - math.sqrt(0.5)) <= HALF * 0.1


@pytest.mark.parametrize("num_chains", [1, 2])
def test_model_without_sites(num_chains):
    # No draws at Pyro; here it is said that there is nothing to fit, since a forgotten pyro.sample looks the same.
    with pytest.raises(ValueError, match="without a sample site"):
        fit(lambda: torch.tensor(1), num_samples=10, num_chains=num_chains)


def five_coins(data=None):
    with pyro.plate("coins", 5):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("tosses", 1000):
            pyro.sample("obs", dist.Bernoulli(p), obs=data)


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive(fitted, parallel):
    # Shapes of posterior predictive draws, and their mean, for which Pyro allows 10 %.
    truth = torch.tensor([0.2, 0.3, 0.4, 0.8, 0.5])
    data = successes([200, 300, 400, 800, 500], 1000)
    osds = fitted("five coins", five_coins, data, num_samples=100, num_chains=1, **QUICK)
    ones = data.double().sum(0)
    check_evidence(osds, log_beta(1 + ones, 1001 - ones).sum().item())
    predictive = Predictive(five_coins, osds.get_samples(), return_sites=["p", "obs"], parallel=parallel)()
    assert predictive["p"].shape == (100, 1, 5) and predictive["obs"].shape == (100, 1000, 5)
    torch.testing.assert_close(predictive["obs"].mean((0, 1)), truth, rtol=HALF * 0.1, atol=0.0)


def learnt_location():
    loc = pyro.param("loc", torch.tensor(1.0))
    pyro.sample("y", dist.Normal(loc, 1))


@pytest.mark.parametrize("num_chains", [1, 2])
def test_model_with_a_parameter(num_chains):
    # It only has to run at Pyro; here the parameter is a constant, and the evidence one.
    osds = fit(learnt_location, num_chains=num_chains, **QUICK)
    check_evidence(osds, 0.0)
    check_site(osds, "y", [1.0], [1.0])


def log_normal():
    return pyro.sample("x", dist.LogNormal(0, 1))


STRATEGIES = {
    "feasible": init_to_feasible,
    "mean": init_to_mean,
    "median": init_to_median,
    "sample": init_to_sample,
    "uniform": init_to_uniform,
    "value": init_to_value,
    "feasible()": init_to_feasible(),
    "mean()": init_to_mean(),
    "median(4)": init_to_median(num_samples=4),
    "sample()": init_to_sample(),
    "uniform(0.1)": init_to_uniform(radius=0.1),
    "value(3)": init_to_value(values={"x": torch.tensor(3.0)}),
    "generated": init_to_generated(generate=lambda: init_to_value(values={"x": torch.rand(())})),
}


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_init_strategy(strategy):
    # Each of them only has to run at Pyro; here the density must not depend on where a run starts.
    target = ModelTarget(log_normal, init_strategy=strategy)
    z = torch.linspace(-3.0, 3.0, 64, dtype=torch.float64)[:, None]
    assert target.start.shape == (1,) and target.log_prob(target.start[None]).isfinite().all()
    torch.testing.assert_close(target.log_prob(z), dist.Normal(0.0, 1.0).log_prob(z[:, 0]))


@pytest.mark.parametrize("strategy", ["feasible", "uniform(0.1)", "value(3)"])
def test_evidence_wherever_a_run_starts(strategy):
    # At the origin, at a random place, at a place that is given: the evidence is one.
    osds = fit(log_normal, init_strategy=STRATEGIES[strategy], num_iterations=50, num_particles=16)
    check_evidence(osds, 0.0)


def test_init_to_value():
    # The first run of the model is where it is told to be, exactly as at Pyro.
    value = torch.randn(()).exp() * 10
    target = ModelTarget(log_normal, init_strategy=partial(init_to_value, values={"x": value}))
    torch.testing.assert_close(target.constrain(target.start[None])["x"][0], value)


# ---- enumeration, exactly ----


def brute_force(model, *args):
    """The log density of a model with Bernoulli latents only, summed over all of their joint values."""
    sites = poutine.trace(model).get_trace(*args).nodes.items()
    shapes = {
        name: site["value"].shape
        for name, site in sites
        if site["type"] == "sample" and not site["is_observed"] and site["fn"].has_enumerate_support
    }
    sizes = [shape.numel() for shape in shapes.values()]
    terms = []
    for bits in itertools.product([0.0, 1.0], repeat=sum(sizes)):
        parts = torch.tensor(bits).split(sizes)
        values = {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        terms.append(poutine.trace(poutine.condition(model, values)).get_trace(*args).log_prob_sum())

    return torch.stack(terms).logsumexp(0)


def noisy_switches(data):
    p = pyro.sample("p", dist.Uniform(0.0, 1.0))
    y = pyro.sample("y", dist.Bernoulli(p))
    with pyro.plate("data", len(data)):
        z = pyro.sample("z", dist.Bernoulli(0.5 + 0.25 * y))
        pyro.sample("obs", dist.Normal(2 * z - 1, 1.0), obs=data)


def seen_switches(data):
    p = pyro.sample("p", dist.Uniform(0.0, 1.0))
    y = pyro.sample("y", dist.Bernoulli(p))
    with pyro.plate("data", len(data)):
        pyro.sample("obs", dist.Bernoulli(0.5 + 0.25 * y), obs=data)


def two_plates(data):
    p = pyro.sample("p", dist.Beta(1.1, 1.1))
    y = pyro.sample("y", dist.Bernoulli(p))
    with pyro.plate("first", len(data)):
        pyro.sample("obs_first", dist.Bernoulli(0.5 + 0.25 * y), obs=data)
    with pyro.plate("second", len(data)):
        pyro.sample("obs_second", dist.Bernoulli(0.4 + 0.2 * y), obs=data)


def nested_plates(data):
    p = pyro.sample("p", dist.Uniform(0.0, 1.0))
    y = pyro.sample("y", dist.Bernoulli(p))
    with pyro.plate("outer", 1, dim=-2):
        v = pyro.sample("v", dist.Bernoulli(0.5 + 0.25 * y))
        with pyro.plate("data", len(data), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(0.4 + 0.1 * v))
            pyro.sample("obs", dist.Normal(2 * z - 1, 1.0), obs=data)


ENUMERATED = [
    (noisy_switches, [1.0], -1.3434),
    (noisy_switches, [0.0], -1.4189),
    (noisy_switches, [1.0, 0.0, 0.0], -4.1813),
    (seen_switches, [1.0], -0.5108),
    (seen_switches, [1.0, 1.0], -0.9808),
    (seen_switches, [1.0, 0.0, 0.0], -2.3671),
    (two_plates, [1.0], -1.15),
    (two_plates, [0.0], -1.46),
    (two_plates, [1.0, 1.0], -2.1998),
    (nested_plates, [1.0], -1.5478),
    (nested_plates, [0.0], -1.4189),
    (nested_plates, [1.0, 0.0, 0.0], -4.3857),
]


@pytest.mark.parametrize(("model", "data", "pyros"), ENUMERATED)
def test_enumerated_density(model, data, pyros):
    # At p = 0.4, given or sampled there, against all joint values; Pyro allows 1e-3 to the numbers in its tests.
    data, p = torch.tensor(data), torch.tensor(0.4)
    at_p = poutine.condition(model, {"p": p})
    expected = brute_force(at_p, data)
    assert abs(expected.item() - pyros) <= HALF * 1e-3
    given = ModelTarget(at_p, (data,))
    assert given.dim == 0
    torch.testing.assert_close(given.log_prob(torch.zeros(2, 0)), expected.double().expand(2))
    sampled = ModelTarget(model, (data,)).log_prob(p.logit().expand(64, 1))
    torch.testing.assert_close(sampled - (p * (1 - p)).log(), expected.double().expand(64))


@pytest.mark.parametrize("data", [[1.0], [0.0], [1.0, 1.0], [1.0, 0.0, 0.0]])
def test_enumerated_parent_of_a_latent(data):
    # One value of the latent below the switch, where Pyro has one for each of the switch's; against the sum by hand.
    data = torch.tensor(data)

    def model(data):
        p = pyro.sample("p", dist.Uniform(0.0, 1.0))
        y = pyro.sample("y", dist.Bernoulli(p))
        n = pyro.sample("n", dist.Normal(2 * y - 1, 1.0))
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.Bernoulli(torch.sigmoid(n)), obs=data)

    target = ModelTarget(model, (data,))
    z = torch.randn(64, 2)
    p, n = z[:, :1].sigmoid(), z[:, 1:]
    joint = torch.cat([1 - p, p], -1).log() + dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).log_prob(n)
    expected = joint.logsumexp(-1) + dist.Bernoulli(logits=n).log_prob(data).sum(-1) + (p * (1 - p)).log()[:, 0]
    torch.testing.assert_close(target.log_prob(z), expected.double())


def test_discrete_sites_only():
    # Without observations the sum over all joint values is one, as at Pyro to 1e-4.
    def model():
        outer, first, second = pyro.plate("outer", 2, dim=-1), pyro.plate("i", 1, dim=-2), pyro.plate("j", 1, dim=-3)
        coin = dist.Bernoulli(0.3)
        pyro.sample("w", coin)
        with outer:
            pyro.sample("x", coin)
        with outer, first:
            pyro.sample("y", coin)
        with outer, second:
            pyro.sample("z", coin)

    target = ModelTarget(model)
    assert target.discrete_sites == ("w", "x", "y", "z")
    torch.testing.assert_close(target.log_prob(torch.zeros(1, 0)), torch.zeros(1).double(), atol=1e-6, rtol=0.0)


@pytest.mark.filterwarnings("ignore:The observation of site")  # one value for all places, as at Pyro
def test_enumeration_in_a_tree_of_plates():
    # Switches that nothing depends on leave nine normals, -15.2704 in sum; Pyro allows 1e-4.
    def model():
        outer, rows = pyro.plate("outer", 2, dim=-1), pyro.plate("rows", 3, dim=-2)
        layers, more = pyro.plate("layers", 2, dim=-3), pyro.plate("more", 2, dim=-4)
        coin, normal = dist.Bernoulli(0.3), dist.Normal(0.0, 1.0)
        pyro.sample("y", coin)
        pyro.sample("a", normal)
        with outer, rows:
            pyro.sample("z_0", coin)
            pyro.sample("b", normal)
        with outer:
            pyro.sample("z_1", coin)
            pyro.sample("c", normal)
            with layers, more:
                pyro.sample("z_2", coin)
            with rows:
                pyro.sample("z_3", coin)

    values = {"a": torch.tensor(0.0), "b": torch.tensor(1.0), "c": torch.tensor(2.0)}
    given = ModelTarget(poutine.condition(model, values)).log_prob(torch.zeros(1, 0)).item()
    assert abs(given - -15.2704) <= HALF * 1e-4
    z = torch.cat([torch.zeros(1), torch.ones(6), torch.full((2,), 2.0)])[None]
    assert abs(ModelTarget(model).log_prob(z).item() - given) <= 1e-5


@pytest.mark.filterwarnings("ignore:The observation of site")
def test_enumeration_across_plates():
    # Switches in plates that cross, which Pyro expects to fail: three beta densities at 0.4 remain, 0.16196 in sum.
    def model():
        columns, rows = pyro.plate("columns", 3, dim=-1), pyro.plate("rows", 2, dim=-2)
        coin, share = dist.Bernoulli(0.3), dist.Beta(1.1, 1.1)
        pyro.sample("w", coin)
        pyro.sample("b", share)
        with columns:
            pyro.sample("x", coin)
        with rows:
            pyro.sample("c", share)
            pyro.sample("y", coin)
        with columns, rows:
            pyro.sample("z", coin)

    values = {"b": torch.tensor(0.4), "c": torch.tensor(0.4)}
    given = ModelTarget(poutine.condition(model, values)).log_prob(torch.zeros(1, 0)).item()
    assert abs(given - 3 * stats.beta.logpdf(0.4, 1.1, 1.1)) <= 1e-5
    assert abs(given - 0.16196) <= HALF * 1e-3


def test_enumeration_deep_down():
    # Four plates and five layers of switches; Pyro looks at the order of its sums, here is the sum, leaf by leaf.
    def model():
        outer, layers = pyro.plate("outer", 3, dim=-1), pyro.plate("layers", 4, dim=-3)
        rows, more = pyro.plate("rows", 5, dim=-2), pyro.plate("more", 6, dim=-4)
        p = pyro.sample("p", dist.Uniform(0.0, 1.0))
        y = pyro.sample("y", dist.Bernoulli(p))
        q = 0.5 + 0.25 * y
        with outer, rows:
            z = pyro.sample("z_0", dist.Bernoulli(q))
            pyro.sample("obs_0", dist.Normal(2 * z - 1, 1.0), obs=torch.ones(5, 3))
        with outer:
            v = pyro.sample("v", dist.Bernoulli(q))
            r = 0.4 + 0.1 * v
            with layers, more:
                z = pyro.sample("z_1", dist.Bernoulli(r))
                pyro.sample("obs_1", dist.Normal(2 * z - 1, 1.0), obs=torch.ones(6, 4, 1, 3))
            with rows:
                z = pyro.sample("z_2", dist.Bernoulli(r))
                pyro.sample("obs_2", dist.Normal(2 * z - 1, 1.0), obs=torch.ones(5, 3))

    def seen(p):
        return p * stats.norm.pdf(0.0) + (1 - p) * stats.norm.pdf(2.0)

    def column(q):
        below = [(1 - q) * seen(0.4) ** 29, q * seen(0.5) ** 29]
        return seen(q) ** 5 * sum(below)

    expected = math.log(0.6 * column(0.5) ** 3 + 0.4 * column(0.75) ** 3)
    log_prob = ModelTarget(model).log_prob(torch.tensor([[0.4]]).logit()).item() - math.log(0.24)
    assert abs(log_prob - expected) <= 1e-5 * abs(expected)


# ---- models that are refused, and some that are not ----


def small_mixture(in_plate, concentration):
    data = torch.tensor([0.0, 0.0, 3.0, 3.0, 3.0, 5.0, 5.0])
    phi = pyro.sample("phi", dist.Dirichlet(concentration))
    with pyro.plate("components", 3) if in_plate else poutine.block(hide=[]):
        locs = pyro.sample("locs", dist.Normal(torch.arange(3.0), 1.0))
    with pyro.plate("data", len(data)):
        component = pyro.sample("component", dist.Categorical(phi))
        pyro.sample("obs", dist.Normal(locs[component], 1.0), obs=data)


@pytest.mark.parametrize("options", [{}, {"max_plate_nesting": 1}])
def test_stray_dimensions_beside_discrete_latents(options):
    # A vector without a plate is an error at Pyro. Here it is none where no discrete value changes its density.
    log_prob = ModelTarget(small_mixture, (False, torch.ones(3)), **options).log_prob(torch.zeros(1, 5)).item()
    # The shares are 1/3 at the origin, by softmax up to a constant that both have in common.
    in_plate = ModelTarget(small_mixture, (True, torch.ones(3))).log_prob(torch.zeros(1, 5)).item()
    assert log_prob == pytest.approx(in_plate, rel=1e-9)


def test_enumerated_dimensions_that_clash_with_plates():
    # Too few dimensions for the plates are an error as at Pyro, and so is a simplex without a dimension.
    with pytest.raises(ValueError, match="'locs' lies 1 plates deep, but max_plate_nesting is 0"):
        fit(small_mixture, True, torch.ones(3), max_plate_nesting=0)
    with pytest.raises(ValueError, match="failed before its first site, in `phi"):
        fit(small_mixture, True, torch.tensor(1.0), max_plate_nesting=0)


@pytest.mark.parametrize("subsample_size", [10, 5])
def test_subsampled_plate(subsample_size):
    # Half a plate is an error as at Pyro, and it is named; a whole one is a plate.
    def model():
        with pyro.plate("rows", 10, subsample_size=subsample_size):
            pyro.sample("x", dist.Normal(0, 1))

    if subsample_size < 10:
        with pytest.raises(ValueError, match="Plate 'rows' subsamples 5 of 10 rows"):
            fit(model)
    else:
        check_evidence(fit(model, num_iterations=50), 0.0)


@pytest.mark.parametrize("mask", [True, False, [True], [False], [False, True, False]], ids=str)
def test_partly_observed_plate(mask):
    # It only has to run at Pyro; here missing values are latents with their own prior, and the evidence is exact.
    data, mask = torch.tensor([7.0, 7.0, 7.0]), torch.tensor(mask)

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(data)):
            pyro.sample("y", dist.Normal(x, 1.0), obs=data, obs_mask=mask)

    osds = fit(model, num_iterations=50)
    number = mask.expand(3).sum().item()
    covariance = np.eye(number) + 1.0
    log_evidence = stats.multivariate_normal.logpdf(np.full(number, 7.0), np.zeros(number), covariance) if number else 0
    check_evidence(osds, log_evidence)
    check_site(osds, "x", [7.0 * number / (1 + number)], [(1 + number) ** -0.5])


def test_stable_distribution():
    # A reparametrised stable latent only has to run at Pyro; here, point by point, its density is that of Pyro.
    @poutine.reparam(config={"z": LatentStableReparam()})
    def model():
        stability = pyro.sample("stability", dist.Uniform(0.0, 2.0))
        skew = pyro.sample("skew", dist.Uniform(-1.0, 1.0))
        z = pyro.sample("z", dist.Stable(stability, skew))
        pyro.sample("x", dist.Poisson(z.abs()), obs=torch.tensor(1.0))

    with pytest.warns(VectorizationWarning):
        target = ModelTarget(model, max_plate_nesting=0)
    z = torch.randn(8, target.dim)
    sites = {site.name: z[:, site.start] for site in target.sites}
    values = target.constrain(z)
    expected = []
    for i in range(8):
        trace = poutine.trace(poutine.condition(model, {name: value[i] for name, value in values.items()})).get_trace()
        jacobians = [
            biject_to(trace.nodes[name]["fn"].support).log_abs_det_jacobian(u[i], values[name][i])
            for name, u in sites.items()
        ]
        expected.append(trace.log_prob_sum() + sum(jacobians))
    # What is expected was computed in single precision.
    torch.testing.assert_close(target.log_prob(z), torch.stack(expected).double(), rtol=1.3e-6, atol=1e-5)

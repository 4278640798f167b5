"""Rates, counts and shapes times an indicator: zero for one of its values, where torch's gradient is none."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp

from pyro_osds import OSDS
from pyro_osds.model import ModelTarget

COUNTS = (0.0, 0.0, 3.0, 0.0, 1.0, 5.0)
TIMES = (0.3, 2.0, 1.0)
RATES = np.array([0.7, 1.0, 2.3])


def only_zero(y):
    return 0.0 if y == 0 else -np.inf


def never(y):
    return -np.inf


def inflated(make, y, prior=None):
    def model():
        rate = pyro.sample("rate", prior or dist.Gamma(2.0, 0.5))
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Bernoulli(0.6))
            pyro.sample("y", make(rate, z), obs=torch.as_tensor(y))

    return model


def log_prior(rate):
    return stats.gamma.logpdf(rate, 2.0, scale=2.0)


def log_likelihood(log_pmf, at_zero, y, rate):
    return sum(np.logaddexp(np.log(0.6) + log_pmf(v, rate), np.log(0.4) + at_zero(v)) for v in y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("make", "log_pmf", "at_zero", "y"),
    [
        (lambda rate, z: dist.Poisson(rate * z), stats.poisson.logpmf, only_zero, COUNTS),
        (lambda rate, z: dist.Poisson((rate * z).log().exp()), stats.poisson.logpmf, only_zero, COUNTS),
        (
            lambda rate, z: dist.NegativeBinomial(rate * z, probs=torch.tensor(0.4)),
            lambda y, rate: stats.nbinom.logpmf(y, rate, 0.6),
            only_zero,
            COUNTS,
        ),
        (
            lambda rate, z: dist.Binomial(6 * z, rate / (1 + rate)),
            lambda y, rate: stats.binom.logpmf(y, 6, rate / (1 + rate)),
            only_zero,
            COUNTS,
        ),
        (
            lambda rate, z: dist.Binomial(6, z * rate / (1 + rate)),
            lambda y, rate: stats.binom.logpmf(y, 6, rate / (1 + rate)),
            only_zero,
            COUNTS,
        ),
        (
            lambda rate, z: dist.Exponential(rate * z),
            lambda y, rate: stats.expon.logpdf(y, scale=1 / rate),
            never,
            TIMES,
        ),
        (
            lambda rate, z: dist.Gamma(2.0, rate * z),
            lambda y, rate: stats.gamma.logpdf(y, 2.0, scale=1 / rate),
            never,
            TIMES,
        ),
        (lambda rate, z: dist.Gamma(rate * z, 1.0), lambda y, rate: stats.gamma.logpdf(y, rate), never, TIMES),
        (lambda rate, z: dist.Beta(rate * z, 1.0), lambda y, a: stats.beta.logpdf(y, a, 1.0), never, (0.3, 0.2, 0.1)),
    ],
)
def test_density_and_gradient_are_those_of_the_sum_by_hand(make, log_pmf, at_zero, y, dtype):
    def truth(log_rate):
        rate = np.exp(log_rate)
        return log_prior(rate) + log_rate + log_likelihood(log_pmf, at_zero, y, rate)

    z = torch.tensor(np.log(RATES))[:, None].requires_grad_()
    target = ModelTarget(inflated(make, torch.tensor(y, dtype=dtype)))
    log_prob = target.log_prob(z)
    (score,) = torch.autograd.grad(log_prob.sum(), z)
    h = 1e-5
    assert log_prob.tolist() == pytest.approx([truth(u) for u in np.log(RATES)], abs=1e-6)
    slopes = [(truth(u + h) - truth(u - h)) / (2 * h) for u in np.log(RATES)]
    assert score[:, 0].tolist() == pytest.approx(slopes, abs=1e-5)
    assert target.backend == "captured"


def evidence_on_a_grid(log_density, grid):
    return logsumexp(log_density(grid)) + np.log(grid[1] - grid[0])


def test_a_fit_of_zero_inflated_counts():
    osds = OSDS(inflated(lambda rate, z: dist.Poisson(rate * z), COUNTS), disable_progbar=True, seed=1)
    osds.run()
    grid = np.linspace(1e-4, 40.0, 200_001)
    truth = evidence_on_a_grid(
        lambda r: log_prior(r) + log_likelihood(stats.poisson.logpmf, only_zero, COUNTS, r), grid
    )
    assert abs(osds.log_evidence - truth) < 4 * osds.log_evidence_se and osds.evidence.reliable
    z = osds.infer_discrete(num_draws=100)["z"]
    assert (z[:, [2, 4, 5]] == 1).all() and 0.0 < z[:, [0, 1, 3]].mean() < 0.4


def test_elements_that_interact_have_gradients_at_zero_too():
    y = np.array([0.0, 0.0, 3.0, 1.0])

    def model():
        rate = pyro.sample("rate", dist.Gamma(2.0, 0.5))
        with pyro.plate("rows", 4):
            z = pyro.sample("z", dist.Bernoulli(0.6))
            pyro.sample("y", dist.Poisson(rate * (z + z.roll(1, -1))), obs=torch.tensor(y).float())

    cells = np.array(list(itertools.product((0, 1), repeat=4)))
    prior = (cells * np.log(0.6) + (1 - cells) * np.log(0.4)).sum(1)
    both = cells + np.roll(cells, 1, 1)

    def truth(rate):
        return logsumexp(prior + stats.poisson.logpmf(y, rate * both).sum(1)) + log_prior(rate) + np.log(rate)

    z = torch.tensor(np.log(RATES))[:, None].requires_grad_()
    log_prob = ModelTarget(model).log_prob(z)
    assert log_prob.tolist() == pytest.approx([truth(rate) for rate in RATES], abs=1e-6)
    assert torch.autograd.grad(log_prob.sum(), z)[0].isfinite().all()


@pytest.mark.parametrize("root", [torch.sqrt, lambda x: x.sqrt(), lambda x: x**0.5])
def test_roots_of_zero_and_whole_numbers_of_whole_type(root):
    def model():
        rate = pyro.sample("rate", dist.Gamma(2.0, 0.5))
        with pyro.plate("rows", 3):
            z = pyro.sample("z", dist.Bernoulli(0.6))
            pyro.sample("y", dist.Poisson(root(rate * z)), obs=torch.tensor([0, 3, 1]))

    def truth(u):
        pmf = lambda y, rate: stats.poisson.logpmf(y, np.sqrt(rate))  # noqa: E731 - short
        return log_prior(np.exp(u)) + u + log_likelihood(pmf, only_zero, (0, 3, 1), np.exp(u))

    z = torch.tensor(np.log(RATES))[:, None].requires_grad_()
    log_prob, h = ModelTarget(model).log_prob(z), 1e-5
    assert log_prob.tolist() == pytest.approx([truth(u) for u in np.log(RATES)], abs=1e-6)
    slopes = [(truth(u + h) - truth(u - h)) / (2 * h) for u in np.log(RATES)]
    assert torch.autograd.grad(log_prob.sum(), z)[0][:, 0].tolist() == pytest.approx(slopes, abs=1e-5)


def exposed(y):
    rate = pyro.sample("rate", dist.Gamma(2.0, 0.5))
    with pyro.plate("rows", 3):
        pyro.sample("y", dist.Poisson(rate * torch.tensor([0.0, 1.0, 2.0])), obs=y)


def test_an_exposure_of_zero_counts_nothing():
    z = torch.tensor(np.log(RATES))[:, None].requires_grad_()
    log_prob = ModelTarget(exposed, (torch.tensor([0.0, 1.0, 2.0]),)).log_prob(z)
    truth = log_prior(RATES) + np.log(RATES) + stats.poisson.logpmf(1, RATES) + stats.poisson.logpmf(2, 2 * RATES)
    assert log_prob.tolist() == pytest.approx(truth.tolist(), abs=1e-6)
    # A gamma density of shape 2, two Poisson ones, and the Jacobian.
    slope = 2.0 - 0.5 * RATES + 1.0 - RATES + 2.0 - 2 * RATES
    assert torch.autograd.grad(log_prob.sum(), z)[0][:, 0].tolist() == pytest.approx(slope.tolist(), abs=1e-6)


def test_a_count_at_an_exposure_of_zero_is_named():
    osds = OSDS(exposed, disable_progbar=True)
    with pytest.raises(ValueError, match=r"'y' counts 1 at index \(0,\) where its rate is 0\. Correct the count"):
        osds.run(torch.tensor([1.0, 1.0, 2.0]))


def test_a_gate_that_is_closed_for_half_of_the_prior():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Poisson(x * (x > 0)), obs=torch.tensor(0.0))

    z = torch.tensor([[-1.0], [0.5]], dtype=torch.float64, requires_grad=True)
    log_prob = ModelTarget(model).log_prob(z)
    assert log_prob.tolist() == pytest.approx([stats.norm.logpdf(-1.0), stats.norm.logpdf(0.5) - 0.5], abs=1e-6)
    assert torch.autograd.grad(log_prob.sum(), z)[0][:, 0].tolist() == pytest.approx([1.0, -1.5], abs=1e-6)


# ---- what has no density there: the real cause ----


@pytest.mark.parametrize(
    ("make", "parameter"),
    [
        (lambda rate, z: dist.Normal(0.0, rate * z), "Normal, has scale = 0"),
        (lambda rate, z: dist.LogNormal(0.0, rate * z), "LogNormal, has scale = 0"),
        (lambda rate, z: dist.StudentT(3.0, 0.0, rate * z), "StudentT, has scale = 0"),
        (lambda rate, z: dist.HalfNormal(rate * z), "HalfNormal, has scale = 0"),
        (lambda rate, z: dist.Weibull(rate * z, 1.0), "Weibull, has scale = 0"),
    ],
)
def test_what_has_no_density_at_zero_names_the_parameter_and_the_latent(make, parameter):
    with pytest.raises(ValueError, match=rf"{parameter} for some values of the discrete latents \('z'\)") as caught:
        ModelTarget(inflated(make, TIMES))
    assert "torch.where(z > 0, scale, 0.01)" in str(caught.value)
    cured = inflated(lambda rate, z: dist.Normal(0.0, torch.where(z > 0, rate, 0.01)), TIMES)
    assert ModelTarget(cured).log_prob(torch.zeros(1, 1)).isfinite().all()


@pytest.mark.parametrize("make", [lambda s, z: dist.Normal(0.0, s * z), lambda s, z: dist.Exponential(s * z)])
def test_a_latent_without_a_distribution_is_refused(make):
    def model():
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        z = pyro.sample("z", dist.Bernoulli(0.5))
        x = pyro.sample("x", make(scale, z))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(1.0))

    with pytest.raises(ValueError, match="site 'x'.* = 0 for some values of the discrete latents"):
        ModelTarget(model)


def test_a_mask_takes_what_has_no_density_out():
    def model():
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("rows", 3):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            with pyro.poutine.mask(mask=z > 0):
                pyro.sample("y", dist.Normal(0.0, torch.where(z > 0, scale, 1.0)), obs=torch.tensor(TIMES))

    parts = np.logaddexp(np.log(0.5) + stats.norm.logpdf(TIMES), np.log(0.5)).sum()
    truth = parts + 0.5 * math.log(2 / math.pi) - 0.5
    assert ModelTarget(model).log_prob(torch.zeros(1, 1)).item() == pytest.approx(truth, abs=1e-6)


def test_an_infinite_parameter_is_named():
    with pytest.raises(ValueError, match=r"GammaPoisson, has rate = inf for some values of the discrete latents"):
        ModelTarget(inflated(lambda rate, z: dist.GammaPoisson(2.0, 2.0 / (rate * z)), COUNTS))
    with pytest.raises(ValueError, match=r"Bernoulli, has logits = -inf for some values"):
        ModelTarget(inflated(lambda rate, z: dist.Bernoulli(logits=(rate * z).log()), (0.0, 1.0)))

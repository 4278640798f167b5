"""Densities outside of supports that move with a latent, and correlations that round to one."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_error
from scipy import integrate, special, stats
from torch.distributions import Exponential, transforms

from pyro_osds import OSDS
from pyro_osds.model import ModelTarget
from pyro_osds.model.distributions.densities import partial_shapes
from pyro_osds.model.distributions.edge_draws import draw_unconstrained
from pyro_osds.model.distributions.outside import cut_densities
from pyro_osds.model.distributions.transforms import to_support

ONE = torch.tensor(1.0)


def run(model):
    pyro.set_rng_seed(0)
    osds = OSDS(model, num_samples=500, num_chains=2, disable_progbar=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        osds.run()

    return osds


# ---- supports that move ----


def pareto():
    pyro.sample("y", dist.Pareto(pyro.sample("scale", dist.Gamma(2.0, 1.0)), 3.0), obs=ONE)


def shifted(base):
    def model():
        start = pyro.sample("start", dist.Normal(0.0, 1.0))
        shift = transforms.AffineTransform(start, torch.ones(()))
        pyro.sample("y", dist.TransformedDistribution(base, [shift]), obs=ONE)

    return model


def quadrature(function, low, high):
    return math.log(integrate.quad(function, low, high, epsabs=0, epsrel=1e-10, limit=200)[0])


MOVING = {
    # 3 s^3 / y^4 for s < y.
    "pareto": (pareto, lambda: quadrature(lambda s: 3 * s**3 * s * math.exp(-s), 0, 1)),
    "exponential": (
        shifted(dist.Exponential(5.0)),
        lambda: quadrature(lambda t: stats.norm.pdf(t) * stats.expon.pdf(1 - t, scale=0.2), -8, 1),
    ),
    "gamma": (
        shifted(dist.Gamma(3.0, 2.0)),
        lambda: quadrature(lambda t: stats.norm.pdf(t) * stats.gamma.pdf(1 - t, 3, scale=0.5), -8, 1),
    ),
    "log_normal": (
        shifted(dist.LogNormal(0.0, 0.5)),
        lambda: quadrature(lambda t: stats.norm.pdf(t) * stats.lognorm.pdf(1 - t, 0.5), -8, 1),
    ),
    "beta": (
        shifted(dist.Beta(2.0, 3.0)),
        lambda: quadrature(lambda t: stats.norm.pdf(t) * stats.beta.pdf(1 - t, 2, 3), 0, 1),
    ),
    "weibull": (
        shifted(dist.Weibull(1.0, 2.0)),
        lambda: quadrature(lambda t: stats.norm.pdf(t) * stats.weibull_min.pdf(1 - t, 2), -8, 1),
    ),
}


@pytest.mark.parametrize("name", MOVING)
def test_an_observation_outside_a_moving_support_has_density_zero(name):
    # Against quadrature over the part of the prior that it is inside for; and nobody takes the rest for a mistake.
    model, exact = MOVING[name]
    osds = run(model)
    assert osds.evidence.reliable and osds.evidence.draws_reliable, osds.evidence.reasons
    assert_within_standard_error(osds.log_evidence, exact(), osds.log_evidence_se)


@pytest.mark.parametrize("vectorize", ["auto", "loop"])
def test_densities_inside_are_those_of_torch(vectorize):
    # Value and gradient, where nothing is cut; and minus infinity where something is.
    def model():
        start = pyro.sample("start", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 3):
            shift = transforms.AffineTransform(start, torch.ones(()))
            pyro.sample(
                "y", dist.TransformedDistribution(dist.LogNormal(0.0, 1.0), [shift]), obs=torch.tensor([1.0, 2.0, 3.0])
            )

    target = ModelTarget(model, vectorize=vectorize, capture=False)
    z = torch.tensor([[0.5], [-1.0], [1.5], [2.5]], dtype=torch.float64)
    got = target.log_prob(z)
    y = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    for row, value in zip(z, got, strict=True):
        inside = row < 1.0
        expected = stats.norm.logpdf(row.item()) + stats.lognorm.logpdf((y - row).numpy(), 1.0).sum()
        assert value.item() == pytest.approx(expected, rel=1e-12) if inside else value == -math.inf


def test_everything_is_put_back():
    before = [kind.__dict__["log_prob"] for kind in (Exponential, torch.distributions.TransformedDistribution)]
    with pytest.raises(ZeroDivisionError), cut_densities():
        assert Exponential(1.0, validate_args=False).log_prob(torch.tensor(-1.0)) == -math.inf
        raise ZeroDivisionError
    assert before == [kind.__dict__["log_prob"] for kind in (Exponential, torch.distributions.TransformedDistribution)]


# ---- correlations ----


@pytest.mark.parametrize(("size", "shape"), [(2, 0.05), (2, 3.0), (3, 0.05), (4, 1.5)])
def test_draws_of_correlations(size, shape):
    # Each correlation is a beta variate on (-1, 1) with both shapes eta + D / 2 - 1, so has variance 1 / (2 b + 1).
    fn = dist.LKJCholesky(size, torch.tensor(shape, dtype=torch.float64)).expand([20_000])
    factor = to_support(fn)(draw_unconstrained(fn, to_support(fn)))
    correlation = factor @ factor.mT
    variance = 1.0 / (2.0 * (shape + 0.5 * size - 1.0) + 1.0)
    for row in range(1, size):
        for column in range(row):
            squares = correlation[:, row, column].square()
            assert_within_standard_error(
                squares.mean().item(), variance, squares.std().item() / math.sqrt(len(squares))
            )


def test_shapes_of_partial_correlations():
    assert partial_shapes(dist.LKJCholesky(4, torch.tensor(1.0))).tolist() == [2.0, 2.0, 1.5, 2.0, 1.5, 1.0]


def test_evidence_of_correlations_near_one():
    # Much of LKJ(0.05) has a correlation that rounds to one; unseen, it leaves the evidence of y as it is.
    def model():
        pyro.sample("factor", dist.LKJCholesky(2, torch.tensor(0.05)))
        pyro.sample("y", dist.Normal(pyro.sample("x", dist.Normal(0.0, 1.0)), 1.0), obs=ONE)

    osds = run(model)
    exact = stats.norm.logpdf(1.0, 0.0, math.sqrt(2.0))
    assert osds.evidence.reliable
    assert_within_standard_error(osds.log_evidence, exact, osds.log_evidence_se)


def test_a_correlation_under_data():
    # Against quadrature in the inverse hyperbolic tangent of the correlation.
    def model():
        factor = pyro.sample("factor", dist.LKJCholesky(2, torch.tensor(0.3)))
        pyro.sample("y", dist.Normal(factor[1, 0], 0.5), obs=torch.tensor(0.4))

    def density(u):
        log_prior = 0.3 * (2 * math.log(2) - 2 * abs(u) - 2 * math.log1p(math.exp(-2 * abs(u))))
        return math.exp(log_prior) * stats.norm.pdf(0.4, math.tanh(u), 0.5)

    exact = quadrature(density, -60, 60) - (2 * 0.3 - 1) * math.log(2) - special.betaln(0.3, 0.3)
    osds = run(model)
    assert osds.evidence.reliable
    assert_within_standard_error(osds.log_evidence, exact, osds.log_evidence_se)

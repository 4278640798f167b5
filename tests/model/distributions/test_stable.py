"""Densities with large parameters against mpmath, and against torch and Pyro where those are exact."""

import mpmath
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import NegativeBinomial

from pyro_osds.model import ModelTarget
from pyro_osds.model.distributions.stable import log_rising, stable_densities

mpmath.mp.dps = 150


def double(value):
    return torch.as_tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("x", [0.1, 3.0, 9.9e3, 1.01e4, 1e8, 1e15, 1e100])
@pytest.mark.parametrize("k", [0.0, 0.5, 1.0, 40.0, 1e6])
def test_log_rising_against_mpmath(x, k):
    exact = mpmath.loggamma(mpmath.mpf(x) + k) - mpmath.loggamma(mpmath.mpf(x))
    # Below 1e4 the plain difference is kept, which loses the digits of log gamma at 1e6.
    assert abs(log_rising(double(x), double(k)).item() - exact) <= 1e-9 + 1e-13 * abs(exact)


def pairs(large):
    """A distribution with one large parameter, a value, and its exact log probability."""
    m, f = mpmath, mpmath.mpf
    r, lg = f(large), mpmath.loggamma
    mean, k, n = f(7), 9, 20
    p = f(float(mean)) / (f(float(mean)) + r)
    nb = lg(r + k) - lg(r) - lg(k + 1) + r * m.log(1 - p) + k * m.log(p)
    t = lg((r + 1) / 2) - lg(r / 2) - m.log(r * m.pi) / 2 - m.log(2) - (r + 1) / 2 * m.log(1 + f(1.5) ** 2 / r)
    a, b = 2 * r, 3 * r
    bb = m.log(m.binomial(n, k)) + lg(a + k) - lg(a) + lg(b + n - k) - lg(b) - lg(a + b + n) + lg(a + b)
    dm = m.log(m.binomial(n, k)) + lg(a + k) - lg(a) + lg(b + n - k) - lg(b) - lg(a + b + n) + lg(a + b)
    size = double(large)

    return [
        (dist.NegativeBinomial(size, probs=7.0 / (7.0 + size)), double(9.0), nb),
        (dist.GammaPoisson(size, size / 7.0), double(9.0), nb),
        (dist.StudentT(size, double(1.0), double(2.0)), double(4.0), t),
        (dist.BetaBinomial(2.0 * size, 3.0 * size, double(20.0)), double(9.0), bb),
        (dist.DirichletMultinomial(torch.stack([2.0 * size, 3.0 * size]), double(20.0)), double([9.0, 11.0]), dm),
    ]


@pytest.mark.parametrize("large", [0.3, 50.0, 2e4, 1e9, 1e14])
@pytest.mark.parametrize("which", range(5))
def test_densities_against_mpmath(large, which):
    fn, value, exact = pairs(large)[which]
    with stable_densities():
        got = fn.log_prob(value).item()
    assert abs(got - exact) < 1e-9, (type(fn).__name__, got, exact)


@pytest.mark.parametrize("which", range(5))
def test_what_is_put_in_place_is_taken_back(which):
    fn, value, exact = pairs(50.0)[which]
    before = fn.log_prob(value)
    with pytest.raises(ZeroDivisionError), stable_densities():
        raise ZeroDivisionError
    assert torch.equal(fn.log_prob(value), before) and abs(before.item() - exact) < 1e-9


def test_no_trials_count_nothing():
    fn = NegativeBinomial(double(0.0), probs=double(0.3))
    with stable_densities():
        assert fn.log_prob(double(0.0)).item() == 0.0


def test_a_model_has_no_peaks_of_rounding():
    counts = torch.poisson(torch.full((50,), 5.0), generator=torch.Generator().manual_seed(0))
    gate = torch.tensor(0.1)

    def model():
        size = pyro.sample("size", dist.LogNormal(0.0, 10.0))
        with pyro.plate("rows", 50):
            count = dist.ZeroInflatedNegativeBinomial(size, probs=5 / (5 + size), gate=gate)
            pyro.sample("k", count, obs=counts)

    target = ModelTarget(model)
    # From a million on it is Poisson to 1e-4; in plain double precision the noise at exp(34) was hundreds of nats.
    likelihood = target.log_prior_and_likelihood(torch.linspace(14.0, 34.0, 500)[:, None])[1]
    assert (likelihood - likelihood[0]).abs().max() < 0.01

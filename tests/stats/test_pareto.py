"""The tail of the weights: its shape, and weights smoothed by it."""

import importlib.metadata
import math
import warnings

import pytest
import torch
from helpers import assert_within_standard_error

from pyro_osds.stats.pareto import fit_tail, pareto_k, pareto_smooth
from pyro_osds.stats.weights import effective_sample_size, log_mean_weight


@pytest.mark.parametrize("sd", [0.3, 1.0, 2.0, 3.0])
def test_smoothing_is_that_of_arviz(sd):
    # The same smoothed weights and the same k as the reference implementation.
    if int(importlib.metadata.version("arviz").split(".")[0]) >= 1:
        pytest.skip("psislw of ArviZ 1 has another interface")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz
    log_weight = sd * torch.randn(2000, dtype=torch.float64)
    smoothed, k = pareto_smooth(log_weight)
    expected, expected_k = arviz.psislw(log_weight.numpy())
    assert math.isclose(k, float(expected_k), abs_tol=1e-8)
    torch.testing.assert_close(smoothed, torch.as_tensor(expected.copy()), rtol=0, atol=1e-10)


def test_smoothed_weights_are_normalised_and_only_the_tail_changes():
    # They sum to one; all but the largest keep their ratios; the order stays.
    log_weight = torch.randn(1000, dtype=torch.float64)
    smoothed, _ = pareto_smooth(log_weight)
    assert math.isclose(smoothed.exp().sum().item(), 1.0, rel_tol=1e-12)
    order = log_weight.argsort()
    body = order[: 1000 - math.ceil(3 * math.sqrt(1000))]
    shift = smoothed[body] - log_weight[body]
    torch.testing.assert_close(shift, shift[:1].expand_as(shift))
    assert (smoothed[order].diff() >= 0).all()


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_shape_of_a_pareto_tail(k):
    # Weights u^-k have tail shape k; the fit has standard error (1 + k) / sqrt(tail).
    log_weight = -k * torch.rand(40_000, dtype=torch.float64).log()
    assert_within_standard_error(pareto_k(log_weight), k, (1 + k) / math.sqrt(3 * math.sqrt(40_000)))


def test_shape_of_a_tail_that_ends():
    # Bounded weights have a negative shape: uniform ones -1.
    log_weight = torch.rand(40_000, dtype=torch.float64).log()
    assert_within_standard_error(pareto_k(log_weight), -1.0, 2 / math.sqrt(3 * math.sqrt(40_000)))


def test_weights_without_a_tail():
    # Equal weights, and too few, have none; no weight at all is the worst there is.
    assert pareto_k(torch.zeros(1000)) == -math.inf
    assert pareto_k(torch.randn(10)) == -math.inf
    assert pareto_k(torch.full((1000,), -torch.inf)) == math.inf
    torch.testing.assert_close(pareto_smooth(torch.zeros(100))[0], torch.full((100,), -math.log(100)).double())


def test_the_tail_is_fitted_whatever_the_default_device():
    # Pyro fits it with tensors on the default device; that may be a GPU, or here one without any values.
    log_weight = torch.randn(2000)
    expected = pareto_k(log_weight)
    with torch.device("meta"):
        assert pareto_k(log_weight) == expected


def test_a_few_draws_that_carry_everything_have_no_tail_to_fit():
    # The opposite of equal weights: k is inf, the standard error covers a missing factor of thousands, nothing is nan.
    log_weight = 20 * torch.randn(8192)
    smoothed, k = pareto_smooth(log_weight)
    assert k == math.inf and effective_sample_size(log_weight) < 5
    torch.testing.assert_close(smoothed, torch.log_softmax(log_weight.double(), 0))
    assert log_mean_weight(log_weight)[1] > 10
    assert pareto_k(torch.zeros(1000)) == -math.inf


def test_nearly_equal_weights_have_no_tail_that_matters():
    # A heavy tail a hundred times smaller than the weights it sits on is left alone; one that reaches twice the mean is
    # not, nor one that holds a percent of all weight.
    torch.manual_seed(0)
    heavy = torch.rand(4000) ** -0.9
    assert pareto_k(heavy.log()) > 0.7
    small = (1.0 + 1e-5 * heavy).log()
    assert pareto_k(small) == -math.inf and log_mean_weight(small)[1] < 1e-3
    assert pareto_k((1.0 + 1e-2 * heavy).log()) > 0.7
    single = torch.zeros(32768)
    single[:200] = (1.0 + 1e-3 * torch.rand(200) ** -1.5).log()
    single[0] = math.log(2.5)
    assert pareto_k(single) > -math.inf


@pytest.mark.parametrize("sd", [0.0, 0.5, 3.0, 30.0])
def test_smoothing_by_a_known_tail(sd):
    # The same weights and the same shape as from a tail fitted anew, also where there is none to fit.
    log_weight = sd * torch.randn(2000) - 7.0
    smoothed, k = pareto_smooth(log_weight)
    again, k_again = pareto_smooth(log_weight, fit_tail(log_weight))
    assert torch.equal(smoothed, again) and k == k_again == pareto_k(log_weight)

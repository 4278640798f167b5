"""The importance room: weights, their mean with its error, and the shape of their tail."""

import importlib.metadata
import math
import warnings

import pytest
import torch
from helpers import assert_within_standard_error, perturbed

from pyro_osds.flow.base import gaussian_base
from pyro_osds.flow.coupling import FlowMap
from pyro_osds.flow.leap import Leap
from pyro_osds.stats.weights import (
    WeightedDraws,
    effective_sample_size,
    join,
    log_mean_weight,
    lower_bound,
    pareto_k,
    pareto_smooth,
    weigh,
)
from pyro_osds.target import FunctionTarget


def leap_and_target(log_prob_fn):
    base = gaussian_base(torch.randn(200, 2))

    return Leap(base, perturbed(FlowMap(2, num_blocks=2, hidden_features=8))), FunctionTarget(log_prob_fn, 2)


@pytest.mark.parametrize("sd", [0.3, 1.0, 1.5])
def test_mean_of_log_normal_weights(sd):
    # log w ~ N(0, sd^2) has log mean sd^2 / 2.
    estimate, std_error = log_mean_weight(sd * torch.randn(20_000))
    assert_within_standard_error(estimate, sd**2 / 2, std_error)


def test_mean_of_a_few_weights_by_hand():
    # Weights 1, 2, 3: mean 2, standard deviation 1, delta method; an offset of the logs only shifts.
    for offset in (0.0, 1000.0):
        estimate, std_error = log_mean_weight(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).log() + offset)
        assert math.isclose(estimate - offset, math.log(2), abs_tol=1e-12)
        assert math.isclose(std_error, 1 / 2 / math.sqrt(3), rel_tol=1e-9)


def test_weights_of_zero_count():
    # Half of the draws outside of the support halve the evidence; none inside leave nothing.
    estimate, std_error = log_mean_weight(torch.tensor([0.0, -torch.inf] * 500))
    assert math.isclose(estimate, -math.log(2), abs_tol=1e-12)
    assert math.isclose(std_error, math.sqrt(1 / 999), rel_tol=1e-9)
    assert log_mean_weight(torch.full((10,), -torch.inf)) == (-math.inf, math.inf)


def test_a_heavy_tail_widens_the_standard_error():
    # Above k = 1/2 the plain error is scaled by S^(k - 1/2), and the true mean 1 / (1 - k) is then within reach.
    k, size = 0.8, 10_000
    log_weight = -k * torch.rand(size, dtype=torch.float64).log()
    estimate, std_error = log_mean_weight(log_weight)
    plain = (log_weight - estimate).exp().std().item() / math.sqrt(size)
    fitted = pareto_k(log_weight)
    assert 0.5 < fitted < 1
    assert math.isclose(std_error, plain * size ** (fitted - 0.5), rel_tol=1e-9)
    assert_within_standard_error(estimate, math.log(1 / (1 - k)), std_error)


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


def test_effective_sample_size():
    # Kish's formula: weights 1, 2, 3 make 36 / 14; equal ones count fully, one alone counts once.
    assert math.isclose(effective_sample_size(torch.tensor([1.0, 2.0, 3.0]).log()), 36 / 14, rel_tol=1e-6)
    assert math.isclose(effective_sample_size(torch.full((7,), 500.0)), 7.0, rel_tol=1e-9)
    assert math.isclose(effective_sample_size(torch.tensor([0.0, -torch.inf])), 1.0)


def test_the_tail_is_fitted_whatever_the_default_device():
    # Pyro fits it with tensors on the default device; that may be a GPU, or here one without any values.
    log_weight = torch.randn(2000)
    expected = pareto_k(log_weight)
    with torch.device("meta"):
        assert pareto_k(log_weight) == expected


def test_draws_carry_their_exact_weights():
    # Target minus the density of the leap, found by its inverse.
    leap, target = leap_and_target(lambda z: -0.5 * z.square().sum(-1))
    draws = weigh(leap, target, 50)
    torch.testing.assert_close(draws.log_prob, target.log_prob(draws.z))
    torch.testing.assert_close(draws.log_weight, draws.log_prob - leap.log_prob(draws.z).detach(), rtol=0, atol=1e-4)
    assert draws.num_not_finite == 0 and not draws.log_weight.requires_grad


def test_weights_of_a_normalised_target_have_mean_one(float64):
    # The log evidence of a Gaussian is zero, whatever flow proposes.
    leap, target = leap_and_target(lambda z: torch.distributions.Normal(0.3, 0.9).log_prob(z).sum(-1))
    estimate, std_error = log_mean_weight(weigh(leap, target, 4000).log_weight)
    assert_within_standard_error(estimate, 0.0, std_error)


def test_values_that_are_not_finite_get_no_weight_and_are_counted():
    # nan and +inf count, -inf is an ordinary zero.
    def log_prob_fn(z):
        return torch.where(z[:, 0] > 1, torch.nan, torch.where(z[:, 0] < -1, torch.inf, -torch.inf))

    leap, target = leap_and_target(log_prob_fn)
    draws = weigh(leap, target, 500)
    assert (draws.log_weight == -torch.inf).all() and (draws.log_prob == -torch.inf).all()
    assert draws.num_not_finite == (draws.z[:, 0].abs() > 1).sum().item() > 0


def test_large_batches_come_in_chunks():
    # The density never sees more than 8192 points at once, and none is lost.
    sizes = []

    def log_prob_fn(z):
        sizes.append(len(z))
        return -0.5 * z.square().sum(-1)

    leap, target = leap_and_target(log_prob_fn)
    sizes.clear()
    assert weigh(leap, target, 10_000).z.shape == (10_000, 2) and sizes == [8192, 1808]


def test_join_puts_batches_one_after_the_other():
    # Columns are concatenated, counts added up.
    leap, target = leap_and_target(lambda z: torch.where(z[:, 0] > 0, torch.nan, 0.0))
    first, second = weigh(leap, target, 30), weigh(leap, target, 20)
    joined = join([first, second])
    assert torch.equal(joined.z, torch.cat([first.z, second.z]))
    assert torch.equal(joined.log_weight, torch.cat([first.log_weight, second.log_weight]))
    assert joined.num_not_finite == first.num_not_finite + second.num_not_finite


def test_weighted_draws_speak_the_language_of_pyro():
    # Log normaliser, normalised weights and effective sample size by Pyro's own names.
    log_weights = torch.tensor([1.0, 2.0, 3.0]).log()
    draws = WeightedDraws({"x": torch.zeros(3)}, log_weights, log_weights, torch.zeros(3), torch.zeros(3, 1))
    assert len(draws) == 3
    assert math.isclose(draws.get_log_normalizer().item(), math.log(2), rel_tol=1e-6)
    torch.testing.assert_close(draws.get_normalized_weights(), torch.tensor([1 / 6, 1 / 3, 1 / 2]))
    assert math.isclose(draws.get_ESS().item(), 36 / 14, rel_tol=1e-6)


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


def test_the_lower_bound_holds_beside_a_hard_edge(float64):
    # Half of the flow's draws lie outside the box: the others alone would give ln 2 more than the log evidence.
    torch.manual_seed(0)
    x = torch.randn(10_000)
    log_weight = torch.where(x > 0, 0.0, -torch.inf)
    assert_within_standard_error(lower_bound(log_weight), math.log(0.5), 0.01)
    assert lower_bound(log_weight) <= log_mean_weight(log_weight)[0] + 1e-9
    assert lower_bound(torch.full((3,), -torch.inf)) == -math.inf

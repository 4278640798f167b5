"""Weights of draws: their mean with its error, their effective number, and all of it as one summary."""

import math

import pytest
import torch
from helpers import assert_within_standard_error, perturbed

from pyro_osds.flow.base import gaussian_base
from pyro_osds.flow.coupling import FlowMap
from pyro_osds.flow.leap import Leap
from pyro_osds.stats import pareto
from pyro_osds.stats.pareto import fit_tail, pareto_k
from pyro_osds.stats.weights import (
    WeightedDraws,
    effective_sample_size,
    join,
    log_mean_weight,
    lower_bound,
    summarize_weights,
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
    assert std_error > plain * size ** (fitted - 0.5)
    assert_within_standard_error(estimate, math.log(1 / (1 - k)), std_error)


def test_what_lies_beyond_the_largest_weight_is_part_of_the_standard_error():
    # Both parts of the formula by hand, added in squares.
    log_weight = torch.distributions.StudentT(4.0).sample((1000,)).double().abs().log()
    estimate, std_error = log_mean_weight(log_weight)
    tail, weight = fit_tail(log_weight), log_weight.exp()
    assert 0 < tail.k < 0.5
    excess = (tail.sigma + tail.k * (1 - tail.cutoff)) / (1 - tail.k)  # mean excess of a generalised Pareto tail
    beyond = weight.max() * (1 + excess) / weight.sum()
    spread = weight.std() / weight.mean() / math.sqrt(1000)
    assert math.isclose(std_error, math.hypot(spread, beyond), rel_tol=1e-9)


def test_weights_of_heavy_tails_are_within_their_standard_errors():
    # N(0, 1) for N(0, 2.5): pareto k 0.6. Of 95 % within two standard errors, less three of the share's own.
    missed, sets = 0, 600
    for _ in range(sets):
        z = torch.randn(2000, dtype=torch.float64)
        estimate, std_error = log_mean_weight(0.5 * z.square() * (1 - 1 / 2.5) - 0.5 * math.log(2.5))
        missed += abs(estimate) > 2 * std_error
    assert missed / sets < 0.05 + 3 * math.sqrt(0.05 * 0.95 / sets)


def test_effective_sample_size():
    # Kish's formula: weights 1, 2, 3 make 36 / 14; equal ones count fully, one alone counts once.
    assert math.isclose(effective_sample_size(torch.tensor([1.0, 2.0, 3.0]).log()), 36 / 14, rel_tol=1e-6)
    assert math.isclose(effective_sample_size(torch.full((7,), 500.0)), 7.0, rel_tol=1e-9)
    assert math.isclose(effective_sample_size(torch.tensor([0.0, -torch.inf])), 1.0)


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


def test_the_lower_bound_holds_beside_a_hard_edge(float64):
    # Half of the flow's draws lie outside the box: the others alone would give ln 2 more than the log evidence.
    torch.manual_seed(0)
    x = torch.randn(10_000)
    log_weight = torch.where(x > 0, 0.0, -torch.inf)
    assert_within_standard_error(lower_bound(log_weight), math.log(0.5), 0.01)
    assert lower_bound(log_weight) <= log_mean_weight(log_weight)[0] + 1e-9
    assert lower_bound(torch.full((3,), -torch.inf)) == -math.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sd", [0.0, 0.3, 2.0, 30.0])
def test_a_summary_says_what_its_parts_say(sd, dtype):
    # Bit for bit, also with weights of zero among them.
    log_weight = sd * torch.randn(3000, dtype=dtype) + 5.0
    log_weight[::50] = -torch.inf
    summary = summarize_weights(log_weight)
    assert (summary.log_mean_weight, summary.std_error) == log_mean_weight(log_weight)
    assert summary.elbo == lower_bound(log_weight) and summary.ess == effective_sample_size(log_weight)
    assert summary.pareto_k == pareto_k(log_weight) and summary.num_draws == 3000


def test_a_summary_of_no_weight_at_all():
    # No estimate, no bound, the worst of tails.
    summary = summarize_weights(torch.full((10,), -torch.inf))
    assert (summary.log_mean_weight, summary.std_error, summary.elbo) == (-math.inf, math.inf, -math.inf)
    assert summary.pareto_k == math.inf


def test_a_summary_fits_the_tail_once(monkeypatch):
    # Its standard error and its pareto k come from one fit.
    sizes, inner = [], pareto.fit_generalized_pareto
    monkeypatch.setattr(pareto, "fit_generalized_pareto", lambda tail: sizes.append(len(tail)) or inner(tail))
    summary = summarize_weights(2.0 * torch.randn(4000))
    assert sizes == [summary.tail.size] and summary.pareto_k > 0.5

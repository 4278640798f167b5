"""Bridge sampling: exact where the proposal is, honest about chains, and right where shapes differ."""

import math

import pytest
import torch

from pyro_osds.stats.bridge import bridge_estimate, effective_number


def log_weights(num_chains=4, num_draws=500, scale=1.5, memory=0.0, seed=0):
    """A standard normal, known up to exp(-2), and a wider proposal: at chains of one, at draws of the other."""
    torch.manual_seed(seed)
    x = torch.randn(num_chains, num_draws, dtype=torch.float64)
    for t in range(1, num_draws):
        x[:, t] = memory * x[:, t - 1] + math.sqrt(1 - memory**2) * x[:, t]
    q = scale * torch.randn(2000, dtype=torch.float64)
    weigh = lambda z: -2.0 - 0.5 * z.square() + 0.5 * (z / scale).square() + math.log(scale)  # noqa: E731
    return weigh(x), weigh(q)


def test_a_proposal_that_is_the_posterior_gives_the_constant():
    estimate, error = bridge_estimate(torch.full((2, 30), -7.5), torch.full((40,), -7.5))
    assert estimate == pytest.approx(-7.5) and error == 0.0


@pytest.mark.parametrize("memory", [0.0, 0.9])
def test_errors_are_those_that_are_claimed(memory):
    seeds = range(40)
    found = [bridge_estimate(*log_weights(memory=memory, seed=seed)) for seed in seeds]
    deviations = torch.tensor([(estimate + 2.0) / error for estimate, error in found])
    assert deviations.mean().abs() < 4 / math.sqrt(len(seeds))
    assert 0.5 < deviations.std() < 1.6


def test_chains_that_disagree_make_the_error_large():
    theirs, ours = log_weights()
    theirs[2:] += 1.0  # two chains where the weights are larger
    assert bridge_estimate(theirs, ours)[1] > 5 * bridge_estimate(*log_weights())[1]


def test_draws_that_never_meet_give_no_number():
    estimate, error = bridge_estimate(torch.full((1, 10), math.inf), torch.zeros(10))
    assert math.isnan(estimate) and error == math.inf
    assert bridge_estimate(torch.zeros(1, 10), torch.full((10,), -math.inf))[1] == math.inf


def test_large_constants_do_not_overflow():
    theirs, ours = log_weights()
    estimate, error = bridge_estimate(theirs - 1e5, ours - 1e5)
    assert abs(estimate + 1e5 + 2.0) < 4 * error


def test_effective_number_of_chains():
    torch.manual_seed(0)
    x = torch.randn(4, 1000)
    assert 0.8 < effective_number(x) / 4000 <= 1.0
    assert effective_number(x.repeat_interleave(10, 1)) < 0.2 * 40000


@pytest.mark.parametrize("size", [1e3, 1e7])
def test_what_does_not_converge_is_no_number(size):
    # Weights that differ by more than numbers hold: any number with an error of nan would be nonsense.
    torch.manual_seed(0)
    for theirs, ours in [
        (size * torch.rand(4, 50).double(), -size * torch.rand(200).double()),
        (-size * torch.rand(4, 50).double(), size * torch.rand(200).double()),
        (size * torch.randn(4, 50).double(), size * torch.randn(200).double()),
    ]:
        estimate, error = bridge_estimate(theirs, ours)
        assert (math.isnan(estimate) and error == math.inf) or (math.isfinite(estimate) and math.isfinite(error))
        assert not math.isfinite(estimate) or error >= 0.5

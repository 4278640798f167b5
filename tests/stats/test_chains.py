"""Chains: independence Metropolis-Hastings over given proposals."""

import math

import pytest
import torch
from helpers import assert_within_standard_error

from pyro_osds.stats.chains import independence_chains, mixing


def test_proportions_of_a_discrete_target():
    # Uniform proposals of three states with probabilities 0.1, 0.3, 0.6: the chains visit them in proportion.
    probabilities = torch.tensor([0.1, 0.3, 0.6])
    states = torch.randint(3, (64, 400))
    index, _ = independence_chains(probabilities.log()[states].reshape(-1), 64)
    visited = states.reshape(-1)[index]
    for state in range(3):
        share = (visited == state).double().mean(1)
        assert_within_standard_error(share.mean(), probabilities[state], share.std().item() / 8)


def test_first_states_are_already_in_proportion():
    # No warm-up: the states after one step, over many chains, follow the target.
    probabilities = torch.tensor([0.2, 0.8])
    states = torch.randint(2, (4000, 30))
    index, _ = independence_chains(probabilities.log()[states].reshape(-1), 4000)
    first = (states.reshape(-1)[index[:, 0]] == 1).double()
    assert_within_standard_error(first.mean(), 0.8, math.sqrt(0.2 * 0.8 / 4000))


def test_equal_weights_accept_always():
    # Every chain walks through its own proposals in order.
    index, probability = independence_chains(torch.full((12,), -700.0), 3)
    assert torch.equal(index, torch.arange(12).view(3, 4))
    assert (probability == 1).all()


def test_draws_without_weight_are_never_kept():
    # Proposals of weight zero have acceptance probability zero and no state.
    log_weight = torch.randn(4, 50)
    log_weight[:, ::3] = -torch.inf
    index, probability = independence_chains(log_weight.reshape(-1), 4)
    assert log_weight.reshape(-1)[index].isfinite().all()
    assert not probability[:, ::3].any()


def test_acceptance_is_the_ratio_of_weights():
    # Once a state of weight 4 is held, a proposal of weight 1 is accepted with probability 1/4.
    log_weight = torch.tensor([4.0] + [1.0] * 3 + [8.0]).log()
    index, probability = independence_chains(log_weight, 1)
    held = None
    for step in range(5):
        if held is not None:
            expected = min(1.0, (log_weight[step] - log_weight[held]).exp().item())
            assert math.isclose(probability[0, step].item(), expected, rel_tol=1e-6)
        held = index[0, step].item()
    assert probability[0, 4] == 1 and index[0, 4] == 4


def test_chains_keep_to_their_own_share():
    # A chain never holds a proposal of another one.
    index, _ = independence_chains(torch.randn(300), 3)
    assert torch.equal(index // 100, torch.arange(3)[:, None].expand(3, 100))


def test_a_share_without_weight():
    # The chain that has nothing takes whatever comes; the other one does not notice.
    log_weight = torch.tensor([[-torch.inf] * 3, [0.0] * 3])
    index, _ = independence_chains(log_weight.reshape(-1), 2)
    assert index.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_no_weight_at_all_is_refused():
    # There is nothing to draw from.
    with pytest.raises(ValueError, match="No draw of the flow has a positive posterior density"):
        independence_chains(torch.full((6,), -torch.inf), 2)


# ---- mixing ----


def test_independent_chains_mix():
    # R-hat within its noise of one, and all draws effective.
    r_hat, ess = mixing(torch.randn(4, 1000, 5))
    assert 0.99 < r_hat < 1.01 and 0.8 < ess <= 1.0


@pytest.mark.parametrize("coordinate", [0, 4])
def test_a_chain_that_is_elsewhere(coordinate):
    # One chain of four, in one coordinate of five, by one standard deviation: the worst coordinate counts.
    z = torch.randn(4, 1000, 5)
    z[0, :, coordinate] += 1.0
    r_hat, ess = mixing(z)
    assert r_hat > 1.05 and ess < 0.2


def test_a_chain_that_drifts():
    # Halves of a chain are chains of their own.
    z = torch.randn(4, 1000, 1) + torch.linspace(-1.0, 1.0, 1000)[:, None]
    assert mixing(z)[0] > 1.05


@pytest.mark.parametrize(("repeats", "limit"), [(10, 0.2), (100, 0.02)])
def test_chains_that_stick(repeats, limit):
    # Each draw is kept that many times: the share of effective draws is about one over it.
    z = torch.randn(4, 2000 // repeats, 2).repeat_interleave(repeats, 1)
    r_hat, ess = mixing(z)
    assert 0.3 / repeats < ess < limit and r_hat < 1.3


def test_heavy_tails_pass():
    # Cauchy draws have neither mean nor variance; by ranks, or bounded, they mix as any others.
    z = torch.distributions.Cauchy(3.0, 100.0).sample((4, 2000, 3))
    r_hat, ess = mixing(z)
    assert r_hat < 1.01 and ess > 0.8
    z[2] += 200.0
    assert mixing(z)[0] > 1.05


def test_units_do_not_matter():
    # Neither a large offset nor a small scale, in whichever precision the draws are.
    z = torch.randn(4, 500, 2, dtype=torch.float64)
    assert mixing(1e6 + 1e-3 * z) == pytest.approx(mixing(z), rel=1e-3)
    assert mixing(z.float()) == pytest.approx(mixing(z), rel=1e-3)


@pytest.mark.parametrize(("length", "known"), [(1, False), (199, False), (200, True)])
def test_short_chains_say_nothing(length, known):
    # A hundred draws are the least for half of a chain.
    r_hat, ess = mixing(torch.randn(4, length, 2))
    assert math.isfinite(r_hat) == math.isfinite(ess) == known
    assert math.isnan(r_hat) != known


def test_no_coordinates_say_nothing():
    assert all(math.isnan(number) for number in mixing(torch.randn(4, 1000, 0)))


def test_chains_that_never_move():
    # As bad as can be, and no division by zero; one coordinate that is constant is none of the posterior's.
    r_hat, ess = mixing(torch.ones(4, 1000, 2))
    assert r_hat == math.inf and ess == 1 / 4000
    z = torch.randn(4, 1000, 2)
    z[..., 0] = 7.0
    r_hat, ess = mixing(z)
    assert r_hat < 1.01 and ess > 0.8


def test_very_many_draws_and_coordinates():
    # Some of each are enough, from the first to the last coordinate.
    z = torch.randn(2, 5000, 300)
    z[0, :, 299] += 1.0
    r_hat, ess = mixing(z)
    assert r_hat > 1.05 and 0.0 < ess < 0.2
    assert mixing(z[..., :299])[1] <= 1.0


def test_one_chain():
    # Its halves can disagree.
    assert mixing(torch.randn(1, 1000, 1))[0] < 1.01
    assert mixing(torch.randn(1, 1000, 1) + torch.linspace(-1, 1, 1000)[:, None])[0] > 1.05

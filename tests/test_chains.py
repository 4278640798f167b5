"""The chains room: independence Metropolis-Hastings over given proposals."""

import math

import pytest
import torch
from helpers import assert_within_standard_error

from pyro_osds.chains import independence_chains


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

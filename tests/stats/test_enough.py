"""What is good enough is what chains and evidence will be, and particles have a say in it."""

import math

import pytest
import torch
from helpers import assert_within_standard_error

from pyro_osds.stats.chains import expected_mixing, independence_chains, mixing
from pyro_osds.stats.enough import MAX_DRAWS, Enough, most_draws, tails_agree, unseen
from pyro_osds.stats.weights import summarize_weights


def log_normal(scale, num_draws=4096, seed=0):
    return scale * torch.randn(num_draws, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("scale", "thinning"), [(0.3, 1), (1.0, 1), (1.0, 8), (1.5, 4)])
def test_expected_mixing_is_that_of_chains(scale, thinning):
    # Of a coordinate that has nothing to do with the weights, over sixteen long chains.
    torch.manual_seed(1)
    log_weight = log_normal(scale, 16 * 2000 * thinning)
    index, _ = independence_chains(log_weight, 16)
    z = torch.randn(len(log_weight), 1)[index[:, thinning - 1 :: thinning]]
    _, seen = mixing(z)
    assert expected_mixing(log_weight, thinning) == pytest.approx(seen, rel=0.12)


def test_expected_mixing_by_hand():
    # Two equal weights and a third of half their size: probabilities of staying 1/6, 1/6 and 0.
    log_weight = torch.tensor([0.0, 0.0, math.log(0.5)])
    time = 0.8 * (1 + 1 / 6) / (1 - 1 / 6) + 0.2
    assert expected_mixing(log_weight) == pytest.approx(1 / time)
    assert expected_mixing(torch.full((3,), -torch.inf)) == 0.0


def test_shortfall_is_the_standard_error_of_all_draws_over_the_one_asked_for():
    # Log-normal weights of sd 0.8: the spread of all draws gives sqrt(exp(0.64) - 1) / sqrt(32768) = 0.0052 nats.
    log_weight = log_normal(0.8)
    weights = summarize_weights(log_weight)
    exact = math.sqrt(math.expm1(0.64) / MAX_DRAWS)
    for asked in (0.001, 0.003):
        assert Enough(asked).shortfall(weights, log_weight) == pytest.approx(exact / asked, rel=0.15)
    # With an easy aim it is the chains that count: half of 4,000 draws, or 2,000 of more.
    assert Enough(1.0).shortfall(weights, log_weight) < 1.0
    many = Enough(1.0, num_draws=MAX_DRAWS)
    assert many.shortfall(weights, log_weight) == pytest.approx(2000 / MAX_DRAWS / expected_mixing(log_weight))


def test_tails_that_are_too_heavy_are_never_enough():
    log_weight = -torch.rand(4096, generator=torch.Generator().manual_seed(0)).log()  # Pareto with k = 1
    assert Enough(10.0).shortfall(summarize_weights(log_weight), log_weight) == math.inf
    nothing = torch.full((4096,), -torch.inf)
    assert Enough(10.0).shortfall(summarize_weights(nothing), nothing) > 1e6


@pytest.mark.parametrize(("asked", "stop_at"), [(0.001, 0.001), (0.003, 0.003), (0.01, 0.003), (0.1, 0.03)])
def test_draws_go_below_what_was_asked_for(asked, stop_at):
    assert Enough(asked).stop_at == pytest.approx(stop_at)


def test_no_more_draws_than_memory_holds():
    assert most_draws(0.01, 10) == most_draws(1.0, 10) == most_draws(1e-6, 10**6) == MAX_DRAWS
    assert [most_draws(error, 10) for error in (0.0029, 0.0015, 0.001)] == [
        2 * MAX_DRAWS,
        4 * MAX_DRAWS,
        16 * MAX_DRAWS,
    ]


def test_particles_and_weights_agree_or_not():
    # Draws of N(0, 1) for a posterior N(0, 1.3): log weights at true particles, at those of a narrower exploration, and
    # with a tenth of them where the flow never goes.
    generator = torch.Generator().manual_seed(3)
    target, flow = torch.distributions.Normal(0.0, 1.3), torch.distributions.Normal(0.0, 1.0)

    def log_weight(z):
        return target.log_prob(z) - flow.log_prob(z)

    at_draws = log_weight(torch.randn(4096, generator=generator))
    true = 1.3 * torch.randn(512, generator=generator)
    assert tails_agree(at_draws, log_weight(true))
    assert not tails_agree(at_draws, log_weight(0.5 * true))
    assert not tails_agree(at_draws, log_weight(torch.where(torch.arange(512) % 10 == 0, 6.0, true)))
    assert not tails_agree(at_draws, torch.full((512,), torch.inf))


# ---- parts that draws hardly meet ----


def test_particles_where_draws_hardly_go_are_told():
    # A Gaussian proposal for a mixture whose second part, 3 % of the mass, it proposes once in some thousand draws.
    torch.manual_seed(0)
    part, far = 0.03, torch.tensor(6.0, dtype=torch.float64)
    target = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.tensor([1.0 - part, part], dtype=torch.float64)),
        torch.distributions.Normal(torch.stack([0.0 * far, far]), torch.tensor([1.0, 0.3], dtype=torch.float64)),
    )
    proposal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.05)
    draws, particles = proposal.sample((4096,)), target.sample((2048,))
    log_weight = target.log_prob(draws) - proposal.log_prob(draws)
    of_particles = target.log_prob(particles) - proposal.log_prob(particles)
    found = unseen(log_weight, of_particles)
    assert found is not None and found.by_draws < 0.01
    assert_within_standard_error(found.by_particles, part, math.sqrt(part * (1.0 - part) / 2048))


@pytest.mark.parametrize("seed", range(5))
def test_a_poor_flow_that_sees_all_is_no_alarm(seed):
    # In ten dimensions a proposal that is a fifth too wide leaves a quarter of the draws effective; it lacks nothing.
    torch.manual_seed(seed)
    target, proposal = (torch.distributions.Normal(torch.zeros(10, dtype=torch.float64), sd) for sd in (1.0, 1.4))
    draws, particles = proposal.sample((32768,)), target.sample((4096,))
    log_weight, of_particles = ((target.log_prob(z) - proposal.log_prob(z)).sum(-1) for z in (draws, particles))
    assert unseen(log_weight, of_particles) is None

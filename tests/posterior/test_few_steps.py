"""The diffusion in few steps as a result: what it refuses, what speaks against it, and a training that diverges."""

from types import SimpleNamespace

import pytest
import torch
from helpers import assert_within_standard_error
from models import mixture_draws, mixture_log_prob

from pyro_osds.flow.base import standard_base
from pyro_osds.flow.kernel import KernelNetwork
from pyro_osds.flow.walk import Walk
from pyro_osds.posterior.draws import draw_posterior
from pyro_osds.posterior.few_steps import DivergedError, FewSteps, best_steps, restored_walk, walk_state
from pyro_osds.target import FunctionTarget
from pyro_osds.train.walk import WalkBudget

PLACES = torch.tensor([[-4.0, 0.0], [4.0, 0.0]], dtype=torch.float64)
TARGET = FunctionTarget(mixture_log_prob(PLACES, [0.5, 0.5]), 2)


def left_walk():
    """A walk that covers the left mode, all of its weights one half, and that has never heard of the right one."""
    base = standard_base(PLACES[0], torch.eye(2, dtype=torch.float64))

    return Walk(TARGET, base, KernelNetwork(2, hidden_features=8), 8)


def test_a_part_that_paths_miss_is_seen_by_particles():
    # Weights alone say that all is well: the log evidence is wrong by the log of two, its standard error tiny.
    torch.manual_seed(0)
    blind = draw_posterior(left_walk(), TARGET, 4, 500)
    assert blind.evidence.reliable and blind.evidence.log_evidence == pytest.approx(-0.693, abs=0.01)
    particles = mixture_draws(PLACES, [256, 256])
    seeing = draw_posterior(left_walk(), TARGET, 4, 500, particles=particles).evidence
    assert not seeing.reliable and not seeing.draws_reliable
    assert any("Explored particles do not confirm the tail of the weights" in text for text in seeing.reasons)


def test_particles_of_the_posterior_say_nothing():
    torch.manual_seed(0)
    base = standard_base(torch.zeros(2, dtype=torch.float64), 1.1 * torch.eye(2, dtype=torch.float64))
    target = FunctionTarget(lambda z: -0.5 * z.square().sum(-1), 2)
    walk = Walk(target, base, KernelNetwork(2, hidden_features=8), 8)
    particles = torch.randn(512, 2, dtype=torch.float64)
    evidence = draw_posterior(walk, target, 4, 500, particles=particles).evidence
    assert evidence.reliable, evidence.reasons
    assert_within_standard_error(evidence.log_evidence, 1.8379, evidence.std_error)


def test_equal_weights_have_no_tail_to_confirm():
    # All weights are one but for rounding, and so are those of particles: their order says nothing.
    torch.manual_seed(0)
    base = standard_base(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    target = FunctionTarget(base.log_prob, 2)
    walk = Walk(target, base, KernelNetwork(2, hidden_features=8), 8)
    particles = torch.randn(512, 2, dtype=torch.float64)
    evidence = draw_posterior(walk, target, 4, 500, particles=particles).evidence
    assert evidence.reliable and abs(evidence.log_evidence) < 1e-6, evidence.reasons


def test_a_training_that_diverges_is_no_result():
    torch.manual_seed(0)
    exploration = SimpleNamespace(z=torch.randn(64, 2, dtype=torch.float64), log_evidence=0.0, std_error=0.1)
    stage = FewSteps(TARGET, SimpleNamespace(exploration=exploration, parts=()), 4, 100)
    stage.budget = WalkBudget(20, 64, learning_rate=1e4, hidden_features=8)
    with pytest.raises(DivergedError):
        stage.posterior(None)
    assert stage.walk is None


def test_sentences_name_the_diffusion():
    torch.manual_seed(0)
    base = standard_base(torch.full((2,), 9.0, dtype=torch.float64), 0.3 * torch.eye(2, dtype=torch.float64))
    walk = Walk(TARGET, base, KernelNetwork(2, hidden_features=8), 8)
    reasons = " ".join(draw_posterior(walk, TARGET, 4, 500).evidence.all_reasons)
    assert "diffusion" in reasons and "flow" not in reasons


def test_fewest_steps_with_as_many_effective_paths_as_any():
    # Where the posterior is the base, all numbers of steps are the same.
    base = standard_base(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    assert best_steps(Walk(FunctionTarget(base.log_prob, 2), base, KernelNetwork(2, hidden_features=8))) == 8


def test_a_walk_is_kept_and_restored():
    walk = left_walk()
    again = restored_walk(walk_state(walk), TARGET)
    torch.manual_seed(1)
    first = walk.sample(5)[1]
    torch.manual_seed(1)
    assert torch.equal(again.sample(5)[1], first) and again.num_steps == 8
    assert walk_state(None) is None and restored_walk(None, TARGET) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vectorized": False}, "point by point"),
        ({"dim": 65}, "65 coordinates, and it learns at most 64"),
        ({"num_terms": 10_000}, "terms of the log density"),
        ({}, ""),
    ],
)
def test_what_is_too_large_is_not_begun(change, words):
    target = SimpleNamespace(**({"vectorized": True, "dim": 2, "num_terms": 1} | change))
    refusal = FewSteps(target, None, 4, 1000, budget=WalkBudget()).refusal()
    assert words in refusal and bool(refusal) == bool(words)

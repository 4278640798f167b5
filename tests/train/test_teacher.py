"""Teacher: training makes path weights more equal, records what it saw, and survives what can happen."""

import math

import pytest
import torch
from models import mixture_draws, mixture_log_prob

from pyro_osds.flow.base import gaussian_base
from pyro_osds.flow.diffusion import Diffusion
from pyro_osds.flow.network import ControlNetwork
from pyro_osds.target import FunctionTarget
from pyro_osds.train import teacher
from pyro_osds.train.teacher import TeacherBudget, train_teacher

PLACES = [[-3.0, 0.0], [3.0, 1.0]]


def untaught():
    """A diffusion to two modes, and exact draws of them."""
    z = mixture_draws(PLACES, [150, 350])
    target = FunctionTarget(mixture_log_prob(PLACES, [0.3, 0.7]), 2)

    return Diffusion(target, gaussian_base(z), ControlNetwork(2, hidden_features=32)), z


def path_elbo(diffusion, num_steps=8):
    with torch.no_grad():
        return diffusion.log_weight(diffusion.simulate(4000, num_steps)).mean().item()


def weights_of(diffusion):
    return torch.cat([parameter.detach().reshape(-1) for parameter in diffusion.network.parameters()])


def budget_of(num_matching, num_path, **options):
    return TeacherBudget(num_matching, num_path, num_time_steps=8, matching_batch_size=256, batch_size=64, **options)


def test_training_raises_the_path_elbo():
    # Towards the log evidence, zero, from below; both losses are recorded by name, a value an iteration.
    diffusion, z = untaught()
    before = path_elbo(diffusion)
    history = train_teacher(diffusion, z, budget_of(150, 30))
    assert before + 0.2 < path_elbo(diffusion) < 0.05
    assert {name: len(values) for name, values in history.terms.items()} == {
        "score_matching": 150,
        "path_log_variance": 30,
    }
    assert all(map(math.isfinite, sum(history.terms.values(), [])))
    assert history.num_skipped == 0 and not history.interrupted


def test_score_matching_keeps_both_modes():
    # The probability flow ends in either, in the particles' ratio of three to seven.
    diffusion, z = untaught()
    train_teacher(diffusion, z, budget_of(200, 0))
    with torch.no_grad():
        landed = diffusion.base.from_whitened(diffusion.flow(torch.randn(4000, 2), 32)[-1])
    assert abs((landed[:, 0] < 0).float().mean().item() - 0.3) < 0.06
    nearest = torch.cdist(landed, torch.tensor(PLACES)).amin(-1)
    assert nearest.median() < 2.0


def test_reverse_kl_through_the_simulation():
    # The paper's loss alone raises its own bound, and is recorded under its name.
    diffusion, z = untaught()
    before = path_elbo(diffusion)
    history = train_teacher(diffusion, z, budget_of(0, 60, objective="reverse_kl"))
    assert path_elbo(diffusion) > before + 0.1
    assert list(history.terms) == ["path_reverse_kl"] and len(history.terms["path_reverse_kl"]) == 60


def test_unknown_objective():
    # Before anything is trained.
    with pytest.raises(ValueError, match=r"objective must be one of .*log_variance.*, got 'forward_kl'"):
        TeacherBudget(objective="forward_kl")


def spoil(monkeypatch, spoiled):
    """Score matching whose loss ``spoiled(number, loss)`` changes; returns the weights seen at each call."""
    seen, inner = [], teacher.score_matching

    def score_matching(diffusion, u, score, d):
        seen.append(weights_of(diffusion))
        return spoiled(len(seen), inner(diffusion, u, score, d))

    monkeypatch.setattr(teacher, "score_matching", score_matching)

    return seen


def test_interruption_keeps_what_was_learnt(monkeypatch):
    # Ctrl-C in the sixth iteration: five are recorded, and the moving average of their weights is in place.
    def interrupt(number, loss):
        if number == 6:
            raise KeyboardInterrupt
        return loss

    seen = spoil(monkeypatch, interrupt)
    diffusion, z = untaught()
    history = train_teacher(diffusion, z, budget_of(20, 5))
    assert history.interrupted and {name: len(values) for name, values in history.terms.items()} == {
        "score_matching": 5
    }
    expected = seen[1]
    for weights in seen[2:]:
        expected = 0.98 * expected + 0.02 * weights
    torch.testing.assert_close(weights_of(diffusion), expected)
    assert not torch.equal(expected, seen[0])


def test_a_deadline_pauses_and_what_follows_is_the_same():
    # Too late from the start: nothing is learnt, nobody interrupted, and what goes on is the whole training.
    torch.manual_seed(1)
    whole, z = untaught()
    history = train_teacher(whole, z, budget_of(6, 0))
    torch.manual_seed(1)
    again, z = untaught()
    late = train_teacher(again, z, budget_of(6, 0), deadline=0.0)
    assert late.paused is not None and not late.interrupted and not late.terms
    done = train_teacher(again, z, budget_of(6, 0), before=late)
    assert done.paused is None and done.terms == history.terms
    assert torch.equal(weights_of(again), weights_of(whole))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_steps_that_are_not_finite_are_skipped_and_counted(monkeypatch, value):
    # The weights do not move in such a step, and training goes on.
    seen = spoil(monkeypatch, lambda number, loss: loss * value if number in (3, 6) else loss)
    diffusion, z = untaught()
    history = train_teacher(diffusion, z, budget_of(8, 0))
    assert history.num_skipped == 2 and len(history.terms["score_matching"]) == 8
    unmoved = [torch.equal(before, after) for before, after in zip(seen[:-1], seen[1:], strict=True)]
    assert unmoved == [False, False, True, False, False, True, False]
    assert weights_of(diffusion).isfinite().all()


def test_a_target_that_vanishes_does_not_stop_training():
    # A hard edge through the posterior: paths beyond it are left out, both kinds of loss stay finite.
    diffusion, z = untaught()
    inner = diffusion.target.log_prob
    diffusion.target = FunctionTarget(lambda z: torch.where(z[:, 1] > 0, inner(z), -torch.inf), 2)
    for objective in ("log_variance", "reverse_kl"):
        history = train_teacher(diffusion, z[z[:, 1] > 0], budget_of(5, 5, objective=objective))
        assert history.num_skipped == 0 and all(map(math.isfinite, sum(history.terms.values(), [])))

"""Trainer: what a step does, what is skipped, what is averaged and what is kept."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from helpers import perturbed
from models import log_gamma, log_gamma_log_evidence

from pyro_osds.flow.base import gaussian_base
from pyro_osds.flow.coupling import FlowMap
from pyro_osds.flow.leap import Leap
from pyro_osds.runtime import clock as clock_module
from pyro_osds.target import FunctionTarget
from pyro_osds.train.budget import Budget
from pyro_osds.train.history import History
from pyro_osds.train.objectives import Loss, exact_volume, forward_kl
from pyro_osds.train.trainer import Trainer

SHORT = Budget(num_iterations=40, batch_size=64, first_round=20, elbo_gap=0.0, num_validation_draws=1000)


def make(log_prob_fn=log_gamma, budget=SHORT, wrap=None, **options):
    """A trainer of a small leap; ``wrap(number, loss)`` changes the loss of the given call."""
    target = FunctionTarget(log_prob_fn, 2)
    leap = Leap(gaussian_base(torch.randn(500, 2)), FlowMap(2, num_blocks=2, hidden_features=8, **options))
    objective = None
    if wrap is not None:
        inner, calls = exact_volume(target, budget.batch_size), []

        def objective(leap, average):
            calls.append(1)
            loss = inner(leap, average)
            return loss._replace(total=wrap(len(calls), loss.total))

    return Trainer(leap, target, budget, objective, disable_progbar=True)


def weights_of(leap):
    return torch.cat([parameter.detach().reshape(-1) for parameter in leap.flow.parameters()])


def test_training_raises_the_elbo_towards_the_evidence():
    # A skew density: the bound rises, and stays below the log evidence by its sampling error at most.
    trainer = make(budget=Budget(50, 64, first_round=50, num_validation_draws=2000), num_spline_blocks=1)
    history = trainer.run()
    assert history.elbo[-1] > history.elbo[0] + 0.1 and history.ess[-1] > history.ess[0]
    assert history.elbo[-1] < log_gamma_log_evidence(2) + 0.02
    assert not history.interrupted and history.num_skipped == 0


def test_history_has_an_entry_for_each_step_and_round():
    # Losses by step; the look before training and the one after each round.
    history = make().run()
    assert len(history.loss) == history.step[-1] <= 40
    assert history.step[:2] == [0, 20]
    assert len(history.step) == len(history.elbo) == len(history.ess) == len(history.pareto_k)


def test_training_stops_when_it_is_good_enough():
    # An exact flow is done after the first round; the budget is the limit otherwise.
    def standard(z):
        return -0.5 * z.square().sum(-1)

    base_draws = torch.randn(500, 2)
    base = gaussian_base(base_draws)
    target = FunctionTarget(base.log_prob, 2)
    budget = Budget(1000, 64, learning_rate=1e-4, first_round=12, num_validation_draws=1000)
    history = Trainer(Leap(base, FlowMap(2, num_blocks=2)), target, budget, disable_progbar=True).run()
    assert history.step == [0, 12]
    assert len(make(standard, Budget(7, 64, first_round=20, num_validation_draws=500)).run().loss) == 7


def test_a_round_of_ten_steps():
    # A budget that leaves ten steps for a round is spent like any other.
    assert len(make(budget=Budget(10, 64, num_validation_draws=500)).run().loss) == 10


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_steps_that_are_not_finite_are_skipped_and_counted(value):
    # The weights do not move in such a step, the next one is a plain one, and a warning gives the number.
    trainer = make(wrap=lambda number, loss: loss * value if number in (3, 9) else loss)
    with pytest.warns(UserWarning, match=r"2 of \d+ training steps had a gradient that is not finite"):
        history = trainer.run()
    assert history.num_skipped == 2 and weights_of(trainer.leap).isfinite().all()


def test_steps_without_a_draw_inside_have_a_sentence_of_their_own():
    # Nothing overflows: the density is largest at the end of its support, and the flow went beyond.
    def edged(z):
        return torch.where(z[:, 0] > 20.0, -z.sum(-1), -torch.inf)

    trainer = make(edged)
    with pytest.warns(UserWarning, match=r"In (\d+) of \1 training steps no draw had a positive posterior density"):
        trainer.run()


def test_a_skipped_step_moves_nothing():
    # Step by step: weights stay, the average stays, the objective is left out once.
    numbers = []

    def wrap(number, loss):
        numbers.append(number)
        return loss * math.nan if number == 2 else loss

    trainer = make(wrap=wrap)
    trainer.step()
    before, average = weights_of(trainer.leap), weights_of(trainer.averaged())
    trainer.step()
    assert torch.equal(weights_of(trainer.leap), before) and torch.equal(weights_of(trainer.averaged()), average)
    trainer.step()
    assert numbers == [1, 2] and not torch.equal(weights_of(trainer.leap), before)
    trainer.step()
    assert numbers == [1, 2, 3] and trainer.history.num_skipped == 1 and len(trainer.history.loss) == 4


def test_best_weights_are_kept():
    # An objective that only does harm: in the end the weights are those from before.
    trainer = make(wrap=lambda number, loss: -loss)
    before = weights_of(trainer.leap)
    history = trainer.run()
    assert history.elbo[-1] < history.elbo[0]
    assert torch.equal(weights_of(trainer.leap), before)


def interrupted_at(number_of_call, then=1.0):
    def wrap(number, loss):
        if number == number_of_call:
            raise KeyboardInterrupt
        return then * loss

    return wrap


def test_interruption_keeps_a_better_average():
    # Ctrl-C in the first round: the average so far beats the untrained flow and is taken.
    trainer = make(wrap=interrupted_at(18))
    before = weights_of(trainer.leap)
    with pytest.warns(UserWarning, match="interrupted"):
        history = trainer.run()
    assert history.interrupted and len(history.loss) == 17
    assert history.elbo[-1] > history.elbo[0]
    assert torch.equal(weights_of(trainer.leap), weights_of(trainer.averaged()))
    assert not torch.equal(weights_of(trainer.leap), before)


def test_interruption_of_harm_keeps_the_best():
    # What was trained until then is worse than before: the weights from before are back.
    trainer = make(wrap=interrupted_at(18, then=-1.0))
    before = weights_of(trainer.leap)
    with pytest.warns(UserWarning, match="interrupted"):
        trainer.run()
    assert torch.equal(weights_of(trainer.leap), before)


def test_average_is_exponential():
    # The first average is the weights themselves, then 0.98 old and 0.02 new.
    trainer = make()
    expected = None
    for _ in range(5):
        trainer.step()
        now = weights_of(trainer.leap)
        expected = now if expected is None else 0.98 * expected + 0.02 * now
        torch.testing.assert_close(weights_of(trainer.averaged()), expected)
    assert not torch.allclose(expected, now)


def test_step_returns_minus_the_mean_log_weight():
    # As SVI's loss: it is the value in the history, and for an exact flow minus the log evidence.
    base = gaussian_base(torch.randn(500, 2))
    trainer = Trainer(
        Leap(base, FlowMap(2, num_blocks=2)), FunctionTarget(lambda z: base.log_prob(z) + 3, 2), disable_progbar=True
    )
    loss = trainer.step()
    assert math.isclose(loss, -3.0, abs_tol=1e-4) and trainer.history.loss == [loss]


def test_evaluation_trains_nothing():
    # Weights, average and history are as before; the value is minus the log evidence of an exact flow.
    base = gaussian_base(torch.randn(500, 2))
    trainer = Trainer(
        Leap(base, FlowMap(2, num_blocks=2)), FunctionTarget(lambda z: base.log_prob(z) + 3, 2), disable_progbar=True
    )
    before, state = copy.deepcopy(trainer.history), weights_of(trainer.leap)
    assert math.isclose(trainer.evaluate(), -3.0, abs_tol=1e-4)
    assert trainer.history == before and torch.equal(weights_of(trainer.leap), state)


def test_the_leap_is_trained_in_place():
    # Same object, new weights; the averaged leap shares base and number of steps.
    trainer = make()
    leap, before = trainer.leap, weights_of(trainer.leap)
    trainer.run()
    assert trainer.leap is leap and not torch.equal(weights_of(leap), before)
    assert trainer.averaged().base is leap.base and trainer.averaged().num_steps == leap.num_steps


def test_a_target_that_vanishes_does_not_stop_training():
    # A hard edge through the posterior: draws beyond it have density zero, training goes on with the others.
    def log_prob_fn(z):
        return torch.where(z[:, 0] > 0, -0.5 * z.square().sum(-1), -torch.inf)

    trainer = make(log_prob_fn)
    perturbed(trainer.leap.flow)
    history = trainer.run()
    assert history.num_skipped == 0 and all(map(math.isfinite, history.elbo))
    assert history.ess[-1] > history.ess[0]


def with_warm_up(warm_up, budget):
    trainer = make(budget=budget)

    return Trainer(trainer.leap, trainer.target, budget, warm_up=warm_up, disable_progbar=True)


def test_warm_up_comes_first_and_does_not_count():
    # Eight steps of it, a look, then all iterations of the budget; each loss is of its own kind.
    points = torch.randn(200, 2)
    budget = Budget(10, 64, first_round=10, warm_up=8, num_validation_draws=500)
    history = with_warm_up(forward_kl(points, 64), budget).run()
    assert history.step == [0, 8, 18] and len(history.loss) == 18
    warmed, calibrated = history.terms["forward_kl"], history.terms["exact_volume"]
    assert [math.isnan(value) for value in warmed] == [False] * 8 + [True] * 10
    assert [math.isnan(value) for value in calibrated] == [True] * 8 + [False] * 10
    assert history.loss[:8] == warmed[:8]
    # Draws are a part of the loss of the rest, the tails are not.
    torch.testing.assert_close(history.loss[8:], calibrated[8:])


def test_warm_up_is_kept_even_if_it_lowers_the_elbo():
    # It is where the modes are: the weights from before are no longer in the running.
    moved = torch.randn(500, 2) + 2.0
    budget = Budget(1, 64, first_round=1, learning_rate=1e-2, warm_up=60, num_validation_draws=500)
    trainer = with_warm_up(forward_kl(moved, 256), budget)
    history = trainer.run()
    assert history.elbo[1] < history.elbo[0] - 1
    assert (trainer.leap.sample(500)[0].mean(0) > 0.5).all()


def test_without_a_warm_up_its_budget_is_not_spent():
    # The default of three hundred steps is for those who have one.
    assert len(make(budget=Budget(5, 64, num_validation_draws=500)).run().loss) == 5


def test_far_from_the_evidence_it_gives_up_after_a_round():
    # The gap of a skew density after five steps is above a hundredth of a nat; three more rounds would follow.
    options = {"num_iterations": 40, "batch_size": 64, "first_round": 5, "elbo_gap": 0.0, "num_validation_draws": 500}
    history = make(budget=Budget(**options, max_gap=0.01)).run()
    assert history.step == [0, 5] and history.gap[-1] > 0.01
    assert make(budget=Budget(**options, max_gap=math.inf)).run().step[:3] == [0, 5, 12]


def test_the_objective_sees_the_average():
    # Of each step before it: a moving average of the weights, with base and number of steps of the leap.
    seen = []

    def objective(leap, average):
        same = torch.equal(leap(torch.ones(1, 2))[0], trainer.leap(torch.ones(1, 2))[0])
        seen.append((same, weights_of(average), weights_of(trainer.averaged())))
        return exact_volume(trainer.target, 64)(leap, average)

    trainer = make()
    trainer = Trainer(trainer.leap, trainer.target, SHORT, objective, disable_progbar=True)
    for _ in range(3):
        trainer.step()
    assert all(same for same, *_ in seen)
    assert all(torch.equal(average, expected) for _, average, expected in seen)
    assert not torch.equal(seen[1][1], seen[2][1])


def test_loss_of_a_step_without_weights_is_its_total():
    # An objective that has no draws of its own records what it minimised; one with no finite weight has no number.
    trainer = make()
    expected = weights_of(trainer.leap).square().sum().item()
    for log_weight, value in [(torch.zeros(0), expected), (torch.full((3,), -torch.inf), math.nan)]:

        def objective(leap, average, log_weight=log_weight):
            return Loss(sum(parameter.square().sum() for parameter in leap.flow.parameters()), {}, log_weight)

        fresh = Trainer(copy.deepcopy(trainer.leap), trainer.target, SHORT, objective, disable_progbar=True)
        assert fresh.step() == pytest.approx(value, nan_ok=True)


def test_record_keeps_all_terms_as_long_as_the_loss():
    # A term that comes late or stays away is nan where it was not there.
    history = History()
    history.record(1.0, {"a": torch.tensor(1.0)})
    history.record(2.0, {"b": torch.tensor(2.0)})
    history.record(3.0, {})
    assert history.loss == [1.0, 2.0, 3.0]
    assert history.terms == {
        "a": pytest.approx([1.0, math.nan, math.nan], nan_ok=True),
        "b": pytest.approx([math.nan, 2.0, math.nan], nan_ok=True),
    }


def test_extend_appends_another_history():
    # Steps go on counting, terms are padded on both sides, flags and counts add up.
    first, second = History(), History(num_skipped=2, interrupted=True)
    for history, name, elbo in [(first, "a", -1.0), (second, "b", -0.5)]:
        history.record(1.0, {name: torch.tensor(1.0)})
        history.record(2.0, {name: torch.tensor(2.0)})
        for values, value in [
            (history.step, 2),
            (history.elbo, elbo),
            (history.gap, 0.3),
            (history.ess, 0.4),
            (history.pareto_k, 0.5),
        ]:
            values.append(value)
    first.extend(second)
    assert first.loss == [1.0, 2.0, 1.0, 2.0] and first.step == [2, 4] and first.elbo == [-1.0, -0.5]
    assert first.terms == {
        "a": pytest.approx([1.0, 2.0, math.nan, math.nan], nan_ok=True),
        "b": pytest.approx([math.nan, math.nan, 1.0, 2.0], nan_ok=True),
    }
    assert (len(first.gap), len(first.ess), len(first.pareto_k)) == (2, 2, 2)
    assert first.best_elbo == -0.5 and first.num_skipped == 2 and first.interrupted


# ---- a deadline ----


@pytest.fixture
def clock(monkeypatch):
    """A clock that is one later at each look: before each round and step, and twice to time the density."""
    now = [0.0]

    def perf_counter():
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr(clock_module, "time", SimpleNamespace(perf_counter=perf_counter))


def test_training_ends_at_the_deadline_with_what_it_has(clock):
    # In the middle of the first round: thirty steps, a last look, and the better weights of that look.
    budget = Budget(500, 64, first_round=250, elbo_gap=0.0, num_validation_draws=4000, deadline=33.5)
    trainer = make(budget=budget, num_spline_blocks=1)
    before = weights_of(trainer.leap)
    history = trainer.run()
    assert len(history.loss) == 30 and history.step == [0, 30] and len(history.elbo) == 2
    assert history.elbo[1] > history.elbo[0] and not history.interrupted
    assert not torch.equal(weights_of(trainer.leap), before)
    assert torch.equal(weights_of(trainer.leap), weights_of(trainer.averaged()))


def test_no_later_round_after_the_deadline(clock):
    # The first round of twenty steps just ends; the next one is not begun, though there is budget.
    budget = Budget(500, 64, first_round=20, elbo_gap=0.0, num_validation_draws=1000, deadline=23.5)
    history = make(budget=budget).run()
    assert len(history.loss) == 20 and history.step == [0, 20]


def test_harm_until_the_deadline_is_not_kept(clock):
    # The weights from before, as at any other end.
    budget = Budget(500, 64, first_round=250, elbo_gap=0.0, num_validation_draws=2000, deadline=33.5)
    trainer = make(budget=budget, wrap=lambda number, loss: -loss)
    before = weights_of(trainer.leap)
    history = trainer.run()
    assert history.elbo[1] < history.elbo[0] and torch.equal(weights_of(trainer.leap), before)


@pytest.mark.parametrize("with_warmth", [False, True])
def test_a_deadline_that_has_passed(clock, with_warmth):
    # No step, with or without a warm-up; the flow is looked at and stays as it was.
    budget = Budget(40, 64, first_round=20, warm_up=10, num_validation_draws=500, deadline=0.0)
    trainer = make(budget=budget)
    if with_warmth:
        points = torch.randn(100, 2)
        trainer = Trainer(trainer.leap, trainer.target, budget, None, forward_kl(points, 32), disable_progbar=True)
    before = weights_of(trainer.leap)
    history = trainer.run()
    assert history.loss == [] and set(history.step) == {0} and math.isfinite(history.best_elbo)
    assert torch.equal(weights_of(trainer.leap), before)


def test_a_warm_up_ends_at_the_deadline(clock):
    # What it reached is kept, and no round follows.
    budget = Budget(40, 64, first_round=20, warm_up=100, num_validation_draws=500, deadline=7.5)
    trainer = make(budget=budget)
    trainer = Trainer(
        trainer.leap, trainer.target, budget, None, forward_kl(torch.randn(100, 2) + 3, 32), disable_progbar=True
    )
    before = weights_of(trainer.leap)
    history = trainer.run()
    assert len(history.loss) == 5 and not torch.equal(weights_of(trainer.leap), before)


def test_without_a_deadline_the_clock_does_not_matter(clock):
    # All steps of the budget.
    assert len(make(budget=Budget(30, 64, first_round=30, num_validation_draws=500)).run().loss) == 30

"""Recipe: which recipe for which posterior, what follows what, and which flow is kept."""

import math
from dataclasses import fields, replace

import pytest
import torch
from models import log_gamma, mixture_draws, mixture_log_prob
from torch.distributions import Gamma, Normal

from pyro_osds.explore.mixture import mixture_base
from pyro_osds.explore.modes import Modes
from pyro_osds.explore.particles import Exploration
from pyro_osds.explore.survey import Survey
from pyro_osds.flow.base import gaussian_base, standard_base
from pyro_osds.flow.coupling import FlowMap
from pyro_osds.flow.leap import Leap
from pyro_osds.runtime.precision import NETWORK_DTYPE
from pyro_osds.stats.enough import Enough
from pyro_osds.stats.gaussian import MANY_DIMENSIONS
from pyro_osds.stats.weights import weigh
from pyro_osds.target import FunctionTarget
from pyro_osds.train import flows, recipe
from pyro_osds.train.budget import Budget
from pyro_osds.train.flows import Builder, FlowOptions, FlowSize
from pyro_osds.train.recipe import Recipe, decided_name
from pyro_osds.train.teacher import TeacherBudget, TeacherHistory
from pyro_osds.train.velocity import VelocityLeap, VelocityTrainer

TINY = FlowSize(num_blocks=2, num_spline_blocks=1, hidden_features=8)
SHORT = Budget(12, 32, first_round=6, warm_up=5, elbo_gap=0.0, num_validation_draws=500)
TEACHING = TeacherBudget(5, 2, num_time_steps=4, matching_batch_size=32, batch_size=16)


def survey_of(log_prob_fn, z, base=None, parted=0.0):
    """What a survey would have found: exact draws in place of particles."""
    target = FunctionTarget(log_prob_fn, 2)
    exploration = Exploration(z, target.log_prob(z), torch.zeros(8), 1, 0, 0.8, 0)
    modes = Modes(torch.zeros(len(z), dtype=torch.long), parted)

    return Survey(target, base or gaussian_base(z), exploration, modes, 0)


def skew(parted=0.0):
    """One skew mode, far from a Gaussian."""
    return survey_of(log_gamma, Gamma(1.5, 1.0).sample((400, 2)).log(), parted=parted)


def two_modes():
    """Two modes, taken care of by a mixture base."""
    places = [[-5.0, 0.0], [5.0, 0.0]]
    z = mixture_draws(places, [200, 200])
    labels = torch.arange(2).repeat_interleave(200)

    return survey_of(mixture_log_prob(places, [0.5, 0.5]), z, mixture_base(z, labels), parted=0.5)


def make(found, name="auto", **options):
    options = {"budget": SHORT, "size": TINY, "num_time_steps": 4, "teacher_budget": TEACHING, **options}

    return recipe_of(found, name, **options)


def recipe_of(found, name="auto", **options):
    """A recipe whose options of the flow are given by name beside the others."""
    chosen = {field.name: options.pop(field.name) for field in fields(FlowOptions) if field.name in options}

    return Recipe(found, name, options=FlowOptions(disable_progbar=True, **chosen), **options)


def splines(leap):
    return sum(block.num_bins > 0 for block in leap.flow.blocks)


# ---- what runs ----


def test_auto_goes_by_the_survey():
    # One mode, or modes that a mixture counts: calibrate. Valleys and a Gaussian base: cover.
    assert make(skew(parted=0.0)).name == make(skew(parted=0.01)).name == "calibrate"
    assert make(two_modes()).name == "calibrate"
    assert make(skew(parted=0.5)).name == "cover"
    # Whoever asks for a recipe gets it.
    assert make(skew(parted=0.5), "calibrate").name == "calibrate" and make(two_modes(), "distill").name == "distill"


def test_splines_and_bases():
    # A mixture base has shape enough for calibrate; cover and distill start from a Gaussian whatever was found.
    assert splines(make(skew()).trainer.leap) == 1 and splines(make(two_modes()).trainer.leap) == 0
    assert make(two_modes()).trainer.leap.base.num_components >= 2
    for name in ("cover", "distill"):
        leap = make(two_modes(), name).trainer.leap
        assert leap.base.num_components == 1 and splines(leap) == 1


@pytest.mark.parametrize("found", [skew, two_modes])
def test_sizes_by_recipe(found):
    # Lean for calibrate, one more spline block for cover, unless a size is given.
    for name, size in [("calibrate", flows.LEAN), ("cover", flows.COVERING)]:
        flow = make(found(), name, size=None).trainer.leap.flow
        assert len(flow.blocks) == size.num_blocks
        assert len(make(found(), name).trainer.leap.flow.blocks) == TINY.num_blocks


def test_unknown_names():
    # Both options tell what there is and what came.
    with pytest.raises(ValueError, match=r"recipe must be one of .*'distill'.*, got 'flow'"):
        make(skew(), "flow")
    with pytest.raises(ValueError, match=r"network must be one of .*'velocity'.*, got 'unet'"):
        make(skew(), network="unet")


@pytest.mark.parametrize(
    ("name", "network", "parted", "expected"),
    [
        ("auto", "coupling", 0.0, "calibrate"),
        ("auto", "coupling", 0.5, "cover"),
        ("distill", "coupling", 0.5, "distill"),
        ("distill", "velocity", 0.0, "velocity"),
    ],
)
def test_who_decides_on_the_name(name, network, parted, expected):
    # The network before the recipe, the recipe before the survey.
    assert decided_name(name, network, skew(parted)) == expected


@pytest.mark.parametrize(
    ("name", "warmed_by"),
    [("calibrate", None), ("cover", "forward_kl"), ("distill", "state_consistency")],
)
def test_each_recipe_runs(name, warmed_by):
    # The warm-up is the recipe's own, the exact weights follow; only distill has a teacher, and trains it.
    made = make(skew(parted=0.5), name)
    made.run()
    terms = made.trainer.history.terms
    assert {"exact_volume"} | ({warmed_by} if warmed_by else set()) <= set(terms)
    assert len(made.trainer.history.loss) == 12 + (5 if warmed_by else 0)
    assert ("cover_log_variance" in terms) == (name != "calibrate")
    assert (made.teacher is not None) == (name == "distill")
    lengths = {kind: len(values) for kind, values in made.teacher_history.terms.items()}
    assert lengths == ({"score_matching": 5, "path_log_variance": 2} if name == "distill" else {})


def test_distilled_flows_are_trained_in_all_dyadic_numbers_of_steps(monkeypatch):
    # Of the finest grid asked for.
    seen, inner = [], recipe.exact_volume

    def record(*arguments, **options):
        seen.append(options.get("num_steps", ()))
        return inner(*arguments, **options)

    monkeypatch.setattr(flows, "exact_volume", record)
    for name in ("calibrate", "cover", "distill"):
        make(skew(), name)
    assert seen == [(), (), (1, 2, 4)]


def test_interrupted_teaching_leaves_the_flow_untrained(monkeypatch):
    # Ctrl-C while the teacher learns: a warning, no steps of the flow, and the history says why.
    monkeypatch.setattr(recipe, "train_teacher", lambda *_: TeacherHistory(interrupted=True, paused={}))
    made = make(skew(), "distill")
    with pytest.warns(UserWarning, match="teacher's training was interrupted"):
        made.run()
    assert made.trainer.history.interrupted and made.trainer.history.loss == []


# ---- the larger flow ----


@pytest.fixture
def small_sizes(monkeypatch):
    """Lean and large, a fraction of their size; the lean flow always leaves room."""
    monkeypatch.setattr(flows, "LEAN", replace(TINY, num_spline_blocks=0))
    monkeypatch.setattr(flows, "LARGE", FlowSize(3, 1, 16))
    for module in (flows, recipe):
        monkeypatch.setattr(module, "LEAN_GAP", 1e-6)


def test_a_larger_flow_follows(small_sizes):
    # The lean flow gives up after its first round, the larger one spends the rest; one history holds both.
    budget = Budget(90, 64, first_round=40, elbo_gap=0.0, num_validation_draws=2000)
    made = make(skew(), size=None, budget=budget)
    made.run()
    history = made.trainer.history
    assert len(history.loss) == 90 and len(history.terms["exact_volume"]) == 90
    assert history.step == [0, 40, 40, 90] and len(history.elbo) == 4
    assert len(made.trainer.leap.flow.blocks) == 3


@pytest.mark.parametrize(("std_error", "particles", "num_steps"), [(0.05, 1.0, 40), (1e-5, 1.0, 90), (0.05, 0.3, 90)])
def test_no_larger_flow_where_draws_give_the_rest(small_sizes, std_error, particles, num_steps):
    # Good enough for what was asked for; not for more; and not where particles lie elsewhere than the weights say.
    z, spread = torch.randn(400, 2), Normal(0.0, 1.2)
    found = survey_of(lambda z: spread.log_prob(z).sum(-1), particles * 1.2 * z, gaussian_base(z))
    budget = Budget(90, 64, 1e-6, first_round=40, elbo_gap=0.0, num_validation_draws=2000, enough=Enough(std_error))
    made = make(found, size=None, budget=budget)
    made.run()
    assert len(made.trainer.history.loss) == num_steps


def test_the_better_flow_is_kept(small_sizes, monkeypatch):
    # A larger flow whose training only does harm is not taken, and is in the history all the same.
    inner = recipe.exact_volume

    def harmful(target, batch_size, *args):
        objective = inner(target, batch_size, *args)

        def loss(leap, average):
            found = objective(leap, average)
            return found._replace(total=-found.total) if batch_size == 128 else found

        return loss

    monkeypatch.setattr(flows, "exact_volume", harmful)
    budget = Budget(60, 64, first_round=50, elbo_gap=0.0, num_validation_draws=2000)
    made = make(skew(), size=None, budget=budget)
    lean = made.trainer
    made.run()
    assert made.trainer is lean and len(lean.leap.flow.blocks) == 2
    assert lean.history.step == [0, 50, 50, 60] and lean.history.best_elbo == lean.history.elbo[1]


@pytest.mark.parametrize(
    "options",
    [
        {"size": TINY},
        {"name": "cover"},
        {"budget": replace(SHORT, first_round=12)},
    ],
    ids=["size_given", "cover", "nothing_left"],
)
def test_no_larger_flow(small_sizes, monkeypatch, options):
    # A size that was asked for stays; other recipes do not grow; a budget that is spent is spent.
    monkeypatch.setattr(Builder, "_large", lambda self, plan: pytest.fail("a larger flow was made"))
    make(skew(), **{"size": None, **options}).run()


@pytest.mark.parametrize(("found", "num_steps"), [(two_modes, 2), (skew, 10)])
def test_no_larger_flow_where_a_mixture_made_no_progress(small_sizes, found, num_steps):
    # Two steps at no speed leave the gap from before: more of the same does not help a mixture, a Gaussian it may.
    budget = Budget(10, 64, learning_rate=1e-8, first_round=2, elbo_gap=0.0, num_validation_draws=4000)
    made = make(found(), size=None, budget=budget)
    made.run()
    assert len(made.trainer.history.loss) == num_steps


def test_a_lean_flow_that_is_good_enough_stays_alone(monkeypatch):
    # The posterior is the base: no gap, whatever is left of the budget.
    monkeypatch.setattr(Builder, "_large", lambda self, plan: pytest.fail("a larger flow was made"))
    z = torch.randn(400, 2)
    base = gaussian_base(z)
    made = make(survey_of(base.log_prob, z, base), size=None, budget=replace(SHORT, learning_rate=1e-4))
    made.run()
    assert len(made.trainer.history.loss) < 13


# ---- other numbers of steps ----


@pytest.fixture
def short_retracing(monkeypatch):
    monkeypatch.setattr(recipe, "_RETRACING", 10)


@pytest.mark.parametrize("name", ["calibrate", "cover"])
def test_with_steps_trains_a_copy(short_retracing, name):
    # The walk is a leap of its own in four steps, near the trained one; that one stays as it was.
    made = make(skew(parted=0.5), name)
    made.run()
    leap = made.trainer.leap
    before = [parameter.clone() for parameter in leap.flow.parameters()]
    walk = made.with_steps(4)
    assert isinstance(walk, Leap) and walk.num_steps == 4 and leap.num_steps == 1
    assert all(torch.equal(a, b) for a, b in zip(before, leap.flow.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(before, walk.flow.parameters(), strict=True))
    elbos = [weigh(each, made.found.target, 2000).log_weight.mean().item() for each in (leap, walk)]
    assert math.isfinite(elbos[1]) and elbos[1] > elbos[0] - 0.5


def test_with_steps_of_a_distilled_flow(short_retracing):
    # It knows all numbers up to the finest grid, with the same weights; beyond, it learns.
    made = make(skew(), "distill")
    for num_steps in (1, 2, 4):
        walk = made.with_steps(num_steps)
        assert walk.flow is made.trainer.leap.flow and walk.num_steps == num_steps
    assert made.with_steps(8).flow is not made.trainer.leap.flow


@pytest.mark.parametrize("volume", ["exact", "published"])
def test_velocity_network(volume):
    # The published sampler: its own trainer, a tenth of the learning rate, and the same weights in any number of steps.
    made = make(skew(), network="velocity", volume=volume, num_steps=2)
    made.run()
    assert made.name == "velocity" and isinstance(made.trainer, VelocityTrainer)
    assert made.trainer.budget.learning_rate == pytest.approx(0.1 * SHORT.learning_rate)
    assert len(made.trainer.history.loss) == 12 and made.trainer.leap.num_steps == 2
    walk = made.with_steps(4)
    assert isinstance(walk, VelocityLeap) and (walk.num_steps, walk.volume) == (4, volume)
    assert walk.diffusion is made.trainer.leap.diffusion


def test_flows_have_the_groups_and_steps_that_were_asked_for(float64):
    # What the settings pass on arrives; networks are in single precision, whatever torch makes by default.
    made = make(skew(), groups=(1, 1), num_steps=3)
    assert made.trainer.leap.num_steps == 3 and made.trainer.leap.flow.dim == 2
    assert {parameter.dtype for parameter in made.trainer.leap.flow.parameters()} == {NETWORK_DTYPE}
    assert made.trainer.leap.base.loc.dtype == torch.float64
    expected = FlowMap(2, (1, 1), num_blocks=2, num_spline_blocks=1, hidden_features=8)
    assert torch.equal(made.trainer.leap.flow.layout_steps, expected.layout_steps)


def test_a_restored_recipe_makes_the_flows_that_it_made(small_sizes):
    # The survey may have been replaced by one that asks for another recipe; the name that was chosen stays.
    state = make(skew(), "calibrate", size=None).state()
    restored = make(skew(), "cover", size=None)
    restored.restore(state)
    assert restored.name == "calibrate" and len(restored.trainer.leap.flow.blocks) == flows.LEAN.num_blocks


# ---- the largest flow, from better particles ----


@pytest.fixture
def small_largest(monkeypatch):
    monkeypatch.setattr(flows, "LARGEST", FlowSize(3, 1, 16))


def far_off():
    """A survey whose base is three standard deviations off, and what a second one would know."""
    better = skew()

    return replace(better, base=gaussian_base(better.exploration.z + 4.0)), better


def test_iterations_left():
    # What was kept; none for a size or a network that the user chose.
    assert make(skew(), size=None).iterations_left == 0
    assert make(skew(), size=None, more_iterations=70).iterations_left == 70
    assert make(skew(), more_iterations=70).iterations_left == 0
    assert make(skew(), size=None, network="velocity", more_iterations=70).iterations_left == 0


@pytest.mark.parametrize("name", ["calibrate", "cover"])
def test_a_better_survey_gives_a_better_flow(small_largest, name):
    # All that is left in one round, after a warm-up on the new particles; one history, and the new survey.
    found, better = far_off()
    made = make(found, name, size=None, budget=replace(SHORT, learning_rate=1e-4), more_iterations=30)
    made.run()
    before, done = made.trainer, len(made.trainer.history.loss)
    made.run_larger(better)
    history = made.trainer.history
    assert made.trainer is not before and made.found is better and made.iterations_left == 0
    assert len(history.loss) == done + 5 + 30 and history.step[-1] == done + 35
    assert len(made.trainer.leap.flow.blocks) == 3 and splines(made.trainer.leap) == 1
    assert made.trainer.leap.base is better.base and history.best_elbo == max(history.elbo)
    assert math.isfinite(history.terms["forward_kl"][done]) and history.elbo[-1] > history.elbo[0] + 1
    budget = made.trainer.budget
    assert budget.batch_size == 2 * SHORT.batch_size and budget.num_iterations == budget.first_round == 30


def test_a_worse_survey_changes_nothing(small_largest):
    # The flow, its base and what was found stay; the history tells of the attempt.
    worse, found = far_off()
    made = make(found, size=None, budget=replace(SHORT, learning_rate=1e-4), more_iterations=3)
    made.run()
    before, done = made.trainer, len(made.trainer.history.loss)
    worse = replace(worse, exploration=replace(worse.exploration, z=worse.exploration.z + 4.0))
    made.run_larger(worse)
    assert made.trainer is before and made.found is found and made.iterations_left == 0
    assert len(before.history.loss) == done + 8 and before.history.best_elbo == max(before.history.elbo)


def test_no_splines_on_a_mixture_base(small_largest):
    # They made its tails lighter.
    found = two_modes()
    made = make(replace(found, base=gaussian_base(found.exploration.z)), "calibrate", size=None, more_iterations=5)
    made.run()
    made.run_larger(found)
    assert made.trainer.leap.base.num_components > 1 and splines(made.trainer.leap) == 0


def test_the_deadline_holds_for_the_largest_flow(small_largest):
    # It has passed: no step is taken, and nothing is lost.
    found, better = far_off()
    made = make(found, size=None, budget=replace(SHORT, deadline=0.0), more_iterations=30)
    made.run()
    made.run_larger(better)
    assert made.trainer.history.loss == [] and math.isfinite(made.trainer.history.best_elbo)


# ---- many dimensions ----


def many(dim, groups, **options):
    """A recipe for a standard normal with independent coordinates."""
    target = FunctionTarget(lambda z: -0.5 * z.square().sum(-1), dim)
    z = torch.randn(50, dim)
    exploration = Exploration(z, target.log_prob(z), torch.zeros(8), 1, 0, 0.8, 0)
    modes = Modes(torch.zeros(len(z), dtype=torch.long), 0.0)
    found = Survey(target, standard_base(torch.zeros(dim), torch.eye(dim)), exploration, modes, 0)

    return recipe_of(found, groups=groups, more_iterations=100, **options)


@pytest.mark.parametrize(("groups", "num_blocks"), [((MANY_DIMENSIONS,), 1), ((2, MANY_DIMENSIONS - 2), 3)])
def test_in_many_dimensions_coordinates_are_shaped_first(groups, num_blocks):
    # And coupled only where there are parents and children; no larger flow is kept for escalation.
    made = many(MANY_DIMENSIONS, groups)
    assert len(made.trainer.leap.flow.blocks) == num_blocks and splines(made.trainer.leap) == 1
    assert made.trainer.leap.base.scale_tril.count_nonzero() == MANY_DIMENSIONS
    assert made.iterations_left == 0 and many(MANY_DIMENSIONS - 1, ()).iterations_left == 100


@pytest.mark.parametrize(("dim", "batch_size"), [(200, 256), (513, 128), (1600, 64), (5000, 64)])
def test_batches_and_steps_are_smaller_in_many_dimensions(dim, batch_size):
    budget = many(dim, (), size=FlowSize(1, 0, 2)).trainer.budget
    assert budget.batch_size == batch_size
    assert budget.learning_rate == pytest.approx(1e-2 * (MANY_DIMENSIONS / dim) ** 0.5)


@pytest.mark.parametrize(("pareto_k", "grows"), [(0.6, False), (0.8, True)])
def test_in_many_dimensions_a_larger_flow_follows_a_bad_tail(pareto_k, grows):
    # The distance of the ELBO alone, a little for each of very many coordinates, is no reason.
    made = many(MANY_DIMENSIONS, ())
    made.trainer.history.gap, made.trainer.history.pareto_k = [3.0, 1.0], [1.0, pareto_k]
    assert made._should_grow(100) == grows

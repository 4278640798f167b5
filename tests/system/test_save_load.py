"""The life of a fit: saved and loaded, copied, cut short and gone on with; and what loading refuses."""

import copy
import functools
import os
import pickle
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_error

from pyro_osds import OSDS, fit_stages
from pyro_osds import fit as fit_room
from pyro_osds.results import storage
from pyro_osds.train import recipe
from pyro_osds.train.teacher import TeacherBudget
from pyro_osds.train.trainer import Trainer

Y = torch.tensor([1.2, 0.4, 2.1, 1.7, 0.9])


def conjugate(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def centred(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, 5.0), obs=y)


def mixture(y):
    with pyro.plate("components", 2):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(y)):
        parts = dist.Normal(loc, 1.0)
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(torch.ones(2) / 2), parts), obs=y)


def coin(y):
    fair = pyro.sample("fair", dist.Bernoulli(0.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(0.5 + 0.3 * fair), obs=(y > 1).float())


def two_modes(z):
    return torch.logsumexp(-0.5 * (z[:, None] - torch.tensor([[-6.0, 0.0], [6.0, 1.0]])).square().sum(-1), -1)


def potential(params):
    return 0.5 * (params["x"] - 1.0).square().sum()


def necked(z):
    # Two members whose scale goes to zero with the first coordinate, from a standard normal on.
    v, members = z[:, 0], z[:, 1:]
    log_scale = (2.0 * (v + 1.0)).clamp(max=0.0)
    return -0.5 * v.square() - 0.5 * (members * (-log_scale[:, None]).exp()).square().sum(-1) - 2.0 * log_scale


def heavy(z):
    # Student-t numbers along sums of coordinates, where nothing draws them in.
    sums = z @ z.new_tensor([[2.0, -1.0, 2.0], [2.0, 2.0, -1.0], [-1.0, 2.0, 2.0]]) / 3.0
    return -1.2 * torch.log1p(sums.square() / 3).sum(-1)


def fit(make, *args, seed=0):
    pyro.set_rng_seed(seed)
    osds = make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        osds.run(*args)
    return osds


def gone_on(osds):
    """The run resumed, whatever its verdict."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        osds.resume()
    return osds


def quick(**given):
    options = {"num_samples": 50, "num_iterations": 20, "num_particles": 16, "escalate": False, "learning_rate": 1e-3}
    return {**options, "disable_progbar": True, **given}


def of_model(model, **given):
    return lambda: OSDS(model, **quick(**given))


# What is fitted, what it is loaded for, with which arguments, and what makes the case worth trying.
CASES = {
    "plain": (of_model(conjugate), conjugate, (Y,), lambda fit: fit.recipe.name == "calibrate"),
    "with a seed": (of_model(conjugate, seed=3), conjugate, (Y,), lambda fit: fit.settings.seed == 3),
    "a neck": (
        lambda: OSDS.from_log_prob(necked, 3, **quick(num_particles=64)),
        necked,
        (),
        lambda fit: fit.recipe.necks and fit.leap.base.num_components > 1,
    ),
    "standardised": (of_model(centred), centred, (Y,), lambda fit: fit.target.standardized),
    "exchangeable": (
        of_model(mixture),
        mixture,
        (torch.tensor([-2.1, -1.7, -2.4, 1.9, 2.3, 2.2]),),
        lambda fit: hasattr(fit.target, "exchange"),
    ),
    "mixture base": (
        lambda: OSDS.from_log_prob(two_modes, 2, **quick(num_particles=64)),
        two_modes,
        (),
        lambda fit: fit.recipe.found.base.num_components > 1,
    ),
    "velocity": (
        of_model(conjugate, network="velocity", num_iterations=5, num_time_steps=4),
        conjugate,
        (Y,),
        lambda fit: fit.recipe.name == "velocity",
    ),
    "distill": (
        of_model(conjugate, recipe="distill", num_iterations=5, num_time_steps=2),
        conjugate,
        (Y,),
        lambda fit: fit.recipe.teacher is not None,
    ),
    "point": (of_model(coin), coin, (Y,), lambda fit: fit.target.dim == 0),
    "potential": (
        lambda: OSDS(potential_fn=potential, initial_params={"x": torch.zeros(2)}, **quick()),
        potential,
        (),
        lambda fit: fit.target.dim == 2,
    ),
}


@pytest.fixture(scope="module")
def fits():
    """Each case once, when it is first asked for; a teacher learns for a moment only."""
    made = {}
    short = pytest.MonkeyPatch()
    short.setattr(recipe, "TeacherBudget", functools.partial(TeacherBudget, 8, 2))

    def get(case):
        if case not in made:
            with torch.random.fork_rng():
                made[case] = fit(CASES[case][0], *CASES[case][2])
        return made[case]

    yield get
    short.undo()


def results(osds, args):
    """All that a fit tells, in an order that also shows what random numbers come next."""
    draws = osds.draw(20)
    told = [osds.get_samples(), osds.evidence, osds.run_report, osds.trainer.history, draws.z, draws.log_weights]

    return [*told, osds.step(*args), osds.evaluate_loss(*args)]


def assert_same(left, right):
    for ours, theirs in zip(left, right, strict=True):
        if isinstance(ours, dict):
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
        elif isinstance(ours, torch.Tensor):
            assert torch.equal(ours, theirs)
        else:
            # Numbers that are not numbers are equal in print only.
            assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("case", CASES)
def test_round_trip(fits, case, tmp_path):
    # Draws, evidence, history, further draws, steps and redrawn posteriors: bit for bit, whatever was fitted.
    osds, (_, model, args, is_worth_trying) = fits(case), CASES[case]
    assert is_worth_trying(osds.fit)
    osds.save(tmp_path / "fit.pt")
    expected = results(copy.deepcopy(osds), args)
    # Whatever was drawn since: what comes next is what would have come when the file was written.
    pyro.set_rng_seed(99)
    loaded = OSDS.load(tmp_path / "fit.pt", model, *args)
    assert loaded.settings == osds.settings and loaded.is_trained_on(*args)
    assert_same(expected, results(loaded, args))


def test_copies(fits):
    # Shallow, deep and pickled: the same draws now, and training that does not touch the original.
    osds = fits("plain")
    weights = [weight.clone() for weight in osds.fit.leap.flow.parameters()]
    for made in (copy.copy(osds), copy.deepcopy(osds), pickle.loads(pickle.dumps(osds))):
        assert torch.equal(made.get_samples()["mu"], osds.get_samples()["mu"]) and made.evidence == osds.evidence
    made.step(Y)
    assert made.fit is not osds.fit and made.backend == osds.backend == "captured"
    assert all(torch.equal(a, b) for a, b in zip(weights, osds.fit.leap.flow.parameters(), strict=True))
    # One that was never run has nothing to lose.
    for made in (copy.deepcopy(OSDS(conjugate)), pickle.loads(pickle.dumps(OSDS(conjugate)))):
        with pytest.raises(RuntimeError, match="no results yet"):
            made.get_samples()


def test_steps_go_on_from_a_file(tmp_path):
    # Two steps, a file, two more steps: the losses of four steps at once.
    pyro.set_rng_seed(1)
    osds = of_model(conjugate)()
    losses = [osds.step(Y) for _ in range(2)]
    osds.save(tmp_path / "fit.pt")
    losses += [osds.step(Y) for _ in range(2)]
    loaded = OSDS.load(tmp_path / "fit.pt", conjugate, Y)
    assert [loaded.step(Y) for _ in range(2)] == losses[2:]
    assert loaded.trainer.history.loss == losses


# ---- cut short ----


def interrupted_at(monkeypatch, number):
    """Ctrl-C in one step of training, after some random numbers were drawn."""
    step, calls = Trainer.step, []

    def interrupted(self):
        calls.append(1)
        if len(calls) == number:
            torch.rand(3)
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Trainer, "step", interrupted)


# A precision that annealed SMC reaches soon.
IN_STAGES = quick(num_iterations=12, escalate=True, learning_rate=1e-2, target_std_error=0.1)


def heavy_tails():
    return OSDS.from_log_prob(heavy, 3, **IN_STAGES)


@pytest.fixture(scope="module")
def uninterrupted():
    with torch.random.fork_rng():
        return fit(heavy_tails)


@pytest.mark.parametrize("number", [1, 7])
def test_resume_after_ctrl_c(uninterrupted, monkeypatch, tmp_path, number):
    # Gone on with from a file, the run ends as if nobody had pressed anything: flow, stages, draws and evidence.
    interrupted_at(monkeypatch, number)
    osds = fit(heavy_tails)
    assert osds.is_interrupted and len(osds.trainer.history.loss) == number - 1
    assert osds.evidence != uninterrupted.evidence
    osds.save(tmp_path / "fit.pt")
    loaded = gone_on(OSDS.load(tmp_path / "fit.pt", heavy))
    assert not loaded.is_interrupted and loaded.run_report == uninterrupted.run_report
    assert_same([loaded.get_samples(), loaded.evidence], [uninterrupted.get_samples(), uninterrupted.evidence])
    assert loaded.trainer.history == uninterrupted.trainer.history
    weights = zip(loaded.fit.leap.flow.parameters(), uninterrupted.fit.leap.flow.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in weights)


def test_a_second_ctrl_c_can_be_gone_on_from(uninterrupted, monkeypatch, tmp_path):
    # It waits for nothing, not even for the look that says which weights are the better ones.
    def interrupted(self, *arguments):
        torch.rand(3)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        interrupted_at(patch, 7)
        step = Trainer.step

        def step_and_break(self):
            try:
                return step(self)
            except KeyboardInterrupt:
                patch.setattr(Trainer, "_validate", interrupted)
                raise

        patch.setattr(Trainer, "step", step_and_break)
        pyro.set_rng_seed(0)
        osds = heavy_tails()
        with pytest.raises(KeyboardInterrupt):
            osds.run()
    assert osds.is_interrupted and len(osds.trainer.history.loss) == 6 and not osds.fit.is_judged
    osds.save(tmp_path / "fit.pt")
    for each in (osds, OSDS.load(tmp_path / "fit.pt", heavy)):
        gone_on(each)
        assert not each.is_interrupted and each.evidence == uninterrupted.evidence


def test_resume_on_a_stage(uninterrupted, monkeypatch):
    # Ctrl-C on the refinement: the flow's verdict stands, until the refinement is walked after all.
    walk, calls = fit_stages.refined_posterior, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 1:
            torch.rand(3)
            raise KeyboardInterrupt
        return walk(*arguments)

    assert [line.split(":")[0] for line in uninterrupted.run_report] == ["flow", "annealed refinement", "annealed SMC"]
    monkeypatch.setattr(fit_stages, "refined_posterior", interrupted)
    osds = fit(heavy_tails)
    assert osds.is_interrupted and osds.run_report == uninterrupted.run_report[:1]
    osds = pickle.loads(pickle.dumps(osds))
    torch.rand(5)
    gone_on(osds)
    assert osds.run_report == uninterrupted.run_report and osds.evidence == uninterrupted.evidence


def test_resume_after_the_time(uninterrupted):
    # The time is over before the first step; with more of it the run comes to the same end.
    pyro.set_rng_seed(0)
    osds = OSDS.from_log_prob(heavy, 3, **IN_STAGES, max_time=1e-6)
    with pytest.warns(UserWarning):
        osds.run()
    assert osds.is_interrupted and osds.trainer.history.loss == []
    gone_on(osds)
    assert osds.evidence == uninterrupted.evidence and not osds.is_interrupted


def test_nothing_to_resume(fits):
    with pytest.raises(RuntimeError, match="The last run came to its end by itself"):
        fits("plain").resume()
    with pytest.raises(ValueError, match="max_time must be a positive number"):
        fits("plain").resume(max_time=-1)


def test_ctrl_c_while_exploring_changes_nothing(monkeypatch):
    # The sampler is as it was before, with the fit that it had.
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    osds = of_model(coin)()
    osds.run(Y)
    before = osds.fit
    monkeypatch.setattr(fit_room, "survey_in_time", interrupted)
    osds._problem = of_model(conjugate)()._problem
    with pytest.raises(KeyboardInterrupt):
        osds.run(Y)
    assert osds.fit is before


# ---- a warm start ----


def test_warm_start():
    # A little more data: from the last flow, right within its error. Other data: explored anew, and it says why.
    pyro.set_rng_seed(0)
    osds = of_model(conjugate, warm_start=True, num_particles=64)()
    osds.run(Y)
    flow = osds.fit.leap.flow
    osds.run(Y + 0.05)
    assert osds.fit.start_report == ("warm start: from the flow of the last fit",)
    assert osds.fit.leap.flow is not flow and osds.evidence.check is not None and osds.evidence.reliable
    exact = dist.MultivariateNormal(torch.zeros(5), torch.eye(5) + 4.0).log_prob(Y + 0.05).item()
    assert_within_standard_error(osds.log_evidence, exact, osds.log_evidence_se)
    osds.run(Y + 40.0)
    assert osds.fit.start_report[0].startswith("warm start: explored anew, since")
    exact = dist.MultivariateNormal(torch.zeros(5), torch.eye(5) + 4.0).log_prob(Y + 40.0).item()
    assert_within_standard_error(osds.log_evidence, exact, osds.log_evidence_se)


# ---- what loading refuses ----


@pytest.fixture
def saved(fits, tmp_path):
    fits("plain").save(tmp_path / "fit.pt")

    return tmp_path / "fit.pt"


def wider(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def fixed_data(y):
    conjugate(y + 1.0)


@pytest.mark.parametrize(
    ("model", "args", "message"),
    [
        (wider, (Y,), "fit of another model: the latent sites are the same, but at a point where its log density was"),
        (centred, (Y,), r"fit of another model: its latent sites were .*'tau': 'none'"),
        (coin, (Y,), r"fit of another model: its latent sites were .*Boolean"),
        (fixed_data, (Y,), r"fit to other data: observed site 'y' differs .*with other values"),
        (conjugate, (Y + 1,), r"fit to other data: argument 'y' differs .*with other values"),
        (conjugate, (Y[:2],), r"saved: torch.float32 \(5,\); got: torch.float32 \(2,\)"),
        (conjugate, (), r"argument 'y' differs .*got: none"),
    ],
    ids=["density", "sites", "supports", "observed", "values", "shape", "missing"],
)
def test_another_model_or_other_data(saved, model, args, message):
    with pytest.raises(ValueError, match=message):
        OSDS.load(saved, model, *args)


def test_files_that_cannot_be_read(saved, monkeypatch):
    # Cut off, junk, something else, of a newer format, not there.
    whole = saved.read_bytes()
    for content in (whole[: len(whole) // 2], b"junk", b""):
        saved.write_bytes(content)
        with pytest.raises(ValueError, match="cut off, or was not written by OSDS.save"):
            OSDS.load(saved, conjugate, Y)
    torch.save({"weights": torch.zeros(3)}, saved)
    with pytest.raises(ValueError, match="holds something else than a fit"):
        OSDS.load(saved, conjugate, Y)
    monkeypatch.setattr(storage, "FORMAT_VERSION", 99)
    storage.write(saved, {})
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"has format 99, written by pyro_osds .*reads formats up to 1. Upgrade"):
        OSDS.load(saved, conjugate, Y)
    with pytest.raises(FileNotFoundError, match="There is no file"):
        OSDS.load(saved.with_name("other.pt"), conjugate, Y)


def test_nowhere_to_save(fits, tmp_path):
    # Said before anything is done, even before asking whether there is a fit.
    with pytest.raises(FileNotFoundError, match="There is no directory .*make it first"):
        OSDS(conjugate).save(tmp_path / "none" / "fit.pt")
    with pytest.raises(IsADirectoryError, match="is a directory"):
        fits("plain").save(tmp_path)
    with pytest.raises(RuntimeError, match="no results yet"):
        OSDS(conjugate).save(tmp_path / "fit.pt")


def test_a_crash_leaves_the_old_file(fits, saved, monkeypatch):
    # On the way to the disk: the file is the old one, and no half of the new one lies beside it.
    def crash(descriptor):
        raise OSError("no space left")

    before = saved.read_bytes()
    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="no space left"):
        fits("plain").save(saved)
    assert saved.read_bytes() == before and os.listdir(saved.parent) == ["fit.pt"]


def test_options_that_no_file_can_hold(tmp_path):
    # A sampler made with them takes the place of the model.
    def make():
        transforms = {"x": dist.transforms.ExpTransform().inv}
        return OSDS(potential_fn=potential, initial_params={"x": torch.zeros(2)}, transforms=transforms, **quick())

    osds = fit(make)
    osds.save(tmp_path / "fit.pt")
    with pytest.raises(ValueError, match=r"had transforms for \['x'\], which a file cannot hold"):
        OSDS.load(tmp_path / "fit.pt", potential)
    loaded = OSDS.load(tmp_path / "fit.pt", make())
    assert torch.equal(loaded.get_samples()["x"], osds.get_samples()["x"])

"""Seeds, callbacks and checkpoints: the same numbers, whoever watches, and what the run would have given."""

import math
import random
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_osds import OSDS, InterruptedWarning, RunProgress
from pyro_osds.runtime.watch import callback as watch

Y = torch.tensor([1.2, 0.4, 2.1, 1.7, 0.9])
OPTIONS = {"disable_progbar": True, "num_samples": 100, "num_particles": 16}


def model(y):
    sd = pyro.sample("sd", dist.LogNormal(0.0, 1.0))
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.StudentT(3.0, mu, sd), obs=y)


def run(**options):
    osds = OSDS(model, **OPTIONS, **options)
    osds.run(Y)
    return osds


def same(a, b):
    return a.evidence == b.evidence and all(torch.equal(a.get_samples()[n], b.get_samples()[n]) for n in ("sd", "mu"))


@pytest.fixture(scope="module")
def plain():
    pyro.set_rng_seed(3)
    return run()


def test_a_seed_is_that_of_pyro_and_leaves_the_process_alone(plain):
    pyro.set_rng_seed(7)
    expected = torch.rand(2), random.random(), np.random.rand()
    pyro.set_rng_seed(7)
    osds = run(seed=3)
    assert same(osds, plain)
    assert torch.equal(torch.rand(2), expected[0])
    assert (random.random(), np.random.rand()) == expected[1:]
    osds.run(Y)
    assert same(osds, plain)


def test_steps_with_a_seed_go_on_where_they_stood():
    pyro.set_rng_seed(5)
    expected = OSDS(model, **OPTIONS)
    losses = [expected.step(Y) for _ in range(3)]
    osds = OSDS(model, seed=5, **OPTIONS)
    seen = []
    for _ in range(3):
        seen.append(osds.step(Y))
        torch.rand(10)
    assert seen == losses


def test_a_density_has_a_seed_too():
    osds = [OSDS.from_log_prob(lambda z: -0.5 * z.square().sum(-1), 2, seed=1, **OPTIONS) for _ in range(2)]
    for each in osds:
        each.run()
    assert osds[0].log_evidence == osds[1].log_evidence


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"seed": -1}, "seed must be an integer from 0"),
        ({"seed": True}, "seed must be an integer"),
        ({"seed": 1.5}, "seed must be an integer"),
        ({"callback": "print"}, "callback must be a function of one argument"),
        ({"checkpoint": 3}, "checkpoint must be the name of a file"),
        ({"seed": 1, "distributed": True}, "seed is for one process"),
    ],
)
def test_bad_options(option, message):
    with pytest.raises((TypeError, ValueError), match=message):
        OSDS(model, **option)


def test_a_checkpoint_needs_its_directory_before_anything_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match="no directory"):
        run(checkpoint=tmp_path / "nowhere" / "fit.pt")


def test_a_callback_is_told_each_round_and_stage_and_changes_nothing(plain):
    seen = []

    def look(progress):
        torch.rand(3)
        seen.append(progress)

    pyro.set_rng_seed(3)
    osds = run(callback=look)
    assert same(osds, plain)
    stages = [progress.stage for progress in seen]
    assert stages[0] == "exploration" and "training" in stages and stages[-1] == "flow"
    assert all(isinstance(progress, RunProgress) for progress in seen)
    last = seen[-1]
    assert last.log_evidence == osds.log_evidence and last.reliable is osds.evidence.reliable
    assert last.iteration == len(osds.trainer.history.loss)
    assert [p.seconds for p in seen] == sorted(p.seconds for p in seen)
    assert all(math.isnan(p.elbo) for p in seen[:1])


@pytest.mark.parametrize("stage", ["exploration", "training"])
def test_a_callback_that_says_stop_leaves_a_run_to_resume(plain, stage):
    pyro.set_rng_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        osds = run(callback=lambda progress: progress.stage == stage)
        assert osds.is_interrupted
        osds.callback = None
        osds.resume()
    assert not osds.is_interrupted and same(osds, plain)


@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_run_that_is_stopped_each_time_gives_the_same_as_one_that_is_not(plain, first):
    seen = []

    def look(progress):
        seen.append(progress)
        return len(seen) >= first

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        osds = run(seed=3, callback=look)
        for _ in range(6):
            if osds.is_interrupted:
                osds.resume()
    assert not osds.is_interrupted and same(osds, plain) and osds.run_report == plain.run_report


def test_a_callback_is_let_go_before_resuming(plain):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        osds = run(seed=3, callback=lambda progress: True)
        osds.callback = None
        assert osds.settings.callback is None
        osds.resume()
    assert not osds.is_interrupted and same(osds, plain) and "cut short" not in osds.run_report[-1]
    with pytest.raises(TypeError, match="callback must be a function of one argument"):
        osds.callback = "print"
    for name in ("max_time", "num_samples", "seed", "initial_samples"):
        with pytest.raises(AttributeError, match=f"{name} is an option of OSDS, .* pass {name}= to a new"):
            setattr(osds, name, None)


@pytest.mark.parametrize("yes", [True, np.True_, np.array(True), torch.tensor(True)])
def test_any_truth_value_stops_a_run(yes):
    no = ~yes if yes is not True else False
    with pytest.raises(KeyboardInterrupt), watch.watched(lambda progress: yes, None):
        watch.tell("flow", 1, 0.0, 0.0)
    for answer in (no, None):
        with watch.watched(lambda progress, answer=answer: answer, None):
            watch.tell("flow", 1, 0.0, 0.0)


@pytest.mark.parametrize(
    "answer", [1, 0, "stop", torch.tensor([True, False]), torch.tensor([True]), np.float64(1.0), []]
)
def test_what_is_no_truth_value_is_told(answer):
    with (
        pytest.raises(KeyboardInterrupt),
        pytest.warns(InterruptedWarning, match="it returned .*return True to stop the run"),
        watch.watched(lambda progress: answer, None),
    ):
        watch.tell("flow", 1, 0.0, 0.0)


def test_a_callback_that_fails_ends_the_run_with_what_there_is():
    pyro.set_rng_seed(3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        osds = run(callback=lambda progress: 1 / 0 if progress.stage == "training" else None)
    told = [str(each.message) for each in caught if each.category is InterruptedWarning]
    assert any("callback failed with ZeroDivisionError" in text for text in told)
    assert osds.is_interrupted and math.isfinite(osds.log_evidence)


@pytest.mark.parametrize("stop", [None, "exploration", "training", "flow"])
def test_a_checkpoint_resumes_to_what_the_run_gave(tmp_path, monkeypatch, stop):
    # Files after every move, each kept by its number: whichever the process died after, the result is the same.
    monkeypatch.setattr(watch, "CHECKPOINT_SECONDS", 0.0)
    path, kept = tmp_path / "fit.pt", []

    def log_prob(z):
        return -0.5 * z.square().sum(-1) - 0.1 * z[:, 0] ** 4

    pyro.set_rng_seed(2)
    osds = OSDS.from_log_prob(log_prob, 2, checkpoint=path, num_iterations=60, **OPTIONS)
    original = OSDS._write

    def copied(self, place, resumable=None):
        original(self, place, resumable)
        if resumable and (len(kept) < 2 or len(kept) % 20 == 0):
            (tmp_path / f"{len(kept)}.pt").write_bytes(path.read_bytes())
        if resumable:
            kept.append(resumable)

    monkeypatch.setattr(OSDS, "_write", copied)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        osds.run()
        chosen = {None: None, "exploration": 0, "training": 20, "flow": 1}[stop]
        if chosen is None:
            again = OSDS.load(path, log_prob)
            assert not again.is_interrupted
        else:
            again = OSDS.load(tmp_path / f"{chosen}.pt", log_prob)
            assert again.is_interrupted
            again.resume()
    assert again.evidence == osds.evidence
    assert torch.equal(again.get_samples()["z"], osds.get_samples()["z"])

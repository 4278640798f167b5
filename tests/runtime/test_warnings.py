"""Warnings: categories of our own, raised at the line of the user; and what the logger tells."""

import inspect
import logging
import warnings
from contextlib import contextmanager

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC

import pyro_osds
from pyro_osds import OSDS, OSDSKernel, OSDSWarning, compare_evidence
from pyro_osds.model import ModelTarget
from pyro_osds.runtime.warnings import (
    AmbiguousArgumentWarning,
    InterruptedWarning,
    TrainingWarning,
    UnreliableEvidenceWarning,
    VectorizationWarning,
)

Y = torch.tensor([1.2, 0.4, 2.1])
TINY = {"num_iterations": 5, "num_samples": 30, "num_particles": 16, "disable_progbar": True, "escalate": False}


def huge():
    # Insists on single precision, and is rounded to eight nats there: easy to fit, and not reliable.
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    assert x.dtype == torch.float32
    pyro.factor("huge", 1e8 - 0.5 * x.square())


def slow():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    scale = 1.0 if mu > 0 else 2.0
    pyro.sample("y", dist.Normal(mu, scale).expand([3]).to_event(1), obs=Y)


@contextmanager
def caught_on_the_next_line(category):
    """Every warning of ours has that category and points at the next line of the test, once for each text."""
    line = inspect.currentframe().f_back.f_back.f_lineno + 1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught
    ours = [one for one in caught if issubclass(one.category, OSDSWarning)]
    assert {one.category for one in ours} == {category}
    assert {(one.filename, one.lineno) for one in ours} == {(__file__, line)}
    assert len({str(one.message) for one in ours}) == len(ours)


def test_categories_are_exported():
    # One family, so that a filter can name all of it or one of it.
    children = (
        AmbiguousArgumentWarning,
        InterruptedWarning,
        TrainingWarning,
        UnreliableEvidenceWarning,
        VectorizationWarning,
    )
    for child in children:
        assert issubclass(child, OSDSWarning) and getattr(pyro_osds, child.__name__) is child
    assert issubclass(OSDSWarning, UserWarning)


def test_verdict_and_comparison():
    # Each reason of the verdict once, at the user's run; the comparison at the user's comparison.
    osds = OSDS(huge, **TINY)
    with caught_on_the_next_line(UnreliableEvidenceWarning) as caught:
        osds.run()
    assert [str(one.message) for one in caught] == list(osds.evidence.reasons)
    with pytest.warns(UnreliableEvidenceWarning) as caught:
        line = inspect.currentframe().f_lineno + 1
        compare_evidence({"a": osds})
    assert [(one.filename, one.lineno) for one in caught] == [(__file__, line)]


def test_through_mcmc():
    # Pyro's own frames lie in between.
    mcmc = MCMC(
        OSDSKernel(huge, num_iterations=5, num_particles=16, escalate=False), 10, warmup_steps=0, disable_progbar=True
    )
    with caught_on_the_next_line(UnreliableEvidenceWarning):
        mcmc.run()


def test_vectorization():
    # Deep below: the ladder notices, the user's line is told; and not again for other coordinates.
    with caught_on_the_next_line(VectorizationWarning):
        ModelTarget(slow).other_coordinates(torch.zeros(2, 1))


def test_ambiguous_start():
    # Of a potential function.
    start = {"x": torch.zeros(4)}
    osds = OSDS(potential_fn=lambda params: params["x"].square().sum(), initial_params=start, **TINY)
    with caught_on_the_next_line(AmbiguousArgumentWarning):
        osds.step()


def test_training_trouble_and_interruption(monkeypatch):
    # Skipped steps, and Ctrl-C, each in its own category.
    osds = OSDS.from_log_prob(lambda z: -0.5 * z.square().sum(-1), 1, **TINY)
    osds.step()
    trainer = osds.trainer
    trainer.history.num_skipped = 3
    trainer.disable_progbar = True
    with caught_on_the_next_line(TrainingWarning):
        trainer.run()
    # What has ended is not run again: another sampler is interrupted.
    osds = OSDS.from_log_prob(lambda z: -0.5 * z.square().sum(-1), 1, **TINY)
    osds.step()

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(osds.trainer, "step", interrupt)
    with caught_on_the_next_line(InterruptedWarning):
        osds.fit.run()


def test_the_logger_tells_what_was_chosen(caplog):
    # At INFO: density, coordinates, modes, base, recipe, flow, seconds; at DEBUG every temperature and round.
    with caplog.at_level(logging.DEBUG, logger="pyro_osds"):
        OSDS.from_log_prob(lambda z: -0.5 * z.square().sum(-1), 2, **TINY | {"escalate": True}).run()
    chosen = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    for word in ("density: 2 dim", "coordinates: as given", "modes: 1", "base: 1", "exploration: log evidence"):
        assert any(message.startswith(word) for message in chosen), word
    for word in (
        "recipe: calibrate",
        "flow: ",
        "training: 5 iterations",
        "stage: flow: log evidence",
        "drawn and judged",
    ):
        assert any(message.startswith(word) for message in chosen), word
    details = [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]
    assert any(message.startswith("Explore: beta") for message in details)
    assert any(message.startswith("step 5: ELBO") for message in details)


def test_the_logger_is_silent_by_default():
    # Python's handler of last resort, which prints warnings and errors, is not reached.
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("pyro_osds").handlers)

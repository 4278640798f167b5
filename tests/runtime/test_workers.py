"""Slow points in worker processes: the same numbers, errors, limits of time; and nobody left behind."""

import math
import multiprocessing
import os
import sys
import time

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_osds.model import ModelTarget
from pyro_osds.runtime.clock import OutOfTimeError, now, time_limit
from pyro_osds.runtime.warnings import VectorizationWarning
from pyro_osds.runtime.workers import Sent, in_this_process, num_at_once, pool, with_workers
from pyro_osds.target import log_prob_and_score

pytest.importorskip("joblib")
SCALE = {"value": 1.0}


@pytest.fixture
def eager(monkeypatch):
    """Every call is long, and workers are started at once."""
    monkeypatch.setattr(pool, "_LONG_POINT", 0.0)
    monkeypatch.setattr(pool, "_WORTH", 0.0)
    monkeypatch.setattr(pool, "_tools", lambda tools=pool._tools: (*tools()[:2], 2))


def wait_for(sent, calls, seconds=120.0):
    """Wait until workers are there."""
    end = time.perf_counter() + seconds
    while num_at_once() == 1:
        sent.took(1.0, len(calls))
        assert time.perf_counter() < end, "no workers"
        time.sleep(0.05)


def is_alive(number):
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{number}/stat") as file:
        return file.read().split()[2] != "Z"


def ask_who(x):
    return os.getpid(), x


def square(x):
    if x == 3.0:
        raise ValueError("three")
    if x == 4.0 and os.environ.get("THE_FIRST") != str(os.getpid()):
        os._exit(1)
    if x >= 10.0 and os.environ.get("THE_FIRST") != str(os.getpid()):
        time.sleep(x)

    return x * x * SCALE["value"]


def test_answers_errors_limits_and_ends(eager, monkeypatch):
    # One start of workers for all of it: each takes seconds.
    monkeypatch.setenv("THE_FIRST", str(os.getpid()))
    sent, who = Sent(square), Sent(lambda x: (os.getpid() > 0, x))
    calls = [(1.0,), (2.0,), (5.0,), (6.0,), (7.0,)]
    state = torch.get_rng_state()
    with with_workers():
        assert sent.answers(calls) is None  # how long one takes is not known yet
        wait_for(sent, calls)
        assert sent.answers(calls) == [1.0, 4.0, 25.0, 36.0, 49.0]
        # Another function, sent when it is needed, whatever it is.
        who.took(1.0, 5)
        assert who.answers(calls) == [(True, x) for (x,) in calls]
        numbers = Sent(ask_who)
        numbers.took(1.0, 5)
        assert numbers.answers([(x,) for x in range(8)]) is None  # who answers is not the same in another process
        assert numbers.answers(calls) is None
        executor = pool._pool.get()._executor
        workers = list(executor._processes)
        # What fails there is to fail here, where it can be explained.
        assert sent.answers([(1.0,), (3.0,), (2.0,)]) is None
        # A limit of time does not wait for slow points.
        start = now()
        with pytest.raises(OutOfTimeError), time_limit(start + 0.5):
            sent.answers([(1.0,), (30.0,), (31.0,)])
        assert now() - start < 10.0
        assert all(map(is_alive, workers)) and len(workers) == 2
    assert torch.equal(state, torch.get_rng_state())
    end = time.perf_counter() + 10.0
    while any(map(is_alive, workers)) and time.perf_counter() < end:
        time.sleep(0.05)
    assert not any(map(is_alive, workers))
    # Nor does the end of Python wait for any.
    assert not multiprocessing.active_children()
    assert num_at_once() == 1 and sent.answers(calls) is None


def test_a_worker_that_dies_is_told_and_the_run_goes_on(eager, monkeypatch):
    monkeypatch.setenv("THE_FIRST", str(os.getpid()))
    sent = Sent(square)
    with with_workers():
        wait_for(sent, [(1.0,)] * 4)
        with pytest.warns(
            VectorizationWarning, match="Worker processes for slow points came to an end .*LOKY_MAX_CPU_COUNT"
        ):
            assert sent.answers([(1.0,), (4.0,), (4.0,)]) is None
        assert num_at_once() == 1
        sent.took(1.0, 4)  # and none are started again


def test_what_cannot_be_sent_stays_here(eager):
    lock = __import__("threading").Lock()
    sent = Sent(lambda x: (lock, x))
    with with_workers():
        wait_for(sent, [(1.0,)] * 4)
        assert sent.answers([(1.0,), (2.0,)]) is None
        assert sent._is_refused


def test_workers_that_gain_nothing_are_left(eager):
    # Calls of a microsecond, each of which takes a message: after some of them the function stays here.
    sent = Sent(math.sqrt)
    with with_workers():
        wait_for(sent, [(1.0,)] * 4)
        sent._here = 1e-6
        answered = [sent.answers([(1.0,), (4.0,)]) for _ in range(12)]
        assert answered[0] == [1.0, 2.0] and answered[-1] is None and sent._is_refused


@pytest.mark.parametrize("around", [with_workers, in_this_process])
def test_no_workers_within_others(eager, around):
    with in_this_process() if around is in_this_process else with_workers(), with_workers():
        outer = pool._pool.get()
        with with_workers():
            assert pool._pool.get() is outer
        if around is in_this_process:
            Sent(math.sqrt).took(100.0, 2)
            assert outer._executor is None


def test_short_calls_and_no_joblib_start_nothing(monkeypatch):
    with with_workers():
        Sent(math.sqrt).took(0.001, 2)
        assert pool._pool.get()._spent == 0.0
        monkeypatch.setattr(pool, "_tools", lambda: None)
        Sent(math.sqrt).took(100.0, 2)
        assert pool._pool.get()._executor is None and num_at_once() == 1


def test_a_model_has_the_same_numbers_to_the_last_digit(eager, monkeypatch):
    # On a busy machine workers gain nothing with points that take no time.
    monkeypatch.setattr(pool, "_MOST_IN_VAIN", math.inf)
    data = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))

    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
        if float(w.detach().sum()) > 0:  # Python looks
            w = w * 1.1
        pyro.deterministic("mean", x @ w)
        pyro.sample("y", dist.StudentT(3.0, x @ w, scale).to_event(1), obs=x.sum(1))

    def all_of(target, z):
        def tempered(power):
            def density(z):
                log_prior, log_likelihood = target.log_prior_and_likelihood(z)
                return log_prior + power * log_likelihood

            return density

        readings = target.by_group(z, ("posterior", "log_likelihood", "log_prior"))
        alone = z.clone().requires_grad_()
        (of_prior,) = torch.autograd.grad(target.log_prior_and_likelihood(alone)[0].sum(), alone)
        (slope,) = torch.autograd.grad(target.log_prob(alone).sum(), alone, create_graph=True)
        (curvature,) = torch.autograd.grad(slope[:, 0].sum(), alone)
        with torch.no_grad():
            values = target.log_prob(z)
        scored = [log_prob_and_score(tempered(power), z) for power in (1.0, 0.3, 0.3, 0.0)]
        return [
            *(part for pair in scored for part in pair),
            of_prior,
            slope.detach(),
            curvature,
            values,
            *readings.values(),
        ]

    with pytest.warns(VectorizationWarning):
        target = ModelTarget(model, (data,))
    z = torch.randn(9, target.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    serial = all_of(target, z)
    with with_workers():
        wait_for(target._ladder._loop_of(target._ladder.single)._sent, z)
        for _ in range(2):
            for expected, got in zip(serial, all_of(target, z), strict=True):
                assert torch.equal(expected, got)
        assert target._ladder._loop_of(target._ladder.single)._sent._num_checked > 0
        assert not target._ladder._loop_of(target._ladder.single)._sent._is_refused


# ---- what a function reads beside its arguments ----


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """A module of the user's, with a global that was set after the import, one that cannot be sent, and a function."""
    (tmp_path / "rates_of_mine.py").write_text(
        "import threading\nRATE = 1.0\nTABLE = {'a': 1.0}\nLOCK = threading.Lock()\n\ndef power(x):\n    return x\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = __import__("rates_of_mine")
    yield module
    sys.modules.pop("rates_of_mine")


def test_globals_of_modules_go_along(eager, settings):
    settings.RATE, settings.TABLE["a"] = 2.0, 3.0
    sent = Sent(lambda x: x * settings.RATE + settings.TABLE["a"])
    with with_workers():
        wait_for(sent, [(1.0,)] * 4)
        assert sent.answers([(float(x),) for x in range(8)]) == [2.0 * x + 3.0 for x in range(8)]


def test_a_function_that_was_replaced_is_found_out(eager, settings):
    # It shows where it is called only: after answers that were the same.
    settings.power = math.sqrt
    sent = Sent(lambda x: settings.power(x) if x > 5.0 else x)
    with with_workers():
        wait_for(sent, [(1.0,)] * 4)
        assert sent.answers([(1.0,)] * 8) == [1.0] * 8
        with pytest.raises(RuntimeError, match="other numbers in a worker process .*LOKY_MAX_CPU_COUNT to 1"):
            for _ in range(9):
                sent.answers([(1.0,)] * 7 + [(9.0,)])

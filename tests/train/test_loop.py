"""The loop of training: whole moves, an end that loses nothing, and a way back that repeats nothing."""

import math
import signal

import pytest
import torch

from pyro_osds.runtime.clock import is_past
from pyro_osds.runtime.progress import NoBar
from pyro_osds.train.loop import go_on, run_moves


class Sum:
    """Adds up random numbers, ``count`` of them; ``during(number)`` happens in the middle of each move."""

    def __init__(self, count=5, during=lambda number: None, late_after=math.inf):
        self.values, self.paused, self.interrupt = [], None, None
        self.count, self.during, self.late_after = count, during, late_after

    @property
    def is_done(self):
        return len(self.values) >= self.count

    @property
    def is_late(self):
        return len(self.values) >= self.late_after

    def advance(self, progress):
        value = torch.rand(()).item()
        self.during(len(self.values) + 1)
        self.values.append(value)
        progress.update()

    def end_early(self, paused, interrupt):
        # What is done now is not part of where training stands.
        self.paused, self.interrupt = paused, interrupt
        torch.rand(3)

    def state(self):
        return {"values": self.values}

    def restore(self, state):
        self.values = list(state["values"])


class Bar(NoBar):
    closed = False

    def close(self):
        self.closed = True


def whole():
    torch.manual_seed(3)
    training, bar = Sum(), Bar(5)
    run_moves(training, bar)
    assert training.paused is None and bar.n == 5 and bar.closed

    return training.values


@pytest.fixture
def heeded():
    """Python heeds the signal, as it does in a terminal; a job in the background is started to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def ctrl_c_itself(number):
    if number == 3:
        raise KeyboardInterrupt


def ctrl_c_by_signal(number):
    if number == 3:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("options", "done"),
    [({"late_after": 2}, 2), ({"late_after": 0}, 0), ({"during": ctrl_c_itself}, 2), ({"during": ctrl_c_by_signal}, 3)],
)
def test_what_was_cut_short_goes_on_bit_for_bit(options, done, heeded):
    # Whether the deadline, an exception within a move, or the signal, which waits for the end of one: nothing is lost.
    expected = whole()
    torch.manual_seed(3)
    training, bar = Sum(**options), Bar(5)
    run_moves(training, bar)
    assert training.values == expected[:done] and bar.closed
    assert (training.interrupt is None) == ("late_after" in options)
    training.values.append(math.nan)  # where it stands is a copy
    again = Sum()
    go_on(again, training.paused)
    run_moves(again, Bar(5))
    assert again.values == expected


def test_an_error_closes_the_bar_and_is_not_caught():
    # Only Ctrl-C is.
    def fail(number):
        raise ZeroDivisionError

    training, bar = Sum(during=fail), Bar(5)
    with pytest.raises(ZeroDivisionError):
        run_moves(training, bar)
    assert bar.closed and training.paused is None


def test_without_a_pause_there_is_nothing_to_go_on_from():
    # Neither values nor random numbers change.
    torch.manual_seed(3)
    training, expected = Sum(), torch.get_rng_state()
    go_on(training, None)
    assert training.values == [] and torch.equal(torch.get_rng_state(), expected)


def test_what_is_done_makes_no_move():
    # Not even where it is late.
    training = Sum(count=0, late_after=0)
    run_moves(training, Bar(0))
    assert training.values == [] and training.paused is None


def test_a_deadline_passes():
    # By the clock of the run.
    assert is_past(-math.inf) and not is_past(math.inf)

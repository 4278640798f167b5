"""The journal of an exploration: parts once, places taken up, evaluations kept where they may be needed again."""

import torch

from pyro_osds.explore.journal import Journal
from pyro_osds.runtime.clock import now, time_limit


def test_parts_are_run_once_and_random_numbers_go_on():
    # Taken up, the parts are read, and what comes after them draws the numbers that it drew before.
    journal = Journal()
    first = journal.part(lambda: torch.rand(3))
    after = torch.rand(3)
    journal.rewind()
    assert journal.part(lambda: None) is first
    assert torch.equal(torch.rand(3), after)


def test_a_place_is_taken_up_with_its_random_numbers():
    journal = Journal()
    assert journal.take_up() is None
    journal.note("here")
    expected = torch.rand(2)
    journal.rewind()
    assert journal.take_up() == "here" and torch.equal(torch.rand(2), expected)


def test_evaluations_are_kept_under_a_limit_only():
    # Without one nothing can stop the part in time, and large results are let go.
    journal, seen = Journal(), []

    def evaluate():
        seen.append(len(seen))
        return seen[-1]

    assert journal.evaluation(evaluate) == 0 and journal.evaluated == []
    with time_limit(now() + 60.0):
        assert [journal.evaluation(evaluate) for _ in range(2)] == [1, 2]
    journal.rewind()
    # What was kept is read, limit or not; then the evaluation goes on.
    assert [journal.evaluation(evaluate) for _ in range(3)] == [1, 2, 3] and journal.evaluated == [1, 2]
    journal.note("further")
    assert journal.evaluated == []


def test_stops_without_progress_are_counted():
    journal = Journal()
    journal.stop()
    journal.stop()
    assert journal.num_stuck == 1
    journal.note("further")
    journal.stop()
    assert journal.num_stuck == 0

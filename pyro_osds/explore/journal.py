"""What an exploration has done so far: one that is stopped goes on from there, and gives what it would have given.

An exploration is a sequence of parts, such as annealing runs. The journal keeps the result of each part that came to
its end, with the random numbers that followed, and where the part at work stands. Taken up again, an exploration runs
from its first line; parts that are in the journal are read instead of run, and the last one goes on where it stood.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pyro_osds.runtime.clock import is_limited
from pyro_osds.runtime.resume import random_state, set_random_state

Result = TypeVar("Result")


@dataclass
class Journal:
    """The parts of an exploration, in their order.

    Arguments:
        beginning: Random numbers where the exploration began.
        done: Results of parts, and the random numbers that followed each.
        place: Where the part at work stands, and the random numbers there; None before it has noted anything.
        evaluated: What the part at work has evaluated from there on.
        reached: The best that is known so far, for whoever has to make do with it.
        num_stuck: How often the exploration was stopped where it had been stopped before.

    Example:
        >>> import torch
        >>> journal = Journal()
        >>> once = journal.part(lambda: torch.rand(1)), journal.part(lambda: torch.rand(1))
        >>> journal.rewind()
        >>> once == (journal.part(lambda: None), journal.part(lambda: None))
        True
    """

    beginning: dict[str, Any] = field(default_factory=random_state)
    done: list[tuple[Any, dict[str, Any]]] = field(default_factory=list)
    place: tuple[Any, dict[str, Any]] | None = None
    evaluated: list[Any] = field(default_factory=list)
    reached: Any = None
    num_stuck: int = 0
    _next: int = 0
    _stopped_at: tuple[int, ...] = ()
    _num_notes: int = 0
    _next_evaluated: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing was found that one could make do with."""
        return self.place is None and self.reached is None

    def rewind(self) -> None:
        """Take the exploration up again, from its first line and its first random number."""
        self._next = self._next_evaluated = 0
        set_random_state(self.beginning)

    def stop(self) -> None:
        """The exploration was stopped here; note whether it came any further than the last time."""
        here = len(self.done), self._num_notes, len(self.evaluated)
        self.num_stuck = self.num_stuck + 1 if here == self._stopped_at else max(self.num_stuck - 1, 0)
        self._stopped_at = here

    def part(self, run: Callable[[], Result]) -> Result:
        """The result of the next part; of one that came to its end before, without running it.

        Arguments:
            run: The part.
        """
        if self._next < len(self.done):
            result, random = self.done[self._next]
            set_random_state(random)
        else:
            result = run()
            self.done.append((result, random_state()))
            self._forget()
            self.place = None
        self._next += 1

        return result

    def note(self, place: Any) -> None:
        """Where the part at work stands: whatever it needs to go on from here, which nobody changes any more.

        Arguments:
            place: The place.
        """
        if self.place is None or self.place[0] is not place:
            self.place, self._num_notes = (place, random_state()), self._num_notes + 1
            self._forget()

    def take_up(self) -> Any:
        """The place that the part at work has noted, with its random numbers; None if it is at its beginning."""
        if self.place is None:
            return None
        place, random = self.place
        set_random_state(random)

        return place

    def evaluation(self, evaluate: Callable[[], Result]) -> Result:
        """What the part at work evaluates next; what it had evaluated before it was stopped is read.

        It is kept where a limit of time may stop the part, and nowhere else: particles of many dimensions are large.

        Arguments:
            evaluate: The evaluation.
        """
        if self._next_evaluated < len(self.evaluated):
            self._next_evaluated += 1
            return self.evaluated[self._next_evaluated - 1]
        result = evaluate()
        if is_limited():
            self.evaluated.append(result)
            self._next_evaluated += 1

        return result

    def _forget(self) -> None:
        self.evaluated, self._next_evaluated = [], 0

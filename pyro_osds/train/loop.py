"""The loop of training: whole moves until it is done, late or interrupted, and a place to go on from.

Training is a chain of moves, such as an optimiser step. Ctrl-C waits for the end of one, and random numbers are noted
after each: a run that goes on repeats nothing and leaves nothing out, so that its results are the same bit for bit.
"""

from __future__ import annotations

import copy
from typing import Any, Protocol

from pyro_osds.runtime.progress import NoBar
from pyro_osds.runtime.resume import random_state, set_random_state, uncut
from pyro_osds.runtime.watch.callback import is_file_due, is_watched, keep_place, tell


class Resumable(Protocol):
    """What the loop asks of a training."""

    @property
    def is_done(self) -> bool:
        """Whether no move is left."""
        ...

    @property
    def is_late(self) -> bool:
        """Whether its time is over; asked once before each move."""
        ...

    def advance(self, progress: NoBar) -> None:
        """Make one whole move, and tell the progress bar."""
        ...

    def end_early(self, paused: dict[str, Any], interrupt: KeyboardInterrupt | None) -> None:
        """Make do with what there is.

        Arguments:
            paused: Where to go on, for :func:`go_on`.
            interrupt: What cut the training short, unless it was the deadline.
        """
        ...

    def state(self) -> dict[str, Any]:
        """All that further moves depend on, except random numbers."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Stand where another training of the same kind stood; the state stays as it is."""
        ...


def run_moves(training: Resumable, progress: NoBar) -> None:
    """Make moves until the training is done, or ends early by its deadline or by Ctrl-C.

    Arguments:
        training: The training.
        progress: The bar of its moves; it is closed in the end.
    """
    random, num_looks = random_state(), _num_looks(training)
    try:
        while not training.is_done and not training.is_late:
            with uncut():
                training.advance(progress)
                random = random_state()
            num_looks = _tell(training, num_looks)
            if is_file_due() and not training.is_done:
                _keep(training, random)
        if not training.is_done:
            training.end_early(_place(training, random), None)
    except KeyboardInterrupt as interrupt:
        training.end_early(_place(training, random), interrupt)
    finally:
        progress.close()


def _num_looks(training: Resumable) -> int:
    """How often training has looked at fresh draws; never, where it has none."""
    return len(getattr(getattr(training, "history", None), "elbo", ()))


def _tell(training: Any, num_looks: int) -> int:
    """Tell whoever watches of a round that has come to its end, and how many looks there were."""
    if _num_looks(training) > num_looks and is_watched():
        history = training.history
        tell("training", len(history.loss), history.elbo[-1], history.elbo[-1] + history.gap[-1])

    return _num_looks(training)


def _keep(training: Any, random: dict[str, Any]) -> None:
    """A file of a training that stands as if it were cut short here; one without looks is made again."""
    if hasattr(getattr(training, "history", None), "elbo"):
        training.paused = _place(training, random)
        try:
            keep_place(True)
        finally:
            training.paused = None


def go_on(training: Resumable, paused: dict[str, Any] | None) -> None:
    """Stand where a training was paused, its random numbers included; if it was not, nothing happens.

    Arguments:
        training: A training of the same kind.
        paused: What its :meth:`Resumable.end_early` was given.
    """
    if paused is not None:
        set_random_state(paused["random"])
        training.restore(paused)


def _place(training: Resumable, random: dict[str, Any]) -> dict[str, Any]:
    """Where training stands, taken before the weights so far are put to use."""
    return {**copy.deepcopy(training.state()), "random": random}

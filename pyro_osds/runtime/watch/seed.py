"""Random numbers of one's own: a run with a seed gives the same numbers, and leaves those of the process alone."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyro

from pyro_osds.runtime.resume import random_state, set_random_state


@contextlib.contextmanager
def own_numbers(seed: int | None, place: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    """A stretch with the random numbers of ``pyro.set_rng_seed``, after which all go on as if it had not been.

    Arguments:
        seed: The seed; None for no numbers of its own.
        place: Where to go on instead of at the beginning: what an earlier stretch has yielded.

    Yields:
        A dictionary that holds, once the stretch is over, where its random numbers stand; empty without a seed.

    Example:
        >>> import torch
        >>> with own_numbers(0) as place:
        ...     first = torch.rand(1)
        >>> with own_numbers(0, place):
        ...     second = torch.rand(1)
        >>> pyro.set_rng_seed(0)
        >>> bool(first == torch.rand(1)), bool(second == torch.rand(1))
        (True, True)
    """
    after: dict[str, Any] = {}
    if seed is None:
        yield after
        return
    # What a model draws beside torch's numbers is drawn before the first step, if at all: only torch's have a place.
    before = random_state(), random.getstate(), np.random.get_state()
    pyro.set_rng_seed(seed)
    if place:
        set_random_state(dict(place))
    try:
        yield after
    finally:
        after.update(random_state())
        set_random_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])

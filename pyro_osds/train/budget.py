"""How long and how hard to train."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pyro_osds.stats.enough import Enough


@dataclass(frozen=True)
class Budget:
    """How long and how hard to train.

    Arguments:
        num_iterations: Optimiser steps at most, over all rounds.
        batch_size: Draws per step.
        learning_rate: Peak of each round's one-cycle schedule.
        first_round: Steps of the first round; each later one is one and a half times as long.
        warm_up: Steps of the round before, if there is a warm-up objective; they do not count as iterations.
        max_gap: Give up after the first round if the ELBO is further from the log evidence, nats.
        enough: What is good enough for a user: training stops there, and no larger flow follows.
        elbo_gap: Stop when the ELBO is this close to the log evidence, nats, and the weights have a good tail.
        num_validation_draws: Fresh draws to judge a round on.
        deadline: Time of :func:`~pyro_osds.runtime.clock.now` at which training ends with what it has.
        seconds_per_draw: What a weighted draw takes, where that is known: no look begins that ends after the deadline.
        optim: A Pyro optimiser to use instead of Adam on a one-cycle schedule; it brings its own learning rate.
    """

    # The values were chosen on the accuracy cases, where twice as many iterations hardly raise the ELBO. Larger batches
    # cost time in proportion and lower the noise by its square root only; a higher rate does harm where a posterior is
    # far from its base. More draws to judge a round would tell apart what the verdict on fresh draws does anyway.
    num_iterations: int = 1000
    batch_size: int = 256
    learning_rate: float = 1e-2
    first_round: int = 250
    warm_up: int = 300
    max_gap: float = math.inf
    enough: Enough | None = None
    elbo_gap: float = 0.02
    num_validation_draws: int = 4096
    deadline: float = math.inf
    seconds_per_draw: float = 0.0
    optim: Any = None

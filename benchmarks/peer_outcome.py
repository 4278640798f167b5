"""What a run of a sampler gave, and the clock for it."""

import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

# As MCMC's users run it.
NUM_CHAINS, NUM_WARMUP, NUM_SAMPLES = 4, 1000, 1000


class Seconds(NamedTuple):
    """Seconds of the clock on the wall, and those that processors spent on this process and on compilers it started."""

    wall: float
    cpu: float


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._begin = _now()

    def read(self) -> Seconds:
        """Seconds so far."""
        now = _now()

        return Seconds(now.wall - self._begin.wall, now.cpu - self._begin.cpu)


def _now() -> Seconds:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]

    return Seconds(time.perf_counter(), sum(part.ru_utime + part.ru_stime for part in used))


@dataclass
class Outcome:
    """What a run gave.

    `draws` are `(chains, draws, *shape)` by site; `further` draws more once the first result is there, and says how
    many of them are effective and how long that took; evaluations are those of the log density, with or without its
    gradient, as far as the sampler counts them. `compiling` is the part of the seconds that went into a compiler which
    is called by itself.
    """

    seconds: Seconds
    draws: dict[str, np.ndarray] = field(default_factory=dict)
    log_evidence: float = math.nan
    std_error: float = math.nan
    further: Callable[[], tuple[float, Seconds]] | None = None
    evaluations: float = math.nan
    reliable: bool | None = None
    compiling: Seconds | None = None


def min_effective_size(draws: dict[str, np.ndarray]) -> float:
    """The smallest bulk effective sample size of all coordinates, draws."""
    import arviz as az
    import xarray as xr

    dataset = xr.Dataset(
        {
            name: (["chain", "draw", *(f"{name}_{axis}" for axis in range(value.ndim - 2))], value.astype(float))
            for name, value in draws.items()
        }
    )

    return min(float(value.min()) for value in az.ess(dataset).data_vars.values())

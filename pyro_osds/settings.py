"""How to fit: the arguments of the sampler that are plain values, checked before anything runs."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from pyro_osds.choices import Correction, Network, RecipeName, Volume
from pyro_osds.posterior.draws import CORRECTIONS
from pyro_osds.runtime.arguments import (
    check_choices,
    check_counts,
    check_positive,
    check_powers_of_two,
    check_switches,
    plain,
)
from pyro_osds.runtime.watch.callback import RunProgress
from pyro_osds.stats.enough import Enough, most_draws
from pyro_osds.stats.thresholds import TARGET_STD_ERROR
from pyro_osds.symmetries import Symmetry, check_symmetries
from pyro_osds.target import Target
from pyro_osds.train.flows import LEAN, FlowOptions, FlowSize
from pyro_osds.train.optimizer import check_optim
from pyro_osds.train.recipe import NETWORKS, RECIPES
from pyro_osds.train.trainer import Budget
from pyro_osds.train.velocity import VOLUMES

# Numpy's seeds have 32 bits.
_MAX_SEED = 2**32
# Of these the recipe uses all it needs; what num_iterations allows beyond is kept for escalation.
_FIRST_ITERATIONS = 1000
# Point by point, a density costs about a millisecond: a smaller run that still ends before NUTS does.
_SLOW_BATCH, _SLOW_ROUND, _SLOW_VALIDATION, _SLOW_PARTICLES = 32, 150, 256, 16
# Two rounds, for a density that comes slowly, but for many points at once.
_SLOW_ROUNDS = 375
# With so many terms a density takes as long even in batches, and the posterior of so many data is close to a Gaussian.
_MANY_TERMS = 20_000
_LARGE_BATCH, _LARGE_VALIDATION, _LARGE_PARTICLES = 64, 1024, 32
# With so many a step takes half a second or more: a shorter first round is often enough, and the next one is there.
_COSTLY_TERMS = 10_000


@dataclass(frozen=True)
class Settings:
    """How to fit, whatever the model; the arguments are those of :class:`pyro_osds.OSDS`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> Settings(num_chains=0)
        Traceback (most recent call last):
        ValueError: num_chains must be an integer of at least 1, got 0.
    """

    num_samples: int = 1000
    num_chains: int = 4
    num_steps: int = 1
    disable_progbar: bool = False
    correction: Correction = "imh"
    num_iterations: int = 2000
    max_time: float | None = None
    target_std_error: float = TARGET_STD_ERROR
    escalate: bool = True
    batch_size: int = 256
    learning_rate: float = 1e-2
    num_particles: int = 64
    recipe: RecipeName = "auto"
    num_time_steps: int = 16
    network: Network = "coupling"
    volume: Volume = "exact"
    num_blocks: int | None = None
    hidden_features: int | None = None
    warm_start: bool = False
    distributed: bool = False
    optim: Any = None
    seed: int | None = None
    callback: Callable[[RunProgress], Any] | None = None
    checkpoint: str | os.PathLike[str] | None = None
    symmetries: tuple[Symmetry, ...] = ()

    def __post_init__(self) -> None:
        # Numbers of numpy are taken as Python's, which a file can hold.
        for name in self.names():
            object.__setattr__(self, name, plain(getattr(self, name)))
        object.__setattr__(self, "symmetries", check_symmetries(self.symmetries))
        counts = ("num_samples", "num_chains", "num_steps", "num_iterations", "batch_size", "num_particles")
        optional = ("num_blocks", "hidden_features")
        given = {name: getattr(self, name) for name in (*counts, "num_time_steps")}
        check_counts(given | {name: getattr(self, name) for name in optional if getattr(self, name) is not None})
        check_choices(
            {
                "correction": (self.correction, CORRECTIONS),
                "recipe": (self.recipe, RECIPES),
                "network": (self.network, NETWORKS),
                "volume": (self.volume, VOLUMES),
            }
        )
        check_powers_of_two({"num_steps": self.num_steps, "num_time_steps": self.num_time_steps})
        check_optim(self.optim)
        if self.optim is not None and self.network == "velocity":
            raise ValueError("optim is for network='coupling'; the velocity network is trained as it was published.")
        switches = ("disable_progbar", "escalate", "warm_start", "distributed")
        check_switches({name: getattr(self, name) for name in switches})
        check_positive({"learning_rate": self.learning_rate, "target_std_error": self.target_std_error})
        seconds = self.max_time
        is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
        if seconds is not None and not (is_number and seconds > 0):
            raise ValueError(f"max_time must be a positive number of seconds or None, got {self.max_time!r}.")
        self._check_watch()
        if self.distributed and self.network == "velocity":
            raise ValueError("distributed is for network='coupling'; the velocity network is trained in one process.")
        if self.distributed and self.recipe == "few_steps":
            raise ValueError("distributed is not for recipe='few_steps': its diffusion is trained in one process.")
        if self.recipe == "few_steps" and not self.escalate:
            raise ValueError("recipe='few_steps' needs escalate=True: its diffusion is a stage after the flow.")
        if self.distributed and self.max_time is not None:
            raise ValueError("distributed needs max_time=None: processes with clocks of their own would part ways.")

    def _check_watch(self) -> None:
        """Check what belongs to a run and not to the fit: random numbers, callback and checkpoint."""
        seed = self.seed
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < _MAX_SEED):
            raise ValueError(f"seed must be an integer from 0 to {_MAX_SEED - 1} or None, got {seed!r}.")
        if self.callback is not None and not callable(self.callback):
            raise TypeError(
                f"callback must be a function of one argument, a RunProgress, got {type(self.callback).__name__}; pass "
                "the function itself, such as callback=print."
            )
        if self.checkpoint is not None and not isinstance(self.checkpoint, (str, os.PathLike)):
            raise TypeError(f"checkpoint must be the name of a file, got {type(self.checkpoint).__name__}.")
        for name in ("seed", "callback", "checkpoint"):
            if self.distributed and getattr(self, name) is not None:
                raise ValueError(f"{name} is for one process: leave it out, or distributed=True.")

    @classmethod
    def names(cls) -> list[str]:
        """The names of all settings."""
        return [setting.name for setting in fields(cls)]

    def as_dict(self) -> dict[str, Any]:
        """The settings by name."""
        return {name: getattr(self, name) for name in self.names()}

    def not_default(self) -> dict[str, Any]:
        """Those that the user changed, by name."""
        return {name: value for name, value in self.as_dict().items() if value != getattr(type(self), name)}

    def particles(self, target: Target) -> int:
        """Particles on each replicate, fewer where densities come point by point or have very many terms."""
        if not target.vectorized:
            return _SLOW_PARTICLES if target.num_at_once == 1 else _LARGE_PARTICLES

        return self.num_particles if target.num_terms <= _MANY_TERMS else min(self.num_particles, _LARGE_PARTICLES)

    def budget(self, target: Target, deadline: float = math.inf) -> Budget:
        """What the first training may use."""
        dim = target.dim
        if target.vectorized:
            budget = Budget(
                self._first_iterations,
                self.batch_size,
                self.learning_rate,
                enough=self.enough(dim),
                deadline=deadline,
                optim=self.optim,
            )
            if target.num_terms > _COSTLY_TERMS:
                budget = replace(budget, first_round=_SLOW_ROUND)
            if target.num_terms <= _MANY_TERMS:
                return budget
            batch_size = min(self.batch_size, _LARGE_BATCH)
            return replace(budget, batch_size=batch_size, num_validation_draws=_LARGE_VALIDATION)

        # Where many points take hardly longer than one, a step may as well have many, and a look even more.
        has_many = target.num_at_once > _SLOW_BATCH
        return Budget(
            _SLOW_ROUNDS if has_many else _SLOW_ROUND,
            min(target.num_at_once, self.batch_size) if has_many else _SLOW_BATCH,
            self.learning_rate,
            first_round=_SLOW_ROUND,
            num_validation_draws=_LARGE_VALIDATION if has_many else _SLOW_VALIDATION,
            deadline=deadline,
            optim=self.optim,
        )

    def enough(self, dim: int) -> Enough:
        """What is good enough, of draws of so many coordinates."""
        return Enough(self.target_std_error, self.num_chains * self.num_samples, most_draws(self.target_std_error, dim))

    @property
    def flow_options(self) -> FlowOptions:
        """What was chosen of the flow."""
        size = FlowSize(self.num_blocks or LEAN.num_blocks, 1, self.hidden_features or LEAN.hidden_features)
        chosen = {option.name: getattr(self, option.name) for option in fields(FlowOptions) if option.name != "size"}

        return FlowOptions(size=None if self.num_blocks is None and self.hidden_features is None else size, **chosen)

    @property
    def more_iterations(self) -> int:
        """Optimiser steps that are kept for a larger flow."""
        return self.num_iterations - self._first_iterations

    @property
    def _first_iterations(self) -> int:
        if not self.escalate:
            return self.num_iterations

        return max(min(self.num_iterations, _FIRST_ITERATIONS), self.num_iterations // 2)

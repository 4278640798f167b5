"""What a case is, and the list of all of them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pyro_osds import OSDS

SETTINGS = {"num_samples": 1000, "num_chains": 4, "disable_progbar": True}
KINDS = ("precision", "support", "propriety", "search", "symmetry", "shapes", "controls")

Moments = Mapping[str, tuple[Any, Any]]


@dataclass(frozen=True)
class Case:
    """One posterior and what is known of it.

    Arguments:
        name: Its name, unique.
        kind: One of `KINDS`.
        dim: Number of unconstrained latents.
        why: What is hard about it, or why it must not be doubted.
        model: The Pyro model, without arguments, or the log density of points `(N, D)`.
        is_density: Which of the two it is.
        truth: Makes the log evidence; inf where the posterior has no integral, nan where a prior has none and the
            posterior has.
        posterior: Makes mean and standard deviation of sites, where the log evidence is nan.
    """

    name: str
    kind: str
    dim: int
    why: str
    model: Callable[..., Any]
    is_density: bool
    truth: Callable[[], float]
    posterior: Callable[[], Moments]

    def make(self) -> tuple[OSDS, tuple]:
        """A sampler with the default settings, and the arguments of its run."""
        if self.is_density:
            return OSDS.from_log_prob(self.model, self.dim, **SETTINGS), ()

        return OSDS(self.model, **SETTINGS), ()


CASES: dict[str, Case] = {}


class Kind:
    """Adds models and densities of one kind to the list of cases; the name and the reason are those of the function."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def model(self, dim: int, truth: Any, name: str = "", posterior: Callable[[], Moments] = dict) -> Callable:
        return lambda function: self._add(function, dim, truth, name, posterior, is_density=False)

    def density(self, dim: int, truth: Any = 0.0, name: str = "", why: str = "") -> Callable:
        return lambda function: self._add(function, dim, truth, name, dict, is_density=True, why=why)

    def _add(self, function, dim, truth, name, posterior, is_density, why=""):
        name = name or function.__name__
        if name in CASES:
            raise ValueError(f"Two cases are called {name!r}; give one of them another name.")
        log_evidence = cache(truth) if callable(truth) else cache(lambda: truth)
        why = why or function.__doc__
        CASES[name] = Case(name, self.kind, dim, why, function, is_density, lambda: float(log_evidence()), posterior)

        return function


def no_integral() -> float:
    """The truth of a posterior without an integral."""
    return math.inf


def undefined() -> float:
    """The truth where a prior has no integral and the posterior has."""
    return math.nan

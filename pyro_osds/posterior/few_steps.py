"""The diffusion in few steps as a result: draws and evidence from paths, where no bijection covers the posterior.

Trained on explored particles (``train.walk``), it draws afresh, and paths are weighed as the flow's draws are: the same
thresholds, the same checks by exploration, by the second search and by particles, and chains of whole paths. Particles
are held against it whatever its weights: paths back from them have the weights that the posterior gives to paths, and a
part that fresh paths miss shows there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_osds.explore.survey import MAX_TERMS, Survey
from pyro_osds.flow.base import gaussian_base, standard_base
from pyro_osds.flow.kernel import KernelNetwork
from pyro_osds.flow.walk import MAX_STEPS, Walk
from pyro_osds.posterior.draws import PosteriorDraws, draw_posterior
from pyro_osds.posterior.evidence import EvidenceCheck, Reason
from pyro_osds.posterior.source import DrawSource
from pyro_osds.runtime.clock import time_limit
from pyro_osds.stats.thresholds import TARGET_STD_ERROR
from pyro_osds.stats.weights import FlowDraws, effective_sample_size, weigh
from pyro_osds.target import Target
from pyro_osds.train.walk import WalkBudget, train_walk

FEW_STEPS = "few-step diffusion"
"""The stage, as reports and draws call it."""

MAX_DIM = 64
"""Coordinates of a network of a hundred units at most; in more, particles are too few to learn from."""

# Numbers of steps to choose from, paths that are tried of each, and the share of the best one's effective paths that is
# enough: half of the steps take half of the time.
_STEPS, _NUM_TRIED, _ENOUGH = (8, 16, 32, 64), 2048, 0.8


class DivergedError(Exception):
    """Training left the kernels far worse on held-out particles than noise is."""


@dataclass
class FewSteps:
    """The diffusion in few steps of one fit.

    Arguments:
        target: The target in the coordinates of the fit.
        found: What exploration found.
        num_chains: Chains of posterior draws.
        num_samples: Draws of each chain.
        correction: How weighted paths become posterior draws.
        max_draws: Weighted draws at most.
        std_error: Standard error of the log evidence that is asked for, nats.
        budget: How long to train.
        deadline: Time of :func:`~pyro_osds.runtime.clock.now` at which the stage is left.
        improper_sites: Latent sites with an improper prior.
        objections: What else speaks against the results.
        walk: The trained walk, if there is one.
        keep: Called with the walk once it is trained.
    """

    target: Target
    found: Survey
    num_chains: int
    num_samples: int
    correction: str = "imh"
    max_draws: int = 32768
    std_error: float = TARGET_STD_ERROR
    budget: WalkBudget = WalkBudget()
    deadline: float = math.inf
    improper_sites: Sequence[str] = ()
    objections: Callable[[], Sequence[Reason]] = tuple
    walk: Walk | None = None
    keep: Callable[[Walk], None] | None = None

    def source(self) -> DrawSource:
        """The same as a source of draws; a walk must be there."""
        return DrawSource(FEW_STEPS, "draws of a diffusion in few steps", self.more, self.posterior, self.more_in)

    def refusal(self) -> str:
        """Why the stage cannot be begun; empty if it can."""
        if not self.target.vectorized:
            return "the density comes point by point, and training asks for millions of points"
        if self.target.dim > MAX_DIM:
            return f"there are {self.target.dim} coordinates, and it learns at most {MAX_DIM}"
        terms = self.budget.evaluations() * max(self.target.num_terms, 1)
        if terms > MAX_TERMS:
            return f"training would evaluate {terms:.1e} terms of the log density, of at most {MAX_TERMS:.0e}"

        return ""

    def posterior(self, judged: PosteriorDraws) -> PosteriorDraws:
        """Posterior draws and the verdict on them; the walk is trained if that was not done.

        Arguments:
            judged: Draws and verdict of the stage before.

        Raises:
            DivergedError: If training diverged.
            ~pyro_osds.runtime.clock.OutOfTimeError: If the time is over.
        """
        exploration = self.found.exploration
        with time_limit(self.deadline):
            if self.walk is None:
                self.walk = self._trained()
                if self.keep is not None:
                    self.keep(self.walk)
            draws = draw_posterior(
                self.walk,
                self.target,
                self.num_chains,
                self.num_samples,
                self.correction,
                EvidenceCheck(exploration.log_evidence, exploration.std_error),
                self.improper_sites,
                self.max_draws,
                self.std_error,
                self.objections(),
                self.found.parts,
                self.deadline,
                exploration.z,
            )

        return replace(
            draws,
            flow_log_weight=judged.flow_log_weight,
            flow_not_finite=judged.flow_not_finite,
            source=FEW_STEPS,
        )

    def more(self, num_draws: int) -> FlowDraws:
        """Fresh weighted draws, of as many steps as the verdict was on.

        Arguments:
            num_draws: How many.
        """
        assert self.walk is not None

        return weigh(self.walk, self.target, num_draws)

    def more_in(self, num_steps: int) -> Callable[[int], FlowDraws]:
        """What makes fresh weighted draws in another number of steps.

        Arguments:
            num_steps: Steps of their paths, a power of two.

        Raises:
            ValueError: If the kernels have not learnt that number of steps.
        """
        assert self.walk is not None
        if num_steps > MAX_STEPS:
            raise ValueError(f"num_steps must be at most {MAX_STEPS} for draws of a diffusion, got {num_steps}.")
        walk = self.walk.in_steps(num_steps)

        return lambda num_draws: weigh(walk, self.target, num_draws)

    def _trained(self) -> Walk:
        particles = self.found.exploration.z
        base = gaussian_base(particles)
        walk = Walk(self.target, base, KernelNetwork(self.target.dim, self.budget.hidden_features).to(base.loc.device))
        history = train_walk(walk, particles, self.budget)
        if history.has_diverged:
            raise DivergedError

        return walk.in_steps(best_steps(walk))


def best_steps(walk: Walk) -> int:
    """The fewest steps with nearly as many effective paths as any.

    Arguments:
        walk: A trained walk.
    """
    shares = {}
    for num_steps in _STEPS:
        log_weight = weigh(walk.in_steps(num_steps), walk.target, _NUM_TRIED).log_weight
        shares[num_steps] = effective_sample_size(log_weight)

    return next(num_steps for num_steps in _STEPS if shares[num_steps] >= _ENOUGH * max(shares.values()))


def walk_state(walk: Walk | None) -> dict[str, Any] | None:
    """A trained walk as a file keeps it, without its target."""
    if walk is None:
        return None
    hidden: Tensor = next(walk.network.parameters())

    return {
        "loc": walk.base.loc,
        "scale_tril": walk.base.scale_tril,
        "network": walk.network.state_dict(),
        "hidden_features": hidden.shape[0],
        "num_steps": walk.num_steps,
    }


def restored_walk(state: dict[str, Any] | None, target: Target) -> Walk | None:
    """What :func:`walk_state` gave, with the target again.

    Arguments:
        state: The state; it stays as it is.
        target: The target in the coordinates of the fit.
    """
    if state is None:
        return None
    base = standard_base(state["loc"], state["scale_tril"])
    with torch.random.fork_rng():  # a network that is built draws weights that are replaced at once
        network = KernelNetwork(len(base.loc), state["hidden_features"]).to(base.loc.device)
    network.load_state_dict(state["network"])

    return Walk(target, base, network, state["num_steps"])

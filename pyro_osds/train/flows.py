"""What flow for what purpose: from a plan to an untrained flow with its trainer.

* ``calibrate``: a lean flow, from a Gaussian or a mixture base, on its own exact weights; in many dimensions one that
  shapes the model's own coordinates one by one, from correlated base draws, before parents steer children.
* ``cover``: splines, from a Gaussian base; forward KL on particles, then exact weights with log-variance on particles.
* ``distill``: a flow as of ``cover``; state and volume consistency first, then as ``cover`` in all dyadic steps.

A larger flow has a batch twice as large and smaller steps.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import cast

from torch import nn

from pyro_osds.explore.survey import Survey
from pyro_osds.flow.base import Base, coordinatewise, gaussian_base
from pyro_osds.flow.coupling import CouplingBlock, FlowMap
from pyro_osds.flow.diffusion import Diffusion
from pyro_osds.flow.leap import Leap
from pyro_osds.flow.network import ControlNetwork
from pyro_osds.runtime.precision import NETWORK_DTYPE
from pyro_osds.stats.gaussian import MANY_DIMENSIONS
from pyro_osds.train.budget import Budget
from pyro_osds.train.distillation import Walks, dyadic, self_distillation
from pyro_osds.train.objectives import Objective, exact_volume, forward_kl
from pyro_osds.train.trainer import Trainer
from pyro_osds.train.velocity import VelocityTrainer

# The lean flow has done what it can when its first round leaves this much between ELBO and log evidence, nats. Nine
# draws in ten are effective then; a larger flow for less would take minutes where the weights do the rest.
LEAN_GAP = 0.05
# The first round of a flow that was trained before, and its learning rate as a share of the usual one: it is nearly
# right, and steps of full size would undo that. Chosen on the accuracy cases.
_WARM_ROUND, _WARM_RATE = 100, 0.3
# In many dimensions: numbers in a batch at most, if that leaves 64 draws. It bounds the seconds of a step; with fewer
# draws their mean is mostly noise.
_MAX_BATCH, _MIN_BATCH_SIZE = 2**17, 64
# A larger flow learns from batches twice as large in steps half as long: it has more to learn, and more noise to learn.
_LARGER_BATCH, _LARGER_RATE = 2, 0.5
# The same steps for splines from a Gaussian base, which begin farther from the posterior.
_COVERING_RATE = 0.5
# Losses of the free-form network are noisy, so that it takes smaller steps. Chosen on the accuracy cases.
_VELOCITY_RATE = 0.1
# The covering share of the divergence that a large flow is trained on: both directions alike up to ten dimensions, and
# from twenty on a quarter, since the covering one is weighted, and in many dimensions weights are mostly noise.
_COVERAGE, _LEAST_COVERAGE, _COVERED_DIMENSIONS = 0.5, 0.25, 5.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FlowSize:
    """The size of a flow.

    Arguments:
        num_blocks: Coupling blocks.
        num_spline_blocks: How many of them, from the base on, have a spline part.
        hidden_features: Width of the networks.
    """

    num_blocks: int
    num_spline_blocks: int
    hidden_features: int


def size_of(flow: FlowMap) -> FlowSize:
    """The size that a flow has.

    Example:
        >>> size_of(FlowMap(3, **asdict(LEAN))) == LEAN
        True
    """
    blocks = cast("list[CouplingBlock]", list(flow.blocks))
    hidden = cast("nn.Linear", blocks[0].network.curve[0]).out_features

    return FlowSize(len(blocks), sum(block.num_bins > 0 for block in blocks), hidden)


# Sizes were chosen on the accuracy cases. More blocks let coordinates steer each other along longer ways, splines give
# single coordinates their shape, wider networks follow finer curves; all of them cost time in each step and draw.
LEAN = FlowSize(num_blocks=5, num_spline_blocks=1, hidden_features=64)
ALIKE = FlowSize(num_blocks=1, num_spline_blocks=1, hidden_features=64)
MANY = FlowSize(num_blocks=3, num_spline_blocks=1, hidden_features=64)
LARGE = FlowSize(num_blocks=8, num_spline_blocks=0, hidden_features=128)
COVERING = FlowSize(num_blocks=6, num_spline_blocks=2, hidden_features=64)
LARGEST = FlowSize(num_blocks=8, num_spline_blocks=2, hidden_features=128)


@dataclass(frozen=True)
class Plan:
    """What a flow is made from; the same plan makes the same flow again, untrained.

    Arguments:
        kind: ``"first"``, ``"large"``, ``"largest"``, or ``"warm"`` for one that was trained before.
        found: The survey that it starts from.
        num_iterations: Optimiser steps of a larger one.
        size: The size of one that was trained before.
    """

    kind: str
    found: Survey
    num_iterations: int = 0
    size: FlowSize | None = None


@dataclass(frozen=True)
class FlowOptions:
    """What a user may choose of the flow, whatever the recipe.

    Arguments:
        num_steps: Steps of the leap.
        num_time_steps: Steps of the finest grid, for ``distill`` and the velocity network.
        size: The size of the flow; default: by the recipe.
        network: ``"coupling"`` for the bijective flow, ``"velocity"`` for the published free-form network.
        volume: With ``"velocity"``: ``"exact"`` or ``"published"``.
        disable_progbar: Whether to hide the progress bars.
    """

    num_steps: int = 1
    num_time_steps: int = 16
    size: FlowSize | None = None
    network: str = "coupling"
    volume: str = "exact"
    disable_progbar: bool = False


@dataclass(frozen=True)
class Builder:
    """Builds flows, untrained, with their trainers.

    Arguments:
        name: ``"calibrate"``, ``"cover"``, ``"distill"`` or ``"velocity"``.
        budget: Iterations, batch size and learning rate of the lean flow.
        groups: Sizes of consecutive groups of coordinates, parents before children.
        options: What the user chose of the flow.
        walks: What distillation learns from.
    """

    name: str
    budget: Budget
    groups: Sequence[int] = ()
    options: FlowOptions = FlowOptions()
    walks: Walks | None = None

    def may_grow(self, plan: Plan) -> bool:
        """Whether a larger flow may follow one of this plan."""
        return self.name == "calibrate" and self.options.size is None and plan.kind == "first"

    def build(self, plan: Plan) -> Trainer | VelocityTrainer:
        """The flow of a plan, untrained, with its trainer.

        Arguments:
            plan: What it is for.
        """
        if self.name == "velocity":
            budget = replace(self.budget, learning_rate=_VELOCITY_RATE * self.budget.learning_rate)
            options = self.options
            return VelocityTrainer(
                diffusion_of(plan.found),
                options.num_time_steps,
                budget,
                options.num_steps,
                options.volume,
                options.disable_progbar,
            )
        if plan.size is not None:
            return self._again(plan)
        if plan.kind == "large":
            return self._large(plan)
        if plan.kind == "largest":
            return self._largest(plan)

        return self._lean(plan) if self.name == "calibrate" else self._covering(plan)

    def _lean(self, plan: Plan) -> Trainer:
        found, size = plan.found, self.options.size or LEAN
        if has_many_dimensions(found):
            return self._in_many_dimensions(found)
        budget = replace(self.budget, max_gap=LEAN_GAP) if self.may_grow(plan) else self.budget
        if found.base.num_components > 1:
            # A mixture has shape enough; splines on top of it only made its tails lighter.
            size = replace(size, num_spline_blocks=0)

        return self._trainer(found, found.base, size, budget, exact_volume(found.target, budget.batch_size))

    def _in_many_dimensions(self, found: Survey) -> Trainer:
        """First of all, the shape of each of the model's coordinates; base draws bring the correlations along."""
        budget = self.budget
        # Parents steer their children; among coordinates of one kind nobody knows who should steer whom.
        size = self.options.size or (MANY if len(self.groups) > 1 else ALIKE)
        # Of many coordinates, one that is stretched teaches next to nothing.
        objective = exact_volume(found.target, budget.batch_size, tail_share=0.0)

        return self._trainer(found, coordinatewise(found.base), size, budget, objective)

    def _large(self, plan: Plan) -> Trainer:
        found, budget = plan.found, self._larger_budget(plan.num_iterations)
        coverage = min(_COVERAGE, max(_LEAST_COVERAGE, _COVERED_DIMENSIONS / found.target.dim))
        objective = exact_volume(found.target, budget.batch_size, coverage)

        return self._trainer(found, found.base, LARGE, budget, objective)

    def _again(self, plan: Plan) -> Trainer:
        """A flow that is nearly right: short rounds of small steps."""
        found, size, budget = plan.found, plan.size or LEAN, self.budget
        budget = replace(
            budget,
            first_round=min(budget.first_round, _WARM_ROUND),
            learning_rate=_WARM_RATE * budget.learning_rate,
        )
        points = found.exploration.z if found.is_folded else None
        objective = exact_volume(found.target, budget.batch_size, points=points)

        return self._trainer(found, found.base, size, budget, objective)

    def _largest(self, plan: Plan) -> Trainer:
        found, budget, points = plan.found, self._larger_budget(plan.num_iterations), plan.found.exploration.z
        size = replace(LARGEST, num_spline_blocks=0) if found.base.num_components > 1 else LARGEST
        objective = exact_volume(found.target, budget.batch_size, points=points)

        return self._trainer(found, found.base, size, budget, objective, forward_kl(points, budget.batch_size))

    def _larger_budget(self, num_iterations: int) -> Budget:
        """One round, of larger batches and smaller steps."""
        return replace(
            self.budget,
            num_iterations=num_iterations,
            first_round=num_iterations,
            batch_size=_LARGER_BATCH * self.budget.batch_size,
            learning_rate=_LARGER_RATE * self.budget.learning_rate,
        )

    def _covering(self, plan: Plan) -> Trainer:
        """Splines from a Gaussian base, first brought to where the particles, or the teacher's flow, are."""
        found, points = plan.found, plan.found.exploration.z
        budget = replace(
            self.budget,
            first_round=max(1, self.budget.num_iterations // 2),
            learning_rate=_COVERING_RATE * self.budget.learning_rate,
        )
        if self.walks is not None:
            teacher = self.walks.diffusion
            warm_up = self_distillation(teacher, self.options.num_time_steps, budget.batch_size, walks=self.walks)
            num_steps = dyadic(self.options.num_time_steps)
        else:
            warm_up, num_steps = forward_kl(points, budget.batch_size), ()
        objective = exact_volume(found.target, budget.batch_size, points=points, num_steps=num_steps)

        return self._trainer(found, _gaussian_of(found), self.options.size or COVERING, budget, objective, warm_up)

    def _trainer(
        self,
        found: Survey,
        base: Base,
        size: FlowSize,
        budget: Budget,
        objective: Objective,
        warm_up: Objective | None = None,
    ) -> Trainer:
        target = found.target
        _log.info(
            "flow: %s from %d base component(s), at most %d iterations",
            size,
            base.num_components,
            budget.num_iterations,
        )
        flow = FlowMap(target.dim, self.groups, **asdict(size)).to(dtype=NETWORK_DTYPE, device=target.device)
        leap = Leap(base, flow, self.options.num_steps)

        return Trainer(leap, target, budget, objective, warm_up, self.options.disable_progbar, found.exploration.z)


def has_many_dimensions(found: Survey) -> bool:
    """Whether a flow works on the coordinates of the model, one by one first."""
    return found.target.dim >= MANY_DIMENSIONS and found.base.num_components == 1


def diffusion_of(found: Survey) -> Diffusion:
    """An untrained diffusion from the Gaussian base."""
    base = _gaussian_of(found)

    return Diffusion(
        found.target, base, ControlNetwork(found.target.dim).to(dtype=NETWORK_DTYPE, device=base.loc.device)
    )


def _gaussian_of(found: Survey) -> Base:
    return found.base if found.base.num_components == 1 else gaussian_base(found.exploration.z)


def for_many(budget: Budget, dim: int) -> Budget:
    """A budget for many dimensions: smaller batches, as each draw says more, and smaller steps, as their noise adds up.

    Arguments:
        budget: The usual one.
        dim: The number of dimensions.

    Example:
        >>> for_many(Budget(), dim=2000).batch_size
        64
    """
    batch_size = budget.batch_size
    while batch_size * dim > _MAX_BATCH and batch_size >= 2 * _MIN_BATCH_SIZE:
        batch_size //= 2

    return replace(budget, batch_size=batch_size, learning_rate=budget.learning_rate * (MANY_DIMENSIONS / dim) ** 0.5)

"""The draws of a fit: made when first asked for, weighed, judged, and taken back to the user's sites."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_osds.explore.given.copies import copies_of
from pyro_osds.explore.particles import GivenDraws
from pyro_osds.fit_stages import source_of, way_of
from pyro_osds.flow.leap import Leap, is_bijective
from pyro_osds.posterior.agreement import Agreement, compare_with_reference, parameter_errors
from pyro_osds.posterior.draws import PosteriorDraws
from pyro_osds.posterior.evidence import EvidenceCheck, Reason
from pyro_osds.posterior.given import Held, hold_against
from pyro_osds.posterior.no_latents import PointLeap, PointRecipe, PointTrainer
from pyro_osds.posterior.objections import broken_symmetries, num_in_time
from pyro_osds.posterior.objections import objections as objections_to
from pyro_osds.posterior.pace import draw_in_time
from pyro_osds.posterior.readings import by_chain, by_draw
from pyro_osds.posterior.source import DrawSource
from pyro_osds.runtime.arguments import check_powers_of_two
from pyro_osds.runtime.clock import now
from pyro_osds.settings import Settings
from pyro_osds.stats.weights import WeightedDraws, log_weights_at, weigh
from pyro_osds.target import Target, as_target
from pyro_osds.train.recipe import Recipe
from pyro_osds.train.trainer import Trainer
from pyro_osds.train.velocity import VelocityLeap, VelocityTrainer

AnyLeap = Leap | VelocityLeap | PointLeap
AnyTrainer = Trainer | VelocityTrainer | PointTrainer

# Draws of the flow that given ones are held against, at least: as many as a verdict takes.
_MIN_CHECK_DRAWS = 4096


class FitDraws:
    """The part of a fit that draws; what it draws from belongs to the fit."""

    settings: Settings
    given: Target
    drawn: GivenDraws | None
    target: Target
    recipe: Recipe | PointRecipe
    trainer: AnyTrainer
    leap: AnyLeap
    seconds: dict[str, float]
    few_steps: dict[int, AnyLeap]
    _deadline: float
    _per_draw: float
    _draws: PosteriorDraws | None
    forgotten: PosteriorDraws | None
    _samples: dict[str, Tensor]
    _held: tuple[AnyLeap, Held] | None

    # ---- draws ----

    @property
    def draws(self) -> PosteriorDraws:
        """The posterior draws of the present weights, made when first asked for."""
        self.ensure_judged()
        assert self._draws is not None

        return self._draws

    def ensure_judged(self) -> None:
        """Draw from the present weights, and judge, unless that was done."""
        if self._draws is None:
            start, source = now(), source_of(self, self.forgotten)
            if source is not None and self.forgotten is not None:
                self.keep(source.anew(self.forgotten))
            else:
                self.keep(self._judge(self.settle()))
            self.seconds["sampling_time"] = now() - start

    @property
    def is_judged(self) -> bool:
        """Whether there are posterior draws, and a verdict on them."""
        return self._draws is not None

    def settle(self) -> AnyLeap:
        """The leap with the present weights; one that was stepped by hand takes the average of its weights."""
        if self._draws is None:
            self.leap = self.trainer.leap if self.trainer.history.elbo else self.trainer.averaged()

        return self.leap

    def forget_draws(self) -> None:
        """Make fresh draws when next asked for, from where those came from that there are."""
        self.forgotten = self.forgotten if self._draws is None else self._draws if self._draws.source else None
        self._draws = None

    @property
    def source(self) -> DrawSource | None:
        """Where the posterior draws come from, if that is not the flow."""
        return source_of(self, self._draws or self.forgotten)

    @property
    def samples(self) -> dict[str, Tensor]:
        """Constrained posterior draws, ``{site: (num_chains, num_samples, *shape)}``; made when first asked for."""
        self.ensure_judged()

        return self._samples

    def leap_in(self, num_steps: int) -> AnyLeap:
        """The trained leap in so many steps; a copy of the flow learns them when they are first asked for."""
        check_powers_of_two({"num_steps": num_steps})
        self.ensure_judged()
        if num_steps == self.settings.num_steps:
            return self.leap
        if num_steps not in self.few_steps:
            self.few_steps[num_steps] = self.recipe.with_steps(num_steps)

        return self.few_steps[num_steps]

    def draw(self, num_draws: int, num_steps: int | None = None) -> WeightedDraws:
        """Fresh weighted draws, which become no part of the fit.

        Arguments:
            num_draws: How many.
            num_steps: Steps of a draw, a power of two; default: as the posterior draws were made.
        """
        draws = way_of(self, num_steps)(num_draws)

        return WeightedDraws(self.constrain(draws.z), draws.log_weight, draws.log_prob, draws.log_abs_det, draws.z)

    def keep(self, draws: PosteriorDraws) -> None:
        """Make these the posterior draws."""
        if draws is self._draws:
            return
        self._draws, self.forgotten = draws.after_search(self.recipe.found), None
        if self._held is not None and self._held[1].check is not None:
            evidence = replace(self._draws.evidence, bridge_sampling=self._held[1].check)
            self._draws = replace(self._draws, evidence=evidence)
        self._samples = by_chain(self.constrain(draws.z), self.settings.num_chains)

    def _judge(self, leap: AnyLeap) -> PosteriorDraws:
        """Draws of a leap and the verdict on its weights."""
        settings, found = self.settings, self.recipe.found
        if settings.correction == "none" and is_bijective(leap):
            # Base draws for necks are right by their weights only.
            leap = leap.plain

        return draw_in_time(
            leap,
            self.target,
            settings.num_chains,
            settings.num_samples,
            settings.enough(self.target.dim),
            self._deadline if found else math.inf,
            self._per_draw,
            correction=settings.correction,
            check=EvidenceCheck(found.exploration.log_evidence, found.exploration.std_error) if found else None,
            improper_sites=self.model_target.improper_sites,
            reasons=self.objections(),
            parts=found.parts if found else (),
            particles=found.exploration.z if found else None,
            necks=self.recipe.necks,
        )

    def objections(self) -> tuple[Reason, ...]:
        """What speaks against draws and evidence, whatever their weights."""
        found = self.recipe.found
        in_time = partial(num_in_time, deadline=self._deadline, per_draw=self._per_draw)
        reasons = objections_to(self.leap, self.target, self.given, found, in_time)
        reasons += broken_symmetries(self.leap, self.target, as_target(self.given), self.settings.symmetries, in_time)
        if found is None or found.given is None or found.progress:
            return reasons
        if self._held is None or self._held[0] is not self.leap:
            self._held = self.leap, hold_against(self.leap, self.target, found.given, found.exploration)

        return (*self._held[1].reasons, *reasons)

    def agreement(self) -> Agreement | None:
        """How the flow and draws that were given in the place of an exploration agree; None where there are none."""
        found = self.recipe.found
        if found is None or found.given is None or not self.leap.can_invert:
            return None
        self.ensure_judged()
        z = found.given.z
        with torch.random.fork_rng(devices=[z.device] if z.device.type == "cuda" else []):
            own = weigh(self.leap, self.target, max(_MIN_CHECK_DRAWS, len(self.draws.z)))
        theirs = log_weights_at(self.leap, self.target, z)
        ours = {name: value.flatten(0, 1) for name, value in self.samples.items()}
        # In the coordinates of the fit, where components that may trade places are put back at random for both.
        parameters = parameter_errors(ours, self.constrain(z))

        agreement = compare_with_reference(own.log_weight, theirs, parameters)

        return agreement.with_objections(found.given.stuck, self._lacking_copies(found.given.kept))

    def _lacking_copies(self, kept: tuple[int, ...]) -> str:
        """A sentence on copies that given draws lack, where the fit looks at one for all; or nothing.

        Arguments:
            kept: The chains that are left, where some were left out.
        """
        if self.drawn is None:
            return ""
        z = self.drawn.by_chain[list(kept)].flatten(0, 1) if kept else self.drawn.z
        z, given = z.to(dtype=self.target.dtype, device=self.target.device), as_target(self.given)
        if self.target.standardized != given.standardized:
            z = given.other_coordinates(z)[1]
        copies = copies_of(self.target, z, len(kept) or self.drawn.num_chains)

        return "" if copies is None else copies.sentence()

    # ---- from the sampler's coordinates to the user's sites ----

    @property
    def model_target(self) -> Any:
        """The target in the coordinates that the model's sites have."""
        return self.target.unordered

    def constrain(self, z: Tensor) -> dict[str, Tensor]:
        """Draws by site, ``(B, D)`` to ``{site: (B, *shape)}``."""
        return by_draw(self.model_target.constrain, self.model_target, self.target.to_target(z))

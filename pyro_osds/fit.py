"""One fit: a posterior on its way from a density to a trained leap, its draws and the verdict on them.

Everything that belongs to one set of model arguments is here; :class:`pyro_osds.OSDS` makes a new one for others.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_osds.arguments import check_powers_of_two
from pyro_osds.escalate import Escalation
from pyro_osds.evidence import EvidenceCheck
from pyro_osds.exchange import OrderedTarget
from pyro_osds.leap import Leap
from pyro_osds.point import PointLeap, PointRecipe, PointTrainer
from pyro_osds.posterior import PosteriorDraws, bridge_posterior, draw_posterior
from pyro_osds.recipe import Recipe
from pyro_osds.settings import Settings
from pyro_osds.survey import survey
from pyro_osds.train import Trainer
from pyro_osds.velocity import VelocityLeap, VelocityTrainer

AnyLeap = Leap | VelocityLeap | PointLeap
AnyTrainer = Trainer | VelocityTrainer | PointTrainer

_CHUNK_SIZE = 2048


class Fit:
    """A posterior that is explored when the fit is made, and trained, drawn from and judged when it is asked to.

    Arguments:
        target: The user's posterior, as a target.
        settings: How to fit.
        starts: Unconstrained points to look around first, ``(S, D)``.
        deadline: Time of ``time.perf_counter`` after which no more training begins.

    Example:
        >>> from pyro_osds.target import FunctionTarget
        >>> torch.manual_seed(0) and None
        >>> normal = FunctionTarget(lambda z: -0.5 * z.square().sum(-1), dim=2)
        >>> fit = Fit(normal, Settings(disable_progbar=True))
        >>> fit.run()
        >>> print(f"{fit.draws.evidence.log_evidence:.2f}")  # exact: log(2 pi) = 1.84
        1.84
    """

    def __init__(
        self, target: Any, settings: Settings, starts: Tensor | None = None, deadline: float = math.inf
    ) -> None:
        start = time.perf_counter()
        self.settings = settings
        self.given = target
        self.recipe: Recipe | PointRecipe
        self._deadline = deadline
        if target.dim == 0:
            self.recipe, self.target = PointRecipe(target), target
        else:
            vectorized = getattr(target, "vectorized", True)
            found = survey(target, settings.particles(vectorized), starts=starts)
            self.target = found.target
            groups = [site.stop - site.start for site in getattr(self.target, "sites", ())]
            budget = settings.budget(vectorized, deadline)
            self.recipe = Recipe(found, budget=budget, groups=groups, **settings.recipe_options)
        self.trainer: AnyTrainer = self.recipe.trainer
        self.leap: AnyLeap = self.trainer.leap
        self.run_report: tuple[str, ...] = ()
        self.seconds = {"training_time": 0.0, "sampling_time": 0.0, "escalation_time": 0.0}
        self._few_steps: dict[int, AnyLeap] = {}
        self._draws: PosteriorDraws | None = None
        self._samples: dict[str, Tensor] = {}
        self.seconds["exploration_time"] = time.perf_counter() - start

    # ---- training ----

    def run(self) -> None:
        """Train, draw, judge, and climb further rungs while the verdict is bad."""
        start = time.perf_counter()
        self.recipe.run()
        self.trainer = self.recipe.trainer
        self.leap = self.trainer.leap
        self.seconds["training_time"] = time.perf_counter() - start
        if isinstance(self.recipe, Recipe) and self.settings.escalate:
            self._escalate(self.recipe)

    def step(self) -> float:
        """One optimiser step; the loss, nats."""
        self._draws, self._few_steps = None, {}

        return self.trainer.step()

    def _escalate(self, recipe: Recipe) -> None:
        """Climb the rungs that the verdict asks for; Ctrl-C keeps what the last one gave."""

        def keep(draws: PosteriorDraws, report: str) -> None:
            self.trainer, self.leap = recipe.trainer, recipe.trainer.leap
            self.run_report += (report,)
            self._keep(draws)

        def walk(leap: Leap, judged: PosteriorDraws) -> PosteriorDraws:
            chains = self.settings.num_chains, self.settings.num_samples
            return bridge_posterior(leap, self.target, *chains, judged, self.improper_sites, self._other_reasons())

        start = time.perf_counter()
        # No rung cures a density without an integral.
        deadline = -math.inf if self._other_reasons() else self._deadline
        try:
            Escalation(recipe, self._judge, walk, deadline).climb(self.draws, keep)
        except KeyboardInterrupt:
            warnings.warn("Escalation was interrupted; the last verdict stands.", stacklevel=5)
        self.seconds["escalation_time"] = time.perf_counter() - start

    # ---- draws ----

    @property
    def draws(self) -> PosteriorDraws:
        """The posterior draws of the present weights, made when first asked for."""
        if self._draws is None:
            start = time.perf_counter()
            self._keep(self._judge(self.settle()))
            self.seconds["sampling_time"] = time.perf_counter() - start
        assert self._draws is not None

        return self._draws

    def settle(self) -> AnyLeap:
        """The leap with the present weights; one that was stepped by hand takes the average of its weights."""
        if self._draws is None:
            self.leap = self.trainer.leap if self.trainer.history.elbo else self.trainer.averaged()

        return self.leap

    def forget_draws(self) -> None:
        """Make fresh draws when next asked for."""
        self._draws = None

    @property
    def samples(self) -> dict[str, Tensor]:
        """Constrained posterior draws, ``{site: (num_chains, num_samples, *shape)}``."""
        _ = self.draws

        return self._samples

    def leap_in(self, num_steps: int) -> AnyLeap:
        """The trained leap in so many steps; a copy of the flow learns them when they are first asked for."""
        check_powers_of_two({"num_steps": num_steps})
        _ = self.draws
        if num_steps == self.settings.num_steps:
            return self.leap
        if num_steps not in self._few_steps:
            self._few_steps[num_steps] = self.recipe.with_steps(num_steps)

        return self._few_steps[num_steps]

    def _keep(self, draws: PosteriorDraws) -> None:
        """Make these the posterior draws."""
        self._draws = draws
        self._samples = self.by_chain(self.constrain(draws.z))

    def _judge(self, leap: AnyLeap) -> PosteriorDraws:
        """Draws of a leap and the verdict on its weights."""
        settings, found = self.settings, self.recipe.found
        vectorized = getattr(self.target, "vectorized", True)

        return draw_posterior(
            leap,
            self.target,
            settings.num_chains,
            settings.num_samples,
            settings.correction,
            EvidenceCheck(found.exploration.log_evidence, found.exploration.std_error) if found else None,
            self.improper_sites,
            reasons=self._other_reasons(),
            **({} if vectorized else {"max_draws": settings.num_chains * settings.num_samples}),
        )

    # ---- what the verdict must know beside the weights ----

    @property
    def improper_sites(self) -> Sequence[str]:
        """Latent sites whose prior has no integral."""
        return getattr(self.model_target, "improper_sites", ())

    def _other_reasons(self) -> tuple[str, ...]:
        """What speaks against any evidence, whatever its weights."""
        return (*self._endless_reasons(), *self._volume_reasons())

    def _endless_reasons(self) -> tuple[str, ...]:
        found = self.recipe.found
        if found is None or not found.endless:
            return ()
        sites = getattr(self.model_target, "sites", ())
        names = [site.name for site in sites if any(site.start <= index < site.stop for index in found.endless)]
        where = f"site {', '.join(map(repr, names))}" if names else f"coordinate {', '.join(map(str, found.endless))}"

        return (
            f"The posterior density does not fall off far out along {where}, so it has no integral and neither draws "
            "nor evidence mean anything. Give the model a proper prior, and check its factors.",
        )

    def _volume_reasons(self) -> tuple[str, ...]:
        """Why the leap's volume is not to be trusted, if it is not."""
        if not isinstance(self.leap, VelocityLeap):
            return ()
        share = self.leap.fold_share()

        return (
            f"The velocity network is no bijection (negative determinant at {share:.0%} of draws) and its volume is "
            f"{self.leap.volume}: its weights are no bound and count folds twice. Use network='coupling'.",
        )

    # ---- from the sampler's coordinates to the user's sites ----

    @property
    def model_target(self) -> Any:
        """The target in the coordinates that the model's sites have."""
        return self.target.target if isinstance(self.target, OrderedTarget) else self.target

    def constrain(self, z: Tensor) -> dict[str, Tensor]:
        """Draws by site, ``(B, D)`` to ``{site: (B, *shape)}``."""
        return self.in_chunks(self.model_target.constrain, self.in_model(z))

    def in_model(self, z: Tensor) -> Tensor:
        """Draws in the coordinates of the model target, ``(B, D) -> (B, D)``."""
        return self.target.to_target(z) if isinstance(self.target, OrderedTarget) else z

    def in_chunks(self, function: Callable[[Tensor], dict[str, Tensor]], z: Tensor) -> dict[str, Tensor]:
        """What a function makes of draws, some thousand at a time."""
        with torch.no_grad():
            parts = [function(chunk) for chunk in z.split(_CHUNK_SIZE)]

        return {name: torch.cat([part[name] for part in parts]).detach() for name in parts[0]}

    def by_chain(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """``(num_chains * num_samples, ...)`` to ``(num_chains, num_samples, ...)``."""
        chains = self.settings.num_chains, self.settings.num_samples

        return {name: value.unflatten(0, chains) for name, value in values.items()}

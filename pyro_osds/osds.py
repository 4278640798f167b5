"""The sampler as a user sees it: put together here, explained in the rooms below."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import init_to_uniform
from pyro.infer.mcmc.util import diagnostics, print_summary, select_samples
from torch import Tensor

from pyro_osds.evidence import Evidence, EvidenceCheck
from pyro_osds.importance import WeightedDraws, weigh
from pyro_osds.inference_data import to_inference_data
from pyro_osds.leap import Leap
from pyro_osds.model import ModelTarget
from pyro_osds.posterior import CORRECTIONS, PosteriorDraws, draw_posterior
from pyro_osds.recipe import LEAN, NETWORKS, RECIPES, FlowSize, Recipe
from pyro_osds.survey import survey
from pyro_osds.target import FunctionTarget, NotFiniteError
from pyro_osds.train import Budget, Trainer
from pyro_osds.velocity import VOLUMES, VelocityLeap, VelocityTrainer

_CHUNK_SIZE = 2048


class OSDS:
    """One-step diffusion sampler: a Pyro model in; posterior draws, log evidence and InferenceData out.

    Stands where ``MCMC(NUTS(model), ...)`` stood. ``run`` explores the posterior, trains a flow that leaps from noise
    to the posterior in one network evaluation, draws, weighs the draws exactly and judges the result.

    Main arguments:
        model: A Pyro model.
        num_samples: Posterior draws of each chain.
        num_chains: Chains of independence Metropolis-Hastings; they share one flow.
        num_steps: Network evaluations per draw.
        disable_progbar: Whether to hide the progress bar.

    Other Arguments:
        initial_params: Unconstrained values by site (:meth:`from_log_prob`: a tensor ``(D,)`` or ``(S, D)``) to look
            around first, where the prior cannot be sampled.
        init_strategy: Pyro's init strategy for the first run of the model.
        max_plate_nesting: If given, plates nested deeper are an error.
        transforms: Constrained-to-unconstrained transforms by site.
        correction: ``"imh"``, ``"psis"`` or ``"none"``: how draws of the flow become posterior draws.
        num_iterations: Optimiser steps at most; training stops early when it is good enough or no longer improves.
        batch_size: Draws per optimiser step.
        learning_rate: Peak learning rate.
        num_particles: Particles on each of eight islands during exploration.
        recipe: What runs when: ``"auto"``, ``"calibrate"``, ``"cover"`` or ``"distill"``; see ``pyro_osds.recipe``.
        num_time_steps: Steps of the finest grid that ``"distill"`` and the velocity network learn, a power of two.
        network: ``"coupling"``, bijective and exact, or ``"velocity"``, the paper's free-form network.
        volume: With the velocity network, ``"exact"`` or ``"published"``: how its stretch of space is measured.
        num_blocks: Coupling blocks of the flow; default: by the recipe, more where few do not suffice.
        hidden_features: Width of the networks; default: by the recipe.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> pyro.set_rng_seed(0)
        >>> osds = OSDS(model, num_samples=250, disable_progbar=True)
        >>> osds.run(torch.tensor([1.2, 0.4, 2.1, 1.7, 0.9]))
        >>> print(f"{osds.log_evidence:.2f}")  # exact: -7.19
        -7.19
    """

    def __init__(
        self,
        model: Callable[..., Any],
        num_samples: int = 1000,
        *,
        num_chains: int = 4,
        num_steps: int = 1,
        disable_progbar: bool = False,
        initial_params: Mapping[str, Tensor] | Tensor | None = None,
        init_strategy: Callable[..., Any] = init_to_uniform,
        max_plate_nesting: int | None = None,
        transforms: Mapping[str, Any] | None = None,
        correction: str = "imh",
        num_iterations: int = 1000,
        batch_size: int = 256,
        learning_rate: float = 1e-2,
        num_particles: int = 64,
        recipe: str = "auto",
        num_time_steps: int = 16,
        network: str = "coupling",
        volume: str = "exact",
        num_blocks: int | None = None,
        hidden_features: int | None = None,
    ) -> None:
        if not callable(model):
            raise TypeError(f"model must be callable, got {type(model).__name__}; pass the model, not its result.")
        counts = {
            "num_samples": num_samples,
            "num_chains": num_chains,
            "num_steps": num_steps,
            "num_iterations": num_iterations,
            "batch_size": batch_size,
            "num_particles": num_particles,
            "num_time_steps": num_time_steps,
            "num_blocks": 1 if num_blocks is None else num_blocks,
            "hidden_features": 1 if hidden_features is None else hidden_features,
        }
        for name, count in counts.items():
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {count!r}.")
        choices = {
            "correction": (correction, CORRECTIONS),
            "recipe": (recipe, RECIPES),
            "network": (network, NETWORKS),
            "volume": (volume, VOLUMES),
        }
        for name, (choice, allowed) in choices.items():
            if choice not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {choice!r}.")
        for name, count in {"num_steps": num_steps, "num_time_steps": num_time_steps}.items():
            if count & (count - 1):
                raise ValueError(f"{name} must be a power of two, got {count}.")
        self.model = model
        self.num_samples = num_samples
        self.num_chains = num_chains
        self.num_steps = num_steps
        self.disable_progbar = disable_progbar
        self.correction = correction
        self._initial_params = initial_params
        self._num_particles = num_particles
        self._budget = Budget(num_iterations, batch_size, learning_rate)
        size = FlowSize(num_blocks or LEAN.num_blocks, 1, hidden_features or LEAN.hidden_features)
        self._recipe_options = {
            "name": recipe,
            "num_steps": num_steps,
            "num_time_steps": num_time_steps,
            "network": network,
            "volume": volume,
            "size": None if num_blocks is None and hidden_features is None else size,
            "disable_progbar": disable_progbar,
        }
        self._model_options = {
            "init_strategy": init_strategy,
            "max_plate_nesting": max_plate_nesting,
            "transforms": transforms,
        }
        self._make_target: Callable[..., ModelTarget | FunctionTarget] = self._model_target
        self._args: tuple[Any, ...] = ()
        self._kwargs: dict[str, Any] = {}
        self._trainer: Trainer | VelocityTrainer | None = None
        self._few_steps: dict[int, Leap | VelocityLeap] = {}
        self._posterior: PosteriorDraws | None = None
        self._seconds = {"exploration_time": 0.0, "training_time": 0.0, "sampling_time": 0.0}

    @classmethod
    def from_log_prob(
        cls,
        log_prob_fn: Callable[[Tensor], Tensor],
        dim: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        **options: Any,  # noqa: ANN401 - the same as OSDS
    ) -> OSDS:
        """A sampler for any unnormalised log density on ``R^D``; its draws have the single site ``z``.

        Arguments:
            log_prob_fn: Maps points ``(B, D)`` to log densities ``(B,)``.
            dim: The number of dimensions ``D``.
            dtype: Floating point type of the points.
            device: Device of the points.
            options: As for :class:`OSDS`.

        Example:
            >>> import pyro
            >>> pyro.set_rng_seed(0)
            >>> osds = OSDS.from_log_prob(lambda z: -0.5 * z.square().sum(-1), dim=2, disable_progbar=True)
            >>> osds.run()
            >>> print(f"{osds.log_evidence:.2f}")  # exact: log(2 pi) = 1.84
            1.84
        """
        target = FunctionTarget(log_prob_fn, dim, dtype, device)
        osds = cls(log_prob_fn, **options)
        osds._make_target = lambda: target

        return osds

    # ---- as MCMC and SVI ----

    @poutine.block
    def run(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - the model's own arguments
        """Explore, train, draw, weigh and judge. Ctrl-C during training keeps the best flow so far.

        Arguments:
            args: Positional arguments of the model.
            kwargs: Keyword arguments of the model.

        Raises:
            ValueError: If the model is not supported, or its density is not finite at any start.
        """
        self._set_up(args, kwargs)
        start = time.perf_counter()
        self._recipe.run()
        self._trainer = self._recipe.trainer
        self._seconds["training_time"] = time.perf_counter() - start
        for reason in self.evidence.reasons:
            warnings.warn(reason, stacklevel=3)

    @poutine.block
    def step(self, *args: Any, **kwargs: Any) -> float:  # noqa: ANN401
        """One optimiser step, as ``SVI.step``; the first one explores. Returns the loss, nats.

        The loss is the negative mean log weight of the batch, an upper bound of minus the log evidence on average.
        """
        self._set_up(args, kwargs, keep=True)
        self._posterior = None
        self._few_steps = {}

        return self.trainer.step()

    @poutine.block
    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:  # noqa: ANN401
        """The negative ELBO on a fresh batch, nats, as ``SVI.evaluate_loss``; nothing is trained."""
        self._set_up(args, kwargs, keep=True)

        return self.trainer.evaluate()

    def get_samples(self, num_samples: int | None = None, group_by_chain: bool = False) -> dict[str, Tensor]:
        """Posterior draws by site, as ``MCMC.get_samples``.

        Arguments:
            num_samples: If given, that many draws, resampled with replacement; default: all.
            group_by_chain: Whether to keep the chains apart.

        Returns:
            ``{site: (num_chains * num_samples, *shape)}``, or ``(num_chains, num_samples, *shape)`` by chain.
        """
        return select_samples(self._samples, num_samples, group_by_chain)

    def diagnostics(self) -> dict[str, Any]:
        """``n_eff`` and ``r_hat`` of each site, acceptance rate and (no) divergences of each chain, as MCMC's."""
        acceptance = self._draws.acceptance.mean(1)

        return {
            **diagnostics(self._samples),
            "divergences": {f"chain {chain}": [] for chain in range(self.num_chains)},
            "acceptance rate": {f"chain {chain}": rate.item() for chain, rate in enumerate(acceptance)},
        }

    def summary(self, prob: float = 0.9) -> None:
        """Print MCMC's table, then the log evidence and the verdict.

        Arguments:
            prob: Probability mass of the credible interval.
        """
        print_summary(self._samples, prob)
        evidence = self.evidence
        print(f"log evidence {evidence.log_evidence:.4f} +- {evidence.std_error:.4f}, ELBO {evidence.elbo:.4f}")
        print(
            f"pareto k {evidence.pareto_k:.2f}, effective sample size {evidence.ess:.0f} of {evidence.num_draws} draws"
            f", {'reliable' if evidence.reliable else 'NOT reliable'}"
        )
        for reason in evidence.reasons:
            print(f"- {reason}")

    # ---- draws, evidence, InferenceData ----

    def draw(self, num_draws: int, num_steps: int | None = None) -> WeightedDraws:
        """Fresh weighted draws: one network evaluation each, no retraining.

        Arguments:
            num_draws: How many.
            num_steps: Network evaluations per draw, a power of two; default: as given to ``OSDS``. The first time that
                another number is asked for, a copy of the flow learns it, which takes seconds; with
                ``recipe="distill"`` the flow knows all numbers up to ``num_time_steps``. Weights are exact for any
                number, since every step is a bijection; not so with ``network="velocity"``.

        Returns:
            The draws with their exact weights.

        Raises:
            ValueError: If ``num_draws`` is not positive or ``num_steps`` is no power of two.
        """
        if isinstance(num_draws, bool) or not isinstance(num_draws, int) or num_draws < 1:
            raise ValueError(f"num_draws must be an integer of at least 1, got {num_draws!r}.")
        draws = weigh(self._leap_in(self.num_steps if num_steps is None else num_steps), self._target, num_draws)

        return WeightedDraws(self._constrain(draws.z), draws.log_weight, draws.log_prob, draws.log_abs_det, draws.z)

    def _leap_in(self, num_steps: int) -> Leap | VelocityLeap:
        if (
            isinstance(num_steps, bool)
            or not isinstance(num_steps, int)
            or num_steps < 1
            or num_steps & (num_steps - 1)
        ):
            raise ValueError(f"num_steps must be a power of two, got {num_steps!r}.")
        _ = self._draws
        if num_steps == self.num_steps:
            return self._leap
        if num_steps not in self._few_steps:
            self._few_steps[num_steps] = self._recipe.with_steps(num_steps)

        return self._few_steps[num_steps]

    @property
    def evidence(self) -> Evidence:
        """The log evidence with its standard error and the verdict, from fresh draws."""
        return self._draws.evidence

    @property
    def log_evidence(self) -> float:
        """Log evidence, nats."""
        return self.evidence.log_evidence

    @property
    def log_evidence_se(self) -> float:
        """Standard error of the log evidence, nats."""
        return self.evidence.std_error

    def to_inference_data(self, *, log_likelihood: bool = True) -> Any:  # noqa: ANN401 - depends on ArviZ's version
        """ArviZ InferenceData (DataTree from ArviZ 1.0 on).

        Groups: ``posterior``, ``sample_stats``, ``log_likelihood``, ``observed_data``, and two of our own: ``fit`` (the
        evidence) and ``fit_stats`` (training, by round and by step).

        Arguments:
            log_likelihood: Whether to compute the pointwise log likelihood, ``num_chains * num_samples`` values for
                each observation.
        """
        draws, target = self._draws, self._target
        sampled = {"posterior": dict(self._samples), "sample_stats": self._sample_stats()}
        observed: dict[str, Tensor] = {}
        dims: dict[str, tuple[str, ...]] = {}
        if isinstance(target, ModelTarget):
            sampled["posterior"] |= self._by_chain(self._in_chunks(target.deterministics, draws.z))
            if log_likelihood:
                sampled["log_likelihood"] = self._by_chain(self._in_chunks(target.log_likelihood, draws.z))
            observed, dims = target.observed, target.dims

        return to_inference_data(
            {group: _arrays(values) for group, values in sampled.items()},
            {"observed_data": _arrays(observed), "fit": self._fit(), "fit_stats": self._fit_stats()},
            {
                "loss": ("step",),
                **{name: ("step",) for name in self.trainer.history.terms},
                **{f"teacher_{name}": (f"{name}_step",) for name in self._recipe.teacher_history.terms},
                "gap": ("round",),
                "step": ("round",),
                "elbo": ("round",),
                "ess": ("round",),
                "pareto_k": ("round",),
                **dims,
            },
            {**self._seconds, "log_evidence": self.log_evidence, "num_steps": self.num_steps},
        )

    # ---- assembly ----

    @property
    def trainer(self) -> Trainer | VelocityTrainer:
        """The trainer of the last run, with its history.

        Raises:
            RuntimeError: Before the first ``run`` or ``step``.
        """
        if self._trainer is None:
            raise RuntimeError("There are no results yet: call run(...) with the model's arguments first.")
        return self._trainer

    def _model_target(self, *args: Any, **kwargs: Any) -> ModelTarget:  # noqa: ANN401
        return ModelTarget(self.model, args, kwargs, **self._model_options)

    def _set_up(self, args: tuple[Any, ...], kwargs: dict[str, Any], keep: bool = False) -> None:
        """Target, survey, leap and trainer for these arguments; nothing is replaced before all of it succeeded."""
        if keep and self._trainer is not None and _same((args, kwargs), (self._args, self._kwargs)):
            return
        start = time.perf_counter()
        target = self._make_target(*args, **kwargs)
        budget, num_particles = self._budget, self._num_particles
        if not getattr(target, "vectorized", True):
            # Point by point, every density costs about a millisecond: a smaller run that still ends before NUTS does.
            budget = replace(budget, batch_size=32, first_round=150, num_iterations=150, num_validation_draws=256)
            num_particles = 16
        try:
            found = survey(target, num_particles, starts=self._starts(target))
        except NotFiniteError as error:
            sites = target.not_finite_sites(error.point) if isinstance(target, ModelTarget) else []
            named = f" Not finite there: site {', '.join(map(repr, sites))}." if sites else ""
            raise ValueError(f"{error}{named} Check the model for overflows, or start it elsewhere.") from error
        target = found.target
        groups = [site.stop - site.start for site in target.sites] if isinstance(target, ModelTarget) else ()
        self._recipe = Recipe(found, budget=budget, groups=groups, **self._recipe_options)
        self._trainer = self._recipe.trainer
        self._survey, self._target, self._leap = found, target, self._trainer.leap
        self._few_steps = {}
        self._args, self._kwargs, self._posterior = args, kwargs, None
        self._seconds["exploration_time"] = time.perf_counter() - start

    def _starts(self, target: ModelTarget | FunctionTarget) -> Tensor | None:
        params = self._initial_params
        if params is None:
            return None
        if isinstance(params, Mapping):
            if not isinstance(target, ModelTarget):
                raise ValueError("initial_params must be a tensor (D,) or (S, D) for a log density; got a mapping.")
            params = target.unconstrain(params)
        starts = torch.as_tensor(params)
        starts = starts[None] if starts.dim() == 1 else starts
        if starts.shape[1:] != (target.dim,):
            raise ValueError(f"initial_params must end in {target.dim} coordinates; got shape {tuple(starts.shape)}.")

        return starts

    @property
    def _draws(self) -> PosteriorDraws:
        """The posterior draws of the present weights, made when first asked for."""
        trainer = self.trainer
        if self._posterior is None:
            start = time.perf_counter()
            exploration = self._survey.exploration
            # A flow that was stepped by hand is judged by the average of its weights, as one trained by run.
            self._leap = trainer.leap if trainer.history.elbo else trainer.averaged()
            num_proposals = self.num_chains * self.num_samples
            vectorized = getattr(self._target, "vectorized", True)
            self._posterior = draw_posterior(
                self._leap,
                self._target,
                self.num_chains,
                self.num_samples,
                self.correction,
                EvidenceCheck(exploration.log_evidence, exploration.std_error),
                getattr(self._target, "improper_sites", ()),
                reasons=self._volume_reasons(),
                **({} if vectorized else {"max_draws": num_proposals}),
            )
            self._samples_by_chain = self._by_chain(self._constrain(self._posterior.z))
            self._seconds["sampling_time"] = time.perf_counter() - start

        return self._posterior

    def _volume_reasons(self) -> tuple[str, ...]:
        """Why the leap's volume is not to be trusted, if it is not."""
        if not isinstance(self._leap, VelocityLeap):
            return ()
        share = self._leap.fold_share()

        return (
            f"The velocity network is no bijection (negative determinant at {share:.0%} of draws) and its volume is "
            f"{self._leap.volume}: its weights are no bound and count folds twice. Use network='coupling'.",
        )

    @property
    def _samples(self) -> dict[str, Tensor]:
        """Constrained posterior draws, ``{site: (num_chains, num_samples, *shape)}``."""
        _ = self._draws

        return self._samples_by_chain

    def _constrain(self, z: Tensor) -> dict[str, Tensor]:
        return self._in_chunks(self._target.constrain, z)

    def _in_chunks(self, function: Callable[[Tensor], dict[str, Tensor]], z: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            parts = [function(chunk) for chunk in z.split(_CHUNK_SIZE)]

        return {name: torch.cat([part[name] for part in parts]).detach() for name in parts[0]}

    def _by_chain(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.unflatten(0, (self.num_chains, self.num_samples)) for name, value in values.items()}

    def _sample_stats(self) -> dict[str, Tensor]:
        draws = self._draws

        return {
            "lp": draws.proposals.log_prob[draws.index],
            "log_weight": draws.proposals.log_weight[draws.index],
            "acceptance_rate": draws.acceptance,
            "diverging": torch.zeros_like(draws.index, dtype=torch.bool),
            "log_marginal_likelihood": torch.full((self.num_chains,), self.log_evidence, dtype=torch.float64),
        }

    def _fit(self) -> dict[str, Any]:
        evidence = self.evidence
        check = evidence.check or EvidenceCheck(np.nan, np.nan)

        return {
            "log_evidence": evidence.log_evidence,
            "std_error": evidence.std_error,
            "elbo": evidence.elbo,
            "ess": evidence.ess,
            "pareto_k": evidence.pareto_k,
            "num_draws": evidence.num_draws,
            "reliable": int(evidence.reliable),
            "reasons": "\n".join(evidence.reasons),
            "exploration_log_evidence": check.log_evidence,
            "exploration_std_error": check.std_error,
            "num_modes": self._survey.modes.count,
            "recipe": self._recipe.name,
            "num_base_components": self._survey.base.num_components,
        }

    def _fit_stats(self) -> dict[str, Any]:
        history, taught = self.trainer.history, self._recipe.teacher_history

        return {
            "loss": np.asarray(history.loss),
            **{name: np.asarray(values) for name, values in history.terms.items()},
            **{f"teacher_{name}": np.asarray(values) for name, values in taught.terms.items()},
            "gap": np.asarray(history.gap),
            "step": np.asarray(history.step),
            "elbo": np.asarray(history.elbo),
            "ess": np.asarray(history.ess),
            "pareto_k": np.asarray(history.pareto_k),
            "num_skipped": history.num_skipped,
        }


def _arrays(values: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: torch.as_tensor(value).detach().cpu().numpy() for name, value in values.items()}


def _same(left: Any, right: Any) -> bool:  # noqa: ANN401
    """Whether two sets of model arguments are the same, tensors by value."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left is right or (
            left.shape == right.shape and left.dtype == right.dtype and bool((left == right).all())
        )
    if isinstance(left, (tuple, list)) and isinstance(right, (tuple, list)):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)

    return left is right

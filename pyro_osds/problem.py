"""What is fitted: a Pyro model, a potential function or a log density, and how each becomes a target.

The only module that knows the Pyro front-end. A problem is what the user gave and how its density is to be evaluated;
given the arguments of a run it makes a target, and it says of itself what a file must know to tell it from others.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pyro.infer import MCMC, SVI
from pyro.infer import Predictive as PyroPredictive
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.initialization import init_to_uniform
from pyro.infer.elbo import ELBO
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor, nn

from pyro_osds.choices import Capture, Vectorize
from pyro_osds.model import (
    CAPTURE,
    TEMPERATURES,
    VECTORIZE,
    ModelTarget,
    PotentialTarget,
    Predictive,
    one_point,
    prior_predictive,
    unchanging,
)
from pyro_osds.runtime.arguments import check_choices, check_transforms, constant_arguments, plain, wrong_start
from pyro_osds.runtime.options import short
from pyro_osds.target import FunctionTarget, NotFiniteError, Target


@dataclass(frozen=True)
class Problem(ABC):
    """What is fitted; all that only a Pyro model can do says so here.

    Arguments:
        function: What the user gave.
        initial_params: Unconstrained points to look around first, by site or as a tensor ``(D,)`` or ``(S, D)``.
    """

    kind: ClassVar[str]

    function: Callable[..., Any]
    initial_params: Any = None

    @abstractmethod
    def target(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Target:
        """The target for these arguments of a run."""

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """What a file keeps: the kind, and the options that plain values can say."""

    @property
    def model(self) -> Callable[..., Any] | None:
        """The Pyro model, if it is one."""
        return None

    def starts(self, target: Any) -> Tensor | None:
        """Unconstrained points to look around first, ``(S, D)``, or None.

        Raises:
            ValueError: If ``initial_params`` do not fit the target.
        """
        params = self.initial_params
        if params is None:
            return self._default_start(target)
        if isinstance(params, Mapping):
            return self._unconstrained(target, params)
        starts = torch.as_tensor(params)
        starts = starts[None] if starts.dim() == 1 else starts
        if starts.shape[1:] != (target.dim,):
            raise ValueError(wrong_start(target, tuple(starts.shape)))

        return starts

    def _default_start(self, target: Any) -> Tensor | None:
        return None

    def _unconstrained(self, target: Any, params: Mapping[str, Tensor]) -> Tensor:
        return target.unconstrain(params)

    def not_finite(self, error: NotFiniteError, target: Any) -> ValueError:
        """The error for a target that is finite nowhere, with the sites that are to blame where they can be told."""
        return ValueError(f"{error} Check the model for overflows, or start it elsewhere.")

    def check_model(self, what: str) -> None:
        """Refuse what needs the sites of a Pyro model.

        Raises:
            ValueError: If this is none.
        """
        raise ValueError(f"{what} needs a Pyro model; a log density or a potential has no sites. Use draw instead.")

    def predictive(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Predictive:
        """A source of observations for these arguments of the model.

        Raises:
            ValueError: If this is no Pyro model.
        """
        raise ValueError("Predictions need a Pyro model; this sampler has a density only.")

    def prior_predictive(self, num_draws: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        """Draws of all sites from the prior, ``{site: (num_draws, *shape)}``.

        Raises:
            ValueError: If this is no Pyro model.
        """
        raise ValueError("prior_predictive needs a Pyro model; this sampler has a density only.")

    def constant_data(self, target: Any) -> dict[str, Tensor]:
        """Arguments of the model that are tensors and not observed, by name."""
        return {}

    def infer_discrete(
        self, target: Any, samples: Mapping[str, Tensor], count: int, temperature: int, update: Callable[[], Any]
    ) -> dict[str, Tensor]:
        """Discrete latents of some draws, drawn back, ``{site: (num_draws, *shape)}``.

        Arguments:
            target: The target of the draws.
            samples: Continuous latents by site, ``(num_draws, *shape)``; none where all latents are discrete.
            count: How many draws.
            temperature: 1 for draws, 0 for the most probable values.
            update: Called after each draw.

        Raises:
            ValueError: Without discrete latents.
        """
        raise ValueError("infer_discrete needs a model with discrete latents; all latents are in get_samples().")


@dataclass(frozen=True)
class ModelProblem(Problem):
    """A Pyro model; the arguments are those of :class:`pyro_osds.OSDS`."""

    kind = "model"

    init_strategy: Callable[..., Any] = init_to_uniform
    max_plate_nesting: int | None = None
    transforms: Mapping[str, Any] | None = None
    vectorize: Vectorize = "auto"
    capture: Capture = "auto"

    @property
    def model(self) -> Callable[..., Any]:
        """The Pyro model."""
        return self.function

    def target(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ModelTarget:
        """The posterior of the model with these arguments."""
        return ModelTarget(
            self.function,
            args,
            kwargs,
            transforms=self.transforms,
            vectorize=self.vectorize,
            capture=self.capture,
            init_strategy=self.init_strategy,
            max_plate_nesting=self.max_plate_nesting,
        )

    def description(self) -> dict[str, Any]:
        """Kind, options, and the sites with transforms of their own, which a file cannot hold."""
        options = {
            name: getattr(self, name) for name in ("initial_params", "vectorize", "capture", "max_plate_nesting")
        }

        return {"kind": self.kind, "options": options, "transforms": sorted(self.transforms or {})}

    def _default_start(self, target: ModelTarget) -> Tensor | None:
        # A strategy that the user chose knows a good place; the default is as good as the origin.
        return None if self.init_strategy is init_to_uniform else target.start[None]

    def not_finite(self, error: NotFiniteError, target: ModelTarget) -> ValueError:
        """The error names the sites that are not finite."""
        return ValueError(f"{error} {target.why_not_finite(error.point)}")

    def check_model(self, what: str) -> None:
        """It is one."""

    def predictive(self, target: ModelTarget, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Predictive:
        """Runs of the model with its observations drawn."""
        return Predictive(target, args, kwargs)

    def prior_predictive(self, num_draws: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        """Runs of the model with everything drawn."""
        return prior_predictive(unchanging(self.function, args, kwargs), num_draws)

    def constant_data(self, target: ModelTarget) -> dict[str, Tensor]:
        """Arguments that are tensors and not observed."""
        return constant_arguments(target.model, target.args, target.kwargs, target.observed)

    def infer_discrete(
        self, target: ModelTarget, samples: Mapping[str, Tensor], count: int, temperature: int, update: Any
    ) -> dict[str, Tensor]:
        """One run of the model for each draw."""
        if not target.discrete_sites:
            return super().infer_discrete(target, samples, count, temperature, update)
        check_choices({"temperature": (temperature, TEMPERATURES)})
        decoded = []
        for i in range(count):
            decoded.append(target.infer_discrete({name: value[i] for name, value in samples.items()}, temperature))
            update()

        return {name: torch.stack([draw[name] for draw in decoded]) for name in target.discrete_sites}


@dataclass(frozen=True)
class PotentialProblem(Problem):
    """A potential function, minus a log density, of unconstrained values by site, as ``HMC`` takes it."""

    kind = "potential_fn"

    num_chains: int = 1
    transforms: Mapping[str, Any] | None = None
    vectorize: Vectorize = "auto"
    capture: Capture = "auto"

    def target(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> PotentialTarget:
        """The density of the potential, which takes no arguments.

        Raises:
            ValueError: If there are arguments.
        """
        if args or kwargs:
            raise ValueError(
                "A potential_fn takes no arguments besides the values of its sites: call run() without any."
            )

        return PotentialTarget(
            self.function,
            one_point(self.function, self.initial_params, self.num_chains),
            transforms=self.transforms,
            vectorize=self.vectorize,
            capture=self.capture,
        )

    def description(self) -> dict[str, Any]:
        """Kind, options, and the sites with transforms of their own, which a file cannot hold."""
        options = {name: getattr(self, name) for name in ("initial_params", "vectorize", "capture")}

        return {"kind": self.kind, "options": options, "transforms": sorted(self.transforms or {})}


@dataclass(frozen=True)
class DensityProblem(Problem):
    """An unnormalised log density of points ``(B, D)``; its draws have the single site ``z``."""

    kind = "log_prob_fn"

    density: FunctionTarget = field(kw_only=True)

    def target(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> FunctionTarget:
        """The density itself, which takes no arguments.

        Raises:
            ValueError: If there are arguments.
        """
        if args or kwargs:
            raise ValueError(
                "A log density takes no arguments besides its points: call run() without any, and let log_prob_fn know "
                "the data, such as lambda z: log_prob(z, y)."
            )

        return self.density

    def description(self) -> dict[str, Any]:
        """Kind, initial points, and what the points are like."""
        dtype = str(self.density.draw_dtype).removeprefix("torch.")
        shape = {"dim": self.density.dim, "dtype": dtype, "device": str(self.density.device)}

        return {"kind": self.kind, "options": {"initial_params": self.initial_params}, "shape": shape}

    def _unconstrained(self, target: Any, params: Mapping[str, Tensor]) -> Tensor:
        raise ValueError("initial_params must be a tensor (D,) or (S, D) for a log density; got a mapping.")


def problem_of(
    model: Callable[..., Any] | None,
    potential_fn: Callable[..., Any] | None,
    initial_params: Any,
    num_chains: int,
    init_strategy: Callable[..., Any],
    max_plate_nesting: int | None,
    **evaluation: Any,
) -> Problem:
    """The problem behind the arguments of :class:`pyro_osds.OSDS`, checked before anything runs.

    Arguments:
        model: A Pyro model, or None.
        potential_fn: A potential function, or None.
        initial_params: Where to look around first.
        num_chains: Chains, for which ``initial_params`` of a potential may have a leading dimension.
        init_strategy: Pyro's, for models.
        max_plate_nesting: For models.
        evaluation: ``transforms``, ``vectorize`` and ``capture``.

    Raises:
        TypeError: If what was given is not callable.
        ValueError: If there is none, or both, or an option is out of range.
    """
    if (model is None) == (potential_fn is None):
        called = " A model that was called, OSDS(model(y)), returns None: pass OSDS(model), then run(y)."
        raise ValueError(
            f"Give either a model or a potential_fn, not both and not neither.{called if model is None else ''}"
        )
    _check_kind(model)
    for name, given in (("model", model), ("potential_fn", potential_fn)):
        if given is not None and not callable(given):
            got = type(given).__name__
            raise TypeError(f"{name} must be callable, got {got}; pass the {name}, not its result.")
    if not callable(init_strategy):
        raise TypeError(
            f"init_strategy must be one of pyro.infer.autoguide.initialization, such as init_to_median, got "
            f"{init_strategy!r}."
        )
    max_plate_nesting = plain(max_plate_nesting)
    is_count = isinstance(max_plate_nesting, int) and not isinstance(max_plate_nesting, bool) and max_plate_nesting >= 0
    if max_plate_nesting is not None and not is_count:
        raise ValueError(
            f"max_plate_nesting must be the number of plates inside each other, or None, got {max_plate_nesting!r}."
        )
    check_transforms(evaluation["transforms"])
    _check_start(initial_params)
    if potential_fn is not None and not isinstance(initial_params, Mapping):
        raise ValueError(
            "potential_fn needs initial_params, a mapping of unconstrained tensors by site, which says which sites "
            f"there are; got {type(initial_params).__name__}."
        )
    check_choices({"vectorize": (evaluation["vectorize"], VECTORIZE), "capture": (evaluation["capture"], CAPTURE)})
    if potential_fn is not None:
        return PotentialProblem(potential_fn, initial_params, num_chains=num_chains, **evaluation)
    assert model is not None

    return ModelProblem(
        model, initial_params, init_strategy=init_strategy, max_plate_nesting=max_plate_nesting, **evaluation
    )


def _check_kind(model: Any) -> None:
    """Refuse what is called like a model and is none: samplers, guides, losses, distributions, classes, coroutines."""
    got = short(model)
    if isinstance(model, (MCMCKernel, MCMC, SVI, PyroPredictive)) or hasattr(model, "get_samples"):
        raise TypeError(
            f"model must be a Pyro model, got {type(model).__name__}, which is a sampler itself. Pass the model that "
            "it was made of: OSDS(model) stands where MCMC(NUTS(model), ...) stood."
        )
    if isinstance(model, AutoGuide):
        raise TypeError(
            f"model must be a Pyro model, got {got}, which is a guide. Pass the model that it was made for: no guide "
            "is needed, since the flow is one."
        )
    if isinstance(model, (ELBO, torch.distributions.Distribution)):
        what = "a loss" if isinstance(model, ELBO) else "a distribution"
        raise TypeError(
            f"model must be a Pyro model, got {got}, which is {what}. Pass the function that calls pyro.sample."
        )
    if isinstance(model, type):
        what = "a module" if issubclass(model, nn.Module) else "a function"
        raise TypeError(f"model must be {what}, got the class {model.__name__}: pass {model.__name__}(...).")
    function = model.forward if isinstance(model, nn.Module) else model
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        what = "async def" if inspect.iscoroutinefunction(function) else "a yield"
        raise TypeError(
            f"model must run to its end when it is called, got {got} with {what}, of which nothing runs then. Write a "
            "plain function with def and return."
        )


def _check_start(initial_params: Any) -> None:
    """Refuse initial values that are no numbers."""
    values = initial_params if isinstance(initial_params, Mapping) else {"": initial_params}
    for name, value in values.items():
        if value is None and not isinstance(initial_params, Mapping):
            return
        which = f"initial_params[{name!r}]" if isinstance(initial_params, Mapping) else "initial_params"
        try:
            tensor = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"{which} must hold unconstrained numbers, got {type(value).__name__}. Pass a mapping of tensors by "
                'site, such as {"mu": torch.tensor(0.0)}.'
            ) from error
        if not tensor.isfinite().all():
            raise ValueError(
                f"{which} holds a value that is not finite, {tensor[~tensor.isfinite()].reshape(-1)[0].item()}. Pass "
                "unconstrained values, any numbers on the real line: the logarithm, for instance, of a positive one."
            )

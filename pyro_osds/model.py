r"""From a Pyro model to a batched log density: the only room that runs the user's model.

.. math::
    \log \gamma(u) = \sum_{\text{latent } i} \Big[ \log p_i(z_i) + \log \Big| \frac{dz_i}{du_i} \Big| \Big]
        + \sum_{\text{observed } j} \log p_j(y_j), \qquad z_i = T_i(u_i)

:math:`T_i` maps the real line to the support of site *i*. It is looked up while the model runs, so a support may depend
on other latents. The model is written for one draw; :func:`torch.func.vmap` runs it for a batch.
"""

from __future__ import annotations

import copy
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.autoguide.initialization import InitMessenger, init_to_uniform
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import AffineTransform, Transform, biject_to
from torch.overrides import TorchFunctionMode

from pyro_osds.target import log_prob_and_score
from pyro_osds.trace import (
    check_latents,
    check_plates,
    init_anywhere,
    is_improper,
    is_latent,
    is_value,
    joint_dtype,
    loc_scale,
    observed_values,
    outside_support,
    site_dims,
)

_PROTOTYPE_TRIES = 20


class VectorizationWarning(UserWarning):
    """The model cannot be evaluated in batches and runs point by point, which is slow but right."""


@dataclass(frozen=True)
class LatentSite:
    """Where a latent sample site sits in the flat vector ``z``.

    Arguments:
        name: The site's name.
        start: First index of the site in ``z``.
        stop: One past the last index.
        unconstrained_shape: The site's shape on the unconstrained side.
        dtype: Floating point type that the model uses at the site.
    """

    name: str
    start: int
    stop: int
    unconstrained_shape: torch.Size
    dtype: torch.dtype


class _ModelRun(Messenger):
    """One run of the model at given latents, adding up log densities as it goes.

    As the outermost handler it sees each site after plates, masks and scales have been applied to it.
    """

    def __init__(self, unconstrained: Mapping[str, Tensor], to_value: Callable[[Mapping[str, Any]], Transform]) -> None:
        super().__init__()
        self.unconstrained = unconstrained
        self.to_value = to_value
        self.sites: list[Any] = []
        self.log_abs_det: list[Tensor] = []
        self.log_prior: list[Tensor] = []
        self.log_likelihood: dict[str, Tensor] = {}
        self.log_factor: dict[str, Tensor] = {}
        self.values: dict[str, Tensor] = {}
        self.deterministics: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:  # noqa: ANN401 - Pyro's message type is private
        if msg["is_observed"] or isinstance(msg["fn"], _Subsample):
            return
        name = msg["name"]
        if name not in self.unconstrained:
            raise ValueError(
                f"Site {name!r} did not exist when the model was first run: the model's structure changes with its "
                "latent values, so there is no density of fixed dimension. Make the site unconditional."
            )
        transform: Any = self.to_value(msg)
        u = self.unconstrained[name]
        value = transform(u)
        self.sites.append(msg)
        self.values[name] = value
        self.log_abs_det.append(transform.log_abs_det_jacobian(u, value).sum())
        msg["value"] = value
        msg["done"] = True

    def _pyro_post_sample(self, msg: Any) -> None:  # noqa: ANN401
        name, infer = msg["name"], msg["infer"]
        if isinstance(msg["fn"], _Subsample):
            return
        if infer.get("_deterministic"):
            self.deterministics[name] = msg["value"]
            return
        log_prob = scale_and_mask(msg["fn"].log_prob(msg["value"]), msg["scale"], msg["mask"])
        if not msg["is_observed"]:
            self.log_prior.append(log_prob.sum())
        elif infer.get("is_auxiliary"):
            self.log_factor[name] = log_prob
        else:
            self.log_likelihood[name] = log_prob

    def log_densities(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Log prior (with Jacobians) and log likelihood (with factors), two scalars."""
        zero = like.new_zeros(())
        log_prior = sum((term.to(like.dtype) for term in (*self.log_prior, *self.log_abs_det)), zero)
        terms = (*self.log_likelihood.values(), *self.log_factor.values())

        return log_prior, sum((term.sum().to(like.dtype) for term in terms), zero)


class _CholeskyOrNan(TorchFunctionMode):
    """Cholesky factors that are nan where a matrix is not positive definite.

    One such matrix would otherwise raise for the whole batch; as nan it only marks its own point as impossible.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        if func is not torch.linalg.cholesky and func is not torch.cholesky:
            return func(*args, **(kwargs or {}))
        factor, info = torch.linalg.cholesky_ex(*args, **(kwargs or {}))

        return torch.where((info != 0)[..., None, None], torch.nan, factor)


class ModelTarget:
    """The unconstrained posterior of a Pyro model, as a :class:`~pyro_osds.target.Target`.

    Arguments:
        model: A Pyro model; every stochastic site without ``obs=`` is a latent.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        init_strategy: Pyro's init strategy, used for the first run.
        transforms: Constrained-to-unconstrained transforms by site, as in :class:`pyro.infer.MCMC`.
        max_plate_nesting: If given, plates nested deeper than this are an error.

    Raises:
        ValueError: If the model has no latent site, an unsupported one, or an observation outside its support.

    Example:
        >>> import pyro.distributions as dist
        >>> target = ModelTarget(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)))
        >>> target.log_prob(torch.zeros(2, 1))
        tensor([-0.9189, -0.9189])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        init_strategy: Callable[..., Any] = init_to_uniform,
        transforms: Mapping[str, Transform] | None = None,
        max_plate_nesting: int | None = None,
    ) -> None:
        self.model = model
        self.args = args
        self.kwargs = dict(kwargs or {})
        self.init_strategy = init_strategy
        self.transforms = dict(transforms or {})
        self.standardized = False
        trace = self._prototype()
        latents = [site for site in trace.nodes.values() if is_latent(site)]
        check_latents(trace, latents, self.transforms)
        check_plates(trace, max_plate_nesting)
        self._check_observations(trace)
        self.sites = self._layout(latents)
        self.dim = self.sites[-1].stop
        self.device = latents[0]["value"].device
        self.dtype = joint_dtype(trace)
        self.observed = observed_values(trace)
        self.dims = {name: site_dims(site) for name, site in trace.nodes.items() if is_value(site)}
        self.improper_sites = tuple(site["name"] for site in latents if is_improper(site))
        scaled = any(torch.as_tensor(site["scale"]).ne(1).any() for site in latents)
        self.can_sample_prior = not self.improper_sites and not scaled
        self.vectorized = self._check_vectorized()

    # ---- densities ----

    def log_prob(self, z: Tensor) -> Tensor:
        """Log joint density in unconstrained space, ``(B, D) -> (B,)``."""
        log_prior, log_likelihood = self.log_prior_and_likelihood(z)

        return log_prior + log_likelihood

    def log_prior_and_likelihood(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The two terms of the log joint density from one run of the model, ``(B, D) -> (B,), (B,)``."""
        return self._batched(lambda run, row: run.log_densities(row), z)

    def constrain(self, z: Tensor) -> dict[str, Tensor]:
        """Draws at every latent site, ``(B, D)`` to ``{name: (B, *shape)}``."""
        return self._batched(lambda run, _: run.values, z)

    def deterministics(self, z: Tensor) -> dict[str, Tensor]:
        """Values of the ``pyro.deterministic`` sites, ``(B, D)`` to ``{name: (B, *shape)}``."""
        return self._batched(lambda run, _: run.deterministics, z)

    def log_likelihood(self, z: Tensor) -> dict[str, Tensor]:
        """Pointwise log likelihood of the observed sites, ``(B, D)`` to ``{name: (B, *batch_shape)}``."""
        return self._batched(lambda run, _: run.log_likelihood, z)

    def sample_prior(self, num_draws: int) -> Tensor:
        """Unconstrained draws of the model's own prior, ``(num_draws, D)``; rows may hold infinities."""
        rows = [self._flatten(self._trace_prior()) for _ in range(num_draws)]

        return torch.stack(rows)

    def unconstrain(self, values: Mapping[str, Tensor]) -> Tensor:
        """The flat unconstrained vector ``(D,)`` of unconstrained values by site, as ``MCMC``'s ``initial_params``."""
        missing = [site.name for site in self.sites if site.name not in values]
        if missing:
            raise ValueError(f"initial_params lacks the latent sites {missing}; got {sorted(values)}.")

        return torch.cat([torch.as_tensor(values[s.name]).reshape(-1).to(self.dtype) for s in self.sites])

    def not_finite_sites(self, z: Tensor) -> list[str]:
        """Names of the sites whose log density is not finite at one point ``(D,)``."""
        with torch.no_grad(), pyro.validation_enabled(False):
            run = self._run(z)
        terms = {**run.log_likelihood, **run.log_factor}
        names = [name for name, term in terms.items() if not term.sum().isfinite()]
        if not all(term.isfinite() for term in (*run.log_prior, *run.log_abs_det)):
            names = names or [site.name for site in self.sites]

        return names

    def other_coordinates(self, z: Tensor) -> tuple[ModelTarget, Tensor, Tensor]:
        r"""The same posterior with its location-scale sites standardised, or no longer so.

        A centred hierarchy :math:`\theta \sim \mathcal N(\mu, \tau)` with weak data is a funnel; in the coordinates
        :math:`(\theta - \mu) / \tau` it is not. Densities carry the Jacobian, so the evidence is the same.

        Arguments:
            z: Points in the present coordinates, ``(B, D)``.

        Returns:
            The target in the other coordinates, the points there ``(B, D)``, and the log-determinants of the step from
            there back to here, ``(B,)``.
        """
        other = copy.copy(self)
        other.standardized = not self.standardized

        def move(run: _ModelRun, row: Tensor) -> tuple[Tensor, Tensor]:
            log_abs_det, flat = -sum(run.log_abs_det, row.new_zeros(())), []
            for site in run.sites:
                transform = other._to_value(site)
                u = transform.inv(site["value"])
                flat.append(u.reshape(-1).to(row.dtype))
                log_abs_det = log_abs_det + transform.log_abs_det_jacobian(u, site["value"]).sum()
            return torch.cat(flat), log_abs_det

        with torch.no_grad():
            return other, *self._batched(move, z)

    # ---- running the model ----

    def _to_value(self, site: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a Transform, whose inverse torch types loosely
        """The transform from unconstrained coordinates to a site's value, from its distribution in the present run."""
        if site["name"] in self.transforms:
            return self.transforms[site["name"]].inv
        standard = loc_scale(site["fn"]) if self.standardized else None
        if standard is not None:
            return AffineTransform(*standard, event_dim=site["fn"].event_dim)

        return biject_to(site["fn"].support)

    def _layout(self, latents: list[Any]) -> tuple[LatentSite, ...]:
        sites, start = [], 0
        for site in latents:
            value = site["value"]
            shape = self._to_value(site).inv(value).shape
            stop = start + shape.numel()
            sites.append(LatentSite(site["name"], start, stop, shape, value.dtype))
            start = stop

        return tuple(sites)

    def _run(self, z: Tensor) -> _ModelRun:
        unconstrained = {s.name: z[s.start : s.stop].reshape(s.unconstrained_shape).to(s.dtype) for s in self.sites}
        run = _ModelRun(unconstrained, self._to_value)
        with run, _CholeskyOrNan():
            self.model(*self.args, **self.kwargs)

        return run

    def _batched(self, read: Callable[[_ModelRun, Tensor], Any], z: Tensor) -> Any:  # noqa: ANN401
        """What ``read`` takes from a run of the model, stacked over the rows of ``z``."""

        def single(row: Tensor) -> Any:  # noqa: ANN401
            return read(self._run(row), row)

        with pyro.validation_enabled(False):
            if self.vectorized:
                return torch.func.vmap(single, randomness="error")(z)
            return _stack([single(row) for row in z])

    def _check_vectorized(self) -> bool:
        """Whether vmap runs the model and agrees with the Python loop, value and gradient, on a few points."""
        with torch.random.fork_rng(devices=[]):
            z = 0.5 * torch.randn(4, self.dim, dtype=self.dtype).to(self.device)
        self.vectorized = False
        expected, expected_score = log_prob_and_score(self.log_prob, z)
        self.vectorized = True
        try:
            got, score = log_prob_and_score(self.log_prob, z)
        except Exception as error:  # noqa: BLE001 - any failure of vmap means the same: use the loop
            _warn_loop(f"{_operation(error)} failed under torch.func.vmap: {_first_line(error)}")
            return False
        same = torch.allclose(got, expected, rtol=1e-4, atol=1e-4) and _close(score, expected_score)
        if not same:
            _warn_loop(
                "under torch.func.vmap the log density differs from the one of single runs "
                f"({got.tolist()} against {expected.tolist()})"
            )

        return bool(same)

    def _prototype(self) -> Any:  # noqa: ANN401
        """The trace of a first run; an exception in it is reported with the sites that were reached."""
        trace = poutine.Trace()
        tracer: Any = poutine.trace(InitMessenger(init_anywhere(self.init_strategy))(self.model))
        try:
            with pyro.validation_enabled(False), _CholeskyOrNan():
                trace = tracer.get_trace(*self.args, **self.kwargs)
                trace.compute_log_prob()
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            reached = [name for name, site in tracer.trace.nodes.items() if site["type"] == "sample"]
            where = f"after site {reached[-1]!r}" if reached else "before its first sample site"
            given = ", ".join(_describe(value) for value in (*self.args, *self.kwargs.values())) or "none"
            raise ValueError(
                f"The model failed {where}: {type(error).__name__}: {_first_line(error)} (arguments: {given}). "
                "Check that the shapes fit and that data are floating point tensors of one dtype, such as x.float()."
            ) from error

        return trace

    def _trace_prior(self) -> Any:  # noqa: ANN401
        with torch.no_grad(), pyro.validation_enabled(False):
            return poutine.trace(self.model).get_trace(*self.args, **self.kwargs)

    def _flatten(self, trace: Any) -> Tensor:  # noqa: ANN401
        nodes = (trace.nodes[site.name] for site in self.sites)
        flat = [self._to_value(node).inv(node["value"]).reshape(-1).to(self.dtype) for node in nodes]

        return torch.cat(flat)

    def _check_observations(self, trace: Any) -> None:  # noqa: ANN401
        """An observation outside its support under every one of several prior draws has probability zero."""
        outside = outside_support(trace)
        tries = 0
        while outside and tries < _PROTOTYPE_TRIES:
            try:
                still = outside_support(self._trace_prior())
            except NotImplementedError:  # an improper prior cannot be sampled: the first run decides
                break
            outside = {name: outside[name] for name in outside.keys() & still.keys()}
            tries += 1
        for name, (value, support) in outside.items():
            raise ValueError(
                f"Observed site {name!r} has the value {value}, outside its support {support}, so the posterior has "
                "no mass. Remove or transform that observation, or change the site's distribution."
            )


# ---- batching ----


def _stack(results: list[Any]) -> Any:  # noqa: ANN401
    if isinstance(results[0], dict):
        return {name: torch.stack([result[name] for result in results]) for name in results[0]}
    return tuple(torch.stack(column) for column in zip(*results, strict=True))


def _close(score: Tensor, expected: Tensor) -> bool:
    size = expected.abs().amax().clamp(min=1.0).item()

    return torch.allclose(score, expected, rtol=1e-3, atol=1e-4 * size)


def _warn_loop(reason: str) -> None:
    warnings.warn(
        f"The model runs point by point, about a hundred times slower than in batches: {reason}.",
        VectorizationWarning,
        stacklevel=5,
    )


def _operation(error: BaseException) -> str:
    """The user's line of code at which an exception was raised, or the innermost one."""
    frames = traceback.extract_tb(error.__traceback__)
    library = ("site-packages", str(Path(__file__).parent))
    own = [frame for frame in frames if not any(part in frame.filename for part in library)]
    frame = (own or frames)[-1]

    return f"`{frame.line or frame.name}` (line {frame.lineno} of {frame.filename.rsplit('/', 1)[-1]})"


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


def _describe(value: Any) -> str:  # noqa: ANN401
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__

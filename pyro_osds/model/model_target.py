"""A Pyro model's unconstrained posterior as a batched log density.

The model is written for one draw. ``run`` runs it at one point, ``ladder`` evaluates batches of points.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger, init_to_uniform
from torch import Tensor
from torch.distributions import AffineTransform, Transform

from pyro_osds.model.capture import block_size
from pyro_osds.model.compat import VmapCompat, vmappable_pyro
from pyro_osds.model.decode import decode
from pyro_osds.model.determinism import TrainingLayerError, check_deterministic, no_training_layers
from pyro_osds.model.enumeration import Enumerate, is_enumerable
from pyro_osds.model.ladder import Ladder, check_points
from pyro_osds.model.parameters import Constants
from pyro_osds.model.prior import sample_latents, sample_together
from pyro_osds.model.run import ModelRun
from pyro_osds.model.sites import LatentSite, checked_samples, flatten, split
from pyro_osds.model.source import first_line
from pyro_osds.model.trace import (
    check_latents,
    check_plates,
    check_stray_dims,
    has_bounded_likelihood,
    improper_sites,
    init_anywhere,
    is_latent,
    is_value,
    joint_like,
    loc_scale,
    observed_values,
    outside_support,
    plate_nesting,
    site_dims,
    support_kind,
    to_support,
)

_PROTOTYPE_TRIES = 20
# Fewer draws of the prior are not worth the runs that one run for all is checked by.
_MIN_TOGETHER = 32


class ModelTarget:
    """The unconstrained posterior of a Pyro model, as a :class:`~pyro_osds.target.Target`.

    Discrete latents with finitely many values are summed out; continuous ones are the coordinates. A model without
    continuous latents has ``dim`` 0, and its log density is its log evidence.

    Arguments:
        model: A Pyro model; every stochastic site without ``obs=`` is a latent.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        init_strategy: Pyro's init strategy, used for the first run.
        transforms: Constrained-to-unconstrained transforms by site, as in :class:`pyro.infer.MCMC`.
        max_plate_nesting: Tensor dimensions that belong to plates; default: as many as the first run uses.
        vectorize: As for :class:`pyro_osds.OSDS`.
        capture: As for :class:`pyro_osds.OSDS`.

    Raises:
        ValueError: If the model has an unsupported latent, is random, changes its structure or observes what cannot be.

    Example:
        >>> import pyro, pyro.distributions as dist
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
        vectorize: str = "auto",
        capture: str | bool = "auto",
    ) -> None:
        self.model = model
        self.args = args
        self.kwargs = dict(kwargs or {})
        self.init_strategy = init_strategy
        self.transforms = dict(transforms or {})
        self.standardized = False
        self._constants = Constants()
        trace = self._prototype()
        latents = [site for site in trace.nodes.values() if is_latent(site)]
        discrete = [site for site in latents if is_enumerable(site)]
        continuous = [site for site in latents if not is_enumerable(site)]
        check_latents(trace, continuous, self.transforms)
        check_plates(trace, max_plate_nesting)
        self._check_observations(trace)
        self.discrete_sites = tuple(site["name"] for site in discrete)
        self.nesting = max_plate_nesting if max_plate_nesting is not None else plate_nesting(trace)
        self._below_discrete: frozenset[str] = frozenset()
        self.sites = self._layout(continuous)
        self.supports = {site["name"]: support_kind(site["fn"]) for site in (*continuous, *discrete)}
        self._shapes = {site.name: site.shape for site in self.sites}
        self.dim = self.sites[-1].stop if self.sites else 0
        like = joint_like(trace)
        self.device, self.dtype = like.device, like.dtype
        with torch.no_grad():
            self.start = self._flatten(trace.nodes)
        self.observed = observed_values(trace)
        self.frames = {site["name"]: tuple(f for f in site["cond_indep_stack"] if f.vectorized) for site in continuous}
        self.event_dims = {site["name"]: site["fn"].event_dim for site in continuous}
        self.dims = {name: site_dims(site) for name, site in trace.nodes.items() if is_value(site)}
        self._value_shapes = {name: trace.nodes[name]["value"].shape for name in self.dims}
        self.improper_sites = improper_sites(trace)
        scaled = any(torch.as_tensor(site["scale"]).ne(1).any() for site in latents)
        self.can_sample_prior = not self.improper_sites and not scaled
        self.has_bounded_likelihood = has_bounded_likelihood(trace)
        if discrete:
            self._check_enumeration(trace)
        with torch.no_grad(), vmappable_pyro(), VmapCompat():
            self.num_terms = self._run(self.start).num_terms
        check_deterministic(self._terms, check_points(self.start)[:2])
        size = block_size(self.dim, self.num_terms)
        self._ladder = Ladder(self._single, self.start, vectorize, capture, size)
        self.vectorized = self._ladder.vectorized

    @property
    def has_latents_below_discrete(self) -> bool:
        """Whether the prior of a continuous latent depends on a discrete one."""
        return bool(self._below_discrete)

    # ---- densities ----

    @property
    def rung(self) -> str:
        """How batches are evaluated: ``"captured"``, ``"vmap"`` or ``"loop"``."""
        return self._ladder.rung

    def log_prob(self, z: Tensor) -> Tensor:
        """Log joint density in unconstrained space, ``(B, D) -> (B,)``."""
        log_prior, log_likelihood = self.log_prior_and_likelihood(z)

        return log_prior + log_likelihood

    def log_prior_and_likelihood(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The two terms of the log joint density from one run of the model, ``(B, D) -> (B,), (B,)``."""
        return self._ladder.densities(z)

    def constrain(self, z: Tensor) -> dict[str, Tensor]:
        """Draws at every continuous latent site, ``(B, D)`` to ``{name: (B, *shape)}``."""
        return self._ladder.map(lambda row: self._run(row).values, z)

    def constrain_with_log_abs_det(self, z: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Draws at every continuous latent site, and the log-determinants of the way there from ``z``.

        Arguments:
            z: Points, ``(B, D)``.

        Returns:
            ``{name: (B, *shape)}`` and, event dimensions summed, ``{name: (B, *batch_shape)}``.
        """

        def read(row: Tensor) -> tuple[Tensor, ...]:
            run = self._run(row)
            parts = zip(run.values.items(), run.log_abs_det, strict=True)
            return *run.values.values(), *(self.by_batch(name, value, part) for (name, value), part in parts)

        names = [site.name for site in self.sites]
        columns = self._ladder.map(read, z)
        values, log_abs_det = columns[: len(names)], columns[len(names) :]

        return dict(zip(names, values, strict=True)), dict(zip(names, log_abs_det, strict=True))

    def split(self, row: Tensor) -> dict[str, Tensor]:
        """Coordinates by site of one point ``(D,)``, as :meth:`to_value` takes them."""
        return split(self.sites, row)

    def to_value(self, site: Mapping[str, Any]) -> Any:
        """The transform from coordinates to a site's value, given its name and its distribution in the present run."""
        name = site["name"]
        if name in self.transforms:
            return self.transforms[name].inv
        standard = loc_scale(site["fn"]) if self.standardized and name not in self._below_discrete else None
        if standard is not None:
            return AffineTransform(*standard, event_dim=site["fn"].event_dim)

        return to_support(site["fn"])

    def by_batch(self, name: str, value: Tensor, log_abs_det: Tensor) -> Tensor:
        """Log-determinants of the way to a site's value with its event dimensions summed, ``(*batch_shape,)``."""
        batch_dim = value.dim() - self.event_dims[name]

        return log_abs_det.flatten(batch_dim).sum(-1) if log_abs_det.dim() > batch_dim else log_abs_det

    def deterministics(self, z: Tensor) -> dict[str, Tensor]:
        """Values of the ``pyro.deterministic`` sites, ``(B, D)`` to ``{name: (B, *shape)}``.

        One that depends on a discrete latent has no single value and is left out.
        """
        return self._ladder.map(lambda row: self._plain(self._run(row)), z)

    def log_likelihood(self, z: Tensor) -> dict[str, Tensor]:
        """Pointwise log likelihood of the observed sites, ``(B, D)`` to ``{name: (B, *batch_shape)}``.

        A site whose rows a discrete latent ties together has none, and is left out.
        """
        return self._ladder.map(lambda row: self._run(row).log_likelihood(), z)

    def infer_discrete(self, values: Mapping[str, Tensor], temperature: int = 1) -> dict[str, Tensor]:
        """Values of the discrete latents, given one value ``(*shape,)`` at every continuous latent site."""
        return decode(self._call, values, self.discrete_sites, self.nesting, temperature)

    def log_prior(self, z: Tensor) -> dict[str, Tensor]:
        """Log prior of the continuous latents' values, ``(B, D)`` to ``{name: (B, *batch_shape)}``.

        Densities of values as the model has them, without Jacobians. A site whose rows a discrete latent ties together
        is left out, and so is the missing part of an observed one.
        """
        return self._ladder.map(lambda row: self._run(row).log_prior(), z)

    def by_group(self, z: Tensor, groups: Collection[str]) -> dict[tuple[str, str], Tensor]:
        """What InferenceData holds of each draw, from one run of the model.

        Arguments:
            z: Draws, ``(B, D)``.
            groups: Some of ``"posterior"`` (its deterministic values), ``"log_likelihood"`` and ``"log_prior"``.

        Returns:
            ``{(group, site): (B, *shape)}``.
        """
        readers = {
            "posterior": self._plain, "log_likelihood": ModelRun.log_likelihood, "log_prior": ModelRun.log_prior,
        }  # fmt: skip

        def read(row: Tensor) -> dict[tuple[str, str], Tensor]:
            run = self._run(row)
            return {(group, name): value for group in groups for name, value in readers[group](run).items()}

        return self._ladder.map(read, z)

    def plain_coordinates(self, z: Tensor) -> Tensor:
        """The same points in the coordinates that Pyro gives its latents, ``(B, D) -> (B, D)``."""
        return self.other_coordinates(z)[1] if self.standardized else z

    def sample_prior(self, num_draws: int) -> Tensor:
        """Unconstrained draws of the model's own prior, ``(num_draws, D)``; rows may hold infinities."""
        names = [site.name for site in self.sites]
        with torch.no_grad(), vmappable_pyro(), VmapCompat():
            together = sample_together(self._call, names, num_draws) if num_draws >= _MIN_TOGETHER else None
            if together is not None:
                columns = [self.to_value(together[name]).inv(together[name]["value"]) for name in names]
                return torch.cat([column.reshape(num_draws, -1).to(self.dtype) for column in columns], -1)
            draws = [sample_latents(self._call, names) for _ in range(num_draws)]
            return torch.stack([self._flatten(draw) for draw in draws])

    def unconstrain(self, values: Mapping[str, Tensor]) -> Tensor:
        """Flat unconstrained vectors ``(S, D)`` of unconstrained values by site, as ``MCMC``'s ``initial_params``."""
        return flatten(self.sites, values, torch.empty(0, dtype=self.dtype, device=self.device))

    def from_samples(self, samples: Mapping[str, Tensor]) -> Tensor:
        """Flat unconstrained vectors ``(S, D)`` of values at the continuous latent sites, each ``(S, *shape)``."""
        values = checked_samples(samples, {site.name: site.shape for site in self.sites})
        rows = [
            {name: value[row].to(device=self.device) for name, value in values.items()}
            for row in range(len(next(iter(values.values()))))
        ]
        with torch.no_grad(), vmappable_pyro(), VmapCompat():
            traces = [poutine.trace(poutine.condition(self._call, data=row)).get_trace() for row in rows]
            return torch.stack([self._flatten(trace.nodes) for trace in traces])

    def not_finite_sites(self, z: Tensor) -> list[str]:
        """Names of the sites whose log density is not finite at one point ``(D,)``."""
        with torch.no_grad():
            terms = self._terms(z)

        return [name for name, term in terms.items() if not term.isfinite()]

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
        other._ladder = self._ladder.of(other._single)

        def move(row: Tensor) -> tuple[Tensor, Tensor]:
            run = self._run(row)
            log_abs_det, flat = -sum((part.sum() for part in run.log_abs_det), row.new_zeros(())), []
            for site in run.latents:
                transform = other.to_value(site)
                u = transform.inv(site["value"])
                flat.append(u.reshape(-1).to(row.dtype))
                log_abs_det = log_abs_det + transform.log_abs_det_jacobian(u, site["value"]).sum()
            return torch.cat(flat), log_abs_det

        with torch.no_grad():
            return other, *self._ladder.map(move, z)

    # ---- running the model ----

    def _single(self, row: Tensor) -> tuple[Tensor, Tensor]:
        return self._run(row).log_densities(row)

    def _terms(self, row: Tensor) -> dict[str, Tensor]:
        with vmappable_pyro(), VmapCompat():
            return self._run(row).terms()

    def _run(self, row: Tensor) -> ModelRun:
        run = ModelRun(split(self.sites, row), self.to_value, self._shapes)
        enumerate_all = Enumerate(self.nesting) if self.discrete_sites else contextlib.nullcontext()
        with run, enumerate_all:
            self._call()
        run.check_complete()

        return run

    def _plain(self, run: ModelRun) -> dict[str, Tensor]:
        """The deterministic values that have the same shape for all values of the discrete latents."""
        values = run.deterministics

        return {name: value for name, value in values.items() if value.shape == self._value_shapes[name]}

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """The model with any arguments, and with its parameters as they were in the run."""
        with self._constants:
            return self.model(*args, **kwargs)

    def _call(self) -> Any:
        return self.call(*self.args, **self.kwargs)

    def _layout(self, latents: list[Any]) -> tuple[LatentSite, ...]:
        sites, start = [], 0
        for site in latents:
            value = site["value"]
            unconstrained = self.to_value(site).inv(value).shape
            stop = start + unconstrained.numel()
            sites.append(LatentSite(site["name"], start, stop, unconstrained, value.shape, value.dtype))
            start = stop

        return tuple(sites)

    def _check_enumeration(self, trace: Any) -> None:
        """Refuse dimensions that are nobody's, and note which sites have a distribution for each discrete value."""
        check_stray_dims(trace)
        with torch.no_grad(), vmappable_pyro(), VmapCompat():
            run = self._run(self.start)
        shapes = {site["name"]: site["fn"].shape() for site in run.latents}
        self._below_discrete = frozenset(name for name, shape in shapes.items() if shape != self._shapes[name])

    def _prototype(self) -> Any:
        """The trace of a first run; an exception in it is reported with the sites that were reached."""
        trace = poutine.Trace()
        tracer: Any = poutine.trace(InitMessenger(init_anywhere(self.init_strategy))(self.model))
        try:
            with self._constants, vmappable_pyro(), VmapCompat(), no_training_layers():
                trace = tracer.get_trace(*self.args, **self.kwargs)
                trace.compute_log_prob()
        except TrainingLayerError:
            raise
        except (RuntimeError, TypeError, ValueError, NotImplementedError, ArithmeticError) as error:
            reached = [name for name, site in tracer.trace.nodes.items() if site["type"] == "sample"]
            where = f"after site {reached[-1]!r}" if reached else "before its first sample site"
            given = ", ".join(_describe(value) for value in (*self.args, *self.kwargs.values())) or "none"
            raise ValueError(
                f"The model failed {where}: {type(error).__name__}: {first_line(error)} (arguments: {given}). "
                "Check that the shapes fit and that data are floating point tensors of one dtype, such as x.float()."
            ) from error

        return trace

    def _trace_prior(self) -> Any:
        with torch.no_grad(), vmappable_pyro(), VmapCompat():
            return poutine.trace(self._call).get_trace()

    def _flatten(self, nodes: Mapping[str, Any]) -> Tensor:
        drawn = (nodes[site.name] for site in self.sites)
        flat = [self.to_value(node).inv(node["value"]).reshape(-1).to(self.dtype) for node in drawn]

        return torch.cat(flat) if flat else torch.empty(0, dtype=self.dtype, device=self.device)

    def _check_observations(self, trace: Any) -> None:
        """An observation outside its support under every one of several prior draws has probability zero."""
        outside = outside_support(trace)
        tries = 0
        while outside and tries < _PROTOTYPE_TRIES:
            try:
                still = outside_support(self._trace_prior())
            except NotImplementedError:  # an improper prior cannot be sampled: the first run decides
                break
            # A support that moves with the latents may yet reach the observation.
            outside = {name: seen for name, seen in outside.items() if still.get(name) == seen}
            tries += 1
        for name, (value, support) in outside.items():
            raise ValueError(
                f"Observed site {name!r} has the value {value}, outside its support {support}, so the posterior has "
                "no mass. Remove or transform that observation, or change the site's distribution."
            )


def _describe(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__

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
from torch.distributions import AffineTransform, Transform, identity_transform

from pyro_osds.model.batching import Ladder, check_points
from pyro_osds.model.decode import decode
from pyro_osds.model.determinism import TrainingLayerError, check_deterministic, no_training_layers
from pyro_osds.model.distributions.densities import unconstrained_log_prob
from pyro_osds.model.distributions.edge_draws import unconstrained_draw
from pyro_osds.model.distributions.saturation import is_saturated
from pyro_osds.model.distributions.transforms import to_support
from pyro_osds.model.distributions.wrappers import by_batch, loc_scale
from pyro_osds.model.enumeration import Enumerate, is_enumerable
from pyro_osds.model.graph import block_size, large_block_size
from pyro_osds.model.observations import forgotten, impossible, observed_values, refusal, rounded_counts, scaled
from pyro_osds.model.parameters import Constants
from pyro_osds.model.prior import sample_latents, sample_together
from pyro_osds.model.pyro_internals import is_numerical
from pyro_osds.model.run import ModelRun, is_deterministic
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
    plate_nesting,
    site_dims,
    support_kind,
)
from pyro_osds.model.vmap import VmapCompat, vmappable_pyro
from pyro_osds.runtime.precision import in_double
from pyro_osds.runtime.warnings import ModelWarning, warn

_PROTOTYPE_TRIES = 20
# Points at which it is asked what depends on what: a gradient may vanish at one of them.
_NUM_LOOKED_AT = 4
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
        tensor([-0.9189, -0.9189], dtype=torch.float64)
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
        trace = self._finite_prototype()
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
        self.device, self.dtype, self.draw_dtype = like.device, torch.float64, like.dtype
        with torch.no_grad():
            self.start = self._flatten(trace.nodes)
        self.observed = observed_values(trace)
        self.frames = {site["name"]: tuple(f for f in site["cond_indep_stack"] if f.vectorized) for site in continuous}
        self.event_dims = {site["name"]: site["fn"].event_dim for site in continuous}
        self.dims = {name: site_dims(site) for name, site in trace.nodes.items() if is_value(site)}
        self._value_shapes = {name: trace.nodes[name]["value"].shape for name in self.dims}
        self._dtypes = {name: torch.as_tensor(trace.nodes[name]["value"]).dtype for name in self.dims}
        self.improper_sites = improper_sites(trace)
        scaled = any(torch.as_tensor(site["scale"]).ne(1).any() for site in latents)
        self.can_sample_prior = not self.improper_sites and not scaled
        self.has_bounded_likelihood = has_bounded_likelihood(trace)
        if discrete:
            self._check_enumeration(trace)
        with torch.no_grad(), vmappable_pyro(), VmapCompat():
            run = self._run(self.start)
        self.num_terms, self._closed_forms = run.num_terms, run.closed_forms
        self._discrete_observations = tuple(n for n in self.observed if trace.nodes[n]["fn"].support.is_discrete)
        check_deterministic(self._terms, check_points(self.start)[:2])
        sizes = block_size(self.dim, self.num_terms), large_block_size(self.dim, self.num_terms)
        self._ladder = Ladder(self._single, self.start, vectorize, capture, *sizes)
        self.vectorized = self._ladder.vectorized
        self.notes = self._look_at_observations(trace)

    @property
    def is_double(self) -> bool:
        """Whether densities are evaluated in double precision; not where the model insists on single."""
        return self._ladder.is_double

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
        return self._ladder.densities(z.to(self.dtype))

    def constrain(self, z: Tensor) -> dict[str, Tensor]:
        """Draws at every continuous latent site, ``(B, D)`` to ``{name: (B, *shape)}``."""
        return self._as_drawn(self._ladder.map(lambda row: self._run(row).values, z.to(self.dtype)))

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
        columns = self._ladder.map(read, z.to(self.dtype))
        values, log_abs_det = columns[: len(names)], columns[len(names) :]

        return self._as_drawn(dict(zip(names, values, strict=True))), dict(zip(names, log_abs_det, strict=True))

    def saturated_sites(self, z: Tensor) -> dict[str, Tensor]:
        """Which draws have a value that was rounded to a bound of its support, so that nothing tells how near it is.

        Arguments:
            z: Draws, ``(S, D)``.

        Returns:
            ``{name: (S,)}``, booleans: whether any entry of the site's value is 0 or 1, at an end of its interval, or
            infinite.

        Example:
            >>> import pyro, pyro.distributions as dist
            >>> target = ModelTarget(lambda: pyro.sample("x", dist.Beta(0.05, 0.05)))
            >>> target.saturated_sites(torch.tensor([[0.0], [50.0]]))
            {'x': tensor([False,  True])}
        """

        def read(row: Tensor) -> dict[str, Tensor]:
            run = self._run(row)
            return {name: is_saturated(run.transforms[name], value).any() for name, value in run.values.items()}

        return self._ladder.map(read, z.to(self.dtype))

    def has_closed_form(self, name: str) -> bool:
        """Whether a site's density is computed in its unconstrained coordinate, so that no mass is lost at an edge."""
        return name in self._closed_forms

    @property
    def discrete_observations(self) -> tuple[str, ...]:
        """Observed sites with a probability, which is at most one, instead of a density."""
        return self._discrete_observations

    def split(self, row: Tensor) -> dict[str, Tensor]:
        """Coordinates by site of one point ``(D,)``, as :meth:`to_value` takes them."""
        return split(self.sites, row)

    def to_value(self, site: Mapping[str, Any]) -> Any:
        """The transform from coordinates to a site's value, given its name and its distribution in the present run."""
        name = site["name"]
        if name in self.transforms:
            return self.transforms[name].inv
        standard = self._standard(site) if self.standardized else None
        if standard is not None:
            return AffineTransform(*standard, event_dim=site["fn"].event_dim)

        return to_support(site["fn"], centered=name not in self._below_discrete)

    def _standard(self, site: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
        """Location and scale of a site that has other coordinates."""
        name = site["name"]

        return None if name in self.transforms or name in self._below_discrete else loc_scale(site["fn"])

    def value_with_density(self, site: Mapping[str, Any], u: Tensor) -> tuple[Tensor, Tensor]:
        """A site's value and its log density, given its name and its distribution in the present run.

        Arguments:
            site: As for :meth:`to_value`.
            u: Its coordinates.

        Returns:
            The value ``(*shape,)``, and the log density of the coordinates, ``(*batch_shape,)``.
        """
        name, fn, transform = site["name"], site["fn"], self.to_value(site)
        value = transform(u)
        log_prob = None if name in self.transforms else unconstrained_log_prob(fn, transform, u)
        if log_prob is None:
            log_prob = fn.log_prob(value) + self.by_batch(name, value, transform.log_abs_det_jacobian(u, value))

        return value, log_prob

    def by_batch(self, name: str, value: Tensor, log_abs_det: Tensor) -> Tensor:
        """Log-determinants of the way to a site's value with its event dimensions summed, ``(*batch_shape,)``."""
        return by_batch(log_abs_det, value, self.event_dims[name])

    def deterministics(self, z: Tensor) -> dict[str, Tensor]:
        """Values of the ``pyro.deterministic`` sites, ``(B, D)`` to ``{name: (B, *shape)}``.

        One that depends on a discrete latent has no single value and is left out.
        """
        return self._as_drawn(self._ladder.map(lambda row: self._plain(self._run(row)), z.to(self.dtype)))

    def log_likelihood(self, z: Tensor) -> dict[str, Tensor]:
        """Pointwise log likelihood of the observed sites, ``(B, D)`` to ``{name: (B, *batch_shape)}``.

        A site whose rows a discrete latent ties together has none, and is left out.
        """
        return self._ladder.map(lambda row: self._run(row).log_likelihood(), z.to(self.dtype))

    def infer_discrete(self, values: Mapping[str, Tensor], temperature: int = 1) -> dict[str, Tensor]:
        """Values of the discrete latents, given one value ``(*shape,)`` at every continuous latent site."""
        return decode(self._call, values, self.discrete_sites, self.nesting, temperature)

    def log_prior(self, z: Tensor) -> dict[str, Tensor]:
        """Log prior of the continuous latents' values, ``(B, D)`` to ``{name: (B, *batch_shape)}``.

        Densities of values as the model has them, without Jacobians. A site whose rows a discrete latent ties together
        is left out, and so is the missing part of an observed one.
        """
        return self._ladder.map(lambda row: self._run(row).log_prior(), z.to(self.dtype))

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

        values = self._ladder.map(read, z.to(self.dtype))
        drawn = self._as_drawn({name: value for (group, name), value in values.items() if group == "posterior"})

        return values | {("posterior", name): value for name, value in drawn.items()}

    def plain_coordinates(self, z: Tensor) -> Tensor:
        """The same points in the coordinates that Pyro gives its latents, ``(B, D) -> (B, D)``."""
        return self.other_coordinates(z)[1] if self.standardized else z

    def sample_prior(self, num_draws: int) -> Tensor:
        """Unconstrained draws of the model's own prior, ``(num_draws, D)``; rows may hold infinities."""
        names = [site.name for site in self.sites]
        with torch.no_grad(), vmappable_pyro(), self._precision(), VmapCompat():
            is_worth_it = num_draws >= _MIN_TOGETHER
            together = sample_together(self._call, names, num_draws, self._to_support) if is_worth_it else None
            if together is not None:
                columns = [self._to_line(together[name]) for name in names]
                return torch.cat([column.reshape(num_draws, -1).to(self.dtype) for column in columns], -1)
            draws = [sample_latents(self._call, names, to_value=self._to_support) for _ in range(num_draws)]
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
        with torch.no_grad(), self._precision():
            terms = self._terms(z.to(self.dtype))

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
            log_abs_det, flat = row.new_zeros(()), []
            for site, here in zip(run.latents, run.log_abs_det, strict=True):
                u = run.unconstrained[site["name"]]
                if self._standard(site) is not None:
                    transform = other.to_value(site)
                    u = transform.inv(site["value"])
                    log_abs_det = log_abs_det + transform.log_abs_det_jacobian(u, site["value"]).sum() - here.sum()
                # Another site keeps its coordinates: its value may have been rounded to a bound of its support.
                flat.append(u.reshape(-1).to(row.dtype))
            return torch.cat(flat), log_abs_det

        with torch.no_grad():
            return other, *self._ladder.map(move, z.to(self.dtype))

    # ---- running the model ----

    def _single(self, row: Tensor) -> tuple[Tensor, Tensor]:
        return self._run(row).log_densities(row)

    def _terms(self, row: Tensor) -> dict[str, Tensor]:
        with vmappable_pyro(), VmapCompat():
            return self._run(row).terms()

    def _run(self, row: Tensor) -> ModelRun:
        run = ModelRun(split(self.sites, row), self.to_value, self._shapes, self.transforms)
        enumerate_all = Enumerate(self.nesting) if self.discrete_sites else contextlib.nullcontext()
        with run, enumerate_all:
            self._call()
        run.check_complete()

        return run

    def _plain(self, run: ModelRun) -> dict[str, Tensor]:
        """The deterministic values that have the same shape for all values of the discrete latents."""
        values = run.deterministics

        return {name: value for name, value in values.items() if value.shape == self._value_shapes[name]}

    def _as_drawn(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values in the precision that the model, as it is written, has them in."""
        return {name: value.to(self._dtypes[name]) for name, value in values.items()}

    def _precision(self) -> Any:
        return in_double() if self.is_double else contextlib.nullcontext()

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
        # Until it is known which those are, they are all taken for such.
        self._below_discrete = frozenset(self._shapes)
        with torch.no_grad(), vmappable_pyro(), VmapCompat():
            run = self._run(self.start)
        shapes = {site["name"]: site["fn"].shape() for site in run.latents}
        self._below_discrete = frozenset(name for name, shape in shapes.items() if shape != self._shapes[name])
        with torch.no_grad():
            self.start = self._flatten(trace.nodes)

    def _finite_prototype(self) -> Any:
        """The trace of a first run that starts where all latents are numbers, if one of several does."""
        for _ in range(_PROTOTYPE_TRIES):
            trace = self._prototype()
            latents = (site["value"] for site in trace.nodes.values() if is_latent(site))
            if all(torch.as_tensor(value).isfinite().all() for value in latents):
                break

        return trace

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
        flat = [self._to_line(node).reshape(-1).to(self.dtype) for node in drawn]

        return torch.cat(flat) if flat else torch.empty(0, dtype=self.dtype, device=self.device)

    def _to_line(self, site: Mapping[str, Any]) -> Tensor:
        """A site's unconstrained value: the one that was drawn, or that of its value."""
        u = unconstrained_draw(site)

        return self.to_value(site).inv(site["value"]) if u is None else u

    def _to_support(self, site: Mapping[str, Any]) -> Any:
        """As :meth:`to_value`, and no map that is known where the transform is the user's own."""
        return identity_transform if site["name"] in self.transforms else self.to_value(site)

    def _check_observations(self, trace: Any) -> None:
        """An observation outside its support under every one of several prior draws has probability zero."""
        found = impossible(trace)
        tries = 0
        while found and tries < _PROTOTYPE_TRIES:
            try:
                still = impossible(self._trace_prior())
            except NotImplementedError:  # an improper prior cannot be sampled: the first run decides
                break
            # A support that moves with the latents may yet reach the observation.
            found = {name: seen for name, seen in found.items() if still.get(name) == seen}
            tries += 1
        for name, seen in found.items():
            raise ValueError(refusal(name, seen))

    def _look_at_observations(self, trace: Any) -> tuple[str, ...]:
        """What is suspicious about the observations, in sentences; the worst are warned of at once."""
        counts = rounded_counts(trace)
        names = [site.name for site in self.sites if not is_deterministic(trace.nodes[site.name])]
        reached = self._reached()
        unreached = [name for name in names if name not in reached]
        notes, is_mistake = forgotten(trace, unreached, (*self.args, *self.kwargs.values()))
        self.mistakes = tuple(notes) if is_mistake else ()
        for note in (*counts, *self.mistakes):
            warn(note, ModelWarning)

        return (*counts, *notes, *scaled(trace))

    def _reached(self) -> set[str]:
        """Latents that an observation, or a factor, depends on, by way of other latents or not."""
        return set().union(*(self._reached_at(row) for row in check_points(self.start)[1:_NUM_LOOKED_AT]))

    def _reached_at(self, row: Tensor) -> set[str]:
        row = row.detach().requires_grad_()
        with torch.enable_grad(), vmappable_pyro(), self._precision(), VmapCompat():
            try:
                run = self._run(row)
            except RuntimeError as error:
                if not is_numerical(error):
                    raise
                return set()
        reached = set(self.discrete_sites)
        depends = {site["name"]: self._parents(site["log_prob"], row) - {site["name"]} for site in run.latents}
        for site in (*run.observed, *run.discrete):
            reached |= self._parents(site["log_prob"], row)
        waiting = list(reached)
        while waiting:
            more = depends.get(waiting.pop(), set()) - reached
            reached |= more
            waiting += more

        return reached

    def _parents(self, log_prob: Tensor, row: Tensor) -> set[str]:
        """The latents that a log density depends on, by its gradient at one point."""
        if not log_prob.requires_grad:
            return set()
        (gradient,) = torch.autograd.grad(log_prob.sum(), row, retain_graph=True, materialize_grads=True)
        moves = gradient.ne(0)

        return {site.name for site in self.sites if moves[site.start : site.stop].any()}


def _describe(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__

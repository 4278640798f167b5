"""A Pyro model's unconstrained posterior as a batched log density.

The model is written for one draw. ``run`` runs it at one point, ``ladder`` evaluates batches of points.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import init_to_uniform
from torch import Tensor
from torch.distributions import Transform

from pyro_osds.model.agreement import check_points
from pyro_osds.model.batching import Ladder
from pyro_osds.model.checks.constraints import refuse_edges
from pyro_osds.model.checks.determinism import check_deterministic
from pyro_osds.model.checks.failures import RUNNING, explained, midst_failure
from pyro_osds.model.checks.gradients import check_gradients, lost_gradients, num_lost, refuse_lost
from pyro_osds.model.checks.impossible import why_all
from pyro_osds.model.checks.observations import observed_values
from pyro_osds.model.checks.parameters import arguments_holding, refuse_missing
from pyro_osds.model.checks.reach import reached
from pyro_osds.model.checks.suspicions import suspicions
from pyro_osds.model.coordinates import Coordinates
from pyro_osds.model.discrete.elimination import Elimination
from pyro_osds.model.discrete.enumeration import Enumerate
from pyro_osds.model.discrete.joint import Joint
from pyro_osds.model.discrete.plan import joint_sum
from pyro_osds.model.discrete.supports import Wider, is_bounded, is_enumerable
from pyro_osds.model.distributions.at_zero import GradientsAtZero, is_sure, sure_densities
from pyro_osds.model.distributions.wrappers import unwrap
from pyro_osds.model.first_run import check_all_values, check_observations, check_parameters, first_trace
from pyro_osds.model.foreign.integration import integrations_used
from pyro_osds.model.foreign.moments import Copies, trace_of
from pyro_osds.model.foreign.parameters import Constants
from pyro_osds.model.foreign.state import State
from pyro_osds.model.graph import block_sizes, with_scores
from pyro_osds.model.prior import sample_latents, sample_together
from pyro_osds.model.readings import SiteReadings
from pyro_osds.model.run import ModelRun
from pyro_osds.model.sites import LatentSite, check_support, checked_samples, flatten, split
from pyro_osds.model.summed import DiscreteSums
from pyro_osds.model.trace import (
    check_latents,
    check_plates,
    has_bounded_likelihood,
    improper_sites,
    is_latent,
    is_value,
    joint_like,
    plate_nesting,
    site_dims,
    stray_dims,
    support_kind,
)
from pyro_osds.model.vmap import VmapCompat, vmappable_pyro
from pyro_osds.runtime.errors.told import telling
from pyro_osds.runtime.precision import in_double
from pyro_osds.target import CostCounter, Target

# Points at which it is asked what depends on what: a gradient may vanish at one of them.
_NUM_LOOKED_AT = 4
# Joint values at which it is asked: an indicator that is zero hides what it multiplies.
_NUM_SPREAD = 8
_MIN_TOGETHER = 32  # fewer draws of the prior are not worth the runs that one run for all is checked by


@telling(midst_failure, *RUNNING)
class ModelTarget(SiteReadings, DiscreteSums, Target):
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

    sites: tuple[LatentSite, ...]
    start: Tensor
    is_model = True
    has_other_coordinates = True

    @explained
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
        self.model, self.args, self.kwargs = model, args, dict(kwargs or {})
        self.init_strategy = init_strategy
        self.transforms = dict(transforms or {})
        self._constants = Constants()
        self._copies_values = self._has_zeros = self._is_sure = False
        self._state = State(model, args, self.kwargs)
        # What fails is told by the names that the user's function gives its arguments.
        watched = functools.wraps(model, updated=())(lambda *args, **kwargs: self._watched(*args, **kwargs))
        trace = first_trace(watched, args, self.kwargs, init_strategy, self._constants, self.transforms)
        latents = [site for site in trace.nodes.values() if is_latent(site)]
        discrete = [site for site in latents if is_enumerable(site)]
        continuous = [site for site in latents if not is_enumerable(site)]
        check_latents(trace, continuous, self.transforms)
        check_plates(trace, max_plate_nesting)
        doubtful = check_observations(trace, self._call)
        masked = check_parameters(trace, self._call, model, args, self.kwargs)
        self.discrete_sites = tuple(site["name"] for site in discrete)
        self.nesting = max_plate_nesting if max_plate_nesting is not None else plate_nesting(trace)
        self.event_dims = {site["name"]: site["fn"].event_dim for site in continuous}
        self.coordinates = Coordinates(self.transforms, self.event_dims)
        self.sites = self.coordinates.layout(continuous)
        self.supports = {site["name"]: support_kind(site["fn"]) for site in (*continuous, *discrete)}
        self._shapes = {site.name: site.shape for site in self.sites}
        self.dim = self.sites[-1].stop if self.sites else 0
        like = joint_like(trace)
        self.device, self.dtype, self.draw_dtype = like.device, torch.float64, like.dtype
        with torch.no_grad():
            self.start = self._flatten(trace.nodes)
        self.observed = observed_values(trace)
        self.frames = {site["name"]: tuple(f for f in site["cond_indep_stack"] if f.vectorized) for site in continuous}
        self.dims = {name: site_dims(site) for name, site in trace.nodes.items() if is_value(site)}
        self._value_shapes = {name: trace.nodes[name]["value"].shape for name in self.dims}
        self._dtypes = {name: torch.as_tensor(trace.nodes[name]["value"]).dtype for name in self.dims}
        self.improper_sites = improper_sites(trace)
        scaled = any(torch.as_tensor(site["scale"]).ne(1).any() for site in latents)
        self.can_sample_prior = not self.improper_sites and not scaled
        self.has_bounded_likelihood = has_bounded_likelihood(trace)
        self._joint: Joint | None = None
        self._held: Elimination | None = None
        self._bounded = tuple(site["name"] for site in discrete if is_bounded(site))
        if discrete:
            self._check_enumeration(trace)
            check_all_values(doubtful, self._run, check_points(self.start)[:2], self._joint, self.nesting)
        with torch.no_grad(), vmappable_pyro(), VmapCompat(), integrations_used() as used, CostCounter() as cost:
            run = self._run(cost.watch(self.start.clone()))
        self._is_sure = bool(discrete) and any(is_sure(unwrap(site["fn"])) for site in (*run.discrete, *run.observed))
        self._copies_values, self._closed_forms = run.changes_values, run.closed_forms
        self.num_terms = cost.terms(num_values := run.num_terms * (times := len(self._joint or (0,))), times)
        self._discrete_observations = tuple(n for n in self.observed if trace.nodes[n]["fn"].support.is_discrete)
        check_deterministic(self._terms, check_points(self.start)[: 1 if used.num_single else 2], self._state)
        self._state.settle()
        sizes = block_sizes(self.dim, num_values, cost.num_operations, cost.num_numbers)
        self.has_tolerance = is_solved = used.num_single > 0
        self._ladder = ladder = Ladder(self._single, self.start, vectorize, capture, *sizes, is_solved=is_solved)
        self.vectorized, self.num_at_once = ladder.is_fast, ladder.num_at_once
        if num_lost(ladder.seen):
            self._has_zeros = True
            other = ladder.of(self._single)
            self._has_zeros = num_lost(other.seen) < num_lost(ladder.seen)
            self._ladder = ladder = other if self._has_zeros else ladder
        refuse_edges(run, self.nesting, ladder.seen)
        if (lost := lost_gradients(ladder.seen, self.sites)) and masked:
            refuse_missing(masked, model, args, self.kwargs)
        refuse_lost(lost)
        self.notes = self._look_at_observations(trace)

    @property
    def is_double(self) -> bool:
        """Whether densities are evaluated in double precision; not where the model insists on single."""
        return self._ladder.is_double

    # ---- densities ----

    @property
    def backend(self) -> str:
        """How batches are evaluated: ``"captured"``, ``"vmap"`` or ``"loop"``."""
        return self._ladder.backend

    def log_prob(self, z: Tensor) -> Tensor:
        """Log joint density in unconstrained space, ``(B, D) -> (B,)``."""
        log_prior, log_likelihood = self.log_prior_and_likelihood(z)

        return log_prior + log_likelihood

    def log_prior_and_likelihood(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The two terms of the log joint density from one run of the model, ``(B, D) -> (B,), (B,)``."""
        return self._ladder.densities(z.to(self.dtype))

    def split(self, row: Tensor) -> dict[str, Tensor]:
        """Coordinates by site of one point ``(D,)``, as ``coordinates`` takes them."""
        return split(self.sites, row)

    def plain_coordinates(self, z: Tensor) -> Tensor:
        """The same points in the coordinates that Pyro gives its latents, ``(B, D) -> (B, D)``."""
        return self.other_coordinates(z)[1] if self.standardized else z

    def sample_prior(self, num_draws: int) -> Tensor:
        """Unconstrained draws of the model's own prior, ``(num_draws, D)``; rows may hold infinities."""
        names, to_value = [site.name for site in self.sites], self.coordinates.to_support
        with torch.no_grad(), vmappable_pyro(), self._precision(), VmapCompat():
            is_worth_it = num_draws >= _MIN_TOGETHER
            together = sample_together(self._call, names, num_draws, to_value) if is_worth_it else None
            if together is not None:
                columns = [self.coordinates.of_site(together[name]) for name in names]
                return torch.cat([column.reshape(num_draws, -1).to(self.dtype) for column in columns], -1)
            draws = [sample_latents(self._call, names, to_value=to_value) for _ in range(num_draws)]
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
            traces = [trace_of(poutine.condition(self._call, data=Copies(row))).get_trace() for row in rows]
            for row, trace in enumerate(traces):
                nodes: Any = trace.nodes
                for name in self._shapes:
                    check_support(name, nodes[name]["fn"], nodes[name]["value"], row)
            return torch.stack([self._flatten(trace.nodes) for trace in traces])

    def not_finite_sites(self, z: Tensor) -> list[str]:
        """Names of the sites whose log density is not finite at one point ``(D,)``."""
        with torch.no_grad(), self._precision():
            terms = self._terms(z.to(self.dtype), at_all=True)

        return [name for name, term in terms.items() if not term.isfinite().any()]

    def why_not_finite(self, z: Tensor) -> str:
        """Which sites have no finite log density at one point ``(D,)``, why, and the cure, in sentences."""
        names = self.not_finite_sites(z)
        if not names:
            return "Start it elsewhere: pass initial_params at a point where the density is finite."
        if infinite := arguments_holding(torch.isinf, self.model, self.args, self.kwargs):
            at, names = ", ".join(map(repr, names)), " and ".join(map(repr, infinite))
            return f"Not finite there: site {at}. Argument {names} holds inf: leave such rows out, or mend the data."
        with torch.no_grad(), vmappable_pyro(), self._precision(), VmapCompat():
            run = self._run(z.to(self.dtype))

        return why_all((*run.latents, *run.discrete, *run.observed), names)

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
        other.coordinates = replace(self.coordinates, standardized=not self.standardized)
        other._ladder = self._ladder.of(other._single)

        def move(row: Tensor) -> tuple[Tensor, Tensor]:
            run = self._run(row)
            log_abs_det, flat = row.new_zeros(()), []
            for site, here in zip(run.latents, run.log_abs_det, strict=True):
                u = run.unconstrained[site["name"]]
                if self.coordinates.standard(site) is not None:
                    transform = other.coordinates.to_value(site)
                    u = transform.inv(site["value"])
                    log_abs_det = log_abs_det + transform.log_abs_det_jacobian(u, site["value"]).sum() - here.sum()
                # Another site keeps its coordinates: its value may have been rounded to a bound of its support.
                flat.append(u.reshape(-1).to(row.dtype))
            return torch.cat(flat), log_abs_det

        with torch.no_grad():
            return other, *self._ladder.map(move, z.to(self.dtype))

    # ---- running the model ----

    def _single(self, row: Tensor) -> tuple[Tensor, Tensor]:
        if self._joint is None:
            return self._run(row).log_densities(row)

        return self._joint.densities(lambda given: self._run(row, given), row)

    def _terms(self, row: Tensor, at_all: bool = False) -> dict[str, Tensor]:
        """The log density of each site, of the first joint value of what is summed jointly or of all, ``(A,)``."""
        with vmappable_pyro(), VmapCompat():
            if at_all and self._joint is not None:
                return self._joint.read(lambda given: self._run(row, given), ModelRun.terms)
            return self._run(row).terms()

    def _run(
        self, row: Tensor, given: Mapping[str, Tensor] | None = None, widened: Mapping[str, Wider] | None = None
    ) -> ModelRun:
        """One run, with all discrete latents enumerated, to stated bounds or beyond, but for those that are given."""
        joint = self._joint
        if given is None:
            given = {} if joint is None else joint.at(0)
        tied = frozenset() if joint is None else joint.tied
        to_value, copies = self.coordinates.to_value, self._copies_values
        run = ModelRun(split(self.sites, row), to_value, self._shapes, self.transforms, tied, copies)
        enumerate_all = Enumerate(self.nesting, given, widened) if self.discrete_sites else contextlib.nullcontext()
        with contextlib.ExitStack() as around:
            around.enter_context(sure_densities()) if self._is_sure else None
            for each in (run, enumerate_all, *([GradientsAtZero()] if self._has_zeros else ())):
                around.enter_context(each)
            self._call()
        run.check_complete()

        return run

    def _precision(self) -> Any:
        return in_double() if self.is_double else contextlib.nullcontext()

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """The model with any arguments, and with its parameters as they were in the run."""
        with self._constants:
            return self._watched(*args, **kwargs)

    def _watched(self, *args: Any, **kwargs: Any) -> Any:
        """The model, which may change its arguments: the user's stay as they are."""
        return self._state.call(args, kwargs)

    def _call(self) -> Any:
        return self.call(*self.args, **self.kwargs)

    def _check_enumeration(self, trace: Any) -> None:
        """Find out how discrete latents are summed, and which sites have a distribution for each of their values."""
        # Until it is known which those are, they are all taken for such.
        self.coordinates = replace(self.coordinates, below_discrete=frozenset(self._shapes))
        points = check_points(self.start)[:_NUM_LOOKED_AT]

        def check_same(terms: Callable[[Tensor], Mapping[str, Tensor]]) -> None:
            check_deterministic(terms, points[:1])

        self._joint, self._held = joint_sum(
            self._run, points, self._elsewhere, trace.nodes, self.discrete_sites, stray_dims(trace), check_same
        )
        with torch.no_grad(), vmappable_pyro(), VmapCompat():
            run = self._run(self.start)
        shapes = {site["name"]: site["fn"].shape() for site in run.latents}
        below = {name for name, shape in shapes.items() if shape != self._shapes[name] or name in run.tied}
        self.coordinates = replace(self.coordinates, below_discrete=frozenset(below))
        with torch.no_grad():
            self.start = self._flatten(trace.nodes)

    def _flatten(self, nodes: Mapping[str, Any]) -> Tensor:
        return self.coordinates.of_run(self.sites, nodes, torch.empty(0, dtype=self.dtype, device=self.device))

    def _look_at_observations(self, trace: Any) -> tuple[str, ...]:
        """What is suspicious about the observations, in sentences; the worst are warned of at once."""
        rows, found = check_points(self.start)[1:_NUM_LOOKED_AT], set[str]()
        for given in [None] if self._joint is None else self._joint.spread(_NUM_SPREAD):
            run = partial(self._run_for_gradients, given=given)
            found |= reached(run, self.sites, self.discrete_sites, rows)
        if self.dim and self.is_double and (not self._ladder.vectorized or (self.observed and {*self._shapes} - found)):
            found |= check_gradients(with_scores(self._ladder.densities), self.sites, check_points(self.start)[:4])
        notes, self.mistakes = suspicions(trace, self.sites, found, (*self.args, *self.kwargs.values()))

        return notes

    def _run_for_gradients(self, row: Tensor, given: Mapping[str, Tensor] | None) -> ModelRun:
        with torch.enable_grad(), vmappable_pyro(), self._precision(), self._ladder.saved(), VmapCompat():
            return self._run(row, given)

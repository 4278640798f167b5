r"""Discrete latents that were summed out, drawn back: given continuous values, their posterior is exact.

What was eliminated is drawn back by filtering and sampling, by Pyro. What was summed over its joint values *a* is drawn
first, from

.. math:: p(a \mid z, y) \propto \gamma(z, a),

and what was eliminated given it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, get_args

import pyro
import torch
from pyro import poutine
from pyro.infer import infer_discrete
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_osds.choices import Temperature
from pyro_osds.model.discrete.assignments import (
    all_indices,
    discrete_of,
    num_joint,
    one_by_one,
    over_assignments,
    values_at,
)
from pyro_osds.model.discrete.enumeration import Enumerate, sum_out
from pyro_osds.model.discrete.supports import Bounded, is_enumerable, listed
from pyro_osds.model.distributions.missing import without_missing
from pyro_osds.model.foreign.moments import Copies, trace_of
from pyro_osds.model.pyro_internals import Subsample
from pyro_osds.model.vmap import vmappable_pyro
from pyro_osds.runtime.errors.told import first_line
from pyro_osds.stats.thresholds import MAX_JOINT

TEMPERATURES: tuple[Temperature, ...] = get_args(Temperature)


def decode(
    run: Callable[[], Any],
    given: Mapping[str, Tensor],
    names: Collection[str],
    nesting: int,
    temperature: int = 1,
    jointly: Collection[str] = (),
) -> dict[str, Tensor]:
    """Values of discrete latents, given those of the continuous ones.

    Arguments:
        run: Runs the model.
        given: A value for each continuous latent.
        names: The discrete latents.
        nesting: How many dimensions from the right belong to plates.
        temperature: 1 for a draw, 0 for the most probable values together.
        jointly: Those of them that elimination cannot sum.

    Returns:
        A value for each of the discrete latents that the run reaches.

    Raises:
        ValueError: If they cannot be drawn.

    Example:
        >>> import pyro.distributions as dist
        >>> def model():
        ...     z = pyro.sample("z", dist.Bernoulli(0.5))
        ...     pyro.sample("y", dist.Normal(10 * z, 1.0), obs=torch.tensor(9.0))
        >>> decode(model, {}, ["z"], nesting=0)
        {'z': tensor(1.)}
    """
    run = _leaving_out(run)
    rest = [name for name in names if name not in jointly]
    if not jointly:
        return _eliminated(run, given, rest, nesting, temperature)
    with poutine.block(), torch.no_grad(), vmappable_pyro():
        values, log_weight = _joint_values(run, given, jointly, nesting)
    if temperature == 0 and rest:
        return _most_probable(run, given, rest, nesting, values, log_weight)
    index = log_weight.argmax() if temperature == 0 else torch.distributions.Categorical(logits=log_weight).sample()
    drawn = {name: value[index] for name, value in values.items()}
    if rest:
        drawn |= _eliminated(run, {**given, **drawn}, rest, nesting, temperature)

    return {name: drawn[name] for name in names if name in drawn}


def _leaving_out(run: Callable[[], Any]) -> Callable[[], Any]:
    def model() -> Any:
        # Pyro blocks what lies around its own handlers, so this is inside of them, and outside of the model's masks.
        with _LeaveOut():
            return run()

    return model


class _LeaveOut(Messenger):
    """Puts something inside of the support where a mask takes an observation out: Pyro would look it up."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and not isinstance(msg["fn"], Subsample):
            msg["value"] = without_missing(msg)


def _joint_values(
    run: Callable[[], Any], given: Mapping[str, Tensor], jointly: Collection[str], nesting: int
) -> tuple[dict[str, Tensor], Tensor]:
    """All joint values ``(A, *shape)`` by site, and the log density at each, ``(A,)``, summed over all others."""
    conditioned = poutine.condition(run, data=Copies(given))
    nodes = trace_of(conditioned).get_trace().nodes
    sites = _with_largest_supports(
        conditioned, [discrete_of(nodes[name]) for name in jointly if name in nodes], nesting
    )
    if num_joint(sites) > MAX_JOINT:
        raise ValueError(
            f"The discrete latents {list(jointly)} have {num_joint(sites):,} joint values with these arguments, of "
            f"which {MAX_JOINT:,} can be summed. Predict for arguments with fewer groups."
        )
    values = values_at(sites, all_indices(sites))

    def read(assigned: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        with Enumerate(nesting, assigned):
            trace = trace_of(conditioned).get_trace()
        trace.compute_log_prob()
        nodes: Any = trace.nodes
        sites = [site for site in nodes.values() if site["type"] == "sample"]
        sites = [site for site in sites if not isinstance(site["fn"], Subsample)]
        is_summed = any(is_enumerable(site) and site["name"] not in assigned for site in sites)
        total = sum_out(sites) if is_summed else torch.stack([site["log_prob"].sum() for site in sites]).sum()
        return (total,)

    try:
        (log_weight,) = over_assignments(read, values)
    except Exception:  # noqa: BLE001 - whatever vmap cannot run, a loop can
        (log_weight,) = one_by_one(read, values)

    return values, log_weight


def _with_largest_supports(run: Callable[[], Any], sites: list[Any], nesting: int) -> list[Any]:
    """The same sites with the values that they have where all have their last value, such as a number of trials."""
    for _ in sites:
        last = {site.name: site.at(torch.full(site.elements, site.num_values - 1)) for site in sites}
        with Enumerate(nesting, last):
            nodes = trace_of(run).get_trace().nodes
        seen = [discrete_of(nodes[site.name]) for site in sites]
        sites, before = [max(pair, key=lambda site: site.num_values) for pair in zip(sites, seen, strict=True)], sites
        if num_joint(sites) == num_joint(before):
            break

    return sites


def _most_probable(
    run: Callable[[], Any],
    given: Mapping[str, Tensor],
    rest: Collection[str],
    nesting: int,
    values: Mapping[str, Tensor],
    log_weight: Tensor,
) -> dict[str, Tensor]:
    """The most probable values together: sums over the rest bound its largest term, so few joint values are tried."""
    best, found = -torch.inf, {}
    for index in log_weight.argsort(descending=True).tolist():
        if found and log_weight[index] <= best:
            break
        drawn = {name: value[index] for name, value in values.items()}
        drawn |= _eliminated(run, {**given, **drawn}, rest, nesting, 0)
        with poutine.block(), torch.no_grad(), vmappable_pyro():
            density = trace_of(poutine.condition(run, data=Copies({**given, **drawn}))).get_trace().log_prob_sum()
        if not found or density > best:
            best, found = density, drawn

    return found


def _eliminated(
    run: Callable[[], Any], given: Mapping[str, Tensor], names: Collection[str], nesting: int, temperature: int
) -> dict[str, Tensor]:
    """Values of those that elimination sums, by Pyro's ``infer_discrete``."""
    enumerated = poutine.infer_config(
        _with_listed_values(poutine.condition(run, data=Copies(given))), config_fn=_enumerate
    )
    # A run whose observations count for nothing may have nothing left to enumerate; that is no mistake.
    inferred: Any = infer_discrete(
        enumerated, first_available_dim=-1 - nesting, temperature=temperature, strict_enumeration_warning=False
    )
    try:
        with poutine.block(), torch.no_grad(), pyro.validation_enabled(False), _OneType():
            nodes = trace_of(inferred).get_trace().nodes
    except ValueError as error:
        raise ValueError(
            f"The discrete latents {list(names)} cannot be drawn given the continuous ones: {first_line(error)}. "
            "Pyro's infer_discrete wants scalar values: Categorical instead of OneHotCategorical, for instance."
        ) from error

    return {name: nodes[name]["value"] for name in names if name in nodes}


class _OneType(TorchFunctionMode):
    """Products of tensors of several types, as where observations are in double precision, are made in the widest."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Torch's answer; to a product, with factors of one type."""
        if func is not torch.einsum:
            return func(*args, **(kwargs or {}))
        equation, *operands = args
        factors = operands[0] if len(operands) == 1 and not isinstance(operands[0], Tensor) else operands
        dtype = functools.reduce(torch.promote_types, (factor.dtype for factor in factors))

        return torch.einsum(equation, *(factor.to(dtype) for factor in factors))


class _Listing(Messenger):
    """Counts have the values that were stated."""

    def _pyro_sample(self, msg: Any) -> None:
        if not isinstance(msg["fn"], Bounded) and is_enumerable(msg):
            msg["fn"] = listed(msg)


def _with_listed_values(run: Callable[[], Any]) -> Callable[[], Any]:
    def listed_run() -> Any:
        with _Listing():
            return run()

    return listed_run


def _enumerate(site: Any) -> Any:
    if site["type"] != "sample" or not is_enumerable(site):
        return {}

    return {"enumerate": "parallel", "num_samples": None}

"""Parameters of distributions that are not numbers, because data that they are made of are not: missing covariates.

A missing observation can be masked. A missing covariate makes the density of its row no number, or, under a mask, its
gradient: zero times the derivative at nan is nan. No latent value changes that, so it is refused, by the name of the
parameter and of the model's argument.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_osds.model.distributions.missing import kept
from pyro_osds.model.distributions.wrappers import unwrap
from pyro_osds.model.pyro_internals import Subsample
from pyro_osds.model.run import is_computed, is_deterministic

_PARTS = ("base_dist", "component_distribution", "mixture_distribution", "component0", "component1")


@dataclass(frozen=True)
class NanParameter:
    """A parameter of a site's distribution with entries that are nan in every run.

    Arguments:
        site: The site's name.
        kind: The class of its distribution.
        name: The parameter.
        where: Which of its entries are nan.
        is_masked: Whether a mask takes all of these out.
    """

    site: str
    kind: str
    name: str
    where: Tensor
    is_masked: bool


def nan_parameters(trace: Any) -> dict[tuple[str, str], NanParameter]:
    """Parameters with entries that are nan, by site and name.

    Arguments:
        trace: A trace of the model.
    """
    found = {}
    for site_name, site in trace.nodes.items():
        if site["type"] != "sample" or isinstance(site["fn"], Subsample) or is_deterministic(site) or is_computed(site):
            continue
        for name, value, event_dim in _parameters(unwrap(site["fn"])):
            if not value.is_floating_point() or not value.isnan().any():
                continue
            is_masked = _is_masked(value.isnan(), event_dim, site)
            kind = type(unwrap(site["fn"])).__name__
            found[site_name, name] = NanParameter(site_name, kind, name, value.isnan(), is_masked)

    return found


def lasting(found: Mapping[tuple[str, str], NanParameter], traces: Iterator[Any]) -> list[NanParameter]:
    """Those that are nan at the same entries in other runs, which start elsewhere.

    Arguments:
        found: What the first run showed.
        traces: Other runs; none is made where nothing was found.
    """
    left = dict(found)
    while left:
        trace = next(traces, None)
        if trace is None:
            break
        now = nan_parameters(trace)
        left = {key: seen for key, seen in left.items() if key in now and torch.equal(now[key].where, seen.where)}

    return list(left.values())


def refuse_missing(
    parameters: list[NanParameter], model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Refuse parameters that are nan because an argument is, or in some of their entries and never in the others.

    Arguments:
        parameters: Those that are nan in every run.
        model: The model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Raises:
        ValueError: If there is one.
    """
    sources = arguments_holding(torch.isnan, model, args, kwargs)
    for parameter in parameters:
        if sources or not parameter.where.all():
            raise ValueError(_sentence(parameter, sources))


def arguments_holding(
    is_bad: Callable[[Tensor], Tensor], model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[str]:
    """Names of the model's arguments that hold a number of some kind, such as nan.

    Arguments:
        is_bad: Which numbers are of that kind, ``(*) -> (*)``.
        model: The model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Example:
        >>> arguments_holding(torch.isnan, lambda x, y: None, (torch.tensor([0.0, torch.nan]), torch.zeros(2)), {})
        ['x']
    """
    try:
        bound: Mapping[str, Any] = inspect.signature(model).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        bound = {**{f"number {place}": value for place, value in enumerate(args)}, **kwargs}

    def holds(value: Any) -> bool:
        if isinstance(value, Mapping):
            return any(map(holds, value.values()))
        if isinstance(value, (list, tuple)):
            return any(map(holds, value))
        value = torch.tensor(value) if isinstance(value, float) else value

        return isinstance(value, Tensor) and value.is_floating_point() and bool(is_bad(value).any())

    return [name for name, value in bound.items() if holds(value)]


def _parameters(fn: Any) -> Iterator[tuple[str, Tensor, int]]:
    """Names and values of a distribution's parameters, with the event dimensions of each."""
    try:
        constraints = fn.arg_constraints
    except NotImplementedError:
        constraints = {}
    for name, constraint in constraints.items():
        value = fn.__dict__.get(name)
        if isinstance(value, Tensor):
            yield name, value, _event_dim(constraint)
    for part in _PARTS:
        inner = getattr(fn, part, None)
        if inner is not None:
            yield from _parameters(unwrap(inner))


def _event_dim(constraint: Any) -> int:
    try:
        return constraint.event_dim
    except NotImplementedError:  # it depends on other parameters
        return 0


def _is_masked(is_nan: Tensor, event_dim: int, site: Any) -> bool:
    keep = kept(site["fn"], site["mask"])
    if keep is None:
        return False
    own = len(unwrap(site["fn"]).event_shape)
    keep = keep.reshape(keep.shape[: keep.dim() - own]) if own else keep
    rows = is_nan.flatten(is_nan.dim() - event_dim).any(-1) if event_dim else is_nan
    try:
        return not bool((rows & keep).any())
    except RuntimeError:  # the parameter of a component, with a dimension more
        return False


def _sentence(parameter: NanParameter, sources: list[str]) -> str:
    place = tuple(parameter.where.nonzero()[0].tolist())
    count, total = int(parameter.where.sum()), parameter.where.numel()
    at = f" at index {place}" if place else ""
    names = " and ".join(repr(name) for name in sources)
    from_where = f", and the model's argument {names} holds nan" if sources else ""
    x = sources[0] if sources and sources[0].isidentifier() else "x"
    if parameter.is_masked:
        why = "A mask takes these entries out, and nan would still be their gradient."
        cure = f"Fill in any number where it is missing, such as {x}.nan_to_num(0.0) or nan_to_num(1.0) for a scale."
    else:
        why = "So the density is no number, whatever the latents are."
        cure = (
            f"Leave the rows with missing values out of the data, or make these values latents: {x} = {x}.clone(), "
            f"then {x}[{x}.isnan()] = pyro.sample('missing', prior of these values)."
        )

    return (
        f"The parameter {parameter.name!r} of {parameter.kind} at site {parameter.site!r} is nan{at} ({count} of "
        f"{total} entries){from_where}. {why} {cure}"
    )

"""Why a site has no finite density at a point where a run could have begun, and what cures it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import Poisson

from pyro_osds.model.distributions.wrappers import unwrap


def why_all(sites: Iterable[Mapping[str, Any]], names: Iterable[str]) -> str:
    """The sentences for sites without a finite log density, each once.

    Arguments:
        sites: The sites of a run.
        names: Those without one.
    """
    known = {site["name"]: site for site in sites}
    told = [why_impossible(known[name]) for name in names if name in known]

    return " ".join(dict.fromkeys(told)) or f"Not finite there: site {', '.join(map(repr, names))}."


def why_impossible(site: Mapping[str, Any]) -> str:
    """The sentences for a site with a log density that is not finite.

    Arguments:
        site: The site of a trace.

    Example:
        >>> import pyro.distributions as dist
        >>> fn = dist.Normal(0.0, -1.0, validate_args=False)
        >>> print(why_impossible({"name": "x", "fn": fn, "value": torch.tensor(0.3), "is_observed": False}))
        Site 'x' has scale = -1 there, which must be GreaterThan(lower_bound=0.0). Correct it, or give what it is made of a prior that keeps it there.
    """  # noqa: E501 - one line is printed
    name, fn = site["name"], site["fn"]
    plain = fn
    while plain is not None:
        wrong = _wrong_parameter(plain)
        if wrong:
            return f"Site {name!r} has {wrong}. Correct it, or give what it is made of a prior that keeps it there."
        plain = getattr(plain, "base_dist", None)
    if not site["is_observed"]:
        return (
            f"Not finite there: site {name!r}, whose values are too large for its density. Give it a prior with "
            "lighter tails, or a transform of its own."
        )
    if isinstance(unwrap(fn), Delta):
        return (
            f"Not finite there: site {name!r} observes a Delta, which only data that are met exactly have. Give it a "
            "width, such as Normal(x, 0.01), or write pyro.deterministic for a value that is computed."
        )
    told = _counted_at_rate_zero(name, unwrap(fn), site["value"])
    if told:
        return told
    log_prob = site.get("log_prob")
    outside = log_prob is not None and bool((log_prob == -torch.inf).any())
    where = "whose values have no probability there" if outside else "which overflows there"
    cure = (
        "Pass initial_params at a point of the latents where the observations are possible"
        if outside
        else "Check the site for overflows and divisions by zero, or pass initial_params at a point where it is finite"
    )

    return f"Not finite there: site {name!r}, {where}. {cure}."


def _counted_at_rate_zero(name: str, fn: Any, value: Tensor) -> str:
    """Where something is counted that has a rate of zero, in words; empty where nothing is."""
    if not isinstance(fn, Poisson):
        return ""
    never = (fn.rate == 0) & (value > 0)
    if not never.any():
        return ""
    place = tuple(never.nonzero()[0].tolist())
    count = value.expand(never.shape)[place].item()

    return (
        f"Not finite there: site {name!r} counts {count:g}{f' at index {place}' if place else ''} where its rate is 0. "
        "Correct the count, or what makes the rate zero, such as an exposure of 0."
    )


def _wrong_parameter(fn: Any) -> str:
    """A parameter that its distribution cannot have, in words."""
    for parameter, constraint in getattr(fn, "arg_constraints", {}).items():
        value = fn.__dict__.get(parameter)
        if not isinstance(value, Tensor) or getattr(constraint, "is_dependent", False):
            continue
        try:
            valid = constraint.check(value)
        except (NotImplementedError, ValueError):  # what depends on other parameters
            continue
        if not valid.all():
            first = value[~valid].reshape(-1)[0].item() if valid.shape == value.shape else "a value"
            return (
                f"{parameter} = {first:g} there, which must be {constraint}"
                if valid.shape == value.shape
                else (f"a {parameter} there that is not {constraint}")
            )

    return ""

"""Parameters of distributions that lie outside of what these allow, in every run: a wrong sign, ends that are swapped.

Densities are evaluated without Pyro's validation, and go on outside of their parameters' ranges: a uniform distribution
whose upper end lies below the lower one, or a concentration below zero, gives numbers that mean nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Binomial, Geometric, NegativeBinomial, Uniform

from pyro_osds.model.checks.gradients import num_lost
from pyro_osds.model.checks.ranges import (
    ROUNDING,
    End,
    beyond,
    given_value,
    is_strict,
    range_words,
    ranges_of,
    where_counted,
)
from pyro_osds.model.distributions.wrappers import unwrap
from pyro_osds.model.pyro_internals import Subsample, enumerated_dim
from pyro_osds.model.run import is_computed, is_deterministic
from pyro_osds.runtime.warnings import ModelWarning, warn

_CLAMPED = (Bernoulli, Binomial, Geometric, NegativeBinomial)


def refuse_outside(trace: Any, traces: Iterator[Any]) -> None:
    """Refuse parameters that are outside of their range in the first run and in others, which start elsewhere.

    One that depends on latents may lie inside in another run; where it does not, its share is a reason of the verdict.

    Arguments:
        trace: The first run.
        traces: Other runs; none is made where nothing was found.

    Raises:
        ValueError: If there is one; with site, distribution, parameter, value and range.

    Warns:
        ModelWarning: If a probability is outside in the first run and in some of the others.
    """
    first = _outside(trace)
    found, num_others, times = first, 0, Counter[tuple[str, str]]()
    clamped = {key for key in first if _is_clamped(trace.nodes[key[0]]["fn"], key[1])}
    for other in traces if found else ():
        now, num_others = _outside(other), num_others + 1
        times.update(now.keys() & clamped)
        found = {key: sentence for key, sentence in found.items() if key in now}
        if not found and not clamped:
            break
    # Without a prior to draw from there is one run only, which tells nothing of others.
    for sentence in found.values() if num_others else ():
        raise ValueError(sentence)
    for key, number in times.items():
        warn(
            f"{first[key].partition(' in every run')[0]}, outside of its range, in {number} of {num_others} draws of "
            "the prior. There torch computes with the nearest end of the range, and the density is not the one that "
            "was meant. Give what it is made of a prior that keeps it inside, or write logits=.",
            ModelWarning,
        )


def refuse_edges(run: Any, nesting: int, densities: Sequence[Tensor]) -> None:
    """Refuse parameters that are at the excluded end of their range, or beyond, for some values of discrete latents.

    An observation has probability zero there, where the density says so; where it is no number, or the site a latent,
    for which there is no distribution then, the posterior has none either.

    Arguments:
        run: A run with all discrete latents enumerated, or with one value for each of those that are summed jointly.
        nesting: How many dimensions from the right belong to plates.
        densities: Log priors, log likelihoods and their scores at a few points.

    Raises:
        ValueError: If there is one; with site, distribution, parameter, value and range.
    """
    if not run.discrete:
        return
    total = densities[0] + densities[1]
    is_lost = bool(total.isnan().all()) or bool(num_lost(densities) and num_lost(densities) == total.isfinite().sum())
    names = ", ".join(repr(site["name"]) for site in run.discrete)
    for site in (*run.latents, *(run.observed if is_lost else ())):
        rank = nesting if any(enumerated_dim(each) is not None for each in run.discrete) else -1
        for end, far in where_counted(site["mask"], beyond(site["fn"], site["value"])).items():
            # A latent's parameter that is outside here may be inside elsewhere; one that is zero does not move.
            out = (far > ROUNDING) & is_lost
            out = out | ((far >= 0 if is_lost else far == 0) & end.is_strict)
            if far.dim() <= rank or not bool(out.any()) or (not is_lost and bool(out.all())):
                continue
            raise ValueError(
                f"The distribution of site {site['name']!r}, {end.kind}, has {end.parameter} = "
                f"{end.value(_first(far, out)):.6g} for some values of the discrete latents ({names}), outside of its "
                f"range, {end.words}: there is no density there. {_inside_for_all(end, run.discrete[0]['name'])}"
            )
    _refuse_without_density(run, total, names)


def _refuse_without_density(run: Any, total: Tensor, names: str) -> None:
    """Refuse parameters that are no finite numbers where no density is one, and data that nothing makes possible."""
    name = run.discrete[0]["name"]
    for site in () if bool(total.isfinite().any()) else run.observed:
        fn = unwrap(site["fn"])
        for parameter in getattr(fn, "arg_constraints", {}):
            value = given_value(fn, parameter)
            if isinstance(value, Tensor) and not bool(value.isfinite().all()):
                raise ValueError(
                    f"The distribution of site {site['name']!r}, {type(fn).__name__}, has {parameter} = "
                    f"{_first(value, ~value.isfinite()):.6g} for some values of the discrete latents ({names}), and no "
                    f"density there. Keep it finite for each of them: torch.where({name} > 0, ..., 1.0) around what it "
                    "is divided by, or has the logarithm taken of."
                )
    if not run.latents and bool((total == -torch.inf).all()):
        raise ValueError(
            f"The observations have probability zero together, whatever the discrete latents ({names}) are: each may "
            "be possible for some of their values, and all of them are for none. Correct the data or the likelihood."
        )


def _inside_for_all(end: End, name: str) -> str:
    """What keeps a parameter inside of its range for all values of a discrete latent, in words."""
    if end.kind == Uniform.__name__:
        return f"Let the upper end lie above the lower one for each of them: torch.where({name} > 0, high, low + 0.01)."
    if end.low != 0 or not end.is_low:
        return end.cure

    return (
        f"Give it a value inside for each of them, such as torch.where({name} > 0, {end.parameter}, 0.01) in the place "
        f"of {end.parameter} * {name}."
    )


def _is_clamped(fn: Any, parameter: str) -> bool:
    """Whether torch goes on with the nearest probability, where others have no density that is a number."""
    return parameter == "probs" and isinstance(unwrap(fn), _CLAMPED)


def _outside(trace: Any) -> dict[tuple[str, str], str]:
    found = {}
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or isinstance(site["fn"], Subsample) or is_deterministic(site) or is_computed(site):
            continue
        fn = unwrap(site["fn"])
        if isinstance(fn, Uniform) and bool((fn.low > fn.high).any()):
            low, high = (_first(end, fn.low > fn.high) for end in torch.broadcast_tensors(fn.low, fn.high))
            found[name, "high"] = (
                f"The prior of site {name!r} is Uniform from {low:.6g} to {high:.6g}: its upper end lies below the "
                "lower one. Swap them."
            )
        log_prob = site.get("unscaled_log_prob")
        # A scale of zero under a mask stands for nothing; a count of zero is one.
        is_open = site["mask"] is None and (log_prob is None or not bool(log_prob.isfinite().all()))
        far = where_counted(site["mask"], beyond(site["fn"]))
        cures = {end.parameter: end.cure for end, each in far.items() if bool((each > ROUNDING).any())}
        for parameter, constraint, value, low, high in ranges_of(fn):
            where = (value < low - ROUNDING) | (value > high + ROUNDING)
            # What a mask takes out stands for nothing.
            where = where & (parameter in cures)
            if is_open and is_strict(constraint):
                where = where | (value == low)
            if bool(where.any()):
                found[name, parameter] = (
                    f"The distribution of site {name!r}, {type(fn).__name__}, has {parameter} = "
                    f"{_first(value, where):.6g} in every run, outside of its range, "
                    f"{range_words(low, high, _first(value, where) == low)}. Look for a wrong sign, or "
                    + " ".join(filter(None, ("arguments in the wrong order.", cures.get(parameter))))
                )

    return found


def _first(value: Tensor, where: Tensor) -> float:
    return value[where].flatten()[0].item()

"""Parameters of distributions that lie outside of what these allow, in every run: a wrong sign, ends that are swapped.

Densities are evaluated without Pyro's validation, and go on outside of their parameters' ranges: a uniform distribution
whose upper end lies below the lower one, or a concentration below zero, gives numbers that mean nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Binomial, Geometric, NegativeBinomial, Uniform

from pyro_osds.model.checks.ranges import ROUNDING, beyond, is_strict, range_words, ranges_of, where_counted
from pyro_osds.model.distributions.wrappers import unwrap
from pyro_osds.model.pyro_internals import Subsample
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
                    "arguments in the wrong order. " + cures.get(parameter, "")
                )

    return found


def _first(value: Tensor, where: Tensor) -> float:
    return value[where].flatten()[0].item()

"""Where values are rounded to a bound of their support, and no longer say how far from it they are."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import ComposeTransform, ExpTransform, SigmoidTransform

from pyro_osds.model.distributions.transforms import CORRELATION, SIMPLEX, Positive, kind_of, least_log, stripped


def is_saturated(transform: Any, value: Tensor) -> Tensor:
    """Which values were rounded to a bound of their support: 0 or 1, an end of an interval, or infinity.

    Arguments:
        transform: The way to the support.
        value: What it made of unconstrained values.

    Returns:
        Booleans of the shape of the values; all false for supports without bounds.

    Example:
        >>> is_saturated(ExpTransform(), torch.tensor([-200.0, 0.0, 200.0]).exp())
        tensor([ True, False,  True])
    """
    transform = stripped(transform)
    if type(transform) is ComposeTransform and transform.parts:
        first, maps = stripped(transform.parts[0]), ComposeTransform(transform.parts[1:])
        ends = [maps(value.new_tensor(end)) for end in _ends(first, value)]
        at_end = [value == end for end in ends]
        return functools.reduce(torch.logical_or, at_end, is_saturated(first, maps.inv(value)))  # type: ignore[arg-type]
    if kind_of(transform) == SIMPLEX:
        return (value <= 0) | (value >= 1)
    if kind_of(transform) == CORRELATION:
        # A correlation of one leaves nothing on the diagonal.
        return (value == 0) & torch.eye(value.shape[-1], dtype=torch.bool, device=value.device)
    if ends := _ends(transform, value):
        return (value <= ends[0]) | (value >= ends[1])

    return torch.zeros_like(value, dtype=torch.bool)


def _ends(transform: Any, value: Tensor) -> tuple[float, ...]:
    """Where a way to single bounded numbers ends: some stop at a number next to a bound."""
    finfo = torch.finfo(value.dtype)
    # The map of the least logarithm is rounded, too: what lies a thousandth above it is at the end.
    ends = {
        ExpTransform: (0.0, math.inf),
        Positive: (math.exp(least_log(value.dtype) + 0.001), math.inf),
        SigmoidTransform: (finfo.tiny, 1 - finfo.eps),
    }

    return ends.get(type(transform), ())

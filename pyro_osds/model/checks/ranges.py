"""How far parameters of distributions lie outside of their ranges, wherever their values count, and what cures it.

Densities are evaluated without validation, and those of torch go on where a parameter is out of range: a gamma function
of a negative number, the logarithm of the nearest probability. Where a draw of the posterior has such a parameter, the
density there is not one, and should have been zero.

Only what a sign or an end tells is looked at: rounding breaks sums of simplexes and factors of matrices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.distributions import DiscreteHMM, MaskedMixture
from pyro.distributions.constraints import ordered_vector
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import Independent, MixtureSameFamily, Uniform, constraints

from pyro_osds.model.pyro_internals import mask_of

ROUNDING = 1e-5
"""What rounding may do to a probability, or to an end."""
# How the steps between the entries of a vector are called that has to be in order.
_STEPS = "the smallest step of "
# A component that is less likely than this to have made a value counts for nothing.
_MIN_RESPONSIBILITY = 1e-3


class End(NamedTuple):
    """One end of the range of a parameter.

    Arguments:
        kind: Name of the distribution.
        parameter: Name of the parameter.
        low: The lower end of the range.
        high: Its upper end.
        is_low: Whether this is the lower end.
        is_strict: Whether the lower end itself is out of range.
        is_simplex: Whether the parameter is a vector of probabilities.
    """

    kind: str
    parameter: str
    low: float
    high: float
    is_low: bool
    is_strict: bool
    is_simplex: bool

    def value(self, beyond: float) -> float:
        """A value of the parameter that lies so far beyond this end."""
        return self.low - beyond if self.is_low else self.high + beyond

    @property
    def words(self) -> str:
        """The range in words."""
        return range_words(self.low, self.high, self.is_strict)

    @property
    def cure(self) -> str:
        """What keeps a parameter inside, in words."""
        if self.kind == Uniform.__name__:
            return "Make the upper end the lower one plus a positive width, with a HalfNormal or LogNormal prior."
        if self.is_simplex:
            return "Give it a Dirichlet prior, or take torch.softmax of what it is made of, or write logits=."
        if self.low == 0 and self.high == 1:
            return "Give it a Beta prior, take torch.sigmoid of what it is made of, or write logits= where it is there."
        if math.isfinite(self.low) and math.isfinite(self.high):
            return f"Map it there: {self.low:g} + {self.high - self.low:g} * torch.sigmoid(...)."
        if self.parameter.startswith(_STEPS):
            return (
                "Give it a prior of ordered values, such as TransformedDistribution(Normal(0, 1).expand([n])"
                ".to_event(1), transforms.OrderedTransform())."
            )
        if self.parameter == "total_count" and "NegativeBinomial" not in self.kind:
            return "Keep the count from falling below it, by a prior on counts that are large enough."
        if math.isfinite(self.low):
            shift = f"{self.low:g} + " if self.low else ""
            return (
                f"Give it a prior on that range, {shift}a HalfNormal, LogNormal or Gamma, or use {shift}torch.exp of "
                "what it is made of."
            )

        return f"Use {self.high:g} - torch.exp of what it is made of."


def ranges_of(fn: Any) -> Iterator[tuple[str, Any, Tensor, float, float]]:
    """Parameters of a distribution that have a range of numbers: name, constraint, value, and both ends.

    Arguments:
        fn: A distribution, without wrappers.
    """
    try:
        allowed = dict(fn.arg_constraints)
    except (NotImplementedError, AttributeError, TypeError):
        return
    for name, constraint in allowed.items():
        inner = _inner(constraint)
        low, high = (getattr(inner, end, None) for end in ("lower_bound", "upper_bound"))
        if is_simplex(inner):
            low = 0.0
        # Ends that are numbers, of values that are given: what is computed from logits is inside.
        is_open = not isinstance(low, (int, float)) and not isinstance(high, (int, float))
        value = None if is_open else given_value(fn, name)
        if isinstance(value, Tensor) and value.dtype != torch.bool and value.numel():
            yield name, constraint, value, _number(low, -math.inf), _number(high, math.inf)


def given_value(fn: Any, name: str) -> Any:
    """The value that a parameter was given, also where a distribution keeps it elsewhere; None without one."""
    if name in fn.__dict__:
        return fn.__dict__[name]
    kept = getattr(type(fn), name, None)
    try:
        return kept.fget(fn) if isinstance(kept, property) and kept.fget is not None else None
    except (NotImplementedError, AttributeError):
        return None


def _inner(constraint: Any) -> Any:
    return getattr(constraint, "base_constraint", constraint)


def is_simplex(constraint: Any) -> bool:
    """Whether a constraint is that of vectors of probabilities."""
    return isinstance(_inner(constraint), type(constraints.simplex))


def is_strict(constraint: Any) -> bool:
    """Whether the lower end itself is out of range."""
    return isinstance(_inner(constraint), type(constraints.positive))


def range_words(low: float, high: float, is_strict: bool = False) -> str:
    """A range in words.

    Example:
        >>> range_words(0.0, float("inf"), is_strict=True), range_words(0.0, 1.0)
        ('above 0', '0 to 1')
    """
    if math.isinf(high):
        return f"above {low:g}" if is_strict else f"{low:g} and above"

    return f"{high:g} and below" if math.isinf(low) else f"{low:g} to {high:g}"


def _number(end: Any, default: float) -> float:
    return float(end) if isinstance(end, (int, float)) else default


def beyond(fn: Any, value: Tensor | None = None) -> dict[End, Tensor]:
    """How far parameters lie beyond each end of their range, negative inside; shapes broadcast with the batch shape.

    Arguments:
        fn: The distribution, with all its wrappers.
        value: Its value, which tells what component of a mixture it can come from.
    """
    if isinstance(fn, (Independent, MaskedDistribution, ExpandedDistribution)):
        found = beyond(fn.base_dist, value)
        mask = mask_of(fn) if isinstance(fn, MaskedDistribution) else True
        folded = {end: _folded(far, fn.base_dist.batch_shape, fn.batch_shape) for end, far in found.items()}
        return where_counted(mask, folded)
    own: dict[End, Tensor] = {}
    for name, constraint, parameter, low, high in ranges_of(fn):
        for is_low in (True, False):
            if math.isfinite(low if is_low else high):
                simplex = is_simplex(constraint)
                end = End(type(fn).__name__, name, low, high, is_low, is_strict(constraint), simplex)
                far = (low - parameter if is_low else parameter - high).to(torch.get_default_dtype())
                own[end] = far.flatten(far.dim() - constraint.event_dim).amax(-1) if constraint.event_dim else far
    if isinstance(fn, Uniform):
        low, high = torch.broadcast_tensors(fn.low, fn.high)
        own[End("Uniform", "high - low", 0.0, math.inf, True, True, False)] = low - high
    own |= _disorder(fn)
    inside = _parts(fn, value)
    known = {end.parameter for end in own}

    return {end: far for end, far in inside.items() if end.parameter not in known} | own


def _disorder(fn: Any) -> dict[End, Tensor]:
    """Vectors that have to be in order: how far an entry lies below the one before it."""
    allowed = getattr(type(fn), "arg_constraints", None)
    found: dict[End, Tensor] = {}
    for name, constraint in allowed.items() if isinstance(allowed, dict) else ():
        given = given_value(fn, name) if isinstance(constraint, type(ordered_vector)) else None
        if isinstance(given, Tensor) and given.dim() and given.shape[-1] > 1:
            end = End(type(fn).__name__, _STEPS + name, 0.0, math.inf, True, True, False)
            found[end] = -given.diff(dim=-1).amin(-1)

    return found


def _parts(fn: Any, value: Tensor | None) -> dict[End, Tensor]:
    """The same for the distributions that one is made of."""
    if isinstance(fn, MixtureSameFamily):
        components, choice = fn.component_distribution, fn.mixture_distribution
        found = where_counted(_can_come_from(fn, value), beyond(components))
        folded = {end: _folded(far, components.batch_shape, fn.batch_shape) for end, far in found.items()}
        return _merged([beyond(choice), folded])
    if isinstance(fn, MaskedMixture):
        mask: Any = fn.mask
        return _merged(
            [
                where_counted(~mask, beyond(fn.component0, value)),
                where_counted(mask, beyond(fn.component1, value)),
            ]
        )
    if isinstance(fn, DiscreteHMM):
        observed = fn.observation_dist
        return {end: _folded(far, observed.batch_shape, fn.batch_shape) for end, far in beyond(observed).items()}
    base = getattr(fn, "base_dist", None)
    if not isinstance(base, torch.distributions.Distribution):
        return {}

    return {end: _folded(far, base.batch_shape, fn.batch_shape) for end, far in beyond(base).items()}


def _merged(parts: Iterable[dict[End, Tensor]]) -> dict[End, Tensor]:
    merged: dict[End, Tensor] = {}
    for part in parts:
        for end, far in part.items():
            merged[end] = torch.maximum(merged[end], far) if end in merged else far

    return merged


def _can_come_from(fn: MixtureSameFamily, value: Tensor | None) -> Tensor | bool:
    """Which components of a mixture can have made a value, ``(*batch_shape, components)``."""
    if value is None:
        return True
    given = value.unsqueeze(-1 - len(fn.event_shape))
    joint = fn.component_distribution.log_prob(given) + fn.mixture_distribution.logits
    share = torch.softmax(joint.nan_to_num(-math.inf, neginf=-math.inf), -1)

    return share > _MIN_RESPONSIBILITY


def where_counted(mask: Any, found: dict[End, Tensor]) -> dict[End, Tensor]:
    """What was found, ``-inf`` where a mask takes it out.

    Arguments:
        mask: A tensor, a bool or None.
        found: How far parameters lie beyond their ends.
    """
    if mask is None or mask is True:
        return found

    return {end: torch.where(torch.as_tensor(mask), far, -math.inf) for end, far in found.items()}


def _folded(far: Tensor, inner: torch.Size, outer: torch.Size) -> Tensor:
    """The farthest within the dimensions that a wrapper takes from the batch shape, its rightmost ones."""
    num_taken = len(inner) - len(outer)
    if num_taken <= 0:
        return far
    far = far.expand(np.broadcast_shapes(far.shape, inner))

    return far.flatten(far.dim() - num_taken).amax(-1)


def site_beyond(site: Mapping[str, Any]) -> dict[End, Tensor]:
    """How far the parameters of a site lie beyond the ends of their ranges, ``-inf`` where nothing counts.

    Arguments:
        site: A site of a run, with its value, mask and scale.
    """
    if not site["log_prob"].numel():
        return {}
    found = where_counted(site["mask"], beyond(site["fn"], site["value"]))
    scale = torch.as_tensor(site["scale"])

    return {end: torch.where(scale != 0, far, -math.inf).nan_to_num(-math.inf) for end, far in found.items()}


def cut_outside(site: Mapping[str, Any]) -> Tensor:
    """The log density of a site, minus infinity where a parameter is out of range.

    Arguments:
        site: A site of a run.
    """
    log_prob = site["log_prob"]
    for far in site_beyond(site).values():
        log_prob = torch.where(far > ROUNDING, -math.inf, log_prob)

    return log_prob

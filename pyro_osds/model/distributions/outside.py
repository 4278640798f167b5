"""Densities outside of their supports: zero, where torch would go on.

With validation off, torch's exponential density grows beyond all bounds below zero, and so do those that are made of
it, such as Pareto's below its scale; a gamma density of a negative number is not a number. Observations are checked
once, against the supports of the first runs; where a support moves with a latent, they are outside of it for some
values of that latent, and that is what their likelihood has to say.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Beta, Exponential, Gamma, TransformedDistribution, constraints

from pyro_osds.model.distributions.stable import replaced
from pyro_osds.runtime.torch_internals import is_batchedtensor

LogProb = Callable[[Any, Tensor], Tensor]

# A place inside of all of these supports, where a density and its gradient are numbers.
_INSIDE = 0.5


def _cut(log_prob: LogProb, check: Callable[[Tensor], Tensor]) -> LogProb:
    """The log density, minus infinity where the check fails."""

    def cut(self: Any, value: Tensor) -> Tensor:
        inside = check(value)
        if _is_known(inside):
            return log_prob(self, value)
        density = log_prob(self, torch.where(inside, value, _INSIDE))

        return torch.where(inside, density, -math.inf)

    return cut


def _is_known(inside: Tensor) -> bool:
    """Whether all values are inside, the same for all points of a batch: then nothing is cut."""
    return not is_batchedtensor(inside) and bool(inside.all())


def _cut_transformed(log_prob: LogProb) -> LogProb:
    """The same for what is mapped: each of its maps of single numbers says where it leads to."""

    def cut(self: Any, value: Tensor) -> Tensor:
        if not any(map(_check_of, self.transforms)):
            return log_prob(self, value)
        outside, y = None, value
        for transform in reversed(self.transforms):
            check = _check_of(transform)
            if check is not None:
                inside = check(y)
                if not _is_known(inside):
                    outside = ~inside if outside is None else outside | ~inside
                    y = torch.where(inside, y, _INSIDE)
            y = transform.inv(y)
        if outside is None:
            return log_prob(self, value)
        # The way forward again: values that are inside everywhere stay as they are.
        for transform in self.transforms:
            y = transform(y)
        event = len(self.event_shape)
        density = log_prob(self, torch.where(outside, y, value))
        out = outside.flatten(outside.dim() - event).any(-1) if event else outside

        return torch.where(out, -math.inf, density)

    return cut


def _check_of(transform: Any) -> Callable[[Tensor], Tensor] | None:
    """Which values a map of single numbers leads to, if not to all."""
    return {constraints.positive: _is_positive, constraints.unit_interval: _is_share}.get(transform.codomain)


def _is_positive(value: Tensor) -> Tensor:
    return value >= 0


def _is_share(value: Tensor) -> Tensor:
    return (value >= 0) & (value <= 1)


# On a bound a density may be a number, and torch's is right there.
_CHECKS: dict[type, Callable[[Tensor], Tensor]] = {Exponential: _is_positive, Gamma: _is_positive, Beta: _is_share}


@contextlib.contextmanager
def cut_densities() -> Iterator[None]:
    """Distributions whose densities go on outside of their supports have none there, until they are put back.

    Example:
        >>> shifted = Exponential(torch.tensor(1.0), validate_args=False)
        >>> with cut_densities():
        ...     shifted.log_prob(torch.tensor([1.0, -1.0]))
        tensor([-1., -inf])
    """
    cut = {kind: _cut(kind.__dict__["log_prob"], check) for kind, check in _CHECKS.items()}
    transformed = {TransformedDistribution: _cut_transformed(TransformedDistribution.__dict__["log_prob"])}
    with replaced({**cut, **transformed}):
        yield

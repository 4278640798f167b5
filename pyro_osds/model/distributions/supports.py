"""Supports as such: the one of a mixture, and a value that lies well inside of one."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import MaskedMixture
from pyro.distributions.constraints import corr_matrix, ordered_vector, positive_ordered_vector, sphere
from torch import Tensor
from torch.distributions import MixtureSameFamily, TransformedDistribution, constraints

from pyro_osds.model.distributions.wrappers import unwrap


class UnknownSupportError(NotImplementedError):
    """No value, or no map from the real line, is known for a support."""


def bare(support: Any) -> Any:
    """A support without its event dimensions."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint

    return support


def name_of(support: Any) -> str:
    """The name of a support's class, as its module calls it."""
    return type(support).__name__.lstrip("_")


def is_real(support: Any) -> bool:
    """Whether a support is all of the real line, in each coordinate."""
    return bare(support) is constraints.real


def is_pushed_off_the_line(fn: Any) -> bool:
    """Whether a plain ``TransformedDistribution`` calls its support real, while that of its base is not."""
    is_plain = isinstance(fn, TransformedDistribution) and type(fn).support is TransformedDistribution.support

    return is_plain and not is_real(fn.base_dist.support) and is_real(fn.support)


def mixture_support(fn: MixtureSameFamily) -> Any:
    """All values that any component of a mixture can have: from the lowest of the lower bounds to the highest upper.

    Arguments:
        fn: The mixture. Its own support has one bound for each component, and a dimension too many for a map.

    Raises:
        UnknownSupportError: If the supports of the components are not those of single numbers and have parameters.

    Example:
        >>> components = torch.distributions.Uniform(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 5.0]))
        >>> mixture_support(MixtureSameFamily(torch.distributions.Categorical(torch.ones(2)), components))
        Interval(lower_bound=0.0, upper_bound=5.0)
    """
    component = fn.component_distribution
    support, event_dim = component.support, len(component.event_shape)
    kind = bare(support)
    if is_pushed_off_the_line(unwrap(component)) or hasattr(kind, "cseq"):
        raise UnknownSupportError("its components have supports of their own, of which the union is not known")
    shape = component.batch_shape + component.event_shape

    def of_all(name: str, reduce: Any) -> Any:
        bound = getattr(kind, name)
        if not isinstance(bound, Tensor) or bound.dim() == 0:
            return bound
        return reduce(torch.broadcast_to(bound, shape), -1 - event_dim)

    has_lower, has_upper = hasattr(kind, "lower_bound"), hasattr(kind, "upper_bound")
    if has_lower and has_upper:
        kind = constraints.interval(of_all("lower_bound", torch.amin), of_all("upper_bound", torch.amax))
    elif has_lower:
        kind = constraints.greater_than(of_all("lower_bound", torch.amin))
    elif has_upper:
        kind = constraints.less_than(of_all("upper_bound", torch.amax))
    dims = event_dim - kind.event_dim

    return constraints.independent(kind, dims) if dims else kind


def inside(fn: Any, value: Tensor) -> Tensor:
    """A value well inside of a distribution's support, where its density and the gradient of that are numbers.

    Arguments:
        fn: The distribution, without wrappers.
        value: A value of it, whose shape, type and device are wanted.

    Returns:
        A tensor that broadcasts with the value.

    Raises:
        UnknownSupportError: If none is known for this support.

    Example:
        >>> inside(torch.distributions.Gamma(2.0, 1.0), torch.tensor([-3.0, torch.nan]))
        tensor(1.)
    """
    if isinstance(fn, torch.distributions.Multinomial):
        return _one_of(value) * fn.total_count
    if isinstance(fn, MaskedMixture):
        first, second = (inside(unwrap(part), value) for part in (fn.component0, fn.component1))
        mask: Any = fn.mask
        return torch.where(mask.reshape(mask.shape + (1,) * len(fn.event_shape)), second, first)
    if isinstance(fn, MixtureSameFamily) and not fn.support.is_discrete:
        return _inside(mixture_support(fn), value)

    return _inside(fn.support, value)


def _inside(support: Any, value: Tensor) -> Tensor:
    support = bare(support)
    lower, upper = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    if support.is_discrete and support is not constraints.one_hot:
        return torch.as_tensor(next((bound for bound in (lower, upper) if bound is not None), 0), device=value.device)
    if lower is not None and upper is not None:
        return torch.as_tensor(lower + 0.5 * (upper - lower), device=value.device)
    if lower is not None or upper is not None:
        bound = torch.as_tensor(lower if lower is not None else upper, device=value.device)
        return bound + (1.0 if lower is not None else -1.0)
    for kind, found in _VALUES:
        if type(support) is type(kind):
            return found(value)
    raise UnknownSupportError(f"no value of the support {name_of(support)} is known")


def _zero(value: Tensor) -> Tensor:
    return torch.zeros((), device=value.device)


def _one_of(value: Tensor) -> Tensor:
    return torch.eye(value.shape[-1], device=value.device)[0]


def _center(value: Tensor) -> Tensor:
    return torch.full(value.shape[-1:], 1.0 / value.shape[-1], device=value.device)


def _ascending(value: Tensor) -> Tensor:
    return torch.arange(1.0, value.shape[-1] + 1.0, device=value.device)


def _identity(value: Tensor) -> Tensor:
    return torch.eye(value.shape[-1], device=value.device)


_VALUES: tuple[tuple[Any, Any], ...] = (
    (constraints.real, _zero),
    (constraints.one_hot, _one_of),
    (constraints.simplex, _center),
    (sphere, _one_of),
    (ordered_vector, _ascending),
    (positive_ordered_vector, _ascending),
    *((kind, _identity) for kind in (constraints.lower_triangular, constraints.lower_cholesky, constraints.square)),
    *((kind, _identity) for kind in (constraints.corr_cholesky, corr_matrix, constraints.symmetric)),
    *((kind, _identity) for kind in (constraints.positive_semidefinite, constraints.positive_definite)),
)

"""What lies around a distribution: event dimensions, masks and plates, taken off to see what it is."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import Independent

from pyro_osds.model.pyro_internals import mask_of

_LOCATION_SCALE = (
    torch.distributions.Normal,
    torch.distributions.StudentT,
    torch.distributions.Laplace,
    torch.distributions.Cauchy,
)
_WRAPPERS = (Independent, MaskedDistribution, ExpandedDistribution)


def unwrap(fn: Any) -> Any:
    """A distribution without the wrappers of event dimensions, masks and plates."""
    while isinstance(fn, _WRAPPERS):
        fn = fn.base_dist

    return fn


def is_wrapper(fn: Any) -> bool:
    """Whether a distribution only adds event dimensions, a mask or plates to another one."""
    return isinstance(fn, _WRAPPERS)


def is_masked(fn: Any) -> bool:
    """Whether a mask around a distribution takes some of its density away."""
    while isinstance(fn, _WRAPPERS):
        if isinstance(fn, MaskedDistribution) and mask_of(fn) is not True:
            return True
        fn = fn.base_dist

    return False


def loc_scale(fn: Any) -> tuple[Tensor, Tensor] | None:
    """Location and scale of a distribution on the real line that has both, else None."""
    shape = fn.shape()
    while isinstance(fn, (Independent, MaskedDistribution)):
        fn = fn.base_dist
    if not isinstance(fn, _LOCATION_SCALE):
        return None

    return fn.loc.expand(shape), fn.scale.expand(shape)


def by_batch(log_abs_det: Tensor, value: Tensor, event_dim: int) -> Tensor:
    """Log-determinants of the way to a value with its event dimensions summed, ``(*batch_shape,)``."""
    batch_dim = value.dim() - event_dim

    return log_abs_det.flatten(batch_dim).sum(-1) if log_abs_det.dim() > batch_dim else log_abs_det

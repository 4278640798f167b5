"""Latent sites whose value is no choice: ``Delta``, whose value is computed, and ``Unit``, which is a factor.

Each puts all its mass on one value. Such a site is a deterministic value that brings a log density along, as
``pyro.factor`` does. A distribution with an atom *and* a density, such as a zero-inflated normal, has no density that a
sampler of real numbers could use; it is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Delta, Unit
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor
from torch.distributions import Independent

from pyro_osds.model.distributions.wrappers import unwrap
from pyro_osds.model.pyro_internals import mask_of


def is_atom(fn: Any) -> bool:
    """Whether all the mass of a distribution lies on one value.

    Example:
        >>> is_atom(Delta(torch.zeros(3)).to_event(1)), is_atom(torch.distributions.Normal(0.0, 1.0))
        (True, False)
    """
    return isinstance(unwrap(fn), (Delta, Unit))


def is_factor(fn: Any) -> bool:
    """Whether a distribution has no value at all, and is a factor only."""
    return isinstance(unwrap(fn), Unit)


def atom_log_density(fn: Any) -> Tensor:
    """The log density that an atom brings along, ``(*batch_shape,)``; its value is not looked at, and may be nan.

    Example:
        >>> atom_log_density(Delta(torch.zeros(3), log_density=torch.ones(3)).to_event(1))
        tensor(3.)
    """
    if isinstance(fn, Independent):
        log_density, dims = atom_log_density(fn.base_dist), fn.reinterpreted_batch_ndims
        return log_density.flatten(log_density.dim() - dims).sum(-1) if dims else log_density
    if isinstance(fn, MaskedDistribution):
        log_density = atom_log_density(fn.base_dist)
        return torch.where(torch.as_tensor(mask_of(fn)), log_density, torch.zeros_like(log_density))
    if isinstance(fn, Unit):
        return fn.log_factor
    if isinstance(fn, Delta):
        return torch.as_tensor(fn.log_density)

    return fn.log_prob(fn.sample())


def has_atom(fn: Any) -> bool:
    """Whether a part of a distribution that has a density is an atom.

    Example:
        >>> from pyro.distributions import Normal, ZeroInflatedDistribution
        >>> has_atom(ZeroInflatedDistribution(Normal(0.0, 1.0), gate=torch.tensor(0.3)))
        True
    """
    if hasattr(fn, "gate") and hasattr(fn, "base_dist"):  # a distribution inflated at zero
        return not fn.base_dist.support.is_discrete or has_atom(fn.base_dist)
    names = ("base_dist", "component_distribution", "component0", "component1")
    parts = [part for part in (getattr(fn, name, None) for name in names) if part is not None]

    return any(is_atom(part) or has_atom(part) for part in parts) and not is_atom(fn)

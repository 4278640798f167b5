r"""Observations that a mask takes out count for nothing, whatever stands there: nan, infinity or another sentinel.

.. math::
    \log p = \sum_i m_i \log p(y_i), \qquad m_i \in \{0, 1\}

Zero times the derivative of a density that is no number is no number either, so every gradient would be lost. Where an
entry is masked, a value well inside of the support stands in *before* the density is evaluated; the user's tensors stay
as they are. Where no entry is masked out that needs it, nothing changes.

``NanMaskedNormal`` and ``NanMaskedMultivariateNormal`` take nan for missing. Pyro's densities of these pick rows out by
their values; those below are the same without that, so that batches and graphs can be made of them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from pyro.distributions import NanMaskedMultivariateNormal, NanMaskedNormal
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, constraints

from pyro_osds.model.distributions.stable import replaced
from pyro_osds.model.distributions.supports import UnknownSupportError, bare, inside
from pyro_osds.model.distributions.wrappers import is_masked, is_wrapper, unwrap
from pyro_osds.model.pyro_internals import mask_of
from pyro_osds.runtime.torch_internals import is_batchedtensor, unexpanded_factor, without_function_modes

NAN_MASKED = (NanMaskedNormal, NanMaskedMultivariateNormal)
"""Distributions for which an observed value that is not finite is missing."""

# Patterns of missing entries that are evaluated one by one. Each is some operations; with more of them, every row gets
# a matrix of its own, which takes the memory of all rows times the square of an event.
_MANY_PATTERNS = 32


def observed_log_prob(fn: Any, value: Any, mask: Any) -> Tensor:
    """The log density of observed values, of which those that a mask takes out are not looked at.

    Arguments:
        fn: The distribution.
        value: Observed values.
        mask: The mask around the site, of the batch shape or one that broadcasts with it; None for none.

    Returns:
        ``(*batch_shape,)``, to which the site's mask is still to be applied; what is masked out is finite.

    Example:
        >>> fn, y = torch.distributions.Gamma(2.0, 1.0), torch.tensor([1.0, torch.nan])
        >>> observed_log_prob(fn, y, torch.tensor([True, False]))
        tensor([-1., -1.])
    """
    if mask is None and not is_masked(fn):
        return fn.log_prob(value)
    replacement, lost = _replacement(fn, value, mask)
    log_prob = fn.log_prob(replacement)

    return log_prob if lost is None else torch.where(lost, -math.inf, log_prob)


def without_missing(site: Any) -> Any:
    """The value of an observed site with something inside the support where it is masked out or missing.

    Raises:
        UnknownSupportError: If there is a masked entry outside of the support, and nothing inside is known.
    """
    fn, value, mask = site["fn"], site["value"], site["mask"]
    if isinstance(value, Tensor) and isinstance(unwrap(fn), NAN_MASKED):
        return torch.where(value.isfinite(), value, 0.0)
    if not isinstance(value, Tensor) or (mask is None and not is_masked(fn)):
        return value

    return _replacement(fn, value, mask)[0]


def _replacement(fn: Any, value: Tensor, mask: Any) -> tuple[Tensor, Tensor | None]:
    """The values to evaluate at, and, where the mask depends on latents, which of them count and are impossible."""
    # Of constants, which a mode may be about to make part of a batch, Python knows the values.
    with without_function_modes():
        keep, base = kept(fn, mask), unwrap(fn)
        if keep is None or isinstance(base, NAN_MASKED):
            return value, None
        impossible, on_bound = _bad(base, value)
        is_known = not is_batchedtensor(keep)
        if is_batchedtensor(impossible):
            gone, is_known = impossible & ~keep, True
        else:
            # An entry on a bound may count, with the density that it has there.
            gone = (impossible | on_bound) & ~keep if is_known else impossible
            if not gone.any():
                return value, None
        replacement = torch.where(gone, inside(base, value).to(value.dtype), value)
        if is_known:
            return replacement, None
        lost, event_dim = impossible & keep, len(fn.event_shape)

        return replacement, lost.flatten(lost.dim() - event_dim).any(-1) if event_dim else lost


def kept(fn: Any, mask: Any) -> Tensor | None:
    """Which entries count, of a shape that broadcasts with the values; None where all do.

    Arguments:
        fn: The distribution, with masks of its own or not.
        mask: The mask around the site.

    Example:
        >>> from pyro.distributions import Normal
        >>> inner, outer = torch.tensor([True, False]), torch.tensor([[True], [False]])
        >>> kept(Normal(0.0, 1.0).expand([2, 2]).mask(inner).to_event(1), outer[:, 0])
        tensor([[ True, False],
                [False, False]])
    """
    masks = [] if mask is None else [_over_events(mask, len(fn.event_shape))]
    while is_wrapper(fn):
        if isinstance(fn, MaskedDistribution):
            masks.append(_over_events(mask_of(fn), len(fn.event_shape)))
        fn = fn.base_dist
    keep = None
    for each in masks:
        keep = each if keep is None else keep & each

    return keep


def _over_events(mask: Any, event_dim: int) -> Tensor:
    mask = torch.as_tensor(mask).bool()

    return mask.reshape(mask.shape + (1,) * event_dim)


def _bad(base: Any, value: Tensor) -> tuple[Tensor, Tensor]:
    """Which entries are outside of the support, and which on a bound of it, where a gradient may have no value.

    Arguments:
        base: The distribution, without wrappers.
        value: Values of it.

    Returns:
        Booleans with the dimensions of the value; those of an event have size one: one entry stands for all of them.
    """
    event_dim = len(base.event_shape)
    outside = _any_of(~value.isfinite(), event_dim)
    none = torch.zeros_like(outside)
    try:
        support = base.support
        # Some checks fail at what is no number.
        is_needed = is_batchedtensor(outside) or bool(outside.any())
        finite = torch.where(outside, inside(base, value).to(value.dtype), value) if is_needed else value
        within = support.check(finite)
    except (NotImplementedError, UnknownSupportError):
        return outside, none
    # A support that moves with a latent is looked after where densities end at it.
    if is_batchedtensor(within) and not is_batchedtensor(value):
        return outside, none
    outside = outside | ~within.reshape(within.shape + (1,) * event_dim)
    support = bare(support)
    if support.is_discrete:
        return outside, none
    bounds = [getattr(support, name, None) for name in ("lower_bound", "upper_bound")]
    bounds += [0.0] if type(support) is type(constraints.simplex) else []
    at = [value == bound for bound in bounds if bound is not None]
    for each in at:
        none = none | _any_of(each, event_dim)

    return outside, none


def _any_of(bad: Tensor, event_dim: int) -> Tensor:
    for dim in range(1, event_dim + 1):
        bad = bad.any(-dim, keepdim=True)

    return bad


# ---- what takes nan for missing ----


def _nan_masked_normal(self: Any, value: Tensor) -> Tensor:
    ok = value.isfinite()
    log_prob = Normal.log_prob(self, torch.where(ok, value, 0.0))

    return torch.where(ok, log_prob, 0.0)


def _nan_masked_multivariate_normal(self: Any, value: Tensor) -> Tensor:
    if is_batchedtensor(value):  # a latent, of which nothing is missing
        return MultivariateNormal.log_prob(self, value)
    ok = value.isfinite()
    if ok.all():
        return MultivariateNormal.log_prob(self, value)
    ok, difference = torch.broadcast_tensors(ok, torch.where(ok, value - self.loc, 0.0))
    factor = unexpanded_factor(self)
    if factor.shape[:-2].numel() > 1:
        return _marginal(_part(factor @ factor.mT, ok), ok, difference)
    covariance = (factor @ factor.mT).reshape(factor.shape[-2:])
    rows, size = ok.reshape(-1, ok.shape[-1]), ok.shape[-1]
    patterns, which = torch.unique(rows, dim=0, return_inverse=True)
    factors = torch.linalg.cholesky(_part(covariance, patterns))
    flat = difference.reshape(-1, size)
    if len(patterns) > _MANY_PATTERNS:
        log_prob = _of_factor(factors[which], rows, flat[..., None])
        return log_prob.reshape(ok.shape[:-1])
    order = torch.argsort(which, stable=True)
    counts = torch.bincount(which, minlength=len(patterns)).tolist()
    parts = [_of_shared_factor(factors[i], patterns[i], part) for i, part in enumerate(flat[order].split(counts))]

    return torch.cat(parts)[torch.argsort(order)].reshape(ok.shape[:-1])


def _part(covariance: Tensor, ok: Tensor) -> Tensor:
    """A covariance with that of independent standard normal variates for what is missing, ``(*, n, n)``."""
    both = ok[..., :, None] & ok[..., None, :]

    return torch.where(both, covariance, torch.eye(ok.shape[-1], dtype=covariance.dtype, device=covariance.device))


def _marginal(covariance: Tensor, ok: Tensor, difference: Tensor) -> Tensor:
    return _of_factor(torch.linalg.cholesky(covariance), ok, difference[..., None])


def _of_factor(factor: Tensor, ok: Tensor, difference: Tensor) -> Tensor:
    """Log densities of what is there, of a factor for each row; differences are zero where something is missing."""
    whitened = torch.linalg.solve_triangular(factor, difference, upper=False)

    return _log_normal(factor, ok) - 0.5 * whitened.square().sum((-2, -1))


def _of_shared_factor(factor: Tensor, ok: Tensor, difference: Tensor) -> Tensor:
    """The same of one factor for all rows, ``(n, n), (n,), (R, n) -> (R,)``."""
    whitened = torch.linalg.solve_triangular(factor, difference.mT, upper=False)

    return _log_normal(factor, ok) - 0.5 * whitened.square().sum(-2)


def _log_normal(factor: Tensor, ok: Tensor) -> Tensor:
    log_scale = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    return -log_scale - 0.5 * math.log(2.0 * math.pi) * ok.sum(-1)


@contextlib.contextmanager
def nan_is_missing() -> Iterator[None]:
    """Pyro's distributions with missing entries have the densities of this file, until they are put back.

    Example:
        >>> fn = NanMaskedNormal(torch.tensor(0.0), torch.tensor(1.0))
        >>> with nan_is_missing():
        ...     fn.log_prob(torch.tensor([0.0, torch.nan]))
        tensor([-0.9189,  0.0000])
    """
    own = {NanMaskedNormal: _nan_masked_normal, NanMaskedMultivariateNormal: _nan_masked_multivariate_normal}
    with replaced(own):
        yield

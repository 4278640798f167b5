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

import numpy as np
import torch
from pyro.distributions import NanMaskedMultivariateNormal, NanMaskedNormal
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, constraints

from pyro_osds.model.distributions.patterns import MAX_UNROLLED, Rearranged, inverse_factor
from pyro_osds.model.distributions.stable import replaced
from pyro_osds.model.distributions.supports import UnknownSupportError, bare, inside
from pyro_osds.model.distributions.wrappers import is_masked, is_wrapper, unwrap
from pyro_osds.model.pyro_internals import mask_of
from pyro_osds.runtime.torch_internals import (
    is_batchedtensor,
    unexpanded_factor,
    without_dispatch_modes,
    without_function_modes,
)

NAN_MASKED = (NanMaskedNormal, NanMaskedMultivariateNormal)
"""Distributions for which an observed value that is not finite is missing."""

# What a piece of rows costs, in rows: a matrix of its own.
_PIECE_COST = 16


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
        # The value of a factor, or of any Unit, has no entries: nothing of it is missing.
        if keep is None or isinstance(base, NAN_MASKED) or not value.numel():
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
    factor, loc = unexpanded_factor(self), self.loc
    shape = np.broadcast_shapes(value.shape, loc.shape)
    # Which entries there are is the same at all points, and no part of a record.
    with without_function_modes(), without_dispatch_modes(), torch.no_grad():
        plan = _Plan(ok.expand(shape), factor.shape[:-2])
        # In the precision of the density, before anything is rounded in that of the data.
        filled = torch.where(ok, value, 0.0).to(torch.promote_types(value.dtype, loc.dtype))
        filled = filled.expand(shape).reshape(-1, shape[-1])[plan.rows].mT.contiguous()
        # The middle of what is there, so that two products below lose no digits in their difference.
        middle = (filled.sum((0, 2)) / plan.ok[plan.group].sum(0).clamp(min=1) / filled.shape[-1])[:, None]
        filled = filled - middle
        with_one = torch.cat([filled, torch.ones_like(filled[:, :1])], 1)
    log_scale, inverse = _inverse_factors((factor @ factor.mT).reshape(-1, *factor.shape[-2:])[plan.matrix], plan.ok)
    # Rows come last: sums over entries are then sums of rows, which take a tenth of the time.
    if all(size == 1 or step == 0 for size, step in zip(loc.shape[:-1], loc.stride()[:-1], strict=True)):
        # The same for all rows, for which a plate has expanded it.
        centre = loc[(0,) * (loc.dim() - 1)][:, None] - middle
        whitened = torch.cat([inverse, -(inverse @ centre)], -1)[plan.group] @ with_one
    else:
        whitened = inverse[plan.group] @ (filled - (loc.expand(shape).reshape(-1, shape[-1])[plan.rows].mT - middle))
    constant = log_scale + 0.5 * math.log(2.0 * math.pi) * plan.ok.sum(-1).to(log_scale.dtype)
    log_prob = -constant[plan.group][:, None] - 0.5 * whitened.square().sum(-2)

    return Rearranged.apply(log_prob.reshape(-1), plan.back, plan.there).reshape(shape[:-1])


class _Plan:
    """Rows by what is missing of them, and by their covariance: each such group has one factorisation.

    Groups are cut into pieces of one size, filled up with copies of a row, so that all of them are one operation.

    Arguments:
        ok: What is there, ``(*batch_shape, n)``.
        shape: The batch shape of the covariances, which broadcasts with that of the rows.
    """

    def __init__(self, ok: Tensor, shape: torch.Size) -> None:
        rows, device = ok.reshape(-1, ok.shape[-1]), ok.device
        matrix = torch.arange(shape.numel(), device=device).reshape(shape).expand(ok.shape[:-1]).reshape(-1, 1)
        kinds, which = torch.unique(torch.cat([matrix, rows.long()], -1), dim=0, return_inverse=True)
        self.matrix, self.ok = kinds[:, 0], kinds[:, 1:].bool()
        counts = torch.bincount(which, minlength=len(kinds)).tolist()
        size = _piece(counts)
        groups, pieces = [], []
        for group, part in enumerate(torch.argsort(which, stable=True).split(counts)):
            count = -(-len(part) // size)
            pieces.append(torch.cat([part, part[-1:].expand(count * size - len(part))]))
            groups += [group] * count
        flat = torch.cat(pieces)
        self.rows, self.group = flat.reshape(-1, size), torch.tensor(groups, device=device)
        self.back = torch.empty(len(rows), dtype=torch.long, device=device)
        self.back[flat] = torch.arange(len(flat), device=device)
        # For each place in the pieces the row that is read from it; none, the number of rows, for copies.
        self.there = torch.full((len(flat),), len(rows), device=device)
        self.there[self.back] = torch.arange(len(rows), device=device)


def _piece(counts: list[int]) -> int:
    """Rows of a piece, so that there is little to fill up and there are few pieces."""
    sizes = [2**power for power in range(max(counts).bit_length())]

    return min(sizes, key=lambda size: sum(-(-count // size) * (size + _PIECE_COST) for count in counts))


def _inverse_factors(covariance: Tensor, ok: Tensor) -> tuple[Tensor, Tensor]:
    """Log determinants of Cholesky factors of what is there, and their inverses, zero where something is missing.

    Arguments:
        covariance: Covariances, ``(G, n, n)``.
        ok: What is there, ``(G, n)``.
    """
    both = ok[:, :, None] & ok[:, None, :]
    eye = torch.eye(ok.shape[-1], dtype=covariance.dtype, device=covariance.device)
    # For what is missing stand independent standard normal variates.
    whole = torch.where(both, covariance, eye)
    if ok.shape[-1] <= MAX_UNROLLED:
        log_det, inverse = inverse_factor(whole)
        return log_det, torch.where(both, inverse, 0.0)
    factor = torch.linalg.cholesky(whole)
    inverse = torch.linalg.solve_triangular(factor, eye.expand(factor.shape), upper=False)

    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1), torch.where(both, inverse, 0.0)


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

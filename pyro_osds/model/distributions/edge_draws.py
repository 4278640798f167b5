r"""Draws of a site's prior on the unconstrained side, where a draw of the value would round to a bound.

.. math::
    \log G_a = \log G_{a + 1} + \frac{\log V}{a}, \qquad V \sim \text{Uniform}(0, 1)

:math:`G_a` is a gamma variate: with shape 0.02 it is below 1e-16 half of the time. Its logarithm is a number like any
other. A Beta variate is the share of one of two of them, a Dirichlet variate the shares of several.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import ComposeTransform, MixtureSameFamily
from torch.nn.functional import logsigmoid

from pyro_osds.model.distributions.densities import both, is_pushed, log1m_power, partial_shapes, resolve
from pyro_osds.model.distributions.matrices import from_factor
from pyro_osds.model.distributions.transforms import (
    ABOVE,
    BOUNDED,
    CORRELATION,
    MATRIX,
    POSITIVE,
    SIMPLEX,
    Sticks,
    kind_of,
    to_support,
)
from pyro_osds.model.distributions.wrappers import unwrap

_KEY = "_pyro_osds_unconstrained"


class DrawUnconstrained(Messenger):
    """Draws a site by its unconstrained value where that is better, and hands on what it is mapped to.

    Arguments:
        names: Which sites.
        to_value: The transform to a site's value, given the site.
    """

    def __init__(self, names: Collection[str], to_value: Callable[[Mapping[str, Any]], Any]) -> None:
        super().__init__()
        self.names = names
        self.to_value = to_value

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] not in self.names or msg["is_observed"] or msg["done"]:
            return
        transform = self.to_value(msg)
        u = draw_unconstrained(msg["fn"], transform)
        if u is not None:
            msg["value"], msg["done"] = transform(u), True
            msg["infer"] = {**msg["infer"], _KEY: u}


def unconstrained_draw(site: Mapping[str, Any]) -> Tensor | None:
    """What :class:`DrawUnconstrained` drew at a site, or None."""
    return site["infer"].get(_KEY)


def draw_unconstrained(fn: Any, transform: Any) -> Tensor | None:
    """One draw of a distribution on the unconstrained side.

    Arguments:
        fn: The distribution.
        transform: What :func:`~pyro_osds.model.distributions.transforms.to_support` says of it.

    Returns:
        Of the shape that the transform asks for; None where a draw of the value is as good.

    Example:
        >>> fn = dist.Gamma(1e-4, 1.0)
        >>> u = draw_unconstrained(fn, torch.distributions.ExpTransform())
        >>> u < -200, u.exp()
        (tensor(True), tensor(0.))
    """
    source, transform = resolve(fn, transform)
    if isinstance(source, MixtureSameFamily):
        return _of_mixture(_of_batch(source, fn), transform)
    draw = _of_base if is_pushed(source, transform) else _DRAWS.get((type(source), kind_of(transform)))
    if draw is None:
        return None

    return draw(_of_batch(source, fn))


def _of_batch(source: Any, fn: Any) -> Any:
    """A distribution without the wrappers of ``fn``, expanded as that is."""
    shape = fn.batch_shape + fn.event_shape
    batch_shape = shape[: len(shape) - len(source.event_shape)]

    return source if source.batch_shape == batch_shape else source.expand(batch_shape)


def _of_mixture(fn: Any, transform: Any) -> Tensor | None:
    """A draw of one of the components, if these are drawn on the unconstrained side."""
    # Bounds of the mixture are no bounds of a component's.
    if type(transform) is ComposeTransform:
        return None
    draws = draw_unconstrained(fn.component_distribution, transform)
    if draws is None:
        return None
    which = fn.mixture_distribution.sample().expand(fn.batch_shape)
    dim = len(fn.batch_shape)
    which = which.reshape(which.shape + (1,) * (draws.dim() - dim))

    return torch.take_along_dim(draws, which, dim).squeeze(dim)


def correlations(fn: Any) -> Tensor | None:
    """A draw of an LKJ distribution, or None for others.

    Torch's own sampler does not treat rows alike: for three of them with shape 1.5, the variances of the correlations
    are 0.20, 0.25 and 0.25, and not all of them 0.2.
    """
    if not isinstance(unwrap(fn), (torch.distributions.LKJCholesky, dist.LKJ)):
        return None
    transform = to_support(fn)
    u = draw_unconstrained(fn, transform)

    return None if u is None else transform(u)


def log_gamma_variate(shape: Tensor) -> Tensor:
    """The logarithm of a gamma variate for each shape, finite where the variate would be zero.

    Example:
        >>> log_gamma_variate(torch.tensor([1e-5, 1e-5])).isfinite().all()
        tensor(True)
    """
    above = torch.distributions.Gamma(shape + 1, torch.ones_like(shape), validate_args=False).sample()

    return above.log() - _exponential_variate(shape) / shape


def _exponential_variate(like: Tensor) -> Tensor:
    return torch.empty_like(like).exponential_().clamp(min=torch.finfo(like.dtype).tiny)


def _log_expm1(w: Tensor) -> Tensor:
    return w + (-torch.expm1(-w)).log()


def _of_base(fn: Any) -> Tensor:
    return fn.base_dist.sample()


def _gamma(fn: Any) -> Tensor:
    return log_gamma_variate(fn.concentration) - fn.rate.log()


def _inverse_gamma(fn: Any) -> Tensor:
    return fn.rate.log() - log_gamma_variate(fn.concentration)


def _beta(fn: Any) -> Tensor:
    return log_gamma_variate(fn.concentration1) - log_gamma_variate(fn.concentration0)


def _dirichlet(fn: Any) -> Tensor:
    log_part = log_gamma_variate(fn.concentration)
    # What follows each part, from the right.
    rest = log_part[..., 1:].flip(-1).logcumsumexp(-1).flip(-1)

    return Sticks().from_logits(log_part[..., :-1] - rest)


def _kumaraswamy(fn: Any) -> Tensor:
    # 1 - (1 - x^a)^b is uniform: with w = E / b, x^a = 1 - exp(-w) has the logit log(exp(w) - 1).
    a, b = fn.concentration1, fn.concentration0
    v = _log_expm1(_exponential_variate(b) / b)

    return logsigmoid(v) / a - log1m_power(v, 1 / a)


def _weibull(fn: Any) -> Tensor:
    return fn.scale.log() + _exponential_variate(fn.scale).log() / fn.concentration


def _fisher_snedecor(fn: Any) -> Tensor:
    return log_gamma_variate(fn.df1 / 2) - log_gamma_variate(fn.df2 / 2) + fn.df2.log() - fn.df1.log()


def _pareto(fn: Any) -> Tensor:
    return fn.scale.log() + _log_expm1(_exponential_variate(fn.alpha) / fn.alpha)


def _lkj(fn: Any) -> Tensor:
    b = partial_shapes(fn)

    # The logit of (1 + z) / 2 is two times the inverse hyperbolic tangent of z.
    return 0.5 * (log_gamma_variate(b) - log_gamma_variate(b))


def _wishart(fn: Any) -> Tensor:
    # Bartlett: squares on the diagonal are chi-square variates, the others standard normal ones.
    size, factor = fn.event_shape[-1], fn.scale_tril
    shape = 0.5 * (fn.df[..., None] - torch.arange(size, dtype=factor.dtype, device=factor.device))
    log_diagonal = 0.5 * (math.log(2.0) + log_gamma_variate(shape))
    noise = torch.randn_like(factor).tril(-1) + log_diagonal.exp().diag_embed()
    below, order = factor @ noise, torch.arange(size, device=factor.device)
    one = torch.eye(size, dtype=factor.dtype, device=factor.device)
    u = from_factor(torch.where(order[:, None] > order, below, one))
    place = order * (order + 3) // 2

    # The logarithms are exact where the diagonal itself would be zero.
    return u.index_add(-1, place, factor.diagonal(dim1=-2, dim2=-1).log() + log_diagonal)


def _relaxed_one_hot(fn: Any) -> Tensor:
    gumbel = -_exponential_variate(fn.logits).log()
    log_part = ((fn.logits + gumbel) / fn.temperature[..., None]).log_softmax(-1)
    rest = log_part[..., 1:].flip(-1).logcumsumexp(-1).flip(-1)

    return Sticks().from_logits(log_part[..., :-1] - rest)


_DRAWS: dict[tuple[type, str | None], Callable[[Any], Tensor]] = {
    (fn, kind): draw
    for name, kind, draw in (
        ("Beta", BOUNDED, _beta),
        ("Kumaraswamy", BOUNDED, _kumaraswamy),
        ("RelaxedBernoulli", BOUNDED, _of_base),
        ("Dirichlet", SIMPLEX, _dirichlet),
        ("Gamma", POSITIVE, _gamma),
        ("Chi2", POSITIVE, _gamma),
        ("InverseGamma", POSITIVE, _inverse_gamma),
        ("Weibull", POSITIVE, _weibull),
        ("FisherSnedecor", POSITIVE, _fisher_snedecor),
        ("Pareto", ABOVE, _pareto),
        ("LKJCholesky", CORRELATION, _lkj),
        ("Wishart", MATRIX, _wishart),
        ("RelaxedOneHotCategorical", SIMPLEX, _relaxed_one_hot),
    )
    for fn in both(name)
}
_DRAWS[dist.AffineBeta, BOUNDED] = _beta
_DRAWS[dist.RelaxedOneHotCategoricalStraightThrough, SIMPLEX] = _relaxed_one_hot
_DRAWS[dist.RelaxedBernoulliStraightThrough, BOUNDED] = _of_base

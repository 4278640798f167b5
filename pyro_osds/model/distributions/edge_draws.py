r"""Draws of a site's prior on the unconstrained side, where a draw of the value would round to a bound.

.. math::
    \log G_a = \log G_{a + 1} + \frac{\log V}{a}, \qquad V \sim \text{Uniform}(0, 1)

:math:`G_a` is a gamma variate: with shape 0.02 it is below 1e-16 half of the time. Its logarithm is a number like any
other. A Beta variate is the share of one of two of them, a Dirichlet variate the shares of several.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_osds.model.distributions.densities import both, is_pushed, log1m_power, partial_shapes, resolve
from pyro_osds.model.distributions.transforms import ABOVE, BOUNDED, CORRELATION, POSITIVE, SIMPLEX, Sticks, kind_of

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
    draw = _of_base if is_pushed(source, transform) else _DRAWS.get((type(source), kind_of(transform)))
    if draw is None:
        return None
    batch_shape = fn.shape()[: len(fn.shape()) - len(source.event_shape)]

    return draw(source if source.batch_shape == batch_shape else source.expand(batch_shape))


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
    )
    for fn in both(name)
}
_DRAWS[dist.AffineBeta, BOUNDED] = _beta

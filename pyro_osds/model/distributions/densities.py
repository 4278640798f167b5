r"""The density of a site on the real line that is mapped to its support, in closed form.

.. math::
    \log p_u(u) = \log p(T(u)) + \log \Big| \frac{dT}{du} \Big|

A Beta, Gamma or Dirichlet with small shapes holds mass where :math:`T` saturates: 16 % of a Beta(0.05, 0.05) lie within
1e-16 of 0 or 1, where no floating point number says how far. Their densities have a closed form in :math:`u` that never
looks at the value. With :math:`\sigma` the logistic function, :math:`\ell(u) = \log \sigma(u)` and ``B`` the beta
function:

==================  =======================  ========================================================================
distribution        coordinate               log density of ``u``
==================  =======================  ========================================================================
Beta, AffineBeta    ``u = logit x``          ``a l(u) + b l(-u) - log B(a, b)``
Kumaraswamy         ``u = logit x``          ``log(a b) + a l(u) + l(-u) + (b - 1) log(1 - x^a)``, ``log x = l(u)``
Uniform             ``u = logit x``          ``l(u) + l(-u)``
Dirichlet           sticks ``s_i = logit``   ``sum_i a_i l(s_i) + (a_{i+1} + ... + a_K) l(-s_i) - log B(a)``
Gamma, Chi2         ``v = u + log rate``     ``a v - exp(v) - log Gamma(a)``, ``u = log x``
Exponential         ``v = u + log rate``     ``v - exp(v)``
InverseGamma        ``v = log rate - u``     ``a v - exp(v) - log Gamma(a)``
Weibull             ``v = k (u - log s)``    ``log k + v - exp(v)``
HalfNormal          ``v = u - log s``        ``log(2 / pi) / 2 + v - exp(2 v) / 2``
HalfCauchy          ``v = u - log s``        ``log(2 / pi) - log(exp(v) + exp(-v))``
FisherSnedecor      ``v = u + log(m / n)``   ``m/2 l(v) + n/2 l(-v) - log B(m/2, n/2)``
Pareto              ``v = u - log s``        ``log a + a l(-v) + l(v)``, ``u = log(x - s)``
VonMises            ``x = c + pi tanh u/2``  ``k (cos(x - loc) - 1) - log i0e(k) + l(u) + l(-u)``
LKJCholesky         ``z_ij = tanh u_ij``     ``sum b l(2 u) + b l(-2 u) - log B(b, b) + log 2``, ``b = eta + (D-2-j)/2``
Wishart             log-Cholesky             :mod:`~pyro_osds.model.distributions.matrices`
RelaxedOneHot       sticks                   ``sum_i log softmax_i(logits - t log x) - log x_i``, and constants
==================  =======================  ========================================================================

So have LogNormal, LogisticNormal, RelaxedBernoulli and every ``TransformedDistribution`` by ``ExpTransform``,
``SigmoidTransform`` or ``StickBreakingTransform`` alone, whose density in ``u`` is that of their base; and affine maps
of positive or bounded distributions, which have that of the distribution that they map; and mixtures of any of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import ComposeTransform, TransformedDistribution
from torch.nn.functional import logsigmoid

from pyro_osds.model.distributions.matrices import by_value, wishart
from pyro_osds.model.distributions.mixed import Choice
from pyro_osds.model.distributions.transforms import (
    ABOVE,
    BOUNDED,
    CIRCLE,
    CORRELATION,
    KINDS,
    MATRIX,
    POSITIVE,
    SIMPLEX,
    Circle,
    Sticks,
    kind_of,
    log_sech_squared,
    stripped,
    triangle,
)
from pyro_osds.model.distributions.wrappers import by_batch, is_masked, unwrap


def unconstrained_log_prob(fn: Any, transform: Any, u: Tensor) -> Tensor | None:
    r"""The log density of a site in ``u``, in closed form.

    .. math:: \log p(T(u)) + \log |dT / du|

    Arguments:
        fn: The site's distribution.
        transform: What :func:`~pyro_osds.model.distributions.transforms.to_support` says of it. Another one of the same
            kind is taken for it.
        u: Unconstrained values, of the shape that the transform asks for.

    Returns:
        ``(*batch_shape,)``, event dimensions summed; None where there is no closed form.

    Example:
        >>> from torch.distributions import biject_to, constraints
        >>> from pyro_osds.model.distributions.transforms import to_support
        >>> fn = dist.Beta(0.05, 0.05)
        >>> unconstrained_log_prob(fn, to_support(fn), torch.tensor([-500.0, 500.0]))
        tensor([-28.6850, -28.6850])
        >>> unconstrained_log_prob(dist.Normal(0.0, 1.0), biject_to(constraints.real), torch.zeros(3)) is None
        True
    """
    if is_masked(fn):
        return None
    source, transform = resolve(fn, transform)
    log_density = _closed_form(source, transform)
    if log_density is None:
        return None
    value, shape, own = log_density(source, u), fn.batch_shape + fn.event_shape, len(source.event_shape)
    # An expanded distribution has the parameters of one, and a uniform one has none.
    # Numpy's function: torch's own imports symbolic algebra, a second at the first use.
    value = value.expand(np.broadcast_shapes(value.shape, shape[: len(shape) - own]))
    event = len(fn.event_shape) - own

    return value.flatten(value.dim() - event).sum(-1) if event else value


def log1m_power(u: Tensor, exponent: Tensor) -> Tensor:
    r"""``log(1 - sigmoid(u)^exponent)``, exact where the sigmoid rounds to 0 or 1.

    .. math:: \log(1 - e^{-w}) = \log w + \log \frac{1 - e^{-w}}{w}, \qquad w = -a \log \sigma(u)

    Example:
        >>> log1m_power(torch.tensor([0.0, 500.0]), torch.tensor(2.0)).tolist()
        [-0.2876..., -499.306...]
    """
    w = -exponent * logsigmoid(u)
    is_small = w < 1
    small = torch.where(is_small, w, 0.5).clamp(min=torch.finfo(w.dtype).tiny)
    large = torch.where(is_small, 1.0, w)
    log_w = _log_softplus(-u) + exponent.log()

    return torch.where(is_small, log_w + (-torch.expm1(-small) / small).log(), torch.log1p(-torch.exp(-large)))


def _log_softplus(v: Tensor) -> Tensor:
    """``log(log(1 + exp(v)))``, which is ``v`` where the exponential underflows."""
    t = v.clamp(max=0).exp().clamp(min=torch.finfo(v.dtype).tiny)
    above = -logsigmoid(-v.clamp(min=0))

    return torch.where(v < 0, v + (torch.log1p(t) / t).log(), above.log())


def _bounded_exp(v: Tensor) -> Tensor:
    """An exponential that goes on as a straight line before it overflows, where the density has long been zero."""
    # The largest number to the power of 3/4: that, times a line in v, does not overflow for any v that occurs.
    end = 0.75 * math.log(torch.finfo(v.dtype).max)

    return v.clamp(max=end).exp() * (1 + (v - end).clamp(min=0))


def resolve(fn: Any, transform: Any) -> tuple[Any, Any]:
    """A distribution without its wrappers, and the way to its support.

    Where an affine map leads on from another distribution's support, that distribution and the way to there.
    """
    fn = unwrap(fn)
    while type(transform) is ComposeTransform and isinstance(fn, TransformedDistribution):
        is_map = [id(part) for part in transform.parts[1:]] == [id(part) for part in fn.transforms]
        if not is_map or is_masked(fn.base_dist):
            break
        fn, transform = unwrap(fn.base_dist), transform.parts[0]

    return fn, stripped(transform)


def is_pushed(fn: Any, transform: Any) -> bool:
    """Whether a distribution is its base's, sent along the very map that leads to its support: ``u`` is of the base."""
    if type(fn) not in _PUSHED or type(transform) not in KINDS:
        return False

    return [KINDS.get(type(part)) for part in fn.transforms] == [kind_of(transform)]


def _closed_form(fn: Any, transform: Any) -> Callable[[Any, Tensor], Tensor] | None:
    """The log density for a pair of types, ``(fn, u) -> (*batch_shape,)``, or None."""
    kind = kind_of(transform)
    if kind == CIRCLE and type(fn) in _VON_MISES:
        return lambda fn, u: _von_mises(fn, u, transform)

    if type(fn) in _MIXTURES:
        return _mixture_of(fn, transform)
    if type(fn) is dist.MaskedMixture:
        return lambda fn, u: _masked_mixture(fn, u, transform)

    found = _pushed if is_pushed(fn, transform) else _CLOSED_FORMS.get((type(fn), kind))

    return by_value if found is None and kind == MATRIX else found


def _mixture_of(fn: Any, transform: Any) -> Callable[[Any, Tensor], Tensor] | None:
    """The log density of a mixture, of those of its components where they have one."""
    component = fn.component_distribution
    # Bounds of the mixture are no bounds of a component's.
    if type(transform) is ComposeTransform or is_masked(component):
        return None
    if _closed_form(*resolve(component, transform)) is None:
        return None

    def log_density(fn: Any, u: Tensor) -> Tensor:
        dim = len(fn.event_shape) or int(kind_of(transform) == SIMPLEX)
        # Matrices have coordinates in one dimension.
        dim = dim - 1 if kind_of(transform) in (MATRIX, CORRELATION) else dim
        parts = unconstrained_log_prob(fn.component_distribution, transform, u.unsqueeze(-1 - dim))
        assert parts is not None  # looked up above
        return torch.logsumexp(parts + fn.mixture_distribution.logits.log_softmax(-1), -1)

    return log_density


def _masked_mixture(fn: Any, u: Tensor, transform: Any) -> Tensor:
    """Each entry has the density of its own component, and the other one is not asked about it."""
    components = fn.component0, fn.component1
    if type(transform) is not Choice:
        first, second = (_of_component(part, transform, u) for part in components)
        return torch.where(fn.mask, second, first)
    maps, parts = (transform.first, transform.second), transform.parts(u)
    first, second = (_of_component(*each) for each in zip(components, maps, parts, strict=True))

    return torch.where(fn.mask, second, first)


def _of_component(fn: Any, transform: Any, u: Tensor) -> Tensor:
    """The log density of ``u``, in closed form or by way of the value."""
    log_density = unconstrained_log_prob(fn, transform, u)
    if log_density is not None:
        return log_density
    value = transform(u)

    return fn.log_prob(value) + by_batch(transform.log_abs_det_jacobian(u, value), value, len(fn.event_shape))


def _pushed(fn: Any, u: Tensor) -> Tensor:
    value = fn.base_dist.log_prob(u)
    event = len(fn.event_shape) - len(fn.base_dist.event_shape)

    return value.flatten(value.dim() - event).sum(-1) if event else value


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return a.lgamma() + b.lgamma() - (a + b).lgamma()


def _logit_beta(u: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return a * logsigmoid(u) + b * logsigmoid(-u) - _log_beta(a, b)


def _log_gamma(v: Tensor, shape: Tensor) -> Tensor:
    return shape * v - _bounded_exp(v) - shape.lgamma()


def _beta(fn: Any, u: Tensor) -> Tensor:
    return _logit_beta(u, fn.concentration1, fn.concentration0)


def _kumaraswamy(fn: Any, u: Tensor) -> Tensor:
    a, b = fn.concentration1, fn.concentration0
    return (a * b).log() + a * logsigmoid(u) + logsigmoid(-u) + (b - 1) * log1m_power(u, a)


def _uniform(fn: Any, u: Tensor) -> Tensor:
    return logsigmoid(u) + logsigmoid(-u)


def _relaxed_bernoulli(fn: Any, u: Tensor) -> Tensor:
    v = fn.logits - u * fn.temperature
    return fn.temperature.log() + logsigmoid(v) + logsigmoid(-v)


def _relaxed_one_hot(fn: Any, u: Tensor) -> Tensor:
    sticks, temperature = Sticks(), fn.temperature
    log_part = sticks.log_parts(u)
    score = (fn.logits - temperature[..., None] * log_part).log_softmax(-1).sum(-1)
    size = log_part.shape[-1]
    constant = math.lgamma(size) + (size - 1) * temperature.log()

    # The value itself is not needed for the log-determinant.
    return score + constant - log_part.sum(-1) + sticks.log_abs_det_jacobian(u, log_part)


def _dirichlet(fn: Any, u: Tensor) -> Tensor:
    a, logit = fn.concentration, Sticks().logits(u)
    # The shapes of the parts that follow, added up.
    after = a[..., 1:].flip(-1).cumsum(-1).flip(-1)
    sticks = a[..., :-1] * logsigmoid(logit) + after * logsigmoid(-logit)

    return sticks.sum(-1) + a.sum(-1).lgamma() - a.lgamma().sum(-1)


def _gamma(fn: Any, u: Tensor) -> Tensor:
    return _log_gamma(u + fn.rate.log(), fn.concentration)


def _exponential(fn: Any, u: Tensor) -> Tensor:
    v = u + fn.rate.log()
    return v - _bounded_exp(v)


def _inverse_gamma(fn: Any, u: Tensor) -> Tensor:
    return _log_gamma(fn.rate.log() - u, fn.concentration)


def _weibull(fn: Any, u: Tensor) -> Tensor:
    v = fn.concentration * (u - fn.scale.log())
    return fn.concentration.log() + v - _bounded_exp(v)


def _half_normal(fn: Any, u: Tensor) -> Tensor:
    v = u - fn.scale.log()
    return 0.5 * math.log(2 / math.pi) + v - 0.5 * _bounded_exp(2 * v)


def _half_cauchy(fn: Any, u: Tensor) -> Tensor:
    v = u - fn.scale.log()
    return math.log(2 / math.pi) - torch.logaddexp(v, -v)


def _fisher_snedecor(fn: Any, u: Tensor) -> Tensor:
    return _logit_beta(u + fn.df1.log() - fn.df2.log(), fn.df1 / 2, fn.df2 / 2)


def _pareto(fn: Any, u: Tensor) -> Tensor:
    v = u - fn.scale.log()
    return fn.alpha.log() + fn.alpha * logsigmoid(-v) + logsigmoid(v)


def _von_mises(fn: Any, u: Tensor, circle: Circle) -> Tensor:
    angle = circle.center - fn.loc + circle.from_center(u)
    from_peak = fn.concentration * (angle.cos() - 1)

    # The factor of the turn and the one of the density cancel.
    return from_peak - torch.special.i0e(fn.concentration).log() + logsigmoid(u) + logsigmoid(-u)


def _lkj(fn: Any, u: Tensor) -> Tensor:
    """Partial correlations are independent, symmetric beta variates on (-1, 1)."""
    b = partial_shapes(fn)
    return (b * log_sech_squared(u) - (2.0 * b - 1.0) * math.log(2.0) - _log_beta(b, b)).sum(-1)


def partial_shapes(fn: Any) -> Tensor:
    """Both shapes of the beta variate of each partial correlation, ``(*batch_shape, D (D - 1) / 2)``; from 0."""
    _, column = triangle(fn.event_shape[-1], fn.concentration.device)

    return fn.concentration[..., None] + 0.5 * (fn.event_shape[-1] - 2 - column)


def both(name: str) -> tuple[type, type]:
    """Torch's class and Pyro's, which adds handlers and leaves the density alone."""
    return getattr(torch.distributions, name), getattr(dist, name)


# Exact types: a subclass may have another density.
_VON_MISES = both("VonMises")
_MIXTURES = {*both("MixtureSameFamily")}
_PUSHED = {*both("TransformedDistribution"), *both("LogNormal"), *both("LogisticNormal")}
_CLOSED_FORMS: dict[tuple[type, str | None], Callable[[Any, Tensor], Tensor]] = {
    (fn, kind): log_density
    for name, kind, log_density in (
        ("Beta", BOUNDED, _beta),
        ("Kumaraswamy", BOUNDED, _kumaraswamy),
        ("Uniform", BOUNDED, _uniform),
        ("RelaxedBernoulli", BOUNDED, _relaxed_bernoulli),
        ("Dirichlet", SIMPLEX, _dirichlet),
        ("Gamma", POSITIVE, _gamma),
        ("Chi2", POSITIVE, _gamma),
        ("Exponential", POSITIVE, _exponential),
        ("InverseGamma", POSITIVE, _inverse_gamma),
        ("Weibull", POSITIVE, _weibull),
        ("HalfNormal", POSITIVE, _half_normal),
        ("HalfCauchy", POSITIVE, _half_cauchy),
        ("FisherSnedecor", POSITIVE, _fisher_snedecor),
        ("Pareto", ABOVE, _pareto),
        ("LKJCholesky", CORRELATION, _lkj),
        ("Wishart", MATRIX, wishart),
        ("RelaxedOneHotCategorical", SIMPLEX, _relaxed_one_hot),
    )
    for fn in both(name)
}
_CLOSED_FORMS[dist.AffineBeta, BOUNDED] = _beta
# As latents they are what they relax; only their draws are rounded.
_CLOSED_FORMS[dist.RelaxedBernoulliStraightThrough, BOUNDED] = _relaxed_bernoulli
_CLOSED_FORMS[dist.RelaxedOneHotCategoricalStraightThrough, SIMPLEX] = _relaxed_one_hot

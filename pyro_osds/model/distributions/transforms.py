r"""How the real line is mapped to a site's support, and the density of a site there.

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
==================  =======================  ========================================================================

So have LogNormal, LogisticNormal, RelaxedBernoulli and every ``TransformedDistribution`` by ``ExpTransform``,
``SigmoidTransform`` or ``StickBreakingTransform`` alone, whose density in ``u`` is that of their base; and affine maps
of positive or bounded distributions, which have that of the distribution that they map.

An angle is periodic: over the whole line a von Mises density has no integral. Here the line is mapped to one turn
around its location.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    ComposeTransform,
    ExpTransform,
    Independent,
    IndependentTransform,
    SigmoidTransform,
    StickBreakingTransform,
    Transform,
    TransformedDistribution,
    biject_to,
    constraints,
)
from torch.nn.functional import logsigmoid

_LOCATION_SCALE = (
    torch.distributions.Normal,
    torch.distributions.StudentT,
    torch.distributions.Laplace,
    torch.distributions.Cauchy,
)
_WRAPPERS = (Independent, MaskedDistribution, ExpandedDistribution)
BOUNDED, POSITIVE, ABOVE, SIMPLEX, CIRCLE = "sigmoid", "exp", "exp and a shift", "sticks", "circle"


# ---- the maps ----


def to_support(fn: Any, centered: bool = True) -> Any:
    """The transform from the real line to a distribution's support.

    A plain ``TransformedDistribution`` says that an affine map of positive numbers may be any number. There, the way
    leads through the support of its base. Pyro takes an angle for any number; here it is one of a turn.

    Arguments:
        fn: The distribution.
        centered: Whether a turn is cut opposite to its location, which is right unless that has a value for each one
            of a discrete latent; otherwise at half a turn.

    Example:
        >>> to_support(dist.Beta(1.0, 1.0)), to_support(dist.VonMises(0.0, 1.0))
        (SigmoidTransform(), Circle())
    """
    plain, center = unwrap(fn), _angles(fn)
    if center is not None:
        return _independent(Circle(center if centered else center.new_zeros(())), fn.event_dim)
    transformed = TransformedDistribution
    if isinstance(plain, transformed) and type(plain).support is transformed.support:
        through_base = not _is_real(plain.base_dist.support)
        if through_base and _is_real(plain.support):
            return ComposeTransform([to_support(plain.base_dist), *plain.transforms])
    if _bare(fn.support) is constraints.simplex:
        return _independent(Sticks(), fn.event_dim - 1)
    transform = biject_to(fn.support)

    return _independent(Positive(), fn.event_dim) if type(_stripped(transform)) is ExpTransform else transform


def loc_scale(fn: Any) -> tuple[Tensor, Tensor] | None:
    """Location and scale of a distribution on the real line that has both, else None."""
    shape = fn.shape()
    while isinstance(fn, (Independent, MaskedDistribution)):
        fn = fn.base_dist
    if not isinstance(fn, _LOCATION_SCALE):
        return None

    return fn.loc.expand(shape), fn.scale.expand(shape)


def unwrap(fn: Any) -> Any:
    """A distribution without the wrappers of event dimensions, masks and plates."""
    while isinstance(fn, _WRAPPERS):
        fn = fn.base_dist

    return fn


def by_batch(log_abs_det: Tensor, value: Tensor, event_dim: int) -> Tensor:
    """Log-determinants of the way to a value with its event dimensions summed, ``(*batch_shape,)``."""
    batch_dim = value.dim() - event_dim

    return log_abs_det.flatten(batch_dim).sum(-1) if log_abs_det.dim() > batch_dim else log_abs_det


class Positive(ExpTransform):
    """An exponential that stops before it underflows, as torch's sigmoid stops next to 0 and 1.

    A Poisson rate of 0 has a density and no gradient. It does overflow: a density that is not known in closed form, at
    a largest number times the slope of the map, would grow without end.

    Example:
        >>> Positive()(torch.tensor([-1000.0, 0.0, 1000.0]))
        tensor([1.1873e-38, 1.0000e+00,        inf])
    """

    def _call(self, x: Tensor) -> Tensor:
        return x.clamp(min=_least_log(x.dtype)).exp()

    def _inverse(self, y: Tensor) -> Tensor:
        return y.clamp(min=torch.finfo(y.dtype).tiny).log()


def _least_log(dtype: torch.dtype) -> float:
    return math.log(torch.finfo(dtype).tiny) + 0.01


class Circle(Transform):
    r"""The real line onto one turn.

    .. math:: T(u) = c + \pi \tanh(u / 2) \quad \text{wrapped into} \ [-\pi, \pi)

    Arguments:
        center: The angle opposite to the cut, of any shape that broadcasts with ``u``.

    Example:
        >>> circle = Circle(torch.tensor(3.0))
        >>> circle(torch.tensor([0.0, 1.0]))
        tensor([ 3.0000, -1.8314])
        >>> circle.inv(torch.tensor([3.0, -1.8314]))
        tensor([0.0000, 1.0000])
    """

    domain = constraints.real
    codomain = constraints.half_open_interval(-math.pi, math.pi)
    bijective = True
    sign = +1  # type: ignore[assignment]

    def __init__(self, center: Tensor, cache_size: int = 0) -> None:
        super().__init__(cache_size=cache_size)
        self.center = center

    def with_cache(self, cache_size: int = 1) -> Circle:
        """The same map, which remembers its latest value if asked to."""
        return Circle(self.center, cache_size)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Circle) and bool((self.center == other.center).all())

    __hash__ = None  # type: ignore[assignment]

    def _call(self, x: Tensor) -> Tensor:
        return _wrapped(self.center + self.from_center(x))

    def _inverse(self, y: Tensor) -> Tensor:
        # The last number below one has an inverse that is finite.
        eps = torch.finfo(y.dtype).eps
        return 2 * (_wrapped(y - self.center) / math.pi).clamp(eps - 1, 1 - eps).atanh()

    def from_center(self, x: Tensor) -> Tensor:
        """The angle from the center, within half a turn."""
        return math.pi * torch.tanh(x / 2)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Of each angle, from ``x`` alone."""
        return math.log(2 * math.pi) + logsigmoid(x) + logsigmoid(-x)


class Sticks(StickBreakingTransform):
    r"""Torch's ``StickBreakingTransform`` by logarithms, so that small parts of the stick keep all their digits.

    .. math:: \log x_i = \log \sigma(s_i) + \sum_{j < i} \log \sigma(-s_j), \qquad s_i = u_i - \log(n - i)

    Torch takes what is left of the stick for 1e-16 (1e-7 in single precision) at least, and its log-determinant is
    infinite where a part is 0.

    Example:
        >>> Sticks()(torch.tensor([50.0, 0.0])), StickBreakingTransform()(torch.tensor([50.0, 0.0]))
        (tensor([1.0000e+00, 1.9287e-22, 1.9287e-22]), tensor([1.0000e+00, 5.9605e-08, 5.9605e-08]))
    """

    def _call(self, x: Tensor) -> Tensor:
        return self.log_parts(x).exp()

    def _inverse(self, y: Tensor) -> Tensor:
        # Sums from the right: one minus what is cut off would lose the digits of a short rest.
        rest = y[..., 1:].flip(-1).cumsum(-1).flip(-1)
        tiny = torch.finfo(y.dtype).tiny

        return y[..., :-1].clamp(min=tiny).log() - rest.clamp(min=tiny).log() + _offset(rest).log()

    def log_parts(self, x: Tensor) -> Tensor:
        """Logarithms of the parts, ``(*, n) -> (*, n + 1)``."""
        logit = self.logits(x)
        none = torch.zeros_like(logit[..., :1])
        rest = torch.cat([none, logsigmoid(-logit).cumsum(-1)], -1)

        return rest + torch.cat([logsigmoid(logit), none], -1)

    def logits(self, x: Tensor) -> Tensor:
        """The logit of each part in what is left of the stick, ``(*, n) -> (*, n)``."""
        return x - _offset(x).log()

    def from_logits(self, logits: Tensor) -> Tensor:
        """The inverse of :meth:`logits`, ``(*, n) -> (*, n)``."""
        return logits + _offset(logits).log()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Of each point, from ``x`` alone."""
        logit = self.logits(x)
        return (logsigmoid(logit) + _offset(x) * logsigmoid(-logit)).sum(-1)


def _offset(x: Tensor) -> Tensor:
    """The number of parts that follow each one, ``(*, n) -> (n,)``: at zero they are equal."""
    size = x.shape[-1]

    return torch.arange(size, 0, -1, dtype=x.dtype, device=x.device)


def _wrapped(angle: Tensor) -> Tensor:
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def _angles(fn: Any) -> Tensor | None:
    """Locations of a distribution of angles, of the shape of its values, else None."""
    plain = unwrap(fn)
    if isinstance(plain, torch.distributions.VonMises):
        return plain.loc.expand(fn.shape())
    if isinstance(plain, dist.SineBivariateVonMises):
        return torch.stack([plain.phi_loc, plain.psi_loc], -1).expand(fn.shape())

    return None


def _independent(transform: Transform, event_dim: int) -> Transform:
    return IndependentTransform(transform, event_dim) if event_dim else transform


def _bare(support: Any) -> Any:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint

    return support


def _is_real(support: Any) -> bool:
    return _bare(support) is constraints.real


def _stripped(transform: Any) -> Any:
    """A transform of single numbers, or of single points of the simplex; torch's way to positive numbers adds 0."""
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    if type(transform) is ComposeTransform and list(map(type, transform.parts)) == [ExpTransform, AffineTransform]:
        exp, affine = transform.parts
        is_identity = isinstance(affine.loc, (int, float)) and isinstance(affine.scale, (int, float))  # type: ignore[attr-defined]
        return exp if is_identity and affine.loc == 0 and affine.scale == 1 else transform  # type: ignore[attr-defined]

    return transform


def kind_of(transform: Any) -> str | None:
    """Which of the standard maps a stripped transform is, by type; None for all others."""
    if type(transform) is ComposeTransform and [type(part) for part in transform.parts[1:]] == [AffineTransform]:
        return {SigmoidTransform: BOUNDED, ExpTransform: ABOVE, Positive: ABOVE}.get(type(transform.parts[0]))

    return _KINDS.get(type(transform))


# ---- densities ----


def unconstrained_log_prob(fn: Any, transform: Any, u: Tensor) -> Tensor | None:
    r"""The log density of a site in ``u``, in closed form.

    .. math:: \log p(T(u)) + \log |dT / du|

    Arguments:
        fn: The site's distribution.
        transform: What :func:`to_support` says of it. Another one of the same kind is taken for it.
        u: Unconstrained values, of the shape that the transform asks for.

    Returns:
        ``(*batch_shape,)``, event dimensions summed; None where there is no closed form.

    Example:
        >>> fn = dist.Beta(0.05, 0.05)
        >>> unconstrained_log_prob(fn, to_support(fn), torch.tensor([-500.0, 500.0]))
        tensor([-28.6850, -28.6850])
        >>> unconstrained_log_prob(dist.Normal(0.0, 1.0), biject_to(constraints.real), torch.zeros(3)) is None
        True
    """
    if _is_masked(fn):
        return None
    source, transform = resolve(fn, transform)
    log_density = _closed_form(source, transform)
    if log_density is None:
        return None
    value, shape, own = log_density(source, u), fn.shape(), len(source.event_shape)
    # An expanded distribution has the parameters of one, and a uniform one has none.
    # Numpy's function: torch's own imports symbolic algebra, a second at the first use.
    value = value.expand(np.broadcast_shapes(value.shape, shape[: len(shape) - own]))
    event = fn.event_dim - own

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
    end = 0.75 * math.log(torch.finfo(v.dtype).max)

    return v.clamp(max=end).exp() * (1 + (v - end).clamp(min=0))


def _is_masked(fn: Any) -> bool:
    while isinstance(fn, _WRAPPERS):
        if isinstance(fn, MaskedDistribution) and fn._mask is not True:
            return True
        fn = fn.base_dist

    return False


def resolve(fn: Any, transform: Any) -> tuple[Any, Any]:
    """A distribution without its wrappers, and the way to its support.

    Where an affine map leads on from another distribution's support, that distribution and the way to there.
    """
    fn = unwrap(fn)
    while type(transform) is ComposeTransform and isinstance(fn, TransformedDistribution):
        is_map = [id(part) for part in transform.parts[1:]] == [id(part) for part in fn.transforms]
        if not is_map or _is_masked(fn.base_dist):
            break
        fn, transform = unwrap(fn.base_dist), transform.parts[0]

    return fn, _stripped(transform)


def is_pushed(fn: Any, transform: Any) -> bool:
    """Whether a distribution is its base's, sent along the very map that leads to its support: ``u`` is of the base."""
    if type(fn) not in _PUSHED or type(transform) not in _KINDS:
        return False

    return [_KINDS.get(type(part)) for part in fn.transforms] == [kind_of(transform)]


def _closed_form(fn: Any, transform: Any) -> Callable[[Any, Tensor], Tensor] | None:
    """The log density for a pair of types, ``(fn, u) -> (*batch_shape,)``, or None."""
    kind = kind_of(transform)
    if kind == CIRCLE and type(fn) in _VON_MISES:
        return lambda fn, u: _von_mises(fn, u, transform)

    return _pushed if is_pushed(fn, transform) else _CLOSED_FORMS.get((type(fn), kind))


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


def both(name: str) -> tuple[type, type]:
    """Torch's class and Pyro's, which adds handlers and leaves the density alone."""
    return getattr(torch.distributions, name), getattr(dist, name)


# Exact types: a subclass may have another density.
_VON_MISES = both("VonMises")
_PUSHED = {*both("TransformedDistribution"), *both("LogNormal"), *both("LogisticNormal")}
_KINDS: dict[type, str] = {
    SigmoidTransform: BOUNDED, ExpTransform: POSITIVE, Positive: POSITIVE,
    StickBreakingTransform: SIMPLEX, Sticks: SIMPLEX, Circle: CIRCLE,
}  # fmt: skip
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
    )
    for fn in both(name)
}
_CLOSED_FORMS[dist.AffineBeta, BOUNDED] = _beta


# ---- where values saturate ----


def is_saturated(transform: Any, value: Tensor) -> Tensor:
    """Which values were rounded to a bound of their support: 0 or 1, an end of an interval, or infinity.

    Arguments:
        transform: The way to the support.
        value: What it made of unconstrained values.

    Returns:
        Booleans of the shape of the values; all false for supports without bounds.

    Example:
        >>> is_saturated(ExpTransform(), torch.tensor([-200.0, 0.0, 200.0]).exp())
        tensor([ True, False,  True])
    """
    transform = _stripped(transform)
    if type(transform) is ComposeTransform and transform.parts:
        first, maps = _stripped(transform.parts[0]), ComposeTransform(transform.parts[1:])
        ends = [maps(value.new_tensor(end)) for end in _ends(first, value)]
        at_end = [value == end for end in ends]
        return functools.reduce(torch.logical_or, at_end, is_saturated(first, maps.inv(value)))  # type: ignore[arg-type]
    if kind_of(transform) == SIMPLEX:
        return (value <= 0) | (value >= 1)
    if ends := _ends(transform, value):
        return (value <= ends[0]) | (value >= ends[1])

    return torch.zeros_like(value, dtype=torch.bool)


def _ends(transform: Any, value: Tensor) -> tuple[float, ...]:
    """Where a way to single bounded numbers ends: some stop at a number next to a bound."""
    finfo = torch.finfo(value.dtype)
    ends = {
        ExpTransform: (0.0, math.inf),
        Positive: (math.exp(_least_log(value.dtype) + 0.001), math.inf),
        SigmoidTransform: (finfo.tiny, 1 - finfo.eps),
    }

    return ends.get(type(transform), ())

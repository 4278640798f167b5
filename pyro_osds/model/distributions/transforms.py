r"""How the real line is mapped to a site's support, by maps that keep their digits at its ends.

.. math:: T : \mathbb{R}^n \to \text{support}

An angle is periodic: over the whole line a von Mises density has no integral. Here the line is mapped to one turn
around its location.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import MaskedMixture
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    ComposeTransform,
    CorrCholeskyTransform,
    ExpTransform,
    IndependentTransform,
    MixtureSameFamily,
    SigmoidTransform,
    StickBreakingTransform,
    Transform,
    biject_to,
    constraints,
)
from torch.nn.functional import logsigmoid

from pyro_osds.model.distributions.matrices import LogCholesky
from pyro_osds.model.distributions.mixed import Choice
from pyro_osds.model.distributions.supports import UnknownSupportError, bare, is_pushed_off_the_line, mixture_support
from pyro_osds.model.distributions.wrappers import unwrap
from pyro_osds.runtime.torch_internals import is_batchedtensor

BOUNDED, POSITIVE, ABOVE, SIMPLEX, CIRCLE = "sigmoid", "exp", "exp and a shift", "sticks", "circle"
CORRELATION, MATRIX = "partial correlations", "Cholesky factor"

# Older versions of torch have none.
_GENERALISED_PARETO: tuple[type, ...] = tuple(filter(None, [getattr(torch.distributions, "GeneralizedPareto", None)]))


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
        return _independent(Circle(center if centered else center.new_zeros(())), len(fn.event_shape))
    # Correlation matrices go by their factors, whose density is known.
    if is_pushed_off_the_line(plain) or type(plain) is dist.LKJ:
        return ComposeTransform([to_support(plain.base_dist), *plain.transforms])
    if isinstance(plain, _GENERALISED_PARETO):
        # Whether there is an upper end depends on a parameter, and that may be a latent.
        return _independent(_to_ends(bare(plain.support)), len(fn.event_shape))
    if isinstance(plain, MixtureSameFamily):
        support, more = mixture_support(plain), len(fn.event_shape) - len(plain.event_shape)
        return _to_constraint(constraints.independent(support, more) if more else support, len(fn.event_shape))
    if isinstance(plain, MaskedMixture):
        return _to_mixed(plain, len(fn.event_shape))

    return _to_constraint(fn.support, len(fn.event_shape))


def _to_mixed(fn: Any, event_dim: int) -> Any:
    """The transform to a masked mixture's support: the one of both components, or one for each entry."""
    first, second = to_support(fn.component0), to_support(fn.component1)
    if is_same(first, second):
        return _independent(first, event_dim - first.codomain.event_dim)
    if fn.event_shape:
        raise UnknownSupportError("its two components have events with other supports")

    return _independent(Choice(fn.mask, first, second), event_dim)


def _to_constraint(support: Any, event_dim: int) -> Any:
    """The transform to a support, for values with this many event dimensions."""
    kind = bare(support)
    if kind is constraints.simplex:
        return _independent(Sticks(), event_dim - 1)
    if kind in (constraints.positive_definite, constraints.positive_semidefinite):
        return _independent(LogCholesky(), event_dim - 2)
    if type(kind) is type(constraints.unit_interval) and _has_open_ends(kind):
        return _independent(_to_ends(kind), event_dim)
    transform = biject_to(support)
    if type(transform) is CorrCholeskyTransform:
        return PartialCorrelations()

    return _independent(Positive(), event_dim) if type(stripped(transform)) is ExpTransform else transform


def _has_open_ends(support: Any) -> bool:
    """Whether some intervals have no upper end, as those of a generalised Pareto may."""
    upper = support.upper_bound

    return isinstance(upper, Tensor) and not is_batchedtensor(upper) and bool(upper.isinf().any())


def _to_ends(support: Any) -> Choice:
    """The transform to intervals with an upper end or without."""
    lower, upper = support.lower_bound, support.upper_bound
    is_open = upper.isinf()
    closed = biject_to(constraints.interval(lower, torch.where(is_open, lower + 1.0, upper)))

    return Choice(is_open, closed, ComposeTransform([Positive(), AffineTransform(lower, 1.0)]))


def is_same(first: Any, second: Any) -> bool:
    """Whether two ways to a support are the same map, without parameters."""
    first, second = stripped(first), stripped(second)
    kind = kind_of(first)
    if kind is not None and type(first) is not ComposeTransform:
        return kind != CIRCLE and kind == kind_of(second) and type(second) is not ComposeTransform

    return all(type(part) is ComposeTransform and not part.parts for part in (first, second))


class Positive(ExpTransform):
    """An exponential that stops before it underflows, as torch's sigmoid stops next to 0 and 1.

    A Poisson rate of 0 has a density and no gradient. It does overflow: a density that is not known in closed form, at
    a largest number times the slope of the map, would grow without end.

    Example:
        >>> Positive()(torch.tensor([-1000.0, 0.0, 1000.0]))
        tensor([1.1873e-38, 1.0000e+00,        inf])
    """

    def _call(self, x: Tensor) -> Tensor:
        return x.clamp(min=least_log(x.dtype)).exp()

    def _inverse(self, y: Tensor) -> Tensor:
        return y.clamp(min=torch.finfo(y.dtype).tiny).log()


def least_log(dtype: torch.dtype) -> float:
    """Where :class:`Positive` stops: a little above the log of the least number, so that rounding cannot go below."""
    # One per cent: the rounding of a logarithm of 87 in single precision is a thousandth of that.
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
        # One part alone has no stick to break.
        none = logit.new_zeros((*logit.shape[:-1], 1))
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


class PartialCorrelations(CorrCholeskyTransform):
    r"""Torch's ``CorrCholeskyTransform`` with a log-determinant of partial correlations :math:`z = \tanh x` alone.

    .. math:: \log\Big|\frac{dL}{dx}\Big| = \sum_{i > j} \Big(1 + \frac{i - j - 1}{2}\Big) \log(1 - z_{ij}^2)

    Torch's is infinite where a correlation rounds to one.

    Example:
        >>> PartialCorrelations().log_abs_det_jacobian(torch.tensor([50.0]), torch.eye(2))
        tensor(-98.6137)
    """

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Of each matrix, from ``x`` alone."""
        row, column = triangle(y.shape[-1], x.device)
        return ((1.0 + 0.5 * (row - column - 1)) * log_sech_squared(x)).sum(-1)


def triangle(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and columns of the entries below the diagonal, row by row, each ``(size (size - 1) / 2,)``."""
    row, column = torch.tril_indices(size, size, -1, device=device)

    return row, column


def log_sech_squared(x: Tensor) -> Tensor:
    """``log(1 - tanh(x)^2)``, exact where the tangent rounds to one."""
    return 2.0 * (math.log(2.0) + logsigmoid(2.0 * x) - x)


def _offset(x: Tensor) -> Tensor:
    """The number of parts that follow each one, ``(*, n) -> (n,)``: at zero they are equal."""
    size = x.shape[-1]

    return torch.arange(size, 0, -1, dtype=x.dtype, device=x.device)


def _wrapped(angle: Tensor) -> Tensor:
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def _angles(fn: Any) -> Tensor | None:
    """Locations of a distribution of angles, of the shape of its values, else None."""
    plain = unwrap(fn)
    if isinstance(plain, MixtureSameFamily):
        # Each component has its own location, and all of them one cut.
        angles = _angles(plain.component_distribution)
        return None if angles is None else angles.new_zeros(()).expand(fn.shape())
    if isinstance(plain, torch.distributions.VonMises):
        return plain.loc.expand(fn.shape())
    if isinstance(plain, dist.SineBivariateVonMises):
        return torch.stack([plain.phi_loc, plain.psi_loc], -1).expand(fn.shape())

    return None


def _independent(transform: Transform, event_dim: int) -> Transform:
    return IndependentTransform(transform, event_dim) if event_dim else transform


def stripped(transform: Any) -> Any:
    """A transform of single numbers, or of single points of the simplex; torch's way to positive numbers adds 0."""
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    if type(transform) is ComposeTransform and list(map(type, transform.parts)) == [ExpTransform, AffineTransform]:
        exp, affine = transform.parts
        is_identity = isinstance(affine.loc, (int, float)) and isinstance(affine.scale, (int, float))  # type: ignore[attr-defined]
        return exp if is_identity and affine.loc == 0 and affine.scale == 1 else transform  # type: ignore[attr-defined]

    return transform


# Exact types: a subclass may be another map.
KINDS: dict[type, str] = {
    SigmoidTransform: BOUNDED, ExpTransform: POSITIVE, Positive: POSITIVE,
    StickBreakingTransform: SIMPLEX, Sticks: SIMPLEX, Circle: CIRCLE,
    CorrCholeskyTransform: CORRELATION, PartialCorrelations: CORRELATION, LogCholesky: MATRIX,
}  # fmt: skip


def kind_of(transform: Any) -> str | None:
    """Which of the standard maps a stripped transform is, by type; None for all others."""
    if type(transform) is ComposeTransform and [type(part) for part in transform.parts[1:]] == [AffineTransform]:
        return {SigmoidTransform: BOUNDED, ExpTransform: ABOVE, Positive: ABOVE}.get(type(transform.parts[0]))

    return KINDS.get(type(transform))

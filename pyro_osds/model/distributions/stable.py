r"""Densities whose terms cancel where a parameter is large, in forms that keep their digits there.

A negative binomial of growing size *r* becomes a Poisson, a Student t of growing degrees of freedom a normal: the
density has a limit, while :math:`\log\Gamma(r + k) - \log\Gamma(r)` is a difference of numbers around
:math:`r \log r`. At *r* = 1e15 even double precision leaves some ten nats of noise for each observation, and a search
for modes climbs to its peaks. With Stirling's series in both,

.. math::
    \log\frac{\Gamma(x + k)}{\Gamma(x)} \approx \big(x + k - \tfrac12\big) \log\big(1 + \tfrac kx\big) + k \log x - k
    + \frac{1}{12 (x + k)} - \frac{1}{12 x} - \frac{1}{360 (x + k)^3} + \frac{1}{360 x^3},

whose terms are small. While a model runs, the classes below answer with these; they are put back afterwards.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from pyro.distributions import BetaBinomial, DirichletMultinomial, GammaPoisson
from torch import Tensor
from torch.distributions import NegativeBinomial, StudentT
from torch.nn.functional import logsigmoid

# From here on the series is exact to 1e-20, and below the difference loses six digits at most.
_LARGE = 1e4


def log_rising(x: Tensor, k: Tensor) -> Tensor:
    r"""``log(Gamma(x + k) / Gamma(x))``, to its last digits also where ``x`` is large.

    Arguments:
        x: Where to begin, positive, any shape.
        k: How far to rise, not negative, of a shape to match.

    Example:
        >>> x = torch.tensor([2.0, 1e15], dtype=torch.float64)
        >>> log_rising(x, torch.tensor(3.0))  # log(2 * 3 * 4), and 3 log(1e15)
        tensor([  3.1781, 103.6163], dtype=torch.float64)
    """
    x, k = torch.broadcast_tensors(x, k)
    is_large = x > _LARGE
    small, large = torch.where(is_large, 1.0, x), torch.where(is_large, x, _LARGE)
    end = large + k
    series = (end - 0.5) * torch.log1p(k / large) + k * large.log() - k
    series = series + (1.0 / end - 1.0 / large) / 12.0 - (end**-3 - large**-3) / 360.0

    return torch.where(is_large, series, torch.lgamma(small + k) - torch.lgamma(small))


def _negative_binomial(self: Any, value: Tensor) -> Tensor:
    count = self.total_count
    powers = count * logsigmoid(-self.logits) + value * logsigmoid(self.logits)
    # Without any trial there is nothing to count.
    none = count + value == 0.0
    rising = log_rising(torch.where(none, 1.0, count), value)

    return powers + rising.masked_fill(none, 0.0) - torch.lgamma(1.0 + value)


def _gamma_poisson(self: Any, value: Tensor) -> Tensor:
    size, rate = self.concentration, self.rate
    powers = -size * torch.log1p(1.0 / rate) - value * torch.log1p(rate)

    return powers + log_rising(size, value) - torch.lgamma(1.0 + value)


def _student_t(self: Any, value: Tensor) -> Tensor:
    df = self.df
    y = (value - self.loc) / self.scale
    constant = self.scale.log() + 0.5 * df.log() + 0.5 * math.log(math.pi) - log_rising(0.5 * df, df.new_tensor(0.5))

    return -0.5 * (df + 1.0) * torch.log1p(y.square() / df) - constant


def _beta_binomial(self: Any, value: Tensor) -> Tensor:
    first, second, count = self.concentration1, self.concentration0, self.total_count
    rest = count - value
    choices = torch.lgamma(count + 1.0) - torch.lgamma(value + 1.0) - torch.lgamma(rest + 1.0)

    return choices + log_rising(first, value) + log_rising(second, rest) - log_rising(first + second, count)


def _dirichlet_multinomial(self: Any, value: Tensor) -> Tensor:
    alpha, count = self.concentration, value.sum(-1)
    choices = torch.lgamma(1.0 + count) - torch.lgamma(1.0 + value).sum(-1)

    return choices + log_rising(alpha, value).sum(-1) - log_rising(alpha.sum(-1), count)


_STABLE: dict[type, Callable[[Any, Tensor], Tensor]] = {
    NegativeBinomial: _negative_binomial,
    GammaPoisson: _gamma_poisson,
    StudentT: _student_t,
    BetaBinomial: _beta_binomial,
    DirichletMultinomial: _dirichlet_multinomial,
}


@contextlib.contextmanager
def stable_densities() -> Iterator[None]:
    """The distributions of this file with the densities of this file; the old ones are put back, whatever happens.

    Example:
        >>> huge = NegativeBinomial(torch.tensor(1e15).double(), probs=torch.tensor(5e-15).double())  # Poisson(5)
        >>> with stable_densities():
        ...     print(f"{huge.log_prob(torch.tensor(4.0)).item():.6f}")  # exact: -1.740302
        -1.740302
    """
    with replaced(_STABLE):
        yield


@contextlib.contextmanager
def replaced(log_probs: Mapping[type, Callable[[Any, Tensor], Tensor]]) -> Iterator[None]:
    """Classes of distributions with other log densities; the old ones are put back, whatever happens.

    Arguments:
        log_probs: The log density of each class, of a distribution and values.
    """
    before = {kind: kind.__dict__["log_prob"] for kind in log_probs}
    for kind, log_prob in log_probs.items():
        kind.log_prob = log_prob  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for kind, log_prob in before.items():
            kind.log_prob = log_prob  # type: ignore[attr-defined]

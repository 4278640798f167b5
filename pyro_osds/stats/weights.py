r"""Draws with exact weights, and what the weights say.

.. math::
    \log w = \log \gamma(z) - \log q(z), \qquad \mathrm{ELBO} = \overline{\log w}, \qquad
    \log \hat Z = \log \overline{w}, \qquad \mathrm{ESS} = \frac{(\sum w)^2}{\sum w^2}

pareto k is the shape of a generalised Pareto distribution fitted to the largest weights: their number of finite moments
is about ``1/k``, so above 0.5 their variance, and above 1 their mean, is not to be trusted.

Source: Pareto-smoothed importance sampling, Vehtari et al. 2024 (1507.02646).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from pyro.infer.importance import LogWeightsMixin
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor

from pyro_osds.runtime.chunks import chunk_sizes, stack_chunks
from pyro_osds.runtime.parallel import by_rows
from pyro_osds.target import Target, finite_log_prob

_MIN_TAIL = 5
_ROUNDING = 1e-12
# Where all draws are effective, no weight is twice the mean and the tail holds less than this share of all weight, its
# shape cannot matter.
_EQUAL_ESS, _MAX_OVER_MEAN, _NEGLIGIBLE = 0.99, 2.0, 1e-3
_CHUNK_SIZE = 8192


@dataclass(frozen=True)
class WeightedDraws(LogWeightsMixin):
    """Draws of the one-step flow with what is needed to weigh them.

    ``get_log_normalizer()``, ``get_normalized_weights()`` and ``get_ESS()`` work as on Pyro's importance samplers.

    Arguments:
        samples: Constrained draws by site, each ``(num_draws, *site_shape)``.
        log_weights: ``log_prob`` minus the log density of the flow, ``(num_draws,)``, nats.
        log_prob: Unnormalised log density of the target in unconstrained space, ``(num_draws,)``.
        log_abs_det: Log-determinant of the leap from the base, ``(num_draws,)``.
        z: The draws in unconstrained space, ``(num_draws, D)``.

    Example:
        >>> x, zeros = torch.randn(100, 1), torch.zeros(100)
        >>> draws = WeightedDraws({"x": x}, zeros - 2.0, zeros, zeros, x)
        >>> round(draws.get_log_normalizer().item(), 3), round(draws.get_ESS().item())
        (-2.0, 100)
    """

    samples: dict[str, Tensor]
    log_weights: Tensor
    log_prob: Tensor
    log_abs_det: Tensor
    z: Tensor

    def __len__(self) -> int:
        return len(self.log_weights)


class Proposal(Protocol):
    """What can be weighed: a leap, or anything else with draws of a known log density.

    Arguments:
        can_invert: Whether it is a bijection with an inverse, so that any point has a log density.
    """

    can_invert: bool

    def sample(self, num_draws: int, /) -> tuple[Tensor, Tensor, Tensor]:
        """Draws ``(n, D)``, their log densities ``(n,)`` and the log-determinants of the map behind them ``(n,)``."""
        ...


class FlowDraws(NamedTuple):
    """Fresh draws of the leap in unconstrained space.

    Arguments:
        z: Draws, ``(n, D)``.
        log_weight: Log weights, ``(n,)``; ``-inf`` where the density is zero or not a number.
        log_prob: Log densities of the target, ``(n,)``.
        log_abs_det: Log-determinants of the leap, ``(n,)``.
        num_not_finite: Draws whose log density was nan or ``+inf``.
    """

    z: Tensor
    log_weight: Tensor
    log_prob: Tensor
    log_abs_det: Tensor
    num_not_finite: int


def weigh(leap: Proposal, target: Target, num_draws: int) -> FlowDraws:
    """Draw afresh and weigh, chunk by chunk: beside the draws themselves, a chunk is all that is in memory.

    Arguments:
        leap: The leap that proposes.
        target: The target that weighs.
        num_draws: How many draws.
    """
    num_not_finite = 0

    def chunks() -> Iterator[tuple[Tensor, ...]]:
        nonlocal num_not_finite
        for size in chunk_sizes(num_draws, _CHUNK_SIZE):
            *columns, count = _weigh_chunk(leap, target, size)
            num_not_finite += count
            yield tuple(columns)

    z, log_weight, log_prob, log_abs_det = stack_chunks(chunks(), num_draws)

    return FlowDraws(z, log_weight, log_prob, log_abs_det, num_not_finite)


def join(parts: Sequence[FlowDraws]) -> FlowDraws:
    """Several batches of draws as one."""
    z, log_weight, log_prob, log_abs_det, num_not_finite = zip(*parts, strict=True)

    return FlowDraws(
        torch.cat(z), torch.cat(log_weight), torch.cat(log_prob), torch.cat(log_abs_det), sum(num_not_finite)
    )


@torch.no_grad()
def _weigh_chunk(leap: Proposal, target: Target, num_draws: int) -> FlowDraws:
    z, log_q, log_abs_det = leap.sample(num_draws)
    (log_prob,) = by_rows(lambda z: (target.log_prob(z),), z)
    num_not_finite = int((log_prob.isnan() | (log_prob == torch.inf)).sum())
    log_prob = finite_log_prob(log_prob)

    return FlowDraws(z, finite_log_prob(log_prob - log_q), log_prob, log_abs_det, num_not_finite)


def log_mean_weight(log_weight: Tensor) -> tuple[float, float]:
    """Log of the mean weight and its standard error, nats.

    The standard error is the delta method's, from the spread of the weights. Where pareto k exceeds 1/2 that spread has
    no limit, and the error of a mean of S weights falls like :math:`S^{k-1}` instead of :math:`S^{-1/2}`: it is scaled
    up by :math:`S^{k - 1/2}`.

    Arguments:
        log_weight: Log weights, ``(S,)``; ``-inf`` counts as weight zero.

    Returns:
        The estimate and its standard error.

    Example:
        >>> log_mean_weight(torch.zeros(100))
        (0.0, 0.0)
    """
    log_weight = log_weight.double()
    size = len(log_weight)
    estimate = (torch.logsumexp(log_weight, 0) - math.log(size)).item()
    if not math.isfinite(estimate):
        return estimate, math.inf
    std_error = (log_weight - estimate).exp().std().item() / math.sqrt(size)
    k = pareto_k(log_weight)
    if k > 0.5:
        std_error *= size ** (min(k, 1.0) - 0.5)

    return estimate, std_error


def lower_bound(log_weight: Tensor) -> float:
    """The ELBO, nats: mean log weight, of the flow without its draws of density zero where there are some.

    Cut to the support, the flow is denser by one over the share of draws inside; their mean log weight is lower by the
    log of that share, and a bound again.

    Example:
        >>> round(lower_bound(torch.tensor([1.0, 1.0, -torch.inf])), 3)  # 1 + log(2 / 3)
        0.595
    """
    finite = log_weight[log_weight.isfinite()]

    return finite.double().mean().item() + math.log(len(finite) / len(log_weight)) if len(finite) else -math.inf


def effective_sample_size(log_weight: Tensor) -> float:
    """Kish's effective sample size, in draws.

    Example:
        >>> effective_sample_size(torch.tensor([0.0, 0.0, -torch.inf]))
        2.0
    """
    normalised = torch.log_softmax(log_weight.double(), 0)

    return torch.exp(-torch.logsumexp(2 * normalised, 0)).item()


def pareto_smooth(log_weight: Tensor) -> tuple[Tensor, float]:
    """Log weights with their largest values replaced by those of the fitted Pareto tail, and the tail's shape.

    Arguments:
        log_weight: Log weights, ``(S,)``.

    Returns:
        Normalised smoothed log weights ``(S,)`` and pareto k; k is ``-inf`` where weights are so nearly equal that
        their tail cannot matter (it holds less than a thousandth of all weight), and ``inf`` where a few weights carry
        everything.
    """
    log_weight = log_weight.double()
    log_weight = log_weight - log_weight.max()
    order = log_weight.argsort()
    size, cutoff, k, sigma = fit_tail(log_weight)
    smoothed = log_weight.clone()
    if math.isfinite(k):
        probabilities = (torch.arange(size, dtype=torch.float64, device=log_weight.device) + 0.5) / size
        quantiles = cutoff + sigma / k * torch.expm1(-k * torch.log1p(-probabilities))
        smoothed[order[-size:]] = quantiles.log().clamp(max=0.0)

    return smoothed - torch.logsumexp(smoothed, 0), k


class TailFit(NamedTuple):
    """A generalised Pareto distribution of what the largest weights exceed a cutoff by; weights over the largest one.

    Arguments:
        size: How many weights are in the tail.
        cutoff: The weight at which it starts.
        k: Its shape: ``-inf`` where there is no tail to speak of, ``inf`` where a few weights carry everything.
        sigma: Its scale.
    """

    size: int
    cutoff: float
    k: float
    sigma: float


def fit_tail(log_weight: Tensor) -> TailFit:
    """The tail of the weights.

    Arguments:
        log_weight: Log weights, ``(S,)``, one of them finite.
    """
    ascending = (log_weight.double() - log_weight.max()).sort().values
    tail = _tail(ascending)
    if tail is None:
        return TailFit(0, math.nan, -math.inf, math.nan)
    size, cutoff = tail
    excess = ascending[-size:].exp() - cutoff
    if not excess[_quarter(size)] > _ROUNDING:
        # So few weights carry all of it that there is no tail to fit.
        return TailFit(size, cutoff, math.inf, math.nan)

    with torch.device("cpu"):  # Pyro makes tensors where torch makes them by default
        k, sigma = fit_generalized_pareto(excess.cpu())

    return TailFit(size, cutoff, k, sigma)


def pareto_k(log_weight: Tensor) -> float:
    """Shape of the tail of the weights; ``-inf`` where they are nearly equal, ``inf`` where none is finite.

    Example:
        >>> torch.manual_seed(0) and None
        >>> bool(pareto_k(torch.randn(5000)) < 0.5)
        True
    """
    if not log_weight.isfinite().any():
        return math.inf

    return pareto_smooth(log_weight)[1]


def _quarter(size: int) -> int:
    """Where Pyro's fit looks for the lower quartile of a tail, by which it divides."""
    return int(size / 4 - 0.5)


def _tail(ascending: Tensor) -> tuple[int, float] | None:
    """Size of the tail and the weight at which it starts, or None where there is nothing to fit."""
    count = len(ascending)
    size = math.ceil(min(0.2 * count, 3.0 * math.sqrt(count)))
    if size < _MIN_TAIL or count <= size:
        return None
    cutoff = max(ascending[-size - 1].item(), math.log(torch.finfo(torch.float64).tiny))
    excess = ascending[-size:].exp() - math.exp(cutoff)
    # Weights equal up to rounding have no tail; the fit would divide by zero.
    if not excess[_quarter(size)] > _ROUNDING and excess[-1] < 0.5:
        return None
    # Nor is there one to speak of where weights are nearly equal; its shape would be that of noise.
    weights = ascending.exp()
    total = weights.sum()
    nearly_equal = total.square() > _EQUAL_ESS * count * weights.square().sum() and total * _MAX_OVER_MEAN > count
    if nearly_equal and excess.sum() < _NEGLIGIBLE * total:
        return None

    return size, math.exp(cutoff)

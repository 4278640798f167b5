r"""Draws with exact weights, and what the weights say.

.. math::
    \log w = \log \gamma(z) - \log q(z), \qquad \mathrm{ELBO} = \overline{\log w}, \qquad
    \log \hat Z = \log \overline{w}, \qquad \mathrm{ESS} = \frac{(\sum w)^2}{\sum w^2}

All of it is computed once for a set of weights, by :func:`summarize_weights`; the tail of the weights is that of
:mod:`pyro_osds.stats.pareto`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from pyro.infer.importance import LogWeightsMixin
from torch import Tensor

from pyro_osds.runtime.chunks import chunk_sizes, stack_chunks
from pyro_osds.runtime.clock import is_past
from pyro_osds.runtime.parallel import by_rows
from pyro_osds.runtime.workers import num_at_once
from pyro_osds.stats.pareto import TailFit, fit_tail
from pyro_osds.stats.thresholds import GOOD_PARETO_K
from pyro_osds.target import Target, finite_log_prob

# Draws weighed at once: a model makes tensors of this many rows, which caches and graphics cards hold with ease.
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
        num_distinct: How many of them differ, where they were resampled to equal weights; None where all do.

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
    num_distinct: int | None = None

    def resampled(self) -> WeightedDraws:
        """As many draws with equal weights, copies of the heavy ones in the place of light ones, in a random order.

        They are no longer independent, and say no more than the weighted ones do: ``num_distinct`` of them differ.
        Resampling is systematic, so that each is taken as often as its weight asks for, to within one.

        Raises:
            ValueError: If no draw has a positive weight.

        Example:
            >>> z = torch.arange(4.0)[:, None]
            >>> heavy = torch.tensor([0.0, 0.0, -torch.inf, -torch.inf])
            >>> draws = WeightedDraws({"x": z}, heavy, heavy, heavy, z).resampled()
            >>> sorted(draws.z[:, 0].tolist()), draws.num_distinct
            ([0.0, 0.0, 1.0, 1.0], 2)
        """
        log_weight = self.log_weights.double()
        if not (log_weight > -torch.inf).any():
            raise ValueError("No draw of the flow has a positive posterior density; train longer, or check the model.")
        size = len(log_weight)
        edges = torch.softmax(log_weight, 0).cumsum(0)
        grid = (torch.arange(size, dtype=edges.dtype, device=edges.device) + torch.rand((), device=edges.device)) / size
        index = torch.searchsorted(edges, grid).clamp(max=int((log_weight > -torch.inf).nonzero().max()))
        index = index[torch.randperm(size, device=index.device)]
        mean = torch.logsumexp(log_weight, 0) - math.log(size)

        return WeightedDraws(
            {name: value[index] for name, value in self.samples.items()},
            torch.full_like(self.log_weights, mean.item()),
            self.log_prob[index],
            self.log_abs_det[index],
            self.z[index],
            len(index.unique()),
        )

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


@torch.no_grad()
def weigh_in_time(leap: Proposal, target: Target, num_draws: int, least: int, deadline: float) -> FlowDraws:
    """Draw afresh and weigh point by point, until there are enough draws or the time is over.

    With time for all of them the draws are those of :func:`weigh`.

    Arguments:
        leap: The leap that proposes.
        target: The target that weighs.
        num_draws: How many draws, if there is time; with less, a multiple of the least.
        least: How many there are at least.
        deadline: Time of :func:`~pyro_osds.runtime.clock.now` after which there are no more.
    """
    parts, left = [], num_draws
    for size in chunk_sizes(num_draws, _CHUNK_SIZE):
        z, log_q, log_abs_det = leap.sample(size)
        log_prob, count = [], 0
        while count < size:
            done = num_draws - left
            if is_past(deadline) and done >= least and done % least == 0:
                break
            # Where several processes are at work, there is something to do for each of them.
            some = min(max(num_at_once(), target.num_at_once), size - count)
            some = some // least * least if done % least == 0 and some >= least else min(some, least - done % least)
            log_prob.append(target.log_prob(z[count : count + some]))
            left, count = left - some, count + some
        if log_prob:
            parts.append(_weighed(z[:count], log_q[:count], log_abs_det[:count], torch.cat(log_prob)))
        if count < size:
            break

    return join(parts)


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

    return _weighed(z, log_q, log_abs_det, log_prob)


def _weighed(z: Tensor, log_q: Tensor, log_abs_det: Tensor, log_prob: Tensor) -> FlowDraws:
    num_not_finite = int((log_prob.isnan() | (log_prob == torch.inf)).sum())
    log_prob = finite_log_prob(log_prob)

    return FlowDraws(z, finite_log_prob(log_prob - log_q), log_prob, log_abs_det, num_not_finite)


@torch.no_grad()
def log_weights_at(leap: Any, target: Target, z: Tensor) -> Tensor:
    """Log weights that a leap with an inverse gives to points, ``(B, D) -> (B,)``; ``inf`` where it does not reach."""
    log_prob, log_q = by_rows(lambda z: (finite_log_prob(target.log_prob(z)), leap.log_prob(z)), z)

    return torch.where(log_q.isfinite(), log_prob - log_q, math.inf)


@dataclass(frozen=True)
class WeightSummary:
    """What a set of weights says.

    Arguments:
        log_mean_weight: Log of the mean weight, nats: the log evidence, if draws are those of a normalised proposal.
        std_error: Its standard error, nats.
        elbo: Mean log weight, a lower bound of the log evidence, nats.
        ess: Effective number of draws.
        num_draws: How many draws there are.
        tail: The Pareto distribution fitted to the largest weights.
    """

    log_mean_weight: float
    std_error: float
    elbo: float
    ess: float
    num_draws: int
    tail: TailFit = field(repr=False)

    @property
    def pareto_k(self) -> float:
        """Shape of the tail of the weights."""
        return self.tail.k


def summarize_weights(log_weight: Tensor) -> WeightSummary:
    """All that a set of weights says; its tail is fitted once.

    Arguments:
        log_weight: Log weights, ``(S,)``; ``-inf`` counts as weight zero.

    Example:
        >>> summary = summarize_weights(torch.full((100,), -2.0))
        >>> summary.log_mean_weight, summary.std_error, summary.elbo, summary.pareto_k
        (-2.0, 0.0, -2.0, -inf)
    """
    tail = fit_tail(log_weight)
    estimate, std_error = _mean_and_error(log_weight, tail)

    return WeightSummary(
        estimate, std_error, lower_bound(log_weight), effective_sample_size(log_weight), len(log_weight), tail
    )


def log_mean_weight(log_weight: Tensor) -> tuple[float, float]:
    r"""Log of the mean weight and its standard error, nats.

    .. math::
        \mathrm{se}^2 = \frac{\mathrm{Var}(w)}{S \bar w^2} + m_>^2, \qquad
        m_> = \frac{w_{\max}}{S \bar w} \Big(1 + \frac{\sigma + k (1 - u)}{1 - k}\Big)

    The first part is the delta method's, from the spread of the weights. The second is what S weights are expected to
    leave beyond the largest of them, by the Pareto distribution of their tail; its cutoff *u* and its scale *sigma* are
    shares of the largest weight. The spread of weights with a heavy tail does not know it, and their mean is more often
    too low than too high. Where pareto k exceeds 1/2 the spread has no limit, and the error of a mean of S weights
    falls like :math:`S^{k-1}` instead of :math:`S^{-1/2}`: the first part is scaled up by :math:`S^{k - 1/2}`.

    Arguments:
        log_weight: Log weights, ``(S,)``; ``-inf`` counts as weight zero.

    Returns:
        The estimate and its standard error.

    Example:
        >>> log_mean_weight(torch.zeros(100))
        (0.0, 0.0)
    """
    return _mean_and_error(log_weight, fit_tail(log_weight))


def _mean_and_error(log_weight: Tensor, tail: TailFit) -> tuple[float, float]:
    """Log of the mean weight and its standard error, nats, from weights with such a tail."""
    log_weight = log_weight.double()
    size, k = len(log_weight), tail.k
    estimate = (torch.logsumexp(log_weight, 0) - math.log(size)).item()
    if not math.isfinite(estimate):
        return estimate, math.inf
    over_mean = (log_weight - estimate).exp()
    spread = over_mean.std().item() / math.sqrt(size)
    if k > GOOD_PARETO_K:
        # At k = 1 the error no longer falls with S; beyond it the weights have no mean, and no factor says how far off.
        spread *= size ** (min(k, 1.0) - 0.5)

    return estimate, math.hypot(spread, over_mean.max().item() * tail.mean_beyond / size)


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

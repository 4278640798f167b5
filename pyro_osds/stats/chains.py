r"""Posterior draws by independence Metropolis-Hastings: the flow proposes, the weights decide.

.. math:: \Pr[\text{accept } z' \mid z] = \min\{1,\ w(z') / w(z)\}

Exact in the limit, at the cost of no further evaluation. It also makes chain diagnostics mean something: where the flow
is wrong, a draw of large weight is kept for long, chains stick, and R-hat and the effective sample size show it.

Source: Metropolised independent sampler (Liu 1996).
"""

from __future__ import annotations

import math

import torch
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from pyro_osds.stats.thresholds import MIN_CHAIN_LENGTH

MAX_LENGTH = 2000
"""Draws of a sequence that its effective number is computed from: that takes memory and time as the square of them."""

# Of many coordinates, evenly spaced ones do: a step of these chains moves all of them or none.
_MAX_COORDINATES = 128
# Only the coordinates that mix worst get an effective number, and not all of them at once: it is the dearer of the two.
_NUM_WORST, _AT_ONCE = 32, 8
# Draws of all chains from which the quartiles of a coordinate are taken: more make them no better.
_FOR_QUARTILES = 8 * MAX_LENGTH


def independence_chains(log_weight: Tensor, num_chains: int) -> tuple[Tensor, Tensor]:
    """Run chains over given proposals.

    Each chain goes once through its own share of the proposals. It starts from one of them drawn by weight, not from
    the first, so that no warm-up has to be thrown away.

    Arguments:
        log_weight: Log weights of the proposals, ``(num_chains * S,)``.
        num_chains: The number of chains.

    Returns:
        Index of the proposal that each state holds and the probability with which its own proposal was accepted, both
        ``(num_chains, S)``.

    Raises:
        ValueError: If no proposal has a positive weight.

    Example:
        >>> index, probability = independence_chains(torch.zeros(6), num_chains=2)
        >>> index
        tensor([[0, 1, 2],
                [3, 4, 5]])
    """
    check_any_weight(log_weight)
    weights = log_weight.double().view(num_chains, -1)
    num_draws = weights.shape[1]
    # A share without any weight starts anywhere.
    alive = (weights > -torch.inf).any(1, keepdim=True)
    start_weights = torch.where(alive, weights, 0.0)
    start = torch.multinomial(torch.softmax(start_weights, 1), 1)[:, 0]
    rows = torch.arange(num_chains, device=weights.device)
    uniform = torch.rand_like(weights)
    current, log_current = rows * num_draws + start, weights[rows, start]
    index = torch.empty(num_chains, num_draws, dtype=torch.long, device=weights.device)
    probability = torch.empty_like(weights)
    for step in range(num_draws):
        proposed = weights[:, step]
        # A chain that could only start at weight zero takes whatever comes.
        chance = torch.where(log_current == -torch.inf, 1.0, (proposed - log_current).exp().clamp(max=1.0))
        accept = uniform[:, step] < chance
        current = torch.where(accept, rows * num_draws + step, current)
        log_current = torch.where(accept, proposed, log_current)
        index[:, step], probability[:, step] = current, chance

    return index, probability


def expected_mixing(log_weight: Tensor, thinning: int = 1) -> float:
    r"""Share of effective draws that chains over proposals of these weights would have.

    .. math::
        1 \Big/ \sum_i \bar w_i \frac{1 + \lambda_i^t}{1 - \lambda_i^t}, \qquad
        \lambda_i = 1 - \frac1S \sum_j \min\{1, w_j / w_i\}

    is that of a function that has nothing to do with the weights: a chain at draw :math:`i` stays there with
    probability :math:`\lambda_i`, and thinned by :math:`t` with :math:`\lambda_i^t`.

    Arguments:
        log_weight: Log weights, ``(S,)``; ``-inf`` counts as weight zero.
        thinning: Proposals a draw that is kept.

    Returns:
        The share; 0 where all weights are zero.

    Example:
        >>> round(expected_mixing(torch.tensor([0.0, 0.0, 0.0, -torch.inf])), 2)
        0.6

    Source: eigenvalues of the metropolised independent sampler (Liu 1996, section 2).
    """
    if not (log_weight > -torch.inf).any():
        return 0.0
    share = torch.softmax(log_weight.double(), 0).sort(descending=True).values
    share = share[share > 0]
    heavier = torch.arange(1, len(share) + 1, dtype=share.dtype, device=share.device)
    # Of draws in the order of their weights, those before one are accepted from there, those behind it by ratio.
    lighter = (1.0 - share.cumsum(0)).clamp(min=0.0)
    stay = (1.0 - (heavier + lighter / share) / len(log_weight)).clamp(0.0, 1.0) ** thinning
    time = (share * (1.0 + stay) / (1.0 - stay)).sum()

    return (1.0 / time).item()


def mixing(z: Tensor) -> tuple[float, float]:
    """Split R-hat, and the share of effective draws, of chains in their worst coordinate.

    Each coordinate is bounded by a monotone function first, so that heavy tails do not decide, as ranks would do it.

    Arguments:
        z: Draws by chain, ``(num_chains, S, D)``.

    Returns:
        Both numbers; nan for chains that are too short to tell, and without coordinates.

    Example:
        >>> torch.manual_seed(0) and None
        >>> r_hat, ess = mixing(torch.randn(4, 1000, 2))
        >>> r_hat < 1.01, ess > 0.8
        (True, True)

    Source: Vehtari, Gelman, Simpson, Carpenter, Buerkner 2021 (1903.08008).
    """
    num_chains, num_samples, dim = z.shape
    if num_samples < MIN_CHAIN_LENGTH or dim == 0:
        return math.nan, math.nan
    coordinates = torch.linspace(0, dim - 1, min(dim, _MAX_COORDINATES), device=z.device).long()
    z = z[:, :MAX_LENGTH, coordinates].double()
    num_samples = z.shape[1]
    flat = z.flatten(0, 1)
    low, middle, high = flat[:_FOR_QUARTILES].quantile(
        torch.tensor([0.25, 0.5, 0.75], dtype=flat.dtype, device=flat.device), 0
    )
    bounded = torch.atan((z - middle) / (high - low).clamp(min=torch.finfo(z.dtype).tiny))
    # A coordinate that never moves is none of a posterior; the chains that hold it say so by the others.
    moves = bounded.flatten(0, 1).std(0) > 0
    if not moves.any():
        return math.inf, 1.0 / (num_chains * num_samples)
    bounded = bounded[..., moves]
    r_hat = split_gelman_rubin(bounded, chain_dim=0, sample_dim=1)
    worst = r_hat.nan_to_num(math.inf).argsort(descending=True)[:_NUM_WORST].split(_AT_ONCE)
    ess = min(effective_sample_size(bounded[..., some], chain_dim=0, sample_dim=1).min().item() for some in worst)

    return r_hat.max().item(), min(ess / (num_chains * num_samples), 1.0)


def check_any_weight(log_weight: Tensor) -> None:
    """Refuse weights that are all zero: there is nothing to choose from."""
    if not (log_weight > -torch.inf).any():
        raise ValueError("No draw of the flow has a positive posterior density; train longer, or check the model.")

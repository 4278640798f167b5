r"""Posterior draws by independence Metropolis-Hastings: the flow proposes, the weights decide.

.. math:: \Pr[\text{accept } z' \mid z] = \min\{1,\ w(z') / w(z)\}

Exact in the limit, at the cost of no further evaluation. It also makes chain diagnostics mean something: where the flow
is wrong, a draw of large weight is kept for long, chains stick, and R-hat and the effective sample size show it.

Source: Metropolised independent sampler (Liu 1996).
"""

from __future__ import annotations

import torch
from torch import Tensor


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


def check_any_weight(log_weight: Tensor) -> None:
    """Refuse weights that are all zero: there is nothing to choose from."""
    if not (log_weight > -torch.inf).any():
        raise ValueError("No draw of the flow has a positive posterior density; train longer, or check the model.")

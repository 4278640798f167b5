r"""Bridge sampling: the log evidence from draws of the posterior and draws of a proposal, each seen from the other.

With log weights :math:`\log w = \log \gamma - \log q` at :math:`N_1` draws of the posterior and at :math:`N_2` draws of
the proposal, and shares :math:`s_i = N_i / (N_1 + N_2)`, but a quarter at least for the first, the bridge is the fixed
point of

.. math::
    \hat Z = \frac{\frac1{N_2} \sum_q w / (s_1 w + s_2 \hat Z)}{\frac1{N_1} \sum_p 1 / (s_1 w + s_2 \hat Z)}.

Draws of a chain count as many as are effective, and their part of the standard error is at least what the chains differ
by. Weights of both kinds are bounded in it, so that neither a light tail of the proposal nor a heavy one hurts.

Sources: Meng and Wong 1996; standard error, Fruehwirth-Schnatter 2004; effective draws, Gronau et al. 2017
(1703.05984).
"""

from __future__ import annotations

import math

import torch
from pyro.ops.stats import effective_sample_size
from torch import Tensor

from pyro_osds.stats.chains import MAX_LENGTH

# The iteration contracts; from the first guess it takes some five steps, and a tenth of a millionth of a nat is enough.
_NUM_ITERATIONS, _SAME = 500, 1e-8
# Share that draws of the posterior have in the bridge at least. With less of it, chains that hardly mix would have no
# say, and what is left would be the proposal's own mean weight, which it is to be a check of.
_LEAST_SHARE = 0.25


def bridge_estimate(posterior_log_weight: Tensor, proposal_log_weight: Tensor) -> tuple[float, float]:
    """The log evidence and its standard error, nats.

    Arguments:
        posterior_log_weight: Log weights at draws of the posterior by chain, ``(num_chains, N)``; ``inf`` where the
            proposal never goes.
        proposal_log_weight: Log weights of the proposal's own draws, ``(M,)``; ``-inf`` counts as weight zero.

    Returns:
        Both; nan and infinity where one of the two never meets the other, or the iteration does not converge.

    Example:
        >>> bridge_estimate(torch.full((2, 50), -3.0), torch.full((100,), -3.0))
        (-3.0, 0.0)
    """
    theirs, ours = posterior_log_weight.double(), proposal_log_weight.double()
    usable = theirs[theirs.isfinite()]
    if not len(usable) or not ours.isfinite().any():
        return math.nan, math.inf
    shift = usable.median()
    theirs, ours = theirs - shift, ours - shift
    number = effective_number(theirs.clamp(*_bounds(usable - shift)))
    share = max(number / (number + len(ours)), _LEAST_SHARE)
    log_s1, log_s2 = math.log(share), math.log1p(-share)
    log_z, done = 0.0, False
    for _ in range(_NUM_ITERATIONS):
        f, g = _bridge(ours, theirs, log_z, log_s1, log_s2)
        after = (
            torch.logsumexp(f, 0) - math.log(len(f)) - torch.logsumexp(g.flatten(), 0) + math.log(g.numel())
        ).item()
        done, log_z = abs(after - log_z) < _SAME, after
        if done or not math.isfinite(log_z):
            break
    f, g = _bridge(ours, theirs, log_z, log_s1, log_s2)
    error = math.hypot(_relative_error(_scaled(f)), _relative_error_by_chain(_scaled(g)))
    if not done or not math.isfinite(log_z) or not math.isfinite(error):
        return math.nan, math.inf

    return log_z + shift.item(), error


def effective_number(by_chain: Tensor) -> float:
    """How many independent draws chains are worth, ``(num_chains, N)``: at least two, and at most as many as there are.

    Arguments:
        by_chain: A number for each draw.

    Example:
        >>> effective_number(torch.zeros(2, 10))
        20.0
    """
    head = by_chain[:, -MAX_LENGTH:]
    if head.shape[1] < _SHORT or not head.std() > 0:
        return float(by_chain.numel())
    share = effective_sample_size(head, chain_dim=0, sample_dim=1).item() / head.numel()

    # Draws that alternate have a negative one, and are better than independent.
    return max(2.0, by_chain.numel() * (share if 0 < share < 1 else 1.0))


# Draws of a chain of which an autocorrelation says something.
_SHORT = 8


def _bounds(usable: Tensor) -> tuple[float, float]:
    return usable.min().item(), usable.max().item()


def _bridge(ours: Tensor, theirs: Tensor, log_z: float, log_s1: float, log_s2: float) -> tuple[Tensor, Tensor]:
    """Logs of what is averaged over the proposal's draws, and over those of the posterior."""
    offset = ours.new_tensor(log_s2 + log_z)

    return ours - torch.logaddexp(log_s1 + ours, offset), -torch.logaddexp(log_s1 + theirs, offset)


def _scaled(logs: Tensor) -> Tensor:
    """Values over the largest of them: errors that are relative stay, and nothing overflows."""
    return (logs - logs.max()).exp()


def _relative_error(values: Tensor) -> float:
    """Standard error of a mean of independent values over the mean."""
    return (values.std() / values.mean() / math.sqrt(len(values))).item()


def _relative_error_by_chain(values: Tensor) -> float:
    """The same of chains: by how long they remember, or by what they differ by, whichever is more."""
    mean, number = values.mean(), effective_number(values)
    error = (values.std() / mean / math.sqrt(number)).item()
    if len(values) < 2:
        return error

    return max(error, (values.mean(1).std() / mean / math.sqrt(len(values))).item())

r"""A trained leap at work: fresh weighted draws, chains out of them, and the evidence that they give.

The evidence is computed from all draws. They are doubled until its standard error is small or there are enough. All of
them are proposals of the chains too, which are thinned to the length asked for: draws that are there anyway make chains
mix better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_osds.chains import check_any_weight, independence_chains
from pyro_osds.evidence import Evidence, EvidenceCheck, judge
from pyro_osds.importance import FlowDraws, Proposal, join, log_mean_weight, pareto_smooth, weigh
from pyro_osds.target import Target

CORRECTIONS = ("imh", "psis", "none")

_MIN_DRAWS = 4096
_MAX_DRAWS = 32768
_STD_ERROR = 0.003


@dataclass(frozen=True)
class PosteriorDraws:
    """Posterior draws by chain, with the weighted draws that they were chosen from.

    Arguments:
        proposals: All weighted draws.
        index: The proposal that each posterior draw is, ``(num_chains, num_samples)``.
        acceptance: Acceptance probability of the steps that are kept, ``(num_chains, num_samples)``.
        evidence: Evidence and verdict from all weighted draws.
    """

    proposals: FlowDraws
    index: Tensor
    acceptance: Tensor
    evidence: Evidence

    @property
    def z(self) -> Tensor:
        """Posterior draws in unconstrained space, ``(num_chains * num_samples, D)``, chain after chain."""
        return self.proposals.z[self.index.reshape(-1)]


def draw_posterior(
    leap: Proposal,
    target: Target,
    num_chains: int,
    num_samples: int,
    correction: str = "imh",
    check: EvidenceCheck | None = None,
    improper_sites: Sequence[str] = (),
    max_draws: int = _MAX_DRAWS,
    reasons: Sequence[str] = (),
) -> PosteriorDraws:
    """Fresh draws, weighed, judged and corrected.

    Arguments:
        leap: The trained leap.
        target: The target.
        num_chains: Chains.
        num_samples: Draws of each chain.
        correction: ``"imh"`` for independence Metropolis-Hastings, ``"psis"`` for resampling by Pareto-smoothed
            weights, ``"none"`` for the flow's own draws.
        check: An independent log evidence.
        improper_sites: Latent sites with an improper prior.
        max_draws: Weighted draws at most, if the chains do not need more.
        reasons: What else speaks against the evidence.

    Returns:
        The posterior draws.
    """
    num_proposals = num_chains * num_samples
    draws = weigh(leap, target, max(num_proposals, min(_MIN_DRAWS, max_draws)))
    while 2 * len(draws.z) <= max_draws and not improper_sites and log_mean_weight(draws.log_weight)[1] > _STD_ERROR:
        draws = join([draws, weigh(leap, target, len(draws.z))])
    evidence = judge(draws.log_weight, check, improper_sites, draws.num_not_finite, reasons)
    thinning = len(draws.z) // num_proposals
    log_weight = draws.log_weight[: thinning * num_proposals]
    if correction == "imh":
        index, acceptance = independence_chains(log_weight, num_chains)
        index, acceptance = index[:, thinning - 1 :: thinning], acceptance[:, thinning - 1 :: thinning]
    else:
        index = torch.arange(num_proposals, device=log_weight.device)
        if correction == "psis":
            check_any_weight(log_weight)
            index = torch.multinomial(pareto_smooth(log_weight)[0].exp(), num_proposals, replacement=True)
        index = index.view(num_chains, num_samples)
        acceptance = torch.full_like(index, math.nan, dtype=log_weight.dtype)

    return PosteriorDraws(draws, index, acceptance, evidence)

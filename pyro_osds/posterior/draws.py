r"""A trained leap at work: fresh weighted draws, chains out of them, and the evidence that they give.

The evidence is computed from all draws. They are doubled until its standard error is small or there are enough. All of
them are proposals of the chains too, which are thinned to the length asked for: draws that are there anyway make chains
mix better. Weights that are not nearly equal get a second opinion, a short refinement from the leap to the target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import get_args

import torch
from torch import Tensor

from pyro_osds.choices import Correction
from pyro_osds.explore.necks.tilted import Tilted
from pyro_osds.explore.particles import Exploration
from pyro_osds.explore.refinement import refine
from pyro_osds.explore.search.parts import Part, lost_by_draws, lost_by_particles
from pyro_osds.explore.survey import Survey
from pyro_osds.flow.leap import Leap, is_bijective
from pyro_osds.flow.walk import Walk
from pyro_osds.posterior.evidence import Evidence, EvidenceCheck, Mixing, Reason, annealed_check
from pyro_osds.posterior.reasons import lost_reasons, neck_reasons, unlike_reasons
from pyro_osds.posterior.unseen import by_particles, gap_by_draws, gap_by_particles
from pyro_osds.posterior.verdict import judge, judge_annealed
from pyro_osds.runtime.clock import OutOfTimeError, is_past, time_limit
from pyro_osds.runtime.precision import is_rough, rounding_noise
from pyro_osds.runtime.progress import progress_bar
from pyro_osds.stats.chains import check_any_weight, independence_chains, mixing
from pyro_osds.stats.enough import MAX_DRAWS, Enough
from pyro_osds.stats.pareto import pareto_smooth
from pyro_osds.stats.thresholds import (
    ENOUGH_CHAIN_ESS,
    GOOD_PARETO_K,
    GOOD_WEIGHT_ESS,
    MAX_PARETO_K,
    TARGET_STD_ERROR,
)
from pyro_osds.stats.unlike import unlike
from pyro_osds.stats.weights import (
    FlowDraws,
    Proposal,
    WeightSummary,
    join,
    log_weights_at,
    lower_bound,
    summarize_weights,
    weigh,
    weigh_in_time,
)
from pyro_osds.target import NotFiniteError, Target, has_wrong_gradient, log_prob_and_score

CORRECTIONS: tuple[Correction, ...] = get_args(Correction)

# Weighted draws at least, which a fast density gives in milliseconds: the tail of fewer is hardly known.
_MIN_DRAWS = 4096
NUM_PROBES, NUM_PROBES_SLOWLY, _NUM_PROBES_LATE = 256, 32, 2
"""Draws at which rounding is looked for; fewer where densities come point by point, since each takes some runs."""
# Weighted draws for chains that mix badly, times the usual number, and terms of log densities that they may cost: some
# seconds.
_CHAIN_DRAWS, _CHAIN_TERMS = 4, 1e8
# Particles on each replicate of a refinement, as of an exploration.
_REFINEMENT_PARTICLES = 64
# Draws at which a gradient is held against differences of the density, where one of them is not as expected.
_NUM_GRADIENTS = 8
NUM_REPLICATES = 32
"""Enough replicates that their spread is known, and twice the standard error covers as it should."""


@dataclass(frozen=True)
class PosteriorDraws:
    """Posterior draws by chain, with the weighted draws that they were chosen from.

    Arguments:
        proposals: All weighted draws.
        index: The proposal that each posterior draw is, ``(num_chains, num_samples)``.
        acceptance: Acceptance probability of the steps that are kept, ``(num_chains, num_samples)``.
        evidence: Evidence and verdict from all weighted draws.
        refinement: The short refinement that gave the second opinion, if the weights asked for one.
        flow_log_weight: Log weights of the flow's own draws, ``(S,)``, also where a refinement gave the draws.
        flow_not_finite: How many of these had a log density of nan or ``+inf``.
        is_whole: Whether there was time for all of it; if not, draws are fewer, or a second opinion is missing.
        source: Name of the source that the draws come from, if that is not the flow
            (:class:`~pyro_osds.posterior.source.DrawSource`).
    """

    proposals: FlowDraws
    index: Tensor
    acceptance: Tensor
    evidence: Evidence
    refinement: Exploration | None = None
    flow_log_weight: Tensor = field(default_factory=lambda: torch.empty(0))
    flow_not_finite: int = 0
    is_whole: bool = True
    source: str = ""

    @property
    def z(self) -> Tensor:
        """Posterior draws in unconstrained space, ``(num_chains * num_samples, D)``, chain after chain."""
        return self.proposals.z[self.index.reshape(-1)]

    def after_search(self, found: Survey | None) -> PosteriorDraws:
        """The same draws, with a verdict that says how the space was searched.

        Arguments:
            found: What exploration found; None where there was none.
        """
        searched = found.search.coverage if found and found.search else None
        if self.evidence.searched == searched:
            return self

        return replace(self, evidence=replace(self.evidence, searched=searched))


def draw_posterior(
    leap: Proposal,
    target: Target,
    num_chains: int,
    num_samples: int,
    correction: str = "imh",
    check: EvidenceCheck | None = None,
    improper_sites: Sequence[str] = (),
    max_draws: int = MAX_DRAWS,
    target_std_error: float = TARGET_STD_ERROR,
    reasons: Sequence[Reason] = (),
    parts: Sequence[Part] = (),
    deadline: float = math.inf,
    particles: Tensor | None = None,
    necks: Sequence[Tilted] = (),
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
        target_std_error: Standard error of the log evidence that was asked for, nats.
        reasons: What else speaks against the evidence.
        parts: Parts of the posterior that search found, which the draws have to reach.
        deadline: When a second opinion is left at the latest.
        particles: Explored particles, ``(N, D)``, which have a say where the weights have a heavy tail.
        necks: Particles of necks, which tell how much of the posterior the draws do not see there.

    Returns:
        The posterior draws.
    """
    num_proposals, is_whole, second = num_chains * num_samples, True, None
    enough = Enough(target_std_error, num_proposals, max_draws)
    if target.vectorized or deadline == math.inf:
        draws, weights = _weigh_enough(leap, target, enough)
    else:
        # Points of one density may take very different times, so that no plan holds.
        draws = weigh_in_time(leap, target, num_proposals, num_chains, deadline)
        weights = summarize_weights(draws.log_weight)
        num_samples, is_whole = len(draws.z) // num_chains, len(draws.z) >= num_proposals
    try:
        with time_limit(deadline):
            second = _second_opinion(leap, target, weights)
    except OutOfTimeError:
        is_whole = False
    most = _most_for_chains(target, max_draws, deadline) if correction == "imh" else 0
    while True:
        index, acceptance = _choose(draws.log_weight, weights, num_chains, num_samples, correction)
        mixed = Mixing(*mixing(draws.z[index]))
        if not (mixed.ess < ENOUGH_CHAIN_ESS and weights.pareto_k <= MAX_PARETO_K and 2 * len(draws.z) <= most):
            break
        # Chains that are thinned out of more proposals mix better, and proposals cost less than training.
        draws = join([draws, weigh(leap, target, len(draws.z))])
        weights = summarize_weights(draws.log_weight)
    late = slice(_NUM_PROBES_LATE if is_past(deadline) and not target.vectorized else None)
    lost = lost_by_draws(parts, draws.z, draws.log_weight, weights.log_mean_weight)
    gap = gap_by_draws(leap, target, necks, draws.log_weight)
    evidence = judge(
        replace(weights, elbo=_lower_bound(leap, target, weights)),
        check,
        improper_sites,
        draws.num_not_finite,
        (
            *reasons,
            *lost_reasons(lost, weights.log_mean_weight),
            *by_particles(leap, target, draws, weights, particles),
            *neck_reasons(gap),
        ),
        annealed_check(second) if second else None,
        rounding_at(target, draws.z[late], draws.log_prob[late]) if is_whole or not is_past(deadline) else 0.0,
        mixed,
        target.has_tolerance,
        "diffusion" if isinstance(leap, Walk) else "flow",
        gap.share if gap else 0.0,
    )

    return PosteriorDraws(draws, index, acceptance, evidence, second, draws.log_weight, draws.num_not_finite, is_whole)


def _lower_bound(leap: Proposal, target: Target, weights: WeightSummary) -> float:
    """The ELBO of the flow as it was trained: of the base draws for necks, some weigh next to nothing."""
    plain = leap.plain if is_bijective(leap) else leap
    if plain is leap:
        return weights.elbo
    with torch.random.fork_rng(devices=[target.device] if target.device.type == "cuda" else []):
        return lower_bound(weigh(plain, target, _MIN_DRAWS).log_weight)


def _most_for_chains(target: Target, max_draws: int, deadline: float) -> int:
    """Weighted draws that may be made for the sake of chains: some seconds' worth, where there is time for all."""
    if not target.vectorized or deadline < math.inf:
        return max_draws
    affordable = int(_CHAIN_TERMS / max(target.num_terms, 1))

    return max(max_draws, min(_CHAIN_DRAWS * max_draws, affordable))


def _choose(
    log_weight: Tensor, weights: WeightSummary, num_chains: int, num_samples: int, correction: str
) -> tuple[Tensor, Tensor]:
    """The proposals that become posterior draws, and with what probability, both ``(num_chains, num_samples)``."""
    num_proposals = num_chains * num_samples
    thinning = len(log_weight) // num_proposals
    log_weight = log_weight[: thinning * num_proposals]
    if correction == "imh":
        index, acceptance = independence_chains(log_weight, num_chains)
        return index[:, thinning - 1 :: thinning], acceptance[:, thinning - 1 :: thinning]
    index = torch.arange(num_proposals, device=log_weight.device)
    if correction == "psis":
        check_any_weight(log_weight)
        # Weights of fewer draws than were summed up have a tail of their own.
        tail = weights.tail if len(log_weight) == weights.num_draws else None
        index = torch.multinomial(pareto_smooth(log_weight, tail)[0].exp(), num_proposals, replacement=True)

    return index.view(num_chains, num_samples), log_weight.new_full((num_chains, num_samples), math.nan)


def _weigh_enough(leap: Proposal, target: Target, enough: Enough) -> tuple[FlowDraws, WeightSummary]:
    """Weighted draws, doubled until they are enough or there may be no more, and what their weights say."""
    num_draws, max_draws = max(enough.num_draws, min(_MIN_DRAWS, enough.max_draws)), enough.max_draws
    progress = progress_bar(max(num_draws, max_draws), "Weigh")
    draws = weigh(leap, target, num_draws)
    weights = summarize_weights(draws.log_weight)
    progress.update(num_draws)
    while 2 * len(draws.z) <= max_draws:
        progress.set_postfix(log_evidence=f"{weights.log_mean_weight:.3f}", std_error=f"{weights.std_error:.4f}")
        if enough.is_reached(weights, draws.log_weight):
            break
        draws = join([draws, weigh(leap, target, len(draws.z))])
        weights = summarize_weights(draws.log_weight)
        progress.update(len(draws.z) // 2)
    progress.close()

    return draws, weights


def refined_posterior(
    leap: Leap,
    target: Target,
    num_chains: int,
    num_samples: int,
    judged: PosteriorDraws,
    improper_sites: Sequence[str] = (),
    reasons: Sequence[Reason] = (),
    parts: Sequence[Part] = (),
    explored: Exploration | None = None,
    necks: Sequence[Tilted] = (),
) -> PosteriorDraws:
    """Draws and evidence from a refinement instead of weights, for a leap whose weights did not suffice.

    Arguments:
        leap: The leap that the refinement starts from.
        target: The target.
        num_chains: Chains; each takes the particles of replicates of its own.
        num_samples: Draws of each chain.
        judged: Draws and verdict from the leap's weights; what they say of the density itself still holds.
        improper_sites: Latent sites with an improper prior.
        reasons: What else speaks against the results.
        parts: Parts of the posterior that search found, which the draws have to reach.
        explored: Particles that know nothing of the leap, and have to lie where those of the refinement do.
        necks: Particles of necks, which tell how much of the posterior the refinement does not see there.

    Returns:
        Equally weighted posterior draws.
    """
    found, gap = refine(leap, target, particles_for(num_chains * num_samples), NUM_REPLICATES), None
    if explored is not None and leap.can_invert:
        sets = [(log_weights_at(leap, target, each.z), len(each.replicate_log_evidence)) for each in (explored, found)]
        weights = [log_weight.view(count, -1) for log_weight, count in sets]
        log_mean = summarize_weights(judged.flow_log_weight).log_mean_weight
        gap = gap_by_particles(leap, target, necks, weights[1].flatten(), log_mean)
        reasons = (*reasons, *unlike_reasons(unlike(weights[0], weights[1], log_mean)), *neck_reasons(gap))

    return annealed_posterior(
        found, target, num_chains, num_samples, judged, improper_sites, reasons, parts, gap.share if gap else 0.0
    )


def particles_for(num_draws: int) -> int:
    """Particles on each replicate that give so many draws.

    Example:
        >>> particles_for(4000)
        125
    """
    return max(math.ceil(num_draws / NUM_REPLICATES), _REFINEMENT_PARTICLES)


def annealed_posterior(
    found: Exploration,
    target: Target,
    num_chains: int,
    num_samples: int,
    judged: PosteriorDraws,
    improper_sites: Sequence[str] = (),
    reasons: Sequence[Reason] = (),
    parts: Sequence[Part] = (),
    unseen: float = 0.0,
) -> PosteriorDraws:
    """Draws and evidence of particles that were annealed from a flow.

    Arguments:
        found: The particles, on :data:`NUM_REPLICATES` replicates.
        target: The target.
        num_chains: Chains; each takes the particles of replicates of its own.
        num_samples: Draws of each chain.
        judged: Draws and verdict of the stage before; what they say of the density itself still holds.
        improper_sites: Latent sites with an improper prior.
        reasons: What else speaks against the results.
        parts: Parts of the posterior that search found, which the draws have to reach.
        unseen: Share of the posterior that the particles do not see.

    Returns:
        Equally weighted posterior draws.
    """
    # Each chain walks through its replicates in random order: copies of one particle do not follow each other.
    order = torch.rand(num_chains, len(found.z) // num_chains, device=found.z.device).argsort(-1)
    index = order[:, :num_samples] + torch.arange(num_chains, device=order.device)[:, None] * order.shape[1]
    nothing = torch.zeros_like(found.log_prob)
    particles = FlowDraws(found.z, nothing, found.log_prob, nothing, 0)
    lost = lost_by_particles(parts, found.z, found.replicate_log_evidence, found.log_evidence)
    evidence = judge_annealed(
        found,
        judged.evidence,
        improper_sites,
        judged.flow_not_finite,
        (*reasons, *lost_reasons(lost, found.log_evidence)),
        rounding_at(target, found.z, found.log_prob),
        Mixing(*mixing(found.z[index])),
        len(judged.flow_log_weight),
        target.has_tolerance,
        unseen,
    )
    acceptance = torch.full_like(index, math.nan, dtype=nothing.dtype)

    return PosteriorDraws(particles, index, acceptance, evidence, found, judged.flow_log_weight, judged.flow_not_finite)


def rounding_at(target: Target, z: Tensor, log_prob: Tensor) -> float:
    """What rounding adds to the log density, nats: measured, where a part of it is in single precision.

    Arguments:
        target: The target.
        z: Draws of the posterior, ``(S, D)``.
        log_prob: Log densities there, ``(S,)``.
    """
    finite = log_prob.isfinite()
    if not finite.any():
        return 0.0
    evaluate = partial(log_prob_and_score, target.log_prob)
    z = z[finite][: NUM_PROBES if target.vectorized else NUM_PROBES_SLOWLY]
    if target.is_double and (not is_rough(evaluate, z) or has_wrong_gradient(target.log_prob, z[:_NUM_GRADIENTS])):
        return torch.finfo(log_prob.dtype).eps * log_prob[finite].abs().median().item()

    return rounding_noise(evaluate, z)


def _second_opinion(leap: Proposal, target: Target, weights: WeightSummary) -> Exploration | None:
    """A short refinement, where weights are not nearly equal and densities are fast enough for one."""
    good = weights.pareto_k <= GOOD_PARETO_K and weights.ess >= GOOD_WEIGHT_ESS * weights.num_draws
    if good or not is_bijective(leap) or not target.vectorized:
        return None

    try:
        return refine(leap, target, _REFINEMENT_PARTICLES)
    except NotFiniteError:
        # Hardly a draw of the flow lies in the posterior, as its weights say already.
        return None

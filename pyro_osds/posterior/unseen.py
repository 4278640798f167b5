r"""What draws do not see: explored particles and particles of necks have been where a flow may not go.

Weights tell nothing of a part of the posterior where no draw has been. Particles that know nothing of the flow lie
there as often as it has mass, and the flow's weights at them are large. Of a neck, the share that draws do not see is

.. math:: \mathrm{E}_\pi\big[(1 - 2 \bar w / w)_+\big] - \sum_s p_s\, (1 - 2 \bar w / w_s)_+,

the first by the neck's own particles, the second by the draws, whose shares of the weight are :math:`p_s`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_osds.explore.necks.tilted import Tilted, lacking, log_over_mean
from pyro_osds.explore.search.parts import log_mean
from pyro_osds.flow.walk import Walk
from pyro_osds.posterior.evidence import Reason
from pyro_osds.posterior.reasons import Gap, particle_reasons, unseen_reasons
from pyro_osds.stats.enough import share_in_tail, unseen
from pyro_osds.stats.thresholds import (
    EQUAL_MAX_OVER_MEAN,
    EQUAL_SHARE,
    GOOD_PARETO_K,
    HEAVY_SHARE,
    MAX_PARETO_K,
)
from pyro_osds.stats.weights import FlowDraws, Proposal, WeightSummary, log_weights_at
from pyro_osds.target import Target


def by_particles(
    leap: Proposal, target: Target, draws: FlowDraws, weights: WeightSummary, particles: Tensor | None
) -> list[Reason]:
    """What explored particles say against the weights: their tail, and whether they see all of the posterior.

    Arguments:
        leap: What was drawn from.
        target: The target.
        draws: Its draws.
        weights: What their weights say.
        particles: Explored particles, ``(N, D)``, if there are any.
    """
    if particles is None:
        return []
    is_equal = weights.ess > EQUAL_SHARE * weights.num_draws
    is_heavy = GOOD_PARETO_K < weights.pareto_k <= MAX_PARETO_K
    # Any point has paths back. What a walk learnt it learnt from particles, so that they always have a say.
    asked = isinstance(leap, Walk) or (leap.can_invert and (is_heavy or not is_equal))
    if not asked:
        return []
    of_particles = log_weights_at(leap, target, particles)
    if not isinstance(leap, Walk) and not is_heavy:
        return unseen_reasons(unseen(draws.log_weight, of_particles), len(particles))
    if is_equal:
        # Equal weights have no tail but noise: particles must not weigh far more, and that is all they can say.
        share = (of_particles > weights.log_mean_weight + math.log(EQUAL_MAX_OVER_MEAN)).double().mean().item()
        share = share if share > HEAVY_SHARE else HEAVY_SHARE
    else:
        share = share_in_tail(draws.log_weight, of_particles)
    speaking = particle_reasons(share, len(particles), is_heavy=weights.pareto_k > GOOD_PARETO_K)

    return speaking or unseen_reasons(unseen(draws.log_weight, of_particles), len(particles))


def gap_by_draws(leap: Proposal, target: Target, necks: Sequence[Tilted], log_weight: Tensor) -> Gap | None:
    """What weighed draws do not see of necks; None where there are none, or what they see is known.

    Arguments:
        leap: What was drawn from.
        target: The target.
        necks: Particles of necks.
        log_weight: Log weights of the draws, ``(S,)``.
    """
    if not necks or not leap.can_invert or not log_weight.isfinite().any():
        return None
    share = torch.softmax(log_weight.double(), 0)
    level = log_mean(log_weight)[0]
    seen = lacking(log_weight.double() - level)

    return _gap(leap, target, necks, level, (share @ seen).item(), (share * seen).norm().item())


def gap_by_particles(
    leap: Proposal, target: Target, necks: Sequence[Tilted], log_weight: Tensor, level: float
) -> Gap | None:
    """What particles with equal weights do not see of necks; None where there are none.

    Arguments:
        leap: The flow that weighs.
        target: The target.
        necks: Particles of necks.
        log_weight: Log weights of the flow at the particles, ``(N,)``.
        level: Log of the mean weight of the flow's own draws.
    """
    if not necks or not math.isfinite(level):
        return None
    seen = lacking(log_weight.double() - level)

    return _gap(leap, target, necks, level, seen.mean().item(), seen.std().item() / math.sqrt(len(seen)))


def _gap(leap: Proposal, target: Target, necks: Sequence[Tilted], level: float, seen: float, std_error: float) -> Gap:
    """The largest gap, none of them below zero."""
    gaps = []
    for neck in necks:
        by_neck, error = neck.mean(lacking(log_over_mean(leap, target, neck, level)))
        gaps.append(Gap(max(by_neck - seen, 0.0), math.hypot(error, std_error), by_neck, seen))

    return max(gaps, key=lambda gap: gap.share)

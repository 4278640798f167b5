r"""What a few draws show about the model itself, whatever the sampler made of it.

A probability is at most one; a value that was rounded to a bound of its support tells nothing of the mass beyond it; a
prior under which half of all draws have no density is not the prior that was meant. No further training cures these.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_osds.posterior.evidence import Reason
from pyro_osds.stats.thresholds import (
    MAX_LOG_PROBABILITY,
    MAX_OUT_OF_RANGE,
    MAX_SATURATED,
    MAX_TRUNCATED,
    MAX_UNDEFINED,
    SAME_LIKELIHOOD,
)

# Coordinates from which on values are rounded to a bound: beyond 36 for those between bounds, beyond 700 for those
# above one; and two places before that, where the likelihood has to be the same already if it is beyond.
_BEFORE = {30.0: (27.0, 30.0), 700.0: (600.0, 660.0)}

# Draws at which the ranges of parameters are looked at, by a run each.
_NUM_RANGED = 256
# Posterior draws at which the sum over discrete latents is looked at.
_NUM_SUMMED = 32
# Draws at which sums with more values are evaluated: a run each.
_NUM_BEYOND = 256


def model_reasons(target: Any, z: Tensor, log_weight: Tensor) -> list[Reason]:
    """What speaks against a model at some weighted draws.

    Arguments:
        target: The model's posterior, in the coordinates of its sites.
        z: Draws of the flow in these coordinates, ``(S, D)``.
        log_weight: Their log weights, ``(S,)``.
    """
    weight = torch.softmax(log_weight.double(), 0).nan_to_num(0.0)
    mistakes = [Reason(text, draws=False, mendable=False) for text in target.mistakes]
    with torch.no_grad():
        outside = out_of_range(target, z, weight)
        # A probability above one is what comes of a parameter that is out of range, and no rounding.
        found = [*outside, *([] if outside else _above_zero(target, z, weight))]
        found += [*wrong_sums(target, z, weight), *_saturated(target, z, weight), *truncated(target, z, weight)]

    return [*mistakes, *found]


def out_of_range(target: Any, z: Tensor, weight: Tensor) -> list[Reason]:
    """Parameters of distributions that are out of range at draws that count, where the density should be zero.

    Arguments:
        target: The model's posterior, in the coordinates of its sites.
        z: Draws in these coordinates, ``(S, D)``.
        weight: Their weights, which sum to one, ``(S,)``.
    """
    z, weight = z[:_NUM_RANGED], weight[:_NUM_RANGED]
    counts = weight > 0
    found = target.out_of_range(z[counts]) if bool(counts.any()) else None
    if found is None:
        return []
    sentence, log_ratio = found
    weight = weight[counts]
    lost = 1.0 - (weight * log_ratio.to(weight).exp().clamp(max=1.0).nan_to_num(0.0)).sum().item() / weight.sum().item()
    if lost <= MAX_OUT_OF_RANGE:
        return []

    return [
        Reason(
            f"At {lost:.0%} of the posterior (by weight) {sentence} Formulas go on there with numbers that are no "
            "densities, and both draws and log evidence count them.",
            mendable=False,
            is_final=True,
        )
    ]


def undefined_reasons(target: Any, share: float, point: Tensor) -> list[Reason]:
    """What speaks against a prior, many of whose draws have a density that is not a number.

    Arguments:
        target: The model's posterior, in the coordinates that it was given in.
        share: The share of them.
        point: One of them, ``(D,)``.
    """
    if share <= MAX_UNDEFINED:
        return []
    unknown = [site.name for site in target.sites if point[site.start : site.stop].isnan().any()]
    sites = unknown or target.not_finite_sites(point)
    where = f" (site {', '.join(map(repr, sites))})" if sites else ""

    return [
        Reason(
            f"The log density is not a number at {share:.0%} of the draws of the prior{where}: they count as "
            "impossible, and the prior is not the one that was meant. Give the latents priors under which every "
            "density is defined, for instance a HalfNormal or a LogNormal for a scale.",
            draws=False,
            mendable=False,
        )
    ]


def _above_zero(target: Any, z: Tensor, weight: Tensor) -> list[Reason]:
    """Log probabilities of discrete observations that are above zero, at draws that count."""
    if not target.discrete_observations:
        return []
    seen = target.log_likelihood(z)
    reasons = []
    for name in target.discrete_observations:
        if name not in seen:
            continue
        largest = seen[name].reshape(len(z), -1).amax(1).nan_to_num(-torch.inf)
        wrong = largest > MAX_LOG_PROBABILITY
        if weight[wrong].sum() > MAX_SATURATED:
            reasons.append(
                Reason(
                    f"Observed site {name!r} is discrete and has a log probability of +{largest[wrong].max():.3g} at "
                    f"{weight[wrong].sum():.0%} of the draws by weight, where none can be above 0: its density is "
                    "rounded, or not normalised. Check the distribution, and keep its parameters from extreme values "
                    "by a narrower prior.",
                    mendable=False,
                )
            )

    return reasons


def _saturated(target: Any, z: Tensor, weight: Tensor) -> list[Reason]:
    """Sites whose values are rounded to a bound where that matters: without a closed form, or to the likelihood."""
    reasons = []
    for name, rounded in target.saturated_sites(z).items():
        share = weight[rounded].sum().item()
        if share <= MAX_SATURATED:
            continue
        closed = target.has_closed_form(name)
        if closed and share * _change(target, name, z[rounded], weight[rounded]) <= SAME_LIKELIHOOD:
            continue
        why = "and the likelihood still changes there" if closed else "where its density has no closed form"
        reasons.append(
            Reason(
                f"{share:.1%} of the posterior (by weight) has site {name!r} rounded to a bound of its support, {why}: "
                "mass beyond is lost. Give the site a prior with less mass at its ends (shapes of 0.5 and more), or "
                "write the model on the logit or log scale.",
                mendable=False,
            )
        )

    return reasons


def truncated(target: Any, z: Tensor, weight: Tensor) -> list[Reason]:
    """Bounds of latent counts that leave something out: what the log evidence would be with twice the values, nats.

    Arguments:
        target: The model's posterior, in the coordinates of its sites.
        z: Draws in these coordinates, ``(S, D)``.
        weight: Their weights, ``(S,)``.
    """
    weight = weight[:_NUM_BEYOND]
    added = target.beyond_bounds(z[:_NUM_BEYOND])
    if added is None:
        return []
    share = weight / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)
    nats = torch.where(share > 0, share * added.to(share).exp(), 0.0).sum().log().item()
    if nats <= MAX_TRUNCATED:
        return []

    return [
        Reason(
            f"The bounds of latent counts (infer={{'support': ...}}) leave mass out: with values beyond them the log "
            f"evidence would be {nats:.3g} nats higher. Raise the bounds; or, if no value beyond them can be, give the "
            "site a distribution that has no others, such as Categorical.",
            mendable=False,
        )
    ]


def wrong_sums(target: Any, z: Tensor, weight: Tensor) -> list[Reason]:
    """Discrete latents that interact where the posterior is, and were summed as if they did not.

    Arguments:
        target: The model's posterior, in the coordinates of its sites.
        z: Draws in these coordinates, ``(S, D)``.
        weight: Their weights, ``(S,)``.
    """
    if not target.discrete_sites or not weight.sum() > 0:
        return []
    generator = torch.Generator().manual_seed(0)
    chosen = torch.multinomial(weight.cpu(), _NUM_SUMMED, replacement=True, generator=generator)
    text = target.unseen_dependence(z[chosen.unique().to(z.device)])

    return [] if text is None else [Reason(text, mendable=False, is_final=True)]


def _change(target: Any, name: str, z: Tensor, weight: Tensor) -> float:
    """How much the log likelihood still changes just before the values of a site are rounded, nats."""
    (site,) = (site for site in target.sites if site.name == name)
    columns = slice(site.start, site.stop)
    before, after = z.clone(), z.clone()
    size = z[:, columns].abs()
    for bound, (first, second) in _BEFORE.items():
        beyond = size > bound
        for moved, place in ((before, first), (after, second)):
            moved[:, columns] = torch.where(beyond, z[:, columns].sign() * place, moved[:, columns])
    change = target.log_prior_and_likelihood(after)[1] - target.log_prior_and_likelihood(before)[1]

    return (weight * change.abs().nan_to_num(0.0, posinf=0.0)).sum().item() / weight.sum().item()

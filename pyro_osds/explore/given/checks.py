"""Are they draws of this posterior? What is wrong with draws from elsewhere, before anything is fitted to them."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from pyro_osds.explore.particles import Exploration, GivenDraws
from pyro_osds.stats.thresholds import FAR_BELOW, FAR_BELOW_SDS, MAX_LOST, MAX_STUCK, MIN_GIVEN_PER_DIM

# Of a chain, the part at its beginning and at its end that are compared: long enough for a median.
_PART = 3
# The scale of a normal, of its median absolute deviation.
_MAD_SCALE = 1.4826


def check_number(given: GivenDraws) -> None:
    """Refuse draws that are too few, or that hardly differ.

    Raises:
        ValueError: If there are fewer than ten different draws a dimension.
    """
    num_draws, dim = given.z.shape
    least = MIN_GIVEN_PER_DIM * dim
    num_distinct = len(given.z.unique(dim=0))
    if num_draws >= 2 and num_distinct == 1:
        raise ValueError(
            f"initial_samples holds {given.total} draws that are all the same: the chain stood still. Run the sampler "
            "with a smaller step size or from another start, and look at its acceptance."
        )
    if num_distinct < least:
        among = f" among {given.total}" if num_distinct < given.total else ""
        raise ValueError(
            f"initial_samples holds {num_distinct} different draws{among}, fewer than {MIN_GIVEN_PER_DIM} for each of "
            f"the {dim} dimensions, {least}: too few for the scale of the posterior. Run the chains longer, or leave "
            "initial_samples out, and the posterior is explored."
        )


def check_densities(given: GivenDraws, log_prob: Tensor) -> None:
    """Refuse draws that have no density, or that are still on their way.

    Arguments:
        given: The draws.
        log_prob: Their log densities, ``(num_chains * S,)``.

    Raises:
        ValueError: If more than a hundredth of them has none, or they climb from the beginning to the end.
    """
    lost = (~log_prob.isfinite()).double().mean().item()
    if lost > MAX_LOST:
        raise ValueError(
            f"{lost:.0%} of the draws in initial_samples have density zero under this model, or none: they are draws "
            f"of "
            "another model, of other data, or in other parameters. Pass draws of this model and these data."
        )
    rows = log_prob.view(given.num_chains, -1)
    length = rows.shape[1] // _PART
    if length < 2:
        return
    first, last = rows[:, :length], rows[:, -length:]
    climb = (last.median(1).values - first.median(1).values).median().item()
    spread = _spread(last - last.median(1, keepdim=True).values)
    if climb > FAR_BELOW + FAR_BELOW_SDS * spread:
        raise ValueError(
            f"The draws in initial_samples are still on their way: from the first third of the chains to the last "
            f"their "
            f"log density rises by {climb:.1f} nats, and varies by {spread:.1f} in the last. They are warm-up: leave "
            "that out, and run the chains longer."
        )


def without_stuck_chains(given: GivenDraws, log_prob: Tensor) -> tuple[GivenDraws, Tensor]:
    """The draws without chains that ended far below all others: those are no warm-up, they did not converge.

    Arguments:
        given: The draws.
        log_prob: Their log densities, ``(num_chains * S,)``.

    Returns:
        What is left of both; the draws know of the others in a sentence.
    """
    bad = ~_near_others(log_prob).view(given.num_chains, -1)
    late = bad[:, bad.shape[1] // 2 :].double().mean(1)
    stuck = late > MAX_STUCK
    if given.num_chains < 2 or not stuck.any() or stuck.all():
        return given, log_prob
    rows = log_prob.view(given.num_chains, -1)
    numbers = [int(index) + 1 for index in stuck.nonzero()[:, 0]]
    kind = "chain" if given.is_grouped else "quarter"
    which = f"{kind}{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))} of {given.num_chains}"
    left_out, others = rows[stuck], rows[~stuck]
    sentence = (
        f"{which} of the given draws did not converge: half of {'its' if len(numbers) == 1 else 'their'} draws have a "
        f"log density below {left_out.median():.1f}, half of the others lie above {others.median():.1f}. Left out "
        "here; run the sampler longer, or from other starts, and look at its r_hat"
    )
    kept = tuple((~stuck).nonzero()[:, 0].tolist())
    z = given.by_chain[~stuck].flatten(0, 1)

    return replace(given, z=z, num_chains=len(others), stuck=sentence, kept=kept), others.flatten()


def without_stragglers(given: GivenDraws, log_prob: Tensor) -> tuple[Tensor, str]:
    """The draws that a base is fitted to without those far below all others, such as the first ones of a chain.

    Arguments:
        given: The draws.
        log_prob: Their log densities, ``(num_chains * S,)``.

    Returns:
        Which of the draws to take, ``(num_chains * S,)``, and a sentence on the others, or nothing.
    """
    finite = log_prob[log_prob.isfinite()]
    good = _near_others(log_prob)
    count = int((~good).sum())
    if not count:
        return good, ""

    return good, (
        f"{count} of {len(good)} draws lie far below all others ({finite.min():.1f} nats, where half of the draws lie "
        f"above {finite.median():.1f}) and were left out; leave out the warm-up"
    )


def check_same_model(log_prob: Tensor, found: Exploration) -> None:
    """Refuse draws far below what annealing from them found: they are those of another model.

    Arguments:
        log_prob: Log densities of the draws.
        found: Particles that were annealed from a base fitted to them.

    Raises:
        ValueError: If even the middle one of the draws lies far below the particles.
    """
    usable = found.log_prob[found.log_prob.isfinite()].double()
    if len(usable) < 2:
        return
    below = (usable.median() - log_prob.double().median()).item()
    spread = _spread(usable - usable.median())
    # Particles that were annealed are at the posterior, or on their way there: further up than draws of it by chance.
    if below > FAR_BELOW + FAR_BELOW_SDS * spread:
        raise ValueError(
            f"The draws in initial_samples come from another model, or from other data, or half of the chains did not "
            f"converge: half of them have a log "
            f"density "
            f"below {log_prob.double().median():.1f}, and {usable.median():.1f} is usual for this posterior next to "
            "them, with a standard deviation of "
            f"{spread:.1f}. Pass draws of this model and these data, of chains that agree, values as get_samples() "
            "gives them."
        )


def _near_others(log_prob: Tensor) -> Tensor:
    """Which draws do not lie far below the middle one."""
    finite = log_prob[log_prob.isfinite()]
    bound = finite.median() - FAR_BELOW - FAR_BELOW_SDS * _spread(finite - finite.median())

    return log_prob.isfinite() & (log_prob >= bound)


def _spread(centred: Tensor) -> float:
    """The standard deviation of most of the values, whatever a few of them are."""
    value = _MAD_SCALE * centred.double().abs().median().item()

    return value if math.isfinite(value) else 0.0

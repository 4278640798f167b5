"""Draws in time: how long one takes is measured, and a run with a time limit leaves some for them, or makes fewer."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from pyro_osds.posterior.draws import NUM_PROBES, NUM_PROBES_SLOWLY, PosteriorDraws, draw_posterior
from pyro_osds.runtime.clock import now
from pyro_osds.stats.enough import Enough
from pyro_osds.stats.weights import weigh, weigh_in_time
from pyro_osds.target import Target

# Draws that are timed, more and more until they take long enough to be measured: a density may cost as much for a block
# as for a point, or as much for each point.
_COUNTS, _LONG_ENOUGH = (2, 16, 128, 512), 0.1
# From so many on, the first batch may have to record a graph; the second one tells.
_RECORDED = 64
# Seconds after the end of its time in which a run may still draw: fast densities need not know of limits.
_GRACE = 1.0
# Of the time that is left when training begins, what is kept at most for draws.
_SHARE = 0.3
# Draws of a chain at least, however late it is: with fewer there is nothing to tell of a chain.
_FEWEST = 4
# What is evaluated beside the weights, in weighted draws. A probe for rounding is four points with gradients and one
# without. Point by point a draw is also read by a run of the model, fewer are probed, and some show what is wrong with
# the model.
_PROBED = 5
_COSTS = {True: (1, NUM_PROBES, 0), False: (2, 3 * NUM_PROBES_SLOWLY, 64)}


def seconds_per_draw(leap: Any, target: Target) -> float:
    """What a weighted draw takes; random numbers stay as they are.

    Arguments:
        leap: The leap that proposes.
        target: The target that weighs.
    """

    def timed(count: int) -> tuple[float, int]:
        start = now()
        if target.vectorized:
            weigh(leap, target, count)
            return now() - start, count
        # A point may take a thousand times as long as another.
        done = len(weigh_in_time(leap, target, count, 1, start + _LONG_ENOUGH).z)
        return now() - start, done

    seconds, count = 0.0, 1
    with torch.random.fork_rng(devices=[target.device] if target.device.type == "cuda" else []):
        for size in _COUNTS:
            seconds, count = timed(size)
            if seconds > _LONG_ENOUGH and size >= _RECORDED and target.vectorized:
                seconds = min(seconds, timed(size)[0])
            if seconds > _LONG_ENOUGH:
                break

    return seconds / count


def draws_in(seconds: float, per_draw: float, vectorized: bool) -> int:
    """Draws that can be weighed, judged and read in so many seconds.

    Arguments:
        seconds: The seconds.
        per_draw: Those of a weighted draw.
        vectorized: Whether densities come in batches; reading draws then takes next to nothing.

    Example:
        >>> draws_in(1000.0, per_draw=0.1, vectorized=True), draws_in(1000.0, per_draw=0.1, vectorized=False)
        (8720, 4728)
    """
    each, probes, once = _COSTS[vectorized]
    runs = seconds / max(per_draw, 1e-9) - once
    # Of few draws all are probed.
    few, many = runs / (each + _PROBED), (runs - _PROBED * probes) / each

    return max(0, int(few if few < probes else many))


def reserve(num_draws: int, per_draw: float, vectorized: bool, left: float) -> float:
    """Seconds to leave for so many draws: what they take, or a share of what there is.

    Arguments:
        num_draws: How many draws.
        per_draw: Seconds of a weighted draw.
        vectorized: Whether densities come in batches.
        left: Seconds that there are.

    Example:
        >>> reserve(8720, per_draw=0.01, vectorized=True, left=1000.0)
        100.0
    """
    each, probes, once = _COSTS[vectorized]
    needed = each * num_draws + _PROBED * min(probes, num_draws) + once

    return min(needed * per_draw, _SHARE * max(left, 0.0))


def draw_in_time(
    leap: Any,
    target: Target,
    num_chains: int,
    num_samples: int,
    enough: Enough,
    deadline: float = math.inf,
    per_draw: float = 0.0,
    **judging: Any,
) -> PosteriorDraws:
    """Posterior draws and the verdict on them; shorter chains where there is no time for all draws.

    Arguments:
        leap: The trained leap.
        target: The target.
        num_chains: Chains.
        num_samples: Draws of each chain, if there is time.
        enough: What was asked for; point by point, there are no more weighted draws than the chains need.
        deadline: Time of :func:`~pyro_osds.runtime.clock.now` at which they should be there.
        per_draw: Seconds of a weighted draw.
        judging: What else :func:`~pyro_osds.posterior.draws.draw_posterior` takes.
    """
    asked, is_whole = num_samples, True
    limit = max_draws = enough.max_draws if target.vectorized else enough.num_draws
    if deadline < math.inf:
        deadline = max(deadline, now() + _GRACE)
        affordable = max(_FEWEST * num_chains, draws_in(deadline - now(), per_draw, target.vectorized))
        num_samples = min(asked, affordable // num_chains)
        limit = min(affordable, max_draws)
        is_whole = num_samples == asked
        particles = judging.get("particles")
        if particles is not None and not target.vectorized:
            # They are held against draws, and say no more than as many of these.
            judging["particles"] = particles[:: max(1, len(particles) // max(affordable, 1))]
    judging |= {"target_std_error": enough.std_error, "deadline": deadline}
    draws = draw_posterior(leap, target, num_chains, num_samples, max_draws=limit, **judging)
    if limit < max_draws:
        # With more time there would have been more.
        is_whole = is_whole and not draws.evidence.std_error > enough.stop_at

    return replace(draws, is_whole=draws.is_whole and is_whole)

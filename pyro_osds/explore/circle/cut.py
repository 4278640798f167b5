r"""Which coordinates go round a circle, and where each is best cut.

A coordinate *z* goes round if the density of its share of a turn, :math:`\log\gamma - \log s (1 - s)`, goes on over the
end of the turn: value and slope are the same at :math:`s = 0` and :math:`s = 1`, wherever the other coordinates are.
That is seen at the density, and no site has to say it: uniform phases, von Mises angles and one's own logits alike.

Of all cuts *c* the best one leaves particles closest to a Gaussian; up to what all cuts share, the divergence is

.. math:: \tfrac12 \log \mathrm{Var}(u_c) + \mathrm{E} \log \sigma(u_c)\,\sigma(-u_c).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_osds.explore.circle.turned import TurnedTarget, log_share_volume, turn
from pyro_osds.stats.thresholds import MIN_TURN_GAIN
from pyro_osds.target import Target, in_chunks

# Cuts that are tried, at equal distances: a better one lies within a 128th of a turn. Of four, one lies an eighth of a
# turn or more away from whatever is narrow.
_NUM_CUTS, _FEW_CUTS = 64, 4
# Particles that are looked at, about so many.
_NUM_PARTICLES = 2048
# Coordinates that are looked at, those that gain most first.
_MAX_COORDINATES = 128
# Points at which the density has to go on over the end of the turn.
_NUM_POINTS = 16
# Logits next to the end of a turn: shares of 1e-11, 2e-8 and 1e-7. The first two have the value at the end, the last
# one tells the slope; nearer, double precision has no digits left for it.
_AT_END, _NEAR_END, _BESIDE = 25.0, 18.0, 16.0
# Nats between values that are the same: a slope of 10,000 nats a turn makes as much of the second share.
_SAME_VALUE = 1e-3
# Nats by which steps from the end on either side may differ, and as a share of them: what rounding and the curvature
# of an angle that is known to a thousandth of a turn make of it.
_SAME_STEP, _SAME_SLOPE = 1e-6, 0.02


def turned(target: Target, z: Tensor, log_prob: Tensor) -> TurnedTarget | None:
    """The target with circles cut where particles have least mass, or None where no cut is better than the present one.

    No random number is drawn.

    Arguments:
        target: The target.
        z: Particles, ``(N, D)``.
        log_prob: Their log densities, ``(N,)``.
    """
    usable = log_prob.isfinite() & z.isfinite().all(-1)
    if usable.sum() < 2:
        return None
    z = z[usable]
    z = z[:: max(1, len(z) // _NUM_PARTICLES)]
    index = torch.arange(z.shape[1], device=z.device)
    # A few cuts tell which coordinates are worth the others.
    for num_cuts, least in ((_FEW_CUTS, 0.5 * MIN_TURN_GAIN), (_NUM_CUTS, MIN_TURN_GAIN)):
        cut, gain = best_cuts(z[:, index], num_cuts)
        chosen = gain.argsort(descending=True, stable=True)[:_MAX_COORDINATES]
        chosen = chosen[gain[chosen] > least].sort().values
        index, cut = index[chosen], cut[chosen]
        if not len(index):
            return None
    goes_on = goes_round(target, z[:: max(1, len(z) // _NUM_POINTS)][:_NUM_POINTS], index)

    return TurnedTarget(target, index[goes_on], cut[goes_on]) if goes_on.any() else None


def best_cuts(z: Tensor, num_cuts: int = 64) -> tuple[Tensor, Tensor]:
    """The best cut of each coordinate, taken for a logit of a share of a turn, and what it gains.

    Arguments:
        z: Particles, ``(N, D)``.
        num_cuts: How many cuts are tried, at equal distances.

    Returns:
        Cuts in [0, 1), ``(D,)``, and the nats by which they are nearer to a Gaussian than the present one, ``(D,)``.
    """
    cuts = torch.arange(num_cuts, dtype=torch.float64, device=z.device) / num_cuts
    # Without a turn first, in the very numbers: shares forget how far out a logit is.
    logits = (turn(z.double(), -cut) if cut > 0 else z.double() for cut in cuts)
    divergence, centre = (
        torch.stack(rows) for rows in zip(*((_divergence(u), u.mean(0)) for u in logits), strict=True)
    )
    smallest = divergence.amin(0)
    # To a narrow posterior many cuts are as good: of those the one opposite to it.
    off_centre = centre.abs().where(divergence < smallest + 0.5 * MIN_TURN_GAIN, torch.inf)

    return cuts[off_centre.argmin(0)], divergence[0] - smallest


def _divergence(u: Tensor) -> Tensor:
    """From a Gaussian, of each coordinate by itself, ``(N, D) -> (D,)``."""
    return 0.5 * u.var(0).log() + log_share_volume(u).mean(0)


def goes_round(target: Target, points: Tensor, index: Tensor) -> Tensor:
    """Whether the density goes on over the end of the turn, for each of some coordinates.

    Arguments:
        target: The target.
        points: Points to move along the coordinates, ``(P, D)``.
        index: The coordinates, ``(K,)``.

    Returns:
        A truth value for each, ``(K,)``.
    """
    ends = torch.tensor([_AT_END, _NEAR_END, _BESIDE], dtype=points.dtype, device=points.device)
    ends = torch.stack([-ends, ends])  # (2, 3)
    moved = points.expand(len(index), 2, 3, *points.shape).clone()
    for row, column in enumerate(index):
        moved[row, ..., column] = ends[:, :, None]
    with torch.no_grad():
        log_prob = in_chunks(target.log_prob, moved.flatten(0, 3)).double().view(moved.shape[:-1])
    density = log_prob - log_share_volume(ends.double())[:, :, None]
    first, second, beside = density.unbind(2)  # each (K, 2, P)
    step = beside - first

    same_value = (first[:, 0] - first[:, 1]).abs() < _SAME_VALUE
    same_value &= (first - second).abs().amax(1) < _SAME_VALUE
    # One step leads up the turn, the other one down: where the slope is the same they are opposite.
    same_slope = step.sum(1).abs() < _SAME_STEP + _SAME_SLOPE * step.abs().amax(1)

    return (same_value & (same_slope | (not target.is_double))).all(-1)

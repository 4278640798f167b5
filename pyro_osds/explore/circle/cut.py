r"""Which coordinates go round a circle, and where each is best cut.

A coordinate *z* goes round if the density of its share of a turn, :math:`\log\gamma - \log s (1 - s)`, goes on over the
end of the turn: value and slope are the same at :math:`s = 0` and :math:`s = 1`, wherever the other coordinates are.
That is seen at the density, and no site has to say it: uniform phases, von Mises angles and one's own logits alike.

A circle is best cut where least mass lies, near and far; a kernel with wide tails tells it of the shares of particles,

.. math:: f(c) = \mathrm{E}\,\big(1 + \sin^2(\pi (s - c)) / h^2\big)^{-1}.

It is cut there if something lies beyond the present cut, or if particles are then nearer to a Gaussian: up to what all
cuts share, the divergence is :math:`\tfrac12 \log \mathrm{Var}(u_c) + \mathrm{E} \log \sigma(u_c)\,\sigma(-u_c)`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_osds.explore.circle.turned import TurnedTarget, log_share_volume, turn
from pyro_osds.stats.thresholds import MIN_TURN_GAIN
from pyro_osds.target import Target, in_chunks

# Cuts that are tried, at equal distances: a better one lies within a 128th of a turn.
_NUM_CUTS = 64
# The width of the kernel, radians of half a turn: that of about two cuts.
_WIDTH = 0.1
# Where no cut has less than this share of the mass that the present one has, none is better; and of the few cuts that
# are tried first.
_LESS_MASS, _MAYBE_LESS = 0.2, 0.5
# The part of a turn on either side of a cut, and the share of the particles that has to be there for it to lie among
# them: less than five of two thousand may be draws that annealing has not moved.
_BESIDE_CUT, _AMONG = 1.0 / 16.0, 0.002
# Particles that are looked at, about so many.
_NUM_PARTICLES = 2048
# Coordinates whose density is looked at, the first ones.
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


def turned(target: Target, z: Tensor, log_prob: Tensor, drawn_in: Tensor | None = None) -> TurnedTarget | None:
    """The target with circles cut where particles have least mass, or None where no cut is better than the present one.

    No random number is drawn.

    Arguments:
        target: The target.
        z: Particles, ``(N, D)``.
        log_prob: Their log densities, ``(N,)``.
        drawn_in: Coordinates whose heavy tails were drawn in, ``(K,)``: a Cauchy number falls there like a logit, and
            is no angle all the same.
    """
    usable = log_prob.isfinite() & z.isfinite().all(-1)
    if usable.sum() < 2:
        return None
    z = z[usable]
    z = z[:: max(1, len(z) // _NUM_PARTICLES)]
    index = _may_gain(z)
    if drawn_in is not None:
        index = index[~torch.isin(index, drawn_in)]
    if not len(index):
        return None
    cut, is_better = best_cuts(z[:, index])
    index, cut = index[is_better][:_MAX_COORDINATES], cut[is_better][:_MAX_COORDINATES]
    if not len(index):
        return None
    goes_on = goes_round(target, z[:: max(1, len(z) // _NUM_POINTS)][:_NUM_POINTS], index)

    return TurnedTarget(target, index[goes_on], cut[goes_on]) if goes_on.any() else None


def _may_gain(z: Tensor) -> Tensor:
    """Coordinates that are worth a closer look: quarters of a turn tell whether there may be a better cut, ``(K,)``."""
    share = z.double().sigmoid()
    present, *others = (_mass_beside(share, cut) for cut in (0.0, 0.25, 0.5, 0.75))

    return (torch.stack(others).amin(0) < _MAYBE_LESS * present).nonzero()[:, 0]


def best_cuts(z: Tensor) -> tuple[Tensor, Tensor]:
    """The best cut of each coordinate, taken for a logit of a share of a turn, and whether the present one is worse.

    Arguments:
        z: Particles, ``(N, D)``.

    Returns:
        Cuts in [0, 1), ``(D,)``, and whether they are better than the present one, ``(D,)``.
    """
    cuts = torch.arange(_NUM_CUTS, dtype=torch.float64, device=z.device) / _NUM_CUTS
    share = z.double().sigmoid()
    mass = torch.stack([_mass_beside(share, cut) for cut in cuts])
    least, best = mass.min(0)
    cut = cuts[best]
    gain = _divergence(z.double()) - _divergence(turn(z.double(), -cut))
    on_a_side = [(side < _BESIDE_CUT).double().mean(0) for side in (share, 1.0 - share)]
    is_among = torch.minimum(*on_a_side) > _AMONG

    return cut, (least < _LESS_MASS * mass[0]) & (is_among | (gain > MIN_TURN_GAIN))


def _mass_beside(share: Tensor, cut: Tensor | float) -> Tensor:
    """How much lies beside a cut, and less what lies farther, shares of a turn ``(N, D) -> (D,)``."""
    return (1.0 + (torch.sin(math.pi * (share - cut)) / _WIDTH).square()).reciprocal().mean(0)


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

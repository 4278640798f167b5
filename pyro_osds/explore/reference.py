r"""Where to start annealing when there is no prior to draw from: a wide Gaussian around what is out there.

.. math:: r(z) = \mathcal{N}(z;\ \mu,\ 2\Sigma)

Points thrown at scales from 1/2 to 64 run Hamiltonian moves with a step size of their own each; :math:`\mu` and
:math:`\Sigma` are the mean and covariance of where those that arrived have come to rest. If that is in several modes,
half of the reference sits on those, so that a narrow or a far one is not lost before annealing begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical

from pyro_osds.explore.hmc import Points, chosen, kinetic_energy, leapfrog
from pyro_osds.explore.journal import Journal
from pyro_osds.explore.modes import find_modes, spread_out
from pyro_osds.stats.gaussian import Gaussian, GaussianMixture
from pyro_osds.stats.moments import weighted_moments
from pyro_osds.target import NotFiniteError, Target, log_prob_and_score

# More modes than this and the points, 1024 at most, say little about each.
_MAX_MODES = 128
# From a coordinate known better than its unit to one in percent. What lies farther out is found by climbing there, and
# what is narrower by steps that shrink; more scales would leave fewer points for each.
_SCALES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
# With these step sizes, twenty moves reach from 64 units out to a mode of width one, and shrink or grow a step by a
# factor of a hundred or more. More cost in proportion; fewer leave points on their way, which are then left out.
_NUM_MOVES = 20
# Points that are noted at once by one who may be stopped.
_BLOCK = 512
# Leapfrog steps of a move: with fewer, points walk at random; with more, a step that is too long wastes more.
_NUM_LEAPFROG = 5
# The step of the first move, small for a mode of width one: too long a step costs a rejected move, too short a one is
# longer by a third after each.
_FIRST_STEP = 0.1
# Nats, beside one for each dimension, by which a point at rest may still climb in the last quarter of its moves: the
# log density of one that has arrived goes up and down by about sqrt(D / 2).
_MAX_CLIMB = 10.0
# What the moves of all points may cost, in terms of the log density: some seconds on one core.
_MAX_TERMS = 2e8
# After a move that is accepted, and one that is not: at rest where about three moves in four are accepted.
_STEP_UP, _STEP_DOWN = 1.3, 0.5
# Ascents where no point comes to rest, and draws around each mode: together the 1024 points that are kept at most.
_NUM_CLIMBS, _NUM_AROUND = 8, 128
# Dimensions in which the Hessian, two scores for each of them, and an ascent that stores its inverse are affordable.
_MAX_LAPLACE_DIM = 256
# Iterations of an ascent: some for each of the 256 dimensions; one that is not done by then has no end.
_MAX_ASCENT = 500
# Of the scale that the ascent has learnt: longer steps see the third derivative, shorter ones rounding.
_DIFFERENCE = 0.1
# The least curvature in units of that scale: along an axis that is flat or bent upwards draws spread a thousandfold.
_MIN_CURVATURE = 1e-6
# The largest number that a line search can still add and compare, in place of infinity.
_VERY_LARGE = 1e300
# The least variance of a coordinate: one of zero has no step at all.
_TINY_VARIANCE = 1e-30
# How much wider than the points the reference is, as a variance. Points that are in a mode may know its width badly;
# too wide a reference costs a tenth of a nat for each dimension, too narrow a one loses mass for good.
_WIDENING = 2.0


class Rest(NamedTuple):
    """Where points came to rest.

    Arguments:
        z: The points, ``(N, D)``.
        log_prob: Their log densities, ``(N,)``.
        step: The step sizes that suited them there, ``(N,)``.
    """

    z: Tensor
    log_prob: Tensor
    step: Tensor


def throw(target: Target, num_points: int = 4096, starts: Tensor | None = None, journal: Journal | None = None) -> Rest:
    """Points thrown at all scales, where they came to rest.

    Arguments:
        target: The target.
        num_points: Points thrown; fewer where the density has many terms.
        starts: Points to throw around, ``(S, D)``; default: the origin.
        journal: Where each move is noted, if this is the part at work.

    Returns:
        At most 1024 of the points that came to rest.

    Raises:
        NotFiniteError: If the target is finite at no point.
    """
    num_points = num_affordable(target, num_points, at_least=1024)
    scales = torch.tensor(_SCALES, dtype=target.dtype, device=target.device)
    noise = torch.randn(num_points, target.dim, dtype=target.dtype, device=target.device)
    z = noise * scales.repeat(num_points // len(scales) + 1)[:num_points, None]
    if starts is not None:
        z = z + starts.to(z)[torch.arange(num_points, device=z.device) % len(starts)]
    rest = come_to_rest(target, z, journal)
    if not len(rest.z):
        # Step sizes are the same for all coordinates: where their scales differ by a factor of thousands, none arrives.
        rest = laplace_draws(target, z)
    if not len(rest.z):
        raise NotFiniteError(
            f"The log density is not finite at any of {num_points} points between 0.5 and 64 units from the start; "
            "pass initial_params at a point where it is.",
            z[0],
        )
    chosen = spread_out(rest.z)

    return Rest(rest.z[chosen], rest.log_prob[chosen], rest.step[chosen])


def laplace_draws(target: Target, z: Tensor) -> Rest:
    r"""Draws around modes that a quasi-Newton ascent finds, with the inverse Hessian there as their covariance.

    Arguments:
        target: The target.
        z: Points to climb from, ``(N, D)``; some of those with a finite density are taken.

    Returns:
        Draws of finite density; none where nothing is finite, or in many dimensions.
    """
    start = z[: 8 * _NUM_CLIMBS]
    start = start[log_prob_and_score(target.log_prob, start)[0].isfinite()][:_NUM_CLIMBS]
    if not len(start) or target.dim > _MAX_LAPLACE_DIM:
        return Rest(z[:0], z.new_zeros(0), z.new_zeros(0))
    draws = torch.cat([_around_mode(target, point) for point in start])
    with torch.no_grad():
        log_prob = target.log_prob(draws)
    finite = log_prob.isfinite()

    return Rest(draws[finite], log_prob[finite], draws.new_zeros(int(finite.sum())))


def _around_mode(target: Target, point: Tensor) -> Tensor:
    """Draws of the Gaussian that fits the mode above one point, ``(_NUM_AROUND, D)``."""
    from scipy.optimize import minimize  # here, since it takes half a second and is rarely needed

    def negative(x: Any) -> tuple[float, Any]:
        log_prob, score = log_prob_and_score(target.log_prob, torch.as_tensor(x).to(point)[None])
        value = log_prob.item()
        return (-value if math.isfinite(value) else _VERY_LARGE), -score[0].double().cpu().numpy()

    options = {"maxiter": _MAX_ASCENT}
    with np.errstate(over="ignore", invalid="ignore"):  # an ascent without an end is no news here
        found = minimize(negative, point.double().cpu().numpy(), jac=True, method="BFGS", options=options)
    mode, guess = torch.as_tensor(found.x).to(point), torch.as_tensor(found.hess_inv).to(point)
    # The Hessian by differences of scores, in steps of a share of the scale that the ascent has learnt.
    step = _DIFFERENCE * guess.diagonal().clamp(min=_TINY_VARIANCE).sqrt()
    ends = torch.cat([mode + step.diag(), mode - step.diag()])
    up, down = log_prob_and_score(target.log_prob, ends)[1].chunk(2)
    scaled = -(up - down) / 2.0 * step
    precision, vectors = torch.linalg.eigh(0.5 * (scaled + scaled.mT))
    scale = step[:, None] * vectors * precision.clamp(min=_MIN_CURVATURE).rsqrt()

    return mode + torch.randn(_NUM_AROUND, len(mode), dtype=mode.dtype, device=mode.device) @ scale.mT


def wide_reference(target: Target, rest: Rest) -> GaussianMixture:
    """A density that covers where the target's mass is.

    Arguments:
        target: The target.
        rest: Points at rest all over it.

    Returns:
        A normalised density to anneal from.
    """
    labels = find_modes(rest.z, rest.log_prob, target.log_prob, 0.0).labels
    whole = weighted_moments(rest.z, torch.zeros_like(rest.log_prob))
    if not 1 < int(labels.max()) + 1 <= _MAX_MODES:
        labels = labels[:0]
    inside = slice(len(labels))

    return reference_of_modes(whole, rest.z[inside], rest.step[inside], labels)


def num_affordable(target: Target, num_points: int, at_least: int) -> int:
    """How many points may come to rest: fewer where the density has many terms."""
    num_terms = max(1, target.num_terms)

    return min(num_points, max(at_least, int(_MAX_TERMS / (_NUM_MOVES * _NUM_LEAPFROG * num_terms))))


def reference_of_modes(whole: tuple[Tensor, Tensor], z: Tensor, step: Tensor, labels: Tensor) -> GaussianMixture:
    """Half of the mass on the whole, the other half on the modes, one like the other.

    Arguments:
        whole: Location and scale of the whole; twice its variance is used.
        z: Points at rest in the modes, ``(N, D)``; may be none.
        step: Their step sizes, ``(N,)``: one that was accepted tells the width of a mode that a single point reached.
        labels: Their modes, ``(N,)``.
    """
    locs, scales = [whole[0]], [_WIDENING**0.5 * whole[1]]
    eye = torch.eye(len(whole[0]), dtype=z.dtype, device=z.device)
    for mode in labels.unique()[:_MAX_MODES]:
        inside = labels == mode
        loc, scale_tril = weighted_moments(z[inside], torch.zeros_like(step[inside]))
        width = step[inside].median().square() * eye
        locs.append(loc)
        scales.append(torch.linalg.cholesky(_WIDENING * scale_tril @ scale_tril.mT + width))
    probs = torch.tensor([float(max(len(locs) - 1, 1)), *[1.0] * (len(locs) - 1)], dtype=z.dtype, device=z.device)

    return GaussianMixture(Categorical(probs=probs / probs.sum()), Gaussian(torch.stack(locs), torch.stack(scales)))


def come_to_rest(target: Target, z: Tensor, journal: Journal | None = None) -> Rest:
    """Hamiltonian moves with a step size of their own for each point; those that still climb fast are left out.

    Arguments:
        target: The target.
        z: The points, ``(N, D)``.
        journal: Where each move is noted, if this is the part at work.
    """

    def evaluate(z: Tensor) -> Points:
        if journal is None:
            return Points(z, *log_prob_and_score(target.log_prob, z))
        blocks = [journal.evaluation(partial(log_prob_and_score, target.log_prob, part)) for part in z.split(_BLOCK)]
        log_prob, score = zip(*blocks, strict=True)
        return Points(z, torch.cat(log_prob), torch.cat(score))

    taken = journal.take_up() if journal else None
    if taken is None:
        points, step, first = evaluate(z), z.new_full((len(z), 1), _FIRST_STEP), 0
        before = points.log_prob
    else:
        points, step, before, first = taken
    for move in range(first, _NUM_MOVES):
        if move == _NUM_MOVES * 3 // 4:
            before = points.log_prob
        points, accept = _moved(evaluate, points, step)
        step = torch.where(accept, _STEP_UP * step, _STEP_DOWN * step)
        if journal is not None:
            journal.note((points, step, before, move + 1))

    # Still climbing fast means not arrived.
    climb = (points.log_prob - before).nan_to_num(torch.inf)
    arrived = points.log_prob.isfinite() & (climb < target.dim + _MAX_CLIMB) & ~_lost(points)

    return Rest(points.z[arrived], points.log_prob[arrived], step[arrived, 0])


def _lost(points: Points) -> Tensor:
    """Which points a steep slope has thrown out for good, ``(N,)``.

    Next to where they are and to the nats that they lack, a unit is less than rounding, so that nothing is seen of how
    they climb; or the squares of where they are have no finite sum, and there is no covariance with them.
    """
    log_prob = points.log_prob.where(points.log_prob.isfinite(), -torch.inf)
    gap, far = log_prob.amax() - log_prob, points.z.abs().amax(-1)
    has_square = (len(far) * far.square()).isfinite()

    return ~has_square | (torch.minimum(gap, far.to(gap)) * torch.finfo(gap.dtype).eps > 1.0)


def _moved(evaluate: Callable[[Tensor], Points], points: Points, step: Tensor) -> tuple[Points, Tensor]:
    """Points after one move, and which of them did move, ``(N, 1)``; out of a density of zero any way is right."""
    momentum = torch.randn_like(points.z)
    energy = kinetic_energy(momentum) - points.log_prob
    proposal, momentum = leapfrog(evaluate, points, momentum, step, _NUM_LEAPFROG)
    change = energy - kinetic_energy(momentum) + proposal.log_prob
    accept = torch.rand_like(points.log_prob).log() < change.nan_to_num(-torch.inf)
    accept = accept | (~points.log_prob.isfinite() & proposal.log_prob.isfinite())

    return chosen(accept, proposal, points), accept[:, None]

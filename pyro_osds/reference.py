r"""Where to start annealing when there is no prior to draw from: a wide Gaussian around what is out there.

.. math:: r(z) = \mathcal{N}(z;\ \mu,\ 2\Sigma)

Points thrown at scales from 1/2 to 64 run Hamiltonian moves with a step size of their own each; :math:`\mu` and
:math:`\Sigma` are the mean and covariance of where those that arrived have come to rest. If that is in several modes,
half of the reference sits on those, so that a narrow or a far one is not lost before annealing begins.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from pyro_osds.modes import find_modes
from pyro_osds.moments import weighted_moments
from pyro_osds.target import NotFiniteError, Target, log_prob_and_score

# More modes than this and the points say little about each.
_MAX_MODES = 128
_SCALES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
_NUM_MOVES = 20
_NUM_LEAPFROG = 5
_STEP_UP, _STEP_DOWN = 1.3, 0.5


def wide_reference(target: Target, num_points: int = 1024, starts: Tensor | None = None) -> MixtureSameFamily:
    """A density that covers where the target's mass is.

    Arguments:
        target: The target.
        num_points: Points thrown.
        starts: Points to throw around, ``(S, D)``; default: the origin.

    Returns:
        A normalised density to anneal from.

    Raises:
        NotFiniteError: If the target is finite at no point.
    """
    scales = torch.tensor(_SCALES, dtype=target.dtype, device=target.device)
    noise = torch.randn(num_points, target.dim, dtype=target.dtype, device=target.device)
    z = noise * scales.repeat(num_points // len(scales) + 1)[:num_points, None]
    if starts is not None:
        z = z + starts.to(z)[torch.arange(num_points, device=z.device) % len(starts)]
    z, log_prob, climb, step = _come_to_rest(target, z)
    # Still climbing fast means not arrived; a handful of the best arrives by definition.
    arrived = log_prob.isfinite() & (climb < target.dim + 10.0)
    if not arrived.any():
        raise NotFiniteError(
            f"The log density is not finite at any of {num_points} points between 0.5 and 64 units from the start; "
            "pass initial_params at a point where it is.",
            z[0],
        )
    z, log_prob, step = z[arrived], log_prob[arrived], step[arrived, 0]
    loc, scale_tril = weighted_moments(z, torch.zeros_like(log_prob))
    locs, scales, labels = [loc], [2.0**0.5 * scale_tril], find_modes(z, log_prob, target.log_prob, 0.0).labels
    num_modes = int(labels.max()) + 1
    if 1 < num_modes <= _MAX_MODES:
        eye = torch.eye(target.dim, dtype=z.dtype, device=z.device)
        for mode in range(num_modes):
            inside = labels == mode
            loc, scale_tril = weighted_moments(z[inside], torch.zeros_like(log_prob[inside]))
            # A step size that was accepted tells the width of a mode that a single point has reached.
            width = step[inside].median().square() * eye
            locs.append(loc)
            scales.append(torch.linalg.cholesky(2.0 * scale_tril @ scale_tril.mT + width))
    # Half of the mass on the whole, the other half on the modes, one like the other.
    probs = torch.tensor([float(max(len(locs) - 1, 1)), *[1.0] * (len(locs) - 1)], dtype=z.dtype, device=z.device)

    return MixtureSameFamily(
        Categorical(probs=probs / probs.sum()),
        MultivariateNormal(torch.stack(locs), scale_tril=torch.stack(scales), validate_args=False),
        validate_args=False,
    )


def _come_to_rest(target: Target, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points after Hamiltonian moves, log densities, how much those rose in the last quarter of them, step sizes."""
    log_prob, score = log_prob_and_score(target.log_prob, z)
    step = z.new_full((len(z), 1), 0.1)
    before = log_prob
    for move in range(_NUM_MOVES):
        if move == _NUM_MOVES * 3 // 4:
            before = log_prob
        new_z, new_log_prob, new_score = z, log_prob, score
        momentum = torch.randn_like(z)
        energy = 0.5 * momentum.square().sum(-1) - log_prob
        momentum = momentum + 0.5 * step * score
        for index in range(_NUM_LEAPFROG):
            new_z = new_z + step * momentum
            new_log_prob, new_score = log_prob_and_score(target.log_prob, new_z)
            momentum = momentum + (0.5 if index == _NUM_LEAPFROG - 1 else 1.0) * step * new_score
        change = energy - 0.5 * momentum.square().sum(-1) + new_log_prob
        accept = torch.rand_like(log_prob).log() < change.nan_to_num(-torch.inf)
        accept = accept | (~log_prob.isfinite() & new_log_prob.isfinite())
        z, score = torch.where(accept[:, None], new_z, z), torch.where(accept[:, None], new_score, score)
        log_prob = torch.where(accept, new_log_prob, log_prob)
        step = torch.where(accept[:, None], _STEP_UP * step, _STEP_DOWN * step)

    return z, log_prob, (log_prob - before).nan_to_num(torch.inf), step

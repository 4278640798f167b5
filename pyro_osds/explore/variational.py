r"""The Gaussian that is closest to a target in many dimensions, by natural gradients.

Particles are too few for a covariance where there are thousands of dimensions, and a mode with its curvature lies far
from the mass of a skewed posterior. For the Gaussian :math:`q = \mathcal N(\mu, LL^\top)` of the largest ELBO, both the
mean and the scale follow from scores at draws :math:`z = \mu + L u` of *q* itself. With :math:`g = L^\top \nabla\log
\gamma(z)`, one step of size :math:`\rho` is

.. math::
    A = I - \mathrm{E}\big[(g + u)\, u^\top\big], \qquad
    P = (1 - \rho) I + \rho A, \qquad
    \mu' = \mu + \rho L P^{-1} \mathrm{E}\,g, \qquad L' L'^\top = L P^{-1} L^\top .

:math:`A` is minus the mean Hessian, by Stein's identity; a Gaussian target has :math:`g = -u` at the optimum, so the
estimate has no noise there.

Source: natural gradients for a Gaussian, Khan, Nielsen 2018 (1807.04489).
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_osds.explore.annealing import explore
from pyro_osds.explore.journal import Journal
from pyro_osds.explore.particles import Exploration
from pyro_osds.explore.paths import ReferencePath
from pyro_osds.flow.base import Base, standard_base
from pyro_osds.runtime.progress import progress_bar
from pyro_osds.target import Target, TargetWrapper, finite_log_prob, in_chunks, log_prob_and_score

# Steps at most: a bound on the time where the start is far off; nearer ones end by themselves.
_MAX_ITERATIONS = 40
# Draws of an iteration by dimension: few while the way is long, many for the last ones, whose noise stays.
_FEW, _MANY, _MIN_DRAWS = 2, 10, 512
# Steps after the ELBO stopped rising, which average what their curvatures say: with more, less noise of the scale is
# left, at ten draws a dimension each.
_LAST_ITERATIONS = 3
# Draws of an ELBO: its noise decides which step is taken for better.
_NUM_TEST_DRAWS = 1024
# The first step, longer by a half after each that helped, and the least one: where shorter ones still do harm, noise is
# all that is left.
_FIRST_STEP, _MIN_STEP = 0.5, 0.02
_LONGER = 1.5
# Standard errors between two ELBOs that are not taken for noise.
_SIGMAS = 2.0
# How much a variance may change in one step: curvatures far from the mass may be of any size, and of either sign.
_MAX_RATIO = 4.0
# Rows in memory at once: with a thousand dimensions, 16 megabytes.
_CHUNK_SIZE = 2048
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Bound:
    """An ELBO from independent draws, and its standard error, nats."""

    elbo: float
    std_error: float

    def is_above(self, other: _Bound, sigmas: float) -> bool:
        """Whether it is higher by so many standard errors of the difference."""
        return self.elbo > other.elbo + sigmas * math.hypot(self.std_error, other.std_error)


def variational_base(target: Target, start: Base) -> Base:
    """The Gaussian of the largest ELBO, from another one as a start.

    Arguments:
        target: The target.
        start: A Gaussian base, roughly where the mass is.

    Returns:
        A base whose ELBO is as high as that of the start, or higher.

    Example:
        >>> from pyro_osds.target import FunctionTarget
        >>> torch.manual_seed(0) and None
        >>> target = FunctionTarget(lambda z: -0.5 * ((z - 3.0) / 2.0).square().sum(-1), dim=4)
        >>> base = variational_base(target, standard_base(torch.zeros(4), torch.eye(4)))
        >>> base.loc.round(decimals=1), base.scale_tril.diagonal().round(decimals=1)
        (tensor([3., 3., 3., 3.]), tensor([2., 2., 2., 2.]))
    """
    loc, scale_tril = start.loc, start.scale_tril
    bound, step = _elbo(target, loc, scale_tril), _FIRST_STEP
    progress = progress_bar(_MAX_ITERATIONS, "Fit a Gaussian")
    last = 0
    for iteration in range(_MAX_ITERATIONS):
        slope, curvature = _natural_gradient(
            target, loc, scale_tril, max(_MIN_DRAWS, (_MANY if last else _FEW) * target.dim)
        )
        while step > _MIN_STEP:
            moved = _moved(loc, scale_tril, slope, curvature, step)
            candidate = _elbo(target, *moved)
            if math.isfinite(candidate.elbo) and not bound.is_above(candidate, _SIGMAS):
                break
            step /= 2.0
        else:
            break
        is_better = candidate.is_above(bound, _SIGMAS)
        (loc, scale_tril), bound = moved, candidate
        progress.set_postfix(ELBO=f"{bound.elbo:.2f}")
        progress.update()
        _log.debug("Gaussian %d: step %.3g, ELBO %.3f +- %.3f", iteration, step, bound.elbo, bound.std_error)
        last += last > 0 or not is_better
        if last > _LAST_ITERATIONS:
            break
        # The last steps average what their noisy curvatures say.
        step = 1.0 / last if last else min(1.0, _LONGER * step)
    progress.close()

    return standard_base(loc, scale_tril)


def _natural_gradient(target: Target, loc: Tensor, scale_tril: Tensor, num_draws: int) -> tuple[Tensor, Tensor]:
    """Mean score ``(D,)`` and minus the mean Hessian ``(D, D)``, in coordinates whitened by the Gaussian."""
    dim = len(loc)
    slope, residual, count = torch.zeros_like(loc), torch.zeros_like(scale_tril), 0
    while count < num_draws:
        u = _antithetic(min(_CHUNK_SIZE, num_draws), loc)
        log_prob, score = log_prob_and_score(target.log_prob, loc + u @ scale_tril.mT)
        # Where the density is not finite nothing is known: as if it were this Gaussian.
        score = torch.where(log_prob.isfinite()[:, None], score @ scale_tril, -u)
        slope, residual = slope + score.sum(0), residual + (score + u).mT @ u
        count += len(u)
    residual = 0.5 * (residual + residual.mT) / count

    return slope / count, torch.eye(dim, dtype=loc.dtype, device=loc.device) - residual


def _moved(loc: Tensor, scale_tril: Tensor, slope: Tensor, curvature: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """Location and scale after a step; no variance changes by more than a factor of four."""
    precision, vectors = torch.linalg.eigh(curvature)
    precision = (1.0 - step + step * precision).clamp(1.0 / _MAX_RATIO, _MAX_RATIO)
    change = vectors @ (step * (vectors.mT @ slope) / precision)
    covariance = ((vectors / precision) @ vectors.mT).double()

    return loc + scale_tril @ change, scale_tril @ torch.linalg.cholesky(covariance).to(loc.dtype)


def _elbo(target: Target, loc: Tensor, scale_tril: Tensor) -> _Bound:
    """The ELBO on fresh draws; draws of density zero make it minus infinity."""
    u = _antithetic(_NUM_TEST_DRAWS, loc)
    with torch.no_grad():
        log_prob = finite_log_prob(in_chunks(target.log_prob, loc + u @ scale_tril.mT, _CHUNK_SIZE))
    log_weight = log_prob.double() + 0.5 * u.double().square().sum(-1)
    constant = 0.5 * len(loc) * math.log(2 * math.pi) + scale_tril.diagonal().double().log().sum()
    pairs = (log_weight + constant).view(2, -1).mean(0)

    return _Bound(pairs.mean().item(), (pairs.std() / math.sqrt(len(pairs))).item())


def _antithetic(num_draws: int, like: Tensor) -> Tensor:
    """Standard normal draws in pairs of opposite sign, ``(num_draws, D)``."""
    u = torch.randn((num_draws + 1) // 2, len(like), dtype=like.dtype, device=like.device)

    return torch.cat([u, -u])


class _Whitened(TargetWrapper):
    """A target in the whitened coordinates of a base."""

    def __init__(self, target: Target, base: Base) -> None:
        super().__init__(target)
        self._base = base

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density, ``(B, D) -> (B,)``."""
        return self.target.log_prob(self._base.from_whitened(z)) + self._base.log_abs_det


def explore_from(
    target: Target,
    base: Base,
    before: Exploration,
    num_particles: int,
    num_replicates: int,
    journal: Journal | None = None,
    **pace: Any,
) -> Exploration:
    """The short way from a base, in its coordinates: there, few particles suffice for the scale of the moves.

    Arguments:
        target: The target.
        base: The base.
        before: The way before, which knows how wide the space was seen.
        num_particles: Particles on each replicate.
        num_replicates: Independent repeats.
        journal: Where each temperature is noted.
        pace: What else :func:`~pyro_osds.explore.annealing.explore` takes.
    """
    path = ReferencePath.from_density(_Whitened(target, base), base.density)
    found = explore(path, num_particles, num_replicates, journal=journal, **{"phase": "Explore again", **pace})

    return replace(found, z=base.from_whitened(found.z), log_prob=found.log_prob - base.log_abs_det, start=before.start)

r"""A flow that lacks a neck gets base draws for it: a component of the base, in its own latent space.

A flow learns at its own draws, so that a neck where none of them has been is lost for good, and no weight tells. Tilted
particles that lie there are taken back through the flow, :math:`x = \Phi^{-1}(z)`; a Gaussian that fits them joins the
base,

.. math:: b'(x) = (1 - a)\, b(x) + a\, \mathcal{N}(x;\, \mu, \Sigma).

The flow stays as it is, and its density exact: no training follows, and no weight of the posterior's bulk changes by
more than a factor of 1 - a.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from pyro_osds.explore.necks.narrowing import ways_into_necks
from pyro_osds.explore.necks.tilted import Tilted, lacking, log_over_mean, tilt
from pyro_osds.explore.search.parts import log_mean
from pyro_osds.flow.base import Base
from pyro_osds.flow.leap import Leap
from pyro_osds.stats.gaussian import MANY_DIMENSIONS, Gaussian, GaussianMixture
from pyro_osds.stats.moments import weighted_moments
from pyro_osds.stats.thresholds import MAX_SIGMAS, MIN_UNSEEN
from pyro_osds.stats.weights import FlowDraws, effective_sample_size, weigh
from pyro_osds.target import Target

# Draws of the flow in which ways into necks show.
_NUM_DRAWS = 4096
# Effective draws below which the flow knows too little of the posterior for what it lacks to be told.
_MIN_EFFECTIVE = 100.0
# Particles on each replicate, moves and temperatures: for a first look, and where it saw something.
_QUICK, _THOROUGH = (64, 2, 1), (128, 4, 5)
# Terms of log densities that a thorough look may cost, some seconds; it evaluates them so often for each particle.
_MOST_TERMS, _EVALUATIONS = 1e9, 8 * 200
_FEWEST = 48
# Components at most: each stands for what the ones before have left.
_MOST_COMPONENTS = 6
# A component is drawn from this many times as often as the share of the posterior that it stands for, within bounds.
_OVERSAMPLED, _LEAST, _MOST = 2.0, 0.02, 0.1
# Share of the effective draws that components have to leave: necks are small, and the rest is not to pay for them.
_KEPT = 0.7
# Wider than fitted: what is too narrow loses mass for good.
_WIDENING = 1.3
# Cuts of the largest weights at most, each of which leaves a smaller mean, and by how much a weight may exceed it.
_MAX_CUTS, _ROUNDING = 50, 0.01
# Particles for each dimension that a fit needs, effectively.
_PER_DIMENSION = 2.0


def cover_necks(leap: Leap, target: Target) -> tuple[Leap, tuple[Tilted, ...]]:
    """A leap with base draws for the necks that it lacked, and tilted particles that show what is left.

    The caller's random numbers stay as they are.

    Arguments:
        leap: A trained leap; it stays as it is.
        target: The target.

    Returns:
        The leap, or the same one where it lacks nothing, and particles of each neck in which it did.
    """
    if not target.vectorized or not 2 <= target.dim < MANY_DIMENSIONS:
        return leap, ()
    with torch.random.fork_rng(devices=[target.device] if target.device.type == "cuda" else []):
        draws = weigh(leap, target, _NUM_DRAWS)
        necks = _lacking(leap, target, draws)
        least = _KEPT * effective_sample_size(truncated(draws.log_weight))
        for _ in range(_MOST_COMPONENTS if necks else 0):
            wider = _wider(leap, target, necks, log_mean(truncated(draws.log_weight))[0], least)
            if wider is None:
                break
            leap, draws = wider

    return leap, necks


def truncated(log_weight: Tensor) -> Tensor:
    """Log weights of which no single one decides: at most the square root of their number times their mean, ``(S,)``.

    Example:
        >>> log_weight = truncated(torch.cat([torch.zeros(99), torch.tensor([50.0])]))
        >>> bool(torch.softmax(log_weight, 0).max() < 0.12)
        True

    Source: truncated importance sampling, Ionides 2008; repeated, since what is cut had its part in the mean.
    """
    log_weight = log_weight.double()
    for _ in range(_MAX_CUTS):
        limit = torch.logsumexp(log_weight, 0) - 0.5 * math.log(len(log_weight))
        if not log_weight.max() > limit + _ROUNDING:
            break
        log_weight = log_weight.clamp(max=limit.item())

    return log_weight


def _lacking(leap: Leap, target: Target, draws: FlowDraws) -> tuple[Tilted, ...]:
    """Tilted particles of the necks in which a first look saw that the flow lacks something."""
    size, *effort = _THOROUGH
    size = min(size, int(_MOST_TERMS / (_EVALUATIONS * max(target.num_terms, 1))))
    log_weight = truncated(draws.log_weight)
    if size < _FEWEST or not effective_sample_size(log_weight) > _MIN_EFFECTIVE:
        return ()
    found, level = [], log_mean(log_weight)[0]
    for way in ways_into_necks(draws.z, log_weight):
        quick = tilt(target, draws.z, log_weight, way, *_QUICK)
        if quick.mean(lacking(log_over_mean(leap, target, quick, level)))[0] > 0.5 * MIN_UNSEEN:
            found.append(tilt(target, draws.z, log_weight, way, size, *effort))

    return tuple(found)


def _wider(
    leap: Leap, target: Target, necks: Sequence[Tilted], level: float, least: float
) -> tuple[Leap, FlowDraws] | None:
    """The leap with a component for one of the necks, and its draws: for the first that takes one, most lacking first.

    Arguments:
        leap: The leap.
        target: The target.
        necks: Particles of necks.
        level: Log of the mean weight.
        least: Effective draws that have to be left.
    """
    found = [log_over_mean(leap, target, neck, level) for neck in necks]
    shares = [neck.mean(lacking(over_mean)) for neck, over_mean in zip(necks, found, strict=True)]
    for i in sorted(range(len(necks)), key=lambda i: -shares[i][0]):
        share, std_error = shares[i]
        if not share > max(0.5 * MIN_UNSEEN, MAX_SIGMAS * std_error):
            continue
        wider = _covered(leap, necks[i], found[i], share)
        if wider is None:
            continue
        draws = weigh(wider, target, _NUM_DRAWS)
        if effective_sample_size(truncated(draws.log_weight)) >= least:
            return wider, draws

    return None


def _covered(leap: Leap, neck: Tilted, over_mean: Tensor, share: float) -> Leap | None:
    """The leap with a component for a neck; None where too few particles show what it lacks.

    Arguments:
        leap: The leap.
        neck: Particles of the neck.
        over_mean: Logs of the leap's weights over their mean at the particles.
        share: The share of the posterior that it lacks there.
    """
    # Between how much lies where and how the particles are spread: what is far in the neck counts, too.
    weight = (-0.5 * neck.log_tilt).exp() * lacking(over_mean)
    keep = (weight > 0.0) & over_mean.isfinite()
    if not keep.any() or not effective_sample_size(weight[keep].log()) > _PER_DIMENSION * neck.z.shape[1]:
        return None
    with torch.no_grad():
        x = _latent(leap, neck.z[keep])
    loc, scale_tril = weighted_moments(x, weight[keep].log().to(x))
    share = min(max(_OVERSAMPLED * share, _LEAST), _MOST)

    return Leap(_with_component(leap.base, loc, _WIDENING * scale_tril, share), leap.flow, leap.num_steps)


def _latent(leap: Leap, z: Tensor) -> Tensor:
    """Whitened base points of points of the posterior, ``(B, D) -> (B, D)``."""
    x = leap.base.to_whitened(z)
    for step in reversed(range(leap.num_steps)):
        x, _ = leap.flow.inverse(x, step / leap.num_steps, 1.0 / leap.num_steps)

    return x.to(leap.base.loc)


def _with_component(base: Base, loc: Tensor, scale_tril: Tensor, share: float) -> Base:
    """A base with one more component, in whitened coordinates."""
    density = base.density
    if isinstance(density, MixtureSameFamily):
        components = density.component_distribution
        assert isinstance(components, MultivariateNormal)
        locs, factors, probs = components.loc, components.scale_tril, density.mixture_distribution.probs
    else:
        locs, factors, probs = density.loc[None], density.scale_tril[None], density.loc.new_ones(1)
    probs = torch.cat([(1.0 - share) * probs / probs.sum(), probs.new_full((1,), share)])
    mixture = GaussianMixture(
        Categorical(probs=probs), Gaussian(torch.cat([locs, loc[None]]), torch.cat([factors, scale_tril[None]]))
    )

    return replace(base, density=mixture, num_plain=base.num_plain or base.num_components)

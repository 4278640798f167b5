r"""Where to look for what exploration has not met: points that stand out from what is known, and the mass far out.

Many points are thrown around each known part at several scales, and the density is evaluated there once. A basin that
is not known stands out by

.. math:: e(z) = \log\gamma(z) - \log b(z)

among points that are as far out as it is, with *b* the Gaussian or mixture that fits what is known. The gradient at
such a point leads into that basin. A second part far wider than the first has no top of its own; it is met by draws of

.. math:: p(z) = \frac1J \sum_{j=0}^{J-1} \mathcal{N}\big(z;\ \mu,\ \lambda^{2j} \Sigma\big), \qquad
    \lambda = \min\big(2,\ 1 + 2 / \sqrt D\big),

whose weights tell how much of the evidence lies beyond some standard deviations.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_osds.explore.search.parts import Part, log_mean
from pyro_osds.flow.base import Base
from pyro_osds.stats.gaussian import Gaussian
from pyro_osds.stats.moments import weighted_moments
from pyro_osds.target import Target, finite_log_prob, in_chunks

# Points that are thrown, and what they may cost in terms of the log density: a tenth of a second on one core. A
# density whose cost is not known is taken for one of two terms.
_NUM_POINTS, _MAX_TERMS, _FEWEST, _UNKNOWN = 262_144, 3e5, 4096, 2
# Points where densities come point by point: a second or two.
_NUM_POINTS_SLOWLY = 2048
# Components of a base that cost as much as the density does.
_FEW_COMPONENTS = 8
# Scales of what is known at which they are thrown: a spike on a shoulder is met at the first, a narrow mode four or
# more standard deviations away at the others. Farther out the volume of any basin is a small share of all.
_SCALES = (1.0, 2.0, 3.0)
# Layers, by how far out points are, and the most outstanding points of each layer that are followed.
_NUM_LAYERS, _NUM_OUTSTANDING, _NUM_OUTSTANDING_SLOWLY = 4, 6, 2
# Standard deviations of the widest probe, as a power of two; draws of all probes, of each at least, and of each where
# densities come point by point.
_NUM_OCTAVES, _NUM_DRAWS, _FEWEST_DRAWS, _NUM_DRAWS_SLOWLY = 17, 3456, 64, 12
# Gaussians fitted to what lies far out, draws of each, and how much wider they are made.
_NUM_FITS, _NUM_FIT_DRAWS, _WIDENING = 2, 512, 1.1
# Standard deviations beyond the radius that a normal has in so many dimensions: it has nothing there. What a flow with
# tails of its own reaches is compared, not missed.
_FAR = 4.0
# Components of what is known around which points are thrown.
_MAX_CENTRES = 32
# Smoothing of the draws that points are made of, in their standard deviations.
_BANDWIDTH = 0.2
# One half of the points reach so many times as far as the draws that they are made of.
_STRETCH = 3.0


def outstanding(target: Target, base: Base, spread: Tensor) -> Tensor:
    """Points whose density stands out from what is known, to be followed uphill.

    Arguments:
        target: The target.
        base: What is known, as a density.
        spread: Points spread as widely as the posterior may be, ``(M, D)``.

    Returns:
        Points, ``(P, D)``; some hundred of very many.
    """
    num_terms = (target.num_terms or _UNKNOWN) * max(1.0, base.num_components / _FEW_COMPONENTS)
    count = int(min(_NUM_POINTS, max(_MAX_TERMS / num_terms, _FEWEST))) if target.vectorized else _NUM_POINTS_SLOWLY
    count //= len(_SCALES) + 1
    num_outstanding = _NUM_OUTSTANDING if target.vectorized else _NUM_OUTSTANDING_SLOWLY
    centres, scales, weights = components(base, _MAX_CENTRES)
    chosen = []
    for scale in (*_SCALES, None):
        if scale is None:
            z = smoothed(spread, count)
        else:
            which = torch.multinomial(weights, count, replacement=True)
            noise = torch.randn(count, target.dim, dtype=centres.dtype, device=centres.device)
            z = torch.empty_like(noise)
            for k in range(len(centres)):
                z[which == k] = centres[k] + scale * noise[which == k] @ scales[k].mT
        with torch.no_grad():
            log_prob = finite_log_prob(in_chunks(target.log_prob, z))
            known = in_chunks(base.log_prob, z)
        finite = log_prob.isfinite() & known.isfinite()
        z, excess = z[finite], (log_prob - known)[finite]
        for layer in known[finite].argsort().tensor_split(_NUM_LAYERS):
            chosen.append(z[layer[excess[layer].topk(min(num_outstanding, len(layer))).indices]])

    return torch.cat(chosen)


def smoothed(start: Tensor, count: int) -> Tensor:
    """Draws of a kernel density estimate of points, one half of them stretched.

    Arguments:
        start: Points, ``(M, D)``.
        count: How many draws.
    """
    loc, scale_tril = weighted_moments(start, start.new_zeros(len(start)))
    chosen = start[torch.randint(len(start), (count,), device=start.device)]

    points = chosen + _BANDWIDTH * torch.randn_like(chosen) @ scale_tril.mT
    # Every other one far out: data may be a surprise to the prior.
    points[::2] = loc + _STRETCH * (points[::2] - loc)

    return points


def components(base: Base, most: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Centres ``(K, D)``, lower triangular scales ``(K, D, D)`` and weights ``(K,)`` of a base, not whitened.

    Arguments:
        base: The base.
        most: Of a mixture, only so many, the heaviest; default: all.
    """
    density = base.density
    if isinstance(density, MultivariateNormal):
        locs, scales, weights = density.loc[None], density.scale_tril[None], density.loc.new_ones(1)
    else:
        parts = density.component_distribution
        assert isinstance(parts, MultivariateNormal)
        weights = density.mixture_distribution.probs
        order = weights.argsort(descending=True)[:most]
        locs, scales, weights = parts.loc[order], parts.scale_tril[order], weights[order]

    return base.from_whitened(locs), base.scale_tril @ scales.to(base.scale_tril), weights


def around(base: Base, num_points: int) -> Tensor:
    """Points around the middle of all that is known, at scales from one to a thousand, ``(num_points, D)``."""
    loc, scale_tril = _whole(base)
    octave = torch.arange(num_points, device=loc.device) % (_NUM_OCTAVES // 2 + 2)
    noise = torch.randn(num_points, len(loc), dtype=loc.dtype, device=loc.device)

    return loc + (2.0 ** octave.to(loc))[:, None] * noise @ scale_tril.mT


def halo(target: Target, base: Base) -> Part | None:
    """What lies far out, if anything does.

    Arguments:
        target: The target.
        base: What is known.

    Returns:
        The part beyond some standard deviations of what is known; None where no draw there has a density.
    """
    loc, scale_tril = _whole(base)
    dim = len(loc)
    inner = math.sqrt(dim) + _FAR
    # Draws of one scale weigh for its neighbours, if those are no farther than the spread of a radius.
    step = min(2.0, 1.0 + 2.0 / math.sqrt(dim))
    count = math.ceil(_NUM_OCTAVES * math.log(2.0) / math.log(step))
    scales = step ** torch.arange(count, dtype=loc.dtype, device=loc.device)
    num_draws = max(_FEWEST_DRAWS, _NUM_DRAWS // count) if target.vectorized else _NUM_DRAWS_SLOWLY
    noise = torch.randn(count * num_draws, dim, dtype=loc.dtype, device=loc.device)
    u = scales.repeat_interleave(num_draws)[:, None] * noise
    distance = u.norm(dim=-1)
    log_normal = -0.5 * (distance[:, None] / scales).square() - dim * (scales.log() + 0.5 * math.log(2 * math.pi))
    proposal = torch.logsumexp(log_normal, 1) - math.log(count) - scale_tril.diagonal().log().sum()
    part = _beyond(target, loc + u @ scale_tril.mT, proposal, loc, scale_tril, inner)
    for _ in range(_NUM_FITS if part is not None and target.vectorized else 0):
        assert part is not None
        fit = Gaussian(part.loc, _WIDENING * part.scale_tril)
        z = fit.sample(torch.Size([_NUM_FIT_DRAWS]))
        again = _beyond(target, z, fit.log_prob(z), loc, scale_tril, inner)
        # A mass that was met once is not given up for draws that miss it.
        part = again if again is not None and again.std_error < part.std_error else part

    return part


def _beyond(target: Target, z: Tensor, proposal: Tensor, loc: Tensor, scale_tril: Tensor, inner: float) -> Part | None:
    """The part beyond a distance, from draws with the log density that they were drawn with."""
    with torch.no_grad():
        log_prob = finite_log_prob(in_chunks(target.log_prob, z))
    distance = torch.linalg.solve_triangular(scale_tril, (z - loc).mT, upper=False).norm(dim=0)
    log_weight = torch.where(distance >= inner, log_prob - proposal, -torch.inf).double()
    log_mass, std_error = log_mean(log_weight)
    if not math.isfinite(log_mass):
        return None
    far = log_weight.isfinite()

    return Part(*weighted_moments(z[far], log_weight[far]), log_mass, std_error, loc, scale_tril, inner, math.inf)


def _whole(base: Base) -> tuple[Tensor, Tensor]:
    """Mean and scale of a base as a whole."""
    if base.num_components == 1:
        centres, scales, _ = components(base)
        return centres[0], scales[0]

    return base.loc, base.scale_tril

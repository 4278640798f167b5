r"""Parts of a posterior: where each lies, and how much of the evidence a region within it holds, told by itself alone.

A region *R* is an ellipsoid around a top, or everything beyond one. Draws of a Gaussian *g* that fits the part give

.. math:: Z_R = \int_R \gamma(z)\,dz = \mathrm{E}_g\big[\mathbf{1}_R(z)\, \gamma(z) / g(z)\big],

whatever a flow knows of it. Draws of the flow with their weights give the same number, if the flow goes there; so does
the share of annealed particles in it. Where two of them differ by more than their errors, what was found was lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_osds.stats.moments import weighted_moments
from pyro_osds.stats.thresholds import LOST_SHARE, MAX_SIGMAS
from pyro_osds.target import finite_log_prob, in_chunks

# Draws of the Gaussian of a part, and where densities come point by point: the mass of a region is known to 5 or 10 %.
_NUM_DRAWS, _NUM_DRAWS_SLOWLY = 512, 96
# Share of effective ones among them below which the Gaussian is fitted to their weights, once.
_POOR_FIT = 0.5
# Normal quantile of the share of a Gaussian part that its region holds, 0.9: all would reach into other parts.
_QUANTILE = 1.2816
# Differences of scores are taken over this share of the scale that is known, then over this share of a standard
# deviation: rounding takes ten digits of the first, and the third derivative hardly any of the second.
_FIRST_DIFFERENCE, _DIFFERENCE = 1e-4, 0.1
# Nats that a Newton step would still gain: at a top there are none.
_STILL_CLIMBING = 0.1
# Curvatures in units of the known scale, at least: along an axis that is flat or bent upwards a part is taken for ten
# times as wide as all that is known.
_MIN_CURVATURE = 1e-2
# The least and largest standard deviation of one coordinate over which a second difference is taken.
_NARROWEST, _WIDEST = 1e-9, 10.0

LogProbAndScore = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Part:
    """A part of a posterior, found by itself.

    Arguments:
        loc: Mean of the Gaussian that fits it, ``(D,)``.
        scale_tril: Lower triangular scale of that Gaussian, ``(D, D)``.
        log_mass: Log of the integral of the density over the region, nats.
        std_error: Its standard error, nats.
        centre: Centre of the region, ``(D,)``.
        metric: Lower triangular scale in which distances from it are measured, ``(D, D)``.
        inner: The region begins at this distance.
        outer: And ends at that one.
    """

    loc: Tensor
    scale_tril: Tensor
    log_mass: float
    std_error: float
    centre: Tensor
    metric: Tensor
    inner: float
    outer: float

    @property
    def is_halo(self) -> bool:
        """Whether it is what lies far out."""
        return self.outer == math.inf

    def holds(self, z: Tensor) -> Tensor:
        """Whether points lie in its region, ``(B, D) -> (B,)``."""
        distance = _whitened(z, self.centre, self.metric).norm(dim=-1)

        return (distance >= self.inner) & (distance < self.outer)

    def where(self) -> str:
        """Its place in words: that of its centre, in a few coordinates."""
        if self.is_halo:
            return f"more than {self.inner:.0f} standard deviations out"
        place = ", ".join(f"{value:.3g}" for value in self.loc[:_NUM_SHOWN].tolist())

        return f"around z = ({place}{', ...' if len(self.loc) > _NUM_SHOWN else ''})"


# Coordinates of a place that a sentence holds.
_NUM_SHOWN = 4


def basin(log_prob_and_score: LogProbAndScore, top: Tensor, scale: Tensor, quickly: bool) -> Part | None:
    """The part around a top of the density.

    Arguments:
        log_prob_and_score: Log densities and scores of a batch.
        top: A point at rest, ``(D,)``.
        scale: A lower triangular scale that is known, ``(D, D)``.
        quickly: Whether few draws must do.

    Returns:
        The part; None where no draw around the top has a density, or where it is no top: a point that still climbs
        along a bent valley, too slowly for a quasi-Newton method to see.
    """
    loc, scale_tril = top, _laplace_scale(log_prob_and_score, top, scale)
    score = log_prob_and_score(top[None])[1][0]
    if not 0.5 * (score @ scale_tril).square().sum() < _STILL_CLIMBING:
        return None
    radius = _radius(len(top))
    num_draws = _NUM_DRAWS_SLOWLY if quickly else _NUM_DRAWS

    def weighted() -> tuple[Tensor, Tensor]:
        noise = torch.randn(num_draws, len(top), dtype=top.dtype, device=top.device)
        z = loc + noise @ scale_tril.mT
        with torch.no_grad():
            log_prob = finite_log_prob(in_chunks(lambda points: log_prob_and_score(points)[0], z))
        inside = noise.norm(dim=-1) < radius
        log_weight = log_prob + 0.5 * noise.square().sum(-1) + _log_constant(scale_tril)

        return z, torch.where(inside, log_weight, -torch.inf).double()

    z, log_weight = weighted()
    finite = log_weight.isfinite()
    if not finite.any():
        return None
    weight = torch.softmax(log_weight, 0)
    if 1.0 / weight.square().sum() < _POOR_FIT * finite.sum():
        # Skewed, for instance: its mean and covariance, as far as the draws know them.
        loc, scale_tril = weighted_moments(z[finite], log_weight[finite])
        z, log_weight = weighted()
    log_mass, std_error = log_mean(log_weight)
    if not math.isfinite(log_mass):
        return None

    return Part(loc, scale_tril, log_mass, std_error, loc, scale_tril, 0.0, radius)


def log_mean(log_weight: Tensor) -> tuple[float, float]:
    """Log of the mean weight and its standard error, nats; ``-inf`` and 0 where all weights are zero.

    Example:
        >>> log_mean(torch.tensor([0.0, 0.0, -torch.inf, -torch.inf]))[0]  # log(1 / 2)
        -0.6931471805599453
    """
    log_weight = log_weight.double()
    top = log_weight.max() if len(log_weight) else log_weight.new_tensor(-torch.inf)
    if not top.isfinite():
        return -math.inf, 0.0
    weight = (log_weight - top).exp()
    mean = weight.mean()

    return (top + mean.log()).item(), (weight.std() / mean / math.sqrt(len(weight))).item()


def lost_share(part: Part, log_mass: float, std_error: float, log_evidence: float, most: float = 1.0) -> float:
    """The share of the evidence that another estimate of a part's mass lacks, if it lacks more than errors explain.

    Arguments:
        part: The part.
        log_mass: Another estimate of its mass, nats; ``-inf`` where there is none of it.
        std_error: Its standard error, nats.
        log_evidence: The log evidence that shares are of.
        most: Share of the part's mass that the other may have at most to count as lacking it.

    Returns:
        The share that is lacking, which may exceed one; 0 where the two agree.
    """
    found, other = _share(part.log_mass - log_evidence), _share(log_mass - log_evidence)
    error = MAX_SIGMAS * math.hypot(part.std_error, std_error * other / found if found else 0.0)
    lacking = found - other

    is_lost = lacking > max(LOST_SHARE, error * found) and other <= most * found

    return lacking if is_lost else 0.0


def lost_by_draws(
    parts: Sequence[Part], z: Tensor, log_weight: Tensor, log_evidence: float, most: float = 1.0
) -> list[tuple[Part, float]]:
    """Parts that weighted draws lack, each with the share of the evidence that is lacking.

    Arguments:
        parts: What was found.
        z: Draws, ``(S, D)``.
        log_weight: Their log weights, whose mean is the evidence, ``(S,)``.
        log_evidence: The log evidence that shares are of.
        most: As for :func:`lost_share`.
    """
    lost = []
    for part in parts:
        inside = part.holds(z.to(part.centre))
        mass, std_error = log_mean(torch.where(inside, log_weight.double(), -torch.inf))
        share = lost_share(part, mass, std_error, log_evidence, most)
        if share:
            lost.append((part, share))

    return lost


def lost_by_particles(
    parts: Sequence[Part], z: Tensor, replicate_log_evidence: Tensor, log_evidence: float, most: float = 1.0
) -> list[tuple[Part, float]]:
    """Parts that annealed particles lack, each with the share of the evidence that is lacking.

    Arguments:
        parts: What was found.
        z: Equally weighted particles, replicate after replicate, ``(R * N, D)``.
        replicate_log_evidence: The log evidences of the replicates, ``(R,)``.
        log_evidence: The log evidence that shares are of.
        most: As for :func:`lost_share`.
    """
    replicates = replicate_log_evidence.double()
    lost = []
    for part in parts:
        share_inside = part.holds(z.to(part.centre)).view(len(replicates), -1).double().mean(1)
        # A replicate without one would have claimed to know that there is none.
        least = 0.5 / (len(z) // len(replicates))
        mass, std_error = log_mean(replicates + share_inside.log())
        noise = math.sqrt(1.0 / max(share_inside.sum().item(), least) / (len(z) // len(replicates)))
        share = lost_share(part, mass, max(std_error, noise), log_evidence, most)
        if share:
            lost.append((part, share))

    return lost


def _share(log_share: float) -> float:
    return math.exp(min(log_share, _LARGE))


# Nats beyond which a share is as good as infinite.
_LARGE = 700.0


def _laplace_scale(log_prob_and_score: LogProbAndScore, top: Tensor, scale: Tensor) -> Tensor:
    """Lower triangular scale of the Gaussian that fits a top, by differences of scores, ``(D, D)``."""
    width = top.new_full((len(top),), _FIRST_DIFFERENCE)
    for _ in range(2):
        steps = (width[:, None] * torch.eye(len(top), dtype=top.dtype, device=top.device)) @ scale.mT
        up, down = log_prob_and_score(torch.cat([top + steps, top - steps]))[1].chunk(2)
        curvature = -(up - down) @ scale / (2.0 * width[:, None])
        sd = curvature.diagonal().clamp(min=_MIN_CURVATURE).rsqrt()
        width = _DIFFERENCE * sd.clamp(min=_NARROWEST, max=_WIDEST)
    precision, vectors = torch.linalg.eigh(0.5 * (curvature + curvature.mT))
    root = scale @ (vectors * precision.clamp(min=_MIN_CURVATURE).rsqrt())
    # The lower triangular root of the same covariance.
    factor = torch.linalg.qr(root.mT)[1].mT

    return factor * factor.diagonal().sign()


def _radius(dim: int) -> float:
    """Distance within which nine tenths of a standard normal lie (Wilson, Hilferty 1931)."""
    ninth = 2.0 / (9.0 * dim)

    return math.sqrt(dim * (1.0 - ninth + _QUANTILE * math.sqrt(ninth)) ** 3)


def _log_constant(scale_tril: Tensor) -> Tensor:
    return scale_tril.diagonal().log().sum() + 0.5 * len(scale_tril) * math.log(2 * math.pi)


def _whitened(z: Tensor, loc: Tensor, scale_tril: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(scale_tril, (z - loc).mT, upper=False).mT

"""References far from the code under test, and the one question asked of every result: is it right, or does it say not.

Evidences come from closed forms, from sums over assignments and from quadrature with numpy and scipy.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import pyro
import torch
from scipy.special import gammaln, logsumexp
from torch import Tensor
from torch.distributions import Independent, Normal

from pyro_osds import OSDS

# What is small enough not to change any conclusion, nats.
NEGLIGIBLE = 0.05
# Share of the draws that a mode may have too much or too little, besides the Monte Carlo error.
SHARE_TOLERANCE = 0.02
# Units in the last place that the sum of a log density may be off.
_ROUNDING = 4


# ---- the criterion ----


def run(osds: OSDS, *args, seed: int = 0) -> OSDS:
    """Run with a fixed seed; what it has to say is in its verdict, so warnings are not errors here."""
    pyro.set_rng_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        osds.run(*args)

    return osds


def assert_right_or_flagged(osds: OSDS, log_evidence: float, dtype: torch.dtype = torch.float64) -> None:
    """Never a confident wrong number: within three standard errors and a negligible error, or not called reliable.

    Arguments:
        osds: The sampler after its run.
        log_evidence: The exact log evidence, nats.
        dtype: If given, the rounding of a log density of this size is forgiven too, as long as it is below one nat.
    """
    evidence = osds.evidence
    assert evidence.reliable != bool(evidence.reasons)
    if evidence.reliable:
        rounding = _ROUNDING * torch.finfo(dtype).eps * abs(log_evidence)
        allowed = max(3 * evidence.std_error, NEGLIGIBLE, rounding if rounding < 1 else 0.0)
        error = abs(evidence.log_evidence - log_evidence)
        assert error <= allowed, f"{evidence.log_evidence} +- {evidence.std_error}, exact: {log_evidence}"


def assert_share(osds: OSDS, inside: Tensor, share: float) -> None:
    """Where the result is called reliable, a mode has its share of the draws.

    Arguments:
        osds: The sampler after its run.
        inside: The probability that each draw belongs to the mode, ``(S,)``.
        share: The mode's share of the posterior.
    """
    evidence = osds.evidence
    if not evidence.reliable:
        return
    # Independence chains on weighted draws are worth their effective share, less what rejections repeat.
    num_draws = 0.5 * len(inside) * min(1.0, evidence.ess / evidence.num_draws)
    allowed = 3 * math.sqrt(share * (1 - share) / num_draws) + min(SHARE_TOLERANCE, 0.5 * share)
    found = inside.double().mean().item()
    assert abs(found - share) <= allowed, f"{found:.3f} of the draws, exact: {share:.3f} +- {allowed:.3f}"


# ---- closed forms ----


class Mixture:
    """A mixture of normalised densities; its log evidence is zero and its shares are its weights.

    Arguments:
        weights: Shares, ``(K,)``.
        components: Densities on ``R^D`` with a ``log_prob``, ``K`` of them.
    """

    def __init__(self, weights: Sequence[float], components: Sequence[Independent]) -> None:
        self.weights = torch.tensor(weights, dtype=torch.float64)
        self.components = components

    def log_terms(self, z: Tensor) -> Tensor:
        """Weighted log densities of the components, ``(..., D) -> (..., K)``."""
        terms = torch.stack([component.log_prob(z) for component in self.components], -1)

        return terms + self.weights.log().to(terms)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density, ``(..., D) -> (...)``."""
        return torch.logsumexp(self.log_terms(z), -1)

    def member(self, z: Tensor, component: int) -> Tensor:
        """The probability that each point comes from a component, ``(..., D) -> (...)``; its mean is the weight."""
        return torch.softmax(self.log_terms(z), -1)[..., component]

    def under_normal_prior(self, prior_sd: float) -> tuple[float, Mixture]:
        """Log evidence and posterior where this mixture of Gaussians is the likelihood and the prior is N(0, sd^2)."""
        log_weights, posteriors = [], []
        for log_weight, component in zip(self.weights.log(), self.components, strict=True):
            loc, scale = component.mean.double(), component.stddev.double()
            log_weights.append(log_weight + Normal(0.0, (scale**2 + prior_sd**2).sqrt()).log_prob(loc).sum())
            shrink = prior_sd**2 / (scale**2 + prior_sd**2)
            posteriors.append(gaussian(shrink * loc, scale * shrink.sqrt()))
        log_weight = torch.stack(log_weights)

        return log_weight.logsumexp(0).item(), Mixture(log_weight.softmax(0).tolist(), posteriors)


def gaussian(loc: Tensor, scale: Tensor | float) -> Independent:
    """Independent normals as one density on ``R^D``."""
    loc = torch.as_tensor(loc, dtype=torch.get_default_dtype())
    scale = torch.as_tensor(scale, dtype=torch.get_default_dtype()).expand_as(loc)

    return Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False)


def linear_log_evidence(y: np.ndarray, design: np.ndarray, prior_sd: Sequence[float], noise_sd: float) -> float:
    """Log evidence of a linear model with zero-mean normal coefficients, by least squares with the prior as more rows.

    Orthogonal factors keep the digits that a covariance of nearly collinear columns loses.
    """
    rows = np.vstack([design * np.asarray(prior_sd) / noise_sd, np.eye(design.shape[1])])
    values = np.concatenate([y / noise_sd, np.zeros(design.shape[1])])
    orthogonal, triangular = np.linalg.qr(rows)
    residual = values - orthogonal @ (orthogonal.T @ values)
    log_det = np.log(np.abs(np.diag(triangular))).sum()

    return float(-0.5 * len(y) * math.log(2 * math.pi * noise_sd**2) - log_det - 0.5 * residual @ residual)


def mixture_log_evidence(
    y: np.ndarray, num_components: int, prior_sd: float, noise_sd: float, concentration: float | None = None
) -> float:
    """Log evidence of a mixture with normal priors on its means: a sum over all assignments of the data.

    Arguments:
        y: Data, ``(N,)``.
        num_components: K.
        prior_sd: Of the means, around zero.
        noise_sd: Of the components, known.
        concentration: Of the symmetric Dirichlet prior of the weights; None for equal weights.
    """
    assignment = np.array(list(itertools.product(range(num_components), repeat=len(y))))
    log_weight = np.full(len(assignment), -len(y) * math.log(num_components))
    counts = np.stack([(assignment == k).sum(1) for k in range(num_components)])
    if concentration is not None:
        total = num_components * concentration
        log_weight = gammaln(total) - gammaln(total + len(y)) + (gammaln(concentration + counts)).sum(0)
        log_weight = log_weight - num_components * gammaln(concentration)
    for k in range(num_components):
        inside = assignment == k
        log_weight = log_weight + _log_marginal(counts[k], inside @ y, inside @ y**2, prior_sd, noise_sd)

    return float(logsumexp(log_weight))


def _log_marginal(count, total, square, prior_sd, noise_sd):  # noqa: ANN001
    """Log density of data of one normal with a normal prior on its mean."""
    precision = 1 / prior_sd**2 + count / noise_sd**2
    quadratic = square / noise_sd**2 - (total / noise_sd**2) ** 2 / precision

    return -0.5 * (count * np.log(2 * np.pi * noise_sd**2) + 2 * np.log(prior_sd) + np.log(precision) + quadratic)


# ---- quadrature ----


def normal_log_prob(x, loc, scale):  # noqa: ANN001
    """Log density of a normal, of arrays."""
    return -0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - 0.5 * math.log(2 * math.pi)


def grid_log_integral(
    log_density: Callable[..., np.ndarray],
    *axes: tuple[float, float, int],
    inside: Callable[..., np.ndarray] | None = None,
) -> tuple[float, float]:
    """Log integral over a box, and the share of it in a region, by the midpoint rule.

    The midpoint rule errs exponentially little on smooth densities that vanish at the edges.

    Arguments:
        log_density: Maps arrays, one per axis, to an array.
        axes: Lower end, upper end and number of points of each axis.
        inside: Whether points belong to the region; default: the first coordinate is positive.
    """
    points = [low + (np.arange(num) + 0.5) * (high - low) / num for low, high, num in axes]
    grids = np.meshgrid(*points, indexing="ij")
    log_cell = sum(math.log((high - low) / num) for low, high, num in axes)
    values = log_density(*grids)
    log_total = logsumexp(values)
    region = grids[0] > 0 if inside is None else inside(*grids)

    return float(log_total + log_cell), float(np.exp(values[region] - log_total).sum())

"""Data as models see them, integrals in double precision, and mixtures of Gaussians."""

import math

import numpy as np
import torch
from scipy import special
from scipy.integrate import trapezoid
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


def data(values) -> Tensor:
    """In single precision, as users have them."""
    return torch.as_tensor(np.asarray(values), dtype=torch.float32)


def exact(values: Tensor) -> np.ndarray:
    """What the model sees, in double: a truth is that of the data as given."""
    return values.double().numpy()


def normal(x, loc, scale):
    """Log density."""
    return -0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - 0.5 * LOG_2PI


def half_cauchy_log(u, scale):
    """Log density of the logarithm of a half-Cauchy number."""
    return math.log(2 / math.pi) - math.log(scale) - np.log1p(np.exp(2 * u) / scale**2) + u


def gamma_log(u, shape, rate):
    """Log density of the logarithm of a gamma number."""
    return shape * math.log(rate) - special.gammaln(shape) + shape * u - rate * np.exp(u)


def integrate_log(log_f, x) -> float:
    """Log of the trapezoid integral of exp(log_f) `(N,)` over the grid x `(N,)`."""
    top = log_f.max()

    return top + math.log(trapezoid(np.exp(log_f - top), x))


def integrate_log_2d(log_f, x, y) -> float:
    """The same for `(N, M)` over two grids."""
    top = log_f.max()

    return top + math.log(trapezoid(trapezoid(np.exp(log_f - top), y, axis=1), x))


def normal_mean(y, prior_loc, prior_sd, sd, counts=None) -> float:
    """Log evidence of readings `(N,)`, each repeated `counts` times, with a normal mean and known noise."""
    counts = np.ones(len(y)) if counts is None else counts
    n, centred = counts.sum(), y - prior_loc
    mean = (centred * counts).sum() / n
    squares = (counts * (centred - mean) ** 2).sum()
    given_mean = -0.5 * n * LOG_2PI - n * math.log(sd) - 0.5 * squares / sd**2 + 0.5 * (LOG_2PI + math.log(sd**2 / n))

    return given_mean + normal(mean, 0.0, math.sqrt(prior_sd**2 + sd**2 / n))


def normal_regression(y, x, prior_loc, prior_sd, sd) -> float:
    """Log evidence of `y` given a design `(N, D)` and independent normal weights.

    By a QR decomposition of likelihood and prior together: with columns such as a raw year, the covariance of `y` has a
    condition number of 1e13.
    """
    prior_sd, n = np.broadcast_to(np.asarray(prior_sd, float), x.shape[1]), len(y)
    rows = np.concatenate([x / sd, np.diag(1 / prior_sd)])
    target = np.concatenate([(y - x @ prior_loc) / sd, np.zeros(x.shape[1])])
    q, r = np.linalg.qr(rows)
    rest = target - q @ (q.T @ target)
    log_det = np.log(np.abs(np.diag(r))).sum() + np.log(prior_sd).sum()

    return -0.5 * (n * LOG_2PI + rest @ rest) - n * math.log(sd) - log_det


def gamma_poisson(k, shape, rate, exposure=1.0) -> float:
    """Log evidence of counts whose rate has a gamma prior."""
    n, total = len(k), k.sum()
    marginal = shape * math.log(rate) - special.gammaln(shape) + special.gammaln(shape + total)

    return (
        marginal
        - (shape + total) * math.log(rate + n * exposure)
        + total * math.log(exposure)
        - special.gammaln(k + 1).sum()
    )


def dirichlet_categorical(counts, concentration) -> float:
    """Log evidence of a sequence of draws with these counts."""
    total, number = concentration * len(counts), counts.sum()
    parts = special.gammaln(concentration + counts) - special.gammaln(concentration)

    return special.gammaln(total) - special.gammaln(total + number) + parts.sum()


def log_multinomial(counts) -> float:
    return special.gammaln(counts.sum() + 1) - special.gammaln(counts + 1).sum()


class Gaussians:
    """A normalised mixture of Gaussians, each with its own widths `(D,)` along its own rotated axes."""

    def __init__(self, weights, locs, scales, rotations=None) -> None:
        locs = [np.asarray(loc, float) for loc in locs]
        scales = [np.broadcast_to(np.asarray(scale, float), loc.shape) for loc, scale in zip(locs, scales, strict=True)]
        rotations = rotations or [None] * len(locs)
        axes = [np.eye(len(locs[0])) if rotation is None else rotation for rotation in rotations]
        self.whiten = torch.tensor(np.stack([a / s for a, s in zip(axes, scales, strict=True)]))  # (K, D, D)
        self.loc = torch.tensor(np.stack(locs))
        constants = np.log(np.array(weights) / np.sum(weights)) - np.log(np.stack(scales)).sum(1)
        self.constant = torch.tensor(constants - 0.5 * len(locs[0]) * LOG_2PI)

    def __call__(self, z: Tensor) -> Tensor:
        u = torch.einsum("nkd,kde->nke", z[:, None] - self.loc.to(z), self.whiten.to(z))

        return torch.logsumexp(self.constant.to(z) - 0.5 * u.square().sum(-1), -1)


class Blobs:
    """A normalised mixture of many isotropic Gaussians."""

    def __init__(self, weights, locs, scales) -> None:
        self.loc, self.scale = torch.tensor(np.asarray(locs, float)), torch.tensor(np.asarray(scales, float))
        self.log_weight = torch.tensor(np.log(np.asarray(weights) / np.sum(weights)))

    def __call__(self, z: Tensor) -> Tensor:
        scale = self.scale.to(z)
        distance = (z[:, None] - self.loc.to(z)).square().sum(-1)
        constant = self.log_weight.to(z) - z.shape[-1] * (scale.log() + 0.5 * LOG_2PI)

        return torch.logsumexp(constant - 0.5 * distance / scale.square(), -1)


def rotation(dim: int, seed: int) -> np.ndarray:
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))

    return q * np.sign(np.diag(r))

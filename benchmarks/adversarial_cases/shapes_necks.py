"""Necks: centred hierarchies and states, whose scales may go to zero."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from .base import Kind
from .integrals import data, exact

shapes = Kind("shapes")

GROUPS, ROWS, NOISE = 6, 5, 0.7
_rng = np.random.default_rng(0)
slopes_x = data(_rng.normal(size=(GROUPS, ROWS)))
_effects = _rng.normal(size=(GROUPS, 2)) @ np.linalg.cholesky([[1.0, 0.4], [0.4, 0.5]]).T + [1.0, -0.5]
slopes_y = data(_effects[:, :1] + _effects[:, 1:] * exact(slopes_x) + NOISE * _rng.normal(size=(GROUPS, ROWS)))


def pieces(*edges: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of Gauss and Legendre, sixteen between two edges."""
    node, weight = np.polynomial.legendre.leggauss(16)
    halves, middles = np.diff(edges) / 2, (np.array(edges[:-1]) + edges[1:]) / 2

    return (middles[:, None] + halves[:, None] * node).ravel(), (halves[:, None] * weight).ravel()


def slopes_truth() -> float:
    """Effects and their means integrated; quadrature over both scales and the correlation."""
    x, y = exact(slopes_x), exact(slopes_y)
    design, eye = np.stack([np.ones_like(x), x], -1), NOISE**2 * np.eye(ROWS)
    scale, weight = pieces(0.0, 0.15, 0.6, 1.5, 3.0, 6.0)
    rho, rho_weight = pieces(-1.0, 0.0, 1.0)
    log_prior = math.log(math.sqrt(2 / math.pi)) - 0.5 * scale**2 + np.log(weight)
    # LKJ with concentration 2 of two dimensions: the density of the correlation is 3/4 (1 - rho^2).
    log_rho = np.log(0.75 * (1.0 - rho**2) * rho_weight)
    t1, t2, r = (part.ravel() for part in np.meshgrid(scale, scale, rho, indexing="ij"))
    log_f = (log_prior[:, None, None] + log_prior[:, None] + log_rho).ravel()
    between = np.stack([np.stack([t1**2, r * t1 * t2], -1), np.stack([r * t1 * t2, t2**2], -1)], -2)
    precision, shift = np.broadcast_to(np.eye(2) / 4.0, between.shape).copy(), np.zeros((len(t1), 2))
    for each, seen in zip(design, y, strict=True):
        inverse = np.linalg.inv(eye + each @ between @ each.T)
        log_f = log_f + 0.5 * np.linalg.slogdet(inverse)[1] - 0.5 * ROWS * math.log(2 * math.pi)
        log_f = log_f - 0.5 * np.einsum("i,nij,j->n", seen, inverse, seen)
        precision += each.T @ inverse @ each
        shift += np.einsum("ik,nij,j->nk", each, inverse, seen)
    log_f += 0.5 * np.einsum("nk,nk->n", shift, np.linalg.solve(precision, shift[..., None])[..., 0])
    log_f -= 0.5 * np.linalg.slogdet(precision)[1] + math.log(4.0)

    return float(np.logaddexp.reduce(log_f))


@shapes.model(17, slopes_truth)
def centred_slopes() -> None:
    """Intercepts and slopes of six groups, centred: either scale may go to zero."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    tau = pyro.sample("tau", dist.HalfNormal(1.0).expand([2]).to_event(1))
    correlation = pyro.sample("L", dist.LKJCholesky(2, 2.0))
    with pyro.plate("group", GROUPS, dim=-2):
        b = pyro.sample("b", dist.MultivariateNormal(mu, scale_tril=tau.unsqueeze(-1) * correlation))
        with pyro.plate("row", ROWS, dim=-1):
            pyro.sample("y", dist.Normal(b[..., 0] + b[..., 1] * slopes_x, NOISE), obs=slopes_y)


level_y = data(
    [-0.0093, -0.032, -2.8716, -1.7835, -3.5928, -2.2045, -4.9601, -3.9779, -2.8356, -2.2437, -3.7575, -1.7844]
)


def level_truth() -> float:
    """The states integrated; quadrature over both scales."""
    y, n = exact(level_y), len(level_y)
    scale, weight = pieces(0.0, 0.05, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
    steps = np.minimum.outer(np.arange(n), np.arange(n)).astype(float)
    q, r = (part.ravel() for part in np.meshgrid(scale, scale, indexing="ij"))
    covariance = 4.0 + q[:, None, None] ** 2 * steps + r[:, None, None] ** 2 * np.eye(n)
    log_f = -0.5 * (np.linalg.slogdet(covariance)[1] + n * math.log(2 * math.pi))
    log_f -= 0.5 * np.einsum("i,nij,j->n", y, np.linalg.inv(covariance), y)
    log_f += math.log(2 / math.pi) - 0.5 * (q**2 + r**2) + np.log(np.outer(weight, weight).ravel())

    return float(np.logaddexp.reduce(log_f))


@shapes.model(14, level_truth)
def local_level() -> None:
    """A random walk seen through noise, state by state: the scale of either may go to zero."""
    q = pyro.sample("q", dist.HalfNormal(1.0))
    r = pyro.sample("r", dist.HalfNormal(1.0))
    x = pyro.sample("x0", dist.Normal(0.0, 2.0))
    pyro.sample("y0", dist.Normal(x, r), obs=level_y[0])
    for t in range(1, len(level_y)):
        x = pyro.sample(f"x{t}", dist.Normal(x, q))
        pyro.sample(f"y{t}", dist.Normal(x, r), obs=level_y[t])


@shapes.density(6)
def chain_of_scales_6d(z):
    """A scale of a scale of a scale, and three members of the last: normalised."""
    log_scale = torch.stack(
        [torch.zeros_like(z[:, 0]), 0.7 * z[:, 0], 0.7 * z[:, 1], *[z[:, 2].clamp(-30, 30)] * 3], -1
    )
    return (-0.5 * (z * (-log_scale).exp()).square() - log_scale - 0.5 * math.log(2 * math.pi)).sum(-1)

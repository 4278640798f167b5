"""Modes that are hard to find: narrow ones, far ones, halos, spikes on plateaus, many of them; and loops."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import special
from scipy.integrate import quad

from .base import Kind
from .integrals import (
    LOG_2PI,
    Blobs,
    Gaussians,
    data,
    exact,
    half_cauchy_log,
    integrate_log,
    integrate_log_2d,
    normal,
    rotation,
)

search = Kind("search")


def density(name: str, why: str, log_prob, dim: int, truth=0.0) -> None:
    search.density(dim, truth, name, why)(log_prob)


# ---- narrow modes, halos, lost modes ----


def away(dim: int, distance: float):
    return np.full(dim, distance / math.sqrt(dim))


def axis(dim: int, distance: float):
    return distance * np.eye(dim)[0]


WIDE = "A wide mode around a narrow one: nothing but distance tells of it."
density("wide_halo_1d", WIDE, Blobs([0.5, 0.5], np.zeros((2, 1)), [1.0, 1e4]), 1)
density("wide_halo_2d", WIDE, Blobs([0.6, 0.4], np.zeros((2, 2)), [1.0, 1e3]), 2)
density("wide_halo_3d", WIDE, Blobs([0.7, 0.3], np.zeros((2, 3)), [1.0, 300.0]), 3)
density("wide_halo_10d", WIDE, Blobs([0.6, 0.4], np.zeros((2, 10)), [1.0, 20.0]), 10)

pancake = Gaussians([0.6, 0.4], [np.zeros(6), np.full(6, 1.5)], [1.0, [0.02, 0.02, 1, 1, 1, 1]], [None, rotation(6, 1)])
density("pancake_6d", "A flat disc, rotated, in a broad mode.", pancake, 6)
rod = Gaussians([0.5, 0.5], [np.zeros(5), axis(5, 4.0)], [1.0, [0.05, 0.05, 0.05, 0.05, 3.0]], [None, rotation(5, 2)])
density("needle_5d", "A long thin needle, rotated, across a broad mode.", rod, 5)
segment = Gaussians([0.5, 0.5], [np.zeros(2), [1.0, 0.5]], [3.0, [0.004, 2.0]], [None, rotation(2, 90)])
density("thin_segment_2d", "A thin segment across a broad mode.", segment, 2)
segment_4d = Gaussians(
    [0.5, 0.5], [np.zeros(4), [1.0, 0.5, -1.0, 0.3]], [3.0, [0.05, 0.05, 0.05, 2.0]], [None, rotation(4, 91)]
)
density("thin_segment_4d", "A thin segment across a broad mode.", segment_4d, 4)
spike = Blobs([0.7, 0.3], [np.zeros(8), away(8, 2.0)], [1.0, 0.15])
density("offset_spike_8d", "A spike on the shoulder of a broad mode.", spike, 8)
blind = Blobs([0.8, 0.2], [np.zeros(4), away(4, 4.0)], [1.0, 0.002])
density("blind_spike_4d", "A spike of a fifth of the mass, 0.002 wide: no gradient leads to it.", blind, 4)
LOST = "Two modes of unequal width: ascents and particles end in the broad one."
density("two_scales_20d", LOST, Blobs([0.5, 0.5], [np.zeros(20), np.full(20, 2.0)], [1.0, 0.6]), 20)
density("two_scales_12d", LOST, Blobs([0.6, 0.4], [np.zeros(12), away(12, 6.0)], [1.0, 0.5]), 12)
density("two_scales_30d", LOST, Blobs([0.5, 0.5], [np.zeros(30), away(30, 9.0)], [1.0, 0.7]), 30)
TENTH = "Two equal modes far apart, one with a tenth of the mass: few particles start there."
density("lost_tenth_10d", TENTH, Blobs([0.9, 0.1], [np.zeros(10), away(10, 10.0)], [1.0, 1.0]), 10)
density("lost_tenth_40d", TENTH, Blobs([0.9, 0.1], [np.zeros(40), away(40, 12.0)], [1.0, 1.0]), 40)

# ---- spikes on plateaus ----


def outlier_plateau(dim: int, sd: float, prior_sd: float, weight: float) -> None:
    y = data(np.linspace(3.0, -2.0, dim))

    def truth() -> float:
        narrow = math.log(weight) + normal(exact(y), 0, math.hypot(prior_sd, sd)).sum()
        return np.logaddexp(narrow, math.log1p(-weight) + normal(exact(y), 0, prior_sd).sum())

    @search.model(dim, truth, f"outlier_plateau_{dim}d")
    def model() -> None:
        """A spike on the plateau that a robust likelihood leaves."""
        x = pyro.sample("x", dist.Normal(0.0, prior_sd).expand([dim]).to_event(1))
        narrow = math.log(weight) + dist.Normal(x, sd).log_prob(y).sum(-1)
        wide = math.log1p(-weight) + dist.Normal(torch.zeros(dim), prior_sd).log_prob(y).sum(-1)
        pyro.factor("y", torch.logaddexp(narrow, wide))


outlier_plateau(1, 0.01, 100.0, 0.5)
outlier_plateau(2, 0.1, 100.0, 0.5)
outlier_plateau(3, 0.5, 10.0, 0.6)
outlier_plateau(5, 0.5, 5.0, 0.8)

column, row = np.meshgrid(np.arange(64.0), np.arange(64.0))
glow = 2.6 * np.exp(-0.5 * ((column - 41.3) ** 2 + (row - 17.8) ** 2))
image = data(np.random.default_rng(401).normal(size=(64, 64)) + glow)


def image_truth() -> float:
    grid = np.linspace(0, 63, 63 * 16 + 1)
    bump = np.exp(-0.5 * (np.arange(64.0)[None] - grid[:, None]) ** 2)
    matched, squares = bump @ exact(image) @ bump.T, (bump**2).sum(1)[:, None] * (bump**2).sum(1)
    log_f = normal(exact(image), 0, 1).sum() - 0.5 * np.log1p(16 * squares) + 0.5 * matched**2 / (squares + 1 / 16)
    return integrate_log_2d(log_f - 2 * math.log(63.0), grid, grid)


@search.model(3, image_truth)
def source_in_image() -> None:
    """A faint source somewhere in a noisy image."""
    cx = pyro.sample("cx", dist.Uniform(0.0, 63.0))
    cy = pyro.sample("cy", dist.Uniform(0.0, 63.0))
    a = pyro.sample("a", dist.Normal(0.0, 4.0))
    i = torch.arange(64.0)
    ex, ey = (-0.5 * (i - cx).square()).exp(), (-0.5 * (i - cy).square()).exp()
    pyro.sample("y", dist.Normal(a * ey[:, None] * ex[None, :], 1.0).to_event(2), obs=image)


mixed_y = data(np.random.default_rng(11).normal(0.0, 1.0, 12))


def degenerate_truth() -> float:
    """In the log sd on a grid; in the mean on one that grows dense at the data."""
    y, log_sds = exact(mixed_y), np.linspace(-26, 22, 1201)
    inner = np.empty(len(log_sds))
    for i, log_sd in enumerate(log_sds):
        sd, unit = math.exp(log_sd), min(math.exp(log_sd), 1.0)
        near = unit * np.sinh(np.linspace(-1, 1, 241) * math.asinh(40 / unit))
        grid = np.unique(np.concatenate([(y[:, None] + near).ravel(), np.linspace(-25, 25, 2001)]))
        parts = 0.7 * np.exp(normal(y, 0, 1))[:, None] + 0.3 * np.exp(normal(y[:, None], grid, sd))
        inner[i] = integrate_log(np.log(parts).sum(0) + normal(grid, 0, 3.0), grid)
    return integrate_log(inner + normal(log_sds, -2.0, 3.0), log_sds)


@search.model(2, degenerate_truth)
def degenerate_mixture() -> None:
    """A component that shrinks onto each of the data in turn."""
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    u = pyro.sample("l", dist.Normal(-2.0, 3.0))
    loc, sd = torch.stack([torch.zeros_like(mu), mu], -1), torch.stack([torch.ones_like(u), u.exp()], -1)
    parts = dist.Normal(loc.unsqueeze(-2), sd.unsqueeze(-2))
    with pyro.plate("n", 12):
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.7, 0.3])), parts), obs=mixed_y)


# ---- many modes ----

modes_rng = np.random.default_rng(30)
MANY = "Many modes of unequal weights."
for number, dim, reach, widths in ((200, 2, 20.0, (0.05, 0.3)), (40, 6, 10.0, (0.3, 1.0))):
    weights, locs = modes_rng.dirichlet(np.full(number, 0.7)), modes_rng.uniform(-reach, reach, (number, dim))
    density(f"modes_{number}_{dim}d", MANY, Blobs(weights, locs, modes_rng.uniform(*widths, number)), dim)


def rastrigin_truth() -> float:
    def f(x):
        return math.exp(-0.125 * x * x - 4.0 * (1 - math.cos(2 * math.pi * x)))

    return math.log(quad(f, -20, 20, limit=2000, points=list(range(-15, 16)))[0])


def rastrigin(z):
    return (-0.125 * z.square() - 4.0 * (1 - (2 * math.pi * z).cos())).sum(-1)


density("rastrigin_3d", "A mode at every integer point.", rastrigin, 3, lambda: 3 * rastrigin_truth())
density("rastrigin_6d", "A mode at every integer point.", rastrigin, 6, lambda: 6 * rastrigin_truth())

SPINS, COUPLING, FIELD = 12, 0.7, 0.12


def ising_truth() -> float:
    step = np.exp([[COUPLING + FIELD, FIELD - COUPLING], [-COUPLING - FIELD, COUPLING - FIELD]])
    first = np.exp([FIELD, -FIELD])
    total = math.log((np.linalg.matrix_power(step, SPINS - 1) @ first).sum())
    return total + SPINS * (math.log(0.4) + 0.5 * LOG_2PI)


@search.density(SPINS, ising_truth)
def soft_ising_12(z):
    """4,096 modes: a chain of spins, each smeared."""
    up, down = FIELD - 0.5 * ((z - 2.0) / 0.4).square(), -FIELD - 0.5 * ((z + 2.0) / 0.4).square()
    a, b = up[:, 0], down[:, 0]
    for i in range(1, SPINS):
        a, b = (
            up[:, i] + torch.logaddexp(a + COUPLING, b - COUPLING),
            down[:, i] + torch.logaddexp(a - COUPLING, b + COUPLING),
        )
    return torch.logaddexp(a, b)


def bimodals(name: str, dim: int, seed: int) -> None:
    axes = torch.tensor(rotation(dim, seed))

    @search.density(dim, 0.0, name)
    def log_prob(z):
        """A product of one-dimensional two-mode densities, rotated: two to the power of the dimension."""
        u = z @ axes.to(z)
        broad = math.log(0.65) - 0.5 * (u + 3).square()
        narrow = math.log(0.35) - 0.5 * ((u - 2) / 0.3).square() - math.log(0.3)
        return (torch.logaddexp(broad, narrow) - 0.5 * LOG_2PI).sum(-1)


bimodals("rotated_bimodals_8d", 8, 95)
bimodals("rotated_bimodals_5d", 5, 98)


def eggbox_truth() -> float:
    x = np.linspace(0, 10 * math.pi, 6001)
    log_f = (2 + np.cos(x[:, None] / 2) * np.cos(x[None] / 2)) ** 5
    return integrate_log_2d(log_f, x, x) - 2 * math.log(10 * math.pi)


@search.model(2, eggbox_truth)
def eggbox() -> None:
    """Eighteen equal modes, some of them cut by the box."""
    x = pyro.sample("x", dist.Uniform(0.0, 10 * math.pi).expand([2]).to_event(1))
    pyro.factor("f", (2 + (x[..., 0] / 2).cos() * (x[..., 1] / 2).cos()).pow(5))


# ---- models that look at a latent: point by point ----


def loop(name: str, dim: int, parts, prior_sd: float = 10.0) -> None:
    """A mixture of normal likelihoods of weight, place and width, under a normal prior."""

    def truth() -> float:
        return special.logsumexp([math.log(w) + dim * normal(m, 0, math.hypot(prior_sd, s)) for w, m, s in parts])

    @search.model(dim, truth, name)
    def model() -> None:
        """Python looks at a latent, so that points are evaluated one by one, and two modes are to be found."""
        x = pyro.sample("x", dist.Normal(0.0, prior_sd).expand([dim]).to_event(1))
        if float(x[0]) > 1e6:
            pyro.factor("never", torch.tensor(0.0))
        logs = [math.log(w) + dist.Normal(m, s).log_prob(x).sum(-1) for w, m, s in parts]
        pyro.factor("f", torch.logsumexp(torch.stack(logs), 0))


loop("loop_spike_1d", 1, [(0.5, -2.0, 1.0), (0.5, 4.0, 0.1)])
loop("loop_two_modes_3d", 3, [(0.6, -6.0, 1.0), (0.4, 4.0, 0.3)])
loop("loop_three_modes_2d", 2, [(0.4, -7.0, 0.5), (0.3, 1.0, 0.5), (0.3, 8.0, 0.2)])


def loop_scale_truth() -> float:
    u = np.linspace(-12, 12, 24_001)
    return integrate_log(half_cauchy_log(u, 1.0) + sum(normal(v, 0.0, np.exp(u)) for v in (0.5, -1.0, 2.0)), u)


@search.model(1, loop_scale_truth)
def loop_scale() -> None:
    """Point by point, and nothing else that is hard."""
    s = pyro.sample("s", dist.HalfCauchy(1.0))
    if s.item() > 1e9:
        pyro.factor("never", torch.tensor(0.0))
    with pyro.plate("n", 3):
        pyro.sample("y", dist.Normal(0.0, s), obs=torch.tensor([0.5, -1.0, 2.0]))

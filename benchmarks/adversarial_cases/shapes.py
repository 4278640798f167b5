"""Rings, spheres, holes, plateaus, jumps, curved ridges and funnels."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import special, stats
from scipy.integrate import quad

from .base import Kind
from .integrals import LOG_2PI, Blobs, data, exact, integrate_log, integrate_log_2d, normal, rotation

shapes = Kind("shapes")


# ---- rings, spheres, thin sets ----


@shapes.density(2)
def two_thin_rings(z):
    """Two rings of unequal width, a hundredth and a twentieth, that cross."""
    first, second = z.norm(dim=-1) - 5.0, (z - torch.tensor([6.0, 0.0]).to(z)).norm(dim=-1) - 3.0
    logs = [
        math.log(0.5) - 0.5 * (gap / width).square() - math.log(width * 2 * math.pi * radius) - 0.5 * LOG_2PI
        for gap, width, radius in ((first, 0.01, 5.0), (second, 0.05, 3.0))
    ]
    return torch.logaddexp(*logs)


turn = np.linspace(0.5, 4 * np.pi, 500)
spiral = Blobs(np.ones(500), np.stack([turn * np.cos(turn), turn * np.sin(turn)], 1), np.full(500, 0.08))
shapes.density(2, 0.0, "spiral_500", "A thin spiral of two turns.")(spiral)


def sphere(dim: int, y: float, sd: float) -> None:
    def truth() -> float:
        def f(q):
            return stats.chi2.pdf(q, dim) * math.exp(normal(y, q, sd))

        return math.log(quad(f, max(0, y - 12 * sd), y + 12 * sd, points=[y], limit=500)[0])

    @shapes.model(dim, truth, f"sphere_{dim}d")
    def model() -> None:
        """Only the squared radius is seen, and sharply."""
        x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([dim]).to_event(1))
        pyro.sample("y", dist.Normal(x.square().sum(-1), sd), obs=torch.tensor(y))


sphere(3, 4.0, 0.05)
sphere(6, 5.0, 0.1)
sphere(12, 9.0, 0.05)


def hyperbola_truth() -> float:
    a = np.concatenate([-np.geomspace(20, 1e-4, 200_000), np.geomspace(1e-4, 20, 200_000)])
    return integrate_log(normal(a, 0, 2.0) + normal(1.0, 0, np.sqrt(4 * a**2 + 0.005**2)), a)


@shapes.model(2, hyperbola_truth)
def hyperbola_thin() -> None:
    """Two branches, 0.005 wide."""
    a = pyro.sample("a", dist.Normal(0.0, 2.0))
    b = pyro.sample("b", dist.Normal(0.0, 2.0))
    pyro.sample("y", dist.Normal(a * b, 0.005), obs=torch.tensor(1.0))


def product_truth() -> float:
    """Over the logarithms of two factors, the third integrated out; four sign patterns, two of them counted twice."""
    u = np.linspace(math.log(1e-7), math.log(12.0), 4001)
    a, product = np.exp(u), np.exp(u[:, None] + u)
    prior = normal(a, 0, 1.5) + u
    log_f = 2 * math.log(2) + prior[:, None] + prior + normal(1.0, 0, np.sqrt(2.25 * product**2 + 0.02**2))
    return integrate_log_2d(log_f, u, u)


@shapes.model(3, product_truth)
def product_of_three() -> None:
    """Four thin sheets."""
    a = pyro.sample("a", dist.Normal(0.0, 1.5).expand([3]).to_event(1))
    pyro.sample("y", dist.Normal(a[..., 0] * a[..., 1] * a[..., 2], 0.02), obs=torch.tensor(1.0))


# ---- bananas and funnels ----


@shapes.density(5)
def rosenbrock_star_5d(z):
    """One latent bends four others."""
    log_prob = -0.05 * (z[:, 0] - 1).square() + 0.5 * math.log(0.05 / math.pi)
    bends = -5.0 * (z[:, 1:] - z[:, :1].square()).square() + 0.5 * math.log(5.0 / math.pi)
    return log_prob + bends.sum(-1)


@shapes.density(9)
def rosenbrock_hybrid_9d(z):
    """Four blocks, each bent twice."""
    first, second, third = z[:, :1], z[:, 1::2], z[:, 2::2]
    blocks = -5.0 * (second - first.square()).square() - 5.0 * (third - second.square()).square()
    constant = 0.5 * math.log(0.5 / math.pi) + 4 * math.log(5.0 / math.pi)
    return -0.5 * (z[:, 0] - 1).square() + blocks.sum(-1) + constant


axes_30 = torch.tensor(rotation(30, 97))


@shapes.density(30)
def twisted_30d(z):
    """Fifteen bananas, rotated."""
    u = z @ axes_30.to(z)
    bent = u[:, 15:] - 0.3 * (u[:, :15].square() - 1)
    return -0.5 * u[:, :15].square().sum(-1) - 0.5 * bent.square().sum(-1) - 15 * LOG_2PI


def funnel(name: str, y, free: int, sd: float) -> None:
    def truth() -> float:
        v = np.linspace(-24, 24, 20_001)
        return integrate_log(normal(v, 0, 3.0) + sum(normal(x, 0, np.sqrt(np.exp(v) + sd**2)) for x in exact(y)), v)

    size = len(y) + free

    @shapes.model(1 + size, truth, name)
    def model() -> None:
        """A funnel, some of it pinned by data."""
        v = pyro.sample("v", dist.Normal(0.0, 3.0))
        x = pyro.sample("x", dist.Normal(0.0, (v / 2).exp().unsqueeze(-1).expand(v.shape + (size,))).to_event(1))
        pyro.sample("y", dist.Normal(x[..., : len(y)], sd).to_event(1), obs=y)


funnel("funnel_data_21d", data([0.3, -0.8, 1.1, 0.1, -0.2]), 15, 1.0)
funnel("funnel_sharp_13d", data([0.02, -0.01, 0.005, 0.015]), 8, 0.01)
funnel("funnel_few_data_6d", data([2.5]), 4, 0.5)

# ---- holes, plateaus, jumps ----


@shapes.model(6, lambda: stats.chi2.logsf(6.0, 6))
def ball_hole_6d() -> None:
    """A normal prior with a ball cut out of it."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([6]).to_event(1))
    pyro.factor("hole", torch.where(x.square().sum(-1) > 6.0, 0.0, -math.inf))


@shapes.model(5, -math.log(120.0))
def order_by_factor_5d() -> None:
    """An order that only a factor demands: one point of the prior in 120."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([5]).to_event(1))
    pyro.factor("order", torch.where((x[..., 1:] > x[..., :-1]).all(-1), 0.0, -math.inf))


@shapes.model(4, np.logaddexp(math.log(0.5), math.log(0.5) - 5.0))
def half_space_step_4d() -> None:
    """A step of five nats through the middle."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
    pyro.factor("step", torch.where(x.sum(-1) > 0, 0.0, -5.0))


@shapes.density(4, 4 * math.log(2.0))
def box_plateau_4d(z):
    """A box, flat inside and nothing outside."""
    inside = (z.abs() < 1.0).all(-1)
    return torch.where(inside, torch.zeros_like(z[:, 0]), torch.full_like(z[:, 0], -math.inf)) + 0.0 * z.sum(-1)


LEVELS = ((0.5, 0.0), (0.25, 3.0), (0.1, 6.0), (0.03, 10.0), (0.01, 14.0))


def cake_truth() -> float:
    volumes = np.array([(2 * half) ** 3 for half, _ in LEVELS] + [0.0])
    return special.logsumexp([level for _, level in LEVELS], b=volumes[:-1] - volumes[1:])


@shapes.model(3, cake_truth)
def wedding_cake_3d() -> None:
    """Terraces: no gradient anywhere."""
    x = pyro.sample("x", dist.Uniform(0.0, 1.0).expand([3]).to_event(1))
    edge = (x - 0.5).abs().amax(-1)
    f = torch.zeros_like(edge)
    for half, level in LEVELS[1:]:
        f = torch.where(edge < half, torch.full_like(f, level), f)
    pyro.factor("f", f)


def pair_truth() -> float:
    """One plus the integral of exp(-u) - 1 over the ball in which the pair sees itself."""

    def f(r):
        s6 = (0.2 / r) ** 6
        return 4 * math.pi * r * r * math.expm1(-min(8.0 * (s6 * s6 - s6), 700.0))

    core = 4 / 3 * math.pi * 0.02**3
    return math.log(1 - core + quad(f, 0.02, 0.5, limit=500, points=[0.15, 0.2, 0.225])[0])


@shapes.model(6, pair_truth)
def lennard_jones_pair() -> None:
    """Two particles in a periodic box, with a hard core."""
    x = pyro.sample("x", dist.Uniform(0.0, 1.0).expand([6]).to_event(1))
    gap = x[..., :3] - x[..., 3:]
    r2 = (gap - gap.round()).square().sum(-1)
    s6 = (0.04 / r2).pow(3)
    u = 8.0 * (s6 * s6 - s6)
    pyro.factor("u", torch.where(r2 < 0.25, -u, torch.zeros_like(u)))


ends_y = data(np.random.default_rng(52).uniform(-1.3, 2.1, 50))
low, high = float(ends_y.min()), float(ends_y.max())


def ends_truth() -> float:
    """(b - a)^-50 over a in (-10, low) and b in (high, 10)."""

    def corner(width: float) -> float:
        return width**-48 / (49 * 48)

    return math.log((corner(high - low) - corner(10 - low) - corner(high + 10) + corner(20.0)) / 100)


@shapes.model(2, ends_truth)
def uniform_two_ends() -> None:
    """Both ends of a uniform distribution: the density is highest where it stops."""
    a = pyro.sample("a", dist.Uniform(-10.0, 0.0))
    b = pyro.sample("b", dist.Uniform(0.0, 10.0))
    inside = (a <= low) & (b >= high)
    pyro.factor("y", torch.where(inside, -50.0 * (b - a).log(), -math.inf))


steps_y = data(np.random.default_rng(53).normal(np.repeat([0.0, 2.5, 0.5], [7, 6, 9]), 0.7))


def steps_truth() -> float:
    """All pairs of change points; levels integrated out."""

    def part(y) -> float:
        return (
            float(stats.multivariate_normal.logpdf(y, np.zeros(len(y)), 4.0 + 0.49 * np.eye(len(y)))) if len(y) else 0.0
        )

    y = exact(steps_y)
    n = len(y)
    logs = [
        part(y[: min(i, j) + 1]) + part(y[min(i, j) + 1 : max(i, j) + 1]) + part(y[max(i, j) + 1 :])
        for i in range(n)
        for j in range(n)
    ]
    return special.logsumexp(logs) - 2 * math.log(n)


@shapes.model(5, steps_truth)
def two_change_points() -> None:
    """Two change points on a line: the density is piecewise constant in them."""
    tau = pyro.sample("tau", dist.Uniform(0.0, 22.0).expand([2]).to_event(1))
    level = pyro.sample("lev", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    i = torch.arange(22)
    k = (i > tau[..., :1]).long() + (i > tau[..., 1:]).long()
    loc = torch.where(k == 0, level[..., :1], torch.where(k == 1, level[..., 1:2], level[..., 2:]))
    with pyro.plate("n", 22):
        pyro.sample("y", dist.Normal(loc, 0.7), obs=steps_y)

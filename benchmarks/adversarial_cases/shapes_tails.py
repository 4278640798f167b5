"""Heavy and skewed tails."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy.integrate import quad

from .base import Kind
from .integrals import data, exact, integrate_log, normal, rotation

shapes = Kind("shapes")


def student(dim: int, df: float) -> None:
    constant = math.lgamma((df + dim) / 2) - math.lgamma(df / 2) - 0.5 * dim * math.log(df * math.pi)

    @shapes.density(dim, 0.0, f"student_{df:g}_{dim}d")
    def log_prob(z):
        """A multivariate Student-t."""
        return constant - 0.5 * (df + dim) * torch.log1p(z.square().sum(-1) / df)


student(10, 1.0)
student(4, 2.0)
student(30, 3.0)


correlated = torch.full((3, 3), 0.5, dtype=torch.float64) + 0.5 * torch.eye(3, dtype=torch.float64)


@shapes.density(3)
def student_1_correlated_3d(z):
    """Correlated Cauchy numbers that are far out together."""
    square = (z @ correlated.inverse().to(z) * z).sum(-1)
    constant = math.lgamma(2.0) - math.lgamma(0.5) - 1.5 * math.log(math.pi) - 0.5 * float(correlated.logdet())
    return constant - 2.0 * torch.log1p(square)


@shapes.density(2)
def cauchy_turned_2d(z):
    """Two Cauchy numbers, turned by 45 degrees: tails along a sum and a difference."""
    turned = torch.stack([z[:, 0] - z[:, 1], z[:, 0] + z[:, 1]], -1) / math.sqrt(2.0)
    return -(math.log(math.pi) + torch.log1p(turned.square())).sum(-1)


@shapes.density(2, 2 * math.log(2 * math.gamma(1 + 1 / 0.3)))
def stretched_exponential_2d(z):
    """Far heavier than an exponential, and no power."""
    return -(z.abs() + 1e-12).pow(0.3).sum(-1)


@shapes.density(2, 2 * math.log(math.sqrt(2 * math.pi) / 2 + math.sqrt(2)))
def one_steep_side_2d(z):
    """Gaussian on the left, Student's t with two degrees of freedom on the right."""
    return torch.where(z < 0, -0.5 * z.square(), -1.5 * torch.log1p(z.square() / 2)).sum(-1)


def one_group_truth() -> float:
    """The group and its mean integrated, over the logarithm of the scale."""
    v = np.linspace(-40, 40, 400_001)
    variance = np.exp(2 * v) + 2.0**2 + 0.4**2
    prior = math.log(2 / math.pi) + v - np.log1p(np.exp(2 * v))
    return integrate_log(prior - 0.5 * (np.log(2 * math.pi * variance) + float(exact(one_group)[0]) ** 2 / variance), v)


one_group = data([0.7])


@shapes.model(3, one_group_truth)
def one_group_half_cauchy() -> None:
    """A single group, whose scale nothing tells."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    tau = pyro.sample("tau", dist.HalfCauchy(1.0))
    with pyro.plate("group", 1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * z, 0.4), obs=one_group)


@shapes.density(4)
def cauchy_product_4d(z):
    """Four Cauchy numbers: tails along the axes."""
    return -(math.log(math.pi) + torch.log1p(z.square())).sum(-1)


@shapes.density(12, 12 * (0.5 * math.log(2 * math.pi) - math.lgamma(1.5)))
def student_product_12d(z):
    """Twelve Student-t numbers with two degrees of freedom, not normalised."""
    return -1.5 * torch.log1p(z.square() / 2).sum(-1)


conflict_y = data(15.0 + 0.7 * np.arange(8))


def conflict_truth() -> float:
    def one(y) -> float:
        def f(x):
            return 1 / (math.pi * (1 + x * x)) * 0.5 / (math.pi * (0.25 + (y - x) ** 2))

        pieces = ((-np.inf, -5), (-5, 5), (5, y - 5), (y - 5, y + 5), (y + 5, np.inf))
        return math.log(sum(quad(f, *piece, limit=500)[0] for piece in pieces))

    return sum(one(y) for y in exact(conflict_y))


@shapes.model(8, conflict_truth)
def cauchy_conflict_8d() -> None:
    """Prior and data disagree, both with Cauchy tails: two modes for each."""
    x = pyro.sample("x", dist.Cauchy(0.0, 1.0).expand([8]).to_event(1))
    pyro.sample("y", dist.Cauchy(x, 0.5).to_event(1), obs=conflict_y)


scattered = data([-930.0, -410.0, -77.0, 12.0, 290.0, 660.0, 985.0])


def scattered_truth() -> float:
    steps = np.geomspace(1e-6, 5e4, 40_000)
    around = np.concatenate([-steps, [0.0], steps])
    grid = np.unique((exact(scattered)[:, None] + around).ravel())
    log_f = sum(math.log(0.05 / math.pi) - np.log(0.05**2 + (grid - y) ** 2) for y in exact(scattered))
    return integrate_log(log_f + normal(grid, 0, 1e4), grid)


@shapes.model(1, scattered_truth)
def cauchy_seven_locations() -> None:
    """Seven readings, a mode of width 0.05 at each, over two thousand units."""
    x = pyro.sample("x", dist.Normal(0.0, 1e4))
    with pyro.plate("n", 7):
        pyro.sample("y", dist.Cauchy(x, 0.05), obs=scattered)


axes_20 = torch.tensor(rotation(20, 96))


@shapes.density(20)
def rotated_loggamma_20d(z):
    """Twenty skewed latents, rotated."""
    u = z @ axes_20.to(z)
    return (0.4 * u - u.exp()).sum(-1) - 20 * math.lgamma(0.4)


def log_gamma(dim: int, shape: float) -> None:
    @shapes.density(dim, dim * math.lgamma(shape), f"loggamma_{shape:g}_{dim}d")
    def log_prob(z):
        """Logarithms of gamma numbers: an exponential tail on one side, none on the other."""
        return (shape * z - z.exp()).sum(-1)


log_gamma(4, 0.1)
log_gamma(40, 0.7)


@shapes.density(5, 5 * math.log(2.0))
def laplace_5d(z):
    """A kink at the mode."""
    return -z.abs().sum(-1)


def shot_truth() -> float:
    """y = 0.2 ~ Normal(x, 0.1) with x ~ LogNormal(0, 3), over log x."""
    u = np.linspace(-30, 30, 600_001)
    return integrate_log(normal(u, 0, 3.0) + normal(0.2, np.exp(np.minimum(u, 20)), 0.1), u)


@shapes.model(1, shot_truth)
def log_normal_plateau() -> None:
    """A peak, and a plateau that ends nowhere in particular where the number is next to nothing."""
    x = pyro.sample("x", dist.LogNormal(0.0, 3.0))
    pyro.sample("y", dist.Normal(x, 0.1), obs=torch.tensor(0.2).double())

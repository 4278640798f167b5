"""Models that are large: in dimensions, or in observations. Those of `scaling.py` and of the test of the pines."""

import csv
import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

PINES = Path(__file__).parent / "data" / "pines.csv"
PINES_LOG_EVIDENCE, PINES_STD_ERROR = 501.8, 0.1
"""On 40 x 40 cells, of two annealed runs from a Gaussian at the mode, which differ by 0.2 nats."""


def pines(num_cells: int = 40) -> tuple[Tensor, Tensor]:
    """Saplings in each cell of a square grid, and the prior covariance of their log intensities there.

    Arguments:
        num_cells: Cells along one side.

    Returns:
        Counts ``(num_cells**2,)`` and covariance ``(num_cells**2, num_cells**2)``.
    """
    with PINES.open() as file:
        points = torch.tensor([[float(row["data_x"]), float(row["data_y"])] for row in csv.DictReader(file)])
    cell = (points * num_cells).long().clamp(max=num_cells - 1)
    counts = torch.zeros(num_cells**2)
    counts.index_add_(0, cell[:, 0] * num_cells + cell[:, 1], torch.ones(len(cell)))
    side = torch.arange(num_cells, dtype=torch.float64)
    centres = torch.cartesian_prod(side, side) / num_cells

    return counts, (1.91 * torch.exp(-33.0 * torch.cdist(centres, centres))).to(counts.dtype)


def log_gaussian_cox(counts: Tensor, covariance: Tensor) -> None:
    """A Gaussian field of log intensities; counts are Poisson but for their factorials, as in the literature."""
    num_cells = len(counts)
    mean = torch.full_like(counts, math.log(126.0) - 0.5 * 1.91)
    field = pyro.sample("field", dist.MultivariateNormal(mean, covariance))
    pyro.factor("points", (counts * field - field.exp() / num_cells).sum())


def groups(num_groups: int) -> Tensor:
    """One observation of each group, spread about 1."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, num_groups, generator=generator)

    return 1.0 + 0.5 * noise[0] + noise[1]


def hierarchy(y: Tensor) -> None:
    """A normal hierarchy, centred: two parents, and an effect for each group."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with pyro.plate("groups", len(y)):
        effect = pyro.sample("effect", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(effect, 1.0), obs=y)


def hierarchy_log_evidence(y: Tensor) -> float:
    """The hierarchy's log evidence: effects and their mean in closed form, their spread by quadrature."""
    y, count = y.double(), len(y)
    tau = torch.linspace(0.0, 6.0, 20001, dtype=torch.float64)
    variance = 1.0 + tau.square()
    log_det = count * variance.log() + torch.log1p(4.0 * count / variance)
    square = y.square().sum() / variance - (y.sum() / variance).square() / (0.25 + count / variance)
    log_prior = 0.5 * math.log(2.0 / math.pi) - 0.5 * tau.square()
    log_density = log_prior - 0.5 * (log_det + square + count * math.log(2.0 * math.pi))
    largest = log_density.max()

    return (largest + torch.trapezoid((log_density - largest).exp(), tau).log()).item()


def regression_data(num_observations: int, num_features: int = 20) -> tuple[Tensor, Tensor]:
    """Features and answers of a logistic regression."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_observations, num_features, generator=generator)
    weights = 0.5 * torch.randn(num_features, generator=generator)

    return x, (torch.rand(num_observations, generator=generator) < torch.sigmoid(x @ weights)).to(x)


def logistic(x: Tensor, y: Tensor) -> None:
    """A logistic regression with a standard normal prior."""
    weights = pyro.sample("weights", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x @ weights), obs=y)

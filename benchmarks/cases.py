"""Posteriors with a known log evidence or long-run reference moments, as Pyro models and log densities."""

import csv
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_osds.symmetries import Symmetry

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples" / "data"
KNOWN = json.loads((HERE / "data" / "known_evidence.json").read_text())


@dataclass(frozen=True)
class Case:
    """One posterior, what is known of it, and what a run must reach; where nothing is asked, the limit is infinite.

    `modes` are centres `(K, D)` and weights `(K,)` of a mixture, `wells` the coordinates that each have two wells, one
    on either side of 0, and the probability of the positive one. A case with a `dim` is a log density on `R^dim`.
    `symmetries` are declared to the run.
    """

    name: str
    model: Callable[..., Any]
    log_evidence: float = math.nan
    log_evidence_se: float = 0.0
    max_error: float = math.inf
    min_elbo: float = -math.inf
    min_ess: float = 0.0  # as a share of the draws
    max_pareto_k: float = math.inf
    max_seconds: float = math.inf
    max_weight_error: float = math.inf
    all_modes: bool = False
    moments: dict[str, dict[str, float]] = field(default_factory=dict)
    improper: bool = False
    modes: tuple[Tensor, Tensor] | None = None
    wells: tuple[list[int], float] | None = None
    dim: int = 0
    symmetries: tuple[Symmetry, ...] = ()


def posteriordb(name: str) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Data as float tensors, and reference moments by parameter."""
    stored = json.loads((HERE / "data" / "posteriordb" / f"{name}.json").read_text())
    data = {k: torch.tensor(v, dtype=torch.float32) if isinstance(v, list) else v for k, v in stored["data"].items()}

    return data, stored["reference"]


def eight_schools(centred: bool) -> Callable[[], None]:
    data, _ = posteriordb("eight_schools")

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("school", 8):
            if centred:
                theta = pyro.sample("theta", dist.Normal(mu, tau))
            else:
                theta = pyro.deterministic("theta", mu + tau * pyro.sample("eta", dist.Normal(0.0, 1.0)))
            pyro.sample("y", dist.Normal(theta, data["sigma"]), obs=data["y"])

    return model


def german_credit() -> Callable[[], None]:
    rows = read_rows(EXAMPLES / "german_credit.csv")
    x, y = rows[:, :-1], rows[:, -1] - 1

    return logistic_regression(x / x.std(0, correction=0), y, 10.0)


def logistic_regression(x: Tensor, y: Tensor, prior_sd: float) -> Callable[[], None]:
    """Weights `w`, of which the first is the intercept, of features `(N, D)` for labels `(N,)` of 0 and 1."""
    x = torch.cat([torch.ones(len(x), 1), x], 1)

    def model() -> None:
        w = pyro.sample("w", dist.Normal(0.0, prior_sd).expand([x.shape[1]]).to_event(1))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)

    return model


def radiata_pine(predictor: str) -> Callable[[], None]:
    with (EXAMPLES / "radiata_pine.csv").open() as file:
        rows = list(csv.DictReader(file))
    column = {name: torch.tensor([float(row[name]) for row in rows]) for name in rows[0]}
    y, x = column[RADIATA_COLUMNS["strength"]], column[RADIATA_COLUMNS[predictor]]
    x = x - x.mean()

    def model() -> None:
        tau = pyro.sample("tau", dist.Gamma(3.0, 2.0 * 300.0**2))
        alpha = pyro.sample("alpha", dist.Normal(3000.0, (0.06 * tau).rsqrt()))
        beta = pyro.sample("beta", dist.Normal(185.0, (6.0 * tau).rsqrt()))
        with pyro.plate("specimen", len(y)):
            pyro.sample("y", dist.Normal(alpha + beta * x, tau.rsqrt()), obs=y)

    return model


RADIATA_COLUMNS = {"strength": "y_strength", "density": "x_density", "adjusted density": "z_adjusted_density"}


def ark() -> Callable[[], None]:
    data, _ = posteriordb("arK")
    order, y = int(data["K"]), data["y"]
    lags = torch.stack([y[order - 1 - k : len(y) - 1 - k] for k in range(order)], 1)

    def model() -> None:
        alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
        beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([order]).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
        with pyro.plate("time", len(y) - order):
            pyro.sample("y", dist.Normal(alpha + lags @ beta, sigma), obs=y[order:])

    return model


def sblri() -> Callable[[], None]:
    data, _ = posteriordb("sblri")

    def model() -> None:
        beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([5]).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfNormal(10.0))
        with pyro.plate("row", len(data["y"])):
            pyro.sample("y", dist.Normal(data["X"] @ beta, sigma), obs=data["y"])

    return model


def gp_regr() -> Callable[[], None]:
    data, _ = posteriordb("gp_regr")
    x = data["x"]

    def model() -> None:
        rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
        alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        kernel = alpha**2 * torch.exp(-0.5 * (x[:, None] - x).square() / rho**2) + sigma * torch.eye(len(x))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), kernel), obs=data["y"])

    return model


def _flat_regression(x: Tensor, y: Tensor, sigma_prior: Any) -> Callable[[], None]:
    def model() -> None:
        beta = pyro.sample("beta", dist.ImproperUniform(dist.constraints.real_vector, (), (x.shape[1],)))
        sigma = pyro.sample("sigma", sigma_prior)
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)

    return model


def kidiq() -> Callable[[], None]:
    data, _ = posteriordb("kidiq")
    school, iq = data["mom_hs"], data["mom_iq"]
    x = torch.stack([torch.ones_like(iq), school, iq, school * iq], 1)

    return _flat_regression(x, data["kid_score"], dist.HalfCauchy(2.5))


def earnings() -> Callable[[], None]:
    data, _ = posteriordb("earnings")
    height, male = data["height"], data["male"]
    x = torch.stack([torch.ones_like(height), height, male, height * male], 1)

    return _flat_regression(x, data["earn"].log(), dist.ImproperUniform(dist.constraints.positive, (), ()))


CIRCLE = 3.0 * torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
CIRCLE_WEIGHTS = torch.tensor([0.1, 0.2, 0.3, 0.4])


def four_gaussians(z: Tensor) -> Tensor:
    square = (z[:, None] - CIRCLE.to(z)).square().sum(-1)

    return torch.logsumexp(CIRCLE_WEIGHTS.to(z).log() - 2.0 * square - math.log(0.5 * math.pi), -1)


def gaussian_shells(z: Tensor) -> Tensor:
    """Two shells of radius 2 and thickness 0.1 around +-3.5 on the first axis, uniform prior on [-6, 6]^D."""
    radius = (z[:, None] - shell_centres(z.shape[1]).to(z)).square().sum(-1).clamp(min=1e-12).sqrt()
    log_shell = -0.5 * ((radius - 2.0) / 0.1).square() - math.log(0.1 * math.sqrt(2 * math.pi))

    return torch.logsumexp(log_shell, -1) - z.shape[1] * math.log(12.0)


def shell_centres(dim: int) -> Tensor:
    centres = torch.zeros(2, dim)
    centres[:, 0] = torch.tensor([3.5, -3.5])

    return centres


def read_rows(path: Path) -> Tensor:
    """The rows below the header, `(N, columns)`."""
    with path.open() as file:
        return torch.tensor([[float(value) for value in row] for row in list(csv.reader(file))[1:]])


def all_cases() -> list[Case]:
    known = {name: entry["log_evidence"] for name, entry in KNOWN.items()}
    halves = torch.tensor([0.5, 0.5])
    return [
        Case(
            "eight schools",
            eight_schools(False),
            known["eight_schools"],
            max_error=0.02,
            min_elbo=-31.34,
            max_seconds=15.0,
            moments=posteriordb("eight_schools")[1],
        ),
        Case(
            "eight schools, centred",
            eight_schools(True),
            known["eight_schools"],
            max_error=0.05,
            min_elbo=-31.45,
            moments=posteriordb("eight_schools")[1],
        ),
        Case(
            "German credit",
            german_credit(),
            known["german_credit"],
            KNOWN["german_credit"]["std_error"],
            max_error=0.02,
            min_elbo=-585.13,
            max_seconds=20.0,
        ),
        Case("radiata pine, density", radiata_pine("density"), known["radiata_pine_density"], max_error=0.02),
        Case(
            "radiata pine, adjusted",
            radiata_pine("adjusted density"),
            known["radiata_pine_adjusted_density"],
            max_error=0.02,
        ),
        Case("arK", ark(), known["arK"], moments=posteriordb("arK")[1]),
        Case("sblri", sblri(), known["sblri"], moments=posteriordb("sblri")[1]),
        Case("gp_regr", gp_regr(), known["gp_regr"], KNOWN["gp_regr"]["std_error"], moments=posteriordb("gp_regr")[1]),
        Case("kidiq", kidiq(), moments=posteriordb("kidiq")[1], improper=True),
        Case("earnings", earnings(), moments=posteriordb("earnings")[1], improper=True),
        Case("four Gaussians", four_gaussians, 0.0, max_error=0.05, modes=(CIRCLE, CIRCLE_WEIGHTS), dim=2),
        Case(
            "shells 2-D",
            gaussian_shells,
            known["gaussian_shells_2d"],
            max_error=0.05,
            modes=(shell_centres(2), halves),
            dim=2,
        ),
        Case(
            "shells 10-D",
            gaussian_shells,
            known["gaussian_shells_10d"],
            max_error=0.05,
            modes=(shell_centres(10), halves),
            dim=10,
        ),
    ]

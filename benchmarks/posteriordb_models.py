"""Posteriors of posteriordb with reference draws, as Pyro models with the parameters and priors of the Stan programs.

Most are one linear regression with other columns. Users write a flat prior in several ways, so the regressions take
turns among four of them.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from cases import ark, eight_schools, gp_regr, sblri
from pyro.distributions import constraints
from torch import Tensor

FOLDER = Path(__file__).parent / "data" / "posteriordb"
REFERENCE = json.loads((FOLDER / "reference.json").read_text())

Data = dict[str, Tensor]
Model = Callable[..., None]


@dataclass(frozen=True)
class Posterior:
    """A model with its arguments, and how many observations it has."""

    model: Model
    args: tuple[Tensor, ...]
    num_rows: int


def read_data(name: str) -> Data:
    """The fields of a data set as tensors."""
    stored = json.loads((FOLDER / f"{name}.json").read_text())

    return {
        key: torch.tensor(value, dtype=torch.get_default_dtype()) for key, value in stored.get("data", stored).items()
    }


def reference(name: str) -> dict[str, dict[str, float]]:
    """Mean, sd and quantiles of the reference draws, by parameter."""
    return REFERENCE["posteriors"][name]["parameters"]


# ---- coefficients with a flat prior, in four spellings ----


def vector(size: int) -> Tensor:
    return pyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), (size,)))


def expanded(size: int) -> Tensor:
    return pyro.sample("beta", dist.ImproperUniform(constraints.real, (), ()).expand([size]).to_event(1))


def plated(size: int) -> Tensor:
    with pyro.plate("coefficient", size):
        return pyro.sample("beta", dist.ImproperUniform(constraints.real, (), ()))


def masked(size: int) -> Tensor:
    return pyro.sample("beta", dist.Normal(torch.zeros(size), 1.0).to_event(1).mask(False))


# ---- linear regressions ----


@dataclass(frozen=True)
class Regression:
    """A linear regression: `formula` makes the columns beside the intercept, and the response, of the data.

    Without a `sigma_scale` the prior of the noise is flat, else half-Cauchy.
    """

    data: str
    formula: Callable[[Data], tuple[list[Tensor], Tensor]]
    flat: Callable[[int], Tensor]
    sigma_scale: float | None = None

    def __call__(self) -> Posterior:
        columns, y = self.formula(read_data(self.data))
        x = torch.stack([torch.ones_like(y), *columns], 1)

        return Posterior(self.model, (x, y), len(y))

    def model(self, x: Tensor, y: Tensor) -> None:
        beta = self.flat(x.shape[1])
        scale = self.sigma_scale
        flat_sigma = dist.ImproperUniform(constraints.positive, (), ())
        sigma = pyro.sample("sigma", flat_sigma if scale is None else dist.HalfCauchy(scale))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def earnings(*names: str) -> Callable[[Data], tuple[list[Tensor], Tensor]]:
    """The log of earnings on columns of those names."""
    return lambda data: ([data[name] for name in names], data["earn"].log())


def scores(*names: str) -> Callable[[Data], tuple[list[Tensor], Tensor]]:
    """Scores of children on columns of those names."""
    return lambda data: ([data[name] for name in names], data["kid_score"])


def crossed_scores(pair: Callable[[Data], tuple[Tensor, Tensor]]) -> Callable[[Data], tuple[list[Tensor], Tensor]]:
    """Scores of children on two columns and their product."""
    return lambda data: (crossed(*pair(data)), data["kid_score"])


def levels(column: Tensor) -> list[Tensor]:
    """Indicators of levels 2, 3 and 4; the first level is the intercept."""
    return [(column == level).to(column) for level in (2, 3, 4)]


def crossed(a: Tensor, b: Tensor) -> list[Tensor]:
    return [a, b, a * b]


def centred(column: Tensor) -> Tensor:
    return column - column.mean()


def scaled(column: Tensor) -> Tensor:
    return centred(column) / column.std()


def log_bushes(*names: str) -> Callable[[Data], tuple[list[Tensor], Tensor]]:
    """The log of the weight of mesquite bushes on logs of sizes, and on their group where it is named."""

    def formula(data: Data) -> tuple[list[Tensor], Tensor]:
        area = data["diam1"] * data["diam2"]
        shape = data["diam1"] / data["diam2"]
        sizes = data | {"volume": area * data["canopy_height"], "area": area, "shape": shape}

        return [data[name] if name == "group" else sizes[name].log() for name in names], data["weight"].log()

    return formula


def bushes(data: Data) -> tuple[list[Tensor], Tensor]:
    names = ("diam1", "diam2", "canopy_height", "total_height", "density", "group")

    return [data[name] for name in names], data["weight"]


def election(data: Data) -> tuple[list[Tensor], Tensor]:
    """Party identification on ideology, race, age, education, gender and income."""
    columns = [data["real_ideo"], data["race_adj"], *levels(data["age_discrete"])]

    return [*columns, data["educ1"], data["gender"], data["income"]], data["partyid7"]


REGRESSIONS = {
    "earnings-earn_height": Regression("earnings", lambda data: ([data["height"]], data["earn"]), expanded),
    "earnings-log10earn_height": Regression("earnings", lambda data: ([data["height"]], data["earn"].log10()), vector),
    "earnings-logearn_height": Regression("earnings", earnings("height"), plated),
    "earnings-logearn_height_male": Regression("earnings", earnings("height", "male"), vector),
    "earnings-logearn_interaction": Regression(
        "earnings", lambda data: (crossed(data["height"], data["male"]), data["earn"].log()), vector
    ),
    "earnings-logearn_interaction_z": Regression(
        "earnings", lambda data: (crossed(scaled(data["height"]), data["male"]), data["earn"].log()), masked
    ),
    "kidiq-kidscore_interaction": Regression(
        "kidiq", crossed_scores(lambda data: (data["mom_hs"], data["mom_iq"])), vector, 2.5
    ),
    "kidiq-kidscore_momhs": Regression("kidiq", scores("mom_hs"), vector, 2.5),
    "kidiq-kidscore_momhsiq": Regression("kidiq", scores("mom_hs", "mom_iq"), plated, 2.5),
    "kidiq-kidscore_momiq": Regression("kidiq", scores("mom_iq"), masked, 2.5),
    "kidiq_with_mom_work-kidscore_interaction_c": Regression(
        "kidiq_with_mom_work", crossed_scores(lambda data: (centred(data["mom_hs"]), centred(data["mom_iq"]))), vector
    ),
    "kidiq_with_mom_work-kidscore_interaction_c2": Regression(
        "kidiq_with_mom_work", crossed_scores(lambda data: (data["mom_hs"] - 0.5, data["mom_iq"] - 100)), expanded
    ),
    "kidiq_with_mom_work-kidscore_interaction_z": Regression(
        "kidiq_with_mom_work",
        crossed_scores(lambda data: (scaled(data["mom_hs"]) / 2, scaled(data["mom_iq"]) / 2)),
        plated,
    ),
    "kidiq_with_mom_work-kidscore_mom_work": Regression(
        "kidiq_with_mom_work", lambda data: (levels(data["mom_work"]), data["kid_score"]), vector
    ),
    "mesquite-logmesquite_logva": Regression("mesquite", log_bushes("volume", "area", "group"), plated),
    "mesquite-logmesquite_logvas": Regression(
        "mesquite", log_bushes("volume", "area", "shape", "total_height", "density", "group"), expanded
    ),
    "mesquite-logmesquite_logvash": Regression(
        "mesquite", log_bushes("volume", "area", "shape", "total_height", "group"), masked
    ),
    "mesquite-logmesquite_logvolume": Regression("mesquite", log_bushes("volume"), vector),
    "mesquite-mesquite": Regression("mesquite", bushes, vector),
    "nes1972-nes": Regression("nes1972", election, vector),
    "nes1976-nes": Regression("nes1976", election, expanded),
    "nes1980-nes": Regression("nes1980", election, plated),
    "nes1984-nes": Regression("nes1984", election, masked),
    "nes1988-nes": Regression("nes1988", election, vector),
    "nes1992-nes": Regression("nes1992", election, expanded),
    "nes1996-nes": Regression("nes1996", election, plated),
}


# ---- hidden Markov models ----


def forward(log_emission: Tensor, log_transition: Tensor) -> Tensor:
    """Log likelihood, of log densities `(N, K)` of observations by state; as there, the first state has none."""
    state = log_emission[0]
    for emission in log_emission[1:]:
        state = (state[:, None] + log_transition).logsumexp(0) + emission

    return state.logsumexp(0)


def transitions(concentration: Tensor) -> Tensor:
    """Log probabilities `(2, 2)` of the next state, with rows `theta1` and `theta2`."""
    rows = [pyro.sample(f"theta{k + 1}", dist.Dirichlet(concentration[k])) for k in range(2)]

    return torch.stack(rows).log()


def ordered(name: str, constraint: Any, prior: dist.Normal) -> Tensor:
    """Two locations in order, with the density of `prior` as it stands: the order does not change its constant."""
    value = pyro.sample(name, dist.ImproperUniform(constraint, (), (2,)))
    pyro.factor(f"{name}_prior", prior.log_prob(value).sum(-1))

    return value


def hmm_example() -> Posterior:
    y = read_data("hmm_example")["y"]

    def model(y: Tensor) -> None:
        log_transition = transitions(torch.ones(2, 2))
        prior = dist.Normal(torch.tensor([3.0, 10.0]), 1.0)
        # Stan's constraint by name. Pyro's coordinates are others: the second location is exp(a + exp(b)).
        mu = ordered("mu", constraints.positive_ordered_vector, prior)
        pyro.factor("likelihood", forward(dist.Normal(mu, 1.0).log_prob(y[:, None]), log_transition))

    return Posterior(model, (y,), len(y))


def basketball_drive() -> Posterior:
    """Two states of a basketball player, seen by two measurements at each time."""
    data = read_data("bball_drive_event_1")
    tau, rho = data["tau"], data["rho"]

    def model(u: Tensor, v: Tensor) -> None:
        log_transition = transitions(data["alpha"])
        prior = dist.Normal(torch.tensor([0.0, 3.0]), 1.0)
        phi = ordered("phi", constraints.ordered_vector, prior)
        lam = ordered("lambda", constraints.ordered_vector, prior)
        log_emission = dist.Normal(phi, tau).log_prob(u[:, None]) + dist.Normal(lam, rho).log_prob(v[:, None])
        pyro.factor("likelihood", forward(log_emission, log_transition))

    return Posterior(model, (data["u"], data["v"]), len(data["u"]))


# Functions rather than posteriors, so that a fit reads its own data only.
POSTERIORS: dict[str, Callable[[], Posterior]] = {
    "arK-arK": lambda: Posterior(ark(), (), 195),
    "bball_drive_event_1-hmm_drive_1": basketball_drive,
    "eight_schools-eight_schools_centered": lambda: Posterior(eight_schools(True), (), 8),
    "eight_schools-eight_schools_noncentered": lambda: Posterior(eight_schools(False), (), 8),
    "gp_pois_regr-gp_regr": lambda: Posterior(gp_regr(), (), 11),
    "hmm_example-hmm_example": hmm_example,
    "sblri-blr": lambda: Posterior(sblri(), (), 100),
    **REGRESSIONS,
}

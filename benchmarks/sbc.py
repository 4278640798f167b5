"""Simulation-based calibration: parameters and data drawn from the model, then a fit of each.

    python benchmarks/sbc.py [--fits 200] [--only NAME ...] [--jobs 2] [--out FILE] [--report]

If posterior draws are right, the true parameter ranks uniformly among them, and a 90 % interval holds it in 90 % of the
fits. Ranks are those of each parameter and of the joint log density, which sees what single parameters do not (Modrak
et al. 2023, 2211.02383). Fits have default settings, but 4 chains of 250 draws, thinned to 99. Each fit is a line of
FILE as soon as it is there, and those in FILE are not repeated. `--report` writes tables and a figure of all fits in
FILE to docs/, and runs nothing.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from cases import posteriordb
from pyro import poutine
from rank_statistics import is_central, rank, thin
from runs import Record, run_all, stored
from torch import Tensor

from pyro_osds import OSDS

OUT = Path(__file__).parent / "results" / "sbc.jsonl"
NUM_DRAWS = 99
MASSES = (0.5, 0.9)

Values = dict[str, Tensor]


@dataclass(frozen=True)
class Simulation:
    """A model of data `y`, which it draws itself where there are none, and its log joint density of many draws."""

    model: Callable[..., Any]
    log_joint: Callable[[Values, Tensor], Tensor]


def eight_schools(y: Tensor | None = None) -> None:
    """Centred, as it is written down; which coordinates suit the data is for the sampler to find out."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, SIGMA), obs=y)


def eight_schools_log_joint(values: Values, y: Tensor) -> Tensor:
    mu, tau, theta = values["mu"], values["tau"], values["theta"]
    log_prior = dist.Normal(0.0, 5.0).log_prob(mu) + dist.HalfCauchy(5.0).log_prob(tau)
    log_schools = dist.Normal(mu[:, None], tau[:, None]).log_prob(theta) + dist.Normal(theta, SIGMA).log_prob(y)

    return log_prior + log_schools.sum(-1)


def logistic_regression(y: Tensor | None = None) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    with pyro.plate("row", len(FEATURES)):
        pyro.sample("y", dist.Bernoulli(logits=FEATURES @ w), obs=y)


def logistic_regression_log_joint(values: Values, y: Tensor) -> Tensor:
    log_likelihood = dist.Bernoulli(logits=values["w"] @ FEATURES.T).log_prob(y)

    return dist.Normal(0.0, 2.0).log_prob(values["w"]).sum(-1) + log_likelihood.sum(-1)


SIGMA = posteriordb("eight_schools")[0]["sigma"]
# An intercept and two features.
FEATURES = torch.cat([torch.ones(40, 1), torch.randn(40, 2, generator=torch.Generator().manual_seed(0))], 1)
SIMULATIONS = {
    "eight schools": Simulation(eight_schools, eight_schools_log_joint),
    "logistic regression": Simulation(logistic_regression, logistic_regression_log_joint),
}


def measure(name: str, seed: int) -> Record:
    """One fit of simulated data, as a line of the file."""
    simulation = SIMULATIONS[name]
    pyro.set_rng_seed(seed)
    sites = poutine.trace(simulation.model).get_trace().nodes
    y = sites["y"]["value"]
    osds = OSDS(simulation.model, num_samples=250, num_chains=4, disable_progbar=True)
    record, start = {"model": name, "seed": seed}, time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the verdict is in the record
        try:
            osds.run(y)
        except (ValueError, RuntimeError) as error:
            return record | {"failed": f"{type(error).__name__}: {error}"}
    draws = osds.get_samples()
    truth = quantities(simulation, {site: sites[site]["value"][None] for site in draws}, y)
    pairs = {key: (values, float(truth[key][0])) for key, values in quantities(simulation, draws, y).items()}

    return record | {
        "ranks": {key: rank(thin(values, NUM_DRAWS), true) for key, (values, true) in pairs.items()},
        "inside": {
            str(mass): {key: is_central(values, true, mass) for key, (values, true) in pairs.items()} for mass in MASSES
        },
        "reliable": osds.evidence.reliable,
        "pareto_k": osds.evidence.pareto_k,
        "ess_share": osds.evidence.ess / osds.evidence.num_draws,
        "seconds": round(time.process_time() - start, 2),
    }


def quantities(simulation: Simulation, draws: Values, y: Tensor) -> dict[str, np.ndarray]:
    """What is ranked, `(S,)` each: every parameter, and the log joint density."""
    values = {}
    for site, value in draws.items():
        columns = value.flatten(1).T if value.dim() > 1 else value[None]
        names = [f"{site}[{i}]" for i in range(len(columns))] if value.dim() > 1 else [site]
        values |= {name: column.numpy() for name, column in zip(names, columns, strict=True)}

    return values | {"log joint": simulation.log_joint(draws, y).numpy()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fits", type=int, default=200, help="of each model")
    parser.add_argument("--only", nargs="+", choices=SIMULATIONS, default=list(SIMULATIONS), metavar="NAME")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE")
    parser.add_argument("--report", action="store_true", help="write the report, run nothing")
    args = parser.parse_args()
    if args.report:
        from sbc_report import write_report

        write_report([record for record in stored(args.out) if record["model"] in args.only], NUM_DRAWS)
        return
    tasks = [(name, seed) for seed in range(args.fits) for name in args.only]
    run_all(measure, tasks, args.out, lambda record: (record["model"], record["seed"]), args.jobs)


if __name__ == "__main__":
    main()

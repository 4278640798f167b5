"""
Radiata pine: which density predicts strength?
==============================================

Two regressions of the strength of 42 specimens of pine, on their density and on their density adjusted for resin
(Williams 1959). The prior is conjugate, so both log evidences are known in closed form, -310.1283 and -301.7046, and
the log Bayes factor for the adjusted density is 8.4237.
"""

import argparse
import csv
import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch

from pyro_osds import OSDS, compare_evidence

DATA = Path(__file__).parent / "data" / "radiata_pine.csv"
EXACT = {"density": -310.128286, "adjusted density": -301.704602}


def regression(x, y):
    tau = pyro.sample("tau", dist.Gamma(3.0, 2 * 300.0**2))
    alpha = pyro.sample("alpha", dist.Normal(3000.0, (0.06 * tau).rsqrt()))
    beta = pyro.sample("beta", dist.Normal(185.0, (6.0 * tau).rsqrt()))
    with pyro.plate("specimen", len(y)):
        pyro.sample("y", dist.Normal(alpha + beta * (x - x.mean()), tau.rsqrt()), obs=y)


def load():
    with DATA.open() as file:
        rows = list(csv.DictReader(file))
    columns = {name: torch.tensor([float(row[name]) for row in rows]) for name in rows[0]}
    return {"density": columns["x_density"], "adjusted density": columns["z_adjusted_density"]}, columns["y_strength"]


def main(args):
    predictors, strength = load()
    pyro.set_rng_seed(args.seed)  # once: the errors of the two runs must be independent
    runs = {}
    for name, x in predictors.items():
        runs[name] = OSDS(regression, num_samples=args.num_samples, num_chains=4, num_iterations=args.num_iterations)
        runs[name].run(x, strength)

    print(compare_evidence(runs).to_string())
    for name, osds in runs.items():
        evidence = osds.evidence
        print(f"{name}: {evidence.log_evidence:.4f} +- {evidence.std_error:.4f}, exact {EXACT[name]:.4f}")
        for reason in evidence.reasons:
            print(f"  NOT reliable: {reason}")

    density, adjusted = runs["density"], runs["adjusted density"]
    log_bayes_factor = adjusted.log_evidence - density.log_evidence
    std_error = math.hypot(adjusted.log_evidence_se, density.log_evidence_se)
    exact = EXACT["adjusted density"] - EXACT["density"]
    print(f"log Bayes factor for the adjusted density: {log_bayes_factor:.4f} +- {std_error:.4f}, exact {exact:.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Radiata pine: the evidence of two regressions")
    parser.add_argument("--num-samples", type=int, default=1000, help="posterior draws per chain")
    parser.add_argument("--num-iterations", type=int, default=1000, help="optimiser steps at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke-test", action="store_true", help="a tiny run; its numbers mean nothing")
    args = parser.parse_args()
    if args.smoke_test:
        args.num_samples, args.num_iterations = 50, 40
    main(args)

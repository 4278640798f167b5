"""
Eight schools, twice
====================

The effects of coaching in eight schools (Rubin 1981), written in two ways: centred, where the posterior is a funnel,
and non-centred, where it is nearly normal. Both are the same model of the data, so both must give the same log
evidence. Quadrature gives it exactly: -31.3113.
"""

import argparse
import csv
import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch

from pyro_osds import OSDS

DATA = Path(__file__).parent / "data" / "eight_schools.csv"
EXACT = -31.311347


def centred(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def non_centred(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)


def load():
    with DATA.open() as file:
        rows = list(csv.DictReader(file))
    return tuple(torch.tensor([float(row[name]) for row in rows]) for name in ("y", "sigma"))


def report(name, osds):
    evidence = osds.evidence
    print(f"{name}: log evidence {evidence.log_evidence:.4f} +- {evidence.std_error:.4f}, exact {EXACT:.4f}")
    print("  reliable" if evidence.reliable else "  NOT reliable")
    for reason in evidence.reasons:
        print(f"  - {reason}")


def effects(posterior):
    """The eight theta, shape (chain, draw, school), whichever way the model was written."""
    if "theta" in posterior:
        return posterior["theta"].values
    return (posterior["mu"] + posterior["tau"] * posterior["eta"]).values


def plot(posteriors, path):
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for shift, (name, posterior) in zip((-0.12, 0.12), posteriors.items(), strict=True):
        left.hist(posterior["mu"].values.ravel(), bins=60, density=True, histtype="step", label=name)
        middle.hist(posterior["tau"].values.ravel(), bins=60, range=(0, 25), density=True, histtype="step")
        theta = effects(posterior).reshape(-1, 8)
        low, median, high = np.quantile(theta, [0.05, 0.5, 0.95], axis=0)
        place = np.arange(1, 9) + shift
        right.errorbar(place, median, yerr=[median - low, high - median], fmt="o", markersize=4)
    left.set(xlabel="mu", title="mean effect")
    left.legend()
    middle.set(xlabel="tau", title="spread of effects")
    right.set(xlabel="school", ylabel="theta", title="effects: median and 90 % interval")
    figure.savefig(path, dpi=120)


def main(args):
    y, sigma = load()
    pyro.set_rng_seed(args.seed)  # once: the errors of the two runs must be independent
    runs = {}
    for name, model in {"centred": centred, "non-centred": non_centred}.items():
        osds = OSDS(model, num_samples=args.num_samples, num_chains=4, num_iterations=args.num_iterations)
        osds.run(y, sigma)
        osds.summary()
        runs[name] = osds

    for name, osds in runs.items():
        report(name, osds)
    first, second = (osds.evidence for osds in runs.values())
    gap = abs(first.log_evidence - second.log_evidence)
    std_error = math.hypot(first.std_error, second.std_error)
    if not (first.reliable and second.reliable):
        print("the two cannot be compared: not both are reliable")
    else:
        verdict = "agree" if gap <= 3 * std_error else "DISAGREE"
        print(f"the two {verdict}: {gap:.4f} apart, combined standard error {std_error:.4f} (3 are allowed)")

    exports = {name: osds.to_inference_data() for name, osds in runs.items()}
    plot({name: idata["posterior"] for name, idata in exports.items()}, args.plot)
    print(f"wrote {args.plot}")
    if args.netcdf is not None:
        exports["non-centred"].to_netcdf(args.netcdf)
        print(f"wrote {args.netcdf}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Eight schools in two parametrisations")
    parser.add_argument("--num-samples", type=int, default=1000, help="posterior draws per chain")
    parser.add_argument("--num-iterations", type=int, default=1000, help="optimiser steps at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", default="eight_schools.png", help="where the picture goes")
    parser.add_argument("--netcdf", help="also save the non-centred InferenceData there")
    parser.add_argument("--smoke-test", action="store_true", help="a tiny run; its numbers mean nothing")
    args = parser.parse_args()
    if args.smoke_test:
        args.num_samples, args.num_iterations = 50, 40
    main(args)

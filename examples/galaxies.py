"""
Galaxies: a mixture, and labels that trade places
=================================================

The velocities of 82 galaxies fall into groups. How many? Normal mixtures with two and three components, whose
memberships are summed out and whose labels mean nothing: every permutation of three components is a mode of its own,
so a posterior with three groups has six times as much mass as a sampler sees that sits in one of them.

This is the data set on which that was noticed. Chib (1995) published the log evidences -240.464, -228.620 and -224.138
from a Gibbs sampler that stayed in one mode; Neal (1999) pointed out that log 2 and log 6 were missing in the first
two, and something else in the third. Averages of the likelihood over 10^8 draws of the prior give -239.76, -226.84 and
-226.80. ``OSDS`` finds that components may trade places, trains on one order of them, and gives them all their places
back.

Data: Postman, Huchra and Geller (1986), by way of Roeder (1990).
"""

import argparse
import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch

from pyro_osds import OSDS, compare_evidence

DATA = Path(__file__).parent / "data" / "galaxies.csv"
# Name: number of components, whether they have one variance, average over prior draws, Chib's value.
MODELS = {
    "two, one variance": (2, True, -239.76, -240.464),
    "three, one variance": (3, True, -226.84, -228.620),
    "three, own variances": (3, False, -226.80, -224.138),
}


def mixture(velocity, num_components, one_variance):
    weight = pyro.sample("weight", dist.Dirichlet(torch.ones(num_components)))
    if one_variance:
        variance = pyro.sample("variance", dist.InverseGamma(3.0, 20.0)).expand(num_components)
    with pyro.plate("component", num_components):
        mean = pyro.sample("mean", dist.Normal(20.0, 10.0))
        if not one_variance:
            variance = pyro.sample("variance", dist.InverseGamma(3.0, 20.0))
    with pyro.plate("galaxy", len(velocity)):
        member = pyro.sample("member", dist.Categorical(weight))
        pyro.sample("velocity", dist.Normal(mean[member], variance[member].sqrt()), obs=velocity)


def load():
    """Velocities in thousands of kilometres per second."""
    return torch.tensor(np.loadtxt(DATA, skiprows=1) / 1000.0, dtype=torch.float32)


def densities(samples, points):
    """The density of the mixture at points ``(P,)`` for each draw, ``(S, P)``."""
    variance = samples["variance"].reshape(len(samples["mean"]), -1).expand_as(samples["mean"])
    components = dist.Normal(samples["mean"][..., None], variance.sqrt()[..., None])

    return (components.log_prob(points).exp() * samples["weight"][..., None]).sum(1)


def plot(velocity, samples):
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    points = torch.linspace(5.0, 38.0, 300)
    low, median, high = densities(samples, points).quantile(torch.tensor([0.05, 0.5, 0.95]), dim=0)
    left.hist(velocity.numpy(), bins=45, density=True, color="0.8")
    left.fill_between(points, low, high, alpha=0.4)
    left.plot(points, median)
    left.set(xlabel="velocity (1000 km/s)", ylabel="density", title="median and 90 % interval of the density")
    for label, mean in enumerate(samples["mean"].T):
        right.hist(mean.numpy(), bins=80, range=(5.0, 38.0), histtype="step", density=True, label=f"mean[{label}]")
    right.set(xlabel="mean (1000 km/s)", title="every label has been everywhere")
    right.legend()

    return figure


def main(args):
    velocity = load()[:: args.every]
    pyro.set_rng_seed(args.seed)  # once: the errors of the runs must be independent
    runs = {}
    for name in list(MODELS)[: args.num_models]:
        num_components, one_variance, _, _ = MODELS[name]
        runs[name] = OSDS(mixture, **args.options)
        runs[name].run(velocity, num_components, one_variance)

    print(compare_evidence(runs).drop(columns=["pareto_k", "flag"]).to_string(float_format="{:.4f}".format))
    for name, osds in runs.items():
        num_components, _, average, chib = MODELS[name]
        print(
            f"{name}: log evidence {osds.log_evidence:.3f} +- {osds.log_evidence_se:.3f}; over prior draws {average}; "
            f"Chib {chib}, and with log {num_components}! {chib + math.log(math.factorial(num_components)):.3f}"
        )
        for reason in osds.evidence.reasons:
            print(f"  NOT reliable: {reason}")
    figure = plot(velocity, runs[name].get_samples())
    if args.plot is not None:
        figure.savefig(args.plot, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Galaxies: the evidence of normal mixtures")
    parser.add_argument("--num-samples", type=int, default=1000, help="posterior draws per chain")
    parser.add_argument("--num-iterations", type=int, default=1000, help="optimiser steps at most")
    parser.add_argument("--num-models", type=int, default=3, help="how many of the models")
    parser.add_argument("--every", type=int, default=1, help="take one galaxy of so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", help="where the picture goes")
    parser.add_argument("--smoke-test", action="store_true", help="a tiny run; its numbers mean nothing")
    args = parser.parse_args()
    args.options = {"num_samples": args.num_samples, "num_chains": 4, "num_iterations": args.num_iterations}
    if args.smoke_test:
        args.options = {"num_samples": 50, "num_iterations": 10, "num_particles": 8, "escalate": False}
        args.num_models, args.every = 1, 4
    main(args)

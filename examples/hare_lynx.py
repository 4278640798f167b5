r"""
Hare and lynx: a differential equation
======================================

Pelts of hares and lynxes that the Hudson's Bay Company collected from 1900 to 1920. Lotka and Volterra's equations for
the two populations,

.. math:: \dot h = (\alpha - \beta l) h, \qquad \dot l = (\delta h - \gamma) l,

are solved inside the model, step by step in a Python loop, which is recorded once as a graph of tensor operations. The
evidence holds them against the dull answer that each species varies about a level of its own.

In the logarithms of the populations the system is Hamiltonian and separable, so that the leapfrog method solves it and
keeps it on its orbit; the largest error against a Runge-Kutta method of high order is printed. So are Stan's means of
the rates (Carpenter 2018), which had somewhat other priors.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy.integrate import solve_ivp

from pyro_osds import OSDS, compare_evidence

DATA = Path(__file__).parent / "data" / "hare_lynx.csv"
SPECIES = ("hare", "lynx")
STAN = {"growth": 0.545, "eaten": 0.028, "starving": 0.803, "fed": 0.024}


def log_populations(growth, eaten, starving, fed, start, num_years, steps_per_year):
    """Logarithms of both populations at the start of each year, ``(..., num_years, 2)``."""
    step = 1.0 / steps_per_year
    hare, lynx = start[..., 0], start[..., 1]
    years = [(hare, lynx)]
    for _ in range(num_years - 1):
        hare = hare + 0.5 * step * (growth - eaten * lynx.exp())
        for _ in range(steps_per_year):
            lynx = lynx + step * (fed * hare.exp() - starving)
            hare = hare + step * (growth - eaten * lynx.exp())
        # The last of these was half a step too long.
        hare = hare - 0.5 * step * (growth - eaten * lynx.exp())
        years.append((hare, lynx))

    return torch.stack([torch.stack(year, -1) for year in years], -2)


def observe(pelts, log_expected):
    with pyro.plate("species", 2, dim=-1):
        noise = pyro.sample("noise", dist.LogNormal(-1.0, 1.0))
        with pyro.plate("year", len(pelts), dim=-2):
            pyro.sample("pelts", dist.LogNormal(log_expected, noise), obs=pelts)


def predator_prey(pelts, steps_per_year):
    growth = pyro.sample("growth", dist.LogNormal(-0.5, 0.7))
    eaten = pyro.sample("eaten", dist.LogNormal(-3.5, 0.7))
    starving = pyro.sample("starving", dist.LogNormal(-0.5, 0.7))
    fed = pyro.sample("fed", dist.LogNormal(-3.5, 0.7))
    start = pyro.sample("start", dist.Normal(2.3, 1.0).expand([2]).to_event(1))
    observe(pelts, log_populations(growth, eaten, starving, fed, start, len(pelts), steps_per_year))


def levels(pelts, steps_per_year):
    level = pyro.sample("level", dist.Normal(2.3, 1.0).expand([2]).to_event(1))
    observe(pelts, level)


def load(num_years):
    """Years, and pelts in thousands, hares first, ``(num_years, 2)``."""
    table = np.loadtxt(DATA, delimiter=",", skiprows=1)[:num_years]
    return table[:, 0], torch.tensor(table[:, [2, 1]], dtype=torch.float32)


def solutions(samples, num_years, steps_per_year):
    rates = [samples[name] for name in ("growth", "eaten", "starving", "fed")]
    return log_populations(*rates, samples["start"], num_years, steps_per_year)


def solver_error(samples, num_years, steps_per_year):
    """The largest error of a logarithm, at the posterior mean of all unknowns."""
    mean = {name: value.double().mean(0) for name, value in samples.items()}
    growth, eaten, starving, fed = (mean[name].item() for name in STAN)

    def slope(time, state):
        return [growth - eaten * np.exp(state[1]), fed * np.exp(state[0]) - starving]

    times = np.arange(num_years)
    exact = solve_ivp(slope, (0, times[-1]), mean["start"].numpy(), "DOP853", times, rtol=1e-10, atol=1e-10).y.T
    return np.abs(exact - solutions(mean, num_years, steps_per_year).numpy()).max()


def plot(years, pelts, samples, steps_per_year):
    curves = solutions(samples, len(years), steps_per_year).exp()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for index, name in enumerate(SPECIES):
        low, median, high = curves[..., index].quantile(torch.tensor([0.05, 0.5, 0.95]), dim=0)
        left.fill_between(years, low, high, alpha=0.3, color=f"C{index}")
        left.plot(years, median, color=f"C{index}", label=name)
        left.plot(years, pelts[:, index], "o", color=f"C{index}", markersize=4)
    left.set(xlabel="year", ylabel="pelts (thousands)", title="median and 90 % interval of the populations")
    left.set_xticks(years[::5])
    left.legend()
    right.plot(*curves[:60].permute(2, 1, 0).numpy(), color="0.6", linewidth=0.6)
    right.plot(*pelts.T.numpy(), "o-", color="C3", markersize=3, linewidth=0.5)
    right.set(xlabel="hares (thousands)", ylabel="lynxes (thousands)", title="60 draws, and the data")

    return figure


def main(args):
    years, pelts = load(args.num_years)
    pyro.set_rng_seed(args.seed)  # once: the errors of the runs must be independent
    runs = {}
    for model in (predator_prey, levels)[: args.num_models]:
        runs[model.__name__] = OSDS(model, **args.options)
        runs[model.__name__].run(pelts, args.steps_per_year)

    print(compare_evidence(runs).drop(columns=["pareto_k", "flag"]).to_string(float_format="{:.4f}".format))
    for name, osds in runs.items():
        print(f"{name}: log evidence {osds.log_evidence:.4f} +- {osds.log_evidence_se:.4f}")
        for reason in osds.evidence.reasons:
            print(f"  NOT reliable: {reason}")
    samples = runs["predator_prey"].get_samples(400)
    for name, mean in STAN.items():
        print(f"{name}: {samples[name].mean():.3f}, sd {samples[name].std():.3f}; Stan's mean {mean}")
    error = solver_error(samples, len(years), args.steps_per_year)
    print(f"largest error of the solver: {error:.4f} of a logarithm, posterior noise {samples['noise'].mean():.2f}")
    figure = plot(years, pelts, samples, args.steps_per_year)
    if args.plot is not None:
        figure.savefig(args.plot, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Hare and lynx: the evidence of a differential equation")
    parser.add_argument("--num-samples", type=int, default=1000, help="posterior draws per chain")
    parser.add_argument("--num-iterations", type=int, default=1000, help="optimiser steps at most")
    parser.add_argument("--num-years", type=int, default=21, help="the first years only")
    parser.add_argument("--num-models", type=int, default=2, help="how many of the models")
    parser.add_argument("--steps-per-year", type=int, default=8, help="steps of the solver in a year")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", help="where the picture goes")
    parser.add_argument("--smoke-test", action="store_true", help="a tiny run; its numbers mean nothing")
    args = parser.parse_args()
    args.options = {"num_samples": args.num_samples, "num_chains": 4, "num_iterations": args.num_iterations}
    if args.smoke_test:
        args.options = {"num_samples": 50, "num_iterations": 10, "num_particles": 8, "escalate": False}
        args.num_years, args.num_models, args.steps_per_year = 3, 1, 2
    main(args)

"""
The Nile: Gaussian processes, and a dam
=======================================

The yearly flow of the Nile at Aswan, 1871 to 1920 (Cobb 1978). Four Gaussian processes say how a year tells of
another: smoothly (squared exponential), roughly (exponential), not at all beyond one common level, or by the side of
1898 on which it lies, when the first dam was begun. Their evidences say which one foretold the data.

There are three hyperparameters at most, so each log evidence can be had by quadrature as well, and is printed beside
the one of the run. The bands of the figure are what the hyperparameters leave open of the mean.

It takes some minutes. This figure is of a run that is stored with the pages.

.. image:: /figures/nile.png
"""

# sphinx_gallery_thumbnail_path = "figures/nile.png"

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy.special import logsumexp

from pyro_osds import OSDS, compare_evidence

DATA = Path(__file__).parent / "data" / "nile.csv"
LEVEL = 10.0
DAM = 1898.5
PRIOR = {"noise": dist.HalfNormal(2.0), "amplitude": dist.HalfNormal(2.0), "lengthscale": dist.LogNormal(2.3, 1.0)}


def smooth(years, lengthscale):
    return (-0.5 * ((years[:, None] - years) / lengthscale).square()).exp()


def rough(years, lengthscale):
    return (-(years[:, None] - years).abs() / lengthscale).exp()


def dam(years):
    return ((years[:, None] > DAM) == (years > DAM)).to(years.dtype)


def one_level(years):
    return torch.ones(len(years), len(years), dtype=years.dtype)


KERNELS = {"smooth": smooth, "rough": rough, "dam": dam, "one level": one_level}


def process(years, flow, kernel):
    noise, amplitude = (pyro.sample(name, PRIOR[name]) for name in ("noise", "amplitude"))
    lengthscale = [pyro.sample("lengthscale", PRIOR["lengthscale"])] if kernel in (smooth, rough) else []
    covariance = amplitude.square() * kernel(years, *lengthscale) + noise.square() * torch.eye(len(years))
    pyro.sample("flow", dist.MultivariateNormal(torch.full_like(flow, LEVEL), covariance), obs=flow)


def load(num_years):
    """Years, and flows in units of 10^10 cubic metres."""
    years, flow = np.loadtxt(DATA, delimiter=",", skiprows=1)[:num_years].T
    return torch.tensor(years, dtype=torch.float32), torch.tensor(flow / 100.0, dtype=torch.float32)


# ---- exact log evidences ----


def quantiles(name, num_nodes):
    """Nodes at the quantiles of the prior, with the weights of Gauss and Legendre."""
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    prior = PRIOR[name]
    half = isinstance(prior, dist.HalfNormal)
    # The quantiles of a half normal are those of a normal above its median.
    u = torch.tensor(0.5 * (nodes + 1.0))
    normal = dist.Normal(torch.zeros((), dtype=u.dtype), 1.0).icdf(0.5 + 0.5 * u if half else u)
    values = prior.scale * normal if half else (prior.loc + prior.scale * normal).exp()

    return values.numpy(), np.log(0.5 * weights)


def exact(years, flow, kernel, num_nodes=80):
    """Log evidence by quadrature; one eigendecomposition for each lengthscale serves all variances."""
    years, residual = years.double(), flow.double().numpy() - LEVEL
    noise, log_noise_weight = quantiles("noise", num_nodes)
    amplitude, log_amplitude_weight = quantiles("amplitude", num_nodes)
    has_lengthscale = kernel in (smooth, rough)
    lengthscales = zip(*quantiles("lengthscale", num_nodes), strict=True) if has_lengthscale else [(None, 0.0)]
    terms = []
    for lengthscale, log_weight in lengthscales:
        matrix = kernel(years, lengthscale) if has_lengthscale else kernel(years)
        values, vectors = np.linalg.eigh(matrix.numpy())
        variance = (amplitude**2)[:, None, None] * values.clip(min=0.0) + (noise**2)[:, None]
        log_prob = -0.5 * ((vectors.T @ residual) ** 2 / variance + np.log(2.0 * np.pi * variance)).sum(-1)
        terms.append(logsumexp(log_prob + log_amplitude_weight[:, None] + log_noise_weight) + log_weight)

    return logsumexp(terms)


# ---- the picture ----


def levels(samples, years, flow, kernel):
    """The mean of the process given the data, for each draw, ``(S, N)``."""
    means = []
    for index in range(len(samples["noise"])):
        lengthscale = [samples["lengthscale"][index]] if "lengthscale" in samples else []
        signal = samples["amplitude"][index].square() * kernel(years, *lengthscale)
        noise = samples["noise"][index].square() * torch.eye(len(years))
        means.append(LEVEL + signal @ torch.linalg.solve(signal + noise, flow - LEVEL))

    return torch.stack(means)


def plot(runs, years, flow):
    figure, axes = plt.subplots(1, len(runs), figsize=(3.4 * len(runs), 3.4), layout="constrained", sharey=True)
    for axis, (name, osds) in zip(np.atleast_1d(axes), runs.items(), strict=True):
        mean = levels(osds.get_samples(200), years, flow, KERNELS[name])
        low, median, high = mean.quantile(torch.tensor([0.05, 0.5, 0.95]), dim=0)
        axis.plot(years, flow, ".", color="0.5")
        axis.fill_between(years, low, high, alpha=0.4)
        axis.plot(years, median)
        axis.set(title=f"{name}: {osds.log_evidence:.2f}", xlabel="year")
    np.atleast_1d(axes)[0].set_ylabel("flow ($10^{10}$ m$^3$)")

    return figure


def main(args):
    years, flow = load(args.num_years)
    pyro.set_rng_seed(args.seed)  # once: the errors of the runs must be independent
    runs = {}
    for name in list(KERNELS)[: args.num_models]:
        runs[name] = OSDS(process, **args.options)
        runs[name].run(years, flow, KERNELS[name])

    print(compare_evidence(runs).drop(columns=["pareto_k", "flag"]).to_string(float_format="{:.4f}".format))
    for name, osds in runs.items():
        truth = exact(years, flow, KERNELS[name])
        print(f"{name}: log evidence {osds.log_evidence:.4f} +- {osds.log_evidence_se:.4f}, quadrature {truth:.4f}")
        for reason in osds.evidence.reasons:
            print(f"  NOT reliable: {reason}")
    figure = plot(runs, years, flow)
    if args.plot is not None:
        figure.savefig(args.plot, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The Nile: the evidence of four Gaussian processes")
    parser.add_argument("--num-samples", type=int, default=1000, help="posterior draws per chain")
    parser.add_argument("--num-iterations", type=int, default=1000, help="optimiser steps at most")
    parser.add_argument("--num-years", type=int, default=50, help="the first years only")
    parser.add_argument("--num-models", type=int, default=4, help="how many of the models")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", help="where the picture goes")
    parser.add_argument("--smoke-test", action="store_true", help="a tiny run; its numbers mean nothing")
    args = parser.parse_args()
    args.options = {"num_samples": args.num_samples, "num_chains": 4, "num_iterations": args.num_iterations}
    if args.smoke_test:
        args.options = {"num_samples": 50, "num_iterations": 10, "num_particles": 8, "escalate": False}
        args.num_years, args.num_models = 10, 1
    main(args)

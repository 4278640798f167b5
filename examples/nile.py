"""
The Nile: Gaussian processes, and a dam
=======================================

The yearly flow of the Nile at Aswan, 1871 to 1920 (Cobb 1978). Four Gaussian processes say how the flows of two years
are related: by a smooth curve (squared exponential kernel), by a rough one (exponential kernel), by nothing but a
common level, or by whether both lie on the same side of 1898, when the first dam was begun. The log evidences say which
of the four predicted the data best.

There are three hyperparameters at most, so each log evidence can be had by quadrature as well, and is printed beside
the one of the run. The bands of the figure are what the hyperparameters leave open of the mean.

It takes some minutes. This figure is of a run that is stored with the pages.

.. image:: /figures/nile.png
"""

# sphinx_gallery_thumbnail_path = "figures/nile.png"

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy.special import logsumexp

from pyro_osds import OSDS, compare_evidence

# fmt: off
# 10^8 cubic metres a year, from 1871 on.
flow = [
    1120, 1160, 963, 1210, 1160, 1160, 813, 1230, 1370, 1140, 995, 935, 1110, 994, 1020, 960, 1180, 799, 958, 1140,
    1100, 1210, 1150, 1250, 1260, 1220, 1030, 1100, 774, 840, 874, 694, 940, 833, 701, 916, 692, 1020, 1050, 969,
    831, 726, 456, 824, 702, 1120, 1100, 832, 764, 821,
]
# fmt: on
NUM_YEARS = 50  # the first years only
flow = torch.tensor(flow[:NUM_YEARS]) / 100.0
years = torch.arange(1871.0, 1871.0 + NUM_YEARS)

# %%
# Four kernels, one model
# -----------------------

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


# %%
# Four runs
# ---------

pyro.set_rng_seed(0)  # once: the errors of the runs must be independent
runs = {}
for name, kernel in KERNELS.items():
    runs[name] = OSDS(process)
    runs[name].run(years, flow, kernel)

print(compare_evidence(runs).drop(columns=["pareto_k", "flag"]).to_string(float_format="{:.4f}".format))

# %%
# Beside quadrature
# -----------------


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


for name, osds in runs.items():
    truth = exact(years, flow, KERNELS[name])
    print(f"{name}: log evidence {osds.log_evidence:.4f} +- {osds.log_evidence_se:.4f}, quadrature {truth:.4f}")
    for reason in osds.evidence.reasons:
        print(f"  NOT reliable: {reason}")

# %%
# The picture
# -----------
#
# The mean of the process given the data, for two hundred draws of the hyperparameters.


def levels(samples, years, flow, kernel):
    """The mean of the process given the data, for each draw, ``(S, N)``."""
    means = []
    for index in range(len(samples["noise"])):
        lengthscale = [samples["lengthscale"][index]] if "lengthscale" in samples else []
        signal = samples["amplitude"][index].square() * kernel(years, *lengthscale)
        noise = samples["noise"][index].square() * torch.eye(len(years))
        means.append(LEVEL + signal @ torch.linalg.solve(signal + noise, flow - LEVEL))

    return torch.stack(means)


figure, axes = plt.subplots(
    1, len(runs), num="nile", figsize=(3.4 * len(runs), 3.4), layout="constrained", sharey=True, squeeze=False
)
for axis, (name, osds) in zip(axes[0], runs.items(), strict=True):
    mean = levels(osds.get_samples(200), years, flow, KERNELS[name])
    low, median, high = mean.quantile(torch.tensor([0.05, 0.5, 0.95]), dim=0)
    axis.plot(years, flow, ".", color="0.5")
    axis.fill_between(years, low, high, alpha=0.4)
    axis.plot(years, median)
    axis.set(title=f"{name}: {osds.log_evidence:.2f}", xlabel="year")
axes[0, 0].set_ylabel("flow ($10^{10}$ m$^3$)")
plt.show()

r"""
Radon in Minnesota: how much do counties have in common?
========================================================

Radon in 919 houses of 85 counties of Minnesota, the example of Gelman and Hill (2006). Should each county have a level
of its own, or all the same one, or something in between? Does the uranium in its soil foretell it? And how far does the
answer depend on the prior? The log Bayes factor for the uranium is drawn as a curve, over two orders of magnitude of
the scale of its prior.

House :math:`i` of county :math:`j` has the log radon

.. math:: y_{ij} \sim \mathcal N(\alpha_j + \beta x_{ij}, \sigma), \qquad
          \alpha_j \sim \mathcal N(\mu + \gamma u_j, \tau),

where :math:`x_{ij}` is 1 if it was measured on the first floor and 0 if in the basement, and :math:`u_j` is the log
uranium of the county. Everything that is normal can be integrated in closed form, which leaves an integral over
:math:`\sigma` and :math:`\tau`: the exact log evidence is printed beside each run.

.. image:: /figures/radon.png
   :alt: Log Bayes factor for the uranium over the scale of its prior, and levels of 85 counties
"""

# sphinx_gallery_thumbnail_path = "figures/radon.png"

import copy
import csv
import math
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy.linalg import helmert
from scipy.special import logsumexp

from pyro_osds import OSDS, compare_evidence

NUM_SCALES = 13  # of the prior of the uranium's effect
NUM_DRAWS = 20000  # of each flow, for the curve
NUM_NODES = 120  # of the quadrature, each way

# %%
# The data
# --------
#
# The file is ``radon.csv`` beside this notebook, or in ``examples/data`` of the source distribution. As in the book, a
# reading of zero counts as 0.1 pCi/L.

places = [Path(folder) / "radon.csv" for folder in (".", "data", "examples/data")]
with next(path for path in places if path.exists()).open() as file:
    houses = list(csv.DictReader(file))
names = list(dict.fromkeys(house["county"] for house in houses))
county = np.array([names.index(house["county"]) for house in houses])
floor = np.array([float(house["floor"]) for house in houses])
log_radon = np.log([max(float(house["activity"]), 0.1) for house in houses])
uranium = np.log([float(houses[np.argmax(county == j)]["uranium_ppm"]) for j in range(len(names))])
num_houses = np.bincount(county)
print(f"{len(houses)} houses in {len(names)} counties, {num_houses.min()} to {num_houses.max()} in each")

# %%
# The levels of the counties, integrated
# --------------------------------------
#
# With its 85 levels :math:`\alpha_j` the model has 90 unknowns. Levels are normal and so are houses, so the levels can
# be integrated by hand, which leaves the log evidence as it is and makes each run a matter of seconds. Rotate the
# houses of a county so that the first axis is their mean: a rotation keeps densities. The first rotated house has the
# variance :math:`\sigma^2 + n_j \tau^2`, the others have :math:`\sigma^2`, and all are independent.


def rotated(values):
    """Values of houses, ``(N,)``, with those of each county rotated."""
    result = np.empty(len(values))
    for j, count in enumerate(num_houses):
        result[county == j] = helmert(count, full=True) @ values[county == j]

    return result


y, x, ones = rotated(log_radon), rotated(floor), rotated(np.ones(len(houses)))  # ones: sqrt(n_j), then zeros
u = ones * uranium[county]
data = [torch.tensor(column, dtype=torch.float32) for column in (y, x, ones, u)]

# %%
# Six models
# ----------
#
# They differ in the spread :math:`\tau` of the counties, and in what foretells their levels: ``tau`` is 0 where all
# counties are pooled, 2 where each stands alone, and a latent in between.


def radon(y, x, ones, u, uranium_scale=0.0, floor_scale=1.0, tau=None):
    loc = torch.zeros(())
    if tau != 2.0:
        loc = loc + pyro.sample("base", dist.Normal(0.0, 2.0)) * ones
    if floor_scale:
        loc = loc + pyro.sample("first_floor", dist.Normal(0.0, floor_scale)) * x
    if uranium_scale:
        loc = loc + pyro.sample("uranium", dist.Normal(0.0, uranium_scale)) * u
    noise = pyro.sample("noise", dist.Uniform(0.1, 2.0))
    spread = pyro.sample("spread", dist.HalfCauchy(1.0)) if tau is None else tau
    with pyro.plate("house", len(y)):
        pyro.sample("y", dist.Normal(loc, torch.hypot(noise + 0.0 * ones, spread * ones)), obs=y)


MODELS = {
    "complete pooling": {"tau": 0.0},
    "no pooling": {"tau": 2.0},
    "partial pooling": {},
    "no floor": {"floor_scale": 0.0},
    "uranium": {"uranium_scale": 1.0},
    "uranium, pooled": {"uranium_scale": 1.0, "tau": 0.0},
}

# %%
# The comparison
# --------------

pyro.set_rng_seed(0)  # once: the errors of the runs must be independent
runs = {}
for name, options in MODELS.items():
    runs[name] = OSDS(radon, warm_start=True)
    runs[name].run(*data, **options)
table = compare_evidence(runs)
columns = ["log_evidence", "std_error", "log_bayes_factor", "reliable"]
print(table[columns].to_string(float_format="{:.3f}".format))

# %%
# Exact log evidences
# -------------------
#
# Given :math:`\sigma` and :math:`\tau`, the rotated houses are normal with the variances above, plus a term for each
# normal prior: three at most. What is left is an integral over a square, by Gauss-Legendre quadrature.


def exact(uranium_scale=0.0, floor_scale=1.0, tau=None):
    nodes, weights = np.polynomial.legendre.leggauss(NUM_NODES)
    sigma, log_sigma = 0.85 + 0.35 * nodes, np.log(0.35 * weights / 1.9)  # from 0.5 to 1.2: the posterior lies inside
    spread, log_spread = 0.6 + 0.6 * nodes, np.log(0.6 * weights)
    log_spread = log_spread + math.log(2.0 / math.pi) - np.log1p(spread**2)
    if tau is not None:
        spread, log_spread = np.array([tau]), np.zeros(1)
    scales = [2.0 * (tau != 2.0), floor_scale, uranium_scale]
    design = np.column_stack([column * scale for column, scale in zip((ones, x, u), scales, strict=True) if scale])
    results = []
    for s, log_s in zip(sigma, log_sigma, strict=True):
        for t, log_t in zip(spread, log_spread, strict=True):
            variance = s**2 + (t * ones) ** 2
            inner = np.eye(design.shape[1]) + design.T @ (design / variance[:, None])
            projected = design.T @ (y / variance)
            square = (y**2 / variance).sum() - projected @ np.linalg.solve(inner, projected)
            log_det = np.log(2.0 * math.pi * variance).sum() + np.linalg.slogdet(inner)[1]
            results.append(-0.5 * (square + log_det) + log_s + log_t)

    return logsumexp(results)


truth = {name: exact(**options) for name, options in MODELS.items()}
for name, osds in runs.items():
    evidence = osds.evidence
    print(f"{name}: log evidence {evidence.log_evidence:.4f} +- {evidence.std_error:.4f}, exact {truth[name]:.4f}")
    for reason in evidence.reasons:
        print(f"  NOT reliable: {reason}")

# %%
# The uranium of the soil explains most of what counties differ by: given it, one line for all of them is only 1.4 nats
# worse than levels of their own. Without it, levels of their own are worth 39 nats over one level for all, and levels
# that have nothing in common are 102 nats worse than those. The floor is worth 43 nats.
#
# Prior sensitivity, as a curve
# -----------------------------
#
# The effect :math:`\gamma` of the uranium has a normal prior with scale :math:`s`, 1 so far. Two further runs, for
# :math:`s` of 0.1 and 10, start from the flow of that one. In between no run is needed: a draw of the flow with weight
# :math:`w` has under another prior the weight :math:`w \, p_s(\gamma) / p(\gamma)`, so that the same draws give each
# point of the curve, with a standard error. The draws are those of the next wider prior: the other way round, the
# weights of few draws far out would grow without bound.

scales = np.logspace(-1.0, 1.0, NUM_SCALES)
osds, drawn = copy.deepcopy(runs["uranium"]), {1.0: runs["uranium"].draw(NUM_DRAWS)}
for fitted in (0.1, 10.0):
    osds.run(*data, uranium_scale=fitted)
    drawn[fitted] = osds.draw(NUM_DRAWS)
    print(f"prior scale {fitted}: {osds.evidence}")


def reweighted(scale):
    """Log evidence for another scale of the prior and its standard error, from draws of the next wider one."""
    fitted = min(each for each in drawn if each > 0.99 * scale)
    effect = drawn[fitted].samples["uranium"].double()
    ratio = dist.Normal(0.0, scale).log_prob(effect) - dist.Normal(0.0, fitted).log_prob(effect)
    log_weights = drawn[fitted].log_weights.double() + ratio
    weights = (log_weights - log_weights.max()).exp()
    std_error = (weights.std() / weights.mean() / len(weights) ** 0.5).item()
    return (log_weights.logsumexp(0) - math.log(len(weights))).item(), std_error


start = time.perf_counter()
none = runs["partial pooling"]
curve = {}
for scale in scales:
    log_evidence, std_error = reweighted(scale)
    curve[scale] = log_evidence - none.log_evidence, math.hypot(std_error, none.log_evidence_se)
print(f"{len(scales)} points from the draws of three runs: {time.perf_counter() - start:.2f} s")
exact_curve = {scale: exact(uranium_scale=scale) - truth["partial pooling"] for scale in scales}
for scale, (factor, std_error) in curve.items():
    print(f"scale {scale:6.3f}: log Bayes factor {factor:.4f} +- {std_error:.4f}, exact {exact_curve[scale]:.4f}")

# %%
# The pictures
# ------------
#
# Left, the curve. A narrow prior forbids the effect that the data show; each factor of ten of a wide one costs log 10,
# or 2.3 nats. For the uranium to lose, the scale of its prior would have to be above fifty million. Right, what partial
# pooling does: the fewer houses a county has (small circles), the nearer is its level to the line.

figure, (left, right) = plt.subplots(1, 2, num="radon", figsize=(11, 4), layout="constrained")
left.plot(scales, list(exact_curve.values()), color="0.6", label="quadrature")
points, errors = np.array(list(curve.values())).T
left.errorbar(scales, points, 2.0 * errors, fmt="o", markersize=4, label="OSDS, two standard errors")
left.set(xscale="log", xlabel="scale of the prior of the uranium's effect", ylabel="log Bayes factor (nats)")
left.set_title("evidence for the uranium")
left.legend()

samples = {name: value.double().numpy() for name, value in runs["uranium"].get_samples(500).items()}
base, slope, first_floor, noise, spread = (
    samples[name][:, None] for name in ("base", "uranium", "first_floor", "noise", "spread")
)
# Given the rest, the level of a county is normal: its line and the mean of its houses, by their precisions.
mean_radon = np.bincount(county, log_radon) / num_houses
means = mean_radon - first_floor * np.bincount(county, floor) / num_houses
line = base + slope * uranium
share = num_houses * spread**2 / (num_houses * spread**2 + noise**2)
level = (share * means + (1.0 - share) * line).mean(0)
right.scatter(uranium, means.mean(0), s=2.0 * num_houses, facecolor="none", edgecolor="C1", label="mean of its houses")
right.plot(uranium, level, "o", color="C0", markersize=3, label="partial pooling")
order = np.argsort(uranium)
right.plot(uranium[order], line.mean(0)[order], color="0.6", label="line")
right.set(xlabel="log uranium of the county", ylabel="log radon in basements", title="levels of 85 counties")
right.legend()
plt.show()

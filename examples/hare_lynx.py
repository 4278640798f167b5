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

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy.integrate import solve_ivp

from pyro_osds import OSDS, compare_evidence

# fmt: off
# Thousands of pelts.
hare = [
    30.0, 47.2, 70.2, 77.4, 36.3, 20.6, 18.1, 21.4, 22.0, 25.4, 27.1, 40.3, 57.0, 76.6, 52.3, 19.5, 11.2, 7.6, 14.6,
    16.2, 24.7,
]
lynx = [
    4.0, 6.1, 9.8, 35.2, 59.4, 41.7, 19.0, 13.0, 8.3, 9.1, 7.4, 8.0, 12.3, 19.5, 45.7, 51.1, 29.7, 15.8, 9.7, 10.1,
    8.6,
]
# fmt: on
NUM_YEARS = 21  # the first years only
STEPS_PER_YEAR = 8  # of the solver
years = np.arange(1900, 1900 + NUM_YEARS)
pelts = torch.tensor([hare, lynx]).T[:NUM_YEARS]

# %%
# The solver
# ----------
#
# A plain Python loop. It is recorded once, and then replayed for thousands of points.


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


# %%
# Two models
# ----------
#
# Pelts are log-normal around the solution, or around a level.


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


# %%
# Run both
# --------

pyro.set_rng_seed(0)  # once: the errors of the runs must be independent
runs = {}
for model in (predator_prey, levels):
    runs[model.__name__] = OSDS(model)
    runs[model.__name__].run(pelts, STEPS_PER_YEAR)

print(compare_evidence(runs).drop(columns=["pareto_k", "flag"]).to_string(float_format="{:.4f}".format))
for name, osds in runs.items():
    print(f"{name}: log evidence {osds.log_evidence:.4f} +- {osds.log_evidence_se:.4f}")
    for reason in osds.evidence.reasons:
        print(f"  NOT reliable: {reason}")

# %%
# Beside Stan's means
# -------------------

STAN = {"growth": 0.545, "eaten": 0.028, "starving": 0.803, "fed": 0.024}
samples = runs["predator_prey"].get_samples(400)
for name, mean in STAN.items():
    print(f"{name}: {samples[name].mean():.3f}, sd {samples[name].std():.3f}; Stan's mean {mean}")

# %%
# Is the solver good enough?
# --------------------------
#
# Its largest error of a logarithm, at the posterior mean of all unknowns, beside the noise of the data.


def solutions(samples):
    rates = [samples[name] for name in STAN]
    return log_populations(*rates, samples["start"], NUM_YEARS, STEPS_PER_YEAR)


mean = {name: value.double().mean(0) for name, value in samples.items()}
growth, eaten, starving, fed = (mean[name].item() for name in STAN)


def slope(time, state):
    return [growth - eaten * np.exp(state[1]), fed * np.exp(state[0]) - starving]


times = np.arange(NUM_YEARS)
exact = solve_ivp(slope, (0, times[-1]), mean["start"].numpy(), "DOP853", times, rtol=1e-10, atol=1e-10).y.T
error = np.abs(exact - solutions(mean).numpy()).max()
print(f"largest error of the solver: {error:.4f} of a logarithm, posterior noise {samples['noise'].mean():.2f}")

# %%
# The picture
# -----------

curves = solutions(samples).exp()
figure, (left, right) = plt.subplots(1, 2, num="hare_lynx", figsize=(11, 4), layout="constrained")
for index, name in enumerate(("hare", "lynx")):
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
plt.show()

"""
Exoplanets: how many planets pull at a star?
============================================

A planet pulls its star back and forth, and a spectrograph sees it as a velocity that comes and goes with the planet's
period. Stars are restless, too: spots that turn with the star look like a planet of a metre per second. How many
planets there are is a question for the evidence. In 2017 teams of the field computed it for the same models and the
same simulated data, and their answers differed by factors of ten with one planet and of ten thousand with three
(Nelson et al. 2020, "Quantifying the Bayesian Evidence for a Planet in Radial Velocity Data").

Here are their first data set, 200 velocities, their model and their priors, with no planet and with one, whose period
is known from a periodogram; ``NUM_PLANETS = 2`` adds another one, and takes many minutes. Without a planet the evidence
is exact by quadrature: -488.0960. With one planet four quadratures by other means gave -441.584 with a standard error
of 0.007.

Three things make such a model easy to sample. The noise has a fixed covariance and an unknown jitter; in the
coordinates of the eigenvectors of the covariance the velocities are independent, and the jitter adds to the
eigenvalues. An eccentricity and its angle are two normals, pulled into the unit circle, so that nothing is undefined
for a circular orbit. The place of a planet on its orbit is an angle on a circle, cut where the posterior is not.

Data: EPRV3 Evidence Challenge, https://github.com/EPRV3EvidenceChallenge/Inputs, MIT licence.
"""

import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch

from pyro_osds import OSDS, compare_evidence

NUM_PLANETS = 1  # at most
EVERY = 1  # take one velocity of so many
TWO_PI = 2.0 * math.pi

# %%
# The data
# --------
#
# The table of times (days), velocities and stated errors (m/s) is ``rvs_1.txt`` beside this notebook or in
# ``examples/data/eprv3`` of the source distribution; where it is neither, it comes from the repository of the
# challenge, which needs a network.

ADDRESS = (
    "https://raw.githubusercontent.com/EPRV3EvidenceChallenge/Inputs/"
    "1a9b11e7ddc6865b4d236ed7ebae85135491c4f8/data/rvs_0001.txt"
)
places = [Path(folder) / "rvs_1.txt" for folder in (".", "data/eprv3", "examples/data/eprv3")]
found = [path for path in places if path.exists()]
time, velocity, error = torch.tensor(np.loadtxt(found[0] if found else ADDRESS))[::EVERY].T

# Ranges of the periods of three planets, days.
periods = torch.tensor([[39.8107, 44.6684], [11.4815, 12.8825], [10.0, 10.7152]], dtype=torch.float64)

# %%
# Rotated coordinates
# -------------------
#
# In the coordinates of the eigenvectors of the known part of the noise, spots and stated errors, the velocities are
# independent.

dt = time[:, None] - time
spots = 3.0 * (-0.5 * ((math.pi * dt / 20.0).sin().square() / 0.25 + dt.square() / 2500.0)).exp()
variance, rotation = torch.linalg.eigh(spots + error.square().diag())
data = (time - time.mean(), velocity @ rotation, variance, rotation)

# %%
# The model
# ---------
#
# Kepler's equation is solved inside the model, by four Halley steps without a gradient and a Newton step with one,
# that of the implicit function.

# Eccentricities have a Rayleigh distribution of this scale, that ends at 1; and what lies beyond.
ECC_SCALE, ECC_BEYOND = 0.2, math.exp(-0.5 / 0.2**2)


def radial_velocity(time, period, amplitude, longitude, k, h):
    """The star's velocity by one planet, ``(T,)``; k = e cos w and h = e sin w.

    Kepler's equation, F - k sin F + h cos F = longitude, by four Halley steps without a gradient and a Newton step
    with one, that of the implicit function.
    """
    longitude = TWO_PI * time / period + longitude

    def kepler(angle):
        curve = k * angle.sin() - h * angle.cos()
        return angle - curve - longitude, 1.0 - k * angle.cos() - h * angle.sin(), curve

    with torch.no_grad():
        side = k * longitude.sin() - h * longitude.cos()
        angle = longitude + 0.85 * (k.square() + h.square()).sqrt() * side.sign()
        for _ in range(4):
            residual, slope, curve = kepler(angle)
            angle = angle - residual * slope / (slope.square() - 0.5 * residual * curve)
    residual, slope, _ = kepler(angle)
    angle = angle - residual / slope.detach()
    beta = 1.0 / (1.0 + (1.0 - k.square() - h.square()).sqrt())
    place = (1.0 - beta * h.square()) * angle.cos() + beta * h * k * angle.sin() - k

    return amplitude * (place / (1.0 - k * angle.cos() - h * angle.sin()) + k)


def model(time, velocity, variance, rotation, periods):
    """Velocities ``(T,)`` in rotated coordinates, and planets with periods in the ranges ``(planets, 2)``."""
    offset = pyro.sample("offset", dist.Uniform(-1000.0, 1000.0))
    jitter = pyro.sample("log1p_jitter", dist.Uniform(0.0, math.log(100.0))).expm1()
    mean = offset * torch.ones_like(time)
    for number, (low, high) in enumerate(periods.log(), start=1):
        period = pyro.sample(f"log_period_{number}", dist.Uniform(low, high)).exp()
        amplitude = pyro.sample(f"log1p_amplitude_{number}", dist.Uniform(0.0, math.log(1000.0))).expm1()
        longitude = pyro.sample(f"longitude_{number}", dist.Uniform(0.0, TWO_PI))
        x, y = pyro.sample(f"shape_{number}", dist.Normal(0.0, 1.0).expand([2]).to_event(1)).unbind(-1)
        half = 0.5 * (x.square() + y.square()) + 1e-12
        ratio = ECC_SCALE * (-((1.0 - ECC_BEYOND) * (-half).expm1()).log1p() / half).sqrt()
        mean = mean + radial_velocity(time, period, amplitude, longitude, ratio * x, ratio * y)
    noise = (variance + jitter.square()).sqrt()
    pyro.sample("velocity", dist.Normal(mean @ rotation, noise).to_event(1), obs=velocity)


# %%
# The runs
# --------

pyro.set_rng_seed(0)  # once: the errors of the runs must be independent
runs = {}
for planets in range(NUM_PLANETS + 1):
    runs[planets] = OSDS(model)
    runs[planets].run(*data, periods[:planets])

table = compare_evidence({f"{planets} planets": osds for planets, osds in runs.items()})
print(table.drop(columns=["pareto_k", "flag"]).to_string(float_format="{:.4f}".format))

# %%
# Beside what was published
# -------------------------

# By number of planets: lowest, median and highest of 14 published log evidences (Monte Carlo, all sampling methods).
PUBLISHED = {0: (-489.77, -488.10, -487.74), 1: (-445.42, -441.31, -412.38), 2: (-398.48, -389.88, -378.29)}
for planets, osds in runs.items():
    low, median, high = PUBLISHED[planets]
    print(
        f"{planets} planets: log evidence {osds.log_evidence:.4f} +- {osds.log_evidence_se:.4f}; "
        f"published {low} to {high}, median {median}"
    )
    for reason in osds.evidence.reasons:
        print(f"  NOT reliable: {reason}")

# %%
# Beside quadrature
# -----------------


def no_planet(velocity, variance, rotation, num_points=20001):
    """The exact log evidence without a planet: the offset in closed form, the jitter by the trapezoidal rule."""
    variance = variance + torch.linspace(0.0, math.log(100.0), num_points).double().expm1().square()[:, None]
    constant = rotation.sum(0)
    precision, product = (constant.square() / variance).sum(-1), (constant * velocity / variance).sum(-1)
    chi_square = (velocity.square() / variance).sum(-1) - product.square() / precision
    log_norm = (TWO_PI * variance).log().sum(-1) + (precision / TWO_PI).log()
    log_density = -0.5 * (chi_square + log_norm) - math.log(2000.0)
    highest = log_density.max()
    integral = torch.trapezoid((log_density - highest).exp(), dx=1.0 / (num_points - 1))

    return (highest + integral.log()).item()


exact = no_planet(*data[1:])
print(f"log evidence by quadrature, without a planet {exact:.4f}, with one -441.584 +- 0.007")

# %%
# The picture
# -----------

figure, (left, right) = plt.subplots(1, 2, num="exoplanet", figsize=(11, 4), layout="constrained")
for planets, osds in runs.items():
    samples = osds.get_samples()
    for number in range(1, planets + 1):
        period, amplitude = samples[f"log_period_{number}"].exp(), samples[f"log1p_amplitude_{number}"].expm1()
        left.plot(period, amplitude, ".", markersize=2, label=f"planet {number} of {planets}")
left.set(xlabel="period (days)", ylabel="amplitude (m/s)", title="posterior draws", xscale="log")
left.legend(markerscale=6)
for planets, osds in runs.items():
    low, median, high = (value - osds.log_evidence for value in PUBLISHED[planets])
    published = right.plot([planets, planets], [low, high], color="0.7", linewidth=6)
    medians = right.plot(planets, median, "k_", markersize=14)
    ours = right.errorbar(planets, 0.0, 2 * osds.log_evidence_se, fmt="C0o")
right.legend([*published, *medians, ours], ["published", "their median", "here, 2 standard errors"])
right.set(xlabel="planets", xticks=list(runs), ylabel="nats from our log evidence", title="log evidences")
plt.show()

"""
Exoplanets: how many planets pull at a star?
============================================

A planet pulls its star back and forth, and a spectrograph sees it as a velocity that comes and goes with the planet's
period. Stars are restless, too: spots that turn with the star look like a planet of a metre per second. How many
planets there are is a question for the evidence. In 2017 teams of the field computed it for the same models and the
same simulated data, and their answers differed by factors of ten with one planet and of ten thousand with three
(Nelson et al. 2020, "Quantifying the Bayesian Evidence for a Planet in Radial Velocity Data").

Here are their first data set, 200 velocities, their model and their priors, with no planet and with one, whose period
is known from a periodogram; ``--num-planets 2`` adds another one, and takes many minutes. Without a planet the evidence
is exact by quadrature: -488.0960. With one planet four quadratures by other means gave -441.584 with a standard error
of 0.007.

Three things make such a model easy to sample. The noise has a fixed covariance and an unknown jitter; in the
coordinates of the eigenvectors of the covariance the velocities are independent, and the jitter adds to the
eigenvalues. An eccentricity and its angle are two normals, pulled into the unit circle, so that nothing is undefined
for a circular orbit. The place of a planet on its orbit is an angle on a circle, cut where the posterior is not.

Data: EPRV3 Evidence Challenge, <https://github.com/EPRV3EvidenceChallenge/Inputs>, MIT licence.
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

DATA = Path(__file__).parent / "data" / "eprv3"
TWO_PI = 2.0 * math.pi
# Eccentricities have a Rayleigh distribution of this scale, that ends at 1; and what lies beyond.
ECC_SCALE, ECC_BEYOND = 0.2, math.exp(-0.5 / 0.2**2)
# By number of planets: lowest, median and highest of 14 published log evidences (Monte Carlo, all sampling methods).
PUBLISHED = {0: (-489.77, -488.10, -487.74), 1: (-445.42, -441.31, -412.38), 2: (-398.48, -389.88, -378.29)}


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


def load(every):
    """Times from their middle, rotated velocities, eigenvalues and eigenvectors of the noise, ranges of the periods."""
    time, velocity, error = torch.tensor(np.loadtxt(DATA / "rvs_1.txt"))[::every].T
    periods = torch.tensor(np.loadtxt(DATA / "pb_1.txt", delimiter=",", usecols=(2, 3)))
    dt = time[:, None] - time
    spots = 3.0 * (-0.5 * ((math.pi * dt / 20.0).sin().square() / 0.25 + dt.square() / 2500.0)).exp()
    variance, rotation = torch.linalg.eigh(spots + error.square().diag())

    return time - time.mean(), velocity @ rotation, variance, rotation, periods


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


def plot(runs):
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
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

    return figure


def main(args):
    time, velocity, variance, rotation, periods = load(args.every)
    pyro.set_rng_seed(args.seed)  # once: the errors of the runs must be independent
    runs = {}
    for planets in range(args.num_planets + 1):
        runs[planets] = OSDS(model, **args.options)
        runs[planets].run(time, velocity, variance, rotation, periods[:planets])

    table = compare_evidence({f"{planets} planets": osds for planets, osds in runs.items()})
    print(table.drop(columns=["pareto_k", "flag"]).to_string(float_format="{:.4f}".format))
    for planets, osds in runs.items():
        low, median, high = PUBLISHED[planets]
        print(
            f"{planets} planets: log evidence {osds.log_evidence:.4f} +- {osds.log_evidence_se:.4f}; "
            f"published {low} to {high}, median {median}"
        )
        for reason in osds.evidence.reasons:
            print(f"  NOT reliable: {reason}")
    exact = no_planet(velocity, variance, rotation)
    print(f"log evidence by quadrature, without a planet {exact:.4f}, with one -441.584 +- 0.007")
    figure = plot(runs)
    if args.plot is not None:
        figure.savefig(args.plot, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Exoplanets: how many planets pull at a star?")
    parser.add_argument("--num-samples", type=int, default=1000, help="posterior draws per chain")
    parser.add_argument("--num-planets", type=int, default=1, choices=(0, 1, 2), help="planets at most")
    parser.add_argument("--every", type=int, default=1, help="take one velocity of so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", help="where the picture goes")
    parser.add_argument("--smoke-test", action="store_true", help="a tiny run; its numbers mean nothing")
    args = parser.parse_args()
    args.options = {"num_samples": args.num_samples, "num_chains": 4}
    if args.smoke_test:
        args.options = {"num_samples": 50, "num_iterations": 10, "num_particles": 8, "escalate": False}
        args.num_planets, args.every = 1, 4
    main(args)

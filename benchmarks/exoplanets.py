"""How many planets? The evidence challenge of extreme precision radial velocities, with 0, 1 and 2 planets.

    python benchmarks/exoplanets.py [--sets 1 2 3] [--planets 0 1 2] [--periods narrow wide] [--seeds 0] [--jobs 2]
                                    [--max-time 600] [--out FILE]
    python benchmarks/exoplanets.py --report [--out FILE]

Teams computed the evidence of the same models and the same simulated data (Nelson et al. 2020, Astronomical Journal
159, 73), and differed by factors of ten to ten thousand. Each run is a fit with the default settings, and a line of
FILE; runs that FILE has are not repeated. `--report` writes the table to docs/evidence.md, beside the spread of what
the teams published, and runs nothing. Without a planet the log evidence is exact, by quadrature.

The model: velocities are an offset, the planets' motions and correlated noise,

    v ~ Normal(C + sum_j K_j (cos(w_j + nu_j) + e_j cos w_j), S),
    S = 3 exp(-[sin^2(pi dt / 20) / 0.25 + dt^2 / 2500] / 2) + diag(sigma^2) + J^2 1,

with periods log-uniform, K and the jitter J of density 1 / (1 + x) up to 999 and 99, e of Rayleigh(0.2) below 1, angles
uniform and C uniform. J^2 only adds to the eigenvalues of the rest of S: in the coordinates of its eigenvectors
velocities are independent. (e cos w, e sin w) are two normals, pulled into the unit circle; the other angle is the mean
longitude at the middle of the observations, which is known where e is small and where w is not.
"""

import argparse
import csv
import math
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from document import table, write_block
from runs import Record, run_all, stored
from torch import Tensor

from pyro_osds import OSDS

DATA = Path(__file__).parent / "data" / "eprv3"
OUT = Path(__file__).parent / "results" / "exoplanets.jsonl"
TWO_PI = 2.0 * math.pi
# Scale of the eccentricity, and how much of a Rayleigh distribution lies at 1 and beyond.
ECC_SCALE, ECC_BEYOND = 0.2, math.exp(-0.5 / 0.2**2)
WIDE = (1.25, 1e4)
# Halley steps of Kepler's equation: rounding is all that is left of the error up to an eccentricity of 0.99.
NUM_STEPS = 4
# Four quadratures by other means, for one planet with a narrow period: value and standard error.
REFERENCE = {(1, 1, "narrow"): (-441.584, 0.007), (2, 1, "narrow"): (-380.805, 0.007)}


class Velocities:
    """Velocities in the coordinates of the eigenvectors of their fixed covariance.

    Arguments:
        time: Days, `(T,)`.
        velocity: Metres per second, `(T,)`.
        error: Their stated standard errors, `(T,)`.
    """

    def __init__(self, time: Tensor, velocity: Tensor, error: Tensor) -> None:
        dt = time[:, None] - time
        kernel = 3.0 * (-0.5 * ((math.pi * dt / 20.0).sin().square() / 0.25 + dt.square() / 2500.0)).exp()
        self.variance, self.rotation = torch.linalg.eigh(kernel + error.square().diag())
        self.rotated, self.constant = velocity @ self.rotation, self.rotation.sum(0)
        self.time = time - time.mean()


def load(number: int) -> Velocities:
    """A data set of the challenge, 1 to 3."""
    return Velocities(*torch.tensor(np.loadtxt(DATA / f"rvs_{number}.txt")).T)


def period_ranges(number: int, planets: int, periods: str) -> Tensor:
    """Shortest and longest period of each planet, `(planets, 2)`."""
    if periods == "wide":
        return torch.tensor([WIDE], dtype=torch.float64).expand(planets, 2)
    rows = [line.split(",")[2:] for line in (DATA / f"pb_{number}.txt").read_text().splitlines() if line]

    return torch.tensor([[float(bound) for bound in row] for row in rows], dtype=torch.float64)[:planets]


def radial_velocity(time: Tensor, period, amplitude, longitude, shape) -> Tensor:
    """The motion of the star by all planets, `(T,)`; arguments are `(planets,)`, the shape `(planets, 2)`.

    Kepler's equation in the eccentric longitude F, regular where e = 0: F - k sin F + h cos F = longitude at the time,
    with k = e cos w and h = e sin w. A last Newton step, with nothing but its residual differentiated, gives the
    implicit derivative.
    """
    period, amplitude, longitude = period[:, None], amplitude[:, None], longitude[:, None]
    k, h = shape[:, :1], shape[:, 1:]
    longitude = TWO_PI * time / period + longitude

    def kepler(angle):
        sin, cos = angle.sin(), angle.cos()
        curve = k * sin - h * cos
        return angle - curve - longitude, 1.0 - k * cos - h * sin, curve

    with torch.no_grad():
        side = k * longitude.sin() - h * longitude.cos()
        angle = longitude + 0.85 * (k.square() + h.square()).sqrt() * side.sign()
        for _ in range(NUM_STEPS):
            residual, slope, curve = kepler(angle)
            angle = angle - residual * slope / (slope.square() - 0.5 * residual * curve)
    residual, slope, _ = kepler(angle)
    angle = angle - residual / slope.detach()
    sin, cos = angle.sin(), angle.cos()
    beta = 1.0 / (1.0 + (1.0 - k.square() - h.square()).sqrt())
    place = (1.0 - beta * h.square()) * cos + beta * h * k * sin - k

    return (amplitude * (place / (1.0 - k * cos - h * sin) + k)).sum(0)


def inside_circle(normals: Tensor) -> Tensor:
    """Two standard normals `(.., 2)` as (e cos w, e sin w), e of a Rayleigh distribution that ends at 1."""
    half = 0.5 * normals.square().sum(-1, keepdim=True) + 1e-12

    return normals * ECC_SCALE * (-((1.0 - ECC_BEYOND) * (-half).expm1()).log1p() / half).sqrt()


def model(data: Velocities, ranges: Tensor) -> None:
    """So many planets as there are ranges of periods, `(planets, 2)`."""
    offset = pyro.sample("offset", dist.Uniform(-1000.0, 1000.0))
    jitter = pyro.sample("log1p_jitter", dist.Uniform(0.0, math.log(100.0))).expm1()
    mean = offset * data.constant
    if len(ranges):
        with pyro.plate("planet", len(ranges)):
            period = pyro.sample("log_period", dist.Uniform(*ranges.log().T)).exp()
            amplitude = pyro.sample("log1p_amplitude", dist.Uniform(0.0, math.log(1000.0))).expm1()
            longitude = pyro.sample("longitude", dist.Uniform(0.0, TWO_PI))
            normals = pyro.sample("shape", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        moved = radial_velocity(data.time, period, amplitude, longitude, inside_circle(normals))
        mean = mean + moved @ data.rotation
    noise = (data.variance + jitter.square()).sqrt()
    pyro.sample("velocity", dist.Normal(mean, noise).to_event(1), obs=data.rotated)


def without_planet(data: Velocities, num_points: int = 20_001) -> float:
    """The exact log evidence: the offset is integrated out in closed form, the jitter by the trapezoidal rule.

    The offset is known to a metre per second, so the ends of its prior at 1000 do not matter.
    """
    jitter = torch.linspace(0.0, math.log(100.0), num_points, dtype=torch.float64).expm1()
    variance = data.variance + jitter.square()[:, None]
    precision, product = (data.constant.square() / variance).sum(-1), (data.constant * data.rotated / variance).sum(-1)
    chi_square = (data.rotated.square() / variance).sum(-1) - product.square() / precision
    log_density = -0.5 * (chi_square + (TWO_PI * variance).log().sum(-1) + (precision / TWO_PI).log()) - math.log(
        2000.0
    )
    ends = torch.tensor([0.5, *[1.0] * (num_points - 2), 0.5], dtype=torch.float64)

    return (torch.logsumexp(log_density + ends.log(), 0) - math.log(num_points - 1)).item()


def measure(number: int, planets: int, periods: str, seed: int, max_time: float) -> Record:
    """One fit with the default settings."""
    pyro.set_rng_seed(seed)
    osds = OSDS(model, disable_progbar=True, max_time=max_time)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the verdict is in the record
        osds.run(load(number), period_ranges(number, planets, periods))
    evidence = osds.evidence

    return {
        "task": [number, planets, periods, seed, max_time],
        "log_evidence": evidence.log_evidence,
        "std_error": evidence.std_error,
        "reliable": evidence.reliable,
        "reasons": list(evidence.reasons),
        "backend": osds.backend,
        "seconds": round(time.perf_counter() - start, 1),
    }


def published(number: int, planets: int, periods: str) -> list[float]:
    """What the teams found, nats; approximations by Laplace and by criteria are left out of the file."""
    with (DATA / "published.csv").open() as file:
        return [
            float(row["log10_evidence"]) * math.log(10.0)
            for row in csv.DictReader(file)
            if (row["set"], row["planets"], row["periods"]) == (str(number), str(planets), periods)
        ]


def report(records: Sequence[Record]) -> str:
    """A row for each problem: all seeds, beside the reference and the teams."""
    runs = defaultdict(list)
    for record in records:
        runs[tuple(record["task"][:3])].append(record)
    rows = []
    for (number, planets, periods), found in sorted(
        runs.items(), key=lambda item: (item[0][1], item[0][2], item[0][0])
    ):
        values, teams = [record["log_evidence"] for record in found], published(number, planets, periods)
        known = REFERENCE.get((number, planets, periods), (without_planet(load(number)), 0.0) if not planets else None)
        rows.append(
            [
                number,
                planets,
                periods if planets else "",
                "" if known is None else f"{known[0]:.4f}" if known[1] == 0.0 else f"{known[0]:.3f} ± {known[1]:.3f}",
                f"{statistics.mean(values):.3f}",
                f"{max(record['std_error'] for record in found):.3f}",
                f"{max(values) - min(values):.3f}" if len(values) > 1 else "",
                f"{sum(record['reliable'] for record in found)} of {len(found)}",
                f"{statistics.median(record['seconds'] for record in found):.0f}",
                f"{min(teams):.2f} to {max(teams):.2f} ({statistics.median(teams):.2f})",
            ]
        )
    header = ["set", "planets", "periods", "reference", "log evidence", "its error", "range over seeds", "reliable"]

    return table([*header, "seconds", "teams: range (median)"], rows, "rrlrrrrrrr")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, nargs="+", choices=(1, 2, 3), default=[1, 2, 3])
    parser.add_argument("--planets", type=int, nargs="+", choices=(0, 1, 2), default=[0, 1, 2])
    parser.add_argument("--periods", nargs="+", choices=("narrow", "wide"), default=["narrow", "wide"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--max-time", type=float, default=600.0, help="seconds of a run, at most")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE")
    parser.add_argument("--report", action="store_true", help="write the table to the page, run nothing")
    args = parser.parse_args()
    if args.report:
        write_block("exoplanets", report(stored(args.out)))
        return
    # Without a planet there is no period.
    tasks = [
        (number, planets, periods, seed, args.max_time)
        for planets in args.planets
        for periods in (args.periods if planets else args.periods[:1])
        for number in args.sets
        for seed in args.seeds
    ]
    for record in run_all(measure, tasks, args.out, lambda one: tuple(one["task"]), args.jobs):
        print(*record["task"], f"{record['log_evidence']:.4f} +- {record['std_error']:.4f}", record["seconds"])
        for reason in record["reasons"]:
            print("  NOT reliable:", reason)


if __name__ == "__main__":
    main()

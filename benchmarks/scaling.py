"""How the cost of a run grows with dimensions, observations and draws: seconds, and the exponents that they follow.

    python benchmarks/scaling.py           # a few minutes
    python benchmarks/scaling.py --quick   # fewer and smaller sizes
    python benchmarks/scaling.py --run pines [--seed 0]   # instead: a whole run of one large model, default settings

Times are the median of a few repeats on one thread. An exponent is the slope of a line through logarithms; the one
between the two largest sizes says where it is going.
"""

import argparse
import math
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from large_models import (
    PINES_LOG_EVIDENCE,
    PINES_STD_ERROR,
    groups,
    hierarchy,
    hierarchy_log_evidence,
    log_gaussian_cox,
    logistic,
    pines,
    regression_data,
)

from pyro_osds import OSDS
from pyro_osds.explore.modes import Modes
from pyro_osds.explore.particles import Exploration
from pyro_osds.explore.survey import Survey
from pyro_osds.flow.base import standard_base
from pyro_osds.model import ModelTarget
from pyro_osds.target import log_prob_and_score
from pyro_osds.train.flows import FlowOptions
from pyro_osds.train.recipe import Recipe
from pyro_osds.train.trainer import Budget

REPEATS = 5
LARGE: dict[str, tuple[Callable[..., None], Callable[[], tuple[torch.Tensor, ...]]]] = {
    "pines": (log_gaussian_cox, pines),
    "small pines": (log_gaussian_cox, lambda: pines(20)),
    "hierarchy": (hierarchy, lambda: (groups(1000),)),
    "regression": (logistic, lambda: regression_data(100_000)),
}


def seconds(work: Callable[[], Any]) -> float:
    """Median seconds of a few calls after two that warm up."""
    times = []
    for _ in range(REPEATS + 2):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)

    return statistics.median(times[2:])


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """The slope of the least-squares line through the logarithms."""
    x, y = ([math.log(value) for value in values] for values in (sizes, times))

    return statistics.linear_regression(x, y).slope


def density(target: ModelTarget, num_points: int) -> float:
    """Seconds of log density and score of a batch."""
    z = 0.1 * torch.randn(num_points, target.dim)

    return seconds(lambda: log_prob_and_score(target.log_prob, z))


def training(target: ModelTarget, batch_size: int | None = None) -> float:
    """Seconds of an optimiser step, with default settings but for the batch size."""
    z = torch.randn(8, target.dim)
    exploration = Exploration(z, torch.zeros(8), torch.zeros(8), 1, 0, 1.0, 0)
    base = standard_base(torch.zeros(target.dim), 0.1 * torch.eye(target.dim))
    found = Survey(target, base, exploration, Modes(torch.zeros(8, dtype=torch.long), 0.0), 0)
    sizes = [site.stop - site.start for site in target.sites]
    budget = Budget() if batch_size is None else Budget(batch_size=batch_size)

    return seconds(Recipe(found, budget=budget, groups=sizes, options=FlowOptions(disable_progbar=True)).trainer.step)


def table(title: str, size_name: str, sizes: Sequence[int], columns: dict[str, list[float]]) -> None:
    """Print seconds by size, and the exponents."""
    print(f"\n{title}\n")
    print(f"| {size_name} | {' | '.join(columns)} |")
    print("| --: |" + " --: |" * len(columns))
    for row, size in enumerate(sizes):
        print(f"| {size:,} | {' | '.join(f'{times[row]:.4f}' for times in columns.values())} |")
    slopes = [f"{exponent(sizes, times):.2f}" for times in columns.values()]
    last = [f"{exponent(sizes[-2:], times[-2:]):.2f}" for times in columns.values()]
    print(f"| exponent | {' | '.join(slopes)} |")
    print(f"| at the end | {' | '.join(last)} |")


def scaling(quick: bool) -> None:
    """Print all curves."""
    sizes = [98, 398] if quick else [98, 198, 398, 798, 1598, 3198]
    targets = [ModelTarget(hierarchy, (groups(size),)) for size in sizes]
    columns = {
        "256 densities with scores, s": [density(target, 256) for target in targets],
        "optimiser step, s": [training(target) for target in targets],
    }
    table("A normal hierarchy of D dimensions", "D", [target.dim for target in targets], columns)
    sides = [10, 20] if quick else [10, 20, 30, 40]
    targets = [ModelTarget(log_gaussian_cox, pines(side)) for side in sides]
    columns = {
        "256 densities with scores, s": [density(target, 256) for target in targets],
        "optimiser step, s": [training(target) for target in targets],
    }
    table("A log-Gaussian Cox process of D cells", "D", [target.dim for target in targets], columns)
    counts = [1000, 4000] if quick else [1000, 3000, 10_000, 30_000, 100_000]
    targets = [ModelTarget(logistic, regression_data(count)) for count in counts]
    columns = {
        "256 densities with scores, s": [density(target, 256) for target in targets],
    }
    table("A logistic regression of 20 features and N observations", "N", counts, columns)
    target, batches = ModelTarget(hierarchy, (groups(98),)), [64, 256] if quick else [64, 128, 256, 512, 1024]
    columns = {
        "densities with scores, s": [density(target, size) for size in batches],
        "optimiser step, s": [training(target, size) for size in batches],
    }
    table("Batches, of a hierarchy of 100 dimensions", "batch", batches, columns)


def run(name: str) -> None:
    """Print what a run with default settings gives, how long it takes and how much memory."""
    model, make_data = LARGE[name]
    data = make_data()
    start = time.perf_counter()
    osds = OSDS(model, disable_progbar=True)
    osds.run(*data)
    print(osds.evidence)
    if name == "pines":
        print(f"two annealed runs: {PINES_LOG_EVIDENCE} +- {PINES_STD_ERROR}")
    elif name == "hierarchy":
        print(f"by quadrature: {hierarchy_log_evidence(*data):.3f}")
    print(f"{time.perf_counter() - start:.0f} s in all: { ({k: round(v) for k, v in osds.fit.seconds.items()}) }")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller sizes")
    parser.add_argument("--run", choices=LARGE, help="a whole run, of some minutes")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    pyro.set_rng_seed(args.seed)
    if args.run:
        run(args.run)
    else:
        scaling(args.quick)
    print(f"\npeak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()

"""How the cost of a run grows with dimensions, observations and draws: seconds, and the exponents that they follow.

    python benchmarks/scaling.py [--only CURVE ...]       # a few minutes
    python benchmarks/scaling.py --quick                  # fewer and smaller sizes, which are not kept
    python benchmarks/scaling.py --run pines [--seed 0]   # instead: a whole run of one large model, default settings
    python benchmarks/scaling.py --report                 # the tables in docs/large.md

Curves and runs are lines of benchmarks/results/scaling.jsonl. Times are processor seconds on one thread, of curves the
median of a few repeats. An exponent is the slope of a line through logarithms; the one
between the two largest sizes says where it is going.
"""

import argparse
import math
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import pyro
import torch
from cases import HERE
from document import DOCS, table, write_block
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
from runs import Record, keep, stored

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

RESULTS = HERE / "results" / "scaling.jsonl"
REPEATS = 5
LARGE: dict[str, tuple[Callable[..., None], Callable[[], tuple[torch.Tensor, ...]]]] = {
    "pines": (log_gaussian_cox, pines),
    "small pines": (log_gaussian_cox, lambda: pines(20)),
    "hierarchy": (hierarchy, lambda: (groups(1000),)),
    "regression": (logistic, lambda: regression_data(100_000)),
}


NAMES = {
    "pines": "log-Gaussian Cox process, Finnish pines, 40 x 40 cells",
    "small pines": "log-Gaussian Cox process, Finnish pines, 20 x 20 cells",
    "hierarchy": "normal hierarchy, centred, with its scale",
    "regression": "logistic regression, 100,000 observations",
}


def seconds(work: Callable[[], Any]) -> float:
    """Median seconds of a few calls after two that warm up."""
    times = []
    for _ in range(REPEATS + 2):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)

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


# ---- curves ----

Curve = tuple[str, list[int], dict[str, list[float]]]


def hierarchies(quick: bool) -> Curve:
    sizes = [98, 398] if quick else [98, 198, 398, 798, 1598, 3198]

    return "D", *of_targets([ModelTarget(hierarchy, (groups(size),)) for size in sizes])


def cox_processes(quick: bool) -> Curve:
    sides = [10, 20] if quick else [10, 20, 30, 40]

    return "D", *of_targets([ModelTarget(log_gaussian_cox, pines(side)) for side in sides])


def of_targets(targets: list[ModelTarget]) -> tuple[list[int], dict[str, list[float]]]:
    columns = {
        "256 densities with scores, s": [density(target, 256) for target in targets],
        "optimiser step, s": [training(target) for target in targets],
    }

    return [target.dim for target in targets], columns


def regressions(quick: bool) -> Curve:
    counts = [1000, 4000] if quick else [1000, 3000, 10_000, 30_000, 100_000]
    targets = [ModelTarget(logistic, regression_data(count)) for count in counts]

    return "N", counts, {"256 densities with scores, s": [density(target, 256) for target in targets]}


def batches(quick: bool) -> Curve:
    target, sizes = ModelTarget(hierarchy, (groups(98),)), [64, 256] if quick else [64, 128, 256, 512, 1024]
    columns = {
        "densities with scores, s": [density(target, size) for size in sizes],
        "optimiser step, s": [training(target, size) for size in sizes],
    }

    return "batch", sizes, columns


CURVES: dict[str, Callable[[bool], Curve]] = {
    "A normal hierarchy of D dimensions": hierarchies,
    "A log-Gaussian Cox process of D cells": cox_processes,
    "A logistic regression of 20 features and N observations": regressions,
    "Batches, of a hierarchy of 100 dimensions": batches,
}


def curve_table(found: Record) -> str:
    """Seconds by size, and the exponents."""
    sizes, columns = found["sizes"], found["columns"]
    rows = [[f"{size:,}", *(f"{times[row]:.4f}" for times in columns.values())] for row, size in enumerate(sizes)]
    rows.append(["exponent", *(f"{exponent(sizes, times):.2f}" for times in columns.values())])
    rows.append(["at the end", *(f"{exponent(sizes[-2:], times[-2:]):.2f}" for times in columns.values())])

    return f"**{found['curve']}**\n\n{table([found['size'], *columns], rows, 'r' * (1 + len(columns)))}"


# ---- whole runs ----


def run(name: str, seed: int) -> Record:
    """What a run with default settings gives, how long it takes and how much memory."""
    model, make_data = LARGE[name]
    data = make_data()
    start = time.process_time()
    osds = OSDS(model, disable_progbar=True)
    osds.run(*data)
    evidence, known = osds.evidence, {"hierarchy": hierarchy_log_evidence}

    return {
        "run": name,
        "seed": seed,
        "dim": osds.fit.target.dim,
        "log_evidence": evidence.log_evidence,
        "std_error": evidence.std_error,
        "elbo": evidence.elbo,
        "pareto_k": evidence.pareto_k if math.isfinite(evidence.pareto_k) else None,
        "refinement": asdict(evidence.refinement) if evidence.refinement else None,
        "reliable": evidence.reliable,
        "reasons": list(evidence.reasons),
        "known": known[name](*data) if name in known else None,
        "seconds": time.process_time() - start,
        "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "torch": torch.__version__,
    }


def run_table(records: list[Record]) -> str:
    rows = [
        [
            NAMES[found["run"]],
            f"{found['dim']:,}",
            found["seed"],
            f"{found['log_evidence']:.3f} ± {found['std_error']:.3f}",
            f"{found['elbo']:.2f}",
            f"{found['pareto_k']:.2f}" if found["pareto_k"] is not None else "-",
            "{log_evidence:.3f} ± {std_error:.3f}".format(**found["refinement"]) if found["refinement"] else "-",
            _known(found),
            "reliable" if found["reliable"] else "not reliable",
            f"{found['seconds']:.0f}",
            f"{found['gigabytes']:.1f}",
        ]
        for found in records
    ]
    header = ["posterior", "dimensions", "seed", "log evidence", "ELBO", "pareto k", "refinement", "known", "verdict"]

    return table([*header, "CPU s", "GB"], rows, "lrrrrrrrlrr")


def _known(found: Record) -> str:
    if found["run"] == "pines":
        return f"{PINES_LOG_EVIDENCE} ± {PINES_STD_ERROR}"

    return f"{found['known']:.3f}" if found["known"] is not None else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller sizes, which are not kept")
    parser.add_argument("--only", nargs="+", choices=CURVES, default=list(CURVES), metavar="CURVE")
    parser.add_argument("--run", choices=LARGE, help="a whole run, of some minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", action="store_true", help="write the tables, run nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pyro.set_rng_seed(args.seed)
    if args.report:
        for name, key, order, make in (
            ("scaling", "curve", list(CURVES), lambda found: "\n\n".join(map(curve_table, found))),
            ("large", "run", list(LARGE), run_table),
        ):
            if found := sorted((one for one in stored(RESULTS) if key in one), key=lambda one: order.index(one[key])):
                write_block(name, make(found), DOCS / "large.md")
    elif args.run:
        found = run(args.run, args.seed)
        keep(found, RESULTS, "curve", "run", "seed")
        print(run_table([found]))
    else:
        for name in args.only:
            size, sizes, columns = CURVES[name](args.quick)
            found = {"curve": name, "size": size, "sizes": sizes, "columns": columns, "torch": torch.__version__}
            if not args.quick:
                keep(found, RESULTS, "curve", "run", "seed")
            print(f"{curve_table(found)}\n", flush=True)


if __name__ == "__main__":
    main()

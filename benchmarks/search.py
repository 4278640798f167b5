"""A map of what search finds: mixtures of two normals, log-gamma mixtures and the known hard families.

    python benchmarks/search.py [--only two_normals families] [--full] [--seeds 0] [--jobs 2] [--max-runs N]
                                [--out FILE]
    python benchmarks/search.py --report [--out FILE]

Each run is a fit with the default settings, and a line of FILE; runs that FILE has are not repeated. A run *found* all
of the posterior if its log evidence is within three standard errors or 0.05 nats and called reliable; it is *flagged*
if the verdict says that it may be wrong, and *lost* if it is wrong and called reliable. Without `--full`, a part of the
map that spans its dimensions. `--report` writes the tables to docs/evidence.md, and runs nothing.
"""

import argparse
import itertools
import math
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyro
import torch
from adversarial_cases import CASES
from adversarial_cases.base import SETTINGS
from document import table, write_block
from runs import Record, run_all, stored

from pyro_osds import OSDS

OUT = Path(__file__).parent / "results" / "search.jsonl"
DIMS, WEIGHTS, DISTANCES = (2, 5, 10, 20, 30, 40, 60), (0.5, 0.2, 0.1, 0.05), (4.0, 8.0, 12.0)
# The second normal is so many times as wide as the first, which has sd 1 and sits where search begins.
RATIOS = (1 / 20, 1 / 3, 0.6, 1.0, 3.0, 20.0)
PART = [
    *((dim, 0.5, 8.0, 1.0) for dim in DIMS),
    *((dim, 0.2, 8.0, 0.6) for dim in (2, 10, 20, 30, 40)),
    *((dim, 0.2, 8.0, 3.0) for dim in (2, 10, 40)),
    *((dim, 0.2, 8.0, 1 / 3) for dim in (2, 5, 10, 20)),
    *((dim, 0.05, 12.0, 1.0) for dim in (2, 10, 40)),
    *((dim, 0.2, 4.0, 0.6) for dim in (2, 10, 20)),
    *((2, 0.2, 8.0, ratio) for ratio in (1 / 20, 20.0)),
]
# Places in other directions than the diagonal: on the first axis, and in one that means nothing.
ELSEWHERE = [
    *(("", dim, 0.2, 8.0, 1 / 3) for dim in (30, 40)),
    *(("", dim, 0.5, 8.0, 0.6) for dim in (30,)),
    ("", 40, 0.05, 12.0, 1 / 3),
    *(("axis", dim, 0.2, 8.0, 1 / 3) for dim in (10, 40)),
    *(("random", dim, 0.2, 8.0, 1 / 3) for dim in (5, 10, 20)),
    *(("random", dim, 0.2, 8.0, 0.6) for dim in (20, 30)),
]
FAMILIES = (
    *("wide_halo_1d", "wide_halo_2d", "wide_halo_3d", "needle_5d", "pancake_6d", "offset_spike_8d", "thin_segment_4d"),
    *("blind_spike_4d", "outlier_plateau_2d", "eggbox", "two_change_points", "spike_slab_6", "loop_two_modes_3d"),
)
LOG_GAMMA = (2, 5, 10, 20)


def two_normals(dim: int, weight: float, distance: float, ratio: float, direction: str = ""):
    """The log density of a normalised mixture; the second has the weight, and lies on the diagonal or elsewhere."""
    place = torch.full((dim,), 1.0, dtype=torch.float64)
    if direction == "axis":
        place[1:] = 0.0
    elif direction == "random":
        place = torch.randn(dim, generator=torch.Generator().manual_seed(dim), dtype=torch.float64)
    place *= distance / place.norm()

    def log_prob(z):
        first = math.log1p(-weight) - 0.5 * z.square().sum(-1)
        second = math.log(weight) - 0.5 * ((z - place.to(z)) / ratio).square().sum(-1) - dim * math.log(ratio)
        return torch.logaddexp(first, second) - 0.5 * dim * math.log(2 * math.pi)

    return log_prob


def log_gamma(dim: int):
    """The log-gamma mixture of the nested-sampling literature (Beaujean, Caldwell 2013), in all of space."""

    def normal(x, loc):
        return -0.5 * (x - loc).square() - 0.5 * math.log(2 * math.pi)

    def gamma(x, loc):
        return (x - loc) - (x - loc).exp()

    def log_prob(z):
        half = math.log(0.5)
        first = torch.logaddexp(gamma(z[:, 0], 10.0), gamma(z[:, 0], -10.0)) + half
        second = torch.logaddexp(normal(z[:, 1], 10.0), normal(z[:, 1], -10.0)) + half
        middle = (dim + 2) // 2
        return first + second + gamma(z[:, 2:middle], 10.0).sum(-1) + normal(z[:, middle:], 10.0).sum(-1)

    return log_prob


def measure(kind: str, name: str, dim: int, weight: float, distance: float, ratio: float, seed: int) -> Record:
    """One run with default settings."""
    pyro.set_rng_seed(seed)
    begin, truth, args = time.perf_counter(), 0.0, ()
    if kind == "families" and name in CASES:
        truth = CASES[name].truth()
        begin = time.perf_counter()
        osds, args = CASES[name].make()
    else:
        log_prob = two_normals(dim, weight, distance, ratio, name) if kind == "two_normals" else log_gamma(dim)
        osds = OSDS.from_log_prob(log_prob, dim, **SETTINGS)
    record = {"task": [kind, name, dim, weight, distance, ratio, seed]}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            osds.run(*args)
    except Exception as error:  # whatever it is, the benchmark goes on
        return record | {"failed": f"{type(error).__name__}: {error}", "seconds": time.perf_counter() - begin}
    evidence = osds.evidence
    found = osds.fit.recipe.found
    search = found.search if found else None

    return record | {
        "error": evidence.log_evidence - truth,
        "std_error": evidence.std_error,
        "reliable": evidence.reliable,
        "reasons": list(evidence.reasons),
        "basins": search.num_basins if search else 0,
        "added": len(search.added) if search else 0,
        "seconds": round(time.perf_counter() - begin, 1),
    }


def outcome(record: Record) -> str:
    if "failed" in record:
        return "failed"
    if not record["reliable"]:
        return "flagged"
    is_right = abs(record["error"]) <= max(3 * record["std_error"], 0.05)

    return "found" if is_right else "**lost**"


def tasks(kinds: list[str], full: bool, seeds: list[int]) -> Iterator[tuple]:
    places = list(itertools.product(DIMS, WEIGHTS, DISTANCES, RATIOS)) if full else PART
    for seed in seeds:
        if "families" in kinds:
            for name in FAMILIES:
                yield ("families", name, CASES[name].dim, 0.0, 0.0, 0.0, seed)
            for dim in LOG_GAMMA:
                yield ("families", "log_gamma", dim, 0.0, 0.0, 0.0, seed)
        if "two_normals" in kinds:
            for place in [*(("", *place) for place in places), *ELSEWHERE]:
                yield ("two_normals", *place, seed)


def report(records: list[Record]) -> str:
    """The map as a table, and one of the families."""
    rows = []
    for record in sorted(records, key=lambda one: one["task"]):
        kind, name, dim, weight, distance, ratio, seed = record["task"]
        label = name if kind == "families" else f"two normals{name and ', ' + name}"
        shape = ("", "", "") if kind == "families" else (f"{weight:g}", f"{distance:g}", f"{ratio:.3g}")
        error = f"{record['error']:+.4f}" if "error" in record else "-"
        se = f"{record['std_error']:.4f}" if "error" in record else "-"
        rows.append((label, dim, *shape, seed, error, se, outcome(record), f"{record['seconds']:.0f}"))
    counts = Counter(outcome(record) for record in records)
    header = ("posterior", "D", "weight", "distance", "width ratio", "seed", "error", "se", "outcome", "s")

    return f"{len(records)} runs: {', '.join(f'{counts[o]} {o}' for o in counts)}.\n\n" + table(
        header, rows, "lrrrrrrrlr"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("two_normals", "families"), default=["two_normals", "families"])
    parser.add_argument("--full", action="store_true", help="the whole map of two normals")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--max-runs", type=int, default=10**9, metavar="N", help="of the list, the first N")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE")
    parser.add_argument("--report", action="store_true", help="write the tables to the page, run nothing")
    args = parser.parse_args()
    if args.report:
        write_block("search", report(stored(args.out)))
        return
    wanted = list(tasks(args.only, args.full, args.seeds))[: args.max_runs]
    for record in run_all(measure, wanted, args.out, lambda one: tuple(one["task"]), args.jobs):
        print(*record["task"], outcome(record), round(record.get("error", math.nan), 4), record["seconds"])


if __name__ == "__main__":
    main()

"""How far a log evidence from 2,000 draws is off, on the targets for which others print that error.

    python benchmarks/estimates.py [--seeds 0 1 2 3 4] [--only NAME ...]   # each run goes to results/estimates.jsonl
    python benchmarks/estimates.py --report                                # the table in docs/accuracy.md

Each seed is one run with default settings, from which a hundred times 2,000 fresh draws are taken: an estimate is the
log of the mean of their weights, and its error is absolute, in nats. "expected" is the error of a normal estimate with
the variance of all those weights, sqrt(2 / pi) of its standard error. FAB's errors are those of the README of FAB-JAX,
five seeds, not run here. Runs that are in the file are not run again; remove their lines first.
"""

import argparse
import math
import time
from collections.abc import Sequence

import torch
from cases import HERE, Case
from document import DOCS, table, write_block
from large_models import log_gaussian_cox, pines
from report import run, taken
from runs import Record, read_records, run_all
from target_cases import target_cases

RESULTS = HERE / "results" / "estimates.jsonl"
NUM_DRAWS, NUM_ESTIMATES = 2000, 100
COX_LOG_EVIDENCE = 501.806
"""The long annealing that FAB-JAX measures against; its own error is not stated."""
# Mean absolute errors that FAB prints.
FAB = {"funnel 10-D": 0.0022, "many-well 32-D": 0.0316, "log-Gaussian Cox process 1,600-D": 0.194}


def cases() -> dict[str, Case]:
    """The targets by name."""
    counts, covariance = pines()
    cox = Case(
        "log-Gaussian Cox process 1,600-D",
        lambda: log_gaussian_cox(counts, covariance),
        COX_LOG_EVIDENCE,
        max_error=0.05,
    )

    return {case.name: case for case in (*target_cases(), cox) if case.name in FAB}


def measure(name: str, seed: int) -> Record:
    """One run of a case and estimates from its draws, as a line of the file."""
    case = cases()[name]
    result = run(case, seed)
    osds, evidence = result.osds, result.osds.evidence
    begun = time.process_time()
    weights = [osds.draw(NUM_DRAWS).log_weights.double() for _ in range(NUM_ESTIMATES)]
    estimates = torch.stack([torch.logsumexp(each, 0) - math.log(NUM_DRAWS) for each in weights])
    pooled = torch.cat(weights)
    relative = (pooled - torch.logsumexp(pooled, 0) + math.log(len(pooled))).exp()

    return {
        "case": name,
        "seed": seed,
        "error": (estimates - case.log_evidence).abs().mean().item(),
        "mean_estimate": estimates.mean().item() - case.log_evidence,
        "expected": (math.sqrt(2.0 / math.pi) * relative.std() / math.sqrt(NUM_DRAWS)).item(),
        "ess": 1.0 / relative.square().mean().item(),
        "run_error": evidence.log_evidence - case.log_evidence,
        "run_std_error": evidence.std_error,
        "reliable": evidence.reliable,
        "stage": taken(osds),
        "seconds": result.processor_seconds,
        "draw_seconds": (time.process_time() - begun) / NUM_ESTIMATES,
    }


HEADER = (
    "target",
    "seeds",
    "mean abs error",
    "se over seeds",
    "expected",
    "ESS share",
    "FAB",
    "stage",
    "CPU s",
    "not reliable",
)


def report(records: Sequence[Record]) -> str:
    """The table of all runs that there are, a line for each target."""
    rows = []
    for name in FAB:
        runs = sorted((record for record in records if record["case"] == name), key=lambda record: record["seed"])
        if runs:
            rows.append(cells(name, runs))

    return table(HEADER, rows, "llrrrrrlrl")


def cells(name: str, runs: Sequence[Record]) -> list[str]:
    """One target over its seeds."""
    errors = torch.tensor([record["error"] for record in runs], dtype=torch.float64)
    seeds = [record["seed"] for record in runs]

    def over(key: str, digits: str) -> str:
        few, many = (f"{end(record[key] for record in runs):{digits}}" for end in (min, max))
        return few if few == many else f"{few} .. {many}"

    return [
        name,
        f"{seeds[0]}-{seeds[-1]}" if len(seeds) > 1 else str(seeds[0]),
        f"{errors.mean():.4f}",
        f"{errors.std() / math.sqrt(len(errors)):.4f}" if len(errors) > 1 else "-",
        over("expected", ".4f"),
        over("ess", ".3f"),
        f"{FAB[name]:.4f}",
        ", ".join(dict.fromkeys(record["stage"] for record in runs)),
        over("seconds", ".0f"),
        ", ".join(f"seed {record['seed']}" for record in runs if not record["reliable"]) or "-",
    ]


def main() -> None:
    """Run what is missing, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", nargs="+", default=list(FAB), choices=list(FAB), metavar="NAME")
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    if args.report:
        write_block("estimates", report(read_records(RESULTS)), DOCS / "accuracy.md")
        return
    tasks = [(name, seed) for name in args.only for seed in args.seeds]
    print(report(run_all(measure, tasks, RESULTS, lambda record: (record["case"], record["seed"]))))


if __name__ == "__main__":
    main()

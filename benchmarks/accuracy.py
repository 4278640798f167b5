"""Log evidence, ELBO, moments, tails and seconds on posteriors where the truth is known.

    python benchmarks/accuracy.py [--seeds 0 1 2] [--only NAME ...]   # each run goes to results/accuracy.jsonl
    python benchmarks/accuracy.py --report                            # the table in docs/accuracy.md

Default settings of OSDS, one step. "missed" names the requirements that a run did not reach. A log evidence must also
lie within three standard errors of the truth, and the ELBO below the truth plus three standard errors. Runs that are in
the file are not run again; remove their lines first.
"""

import argparse
import math
from collections.abc import Sequence

import torch
from cases import HERE, Case, all_cases
from document import DOCS, table, write_block
from report import Result, missed, run
from runs import Record, run_all, stored

from pyro_osds import OSDS

RESULTS = HERE / "results" / "accuracy.jsonl"
# What every case must reach, besides its own requirements.
MAX_MEAN_ERROR, MIN_SD_RATIO, MAX_SD_RATIO, MAX_PARETO_K, MAX_WEIGHT_ERROR = 0.1, 0.9, 1.1, 0.7, 0.05


def moment_errors(case: Case, osds: OSDS) -> tuple[float, float, float]:
    """Largest error of a mean in reference sds, smallest and largest ratio of sds."""
    if not case.moments:
        return math.nan, math.nan, math.nan
    posterior = osds.to_inference_data(log_likelihood=False)["posterior"]
    errors, ratios = [], []
    for name, reference in case.moments.items():
        site, _, index = name.rstrip("]").partition("[")
        values = torch.as_tensor(posterior[site].values).flatten(0, 1)
        column = values[:, int(index) - 1] if index else values
        errors.append(abs(column.mean().item() - reference["mean"]) / reference["sd"])
        ratios.append(column.std().item() / reference["sd"])

    return max(errors), min(ratios), max(ratios)


def failures(result: Result, moments: tuple[float, float, float]) -> list[str]:
    case, evidence = result.case, result.osds.evidence
    checks = {
        "pareto k": evidence.pareto_k >= MAX_PARETO_K,
        "mean": moments[0] > MAX_MEAN_ERROR,
        "sd": moments[1] < MIN_SD_RATIO or moments[2] > MAX_SD_RATIO,
        "modes": result.modes.max_error > MAX_WEIGHT_ERROR,
        "not refused": case.improper and not (math.isnan(evidence.log_evidence) and not evidence.reliable),
        "verdict": not case.improper and not evidence.reliable,
    }

    return missed(result) + [name for name, failed in checks.items() if failed]


def measure(name: str, seed: int) -> Record:
    """One run of a case, as a line of the file."""
    case = next(case for case in all_cases() if case.name == name)
    result = run(case, seed)
    evidence, moments = result.osds.evidence, moment_errors(case, result.osds)

    return {
        "case": name,
        "seed": seed,
        "error": None if case.improper else evidence.log_evidence - case.log_evidence,
        "std_error": None if case.improper else evidence.std_error,
        "elbo": evidence.elbo,
        "pareto_k": evidence.pareto_k if math.isfinite(evidence.pareto_k) else None,
        "ess": evidence.ess / evidence.num_draws,
        "moments": moments if case.moments else None,
        "mode_error": None if math.isnan(result.modes.max_error) else result.modes.max_error,
        "stage": result.osds.run_report[-1].partition(":")[0],
        "seconds": result.processor_seconds,
        "missed": failures(result, moments),
    }


HEADER = (
    "case",
    "seeds",
    "log Z error, nats",
    "standard error",
    "ELBO",
    "pareto k",
    "ESS share",
    "mean error, sd",
    "sd ratio",
    "mode error",
    "CPU s",
    "missed",
)


def report(records: Sequence[Record]) -> str:
    """The table of all runs that there are, a line for each case."""
    rows = []
    for name in dict.fromkeys(case.name for case in all_cases()):
        runs = [record for record in records if record["case"] == name]
        if runs:
            rows.append(cells(name, runs))

    return table(HEADER, rows, "llrrrrrrrrrl")


def cells(name: str, runs: Sequence[Record]) -> list[str]:
    """One case: ranges over its seeds."""

    def over(key: str, digits: str) -> str:
        values = [record[key] for record in runs if record[key] is not None]
        few, many = (f"{end(values):{digits}}" for end in (min, max)) if values else ("-", "-")
        return few if few == many else f"{few} .. {many}"

    moments = [record["moments"] for record in runs if record["moments"]]
    said = [f"seed {record['seed']}: {', '.join(record['missed'])}" for record in runs if record["missed"]]

    return [
        name,
        f"{min(record['seed'] for record in runs)}-{max(record['seed'] for record in runs)}",
        over("error", "+.4f"),
        over("std_error", ".4f"),
        over("elbo", ".3f"),
        over("pareto_k", ".2f"),
        over("ess", ".3f"),
        f"{max(each[0] for each in moments):.3f}" if moments else "-",
        f"{min(each[1] for each in moments):.3f} .. {max(each[2] for each in moments):.3f}" if moments else "-",
        over("mode_error", ".3f"),
        over("seconds", ".0f"),
        "; ".join(said) or "-",
    ]


def main() -> None:
    """Run what is missing, or write the table."""
    names = [case.name for case in all_cases()]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=names, choices=names, metavar="NAME")
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    if args.report:
        write_block("accuracy", report(stored(RESULTS)), DOCS / "accuracy.md")
        return
    tasks = [(name, seed) for name in args.only for seed in args.seeds]
    print(report(run_all(measure, tasks, RESULTS, lambda record: (record["case"], record["seed"]))))


if __name__ == "__main__":
    main()

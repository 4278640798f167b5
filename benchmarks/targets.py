"""Log evidence, ELBO, tails, modes and seconds on the targets of diffusion samplers, and plain annealed SMC beside.

    python benchmarks/targets.py [--seeds 0 1 2] [--only NAME ...]   # each run goes to results/targets.jsonl
    python benchmarks/targets.py --alone ...                         # the runs only, without annealed SMC beside them
    python benchmarks/targets.py --report                            # the tables in docs/method.md and docs/accuracy.md

Default settings of OSDS, one step. The targets of diffusion samplers have `target_std_error=0.003`: the ELBO is what
others print of them, and the default stops training where draws give the log evidence to 0.01 nats. Those beyond one
bijection have default settings; of some their symmetries are declared, too.

Each row is one seed. "modes" counts those with a posterior draw, out of all; "weight err" is the largest error of a
mode's share of the draws or, where every coordinate has two wells, of the share in the positive one. "missed" names
what the case requires and the run did not reach, whatever its own verdict. A log evidence must also lie within three
standard errors of the truth, and the ELBO below the truth plus three standard errors.

"SMC" is plain annealed SMC, without flow, search and declared symmetries, in the processor seconds of the run: its
error, its standard error from sixteen replicates, and the seconds of the last run that fitted. A run is stored before
SMC begins; its columns are "-" where that was left out.
"""

import argparse
import json
import math
from typing import Any

from cases import HERE, Case
from document import DOCS, table, write_block
from plain_annealing import annealed_in
from report import EVIDENCE_HEADER, Result, evidence_cells, missed, run, taken
from target_cases import beyond_one_bijection, target_cases, with_symmetries

RESULTS = HERE / "results" / "targets.jsonl"
HEADER = (
    *EVIDENCE_HEADER,
    "modes",
    "weight err",
    "stage",
    "CPU s",
    "verdict",
    "missed",
    "SMC error",
    "SMC se",
    "SMC CPU s",
)
ALIGN = "lrrrrrrrrrlrllrrr"


def row(result: Result) -> list[str]:
    """The cells of one run, without those of annealed SMC."""
    modes, evidence = result.modes, result.osds.evidence
    return [
        *evidence_cells(result),
        f"{modes.drawn}/{modes.total}" if modes.total else "-",
        f"{modes.max_error:.3f}" if modes.total else "-",
        taken(result.osds),
        f"{result.processor_seconds:.0f}",
        "reliable" if evidence.reliable else "not reliable",
        ", ".join(missed(result)) or "-",
        "-",
        "-",
        "-",
    ]


def annealed_row(result: Result) -> list[str]:
    """The cells of one run, and of annealed SMC in its seconds."""
    case = result.case
    log_evidence, std_error, seconds = annealed_in(case, result.osds.fit.given, result.seed, result.processor_seconds)

    return [
        *row(result)[:-3],
        f"{log_evidence - case.log_evidence:+.4f}",
        f"{std_error:.4f}",
        f"{seconds:.0f}",
    ]


def stored() -> dict[str, list[str]]:
    """The cells of all runs that there are, by case and seed."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []

    return {" ".join(cells[:2]): cells for cells in map(json.loads, lines)}


def store(cells: list[str]) -> None:
    """Put a run into the file, in the place of an earlier one of the same case and seed."""
    every: dict[str, Any] = {**stored(), " ".join(cells[:2]): cells}
    RESULTS.write_text("".join(f"{json.dumps(each)}\n" for each in every.values()))


def ordered() -> list[list[str]]:
    """The cells of all runs that there are, in the order of the cases and of their seeds."""
    names = list(every_case())

    return sorted(stored().values(), key=lambda cells: (names.index(cells[0]), int(cells[1])))


def every_case() -> dict[str, tuple[Case, dict[str, Any]]]:
    """All cases by name, each with the options of its run."""
    cases = {case.name: (case, {"target_std_error": 0.003}) for case in target_cases()}

    return cases | {case.name: (case, {}) for case in (*beyond_one_bijection(), *with_symmetries())}


OVER_SEEDS = (
    "target",
    "seeds",
    "log Z error, nats",
    "standard error",
    "ELBO",
    "pareto k",
    "ESS share",
    "modes",
    "weight err",
    "stage",
    "CPU s",
    "not met",
)


def over_seeds(runs: list[list[str]]) -> list[str]:
    """One line for all runs of a case: ranges over its seeds, whoever is not reliable among what is not met."""
    columns = dict(zip(HEADER, zip(*runs, strict=True), strict=True))

    def between(name: str) -> str:
        values = sorted(set(columns[name]), key=lambda text: math.inf if text == "-" else float(text.partition("/")[0]))
        return values[0] if len(values) == 1 else f"{values[0]} .. {values[-1]}"

    said = []
    for seed, verdict, not_met in zip(columns["seed"], columns["verdict"], columns["missed"], strict=True):
        words = [word for word in (not_met if not_met != "-" else "", verdict if verdict != "reliable" else "") if word]
        said += [f"seed {seed}: {', '.join(words)}"] if words else []
    seeds = columns["seed"]

    return [
        runs[0][0],
        seeds[0] if len(seeds) == 1 else f"{seeds[0]}-{seeds[-1]}",
        *map(between, ("error", "se", "ELBO", "pareto k", "ESS", "modes", "weight err")),
        ", ".join(dict.fromkeys(columns["stage"])),
        between("CPU s"),
        "; ".join(said) or "-",
    ]


def write_tables() -> None:
    """Each run beside annealed SMC, and each target over its seeds."""
    runs = ordered()
    write_block("targets", table(HEADER, runs, ALIGN), DOCS / "method.md")
    names = dict.fromkeys(cells[0] for cells in runs)
    lines = [over_seeds([cells for cells in runs if cells[0] == name]) for name in names]
    write_block("diffusion-targets", table(OVER_SEEDS, lines, "llrrrrrrrlrl"), DOCS / "accuracy.md")


def main() -> None:
    """Run what is asked for, or write the tables."""
    cases = every_case()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=list(cases), choices=list(cases), metavar="NAME")
    parser.add_argument("--alone", action="store_true", help="no annealed SMC beside the runs")
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    if args.report:
        write_tables()
        return
    print(f"| {' | '.join(HEADER)} |\n|---|{'--:|' * (len(HEADER) - 2)}---|")
    for name in args.only:
        for seed in args.seeds:
            case, options = cases[name]
            result = run(case, seed, **options)
            cells = row(result)
            store(cells)
            if not args.alone:
                cells = annealed_row(result)
                store(cells)
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

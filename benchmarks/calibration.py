"""Is the log evidence right, is its standard error right, and does the verdict tell when they are not?

    python benchmarks/calibration.py [--seeds 0 1 ...] [--only NAME ...] [--jobs 2] [--out FILE] [--report]

Runs every posterior with a known log evidence, mixtures, and random conjugate models, with the default settings of
OSDS. Each run is a line of FILE as soon as it is there; runs that FILE has already are not repeated, so an interrupted
calibration goes on where it stopped. `--only` takes names of cases, of groups, or parts of names; cases that take more
than two minutes a fit run only when it names them. `--report` writes tables and figures of all runs in FILE to docs/,
and runs nothing.
"""

import argparse
import math
from pathlib import Path

from calibration_cases import Problem, all_problems
from report import run
from runs import Record, run_all, stored

OUT = Path(__file__).parent / "results" / "calibration.jsonl"


def measure(name: str, seed: int) -> Record:
    """One run of a case, as a line of the file."""
    problem = all_problems()[name]
    record = {"case": name, "group": problem.group, "seed": seed}
    try:
        result = run(problem.case, seed)
    except (ValueError, RuntimeError) as error:
        return record | {"failed": f"{type(error).__name__}: {error}"}
    osds, evidence = result.osds, result.osds.evidence
    fit = osds.to_inference_data(log_likelihood=False)["fit"]

    return record | {
        "dim": osds.draw(1).z.shape[1],
        "log_evidence": evidence.log_evidence,
        "std_error": evidence.std_error,
        "truth": problem.case.log_evidence,
        "truth_se": problem.case.log_evidence_se,
        "error": evidence.log_evidence - problem.case.log_evidence,
        "elbo": evidence.elbo,
        "pareto_k": evidence.pareto_k,
        "ess_share": evidence.ess / evidence.num_draws,
        "num_draws": evidence.num_draws,
        "reliable": evidence.reliable,
        "reasons": list(evidence.reasons),
        "check": evidence.check.log_evidence if evidence.check else math.nan,
        "check_se": evidence.check.std_error if evidence.check else math.nan,
        "seconds": round(result.seconds, 2),
        "recipe": str(fit["recipe"].item()),
        "stages": [line.split(":")[0] for line in osds.run_report],
        "num_modes": int(fit["num_modes"]),
        "num_base_components": int(fit["num_base_components"]),
    }


def chosen(problems: dict[str, Problem], only: list[str] | None) -> list[Problem]:
    """By name, group or part of a name; without a choice, all that are not slow."""
    if not only:
        return [problem for problem in problems.values() if not problem.is_slow]
    names = [name for word in only for name in _called(word, problems)]

    return [problems[name] for name in dict.fromkeys(names)]


def _called(word: str, problems: dict[str, Problem]) -> list[str]:
    if word in problems:
        return [word]
    group = [name for name, problem in problems.items() if problem.group == word]
    names = group or [name for name in problems if word in name]
    if not names:
        raise SystemExit(f"No case and no group is called {word!r}; there are {', '.join(problems)}.")

    return names


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 0 to 9, of conjugate models 0 and 1")
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE")
    parser.add_argument("--report", action="store_true", help="write the report, run nothing")

    return parser.parse_args()


def main() -> None:
    args = arguments()
    problems = chosen(all_problems(), args.only)
    if args.report:
        from calibration_report import write_report

        names = {problem.case.name for problem in problems} if args.only else None
        write_report([record for record in stored(args.out) if names is None or record["case"] in names])
        return
    # Seed by seed, so that an interrupted calibration has some of everything.
    tasks = [(p.case.name, seed) for p in problems for seed in (p.seeds if args.seeds is None else args.seeds)]
    tasks.sort(key=lambda task: task[1])
    run_all(measure, tasks, args.out, lambda record: (record["case"], record["seed"]), args.jobs)


if __name__ == "__main__":
    main()

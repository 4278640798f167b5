"""Posteriors made to mislead: is the log evidence right, and if not, does the verdict say so?

    python benchmarks/adversarial.py [--seeds 0 1] [--kind precision ...] [--case NAME ...] [--jobs 2]
                                     [--limit SECONDS] [--max-minutes M] [--out FILE] [--report [--any-revision]]

Runs the cases with the default settings of OSDS, each in a process of its own that is ended after SECONDS, and prints a
row of each as soon as it is there. Each run is a line of FILE, together with the state of the package that made it;
runs that FILE has of the same state are not repeated. After M minutes no further run is started. `--report` writes the
table to docs/evidence.md, and runs nothing; with `--any-revision` it takes the newest run of each case and seed,
whatever state of the package it is of.
"""

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from adversarial_cases import CASES, KINDS
from adversarial_verdict import outcome
from runs import Record, read_records

HERE = Path(__file__).parent
OUT = HERE / "results" / "adversarial.jsonl"
HEADER = ("case", "kind", "D", "seed", "log Z", "error", "se", "k", "ESS share", "outcome", "s")

Task = tuple[str, int]


def revision() -> str:
    """The state of the package, and of it alone: a change of a page or a case leaves it as it is."""

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=HERE.parent, capture_output=True, text=True, check=True).stdout

    tree = git("rev-parse", "HEAD:pyro_osds").strip()[:12]
    changes = git("diff", "HEAD", "--", "pyro_osds") + git("status", "--porcelain", "--", "pyro_osds")

    return f"{tree}-{hashlib.sha1(changes.encode()).hexdigest()[:8]}" if changes else tree


def measure(task: Task, state: str, limit: float) -> Record:
    """One run in a process of its own, ended when it takes too long."""
    name, seed = task
    case = CASES[name]
    record = {"case": name, "kind": case.kind, "dim": case.dim, "seed": seed, "revision": state, "truth": case.truth()}
    command = [sys.executable, str(HERE / "adversarial_run.py"), name, str(seed)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    except subprocess.TimeoutExpired:
        return record | {"too_long": True, "seconds": limit}
    if done.returncode:
        return record | {"failed": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1], "seconds": 0}

    return record | json.loads(done.stdout.splitlines()[-1])


def run_all(tasks: Sequence[Task], state: str, limit: float, num_jobs: int, deadline: float) -> Iterator[Record]:
    """Records as they come; what has not begun by the deadline is left out."""

    def one(task: Task) -> Record | None:
        return measure(task, state, limit) if time.monotonic() < deadline else None

    with ThreadPoolExecutor(num_jobs) as pool:
        futures = [pool.submit(one, task) for task in tasks]
        try:
            yield from filter(None, (future.result() for future in as_completed(futures)))
        finally:
            pool.shutdown(cancel_futures=True)


def row(record: Record) -> str:
    """A number that there is none of is a dash."""
    error = record.get("log_evidence", math.nan) - record["truth"]
    numbers = (
        (record["truth"], ".3f"),
        (error, "+.4f"),
        (record.get("std_error", math.nan), ".4f"),
        (record.get("pareto_k", math.nan), ".2f"),
        (record.get("ess_share", math.nan), ".3f"),
    )
    cells = (
        *(record[key] for key in ("case", "kind", "dim", "seed")),
        *("-" if math.isnan(number) else format(number, style) for number, style in numbers),
        outcome(record),
        f"{record['seconds']:.0f}",
    )

    return f"| {' | '.join(map(str, cells))} |"


def chosen(kinds: Sequence[str] | None, names: Sequence[str] | None) -> list[str]:
    """By name, or all of some kinds, or all."""
    if names:
        return list(names)

    return [case.name for case in CASES.values() if case.kind in (kinds or KINDS)]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--kind", nargs="+", choices=KINDS)
    parser.add_argument("--case", nargs="+", choices=list(CASES), metavar="NAME")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each with one thread")
    parser.add_argument("--limit", type=float, default=300.0, metavar="SECONDS", help="of one run (default: 300)")
    parser.add_argument("--max-minutes", type=float, default=math.inf, metavar="M", help="of all runs")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE")
    parser.add_argument("--report", action="store_true", help="write the table to the page, run nothing")
    parser.add_argument("--any-revision", action="store_true", help="report the newest run of each case and seed")

    return parser.parse_args()


def main() -> None:
    args = arguments()
    state, names = revision(), chosen(args.kind, args.case)
    stored = [record for record in read_records(args.out) if record["case"] in CASES]
    if args.report:
        from adversarial_report import write_report

        write_report([r for r in stored if args.any_revision or r["revision"] == state])
        return
    # What was ended at a shorter limit gets another chance.
    fresh = (r for r in stored if r["revision"] == state and not (r.get("too_long") and r["seconds"] < args.limit))
    done = {(r["case"], r["seed"]): r for r in fresh}
    # Seed by seed, so that a run that is cut short has some of everything.
    tasks = [(name, seed) for seed in args.seeds for name in names]
    print(f"| {' | '.join(HEADER)} |\n|---|---|{'--:|' * 7}---|--:|")
    for task in tasks:
        if task in done:
            print(row(done[task]))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * args.max_minutes
    with args.out.open("a") as file:
        for record in run_all([t for t in tasks if t not in done], state, args.limit, args.jobs, deadline):
            file.write(json.dumps(record) + "\n")
            file.flush()
            print(row(record), flush=True)


if __name__ == "__main__":
    main()

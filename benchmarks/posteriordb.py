"""Are the draws those of posteriordb's reference posteriors, and does the verdict on them tell?

    python benchmarks/posteriordb.py [--seeds 0 1] [--case NAME ...] [--limit 400] [--max-minutes M] [--report]

Default settings of OSDS on every posterior, each fit a process of its own with one thread, ended after `--limit`
seconds. Fits are lines of benchmarks/results/posteriordb.jsonl; those there already are not run again until the
package, the models or their data have changed. `--case` takes names or parts of them. `--report` writes the fits of
the newest revision in the file into docs/accuracy.md, and runs nothing.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pyro
from posteriordb_models import POSTERIORS, reference
from posteriordb_report import summary, table_of, write_report
from runs import Record, read_records

import pyro_osds
from pyro_osds import OSDS

OUT = Path(__file__).parent / "results" / "posteriordb.jsonl"
WATCHED = ("pyro_osds", "benchmarks/posteriordb_models.py", "benchmarks/data/posteriordb")


# ---- one fit ----


def compare(draws: np.ndarray, expected: dict[str, float]) -> dict[str, float]:
    """Errors of the mean and of the worst quantile, in reference sds, and the ratio of sds, of draws `(S,)`."""
    quantiles = {key: float(key[1:]) / 100 for key in expected if key[0] == "q"}
    errors = [np.quantile(draws, level) - expected[key] for key, level in quantiles.items()]

    return {
        "mean_error": (draws.mean() - expected["mean"]) / expected["sd"],
        "sd_ratio": draws.std() / expected["sd"],
        "quantile_error": max(errors, key=abs) / expected["sd"],
    }


def compare_all(values: dict[str, np.ndarray], expected: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The comparison of each parameter, named like `beta[1]`, with values `(S, ...)` of each site."""
    comparisons = {}
    for name, numbers in expected.items():
        site, _, index = name.rstrip("]").partition("[")
        draws = values[site].astype(float)
        comparisons[name] = compare(draws[:, int(index) - 1] if index else draws, numbers)

    return comparisons


def measure(name: str, seed: int) -> Record:
    """One fit, in this process, as a line of the file."""
    posterior = POSTERIORS[name]()
    pyro.set_rng_seed(seed)
    osds = OSDS(posterior.model, num_samples=1000, num_chains=4, disable_progbar=True)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the verdict is in the record
        osds.run(*posterior.args)
    seconds = time.process_time() - start
    sites = osds.to_inference_data(log_likelihood=False)["posterior"]
    values = {site: sites[site].values.reshape(-1, *sites[site].shape[2:]) for site in sites.data_vars}
    evidence = osds.evidence

    return {
        "posterior": name,
        "seed": seed,
        "dim": osds.draw(1).z.shape[1],
        "num_rows": posterior.num_rows,
        "seconds": round(seconds, 1),
        "parameters": compare_all(values, reference(name)),
        "log_evidence": evidence.log_evidence,
        "std_error": evidence.std_error,
        "reliable": evidence.reliable,
        "draws_reliable": getattr(evidence, "draws_reliable", evidence.reliable),
        "reasons": list(evidence.reasons),
    }


def run_apart(name: str, seed: int, limit: float) -> Record:
    """One fit in a process of its own, ended at the limit."""
    command = [sys.executable, "-W", "ignore", __file__, "--one", name, str(seed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    task = {"posterior": name, "seed": seed}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return task | {"limit": limit}
    if done.returncode:
        said = done.stderr.strip() or f"exit status {done.returncode}"
        return task | {"failed": said.splitlines()[-1]}

    return json.loads(done.stdout.splitlines()[-1])


# ---- all fits ----


def revision() -> str:
    """The last commit that changed what a fit depends on, with a "+" where there are further changes."""

    def git(*args: str) -> str:
        command = ["git", "-C", str(Path(pyro_osds.__file__).parents[1]), *args, "--", *WATCHED]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    last = git("log", "-1", "--format=%H")[:10]

    return last if last and not git("status", "--porcelain") else f"{last}+"


def latest(records: list[Record], wanted: str) -> dict[tuple[str, int], Record]:
    """The last record of each posterior and seed at that revision."""
    return {(record["posterior"], record["seed"]): record for record in records if record["revision"] == wanted}


def run_missing(tasks: list[tuple[str, int]], limit: float, max_minutes: float) -> list[Record]:
    """The records of the tasks, those missing in the file run now and added to it, until the time is over."""
    now = revision()
    # Uncommitted changes have no name by which to tell that they are still the same.
    found = {} if now.endswith("+") else latest(read_records(OUT), now)
    # A fit that was ended after less than the limit may end by itself now.
    known = {task: record for task, record in found.items() if record.get("limit", math.inf) >= limit}
    OUT.parent.mkdir(exist_ok=True)
    end = time.monotonic() + 60 * max_minutes
    for name, seed in tasks:
        if (name, seed) in known:
            continue
        if time.monotonic() > end:
            print(f"The time was over before {name}, seed {seed}.")
            break
        record = known[name, seed] = run_apart(name, seed, limit) | {"revision": now}
        with OUT.open("a") as file:
            file.write(json.dumps(record) + "\n")
        told = {key: record[key] for key in ("seconds", "draws_reliable", "limit", "failed") if key in record}
        print(name, seed, told, flush=True)

    return [known[task] for task in tasks if task in known]


def chosen(words: list[str] | None) -> list[str]:
    """Names of posteriors that are or hold one of the words, all without any."""
    names = [name for name in POSTERIORS if words is None or any(word in name for word in words)]
    if not names:
        raise SystemExit(f"No posterior is called {' or '.join(words or [])}; there are {', '.join(POSTERIORS)}.")

    return names


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--case", nargs="+", metavar="NAME", help=f"of {', '.join(POSTERIORS)}")
    parser.add_argument("--limit", type=float, default=400.0, help="seconds a fit may take")
    parser.add_argument("--max-minutes", type=float, default=math.inf, metavar="M", help="no fit starts after these")
    parser.add_argument("--report", action="store_true", help="write the report, run nothing")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)

    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]))))
    elif args.report:
        records = read_records(OUT)
        write_report(list(latest(records, records[-1]["revision"]).values()) if records else [])
    else:
        # Seed by seed, so that an interrupted run has some of everything.
        tasks = [(name, seed) for seed in args.seeds for name in chosen(args.case)]
        records = run_missing(tasks, args.limit, args.max_minutes)
        print(f"\n{table_of(records)}\n\n{summary(records)}")


if __name__ == "__main__":
    main()

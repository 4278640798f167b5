"""How long to posterior draws and a log evidence, beside other samplers in the same hour on the same machine?

    python benchmarks/peers.py [--quick] [--only NAME ...] [--methods NAME ...] [--repeats 3] [--limit 600] [--report]

Each run is a process of its own with one thread, which compiles what it has to compile; a run that is not done after
`--limit` seconds is ended, and counts as that long at least. Runs are lines of benchmarks/results/peers.jsonl; what is
there already is not run again, and `--report` writes all of it into docs/performance.md. Peers that are not installed
are left out (`pip install '.[peers]'` installs them). `--quick`: three small posteriors, three methods.
"""

import argparse
import importlib.util
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from peer_methods import METHODS, applies, quiet
from peer_models import model_of, names
from peer_outcome import min_effective_size
from runs import keep, read_records, stored

OUT = Path(__file__).parent / "results" / "peers.jsonl"
QUICK_MODELS = ("eight schools", "gp_regr", "four Gaussians")
QUICK_METHODS = ("OSDS", "NumPyro NUTS", "dynesty")
NEEDS = {
    "NumPyro NUTS": "numpyro",
    "nutpie": "nutpie",
    "nutpie, low rank": "nutpie",
    "bridge sampling": "numpyro",
    "tempered SMC": "blackjax",
    "nautilus": "nautilus",
    "dynesty": "dynesty",
}
# Whose versions go with the results.
PACKAGES = {
    "numpyro": ("numpyro", "jax"),
    "nutpie": ("nutpie", "pymc", "pytensor"),
    "blackjax": ("blackjax", "jax"),
    "nautilus": ("nautilus-sampler",),
    "dynesty": ("dynesty",),
    "pyro": ("torch", "pyro-ppl"),
}
_TOLD = ("seconds", "cpu_seconds", "effective", "error", "limit", "failed")
# Their compilers keep functions on disk for other processes.
METHODS_THAT_KEEP = {"nutpie", "nutpie, low rank"}


def measure(method: str, name: str, seed: int, draws_more: bool = True) -> Iterator[dict[str, Any]]:
    """One run, in this process, as a line of the file; `draws_more` then finds the speed of further draws, too."""
    model = model_of(name)
    outcome = quiet(lambda: METHODS[method](model, seed))
    record = {
        "method": method,
        "model": name,
        "seed": seed,
        "seconds": outcome.seconds.wall,
        "cpu_seconds": outcome.seconds.cpu,
        "compiling": outcome.compiling and outcome.compiling.wall,
        "effective": min_effective_size(outcome.draws) if outcome.draws else None,
        "further": math.nan,
        "further_cpu": math.nan,
        "evaluations": outcome.evaluations,
        "log_evidence": outcome.log_evidence,
        "std_error": outcome.std_error,
        "error": outcome.log_evidence - model.log_evidence,
        "reliable": outcome.reliable,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "moments": {site: _moments(value) for site, value in outcome.draws.items()},
        "packages": {package: version(package) for package in PACKAGES[NEEDS.get(method, "pyro")]},
    }
    yield record
    if draws_more and outcome.further:
        gained, spent = outcome.further()
        yield {**record, "further": gained / spent.wall, "further_cpu": gained / spent.cpu}


def _moments(value: np.ndarray) -> dict[str, list[float]]:
    flat = value.reshape(value.shape[0] * value.shape[1], -1).astype(float)

    return {"mean": flat.mean(0).tolist(), "sd": flat.std(0).tolist()}


def run_apart(method: str, name: str, seed: int, limit: float) -> dict[str, Any]:
    """One run in a process of its own, ended at the limit, in which nothing is compiled that an earlier one kept.

    `limit` stands in the record of a run that was ended, without `seconds` if that was before the first result.
    A method with such a store runs once more with what it kept: `again` has seconds of that.
    """
    with tempfile.TemporaryDirectory() as folder:
        record = _run(method, name, seed, limit, folder)
        if method in METHODS_THAT_KEEP and "seconds" in record:
            again = _run(method, name, seed, limit, folder, "--first")
            record["again"] = {key: again[key] for key in ("seconds", "cpu_seconds", "compiling") if key in again}

    return record


def _run(method: str, name: str, seed: int, limit: float, folder: str, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", __file__, *options, "--one", method, name, str(seed)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
        "PYTENSOR_FLAGS": f"base_compiledir={folder}",
    }
    before = _children_seconds()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment, check=False)
    except subprocess.TimeoutExpired as ended:
        so_far = {"method": method, "model": name, "seed": seed}
        # Ended while further draws were made: the first result is there.
        if ended.stdout:
            so_far = json.loads(ended.stdout.splitlines()[-1])
        return {**so_far, "limit": limit, "cpu_limit": _children_seconds() - before}
    if done.returncode:
        return {"method": method, "model": name, "seed": seed, "failed": done.stderr.strip().splitlines()[-1]}

    return json.loads(done.stdout.splitlines()[-1])


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)

    return used.ru_utime + used.ru_stime


def main(args: argparse.Namespace) -> None:
    """Run what is missing, then report."""
    models = args.only or (QUICK_MODELS if args.quick else names())
    chosen = args.methods or (QUICK_METHODS if args.quick else METHODS)
    installed = [name for name in METHODS if importlib.util.find_spec(NEEDS.get(name, "pyro")) is not None]
    methods = [name for name in installed if name in chosen]
    repeats, limit = (1, min(args.limit, 50.0)) if args.quick else (args.repeats, args.limit)
    done = {(record["method"], record["model"], record["seed"]) for record in read_records(OUT)}
    for seed in range(repeats):
        for name in models:
            for method in methods:
                if (method, name, seed) in done or not applies(method, model_of(name)):
                    continue
                record = run_apart(method, name, seed, limit)
                keep(record, OUT, "method", "model", "seed")
                told = {key: record[key] for key in _TOLD if record.get(key) is not None}
                print(name, method, seed, told, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=names())
    parser.add_argument("--methods", nargs="+", choices=METHODS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=600.0)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--first", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        for line in measure(options.one[0], options.one[1], int(options.one[2]), not options.first):
            print(json.dumps(line), flush=True)
    else:
        if not options.report:
            main(options)
        from peer_report import write_report

        write_report(stored(OUT))

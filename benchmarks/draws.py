"""How long do a million one-step draws with weights take, and how much memory beside the draws themselves?

    python benchmarks/draws.py [--num-draws 1000000] [--repeats 3] [--threads 1] [--report]

Each posterior gets a process of its own. Memory is that of the process, in MB: after the draws less before them
("kept"), and the most that there was in between, less before them ("peak"). `--report` writes the table into
docs/performance.md. Linux only, which tells the most that a process had.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyro
import torch
from cases import all_cases
from document import DOCS, table, write_block

from pyro_osds import OSDS

MODELS = ("normal, D = 10", "eight schools, D = 10")


def fitted(name: str) -> OSDS:
    """A sampler of the posterior; the seconds of its fit do not count."""
    pyro.set_rng_seed(0)
    if name == MODELS[0]:
        osds = OSDS.from_log_prob(lambda z: -0.5 * z.square().sum(-1), 10, disable_progbar=True)
        osds.run()
    else:
        case = next(case for case in all_cases() if case.name == "eight schools")
        osds = OSDS(case.model, disable_progbar=True)
        osds.run()

    return osds


def memory(what: str) -> float:
    """Megabytes of this process: `VmRSS` now, `VmHWM` the most since it was forgotten."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None

    return int(found[1]) / 1024


def measure(name: str, num_draws: int, repeats: int) -> dict[str, Any]:
    """Seconds of each repeat and memory of the first one, in this process."""
    osds = fitted(name)
    seconds, megabytes = [], []
    for _ in range(repeats):
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forgets the most that there was
        start = time.perf_counter()
        draws = osds.draw(num_draws)
        seconds.append(time.perf_counter() - start)
        megabytes.append((memory("VmRSS") - before, memory("VmHWM") - before))
    columns = [draws.z, draws.log_weights, draws.log_prob, draws.log_abs_det, *draws.samples.values()]
    size = sum(column.numel() * column.element_size() for column in columns) / 1e6

    return {"seconds": seconds, "kept": megabytes[0][0], "peak": megabytes[0][1], "size": size}


def row(name: str, run: dict[str, Any], num_draws: int) -> list[str]:
    seconds = sorted(run["seconds"])
    median = seconds[len(seconds) // 2]

    return [
        name,
        f"{num_draws:,}",
        f"{median:.1f} ({seconds[0]:.1f} to {seconds[-1]:.1f})",
        f"{num_draws / median / 1000:,.0f}",
        f"{run['size'] / median:.0f}",
        f"{run['size']:.0f}",
        f"{run['kept']:.0f}",
        f"{run['peak']:.0f}",
    ]


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    if args.only:
        print(json.dumps(measure(args.only, args.num_draws, args.repeats)))
        return
    rows = []
    for name in MODELS:
        again = [*sys.argv, "--only", name]
        done = subprocess.run([sys.executable, *again], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        rows.append(row(name, json.loads(done.stdout.splitlines()[-1]), args.num_draws))
    header = ["posterior", "draws", "seconds", "1000 draws/s", "MB/s", "MB in the draws", "MB kept", "MB at the peak"]
    text = f"Threads: {args.threads}; median (range) of {args.repeats}.\n\n{table(header, rows, 'lrrrrrrr')}"
    print(text)
    if args.report:
        write_block("draws", text, DOCS / "performance.md")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-draws", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--only", choices=MODELS, help=argparse.SUPPRESS)
    main(parser.parse_args())

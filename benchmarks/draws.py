"""How long do a million one-step draws with weights take, and how much memory beside the draws themselves?

    python benchmarks/draws.py [--num-draws 1000000] [--repeats 3] [--threads 1] [--only NAME ...]
    python benchmarks/draws.py --report

Each posterior gets a process of its own, and its numbers are a line of benchmarks/results/draws.jsonl, in the place of
an earlier one with as many draws and threads. Seconds are those of the clock and those of the processor, of which an
idle machine makes the same where there is one thread; "arithmetic" is what the flow's products of matrices take by
themselves, in CPU seconds. Memory is that of the process, in MB: after the draws less before them ("kept"), and the
most that there was in between, less before them ("peak"). `--report` writes the table of all lines into
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
from cases import eight_schools, german_credit
from document import DOCS, table, write_block
from runs import keep, ordered

from pyro_osds import OSDS

RESULTS = Path(__file__).parent / "results" / "draws.jsonl"
POINTS = 8192
"""Draws that go through the flow at once."""

MODELS = {
    "normal, D = 10": None,
    "eight schools, D = 10": eight_schools(False),
    "German credit, D = 25": german_credit(),
}


def fitted(name: str) -> OSDS:
    """A sampler of the posterior; the seconds of its fit do not count."""
    pyro.set_rng_seed(0)
    model = MODELS[name]
    if model is None:
        osds = OSDS.from_log_prob(lambda z: -0.5 * z.square().sum(-1), 10, disable_progbar=True)
    else:
        osds = OSDS(model, disable_progbar=True)
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
    seconds, cpu_seconds, megabytes = [], [], []
    for _ in range(repeats):
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forgets the most that there was
        start, cpu_start = time.perf_counter(), time.process_time()
        draws = osds.draw(num_draws)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
        megabytes.append((memory("VmRSS") - before, memory("VmHWM") - before))
    columns = [draws.z, draws.log_weights, draws.log_prob, draws.log_abs_det, *draws.samples.values()]
    size = sum(column.numel() * column.element_size() for column in columns) / 1e6

    return {
        "posterior": name,
        "draws": num_draws,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "arithmetic": num_draws * arithmetic(osds),
        "kept": megabytes[0][0],
        "peak": megabytes[0][1],
        "size": size,
        "torch": torch.__version__,
    }


def arithmetic(osds: OSDS) -> float:
    """CPU seconds of a draw that the flow's products of matrices take by themselves, the least of several times."""
    products = []
    for block in osds.trainer.leap.flow.blocks:
        # Without fixed coordinates one column serves all points.
        columns = POINTS if block.num_fixed else 1
        products += [(weight, columns) for weight in block.network.parameters() if weight.dim() == 2]
    pairs = [(weight.detach(), torch.randn(weight.shape[1], columns)) for weight, columns in products]
    times = []
    for _ in range(20):
        start = time.process_time()
        for weight, points in pairs:
            weight @ points
        times.append(time.process_time() - start)

    return min(times) / POINTS


def row(run: dict[str, Any]) -> list[str]:
    seconds, cpu_seconds = sorted(run["seconds"]), sorted(run["cpu_seconds"])
    median = seconds[len(seconds) // 2]

    return [
        run["posterior"],
        f"{run['draws']:,}",
        f"{run['threads']}",
        f"{median:.1f} ({seconds[0]:.1f} to {seconds[-1]:.1f})",
        f"{cpu_seconds[len(cpu_seconds) // 2]:.1f} ({cpu_seconds[0]:.1f} to {cpu_seconds[-1]:.1f})",
        f"{run['arithmetic']:.1f}",
        f"{run['size']:.0f}",
        f"{run['kept']:.0f}",
        f"{run['peak']:.0f}",
    ]


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    if args.measure:
        print(json.dumps(measure(args.measure, args.num_draws, args.repeats)))
        return
    for name in [] if args.report else args.only:
        done = subprocess.run([sys.executable, *sys.argv, "--measure", name], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        keep(json.loads(done.stdout.splitlines()[-1]), RESULTS, "posterior", "draws", "threads")
    runs = ordered(RESULTS, "posterior", MODELS)
    header = ["posterior", "draws", "threads", "seconds", "CPU seconds", "arithmetic"]
    header += ["MB in the draws", "MB kept", "MB at the peak"]
    versions = ", ".join(sorted({run["torch"] for run in runs}))
    repeats = ", ".join(sorted({str(len(run["seconds"])) for run in runs}))
    rows = table(header, [row(run) for run in runs], "lrrrrrrrr")
    text = f"torch {versions}; median (range) of {repeats}.\n\n{rows}"
    print(text)
    if args.report:
        write_block("draws", text, DOCS / "performance.md")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-draws", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS), metavar="NAME")
    parser.add_argument("--measure", choices=list(MODELS), help=argparse.SUPPRESS)
    main(parser.parse_args())

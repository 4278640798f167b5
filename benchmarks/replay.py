"""Recorded graphs run by TorchScript and by the interpreter, beside each other in one process.

    OMP_NUM_THREADS=1 python benchmarks/replay.py [--repeats 5] [--fits 5] [--only POSTERIOR ...]
    python benchmarks/replay.py --report   # the table in docs/performance.md

Each posterior is a line of benchmarks/results/replay.jsonl, and a row: what the interpreter takes over what TorchScript
takes, for log densities and scores of 512 points, for a step of the training of the default flow, and for a whole fit
(`OSDS.run`), beside the median of TorchScript's own times. They are CPU times of the process, and rounds alternate
between the two, so that other jobs on the machine matter little. A ratio is the median of the rounds'
(smallest-largest). Where the two do not give the same log evidence, to the last digit, it ends with an error.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import pyro
import torch
from cases import HERE, eight_schools, german_credit
from document import DOCS, spread, table, write_block
from runs import Record, keep, ordered
from target_cases import sonar

from pyro_osds import OSDS
from pyro_osds.model import ModelTarget
from pyro_osds.runtime.recording.execution import INTERPRETER, TORCHSCRIPT, VARIABLE
from pyro_osds.target import log_prob_and_score
from pyro_osds.train.trainer import Trainer

RESULTS = HERE / "results" / "replay.jsonl"
WAYS = (TORCHSCRIPT, INTERPRETER)

POSTERIORS = {"eight schools": eight_schools(False), "German credit": german_credit(), "sonar": sonar()}

ROUND_SECONDS = 0.5
"""What a density or a step is given in each round: it is called as often as fits in, at least once."""

WARM_UP_CALLS = 15
"""A flow is recorded after ten calls, and TorchScript watches its first call."""

NUM_ITERATIONS = 50
"""Enough for the gradients of further steps to be those of a fit."""

NUM_POINTS = 512
"""As many as the largest block of a recorded density."""

SPREAD = 0.1
"""Standard deviation of the points, small enough for no model to overflow."""


def density(model: Callable[[], None]) -> Callable[[], object]:
    target = ModelTarget(model)
    z = SPREAD * torch.randn(NUM_POINTS, target.dim, dtype=torch.float64)

    return lambda: log_prob_and_score(target.log_prob, z)


def training_step(model: Callable[[], None]) -> Callable[[], object]:
    """A step that goes on where a short fit ended."""
    osds = OSDS(model, num_iterations=NUM_ITERATIONS, num_samples=1, escalate=False, disable_progbar=True)
    osds.run()

    return Trainer(osds.trainer.leap, osds.fit.target, disable_progbar=True).step


def fit(model: Callable[[], None]) -> float:
    pyro.set_rng_seed(0)
    osds = OSDS(model, disable_progbar=True)
    osds.run()

    return osds.log_evidence


Model = Callable[[], None]
Rounds = list[dict[str, float]]


def calls(make: Callable[[Model], Callable[[], object]], model: Model, repeats: int) -> Rounds:
    """Seconds of one call by either way, round by round."""
    functions = {}
    for way in WAYS:
        os.environ[VARIABLE] = way
        pyro.set_rng_seed(0)
        functions[way] = make(model)
        for _ in range(WARM_UP_CALLS):
            functions[way]()
    num_calls = max(1, round(ROUND_SECONDS / seconds(functions[TORCHSCRIPT])))

    return [{way: seconds(functions[way], num_calls) for way in WAYS} for _ in range(repeats)]


def fits(model: Callable[[], None], repeats: int) -> Rounds:
    """Seconds of a whole fit by either way, round by round."""
    rounds: Rounds = []
    found = set()
    for _ in range(repeats):
        times = {}
        for way in WAYS:
            os.environ[VARIABLE] = way
            start = time.process_time()
            found.add(fit(model))
            times[way] = time.process_time() - start
        rounds.append(times)
    if len(found) > 1:
        raise SystemExit(f"The two do not give the same log evidence: {found}.")

    return rounds


def seconds(function: Callable[[], object], num_calls: int = 1) -> float:
    start = time.process_time()
    for _ in range(num_calls):
        function()

    return (time.process_time() - start) / num_calls


def cell(rounds: Rounds, unit: float, name: str) -> str:
    if not rounds:
        return "not measured"
    ratios = [times[INTERPRETER] / times[TORCHSCRIPT] for times in rounds]
    usual = unit * statistics.median(times[TORCHSCRIPT] for times in rounds)

    return f"{spread(ratios)}; {usual:.2f} {name}"


def report(records: list[Record]) -> str:
    rows = [
        [
            found["posterior"],
            found["dim"],
            cell(found["density"], 1e3, "ms"),
            cell(found["step"], 1e3, "ms"),
            cell(found["fit"], 1.0, "s"),
        ]
        for found in records
    ]
    versions, rounds = (
        ", ".join(sorted(each))
        for each in ({found["torch"] for found in records}, {str(len(found["density"])) for found in records})
    )
    header = ["posterior", "D", f"density and score of {NUM_POINTS} points", "training step", "whole fit"]
    fitted = sorted({str(len(found["fit"])) for found in records if found["fit"]})
    said = f"{rounds} rounds" + (f", of whole fits {', '.join(fitted)}" if fitted else "")

    return f"torch {versions}, one thread; {said}.\n\n{table(header, rows, 'lrrrr')}"


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    for name in [] if args.report else args.only:
        model = POSTERIORS[name]
        found = {"posterior": name, "dim": ModelTarget(model).dim, "torch": torch.__version__}
        found |= {"density": calls(density, model, args.repeats), "step": calls(training_step, model, args.repeats)}
        keep(found | {"fit": fits(model, args.fits)}, RESULTS, "posterior")
    text = report(ordered(RESULTS, "posterior", POSTERIORS))
    print(text)
    if args.report:
        write_block("replay", text, DOCS / "performance.md")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="rounds of densities and steps")
    parser.add_argument("--fits", type=int, default=5, help="rounds of whole fits; 0 leaves them out")
    parser.add_argument("--only", nargs="+", default=list(POSTERIORS), choices=list(POSTERIORS), metavar="POSTERIOR")
    parser.add_argument("--report", action="store_true", help="write the table, run nothing")
    main(parser.parse_args())

"""What exploration takes: CPU seconds, evaluations and its own log evidence, on densities of all costs.

    python benchmarks/exploring.py [--only NAME ...] [--seeds 0]   # lines go to benchmarks/results/exploring.jsonl
    python benchmarks/exploring.py --report                        # the table in docs/performance.md

Exploration alone, with default settings. "Points" are all points at which the density was evaluated, with a gradient or
without; the error of the log evidence of exploration is in nats, where the truth is known.
"""

import argparse
import math
import time
import warnings

import pyro
import torch
from cases import HERE, Case, all_cases
from costly import COSTLY
from document import DOCS, table, write_block
from runs import Record, keep, ordered

from pyro_osds.explore.survey import survey
from pyro_osds.model.target import ModelTarget
from pyro_osds.settings import Settings
from pyro_osds.target import FunctionTarget

RESULTS = HERE / "results" / "exploring.jsonl"
CASES = {case.name: case for case in [*(Case(name, model) for name, model in COSTLY.items()), *all_cases()]}


def counted(target: ModelTarget | FunctionTarget) -> list[int]:
    """A count that grows with each point that the target evaluates."""
    count = [0]
    name = "log_prior_and_likelihood" if isinstance(target, ModelTarget) else "log_prob"
    evaluate = getattr(target, name)

    def counting(z):
        count[0] += len(z)
        return evaluate(z)

    setattr(target, name, counting)

    return count


def measure(case: Case, seed: int) -> Record:
    """One exploration, as a line of the file."""
    pyro.set_rng_seed(seed)
    target = FunctionTarget(case.model, case.dim) if case.dim else ModelTarget(case.model)
    count, start = counted(target), time.process_time()
    found = survey(target, Settings().particles(target))
    seconds, exploration = time.process_time() - start, found.exploration

    return {
        "posterior": case.name,
        "seed": seed,
        "terms": target.num_terms,
        "seconds": seconds,
        "points": count[0],
        "log_evidence": exploration.log_evidence,
        "std_error": exploration.std_error,
        "error": exploration.log_evidence - case.log_evidence,
        "torch": torch.__version__,
    }


def report(records: list[Record]) -> str:
    rows = [
        [
            record["posterior"],
            f"{record['terms']:,}" if record["terms"] else "few",
            record["seed"],
            f"{record['seconds']:.1f}",
            f"{record['points']:,}",
            f"{record['log_evidence']:.3f} ± {record['std_error']:.3f}",
            "" if math.isnan(record["error"]) else f"{record['error']:+.3f}",
        ]
        for record in records
    ]
    versions = ", ".join(sorted({record["torch"] for record in records}))
    header = ["posterior", "terms", "seed", "CPU s", "points", "log evidence of exploration", "error"]

    return f"torch {versions}, one thread.\n\n{table(header, rows, 'lrrrrrr')}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=list(CASES), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--report", action="store_true", help="write the table, run nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in [] if options.report else options.only:
        for seed in options.seeds:
            keep(measure(CASES[name], seed), RESULTS, "posterior", "seed")
    text = report(ordered(RESULTS, "posterior", CASES))
    print(text)
    if options.report:
        write_block("exploring", text, DOCS / "performance.md")

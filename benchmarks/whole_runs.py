"""What whole runs take, and what they give: CPU seconds, log evidence and effective posterior draws.

    python benchmarks/whole_runs.py [--only NAME ...] [--seeds 0] [--target-std-error 0.01 0.003]
    python benchmarks/whole_runs.py --report   # the table in docs/performance.md

Default settings of OSDS but for the standard error that is asked for, one row for each; a line each of
benchmarks/results/whole_runs.jsonl. Errors are in nats, where the truth is known. Without `--only`, the posteriors are
those of which the page tells.
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
from target_cases import beyond_one_bijection, target_cases

from pyro_osds import OSDS

RESULTS = HERE / "results" / "whole_runs.jsonl"
CASES: dict[str, Case] = {
    case.name: case
    for case in (
        *target_cases(),
        *beyond_one_bijection(),
        *all_cases(),
        *(Case(name, model) for name, model in COSTLY.items()),
    )
}
USUAL = ("sonar", "ionosphere", "breast cancer", "German credit", "eight schools", "arK", "four Gaussians")


def measure(case: Case, seed: int, target_std_error: float) -> Record:
    """One run, as a line of the file."""
    pyro.set_rng_seed(seed)
    options = {"disable_progbar": True, "target_std_error": target_std_error}
    osds = OSDS.from_log_prob(case.model, case.dim, **options) if case.dim else OSDS(case.model, **options)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the verdict is in the record
        osds.run()
    seconds, evidence = time.process_time() - start, osds.evidence
    diagnostics = [value for value in osds.diagnostics().values() if "n_eff" in value]

    return {
        "posterior": case.name,
        "dim": osds.fit.target.dim,
        "target_std_error": target_std_error,
        "seed": seed,
        "seconds": seconds,
        "log_evidence": evidence.log_evidence,
        "std_error": evidence.std_error,
        "error": evidence.log_evidence - case.log_evidence,
        "effective": min(torch.as_tensor(value["n_eff"]).min().item() for value in diagnostics),
        "reliable": evidence.reliable,
        "reasons": list(evidence.reasons),
        "torch": torch.__version__,
    }


def report(records: list[Record]) -> str:
    rows = [
        [
            f"{record['posterior']}, {record['dim']}-D",
            f"{record['target_std_error']:g}",
            record["seed"],
            f"{record['seconds']:.1f}",
            f"{record['log_evidence']:.4f} ± {record['std_error']:.4f}",
            "" if math.isnan(record["error"]) else f"{record['error']:+.4f}",
            f"{record['effective']:,.0f}",
            "reliable" if record["reliable"] else "not reliable",
        ]
        for record in records
    ]
    versions = ", ".join(sorted({record["torch"] for record in records}))
    header = ["posterior", "asked for", "seed", "CPU s", "log evidence", "error", "effective draws of 4,000", "verdict"]

    return f"torch {versions}, one thread.\n\n{table(header, rows, 'lrrrrrrl')}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=USUAL, metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--target-std-error", type=float, nargs="+", default=[0.01])
    parser.add_argument("--report", action="store_true", help="write the table, run nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in [] if args.report else args.only:
        for seed in args.seeds:
            for target_std_error in args.target_std_error:
                keep(measure(CASES[name], seed, target_std_error), RESULTS, "posterior", "target_std_error", "seed")
    text = report(ordered(RESULTS, "posterior", (*USUAL, *CASES)))
    print(text)
    if args.report:
        write_block("whole-runs", text, DOCS / "performance.md")

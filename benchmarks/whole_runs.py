"""What whole runs take, and what they give: CPU seconds, log evidence and effective posterior draws.

    python benchmarks/whole_runs.py [--only NAME ...] [--seeds 0] [--target-std-error 0.01 0.003]

Default settings of OSDS but for the standard error that is asked for, one row for each. Errors are in nats, where the
truth is known. One thread is what `OMP_NUM_THREADS=1` gives.
"""

import argparse
import time
import warnings

import pyro
import torch
from cases import Case, all_cases
from costly import COSTLY
from target_cases import beyond_one_bijection, target_cases

from pyro_osds import OSDS


def row(case: Case, seed: int, target_std_error: float) -> str:
    """A line of the table."""
    pyro.set_rng_seed(seed)
    options = {"disable_progbar": True, "target_std_error": target_std_error}
    osds = OSDS.from_log_prob(case.model, case.dim, **options) if case.dim else OSDS(case.model, **options)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the verdict is in the table
        osds.run()
    seconds, evidence = time.process_time() - start, osds.evidence
    diagnostics = [value for value in osds.diagnostics().values() if "n_eff" in value]
    effective = min(torch.as_tensor(value["n_eff"]).min().item() for value in diagnostics)
    cells = [
        case.name,
        f"{target_std_error:g}",
        f"{seed}",
        f"{seconds:.1f}",
        f"{evidence.log_evidence:.4f} ± {evidence.std_error:.4f}",
        f"{evidence.log_evidence - case.log_evidence:+.4f}",
        f"{effective:.0f}",
        "reliable" if evidence.reliable else "not reliable",
    ]

    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--target-std-error", type=float, nargs="+", default=[0.01])
    args = parser.parse_args()
    every = [
        *target_cases(),
        *beyond_one_bijection(),
        *all_cases(),
        *(Case(name, model) for name, model in COSTLY.items()),
    ]
    cases = {case.name: case for case in every}
    print("| posterior | asked for | seed | CPU s | log evidence | error | effective draws | verdict |")
    print("|---|--:|--:|--:|--:|--:|--:|---|")
    for name in args.only or cases:
        for seed in args.seeds:
            for target_std_error in args.target_std_error:
                print(row(cases[name], seed, target_std_error), flush=True)

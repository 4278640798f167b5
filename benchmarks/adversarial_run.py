"""One run of one adversarial case, in a process of its own: its record is the last line that is printed.

python benchmarks/adversarial_run.py NAME SEED
"""

import json
import sys
import time
import warnings

import pyro
import torch
from adversarial_cases import CASES, Case
from adversarial_verdict import moment_errors, numbers
from runs import Record


def measure(case: Case, seed: int) -> Record:
    """Default settings; the seconds are those of the run, without those of the truth."""
    pyro.set_rng_seed(seed)
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the verdict is in the record
            osds, args = case.make()
            osds.run(*args)
        found = numbers(osds.evidence) | moment_errors(osds.get_samples(), case.posterior())
    except Exception as error:  # whatever it is, the benchmark goes on
        found = {"failed": f"{type(error).__name__}: {error}"}

    return found | {"seconds": round(time.perf_counter() - start, 1)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measure(CASES[sys.argv[1]], int(sys.argv[2]))))

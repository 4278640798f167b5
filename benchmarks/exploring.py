"""What exploration takes: CPU seconds, evaluations and its own log evidence, on densities of all costs.

    python benchmarks/exploring.py [--only NAME ...] [--seeds 0 1 2]

Exploration alone, with default settings. "Points" are all points at which the density was evaluated, with a gradient or
without; the error of the log evidence of exploration is in nats, where the truth is known.
"""

import argparse
import time
import warnings

import pyro
from cases import Case, all_cases
from costly import COSTLY

from pyro_osds.explore.survey import survey
from pyro_osds.model.target import ModelTarget
from pyro_osds.settings import Settings
from pyro_osds.target import FunctionTarget


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


def row(case: Case, seed: int) -> str:
    """A line of the table."""
    pyro.set_rng_seed(seed)
    target = FunctionTarget(case.model, case.dim) if case.dim else ModelTarget(case.model)
    count, start = counted(target), time.process_time()
    found = survey(target, Settings().particles(target))
    seconds, exploration = time.process_time() - start, found.exploration
    cells = [
        case.name,
        f"{target.num_terms:,}" if target.num_terms else "few",
        f"{seed}",
        f"{seconds:.1f}",
        f"{count[0]:,}",
        f"{exploration.log_evidence:.3f} ± {exploration.std_error:.3f}",
        f"{exploration.log_evidence - case.log_evidence:+.3f}",
    ]

    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    cases = [*(Case(name, model) for name, model in COSTLY.items()), *all_cases()]
    print("| posterior | terms | seed | CPU s | points | log evidence | error |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for case in cases:
        for seed in options.seeds if not options.only or case.name in options.only else ():
            print(row(case, seed), flush=True)

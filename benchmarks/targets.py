"""Log evidence, ELBO, tails, modes and seconds on the targets of diffusion samplers.

    python benchmarks/targets.py [--seeds 0 1 2 3 4] [--only NAME ...]

Default settings of OSDS, one step, but for `target_std_error=0.003`: the ELBO is what others print of these targets,
and the default stops training where draws give the log evidence to 0.01 nats. Each row is one seed. "modes" counts
those with a posterior draw, out of all; "weight err" is the largest error of a mode's share of the draws or, where
every coordinate has two wells, of the share in the positive one. "missed" names what the case requires and the run did
not reach, whatever its own verdict. A log evidence must also lie within three standard errors of the truth, and the
ELBO below the truth plus three standard errors.
"""

from report import EVIDENCE_HEADER, Result, evidence_cells, missed, print_table
from target_cases import target_cases


def row(result: Result) -> list[str]:
    modes = result.modes
    return [
        *evidence_cells(result),
        f"{modes.drawn}/{modes.total}" if modes.total else "-",
        f"{modes.max_error:.3f}" if modes.total else "-",
        f"{result.seconds:.1f}",
        "reliable" if result.osds.evidence.reliable else "not reliable",
        ", ".join(missed(result)) or "-",
    ]


if __name__ == "__main__":
    header = (*EVIDENCE_HEADER, "modes", "weight err", "s", "verdict", "missed")
    print_table(__doc__, target_cases(), header, row, target_std_error=0.003)

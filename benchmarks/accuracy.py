"""Log evidence, ELBO, moments, tails and seconds on posteriors where the truth is known.

    python benchmarks/accuracy.py [--seeds 0 1 2 3 4] [--only NAME ...]

Default settings of OSDS, one step. Each row is one seed; "fails" names what missed its requirement. A log evidence must
also lie within three standard errors of the truth, and the ELBO below the truth plus three standard errors.
"""

import math

import torch
from cases import Case, all_cases
from report import EVIDENCE_HEADER, Result, evidence_cells, missed, print_table

from pyro_osds import OSDS

# What every case must reach, besides its own requirements.
MAX_MEAN_ERROR, MIN_SD_RATIO, MAX_SD_RATIO, MAX_PARETO_K, MAX_WEIGHT_ERROR = 0.1, 0.9, 1.1, 0.7, 0.05


def moment_errors(case: Case, osds: OSDS) -> tuple[float, float, float]:
    """Largest error of a mean in reference sds, smallest and largest ratio of sds."""
    if not case.moments:
        return math.nan, math.nan, math.nan
    posterior = osds.to_inference_data(log_likelihood=False)["posterior"]
    errors, ratios = [], []
    for name, reference in case.moments.items():
        site, _, index = name.rstrip("]").partition("[")
        values = torch.as_tensor(posterior[site].values).flatten(0, 1)
        column = values[:, int(index) - 1] if index else values
        errors.append(abs(column.mean().item() - reference["mean"]) / reference["sd"])
        ratios.append(column.std().item() / reference["sd"])

    return max(errors), min(ratios), max(ratios)


def failures(result: Result, moments: tuple[float, float, float]) -> list[str]:
    case, evidence = result.case, result.osds.evidence
    checks = {
        "pareto k": evidence.pareto_k >= MAX_PARETO_K,
        "mean": moments[0] > MAX_MEAN_ERROR,
        "sd": moments[1] < MIN_SD_RATIO or moments[2] > MAX_SD_RATIO,
        "modes": result.modes.max_error > MAX_WEIGHT_ERROR,
        "not refused": case.improper and not (math.isnan(evidence.log_evidence) and not evidence.reliable),
        "verdict": not case.improper and not evidence.reliable,
    }

    return missed(result) + [name for name, failed in checks.items() if failed]


def row(result: Result) -> list[str]:
    moments = moment_errors(result.case, result.osds)
    return [
        *evidence_cells(result),
        f"{moments[0]:.3f}",
        f"{moments[1]:.3f}-{moments[2]:.3f}",
        f"{result.modes.max_error:.3f}",
        f"{result.seconds:.1f}",
        ", ".join(failures(result, moments)) or "-",
    ]


if __name__ == "__main__":
    header = (*EVIDENCE_HEADER, "mean err/sd", "sd ratio", "mode err", "s", "fails")
    print_table(__doc__, all_cases(), header, row)

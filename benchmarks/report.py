"""What the benchmarks share: one run of a case, the modes it found, the requirements it missed, the table."""

import math
import time
import warnings
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from cases import Case
from torch import Tensor

from pyro_osds import OSDS


@dataclass(frozen=True)
class Modes:
    """How many of the known modes hold a posterior draw, and the largest error of a weight."""

    drawn: int = 0
    total: int = 0
    max_error: float = math.nan


@dataclass(frozen=True)
class Result:
    """One run of a case; the seconds are those of the whole run, with its draws and their verdict, by two clocks."""

    case: Case
    seed: int
    osds: OSDS
    seconds: float
    modes: Modes
    processor_seconds: float = math.nan


def run(case: Case, seed: int, **options: Any) -> Result:
    """Default settings but for those given, one step."""
    pyro.set_rng_seed(seed)
    options = {"symmetries": case.symmetries, **options} if case.symmetries else options
    if case.dim:
        osds = OSDS.from_log_prob(case.model, case.dim, disable_progbar=True, **options)
    else:
        osds = OSDS(case.model, disable_progbar=True, **options)
    start, processor = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the verdict is printed in the table
        osds.run()
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    modes = found_modes(case, osds.get_samples()["z"]) if case.dim else Modes()

    return Result(case, seed, osds, seconds, modes, processor)


def found_modes(case: Case, z: Tensor) -> Modes:
    """The modes among posterior draws `(S, D)`, told apart by the nearest centre or by the signs in the wells."""
    if case.modes is not None:
        centres, weights = case.modes
        counts = torch.cdist(z, centres.to(z)).argmin(1).bincount(minlength=len(weights))
        return Modes(int((counts > 0).sum()), len(weights), (counts / len(z) - weights).abs().max().item())
    if case.wells is not None:
        coordinates, share = case.wells
        positive = z[:, coordinates] > 0
        error = (positive.float().mean(0) - share).abs().max().item()
        return Modes(len(positive.unique(dim=0)), 2 ** len(coordinates), error)

    return Modes()


def missed(result: Result) -> list[str]:
    """The requirements of the case that this run does not meet.

    Whatever the case asks, a log evidence must lie within three standard errors of the truth, and the ELBO, a lower
    bound, not above the truth by more than that. Seconds are those of the processor, which others hardly change.
    """
    case, evidence, modes = result.case, result.osds.evidence, result.modes
    checks = {}
    if not case.improper:
        error = abs(evidence.log_evidence - case.log_evidence)
        std_error = math.hypot(evidence.std_error, case.log_evidence_se)
        checks = {
            # Written so that a nan is a miss.
            "error": not error <= case.max_error,
            "3 se": not error <= 3 * std_error,
            "ELBO": not evidence.elbo >= case.min_elbo,
            "ELBO above log Z": not evidence.elbo <= case.log_evidence + 3 * std_error,
        }
    checks |= {
        "pareto k": evidence.pareto_k > case.max_pareto_k,
        "ESS": not evidence.ess >= case.min_ess * evidence.num_draws,
        "modes": case.all_modes and modes.drawn < modes.total,
        "weights": modes.max_error > case.max_weight_error,
        "seconds": result.processor_seconds > case.max_seconds,
    }

    return [name for name, failed in checks.items() if failed]


def taken(osds: OSDS) -> str:
    """The stage whose draws a run gives: a last one that was no better is reported, and not taken."""
    return next(line for line in reversed(osds.run_report) if not line.endswith("not taken")).partition(":")[0]


# ---- the table ----

EVIDENCE_HEADER = ("case", "seed", "log Z", "se", "error", "ELBO", "pareto k", "ESS")


def evidence_cells(result: Result) -> list[str]:
    case, evidence = result.case, result.osds.evidence
    return [
        case.name,
        str(result.seed),
        f"{evidence.log_evidence:.4f}",
        f"{evidence.std_error:.4f}",
        f"{evidence.log_evidence - case.log_evidence:+.4f}",
        f"{evidence.elbo:.4f}",
        f"{evidence.pareto_k:.2f}",
        f"{evidence.ess / evidence.num_draws:.3f}",
    ]

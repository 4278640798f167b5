"""Log evidence, ELBO, moments, tails and seconds on posteriors where the truth is known.

    python benchmarks/accuracy.py [--seeds 0 1 2 3 4] [--only NAME ...]

Default settings of OSDS, one step. Each row is one seed; "fails" names what missed its requirement. A log evidence must
also lie within three standard errors of the truth, and the ELBO below the truth plus three standard errors.
"""

import argparse
import math
import time
import warnings

import pyro
import torch
from cases import Case, all_cases

from pyro_osds import OSDS

MAX_MEAN_ERROR, MIN_SD_RATIO, MAX_SD_RATIO, MAX_PARETO_K, MAX_WEIGHT_ERROR = 0.1, 0.9, 1.1, 0.7, 0.05


def run(case: Case, seed: int) -> tuple[OSDS, float]:
    pyro.set_rng_seed(seed)
    if case.dim:
        osds = OSDS.from_log_prob(case.model, case.dim, disable_progbar=True)
    else:
        osds = OSDS(case.model, disable_progbar=True)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the verdict is printed in the table
        osds.run()

    return osds, time.perf_counter() - start


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


def mode_error(case: Case, osds: OSDS) -> float:
    """Largest error of a mode's share among the posterior draws."""
    if case.modes is None:
        return math.nan
    centres, weights = case.modes
    nearest = torch.cdist(osds.get_samples()["z"], centres).argmin(1)

    return (nearest.bincount(minlength=len(weights)) / len(nearest) - weights).abs().max().item()


def failures(case: Case, osds: OSDS, seconds: float, moments: tuple[float, float, float], weight: float) -> list[str]:
    evidence = osds.evidence
    error = abs(evidence.log_evidence - case.log_evidence)
    std_error = math.hypot(evidence.std_error, case.log_evidence_se)
    checks = {
        "error": error > case.max_error,
        "3 se": error > 3 * std_error,
        "ELBO": evidence.elbo < case.min_elbo or evidence.elbo > case.log_evidence + 3 * std_error,
        "pareto k": evidence.pareto_k >= MAX_PARETO_K,
        "seconds": seconds > case.max_seconds,
        "mean": moments[0] > MAX_MEAN_ERROR,
        "sd": moments[1] < MIN_SD_RATIO or moments[2] > MAX_SD_RATIO,
        "modes": weight > MAX_WEIGHT_ERROR,
        "not refused": case.improper and not (math.isnan(evidence.log_evidence) and not evidence.reliable),
        "verdict": not case.improper and not evidence.reliable,
    }

    return [name for name, failed in checks.items() if failed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", nargs="+", default=None, help="names of cases")
    args = parser.parse_args()
    cases = [case for case in all_cases() if args.only is None or case.name in args.only]
    print(
        "| case | seed | log Z | se | error | ELBO | pareto k | ESS | mean err/sd | sd ratio | mode err | s | fails |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|")
    for case in cases:
        for seed in args.seeds:
            osds, seconds = run(case, seed)
            evidence, moments, weight = osds.evidence, moment_errors(case, osds), mode_error(case, osds)
            failed = ", ".join(failures(case, osds, seconds, moments, weight)) or "-"
            print(
                f"| {case.name} | {seed} | {evidence.log_evidence:.4f} | {evidence.std_error:.4f} | "
                f"{evidence.log_evidence - case.log_evidence:+.4f} | {evidence.elbo:.4f} | {evidence.pareto_k:.2f} | "
                f"{evidence.ess / evidence.num_draws:.3f} | {moments[0]:.3f} | {moments[1]:.3f}-{moments[2]:.3f} | "
                f"{weight:.3f} | {seconds:.1f} | {failed} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

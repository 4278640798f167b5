"""Twenty known evidences from draws of NUTS: from a flow, and by bridge sampling.

    python benchmarks/evidence_from_samples.py [--only NAME ...] [--chains 4] [--draws 150] [--warmup 150]
                                               [--cache DIR] [--out FILE] [--report]

Draws are made by Pyro's NUTS on the model's recorded density, and kept in DIR; all methods get the same ones. Seconds
are those of the processor (one thread), after the draws. Each line of FILE is a case; cases that it
has are not repeated. `--report` writes the table to docs/any_fit.md.
"""

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from cases import all_cases
from conjugate import conjugate_model
from document import DOCS, table, write_block
from pyro.infer import MCMC, NUTS
from torch import Tensor

from pyro_osds import evidence_from_samples
from pyro_osds.model import ModelTarget

OUT = Path(__file__).parent / "results" / "evidence_from_samples.jsonl"
PAGE = DOCS / "any_fit.md"
KNOWN = (
    "eight schools",
    "radiata pine, density",
    "radiata pine, adjusted",
    "arK",
    "sblri",
    "gp_regr",
    "German credit",
    "eight schools, centred",
)
FAMILIES = (
    "normal vector",
    "normal regression",
    "normal hierarchy",
    "crossed effects",
    "regression",
    "normal-gamma",
    "variance hierarchy",
    "normal variances",
    "beta-binomial",
    "gamma-Poisson",
    "gamma-exponential",
    "Dirichlet-multinomial",
)
Numbers = tuple[float, float]


def models() -> dict[str, tuple[Callable[[], Any], float, float]]:
    """Models by name, each with its log evidence and what that is known to."""
    known = {case.name: (case.model, case.log_evidence, case.log_evidence_se) for case in all_cases()}
    chosen = {name: known[name] for name in KNOWN}

    return {name: (*conjugate_model(name, 1), 0.0) for name in FAMILIES} | chosen


def nuts_draws(target: ModelTarget, num_chains: int, num_draws: int, warmup: int) -> Tensor:
    """Draws in unconstrained space, ``(num_chains, num_draws, D)``."""
    chains = []
    for _ in range(num_chains):
        # A recorded density takes batches: one of 64 equal points is faster than a single point.
        kernel = NUTS(potential_fn=lambda at: -target.log_prob(at["z"].expand(64, -1))[0], max_tree_depth=6)
        mcmc = MCMC(
            kernel,
            num_draws,
            warmup_steps=warmup,
            initial_params={"z": target.start + 0.1 * torch.randn_like(target.start)},
            disable_progbar=True,
        )
        mcmc.run()
        chains.append(mcmc.get_samples()["z"])

    return torch.stack(chains)


# ---- the other method ----


def bridge_sampling(target: ModelTarget, z: Tensor) -> Numbers:
    """With a Gaussian fitted to the first half of each chain, the usual choice, and the iteration of Meng and Wong."""
    half = z.shape[1] // 2
    fitted, held = z[:, :half].flatten(0, 1), z[:, half:].flatten(0, 1)
    proposal = torch.distributions.MultivariateNormal(fitted.mean(0), fitted.mT.cov())
    drawn = proposal.sample((len(held),))
    with torch.no_grad():
        theirs, ours = (target.log_prob(x) - proposal.log_prob(x) for x in (held, drawn))
    shift = theirs.median()
    w_p, w_q = (theirs - shift).exp(), (ours - shift).exp().nan_to_num(0.0)
    ratio = torch.ones((), dtype=z.dtype)
    for _ in range(1000):
        before = ratio
        ratio = (w_q / (0.5 * w_q + 0.5 * ratio)).mean() / (1.0 / (0.5 * w_p + 0.5 * ratio)).mean()
        if (ratio / before - 1).abs() < 1e-10:
            break
    f, g = w_q / (0.5 * w_q + 0.5 * ratio), 1.0 / (0.5 * w_p + 0.5 * ratio)
    chains = g.view(len(z), -1).mean(1)
    error = torch.stack([f.std() / f.mean() / len(f) ** 0.5, chains.std() / g.mean() / len(z) ** 0.5]).norm()

    return (ratio.log() + shift).item(), error.item()


# ---- runs and report ----


def timed(method: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()

    return method(), time.process_time() - start


def run(name: str, model: Callable[[], Any], exact: float, exact_se: float, options: argparse.Namespace) -> dict:
    pyro.set_rng_seed(0)
    target = ModelTarget(model)
    stored = options.cache / f"{name}.pt".replace(" ", "_") if options.cache else None
    if stored and stored.is_file():
        z = torch.load(stored)
    else:
        z = nuts_draws(target, options.chains, options.draws, options.warmup)
        if stored:
            torch.save(z, stored)
    samples = {site: value.unflatten(0, z.shape[:2]) for site, value in target.constrain(z.flatten(0, 1)).items()}
    pyro.set_rng_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evidence, seconds = timed(lambda: evidence_from_samples(model, samples))
    record = {
        "name": name,
        "dim": target.dim,
        "exact": exact,
        "exact_se": exact_se,
        "draws": list(z.shape[:2]),
        "osds": [evidence.log_evidence, evidence.std_error],
        "seconds": seconds,
        "reliable": evidence.reliable,
        "reasons": list(evidence.reasons),
    }
    found, record["bridge_seconds"] = timed(lambda: bridge_sampling(target, z))
    record["bridge"] = list(found)

    return record


def read(path: Path) -> dict[str, dict]:
    lines = path.read_text().splitlines() if path.is_file() else []

    return {record["name"]: record for record in map(json.loads, lines)}


def report(records: dict[str, dict]) -> str:
    def cell(record: dict, method: str) -> str:
        estimate, error = record[method]
        return f"{estimate - record['exact']:+.4f} +- {error:.4f}"

    rows = [
        (
            name,
            record["dim"],
            f"{record['exact']:.4f}",
            cell(record, "osds"),
            "reliable" if record["reliable"] else "not reliable",
            f"{record['seconds']:.1f}",
            cell(record, "bridge"),
        )
        for name, record in records.items()
    ]
    header = ["posterior", "D", "log evidence", "OSDS: error", "verdict", "s", "bridge sampling: error"]
    errors = [abs(record["osds"][0] - record["exact"]) for record in records.values()]
    within = sum(error <= 0.02 for error in errors)
    others = [abs(record["bridge"][0] - record["exact"]) <= 0.02 for record in records.values()]
    seconds = [record["seconds"] for record in records.values()]
    summary = (
        f"{within} of {len(records)} within 0.02 nats, the largest error {max(errors):.4f}; bridge sampling with a "
        f"Gaussian: {sum(others)}. After the draws {sum(seconds) / len(seconds):.1f} seconds of one core on average, "
        f"{max(seconds):.1f} at most. Draws: {' x '.join(map(str, next(iter(records.values()))['draws']))}."
    )

    return f"{summary}\n\n{table(header, rows, 'lrrrlrr')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--draws", type=int, default=150)
    parser.add_argument("--warmup", type=int, default=150)
    parser.add_argument("--cache", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.cache:
        options.cache.mkdir(parents=True, exist_ok=True)
    if not options.report:
        for name, (model, exact, exact_se) in models().items():
            if name in read(options.out) or (options.only and name not in options.only) or math.isnan(exact):
                continue
            record = run(name, model, exact, exact_se, options)
            with options.out.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(
                f"{name}: {record['osds'][0] - exact:+.4f}, {record['seconds']:.1f} s, {record['reliable']}", flush=True
            )
    records = read(options.out)
    if records:
        print(report(records))
    if options.report:
        write_block("evidence-from-samples", report(records), PAGE)


if __name__ == "__main__":
    main()

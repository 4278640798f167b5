"""The paper's sampler, trained as published but for less long, and its draws weighed in three ways.

    python benchmarks/paper.py [--only NAME ...] [--seeds 0] [--keep FOLDER]
                                              trains and measures; lines go to benchmarks/results/paper.jsonl
    python benchmarks/paper.py --report       writes the tables of docs/method.md from that file

`--keep` names a folder for trained networks: one that is there already is measured and not trained again.

Each network is trained with 128 steps, and measured with 128, 64, ..., 1 and 2,000 draws as the paper does, in double
precision. Draws of the published and of the exact volume are the same. Errors are against log Z, whose source stands in
`benchmarks/data/known_evidence.json`; standard errors are those of means over draws. Seconds are those of one core.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from document import DOCS, table, write_block
from paper_sampler import PaperTarget, Sampler, least_gap
from paper_targets import paper_targets
from paper_training import NUM_STEPS, Training
from scipy.stats import ks_2samp
from torch import Tensor

from pyro_osds.stats.weights import summarize_weights

OUT = Path(__file__).parent / "results" / "paper.jsonl"
STEPS = (128, 64, 32, 16, 8, 4, 2, 1)
NUM_DRAWS, NUM_TRUE = 2000, 20_000
BATCH_SIZE = 64
ITERATIONS = {"funnel 10-D": 2000, "MW54 5-D": 2000, "seeds 26-D": 1500, "ionosphere 35-D": 1200}


def trained(target: PaperTarget, seed: int, keep: Path | None) -> dict[str, Any]:
    """A trained network with what its training was."""
    path = keep / f"{target.name} {seed}.pt" if keep else None
    if path is not None and path.exists():
        return torch.load(path, weights_only=True)
    torch.manual_seed(seed)
    training = Training(target, ITERATIONS[target.name], BATCH_SIZE)
    start = time.process_time()
    for iteration in range(training.num_iterations):
        training.iterate()
        if iteration % 100 == 0:
            print(f"{target.name}, seed {seed}: {iteration}, loss {training.history[-1]:.2f}", flush=True)
    known = {
        "network": training.sampler.network.state_dict(),
        "iterations": training.num_iterations,
        "batch": BATCH_SIZE,
        "seconds": time.process_time() - start,
        "first_loss": training.history[0],
        "last_loss": sum(training.history[-100:]) / len(training.history[-100:]),
    }
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(known, path)

    return known


def measure(target: PaperTarget, seed: int, keep: Path | None) -> dict[str, Any]:
    """All numbers of one target and seed."""
    known = trained(target, seed, keep)
    sampler = Training(target, 1, BATCH_SIZE).sampler
    sampler.network.load_state_dict(known.pop("network"))
    sampler.network.double().requires_grad_(False)
    torch.manual_seed(seed + 1000)
    start = time.process_time()
    steps = {num_steps: measured(sampler, num_steps) for num_steps in STEPS}
    floor = _apart(target.sample(NUM_DRAWS), target) if target.sample else None
    scores = {"scale": target.scale, "learning_rate": target.learning_rate, "log_evidence": target.log_evidence}

    return {
        "name": target.name,
        "seed": seed,
        "log_evidence_se": target.std_error,
        **scores,
        **known,
        "measuring": time.process_time() - start,
        "floor": floor,
        "least_gap": least_gap(target, NUM_STEPS),
        "steps": steps,
    }


def measured(sampler: Sampler, num_steps: int) -> dict[str, Any]:
    """The ways to weigh draws in one number of steps: means of log weights less log Z, with standard errors."""
    target = sampler.target
    like = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        _, of_paths = sampler.paths(sampler.prior(NUM_DRAWS, like), num_steps)
    x = sampler.prior(NUM_DRAWS, like)
    z, counts = sampler.flow(x, num_steps)
    plain = target.log_prob(z) - sampler.log_prior(x)
    ways = {"backward": of_paths} | {name: plain + counts[name] for name in ("published", "exact")}
    parts = {"curvature": counts["traced"] - counts["curved"], "trace": counts["curved"] - counts["exact"]}
    found: dict[str, Any] = {name: _estimates(log_weight, target) for name, log_weight in ways.items()}
    found |= {name: _mean(part) for name, part in parts.items()}
    found["excess"] = _mean(counts["published"] - counts["exact"])
    found["folded"] = counts["folded"].mean().item()
    found["apart"] = _apart(z, target) if target.sample else None

    return found


def _estimates(log_weight: Tensor, target: PaperTarget) -> dict[str, float]:
    """ELBO and log evidence, both less log Z, with standard errors; what the weights are worth."""
    weights = summarize_weights(log_weight)
    elbo = _mean(log_weight - target.log_evidence)

    return {
        "elbo": elbo["mean"],
        "elbo_se": elbo["std_error"],
        "median": (log_weight.median() - target.log_evidence).item(),
        "error": weights.log_mean_weight - target.log_evidence,
        "std_error": weights.std_error,
        "ess": weights.ess / len(log_weight),
        "pareto_k": weights.pareto_k,
    }


def _mean(values: Tensor) -> dict[str, float]:
    return {"mean": values.mean().item(), "std_error": values.std().item() / math.sqrt(len(values))}


def _apart(z: Tensor, target: PaperTarget) -> float:
    """The largest Kolmogorov-Smirnov distance of a coordinate of draws from that of true ones."""
    assert target.sample is not None
    true = target.sample(NUM_TRUE)

    return max(float(ks_2samp(mine, yours).statistic) for mine, yours in zip(z.T.numpy(), true.T.numpy(), strict=True))


# ---- the tables ----


def rows(results: list[dict[str, Any]]) -> list[list[str]]:
    """A line for each target, seed and number of steps."""
    lines = []
    for result in results:
        for num_steps, at in result["steps"].items():
            elbos = [f"{at[way]['elbo']:+.2f} ({at[way]['elbo_se']:.2f})" for way in ("backward", "published", "exact")]
            parts = [f"{at[part]['mean']:+.2f} ({at[part]['std_error']:.2f})" for part in ("curvature", "trace")]
            errors = [f"{at[way]['error']:+.2f} ({at[way]['std_error']:.2f})" for way in ("published", "exact")]
            apart = "-" if at["apart"] is None else f"{at['apart']:.3f} / {result['floor']:.3f}"
            name = f"{result['name']}, seed {result['seed']}"
            lines.append([name, num_steps, *elbos, *parts, *errors, f"{at['folded']:.3f}", apart])

    return lines


def training_rows(results: list[dict[str, Any]]) -> list[list[str]]:
    """How each network was trained."""
    return [
        [
            f"{result['name']}, seed {result['seed']}",
            f"{result['log_evidence']:.4f} ({result['log_evidence_se']:.4f})",
            f"{result['scale']:g}",
            f"{result['learning_rate']:g}",
            f"{result['iterations']:,}",
            f"{result['batch']}",
            f"{result['seconds']:.0f}",
            f"{result['first_loss'] + result['log_evidence']:+.2f}",
            f"{result['last_loss'] + result['log_evidence']:+.2f}",
            "-" if result["least_gap"] is None else f"{result['least_gap']:+.2f}",
        ]
        for result in results
    ]


def report() -> None:
    """Write both tables; the last line of a target and seed in the file counts."""
    lines = [json.loads(line) for line in OUT.read_text().splitlines()]
    last = {(line["name"], line["seed"]): line for line in lines}
    results = [last[key] for key in sorted(last, key=lambda key: (list(ITERATIONS).index(key[0]), key[1]))]
    header = [
        "target",
        "log Z",
        "prior sd",
        "learning rate",
        "iterations",
        "batch",
        "CPU s",
        "gap before",
        "after",
        "at least",
    ]
    write_block("paper-training", table(header, training_rows(results), "lrrrrrrrrr"), DOCS / "method.md")
    header = ["target", "steps", "ELBO, kernel", "ELBO, published", "ELBO, exact", "by curvature", "by trace"]
    header += ["log Z, published", "log Z, exact", "folds", "KS / floor"]
    write_block("paper", table(header, rows(results), "lrrrrrrrrrr"), DOCS / "method.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    targets = paper_targets()
    parser.add_argument("--only", nargs="*", default=list(targets), choices=list(targets), metavar="NAME")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--keep", type=Path, default=None)
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    if arguments.report:
        report()
        return
    for name in arguments.only:
        for seed in arguments.seeds:
            line = json.dumps(measure(targets[name], seed, arguments.keep))
            with OUT.open("a") as file:
                file.write(line + "\n")
            print(line, flush=True)


if __name__ == "__main__":
    main()

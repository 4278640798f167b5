"""The diffusion in few steps against annealed SMC, on densities that no bijection of a Gaussian covers.

    python benchmarks/walk.py [--only NAME ...] [--seeds 0]     measures; lines go to benchmarks/results/walk.jsonl
    python benchmarks/walk.py --students [--only NAME ...]      the same for one-step flows that learn from either
    python benchmarks/walk.py --report                          writes the tables of docs/method.md from that file

Each density is explored once. The walk starts from one Gaussian around the particles, whatever base exploration chose,
is trained once, and draws 8,192 paths in 1, 4, 8, ..., 64 steps. Annealed SMC, as the last stage of a run does it,
starts from the same exploration; it is doubled while the next run would end within the seconds that training and the
draws in 64 steps took. Seconds are those of the processor.

A student is the flow of ``recipe="cover"`` with 600 iterations, given the explored particles or as many draws of the
walk in 32 steps, resampled by their weights; all else is the same.

True log evidences are closed forms and quadratures, but for four particles in double wells, whose 29.665(6) is the mean
of long runs of annealed SMC.
"""

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from document import DOCS, table, write_block
from target_cases import forty_gaussians, tilted_wells
from torch import Tensor

from pyro_osds.explore.survey import survey
from pyro_osds.flow.base import gaussian_base
from pyro_osds.flow.kernel import KernelNetwork
from pyro_osds.flow.walk import Walk
from pyro_osds.posterior.annealed import AnnealedSMC
from pyro_osds.stats.weights import log_weights_at, summarize_weights, weigh
from pyro_osds.target import FunctionTarget, as_target
from pyro_osds.train.budget import Budget
from pyro_osds.train.recipe import Recipe
from pyro_osds.train.walk import WalkBudget, train_walk

OUT = Path(__file__).parent / "results" / "walk.jsonl"
NUM_DRAWS, STEPS = 8192, (1, 4, 8, 16, 32, 64)
NINE = torch.cartesian_prod(*[torch.tensor([-5.0, 0.0, 5.0], dtype=torch.float64)] * 2)
# One pair of the many-well density, by quadrature.
LOG_PAIR = 10.293480


class Density(NamedTuple):
    log_prob: Any
    dim: int
    log_evidence: float


def shell(z: Tensor, radius: float = 3.0, width: float = 0.1) -> Tensor:
    return -0.5 * ((z.norm(dim=-1) - radius) / width).square()


def shell_log_evidence(dim: int, radius: float, width: float) -> float:
    """A Gaussian in the radius: its moments in closed form, since the origin is thirty standard deviations away."""
    area = 2.0 * math.pi ** (0.5 * dim) / math.gamma(0.5 * dim)
    moment = {2: radius, 3: radius**2 + width**2}[dim]

    return math.log(area * moment * width * math.sqrt(2.0 * math.pi))


def two_rings(z: Tensor) -> Tensor:
    aside = z.new_tensor([3.0, 0.0])

    return torch.logaddexp(shell(z - aside, 2.0), shell(z + aside, 2.0) - math.log(2.0))


def nine_gaussians(z: Tensor) -> Tensor:
    square = (z[:, None] - NINE.to(z)).square().sum(-1) / 0.25

    return torch.logsumexp(-0.5 * square, -1) - math.log(9.0 * 2.0 * math.pi * 0.25)


def four_particles(z: Tensor) -> Tensor:
    """Four particles in the plane with a double well between any two, without their centre: three Jacobi vectors."""
    jacobi = z.new_zeros(4, 3)
    for k in range(1, 4):
        jacobi[:k, k - 1], jacobi[k, k - 1] = 1.0, -float(k)
    jacobi = jacobi / jacobi.norm(dim=0)
    x = jacobi @ z.view(-1, 3, 2)
    first, second = torch.triu_indices(4, 4, 1)
    stretch = (x[:, first] - x[:, second]).norm(dim=-1) - 4.0

    return -(0.9 * stretch.pow(4) - 4.0 * stretch.square()).sum(-1)


DENSITIES = {
    "ring 2-D": Density(shell, 2, shell_log_evidence(2, 3.0, 0.1)),
    "shell 3-D": Density(shell, 3, shell_log_evidence(3, 3.0, 0.1)),
    "two rings 2-D": Density(two_rings, 2, shell_log_evidence(2, 2.0, 0.1) + math.log(1.5)),
    "9 Gaussians 2-D": Density(nine_gaussians, 2, 0.0),
    "40 Gaussians 2-D": Density(forty_gaussians, 2, 0.0),
    "many-well 6-D": Density(tilted_wells, 6, 3 * LOG_PAIR),
    "many-well 12-D": Density(tilted_wells, 12, 6 * LOG_PAIR),
    "four particles 6-D": Density(four_particles, 6, 29.665),
}


def measure(name: str, seed: int) -> dict[str, Any]:
    """All numbers of one density and seed."""
    density = DENSITIES[name]
    torch.manual_seed(seed)
    given = as_target(FunctionTarget(density.log_prob, density.dim))
    found = survey(given)
    target, particles = found.target, found.exploration.z
    base = gaussian_base(particles)
    budget = WalkBudget()
    walk = Walk(target, base, KernelNetwork(target.dim, budget.hidden_features))
    start = time.process_time()
    history = train_walk(walk, particles, budget)
    seconds = time.process_time() - start
    steps, true, drawn = {}, density.log_evidence, 0.0
    for num_steps in STEPS:
        few = walk.in_steps(num_steps)
        start = time.process_time()
        weights = summarize_weights(weigh(few, target, NUM_DRAWS).log_weight)
        drawn = time.process_time() - start
        upper = log_weights_at(few, target, base.from_whitened(history.u)).mean().item()
        steps[num_steps] = {
            "error": weights.log_mean_weight - true,
            "std_error": weights.std_error,
            "ess": weights.ess / NUM_DRAWS,
            "pareto_k": weights.pareto_k,
            "elbo": weights.elbo - true,
            "eubo": upper - true,
            "seconds": drawn,
        }
    start = time.process_time()
    runs = annealed(given, found, seconds + drawn)
    smc = {"error": runs[0] - true, "std_error": runs[1], "seconds": time.process_time() - start, "particles": runs[2]}

    return {"name": name, "seed": seed, "train": seconds, "held_out": history.held_out, "steps": steps, "smc": smc}


def measure_students(name: str, seed: int) -> dict[str, Any]:
    """One-step flows that learn from explored particles, and from draws of the walk."""
    density = DENSITIES[name]
    torch.manual_seed(seed)
    found = survey(as_target(FunctionTarget(density.log_prob, density.dim)))
    target, explored = found.target, found.exploration
    budget = WalkBudget()
    walk = Walk(target, gaussian_base(explored.z), KernelNetwork(target.dim, budget.hidden_features), 32)
    train_walk(walk, explored.z, budget)
    draws = weigh(walk, target, 2 * NUM_DRAWS)
    chosen = torch.multinomial(draws.log_weight.softmax(0), len(explored.z), replacement=True)
    students = {}
    of_walk = replace(explored, z=draws.z[chosen], log_prob=draws.log_prob[chosen])
    for teacher, exploration in (("particles", explored), ("walk", of_walk)):
        torch.manual_seed(seed)
        start = time.process_time()
        recipe = Recipe(replace(found, exploration=exploration), "cover", Budget(num_iterations=600))
        recipe.run()
        seconds = time.process_time() - start
        weights = summarize_weights(weigh(recipe.trainer.leap, target, NUM_DRAWS).log_weight)
        students[teacher] = {
            "error": weights.log_mean_weight - density.log_evidence,
            "std_error": weights.std_error,
            "ess": weights.ess / NUM_DRAWS,
            "pareto_k": weights.pareto_k,
            "elbo": weights.elbo - density.log_evidence,
            "seconds": seconds,
        }

    return {"name": name, "seed": seed, "students": students}


def annealed(given: Any, found: Any, seconds: float) -> tuple[float, float, int]:
    """Annealed SMC, doubled while the next run ends within the seconds: log evidence, standard error, particles."""
    smc = AnnealedSMC(given, found, None, 4, 1000, 1e-9)
    start, count, last = time.process_time(), 64, 0.0
    while True:
        begun = time.process_time()
        run = smc._annealed(count)
        last = time.process_time() - begun
        if time.process_time() - start + 2.0 * last > seconds:
            return run.log_evidence, run.std_error, len(run.z)
        count *= 2


def rows(results: list[dict[str, Any]]) -> list[list[str]]:
    """Lines of the table; the last line of a density and seed in the file counts."""
    lines = []
    for result in {(result["name"], result["seed"]): result for result in results if "steps" in result}.values():
        for num_steps, at in result["steps"].items():
            lines.append(
                [
                    f"{result['name']}, walk in {num_steps}",
                    f"{at['error']:+.4f}",
                    f"{at['std_error']:.4f}",
                    f"{at['ess']:.3f}",
                    f"{at['pareto_k']:.2f}",
                    f"{at['elbo']:+.3f}",
                    f"{at['eubo']:+.3f}",
                    f"{result['train']:.0f} + {at['seconds']:.1f}",
                ]
            )
        smc = result["smc"]
        name = f"{result['name']}, annealed SMC, {smc['particles']:,} particles"
        lines.append([name, f"{smc['error']:+.4f}", f"{smc['std_error']:.4f}", "", "", "", "", f"{smc['seconds']:.0f}"])

    return lines


def student_rows(results: list[dict[str, Any]]) -> list[list[str]]:
    """The same of students."""
    last = {(result["name"], result["seed"]): result for result in results if "students" in result}

    return [
        [
            f"{result['name']}, from {teacher}",
            f"{at['error']:+.4f}",
            f"{at['std_error']:.4f}",
            f"{at['ess']:.3f}",
            f"{at['pareto_k']:.2f}",
            f"{at['elbo']:+.3f}",
            f"{at['seconds']:.0f}",
        ]
        for result in last.values()
        for teacher, at in result["students"].items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=list(DENSITIES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--students", action="store_true")
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    if not arguments.report:
        for name in arguments.only:
            for seed in arguments.seeds:
                line = json.dumps((measure_students if arguments.students else measure)(name, seed))
                with OUT.open("a") as file:
                    file.write(line + "\n")
                print(line, flush=True)
        return
    results = [json.loads(line) for line in OUT.read_text().splitlines()]
    header = ["density and method", "log Z error", "se", "ESS", "pareto k", "ELBO - log Z", "EUBO - log Z", "s"]
    write_block("walk", table(header, rows(results), "lrrrrrrr"), DOCS / "method.md")
    header = ["one-step flow", "log Z error", "se", "ESS", "pareto k", "ELBO - log Z", "s"]
    write_block("students", table(header, student_rows(results), "lrrrrrr"), DOCS / "method.md")


if __name__ == "__main__":
    main()

"""One optimiser step, taken apart: how many tensor operations, how many milliseconds, and of which part.

    OMP_NUM_THREADS=1 python benchmarks/profile_step.py [--repeats 7] [--only STEP ...] [--json FILE] [--before FILE]

Operations are counted where they reach torch's dispatcher, those of recorded graphs included; one that only looks at
memory in another shape counts apart, as a view. Milliseconds are CPU time of the process, the median of the rounds.
Shares are of that: the base draws, the flow with its score, the density with its score, the rest of the objective, the
gradients, and the optimiser with clipping, average and schedule. `--json` keeps the numbers; `--before` prints those of
another run beside them, such as that of an earlier version on the same machine.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import torch
from cases import eight_schools, german_credit
from document import table
from target_cases import sonar

from pyro_osds import OSDS
from pyro_osds.runtime.torch_internals import DispatchMode
from pyro_osds.target import log_prob_and_score
from pyro_osds.train.trainer import Trainer

STEPS: dict[str, tuple[Callable[[], None], str]] = {
    "eight schools, lean": (eight_schools(False), "first"),
    "German credit, lean": (german_credit(), "first"),
    "sonar, lean": (sonar(), "first"),
    "sonar, large": (sonar(), "large"),
}
"""Steps by name: the model, and which of the flows takes it."""

NUM_ITERATIONS = 40
"""Enough for the gradients of further steps to be those of a fit."""

WARM_UP_CALLS = 15
"""A flow is recorded after ten calls, and TorchScript watches its first one."""

ROUND_SECONDS = 0.4
"""What a part is given in each round."""


class Counted(DispatchMode):
    """Operations and views that pass the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.views = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if "profiler" not in str(func):
            is_view = func.is_view or func in (torch.ops.aten._unsafe_view.default, torch.ops.aten.detach.default)
            self.views += is_view
            self.operations += not is_view

        return result


def trainer_of(model: Callable[[], None], kind: str) -> Trainer:
    """A trainer that goes on where a short fit ended; for the large flow one that has only begun."""
    pyro.set_rng_seed(0)
    osds = OSDS(model, num_iterations=NUM_ITERATIONS, num_samples=1, escalate=False, disable_progbar=True)
    osds.run()
    if kind == "first":
        return Trainer(osds.trainer.leap, osds.fit.target, osds.trainer.budget, disable_progbar=True)
    recipe = osds.fit.recipe

    return recipe._builder.build(replace(recipe._plan, kind=kind, num_iterations=10_000))


def parts_of(trainer: Trainer) -> dict[str, Callable[[], Any]]:
    """The whole step, and what it asks for, each by itself; a part contains those that it needs."""
    leap, size = trainer._replayed, trainer.budget.batch_size
    x = leap.base.density.sample(torch.Size([size]))
    z = leap.with_score(x)[0].detach()
    averaged = trainer.averaged()

    def loss() -> Any:
        return trainer._objective(leap, averaged).total

    return {
        "step": trainer.step,
        "base": lambda: leap.base.density.sample(torch.Size([size])),
        "flow": lambda: leap.with_score(x),
        "density": lambda: log_prob_and_score(trainer.target.log_prob, z),
        "loss": loss,
        "gradients": lambda: torch.autograd.grad(loss(), leaves(trainer), allow_unused=True),
    }


def leaves(trainer: Trainer) -> list[torch.Tensor]:
    """What gradients are asked for."""
    return [trainer._flat.vector]


def milliseconds(function: Callable[[], Any], repeats: int) -> float:
    def seconds(num_calls: int) -> float:
        start = time.process_time()
        for _ in range(num_calls):
            function()

        return (time.process_time() - start) / num_calls

    num_calls = max(1, round(ROUND_SECONDS / max(seconds(1), 1e-6)))

    return 1e3 * statistics.median(seconds(num_calls) for _ in range(repeats))


def profile(name: str, repeats: int) -> dict[str, float]:
    """Operations, views, milliseconds, and milliseconds of each part."""
    trainer = trainer_of(*STEPS[name])
    for _ in range(WARM_UP_CALLS):
        trainer.step()
    counted = Counted()
    with counted:
        trainer.step()
    times = {part: milliseconds(function, repeats) for part, function in parts_of(trainer).items()}

    return {
        "operations": counted.operations,
        "views": counted.views,
        "ms": times["step"],
        "base": times["base"],
        "flow": times["flow"],
        "density": times["density"],
        "objective": max(0.0, times["loss"] - times["base"] - times["flow"] - times["density"]),
        "gradients": max(0.0, times["gradients"] - times["loss"]),
        "optimiser": max(0.0, times["step"] - times["gradients"]),
    }


def row(name: str, found: dict[str, float]) -> list[str]:
    shares = [f"{found[part] / found['ms']:.0%}" for part in list(found)[3:]]

    return [name, f"{found['operations']:.0f}", f"{found['views']:.0f}", f"{found['ms']:.2f}", *shares]


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    before = json.loads(Path(args.before).read_text()) if args.before else {}
    rows, kept = [], {}
    for name in args.only:
        kept[name] = profile(name, args.repeats)
        if name in before:
            rows.append(row(f"{name}, before", before[name]))
        rows.append(row(name, kept[name]))
        print(f"{name}: {kept[name]['ms']:.2f} ms", flush=True)
    parts = ["base", "flow", "density", "objective", "gradients", "optimiser"]
    print(f"\ntorch {torch.__version__}, one thread\n")
    print(table(["step", "operations", "views", "ms", *parts], rows, "l" + "r" * 9))
    if args.json:
        Path(args.json).write_text(json.dumps(kept))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", nargs="+", default=list(STEPS), choices=list(STEPS), metavar="STEP")
    parser.add_argument("--json", help="where to keep the numbers")
    parser.add_argument("--before", help="numbers that were kept, to be printed beside")
    main(parser.parse_args())

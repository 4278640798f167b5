"""One optimiser step, taken apart: how many tensor operations, how many milliseconds, and of which part.

    OMP_NUM_THREADS=1 python benchmarks/profile_step.py [--repeats 7] [--only STEP ...]
    python benchmarks/profile_step.py --report   # the tables in docs/performance.md

Operations are counted where they reach torch's dispatcher, those of recorded graphs included; one that only looks at
memory in another shape counts apart, as a view. Milliseconds are CPU time of the process, the median of the rounds.
Shares are of that: the base draws, the flow with its score, the density with its score, the rest of the objective, the
gradients, and the optimiser with clipping, average and schedule.

The limit is what the machine could do: each operation takes as long as its floating-point operations at the rate of a
large product of matrices, or as the bytes that it reads and writes at the rate of a sum of two tensors that fit into
the cache, whichever is longer; both rates are measured in the same process. Each step is a line of
benchmarks/results/profile_step.jsonl.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro
import torch
from cases import HERE, eight_schools, german_credit
from document import DOCS, table, write_block
from runs import Record, keep, ordered
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

PARTS = ("base", "flow", "density", "objective", "gradients", "optimiser")
RESULTS = HERE / "results" / "profile_step.jsonl"

NUM_ITERATIONS = 40
"""Enough for the gradients of further steps to be those of a fit."""

WARM_UP_CALLS = 15
"""A flow is recorded after ten calls, and TorchScript watches its first one."""

ROUND_SECONDS = 0.4
"""What a part is given in each round."""


def rates() -> dict[str, float]:
    """Floating-point operations of a product of matrices, in both precisions, and bytes of a sum, by CPU second."""
    found = {}
    for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        one = torch.randn(512, 512, dtype=dtype)
        found[name] = 2 * 512**3 / fastest(lambda one=one: one @ one)
    one = torch.randn(2**14)
    other = torch.empty_like(one)
    found["bytes"] = 3 * one.nbytes / fastest(lambda: torch.add(one, one, out=other), 2000)

    return found


def fastest(function: Callable[[], Any], num_calls: int = 20) -> float:
    """CPU seconds of a call, the least of ten rounds."""
    times = []
    for _ in range(10):
        start = time.process_time()
        for _ in range(num_calls):
            function()
        times.append((time.process_time() - start) / num_calls)

    return min(times)


def multiplied(func: Any, args: Any, result: Any) -> int:
    """Floating-point operations of a product of matrices or of a triangular solution; nothing for others."""
    name = func.overloadpacket.__name__
    if name in ("mm", "bmm", "addmm", "mv", "addmv", "dot"):
        factor = args[1] if name.startswith("add") else args[0]
        return 2 * result.numel() * factor.shape[-1]
    if name in ("linalg_solve_triangular", "triangular_solve"):
        return args[1].numel() * args[0].shape[-1]

    return 0


def leaves_of(value: Any) -> list[torch.Tensor]:
    """The tensors in arguments and results of an operation."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, tuple | list):
        return []

    return [tensor for part in value for tensor in leaves_of(part)]


class Counted(DispatchMode):
    """Operations and views that pass the dispatcher, and how long the hardware needs for them at least."""

    def __init__(self, rates: dict[str, float]) -> None:
        super().__init__()
        self.operations = self.views = self.flops = self.bytes = 0
        self.seconds, self._rates = 0.0, rates

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if "profiler" not in str(func):
            is_view = func.is_view or func in (torch.ops.aten._unsafe_view.default, torch.ops.aten.detach.default)
            self.views += is_view
            self.operations += not is_view
            if not is_view:
                self._add(func, args, kwargs or {}, result)

        return result

    def _add(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        tensors = leaves_of((args, kwargs, result))
        num_bytes = sum(tensor.nbytes for tensor in tensors)
        flops = multiplied(func, args, result) if tensors else 0
        rate = self._rates["float32" if tensors and tensors[0].dtype == torch.float32 else "float64"]
        self.flops, self.bytes = self.flops + flops, self.bytes + num_bytes
        self.seconds += max(flops / rate, num_bytes / self._rates["bytes"])


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


def profile(name: str, repeats: int) -> Record:
    """Operations, views, milliseconds, and milliseconds of each part."""
    trainer = trainer_of(*STEPS[name])
    for _ in range(WARM_UP_CALLS):
        trainer.step()
    speed = rates()
    counted = Counted(speed)
    with counted:
        trainer.step()
    times = {part: milliseconds(function, repeats) for part, function in parts_of(trainer).items()}

    return {
        "step": name,
        "torch": torch.__version__,
        "operations": counted.operations,
        "views": counted.views,
        "ms": times["step"],
        "base": times["base"],
        "flow": times["flow"],
        "density": times["density"],
        "objective": max(0.0, times["loss"] - times["base"] - times["flow"] - times["density"]),
        "gradients": max(0.0, times["gradients"] - times["loss"]),
        "optimiser": max(0.0, times["step"] - times["gradients"]),
        "flops": counted.flops,
        "bytes": counted.bytes,
        "limit": 1e3 * counted.seconds,
        **{f"rate_{name}": rate for name, rate in speed.items()},
    }


def shares(records: list[Record]) -> str:
    """The table of what the parts of steps take."""
    rows = [
        [run["step"], f"{run['operations']}", f"{run['views']}", f"{run['ms']:.2f}"]
        + [f"{run[part] / run['ms']:.0%}" for part in PARTS]
        for run in records
    ]

    return table(["step", "operations", "views", "ms", *PARTS], rows, "l" + "r" * (3 + len(PARTS)))


def limits(records: list[Record]) -> str:
    """The table of what steps take, and what the machine could do."""
    rows = []
    for run in records:
        rows.append([
            run["step"], f"{run['operations']}", f"{run['flops'] / 1e6:.0f}", f"{run['bytes'] / 1e6:.1f}",
            f"{run['limit']:.2f}", f"{run['ms']:.2f}", f"{run['limit'] / run['ms']:.0%}",
        ])  # fmt: skip
    header = ["step", "operations", "Mflop in products", "MB read and written", "limit, ms", "measured, ms", "share"]
    single, double, num_bytes = (
        f"{statistics.median(run[f'rate_{name}'] for run in records) / 1e9:.0f}"
        for name in ("float32", "float64", "bytes")
    )

    speeds = (
        f"One core: {single} Gflop/s in single precision, {double} in double, {num_bytes} GB/s in the cache (medians)."
    )

    return f"{speeds}\n\n{table(header, rows, 'lrrrrrr')}"


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    for name in [] if args.report else args.only:
        keep(profile(name, args.repeats), RESULTS, "step")
    records = ordered(RESULTS, "step", STEPS)
    versions = ", ".join(sorted({run["torch"] for run in records}))
    texts = {"step": f"torch {versions}, one thread.\n\n{shares(records)}", "limit": limits(records)}
    for name, text in texts.items():
        print(f"{text}\n")
        if args.report:
            write_block(name, text, DOCS / "performance.md")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", nargs="+", default=list(STEPS), choices=list(STEPS), metavar="STEP")
    parser.add_argument("--report", action="store_true", help="write the tables, run nothing")
    main(parser.parse_args())

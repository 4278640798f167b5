"""One training step in four ways: as it is, and as a single graph that nothing interrupts.

    OMP_NUM_THREADS=1 python benchmarks/whole_step.py [--only POSTERIOR ...] [--repeats 5] [--no-compile]
    python benchmarks/whole_step.py --report

As it is, recorded passes and a recorded density are put together by Python, and Adam is one operation of torch. The
single graph holds everything from base draws to the moving average, without autograd: flow with score, density with
score, objective, gradients, clipping, what to do with a gradient that is not finite, Adam, average. It is run by
TorchScript, by the interpreter, and by `torch.compile`, which starts without a cache. All four are given the same base
draws and must give the same weights. Rounds alternate between them; milliseconds are CPU time of a step, the median of
the rounds; "ready" are the CPU seconds until the first step is done; what a training of 250 steps and one of 1,000
take is both together. The lean flow, on a Gaussian base. Each posterior is a line of
benchmarks/results/whole_step.jsonl; `--report` writes their table into docs/performance.md.
"""

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")

import pyro
import torch
from cases import eight_schools, german_credit
from document import DOCS, spread, table, write_block
from runs import keep, ordered
from target_cases import sonar
from torch import Tensor, fx

from pyro_osds import OSDS
from pyro_osds.flow.folding import Folding
from pyro_osds.flow.passes import Passes
from pyro_osds.model.graph import with_scores
from pyro_osds.runtime.precision import default_dtype
from pyro_osds.runtime.recording.execution import TorchScript
from pyro_osds.runtime.recording.interpreter import Interpreter
from pyro_osds.runtime.recording.recorder import record_operations
from pyro_osds.train import objectives
from pyro_osds.train.trainer import Trainer

POSTERIORS = {"eight schools": eight_schools(False), "German credit": german_credit(), "sonar": sonar()}
RESULTS = Path(__file__).parent / "results" / "whole_step.jsonl"
WAYS = ("as it is", "TorchScript", "interpreter", "torch.compile")
ROUND_SECONDS = 0.5
NUM_ITERATIONS = 40
TRAININGS = (250, 1000)
MAX_SHARE = 0.01
"""Weights that may differ after one step: Adam's first one tells the sign of a gradient, even of rounding."""

# Those of `exact_volume`, and of torch's Adam.
TAIL_SHARE, COVERAGE = 0.125, 0.5
BETAS, EPS, EMA_DECAY = (0.9, 0.999), 1e-8, 0.98


def trainer_of(name: str) -> Trainer:
    """A trainer that goes on where a short fit ended."""
    pyro.set_rng_seed(0)
    osds = OSDS(POSTERIORS[name], num_iterations=NUM_ITERATIONS, num_samples=1, escalate=False, disable_progbar=True)
    osds.run()

    return Trainer(osds.trainer.leap, osds.fit.target, osds.trainer.budget, disable_progbar=True)


def base_draws(trainer: Trainer) -> Tensor:
    """Base draws of a step, the last of them stretched."""
    x = trainer.leap.base.density.sample(torch.Size([trainer.budget.batch_size]))
    num_tail = int(TAIL_SHARE * len(x))

    return torch.cat([x[:-num_tail], objectives._stretch(x[-num_tail:])])


class WholeStep:
    """A training step as a function of tensors, of which none is changed.

    Arguments:
        trainer: Whose leap, target and objective it has; the weights are arguments.
    """

    def __init__(self, trainer: Trainer) -> None:
        flow = trainer.leap.flow
        self._base, self._flow_dim = trainer.leap.base, flow.dim
        self._passes, self._folding = Passes(flow, 0.0, 1.0), Folding(flow, 1.0)
        self._ladder = trainer.target._ladder
        self._rate = trainer.budget.learning_rate

    def densities(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log densities and scores of the target, as the model computes them."""
        run = with_scores(partial(self._ladder.map, self._ladder.single))
        parts = [run(block) for block in z.split(self._ladder._block_size)]
        log_prior, log_likelihood, first, second = (torch.cat(column) for column in zip(*parts, strict=True))

        return log_prior + log_likelihood, first + second

    def __call__(
        self,
        x: Tensor,
        schedule: Tensor,
        weights: Tensor,
        first: Tensor,
        second: Tensor,
        count: Tensor,
        average: Tensor,
    ) -> tuple[Tensor, ...]:
        """Weights, moments, steps and average after a step from base draws ``(B, D)`` that are stretched already."""
        base, folding = self._base, self._folding
        folded = torch.addcmul(folding._constant, weights.index_select(0, folding._take), folding._factor)
        parts = iter(folded.split([matrix.numel() for at in folding.matrices for matrix in own(at)]))
        matrices = [rebuilt(at, parts) for at in folding.matrices]
        points, log_abs_det, score, kept = self._passes.forward_with_score(matrices, x, -x)
        log_q = base.density.log_prob(x) - log_abs_det - base.log_abs_det
        z, score_q = base.from_whitened(points), base.score_from_whitened(score)
        log_p, score_p = self.densities(z)
        for_z, for_log_q, loss = self.objective(log_p, log_q, score_p, score_q)
        for_points = for_z @ base.scale_tril
        gradient, _ = self._passes.backward(matrices, kept, for_points, -for_log_q)
        gradient = folding.gradient(gradient)
        norm = gradient.norm()
        usable = norm.isfinite()
        gradient = gradient * (1.0 / (norm + 1e-6)).clamp(max=1.0)
        new_count = count + 1.0
        new_first = torch.lerp(first, gradient, 1.0 - BETAS[0])
        new_second = torch.addcmul(BETAS[1] * second, gradient, gradient, value=1.0 - BETAS[1])
        rate = schedule * self._rate / (1.0 - BETAS[0] ** new_count)
        new = weights - rate * new_first / ((new_second / (1.0 - BETAS[1] ** new_count)).sqrt() + EPS)
        pairs = [(new, weights), (new_first, first), (new_second, second), (new_count, count)]
        new, new_first, new_second, new_count = (torch.where(usable, one, other) for one, other in pairs)

        return new, new_first, new_second, new_count, torch.lerp(average, new, 1.0 - EMA_DECAY), loss

    def objective(
        self, log_p: Tensor, log_q: Tensor, score_p: Tensor, score_q: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What a unit of each point and of each log density counts, and the loss."""
        num_tail = int(TAIL_SHARE * len(log_p))
        num_body = len(log_p) - num_tail
        log_weight = log_p - log_q
        body, usable = log_weight[:num_body], log_weight.abs() < torch.inf
        known = log_weight.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        weight = torch.softmax(body, 0).clamp(max=num_body**-0.5)
        total = usable[:num_body].sum(dtype=log_weight.dtype)
        center = known[:num_body].sum() / total
        share = torch.lerp(usable[:num_body] / total, weight, COVERAGE)
        for_z = share[:, None] * (score_q[:num_body] - score_p[:num_body])
        excess = (known[num_body:] - center) * usable[num_body:]
        tail = excess.clamp(-objectives._OUTLIER, objectives._OUTLIER) * (
            objectives._TAIL_WEIGHT * min(1.0, objectives._TAIL_DIM / self._flow_dim) / num_tail
        )
        for_z = torch.cat([for_z, tail[:, None] * score_p[num_body:]])

        return for_z, torch.cat([torch.zeros_like(body), -tail]), -center


def own(at: Any) -> list[Tensor]:
    """The matrices of a block that are no transposes of others."""
    return [at.first, at.second, at.head, *([] if at.line is None else [at.line])]


def rebuilt(at: Any, parts: Any) -> Any:
    """A block's matrices out of other memory."""
    first, second, head, *line = (next(parts).view(matrix.shape) for matrix in own(at))
    fixed = len(at.first_back)
    if line:
        return at._replace(
            first=first, second=second, head=head, first_back=first[:, :fixed].mT, second_back=second.mT,
            head_back=head.mT, line=line[0], line_back=line[0][:, :fixed].mT,
        )  # fmt: skip
    head_back = head[:, : len(second) + fixed].mT

    return at._replace(
        first=first, second=second, head=head, first_back=first[:, :fixed].mT, second_back=second.mT,
        head_back=head_back,
    )  # fmt: skip


def cpu_seconds() -> float:
    """Of this process and of compilers that it waited for."""
    times = os.times()

    return times.user + times.system + times.children_user + times.children_system


def run_graph(run: Callable[..., tuple[Tensor, ...]], trainer: Trainer, state: list[Tensor]) -> None:
    """A step of a graph: base draws and the learning rate come from outside."""
    *state[:], _ = run(base_draws(trainer), torch.ones(()), *state)


def made(way: str, graph: fx.GraphModule, arguments: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, ...]]:
    if way == "TorchScript":
        return TorchScript(graph, arguments)
    if way == "interpreter":
        return Interpreter(graph)
    compiled: Any = torch.compile(graph, fullgraph=True, dynamic=False)

    return compiled


def measure(name: str, ways: tuple[str, ...], repeats: int) -> dict[str, Any]:
    """Seconds until each way is ready, and milliseconds of a step."""
    trainer = trainer_of(name)
    start_weights = trainer._flat.vector.detach().clone()
    zeros = torch.zeros_like(start_weights)
    start_state = [start_weights, zeros, zeros, torch.zeros(()), start_weights]
    whole, steps, ready, found = WholeStep(trainer), dict[str, Callable[[], Any]](), dict[str, float](), {}
    torch.manual_seed(1)
    x = base_draws(trainer)
    arguments = (x, torch.ones(()), *start_state)
    begun = cpu_seconds()
    with torch.no_grad(), default_dtype(torch.float64):
        graph = record_operations(whole, *arguments)
    recording, num_operations = cpu_seconds() - begun, sum(node.op == "call_function" for node in graph.graph.nodes)
    for way in ways:
        begun = cpu_seconds()
        if way == "as it is":
            own_trainer = Trainer(copy.deepcopy(trainer.leap), trainer.target, trainer.budget, disable_progbar=True)
            steps[way] = own_trainer.step
            torch.manual_seed(1)
            own_trainer.step()
            found[way] = own_trainer._flat.vector.detach().clone()
            for _ in range(11):  # recorded after ten
                own_trainer.step()
            usual = time.process_time()
            own_trainer.step()
            ready[way] = cpu_seconds() - begun - 13 * (time.process_time() - usual)
            continue
        with torch.no_grad(), default_dtype(torch.float64):
            run = made(way, graph, arguments)
            for _ in range(2):  # TorchScript watches its first call
                found[way] = run(*arguments)[0]
            ready[way] = recording + cpu_seconds() - begun
        steps[way] = in_double(partial(run_graph, run, trainer, list(start_state)))
    rounds = [{way: milliseconds(step) for way, step in steps.items()} for _ in range(repeats)]
    differences = [share_that_differs(one, found["as it is"], start_weights) for one in found.values()]
    if max(differences) > MAX_SHARE:
        raise SystemExit(f"The ways do not give the same weights: {dict(zip(found, differences, strict=True))}.")

    return {
        "posterior": name,
        "dim": trainer.target.dim,
        "operations": num_operations,
        "ready": ready,
        "ms": {way: statistics.median(each[way] for each in rounds) for way in steps},
        "ratios": {way: [each[way] / each["as it is"] for each in rounds] for way in steps},
        "share_that_differs": max(differences),
        "torch": torch.__version__,
    }


def share_that_differs(one: Tensor, other: Tensor, before: Tensor) -> float:
    """The share of weights that two ways do not move alike."""
    return ((one - other).abs() > 1e-2 * (other - before).abs().max()).double().mean().item()


def in_double(step: Callable[[], Any]) -> Callable[[], Any]:
    """In the precision in which the graph was recorded."""

    def run() -> None:
        with torch.no_grad(), default_dtype(torch.float64):
            step()

    return run


def milliseconds(step: Callable[[], Any]) -> float:
    start = time.process_time()
    step()
    num_calls = max(1, round(ROUND_SECONDS / max(time.process_time() - start, 1e-6)))
    start = time.process_time()
    for _ in range(num_calls):
        step()

    return 1e3 * (time.process_time() - start) / num_calls


def rows(run: dict[str, Any]) -> list[list[str]]:
    found = []
    for way, milliseconds_of_step in run["ms"].items():
        whole = [run["ready"][way] + num * milliseconds_of_step / 1e3 for num in TRAININGS]
        name = f"{run['posterior']}, {run['dim']}-D" if way == WAYS[0] else ""
        trainings = [f"{seconds:.1f}" for seconds in whole]
        found.append(
            [
                name,
                way,
                f"{milliseconds_of_step:.1f}",
                spread(run["ratios"][way]),
                f"{run['ready'][way]:.1f}",
                *trainings,
            ]
        )

    return found


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    for name in [] if args.report else args.only:
        keep(measure(name, WAYS[:-1] if args.no_compile else WAYS, args.repeats), RESULTS, "posterior")
    runs = ordered(RESULTS, "posterior", POSTERIORS)
    header = ["posterior", "way", "ms", "of the first", "ready, s", *(f"{num:,} steps, s" for num in TRAININGS)]
    versions = ", ".join(sorted({run["torch"] for run in runs}))
    text = f"torch {versions}, one thread.\n\n{table(header, [row for run in runs for row in rows(run)], 'llrrrrr')}"
    print(text)
    if args.report:
        write_block("whole-step", text, DOCS / "performance.md")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(POSTERIORS), default=list(POSTERIORS), metavar="POSTERIOR")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile, which takes long")
    parser.add_argument("--report", action="store_true")
    main(parser.parse_args())

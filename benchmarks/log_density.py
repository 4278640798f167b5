"""Time for log densities and scores of a batch of points: Pyro's own potential and the backends of the ladder.

    python benchmarks/log_density.py [--repeats 5] [--batch-sizes 256 1024 4096] [--only MODEL ...]
    python benchmarks/log_density.py --report   # the table in docs/models.md

Each model is a line of benchmarks/results/log_density.jsonl. Every number is for the value and the gradient at a batch
of 256 points, in milliseconds of the processor on one thread. "Pyro" is `potential_fn` of `initialize_model` with
`potential_grad`, as HMC and NUTS call it, point by point without validation. "loop", "vmap" and "captured" are the
backends of `ModelTarget`. The two that go point by point are measured at the first 16 points and multiplied by batch
size / 16 (`LOOP_POINTS`); the two that do not are measured at the whole batch.

Rounds alternate between the variants, so that whatever else the machine does hits all of them. A time is the median
over rounds; "x loop" and "x Pyro" are how many times faster the captured graph is in the same round, as the median
(smallest-largest). "capture s" includes the first calls, in which TorchScript optimises the graph. The last two columns
are the largest relative differences of values, and of scores, from the loop at all points and from Pyro at those that
it was measured at; a score's difference is relative to its largest coordinate.

The second table, which is only printed, is the captured graph at other batch sizes, in microseconds per point.
"""

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from cases import HERE, eight_schools, german_credit, logistic_regression
from document import DOCS, spread, table, write_block
from pyro.infer.mcmc.util import initialize_model
from pyro.ops.indexing import Vindex
from pyro.ops.integrator import potential_grad
from runs import Record, keep, ordered
from torch import Tensor

from pyro_osds.model import ModelTarget
from pyro_osds.model.graph import MIN_BATCH
from pyro_osds.model.sites import split
from pyro_osds.target import log_prob_and_score

RESULTS = HERE / "results" / "log_density.jsonl"

BATCH_SIZE = 256
"""Points of the first table."""

LOOP_POINTS = 16
"""Points at which those that go point by point are measured."""

ROUND_SECONDS = 0.25
"""What a variant is given in each round: it is called as often as fits in, at least once."""

WARM_UP_CALLS = 3
"""TorchScript watches its first call and optimises in the second."""

SPREAD = 0.5
"""Standard deviation of the points, small enough for no model to overflow."""

ValueAndScore = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Entry:
    """A model, and how many times faster than the loop its captured graph must be."""

    name: str
    model: Callable[[], None]
    min_speedup: float = 0.0


@dataclass(frozen=True)
class Variant:
    """One way to values and scores, the points it is measured at, and how many times as many the batch has."""

    evaluate: ValueAndScore
    z: Tensor
    scale: float = 1.0

    def seconds(self, num_calls: int = 1) -> float:
        """For the whole batch, as the mean of several calls."""
        start = time.process_time()
        for _ in range(num_calls):
            self.evaluate(self.z)

        return (time.process_time() - start) / num_calls * self.scale


# ---- models ----


def generator(seed: int = 0) -> torch.Generator:
    """Each model makes its own data, the same ones whichever other models run."""
    return torch.Generator().manual_seed(seed)


def simulated_logistic_regression(num_rows: int = 500, num_features: int = 20) -> Callable[[], None]:
    random = generator()
    x, w = torch.randn(num_rows, num_features, generator=random), torch.randn(num_features, generator=random)
    y = torch.bernoulli(torch.sigmoid(x @ w), generator=random)

    return logistic_regression(x, y, 2.5)


def radon(num_rows: int = 200, num_counties: int = 20) -> Callable[[], None]:
    """Houses in counties: an intercept for each county, around a line in what is known of the county."""
    random = generator()
    county = torch.randint(num_counties, (num_rows,), generator=random)
    uranium = torch.randn(num_counties, generator=random)
    floor = torch.bernoulli(torch.full((num_rows,), 0.3), generator=random)
    intercept = 1.5 + 0.7 * uranium + 0.3 * torch.randn(num_counties, generator=random)
    y = intercept[county] - 0.6 * floor + 0.8 * torch.randn(num_rows, generator=random)

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        gamma = pyro.sample("gamma", dist.Normal(0.0, 2.0))
        beta = pyro.sample("beta", dist.Normal(0.0, 2.0))
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(2.0))
        with pyro.plate("county", num_counties):
            a = pyro.sample("a", dist.Normal(mu + gamma * uranium, tau))
        with pyro.plate("house", num_rows):
            pyro.sample("y", dist.Normal(a[county] + beta * floor, sigma), obs=y)

    return model


def hidden_markov(num_steps: int = 15, num_states: int = 3) -> Callable[[], None]:
    y = 3.0 * torch.sin(torch.arange(num_steps)) + torch.randn(num_steps, generator=generator())
    prior = torch.ones(num_states, num_states) + 4.0 * torch.eye(num_states)

    def model() -> None:
        transition = pyro.sample("transition", dist.Dirichlet(prior).to_event(1))
        loc = pyro.sample("loc", dist.Normal(torch.linspace(-3.0, 3.0, num_states), 1.0).to_event(1))
        scale = pyro.sample("scale", dist.HalfNormal(2.0))
        state = torch.tensor(0)
        for t in pyro.markov(range(num_steps)):
            state = pyro.sample(f"x_{t}", dist.Categorical(Vindex(transition)[state]))
            pyro.sample(f"y_{t}", dist.Normal(loc[state], scale), obs=y[t])

    return model


def gaussian_mixture(num_rows: int = 60, num_components: int = 3) -> Callable[[], None]:
    """The component of each row is a discrete latent."""
    random = generator()
    component = torch.randint(num_components, (num_rows,), generator=random)
    y = torch.linspace(-4.0, 4.0, num_components)[component] + torch.randn(num_rows, generator=random)

    def model() -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(num_components)))
        with pyro.plate("component", num_components):
            loc = pyro.sample("loc", dist.Normal(0.0, 4.0))
            scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        with pyro.plate("row", num_rows):
            k = pyro.sample("k", dist.Categorical(weights))
            pyro.sample("y", dist.Normal(loc[k], scale[k]), obs=y)

    return model


def gaussian_process(num_rows: int = 40) -> Callable[[], None]:
    x = torch.linspace(0.0, 10.0, num_rows)
    y = torch.sin(x) + 0.3 * torch.randn(num_rows, generator=generator())
    square = (x[:, None] - x).square()

    def model() -> None:
        rho = pyro.sample("rho", dist.LogNormal(0.0, 1.0))
        alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        kernel = alpha**2 * torch.exp(-0.5 * square / rho**2) + (sigma**2 + 1e-3) * torch.eye(num_rows)
        factor = torch.linalg.cholesky(kernel)
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(num_rows), scale_tril=factor), obs=y)

    return model


def lotka_volterra(num_steps: int = 10, step: float = 0.2) -> Callable[[], None]:
    """Predator and prey by the classical Runge-Kutta method, seen with multiplicative noise after each step."""

    def derivative(state: Tensor, rates: Tensor) -> Tensor:
        prey, predator = state[0], state[1]
        return torch.stack(
            [rates[0] * prey - rates[1] * prey * predator, rates[2] * prey * predator - rates[3] * predator]
        )

    def path(state: Tensor, rates: Tensor) -> Tensor:
        states = []
        for _ in range(num_steps):
            k1 = derivative(state, rates)
            k2 = derivative(state + 0.5 * step * k1, rates)
            k3 = derivative(state + 0.5 * step * k2, rates)
            k4 = derivative(state + step * k3, rates)
            state = state + step / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
            states.append(state)
        return torch.stack(states)

    truth = path(torch.tensor([1.5, 0.8]), torch.tensor([0.8, 0.6, 0.5, 0.7]))
    y = truth * torch.exp(0.2 * torch.randn(truth.shape, generator=generator()))

    def model() -> None:
        rates = pyro.sample("rates", dist.LogNormal(-0.5, 0.5).expand([4]).to_event(1))
        start = pyro.sample("start", dist.LogNormal(0.0, 0.5).expand([2]).to_event(1))
        sigma = pyro.sample("sigma", dist.LogNormal(-1.0, 0.5))
        # Far from the truth a step can overshoot below zero.
        location = path(start, rates).clamp(min=1e-3).log()
        pyro.sample("y", dist.LogNormal(location, sigma).to_event(2), obs=y)

    return model


def correlated_normal(num_rows: int = 50, num_variables: int = 3) -> Callable[[], None]:
    """Means, scales and, by LKJ, correlations."""
    y = torch.randn(num_rows, num_variables, generator=generator()).cumsum(-1)

    def model() -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0).expand([num_variables]).to_event(1))
        scale = pyro.sample("scale", dist.HalfNormal(2.0).expand([num_variables]).to_event(1))
        corr = pyro.sample("corr", dist.LKJCholesky(num_variables, 2.0))
        with pyro.plate("row", num_rows):
            pyro.sample("y", dist.MultivariateNormal(loc, scale_tril=scale[:, None] * corr), obs=y)

    return model


def all_entries() -> list[Entry]:
    return [
        Entry("eight schools", eight_schools(False), min_speedup=100.0),
        Entry("logistic regression 500 x 20", simulated_logistic_regression(), min_speedup=100.0),
        Entry("German credit 1000 x 24", german_credit()),
        Entry("radon, N = 200", radon()),
        Entry("hidden Markov, T = 15", hidden_markov(), min_speedup=50.0),
        Entry("Gaussian mixture, N = 60", gaussian_mixture()),
        Entry("Gaussian process, n = 40", gaussian_process()),
        Entry("Lotka-Volterra, 10 steps", lotka_volterra()),
        Entry("LKJ and normal, N = 50", correlated_normal()),
    ]


# ---- measurements ----


def measure(entry: Entry, batch_sizes: Sequence[int], repeats: int, round_seconds: float) -> Record:
    """Seconds of each round by variant, what capturing cost, and how far the fastest backend is from the slow ones."""
    target = ModelTarget(entry.model)
    z = points(target, BATCH_SIZE)
    fastest = Variant(rung_of(target), z)
    capture_seconds = seconds_to_capture(target, fastest)
    by_pyro, loop = pyro_potential(entry.model, target), rung_of(ModelTarget(entry.model, vectorize="loop"))
    few = z[:LOOP_POINTS]
    variants = {name: Variant(f, few, BATCH_SIZE / len(few)) for name, f in (("Pyro", by_pyro), ("loop", loop))}
    vmap = ModelTarget(entry.model, capture=False)
    if vmap.backend == "vmap":
        variants["vmap"] = Variant(rung_of(vmap), z)
    if target.backend == "captured":
        variants["captured"] = fastest
    values, scores = fastest.evaluate(z)

    return {
        "model": entry.name,
        "dim": target.dim,
        "backend": target.backend,
        "reason": target._ladder.reason,
        "capture": capture_seconds,
        "from loop": differences((values, scores), loop(z)),
        "from Pyro": differences((values[: len(few)], scores[: len(few)]), by_pyro(few)),
        "rounds": alternate(variants, repeats, round_seconds),
        "by batch": by_batch(target, batch_sizes, repeats, round_seconds),
        "torch": torch.__version__,
    }


def by_batch(target: ModelTarget, sizes: Sequence[int], repeats: int, seconds: float) -> dict[str, float]:
    """The captured graph's microseconds per point, by batch size."""
    if target.backend != "captured":
        return {}
    z = points(target, max(sizes))
    rounds = alternate({str(size): Variant(rung_of(target), z[:size]) for size in sizes}, repeats, seconds)

    return {size: 1e6 * statistics.median(times) / int(size) for size, times in rounds.items()}


def speedups(found: Record, name: str) -> list[float]:
    """How many times faster than another variant the captured graph is, round by round."""
    pairs = zip(found["rounds"][name], found["rounds"].get("captured", []), strict=False)

    return [other / captured for other, captured in pairs]


def points(target: ModelTarget, batch_size: int) -> Tensor:
    return SPREAD * torch.randn(batch_size, target.dim, generator=generator(seed=1)).to(target.dtype)


def seconds_to_capture(target: ModelTarget, fastest: Variant) -> float:
    start = time.process_time()
    if target.backend == "captured":  # asking makes the graph
        for _ in range(WARM_UP_CALLS):
            fastest.evaluate(fastest.z)

    return time.process_time() - start


def seconds_of_first_capture() -> float:
    """What loads once in a process, by way of the smallest model."""
    target = ModelTarget(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)))

    return seconds_to_capture(target, Variant(rung_of(target), points(target, MIN_BATCH)))


def rung_of(target: ModelTarget) -> ValueAndScore:
    return lambda z: log_prob_and_score(target.log_prob, z)


def pyro_potential(model: Callable[[], None], target: ModelTarget) -> ValueAndScore:
    """What Pyro's own samplers evaluate, with its sign turned, in the coordinates of the target."""
    with pyro.validation_enabled(False):
        potential_fn = initialize_model(model)[1]

    def evaluate(z: Tensor) -> tuple[Tensor, Tensor]:
        values, scores = [], []
        with pyro.validation_enabled(False):
            for row in z:
                gradients, potential = potential_grad(potential_fn, split(target.sites, row))
                values.append(-potential)
                scores.append(-torch.cat([gradients[site.name].reshape(-1) for site in target.sites]))

        return torch.stack(values), torch.stack(scores)

    return evaluate


def alternate(variants: dict[str, Variant], repeats: int, round_seconds: float) -> dict[str, list[float]]:
    """Seconds of every variant in every round."""
    num_calls = {}
    for name, variant in variants.items():
        variant.seconds(WARM_UP_CALLS)
        num_calls[name] = max(1, math.ceil(round_seconds * variant.scale / variant.seconds()))
    rounds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, variant in variants.items():
            rounds[name].append(variant.seconds(num_calls[name]))

    return rounds


def differences(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """The largest relative differences of values `(B,)` and of scores `(B, D)`; equal infinities do not differ."""
    value = torch.where(got[0] == expected[0], 0.0, (got[0] - expected[0]) / expected[0])
    score = torch.where(got[1] == expected[1], 0.0, (got[1] - expected[1]) / expected[1].abs().amax(-1, keepdim=True))

    return value.abs().max().item(), score.abs().max().item()


# ---- tables ----

HEADER = (
    "model", "D", "backend", "Pyro", "loop", "vmap", "captured",
    "x loop", "x Pyro", "capture s", "off loop", "off Pyro",
)  # fmt: skip


def report(records: list[Record]) -> str:
    versions = ", ".join(sorted({found["torch"] for found in records}))

    return f"torch {versions}, one thread.\n\n{table(HEADER, [row(found) for found in records], 'lrlrrrrrrrrr')}"


def row(found: Record) -> list[str]:
    return [
        found["model"],
        str(found["dim"]),
        found["backend"],
        *[milliseconds(found["rounds"].get(name)) for name in ("Pyro", "loop", "vmap", "captured")],
        *[speedup(speedups(found, name)) for name in ("loop", "Pyro")],
        f"{found['capture']:.2f}",
        *[", ".join(f"{each:.0e}" if each else "0" for each in found[pair]) for pair in ("from loop", "from Pyro")],
    ]


def milliseconds(rounds: list[float] | None) -> str:
    return three_digits(1e3 * statistics.median(rounds)) if rounds else "-"


def three_digits(number: float) -> str:
    return f"{number:.{max(0, 2 - math.floor(math.log10(number)))}f}"


def speedup(ratios: list[float]) -> str:
    return spread(ratios, 0) if ratios else "-"


def batches(records: list[Record]) -> str:
    """The captured graph's microseconds per point, by batch size."""
    records = [found for found in records if found["by batch"]]
    sizes = sorted({int(size) for found in records for size in found["by batch"]})
    cells = [[found["by batch"].get(str(size)) for size in sizes] for found in records]
    rows = [
        [found["model"], *(three_digits(each) if each else "-" for each in times)]
        for found, times in zip(records, cells, strict=True)
    ]

    return table(["captured, us per point", *(f"B = {size}" for size in sizes)], rows, "l" + "r" * len(sizes))


def print_verdicts(records: list[Record]) -> None:
    """What was not captured, and why; and whether the graphs are as fast as they must be."""
    for found in records:
        if found["backend"] != "captured":
            print(f"{found['model']} is not captured: {found['reason']}")
    required = {entry.name: entry.min_speedup for entry in all_entries()}
    for found in records:
        if least := required[found["model"]]:
            ratios = speedups(found, "loop")
            met = bool(ratios) and statistics.median(ratios) >= least
            print(
                f"captured >= {least:.0f} x loop on {found['model']}: {'met' if met else 'not met'} ({speedup(ratios)})"
            )


def main(args: argparse.Namespace) -> None:
    names = [entry.name for entry in all_entries()]
    if args.report:
        write_block("log-density", report(ordered(RESULTS, "model", names)), DOCS / "models.md")
        return
    # Points of the slow backends are timed in this process, whatever they take.
    os.environ["LOKY_MAX_CPU_COUNT"] = "1"
    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    # What loads once in a process is no part of what the first model's graph takes.
    seconds_of_first_capture()
    records = []
    for entry in all_entries():
        if entry.name in args.only:
            found = measure(entry, args.batch_sizes, args.repeats, args.round_seconds)
            records.append(found)
            if not args.smoke_test:
                keep(found, RESULTS, "model")
            print(f"| {' | '.join(row(found))} |", flush=True)
    print(f"\n{report(records)}\n\n{batches(records)}\n")
    print_verdicts(records)


if __name__ == "__main__":
    names = [entry.name for entry in all_entries()]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="rounds; at least one")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[256, 1024, 4096], help="of the second table")
    parser.add_argument("--only", nargs="+", default=names, choices=names, metavar="MODEL", help=f"of {names}")
    parser.add_argument("--report", action="store_true", help="write the table, run nothing")
    parser.add_argument("--smoke-test", action="store_true", help="a tiny run, which is not kept")
    args = parser.parse_args()
    if min(args.batch_sizes) < MIN_BATCH:
        parser.error(f"batches of fewer than {MIN_BATCH} points are never captured")
    args.round_seconds = ROUND_SECONDS
    if args.smoke_test:
        args.repeats, args.batch_sizes, args.round_seconds = 1, [MIN_BATCH], 0.0
    main(args)

"""What does nan under a mask cost? Log densities with gradients, side by side.

    python benchmarks/missing_data.py [--rounds 15]

Milliseconds of the processor for the log densities and gradients of 256 points, by the recorded graph, on one thread: a
model whose data have nan under a mask beside the same model with all of its data, in alternating rounds; medians, and
the ratio of each round as its median (smallest-largest).
"""

import argparse
import statistics
import time
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyro_osds.model import ModelTarget
from pyro_osds.target import log_prob_and_score

NUM_POINTS, WARM_UP_CALLS = 256, 3
NUM_ROWS, NUM_EVENTS = 2000, 500


def normal(y: Tensor) -> Callable[[], None]:
    """Rows around a mean; what is nan is masked."""

    def model() -> None:
        loc, scale = pyro.sample("loc", dist.Normal(0.0, 2.0)), pyro.sample("scale", dist.HalfNormal(2.0))
        with pyro.plate("row", len(y)), poutine.mask(mask=~y.isnan()):
            pyro.sample("y", dist.Normal(loc, scale), obs=y)

    return model


def nan_masked_normal(y: Tensor) -> Callable[[], None]:
    def model() -> None:
        loc, scale = pyro.sample("loc", dist.Normal(0.0, 2.0)), pyro.sample("scale", dist.HalfNormal(2.0))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.NanMaskedNormal(loc.expand(len(y)), scale), obs=y)

    return model


def nan_masked_multivariate(y: Tensor) -> Callable[[], None]:
    def model() -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0).expand([y.shape[1]]).to_event(1))
        scale = pyro.sample("scale", dist.HalfNormal(2.0))
        with pyro.plate("row", len(y)):
            tril = scale * torch.eye(y.shape[1])
            pyro.sample("y", dist.NanMaskedMultivariateNormal(loc, scale_tril=tril), obs=y)

    return model


def milliseconds(target: ModelTarget, z: Tensor) -> float:
    start = time.process_time()
    log_prob_and_score(target.log_prob, z)

    return 1000 * (time.process_time() - start)


def compare(name: str, make: Callable[[Tensor], Callable[[], None]], y: Tensor, num_rounds: int) -> None:
    """A row: the data with nan against the same data without."""
    holes = torch.rand(y.shape, generator=torch.Generator().manual_seed(1)) < 0.2
    targets = [ModelTarget(make(y)), ModelTarget(make(y.masked_fill(holes, torch.nan)))]
    z = 0.3 * torch.randn(NUM_POINTS, targets[0].dim, dtype=torch.float64)
    for target in targets:
        for _ in range(WARM_UP_CALLS):
            log_prob_and_score(target.log_prob, z)
    rounds = [[milliseconds(target, z) for target in targets] for _ in range(num_rounds)]
    whole, missing = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratios = [with_nan / without for without, with_nan in rounds]
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
    print(f"| {name} | {whole:.1f} | {missing:.1f} | {spread} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(0)
    rows, events = torch.randn(NUM_ROWS, generator=random), torch.randn(NUM_EVENTS, 3, generator=random)
    print("| model | all data, ms | a fifth nan, ms | ratio |\n|---|--:|--:|--:|")
    compare(f"{NUM_ROWS:,} normal rows, poutine.mask", normal, rows, args.rounds)
    compare(f"{NUM_ROWS:,} rows, NanMaskedNormal", nan_masked_normal, rows, args.rounds)
    compare(f"{NUM_EVENTS} events of 3, NanMaskedMultivariateNormal", nan_masked_multivariate, events, args.rounds)

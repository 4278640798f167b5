"""What does nan under a mask cost? Log densities with gradients, side by side.

    python benchmarks/missing_data.py [--rounds 40]   # lines go to benchmarks/results/missing_data.jsonl
    python benchmarks/missing_data.py --report        # the table in docs/models.md

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
from cases import HERE
from document import DOCS, spread, table, write_block
from pyro import poutine
from runs import Record, keep, ordered
from torch import Tensor

from pyro_osds.model import ModelTarget
from pyro_osds.target import log_prob_and_score

RESULTS = HERE / "results" / "missing_data.jsonl"
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


def compare(name: str, num_rounds: int) -> Record:
    """The data with nan against the same data without, milliseconds of each round."""
    make, y = MODELS[name]
    holes = torch.rand(y.shape, generator=torch.Generator().manual_seed(1)) < 0.2
    targets = [ModelTarget(make(y)), ModelTarget(make(y.masked_fill(holes, torch.nan)))]
    z = 0.3 * torch.randn(NUM_POINTS, targets[0].dim, dtype=torch.float64)
    for target in targets:
        for _ in range(WARM_UP_CALLS):
            log_prob_and_score(target.log_prob, z)
    rounds = [[milliseconds(target, z) for target in targets] for _ in range(num_rounds)]
    whole, missing = zip(*rounds, strict=True)

    return {"model": name, "all data": whole, "a fifth nan": missing, "torch": torch.__version__}


def report(records: list[Record]) -> str:
    rows = []
    for record in records:
        times = [record["all data"], record["a fifth nan"]]
        ratios = [missing / whole for whole, missing in zip(*times, strict=True)]
        rows.append([record["model"], *(f"{statistics.median(each):.1f}" for each in times), spread(ratios)])

    return table(["model", "all data, ms", "a fifth nan, ms", "ratio"], rows, "lrrr")


ROWS = torch.randn(NUM_ROWS, generator=torch.Generator().manual_seed(0))
EVENTS = torch.randn(NUM_EVENTS, 3, generator=torch.Generator().manual_seed(2))
MODELS = {
    f"{NUM_ROWS:,} normal rows, poutine.mask": (normal, ROWS),
    f"{NUM_ROWS:,} rows, NanMaskedNormal": (nan_masked_normal, ROWS),
    f"{NUM_EVENTS} events of 3, NanMaskedMultivariateNormal": (nan_masked_multivariate, EVENTS),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--report", action="store_true", help="write the table, run nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in [] if args.report else MODELS:
        keep(compare(name, args.rounds), RESULTS, "model")
    text = report(ordered(RESULTS, "model", MODELS))
    print(text)
    if args.report:
        write_block("missing-data", text, DOCS / "models.md")

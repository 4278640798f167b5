"""The same models on the CPU and on a GPU: seconds of a run and of a million draws, log evidence, and double precision.

    python benchmarks/devices.py [--devices cpu cuda] [--only NAME ...] [--seeds 0 ...] [--out FILE] [--report]

Default settings of OSDS, one after the other in one process; a small run of each device goes first and does not count.
"single" and "double" are milliseconds for the log densities and gradients of 1,024 points in either precision, by the
recorded graph; "runs in" is what the sampler chose. `--report` writes the table of FILE to docs/performance.md and runs
nothing.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from cases import EXAMPLES, KNOWN, read_rows
from document import DOCS, table, write_block
from torch import Tensor

from pyro_osds import OSDS
from pyro_osds.model import ModelTarget
from pyro_osds.model.batching import Ladder
from pyro_osds.target import log_prob_and_score

BATCH_SIZE, NUM_CALLS, NUM_DRAWS = 1024, 20, 1_000_000
RESULTS = Path(__file__).parent / "results" / "devices.jsonl"


@dataclass(frozen=True)
class Entry:
    """A model of one tuple of data, which say where the run is, and its log evidence where that is known."""

    name: str
    model: Callable[..., None]
    data: tuple[Tensor, ...]
    log_evidence: float = math.nan


def schools(y: Tensor, sigma: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(y.new_tensor(5.0)))
    with pyro.plate("school", len(y), device=y.device):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def logistic(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(x.new_tensor(0.0), 10.0).expand([x.shape[1]]).to_event(1))
    with pyro.plate("row", len(y), device=y.device):
        pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


def counts(y: Tensor) -> None:
    """Large counts: a log density that single precision rounds by whole nats."""
    rate = pyro.sample("rate", dist.Gamma(y.new_tensor(2.0), y.new_tensor(1e-5)))
    with pyro.plate("row", len(y), device=y.device):
        pyro.sample("y", dist.Poisson(rate), obs=y)


def counts_log_evidence(y: Tensor, shape: float = 2.0, rate: float = 1e-5) -> float:
    """Of Poisson counts with a gamma rate, in closed form."""
    total, number = y.double().sum(), len(y)
    terms = shape * math.log(rate) - math.lgamma(shape) - torch.lgamma(y.double() + 1).sum()

    return float(terms + torch.lgamma(shape + total) - (shape + total) * math.log(rate + number))


def entries() -> list[Entry]:
    random = torch.Generator().manual_seed(0)
    credit = read_rows(EXAMPLES / "german_credit.csv")
    features = credit[:, :-1] / credit[:, :-1].std(0, correction=0)
    credit_x = torch.cat([torch.ones(len(credit), 1), features], 1)
    many_x = torch.randn(100_000, 20, generator=random)
    many_y = torch.bernoulli(torch.sigmoid(0.3 * many_x.sum(1)), generator=random)
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    large = torch.poisson(torch.full((200,), 1e5), generator=random)

    return [
        Entry("eight schools", schools, (y, sigma), -31.3113),  # by quadrature over mu and tau
        Entry("German credit", logistic, (credit_x, credit[:, -1] - 1), KNOWN["german_credit"]["log_evidence"]),
        Entry("200 counts of 1e5", counts, (large,), counts_log_evidence(large)),
        Entry("logistic regression, 100,000 rows", logistic, (many_x, many_y)),
    ]


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(function: Callable[[], Any], device: str) -> tuple[float, Any]:
    synchronise(device)
    start = time.perf_counter()
    result = function()
    synchronise(device)

    return time.perf_counter() - start, result


def density_milliseconds(entry: Entry, data: tuple[Tensor, ...], device: str, is_double: bool) -> float:
    """Median of the value and gradient of a batch, by the recorded graph."""
    target = ModelTarget(entry.model, data)
    z = 0.1 * torch.randn(BATCH_SIZE, target.dim, device=device, dtype=target.dtype) + target.start
    target._ladder = Ladder(target._single, target.start, block_size=BATCH_SIZE, is_double=is_double)
    log_prob_and_score(target.log_prob, z)
    times = [seconds_of(lambda: log_prob_and_score(target.log_prob, z), device)[0] for _ in range(NUM_CALLS)]

    return 1000 * statistics.median(times)


def measure(entry: Entry, device: str, seed: int) -> dict[str, Any]:
    data = tuple(value.to(device) for value in entry.data)
    pyro.set_rng_seed(seed)
    osds = OSDS(entry.model, disable_progbar=True)
    fit_seconds, _ = seconds_of(lambda: osds.run(*data), device)
    osds.draw(10_000)
    draw_seconds, _ = seconds_of(lambda: osds.draw(NUM_DRAWS), device)
    evidence = osds.evidence

    return {
        "name": entry.name,
        "dim": osds.fit.target.dim,
        "device": device,
        "card": torch.cuda.get_device_name() if device == "cuda" else "",
        "seed": seed,
        "log_evidence": evidence.log_evidence,
        "std_error": evidence.std_error,
        "error": evidence.log_evidence - entry.log_evidence,
        "reliable": bool(evidence.reliable),
        "seconds": fit_seconds,
        "draw_seconds": draw_seconds,
        "is_double": bool(osds.fit.target.is_double),
        "single": density_milliseconds(entry, data, device, False),
        "double": density_milliseconds(entry, data, device, True),
        "report": [str(line) for line in osds.run_report],
    }


def report(records: list[dict[str, Any]]) -> str:
    header = ("model", "D", "device", "single, ms", "double, ms", "runs in", "run, s", "log evidence", "error")
    rows = [
        [
            r["name"],
            r["dim"],
            r["card"] or "CPU",
            f"{r['single']:.2f}",
            f"{r['double']:.2f}",
            "double" if r["is_double"] else "single",
            f"{r['seconds']:.1f}",
            f"{r['log_evidence']:.4f} ± {r['std_error']:.4f}",
            "" if math.isnan(r["error"]) else f"{r['error']:+.4f}",
            f"{r['draw_seconds']:.2f}",
        ]
        for r in records
    ]

    return table((*header, "1,000,000 draws, s"), rows, "lrlrrlrrrr")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", nargs="+", default=["cpu", "cuda"], choices=["cpu", "cuda"])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="models whose names contain one of these")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="write the table, run nothing")
    args = parser.parse_args()
    if args.report:
        lines = args.out.read_text().splitlines()
        write_block("devices", report([json.loads(line) for line in lines]), DOCS / "performance.md")
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    chosen = [e for e in entries() if not args.only or any(part in e.name for part in args.only)]
    for device in args.devices:
        warm_up = Entry("", counts, (torch.ones(3),))
        OSDS(warm_up.model, num_iterations=20, disable_progbar=True).run(*(v.to(device) for v in warm_up.data))
        for entry in chosen:
            for seed in args.seeds:
                record = measure(entry, device, seed)
                with args.out.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                print(report([record]).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()

"""
Reading the result
==================

Summary, log, and the two figures of one fit: eight schools in its centred form, whose funnel a Gaussian base does not
fit. ``plot_fit`` shows how training went and what the weights say, ``plot_leap`` where the flow takes its base draws.
"""

import argparse
import csv
import logging
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import pyro
import pyro.distributions as dist
import torch
from tqdm.contrib.logging import logging_redirect_tqdm

from pyro_osds import OSDS, plot_fit, plot_leap

DATA = Path(__file__).parent / "data" / "eight_schools.csv"
FIGURES = Path(__file__).parent.parent / "docs" / "figures"


def schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def load():
    with DATA.open() as file:
        rows = list(csv.DictReader(file))
    return tuple(torch.tensor([float(row[name]) for row in rows]) for name in ("y", "sigma"))


def main(args):
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("pyro_osds").setLevel(args.log_level)
    pyro.set_rng_seed(args.seed)
    osds = OSDS(schools, num_samples=args.num_samples, num_iterations=args.num_iterations)
    print(osds)
    with logging_redirect_tqdm():  # so that lines of the log and the bar do not mix
        osds.run(*load())
    osds.summary()
    print(osds)

    if args.figures:
        folder = Path(args.figures)
        pictures = {"fit": plot_fit(osds), "leap": plot_leap(osds, ("mu", "tau"))}
        for name, axes in pictures.items():
            axes[0].figure.savefig(folder / f"reading_{name}.png", dpi=110)
            print(f"wrote {folder / f'reading_{name}.png'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Summary, log and figures of one fit")
    parser.add_argument("--num-samples", type=int, default=1000, help="posterior draws per chain")
    parser.add_argument("--num-iterations", type=int, default=2000, help="optimiser steps at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-level", default="INFO", help="DEBUG for every temperature and round")
    parser.add_argument("--figures", nargs="?", const=FIGURES, help="save the figures, here or in docs/figures")
    parser.add_argument(
        "--smoke-test", action="store_true", help="a tiny run in a temporary directory; its numbers mean nothing"
    )
    args = parser.parse_args()
    if args.smoke_test:
        args.num_samples, args.num_iterations = 50, 40
        with tempfile.TemporaryDirectory() as folder:
            args.figures = folder
            main(args)
    else:
        main(args)

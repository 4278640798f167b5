"""
Eight schools: NUTS in the flow's coordinates
=============================================

The centred model of the eight schools is a funnel, and NUTS has a hard time in it: small steps, divergences, few
effective draws for the spread ``tau``. The flow that ``OSDS`` trains is a change of coordinates as well: in those of
its base the same posterior is nearly a standard normal ("NeuTra", Hoffman et al. 2019). Here NUTS samples the model in
both, beside the draws and the log evidence of ``OSDS`` itself, and all three must agree. It takes some minutes, nearly
all of them in NUTS.
"""

import argparse
import csv
import time
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.mcmc.util import summary

from pyro_osds import OSDS

DATA = Path(__file__).parent / "data" / "eight_schools.csv"


def centred(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def load():
    with DATA.open() as file:
        rows = list(csv.DictReader(file))
    return torch.tensor([float(row["y"]) for row in rows]), torch.tensor([float(row["sigma"]) for row in rows])


def nuts(model, args, *data):
    """Draws by site and chain, what MCMC says of the run, and its seconds."""
    mcmc = MCMC(
        NUTS(model), num_samples=args.num_nuts_samples, warmup_steps=args.num_nuts_samples, disable_progbar=True
    )
    start = time.perf_counter()
    mcmc.run(*data)

    return mcmc.get_samples(group_by_chain=True), mcmc.diagnostics(), time.perf_counter() - start


def report(name, samples, divergences, seconds):
    print(f"{name}: {seconds:.1f} s, {divergences} divergences")
    for site, of_site in summary(samples).items():
        mean, sd, n_eff = (of_site[key].flatten()[0].item() for key in ("mean", "std", "n_eff"))
        error = sd / n_eff**0.5
        print(f"  {site}: mean {mean:.2f} +- {error:.2f}, sd {sd:.2f}, {n_eff:.0f} effective draws")


def main(args):
    data = load()
    pyro.set_rng_seed(args.seed)
    osds = OSDS(centred, num_samples=args.num_samples, num_iterations=args.num_iterations)
    start = time.perf_counter()
    osds.run(*data)
    seconds = time.perf_counter() - start
    evidence = osds.evidence
    verdict = "reliable" if evidence.reliable else "NOT reliable"
    print(f"log evidence {evidence.log_evidence:.4f} +- {evidence.std_error:.4f}, {verdict}")
    report("OSDS", osds.get_samples(group_by_chain=True), 0, seconds)

    samples, diagnostics, seconds = nuts(centred, args, *data)
    report("NUTS", samples, len(diagnostics["divergences"]["chain 0"]), seconds)

    neutra = osds.neutra()
    samples, diagnostics, seconds = nuts(neutra.reparam(centred), args, *data)
    draws = neutra.transform_sample(samples["osds_shared_latent"])
    report("NUTS in the flow's coordinates", draws, len(diagnostics["divergences"]["chain 0"]), seconds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Eight schools: NUTS in the flow's coordinates")
    parser.add_argument("--num-samples", type=int, default=1000, help="posterior draws per chain of OSDS")
    parser.add_argument("--num-iterations", type=int, default=1000, help="optimiser steps at most")
    parser.add_argument("--num-nuts-samples", type=int, default=1000, help="draws of NUTS, after as many to warm up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke-test", action="store_true", help="a tiny run; its numbers mean nothing")
    args = parser.parse_args()
    if args.smoke_test:
        args.num_samples, args.num_iterations, args.num_nuts_samples = 50, 40, 10
    main(args)

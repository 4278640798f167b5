"""
Earthquakes: how many hidden states?
====================================

The numbers of major earthquakes (magnitude 7 and above) in the world, each year from 1900 to 2006. They vary more than
a Poisson distribution allows, and busy years follow busy years: a hidden Markov model with a rate for each state.
The states are summed out by variable elimination (``pyro.markov``), so the rates and the transition matrix are all that
is left to sample, and the log evidences of one, two and three states can be compared. At the end, Pyro's
``infer_discrete`` tells how likely each year was a busy one. The whole takes some minutes.

Data: Zucchini, MacDonald and Langrock, Hidden Markov Models for Time Series (2016), from the catalogue of the U.S.
Geological Survey.
"""

import argparse
import csv
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate, infer_discrete

from pyro_osds import OSDS, compare_evidence

DATA = Path(__file__).parent / "data" / "earthquakes.csv"


def hidden_markov(counts, num_states):
    lowest = pyro.sample("lowest", dist.Gamma(4.0, 0.25))
    steps = pyro.sample("steps", dist.Gamma(2.0, 0.2).expand([num_states - 1]).to_event(1))
    # Rates in ascending order: otherwise every permutation of the states would be a mode of its own.
    rate = pyro.deterministic("rate", torch.cat([lowest[None], lowest + steps.cumsum(-1)]))
    stay = torch.ones(num_states, num_states) + 4.0 * torch.eye(num_states)
    with pyro.plate("state", num_states):
        transition = pyro.sample("transition", dist.Dirichlet(stay))
    state = 0
    for year in pyro.markov(range(len(counts))):
        # The year before the first one counts as calm.
        state = pyro.sample(f"state_{year}", dist.Categorical(transition[state]))
        pyro.sample(f"count_{year}", dist.Poisson(rate[state]), obs=counts[year])


def constant_rate(counts):
    rate = pyro.sample("rate", dist.Gamma(4.0, 0.25))
    with pyro.plate("year", len(counts)):
        pyro.sample("count", dist.Poisson(rate), obs=counts)


def load(num_years):
    with DATA.open() as file:
        rows = list(csv.DictReader(file))[-num_years:]
    return [int(row["year"]) for row in rows], torch.tensor([float(row["count"]) for row in rows])


def probability_of_last_state(osds, counts, num_states, num_draws):
    """For each year, the share of posterior draws in which it is in the state with the highest rate."""
    samples = osds.get_samples(num_draws)
    last = torch.zeros(len(counts))
    for i in range(num_draws):
        given = poutine.condition(hidden_markov, {name: value[i] for name, value in samples.items()})
        # One plate dimension is in use, so discrete values take those from -2 on.
        decoded = infer_discrete(config_enumerate(given), first_available_dim=-2)
        trace = poutine.trace(decoded).get_trace(counts, num_states)
        states = torch.stack([trace.nodes[f"state_{year}"]["value"] for year in range(len(counts))])
        last += (states == num_states - 1) / num_draws

    return last


def main(args):
    years, counts = load(args.num_years)
    options = {"num_samples": args.num_samples, "num_chains": 4, "num_iterations": args.num_iterations}
    pyro.set_rng_seed(args.seed)
    runs = {"1 state": OSDS(constant_rate, **options)}
    runs["1 state"].run(counts)
    for num_states in (2, 3)[: args.num_models]:
        runs[f"{num_states} states"] = OSDS(hidden_markov, **options)
        runs[f"{num_states} states"].run(counts, num_states)

    print(compare_evidence(runs).to_string())
    for reason in (reason for osds in runs.values() for reason in osds.evidence.reasons):
        print(f"NOT reliable: {reason}")

    two = runs["2 states"]
    two.summary()
    busy = probability_of_last_state(two, counts, 2, args.num_decoded)
    print(f"probability of the busy state, from {args.num_decoded} posterior draws")
    for first in range(0, len(years), 10):
        decade = " ".join(f"{share:4.2f}" for share in busy[first : first + 10])
        print(f"  {years[first]}: {decade}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Earthquakes: the evidence of hidden Markov models")
    parser.add_argument("--num-samples", type=int, default=1000, help="posterior draws per chain")
    parser.add_argument("--num-iterations", type=int, default=1000, help="optimiser steps at most")
    parser.add_argument("--num-years", type=int, default=107, help="the last years only")
    parser.add_argument("--num-models", type=int, default=2, help="how many of the models with two and three states")
    parser.add_argument("--num-decoded", type=int, default=50, help="posterior draws whose states are inferred")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke-test", action="store_true", help="a tiny run; its numbers mean nothing")
    args = parser.parse_args()
    if args.smoke_test:
        args.num_samples, args.num_iterations, args.num_decoded = 50, 40, 3
        args.num_years, args.num_models = 10, 1
    main(args)

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

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate, infer_discrete

from pyro_osds import OSDS, compare_evidence

# fmt: off
counts = torch.tensor([
    13, 14, 8, 10, 16, 26, 32, 27, 18, 32, 36, 24, 22, 23, 22, 18, 25, 21, 21, 14, 8, 11, 14, 23, 18, 17, 19, 20,
    22, 19, 13, 26, 13, 14, 22, 24, 21, 22, 26, 21, 23, 24, 27, 41, 31, 27, 35, 26, 28, 36, 39, 21, 17, 22, 17, 19,
    15, 34, 10, 15, 22, 18, 15, 20, 15, 22, 19, 16, 30, 27, 29, 23, 20, 16, 21, 21, 25, 16, 18, 15, 18, 14, 10, 15,
    8, 15, 6, 11, 8, 7, 18, 16, 13, 12, 13, 20, 15, 16, 12, 18, 15, 16, 13, 15, 16, 11, 11,
]).float()
# fmt: on
NUM_YEARS = 107  # the last years only
counts = counts[-NUM_YEARS:]
years = list(range(2007 - NUM_YEARS, 2007))

# %%
# The models
# ----------
#
# A rate for each hidden state, and a chain of states in ``pyro.markov``. With one state it is a Poisson distribution.


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


# %%
# One, two and three states
# -------------------------

pyro.set_rng_seed(0)  # once: the errors of the runs must be independent
runs = {"1 state": OSDS(constant_rate)}
runs["1 state"].run(counts)
for num_states in (2, 3):
    runs[f"{num_states} states"] = OSDS(hidden_markov)
    runs[f"{num_states} states"].run(counts, num_states)

print(compare_evidence(runs).to_string())
for reason in (reason for osds in runs.values() for reason in osds.evidence.reasons):
    print(f"NOT reliable: {reason}")

# %%
# Two states, read
# ----------------

two = runs["2 states"]
two.summary()

# %%
# Which years were busy?
# ----------------------
#
# For each posterior draw, ``infer_discrete`` draws the states given data, rates and transitions. The share of draws in
# which a year is in the state with the highest rate is its probability. ``two.infer_discrete()`` does the same in one
# line; this is how it is done by hand.

NUM_DECODED = 50
samples = two.get_samples(NUM_DECODED)
busy = torch.zeros(len(counts))
for i in range(NUM_DECODED):
    given = poutine.condition(hidden_markov, {name: value[i] for name, value in samples.items()})
    # One plate dimension is in use, so discrete values take those from -2 on.
    decoded = infer_discrete(config_enumerate(given), first_available_dim=-2)
    trace = poutine.trace(decoded).get_trace(counts, 2)
    states = torch.stack([trace.nodes[f"state_{year}"]["value"] for year in range(len(counts))])
    busy += (states == 1) / NUM_DECODED

print(f"probability of the busy state, from {NUM_DECODED} posterior draws")
for first in range(0, len(years), 10):
    decade = " ".join(f"{share:4.2f}" for share in busy[first : first + 10])
    print(f"  {years[first]}: {decade}")

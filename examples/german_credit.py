"""
German credit beside NUTS
=========================

Bayesian logistic regression with 25 coefficients, sampled by OSDS and by Pyro's NUTS in one run. Both should give the
same means and standard deviations; OSDS also gives the log evidence, for which long runs of Hamiltonian Monte Carlo
with bridge sampling found -585.102 (standard error 0.001).
"""

import time
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS

from pyro_osds import OSDS

# %%
# The data
# --------
#
# A thousand loans of the Statlog data (Hofmann 1994, CC BY 4.0). The table is ``german_credit.csv`` beside this
# notebook or in ``examples/data`` of the source distribution; where it is neither, it comes from the UCI repository,
# which needs a network.

ADDRESS = "https://archive.ics.uci.edu/ml/machine-learning-databases/statlog/german/german.data-numeric"
places = [Path(folder) / "german_credit.csv" for folder in (".", "data", "examples/data")]
found = [path for path in places if path.exists()]
table = np.loadtxt(found[0], delimiter=",", skiprows=1) if found else np.loadtxt(ADDRESS)

# An intercept, then the columns over their standard deviation, not centred.
raw, labels = table[:, :-1], table[:, -1]
features = torch.tensor(np.column_stack([np.ones(len(raw)), raw / raw.std(0)]), dtype=torch.float32)
good = torch.tensor(labels - 1, dtype=torch.float32)
print(features.shape)

# %%
# The model
# ---------


def model(features, good):
    weights = pyro.sample("weights", dist.Normal(0.0, 10.0).expand([features.shape[1]]).to_event(1))
    with pyro.plate("loan", len(good)):
        pyro.sample("good", dist.Bernoulli(logits=features @ weights), obs=good)


# %%
# OSDS
# ----

pyro.set_rng_seed(0)
start = time.perf_counter()
osds = OSDS(model)
osds.run(features, good)
ours = osds.get_samples()["weights"]
print(f"OSDS: {time.perf_counter() - start:.1f} s for {len(ours)} draws and the evidence")
print(f"log evidence {osds.log_evidence:.4f} +- {osds.log_evidence_se:.4f}, reference -585.1018")
print("reliable" if osds.evidence.reliable else "NOT reliable: " + " ".join(osds.evidence.reasons))

# %%
# NUTS
# ----
#
# One chain, which takes minutes.

NUM_NUTS_SAMPLES, NUM_NUTS_WARMUP, MAX_TREE_DEPTH = 500, 300, 10
pyro.set_rng_seed(0)
start = time.perf_counter()
mcmc = MCMC(NUTS(model, max_tree_depth=MAX_TREE_DEPTH), num_samples=NUM_NUTS_SAMPLES, warmup_steps=NUM_NUTS_WARMUP)
mcmc.run(features, good)
theirs = mcmc.get_samples()["weights"]
print(f"NUTS: {time.perf_counter() - start:.1f} s for {len(theirs)} draws (one chain)")

# %%
# Side by side
# ------------

print(f"{'weight':>9} {'mean OSDS':>10} {'NUTS':>8} {'sd OSDS':>9} {'NUTS':>8}")
names = ["intercept", *(f"x{i}" for i in range(1, ours.shape[1]))]
for i, name in enumerate(names):
    a, b = ours[:, i], theirs[:, i]
    print(f"{name:>9} {a.mean():10.3f} {b.mean():8.3f} {a.std():9.3f} {b.std():8.3f}")
shift = ((ours.mean(0) - theirs.mean(0)) / theirs.std(0)).abs().max()
ratio = ours.std(0) / theirs.std(0)
print(f"largest difference of means: {shift:.3f} posterior sd; sd ratios {ratio.min():.3f} to {ratio.max():.3f}")

"""
Eight schools, twice
====================

The effects of coaching in eight schools (Rubin 1981), written in two ways: centred, where the posterior is a funnel,
and non-centred, where it is nearly normal. Both are the same model of the data, so both must give the same log
evidence. Quadrature gives it exactly: -31.3113.
"""

import math

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch

from pyro_osds import OSDS

y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
EXACT = -31.311347

# %%
# Two models
# ----------
#
# In the centred form the effects have the unknown spread ``tau`` as their scale; in the other one they are ``mu`` plus
# ``tau`` times a standard normal.


def centred(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def non_centred(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)


# %%
# Two runs
# --------
#
# The seed is set once, so that the errors of the two log evidences are independent.

pyro.set_rng_seed(0)
runs = {}
for name, model in {"centred": centred, "non-centred": non_centred}.items():
    runs[name] = OSDS(model, num_samples=1000, num_chains=4)
    runs[name].run(y, sigma)

# %%
runs["centred"].summary()

# %%
# Do they agree?
# --------------

for name, osds in runs.items():
    evidence = osds.evidence
    print(f"{name}: log evidence {evidence.log_evidence:.4f} +- {evidence.std_error:.4f}, exact {EXACT:.4f}")
    print("  reliable" if evidence.reliable else "  NOT reliable: " + " ".join(evidence.reasons))

first, second = (osds.evidence for osds in runs.values())
gap = abs(first.log_evidence - second.log_evidence)
std_error = math.hypot(first.std_error, second.std_error)
verdict = "agree" if gap <= 3 * std_error else "DISAGREE"
print(f"the two {verdict}: {gap:.4f} apart, combined standard error {std_error:.4f} (3 are allowed)")

# %%
# The posteriors
# --------------
#
# InferenceData has the draws by chain, with plates as dimensions. The effects of the non-centred form have to be put
# together from its latents.

figure, (left, middle, right) = plt.subplots(1, 3, num="eight_schools", figsize=(13, 4), layout="constrained")
for shift, (name, osds) in zip((-0.12, 0.12), runs.items(), strict=True):
    posterior = osds.to_inference_data()["posterior"]
    theta = posterior["theta"] if name == "centred" else posterior["mu"] + posterior["tau"] * posterior["eta"]
    low, median, high = np.quantile(theta.values.reshape(-1, 8), [0.05, 0.5, 0.95], axis=0)
    left.hist(posterior["mu"].values.ravel(), bins=60, density=True, histtype="step", label=name)
    middle.hist(posterior["tau"].values.ravel(), bins=60, range=(0, 25), density=True, histtype="step")
    right.errorbar(np.arange(1, 9) + shift, median, yerr=[median - low, high - median], fmt="o", markersize=4)
left.set(xlabel="mu", title="mean effect")
left.legend()
middle.set(xlabel="tau", title="spread of effects")
right.set(xlabel="school", ylabel="theta", title="effects: median and 90 % interval")
plt.show()

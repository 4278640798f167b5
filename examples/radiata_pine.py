"""
Radiata pine: which density predicts strength?
==============================================

Two regressions of the strength of 42 specimens of pine, on their density and on their density adjusted for resin
(Williams 1959). The prior is conjugate, so both log evidences are known in closed form, -310.1283 and -301.7046, and
the log Bayes factor for the adjusted density is 8.4237. Neither model is a special case of the other.
"""

import math

import pyro
import pyro.distributions as dist
import torch

from pyro_osds import OSDS, compare_evidence

# fmt: off
strength = torch.tensor([
    3040, 2470, 3610, 3480, 3810, 2330, 1800, 3110, 3670, 2310, 4360, 1880, 3670, 1740, 2250, 2650, 4970, 2620,
    2900, 1670, 2540, 3840, 3800, 4600, 1900, 2530, 2920, 4990, 1670, 3310, 3450, 3600, 2850, 1590, 3770, 3850,
    2480, 3570, 2620, 1890, 3030, 3030,
]).float()
density = torch.tensor([
    29.2, 24.7, 32.3, 31.3, 31.5, 24.5, 19.9, 27.3, 32.3, 24, 33.8, 21.5, 32.2, 22.5, 27.5, 25.6, 34.5, 26.2, 26.7,
    21.1, 24.1, 30.7, 32.7, 32.6, 22.1, 25.3, 30.8, 38.9, 22.1, 29.2, 30.1, 31.4, 26.7, 22.1, 30.3, 32, 23.2, 30.3,
    29.9, 20.8, 33.2, 28.2,
])
adjusted_density = torch.tensor([
    25.4, 22.2, 32.2, 31, 30.9, 23.9, 19.2, 27.2, 29, 23.9, 33.2, 21, 29, 22, 23.8, 25.3, 34.2, 25.7, 26.4, 20,
    23.9, 30.7, 32.6, 32.5, 20.8, 23.1, 29.8, 38.1, 21.3, 28.5, 29.2, 31.4, 25.9, 21.4, 29.8, 30.6, 22.6, 30.3,
    23.8, 18.4, 29.4, 28.2,
])
# fmt: on
EXACT = {"density": -310.128286, "adjusted density": -301.704602}

# %%
# One model, two covariates
# -------------------------
#
# The prior of the intercept is around 3000, that of the slope around 185; both scale with the noise.


def regression(x, y):
    tau = pyro.sample("tau", dist.Gamma(3.0, 2 * 300.0**2))
    alpha = pyro.sample("alpha", dist.Normal(3000.0, (0.06 * tau).rsqrt()))
    beta = pyro.sample("beta", dist.Normal(185.0, (6.0 * tau).rsqrt()))
    with pyro.plate("specimen", len(y)):
        pyro.sample("y", dist.Normal(alpha + beta * (x - x.mean()), tau.rsqrt()), obs=y)


# %%
# Run both
# --------

pyro.set_rng_seed(0)  # once: the errors of the two runs must be independent
runs = {}
for name, x in {"density": density, "adjusted density": adjusted_density}.items():
    runs[name] = OSDS(regression)
    runs[name].run(x, strength)

# %%
# Compare
# -------

print(compare_evidence(runs).to_string())

# %%
# Beside the closed form
# ----------------------

for name, osds in runs.items():
    evidence = osds.evidence
    print(f"{name}: log evidence {evidence.log_evidence:.4f} +- {evidence.std_error:.4f}, exact {EXACT[name]:.4f}")
    for reason in evidence.reasons:
        print(f"  NOT reliable: {reason}")

plain, adjusted = runs["density"], runs["adjusted density"]
log_bayes_factor = adjusted.log_evidence - plain.log_evidence
std_error = math.hypot(adjusted.log_evidence_se, plain.log_evidence_se)
exact = EXACT["adjusted density"] - EXACT["density"]
print(f"log Bayes factor for the adjusted density: {log_bayes_factor:.4f} +- {std_error:.4f}, exact {exact:.4f}")

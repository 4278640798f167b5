"""
Galaxies: a mixture, and labels that trade places
=================================================

The velocities of 82 galaxies fall into groups. How many? Normal mixtures with two and three components, whose
memberships are summed out and whose labels mean nothing: every permutation of three components is a mode of its own,
so a posterior with three groups has six times as much mass as a sampler sees that sits in one of them.

This is the data set on which that was noticed. Chib (1995) published the log evidences -240.464, -228.620 and -224.138
from a Gibbs sampler that stayed in one mode; Neal (1999) pointed out that log 2 and log 6 were missing in the first
two, and something else in the third. Averages of the likelihood over 10^8 draws of the prior give -239.76, -226.84 and
-226.80. ``OSDS`` finds that components may trade places, trains on one order of them, and gives them all their places
back.

Data: Postman, Huchra and Geller (1986), by way of Roeder (1990).
"""

import math

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch

from pyro_osds import OSDS, compare_evidence

# Kilometres per second.
# fmt: off
velocity = torch.tensor([
    9172, 9350, 9483, 9558, 9775, 10227, 10406, 16084, 16170, 18419, 18552, 18600, 18927, 19052, 19070, 19330,
    19343, 19349, 19440, 19473, 19529, 19541, 19547, 19663, 19846, 19856, 19863, 19914, 19918, 19973, 19989, 20166,
    20175, 20179, 20196, 20215, 20221, 20415, 20629, 20795, 20821, 20846, 20875, 20986, 21137, 21492, 21701, 21814,
    21921, 21960, 22185, 22209, 22242, 22249, 22314, 22374, 22495, 22746, 22747, 22888, 22914, 23206, 23241, 23263,
    23484, 23538, 23542, 23666, 23706, 23711, 24129, 24285, 24289, 24366, 24717, 24990, 25633, 26960, 26995, 32065,
    32789, 34279,
]) / 1000.0
# fmt: on

# %%
# The mixture
# -----------
#
# The membership of each galaxy is a discrete latent; it is summed out. The components share one variance, or have their
# own.


def mixture(velocity, num_components, one_variance):
    weight = pyro.sample("weight", dist.Dirichlet(torch.ones(num_components)))
    if one_variance:
        variance = pyro.sample("variance", dist.InverseGamma(3.0, 20.0)).expand(num_components)
    with pyro.plate("component", num_components):
        mean = pyro.sample("mean", dist.Normal(20.0, 10.0))
        if not one_variance:
            variance = pyro.sample("variance", dist.InverseGamma(3.0, 20.0))
    with pyro.plate("galaxy", len(velocity)):
        member = pyro.sample("member", dist.Categorical(weight))
        pyro.sample("velocity", dist.Normal(mean[member], variance[member].sqrt()), obs=velocity)


# %%
# Three of them
# -------------

# Name: number of components, whether they have one variance, average over prior draws, Chib's value.
MODELS = {
    "two, one variance": (2, True, -239.76, -240.464),
    "three, one variance": (3, True, -226.84, -228.620),
    "three, own variances": (3, False, -226.80, -224.138),
}
pyro.set_rng_seed(0)  # once: the errors of the runs must be independent
runs = {}
for name, (num_components, one_variance, _, _) in MODELS.items():
    runs[name] = OSDS(mixture)
    runs[name].run(velocity, num_components, one_variance)

# %%
# The evidences, beside what was published
# ----------------------------------------

print(compare_evidence(runs).drop(columns=["pareto_k", "flag"]).to_string(float_format="{:.4f}".format))
for name, osds in runs.items():
    num_components, _, average, chib = MODELS[name]
    print(
        f"{name}: log evidence {osds.log_evidence:.3f} +- {osds.log_evidence_se:.3f}; over prior draws {average}; "
        f"Chib {chib}, and with log {num_components}! {chib + math.log(math.factorial(num_components)):.3f}"
    )
    for reason in osds.evidence.reasons:
        print(f"  NOT reliable: {reason}")

# %%
# The density, and the labels
# ---------------------------
#
# The density of a mixture does not depend on labels. The means do: each label has been everywhere.

samples = runs["three, own variances"].get_samples()
points = torch.linspace(5.0, 38.0, 300)
components = dist.Normal(samples["mean"][..., None], samples["variance"].sqrt()[..., None])
density = (components.log_prob(points).exp() * samples["weight"][..., None]).sum(1)
low, median, high = density.quantile(torch.tensor([0.05, 0.5, 0.95]), dim=0)

figure, (left, right) = plt.subplots(1, 2, num="galaxies", figsize=(11, 4), layout="constrained")
left.hist(velocity.numpy(), bins=45, density=True, color="0.8")
left.fill_between(points, low, high, alpha=0.4)
left.plot(points, median)
left.set(xlabel="velocity (1000 km/s)", ylabel="density", title="median and 90 % interval of the density")
for label, mean in enumerate(samples["mean"].T):
    right.hist(mean.numpy(), bins=80, range=(5.0, 38.0), histtype="step", density=True, label=f"mean[{label}]")
right.set(xlabel="mean (1000 km/s)", title="every label has been everywhere")
right.legend()
plt.show()

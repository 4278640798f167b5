"""
Two moons: a density without a model
====================================

``OSDS.from_log_prob`` takes any unnormalised log density. This one has two crescents, far apart, that hold a fifth
and four fifths of the mass. A chain of NUTS stays in the crescent in which it began and has no way
to know of the other one; R-hat, of that chain, is fine. ``OSDS`` finds both, with their shares. The evidence is known
by quadrature on a grid.
"""

import matplotlib.pyplot as plt
import pyro
import torch
from pyro.infer import MCMC, NUTS

from pyro_osds import OSDS

# %%
# The density
# -----------

RADIUS, WIDTH = 4.0, 0.35
SHARES = torch.tensor([0.2, 0.8])


def log_density(z):
    """Points ``(B, 2)`` to log densities ``(B,)``."""
    ring = -0.5 * ((z.norm(dim=-1) - RADIUS) / WIDTH).square()
    sides = -0.5 * (z[:, :1] - torch.tensor([-RADIUS, RADIUS])).square()

    return ring + torch.logsumexp(sides + SHARES.log(), -1)


# %%
# OSDS
# ----

pyro.set_rng_seed(0)
osds = OSDS.from_log_prob(log_density, 2)
osds.run()
osds.summary()

# %%
# NUTS
# ----
#
# It takes minus the log density of one point, and begins in the left crescent.

NUM_NUTS = 500  # steps of warmup, and draws
kernel = NUTS(potential_fn=lambda params: -log_density(params["z"][None])[0])
start = {"z": torch.tensor([-RADIUS, 0.0])}
mcmc = MCMC(kernel, NUM_NUTS, NUM_NUTS, initial_params=start, disable_progbar=True)
mcmc.run()

# %%
# Beside quadrature
# -----------------

line = torch.linspace(-9.0, 9.0, 1201, dtype=torch.float64)
x, y = torch.meshgrid(line, line, indexing="ij")
density = log_density(torch.stack([x.flatten(), y.flatten()], 1)).exp().view_as(x)
total = density.sum()
log_evidence = (total * (line[1] - line[0]) ** 2).log()
share = density[line > 0].sum() / total

print(f"log evidence {osds.log_evidence:.4f} +- {osds.log_evidence_se:.4f}, quadrature {log_evidence:.4f}")
for reason in osds.evidence.reasons:
    print(f"NOT reliable: {reason}")
draws = {"OSDS": osds.get_samples()["z"], "NUTS, one chain": mcmc.get_samples()["z"]}
for name, z in draws.items():
    print(f"share of the right-hand crescent, {name}: {(z[:, 0] > 0).float().mean():.3f}, quadrature {share:.3f}")

# %%
# The picture
# -----------

figure, axes = plt.subplots(1, 2, num="two_moons", figsize=(9, 4.2), layout="constrained", sharey=True)
for axis, (title, z) in zip(axes, draws.items(), strict=True):
    axis.plot(*z[:1500].T.numpy(), ".", markersize=2)
    axis.set(title=title, xlabel="$z_1$", aspect="equal", xlim=(-7, 7), ylim=(-5, 5))
axes[0].set_ylabel("$z_2$")
plt.show()

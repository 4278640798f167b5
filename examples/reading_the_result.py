"""
Reading the result
==================

Summary, log, and the two figures of one fit: eight schools in its centred form, whose funnel a Gaussian base does not
fit. ``plot_fit`` shows how training went and what the weights say, ``plot_leap`` where the flow takes its base draws.
"""

import logging

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from tqdm.contrib.logging import logging_redirect_tqdm

from pyro_osds import OSDS, plot_fit, plot_leap

y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


# %%
# A run that says what it does
# ----------------------------
#
# Nothing is printed but the bar unless the log is switched on. ``DEBUG`` tells each temperature and each round, too.

logging.basicConfig(format="%(name)s: %(message)s")
logging.getLogger("pyro_osds").setLevel("INFO")
pyro.set_rng_seed(0)
osds = OSDS(schools)
print(osds)
with logging_redirect_tqdm():  # so that lines of the log and the bar do not mix
    osds.run(y, sigma)

# %%
# The summary
# -----------

osds.summary()

# %%
# In one line:

print(osds)

# %%
# How the fit went
# ----------------

plot_fit(osds)[0].figure.set_label("reading_fit")
plt.show()

# %%
# Where the flow takes its base draws
# -----------------------------------

plot_leap(osds, ("mu", "tau"))[0].figure.set_label("reading_leap")
plt.show()

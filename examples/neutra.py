"""
Eight schools: NUTS in the flow's coordinates
=============================================

The centred model of the eight schools is a funnel, and NUTS has a hard time in it: small steps, divergences, few
effective draws for the spread ``tau``. The flow that ``OSDS`` trains is a change of coordinates as well: in those of
its base the same posterior is nearly a standard normal ("NeuTra", Hoffman et al. 2019). Here NUTS samples the model in
both, beside the draws and the log evidence of ``OSDS`` itself, and all three must agree. It takes some minutes, nearly
all of them in NUTS.
"""

import time

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.mcmc.util import summary

from pyro_osds import OSDS

y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def centred(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def report(name, samples, divergences, seconds):
    print(f"{name}: {seconds:.1f} s, {divergences} divergences")
    for site, of_site in summary(samples).items():
        mean, sd, n_eff = (of_site[key].flatten()[0].item() for key in ("mean", "std", "n_eff"))
        print(f"  {site}: mean {mean:.2f} +- {sd / n_eff**0.5:.2f}, sd {sd:.2f}, {n_eff:.0f} effective draws")


# %%
# OSDS
# ----

pyro.set_rng_seed(0)
start = time.perf_counter()
osds = OSDS(centred)
osds.run(y, sigma)
verdict = "reliable" if osds.evidence.reliable else "NOT reliable"
print(f"log evidence {osds.log_evidence:.4f} +- {osds.log_evidence_se:.4f}, {verdict}")
report("OSDS", osds.get_samples(group_by_chain=True), 0, time.perf_counter() - start)

# %%
# NUTS in the model's own coordinates
# -----------------------------------

NUM_NUTS = 1000  # steps of warmup, and draws


def nuts(model):
    mcmc = MCMC(NUTS(model), num_samples=NUM_NUTS, warmup_steps=NUM_NUTS, disable_progbar=True)
    start = time.perf_counter()
    mcmc.run(y, sigma)

    return mcmc.get_samples(group_by_chain=True), mcmc.diagnostics(), time.perf_counter() - start


samples, diagnostics, seconds = nuts(centred)
report("NUTS", samples, len(diagnostics["divergences"]["chain 0"]), seconds)

# %%
# NUTS in the flow's coordinates
# ------------------------------

neutra = osds.neutra()
samples, diagnostics, seconds = nuts(neutra.reparam(centred))
draws = neutra.transform_sample(samples["osds_shared_latent"])
report("NUTS in the flow's coordinates", draws, len(diagnostics["divergences"]["chain 0"]), seconds)

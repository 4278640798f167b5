"""
Baseball: how much do players have in common?
=============================================

Hits of 18 players in their first 45 times at bat in the season of 1970 (Efron and Morris 1975). Four answers: one
chance of a hit for all (complete pooling), a chance for each (no pooling), chances from a common beta distribution
(partial pooling), log-odds from a common normal distribution. ``compare_evidence`` weighs them, ``plot_evidence`` draws
them.

Given what they have in common, players are independent, so each exact log evidence is a closed form or an integral over
two parameters, and is printed beside the one of the run. The evidence asks which prior foretold the data, not which
model can be fitted to them: the common beta distribution has complete pooling as a limit, and still loses to it, since
its prior expects players to differ much more than these do.
"""

import math

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy.special import betaln, logsumexp

from pyro_osds import OSDS, compare_evidence, fit_many, plot_evidence

hits = torch.tensor([18, 17, 16, 15, 14, 14, 13, 12, 11, 11, 10, 10, 10, 10, 10, 9, 8, 7]).float()
at_bats = torch.full((18,), 45.0)

# %%
# Four models
# -----------


def complete_pooling(at_bats, hits):
    chance = pyro.sample("chance", dist.Uniform(0.0, 1.0))
    with pyro.plate("player", len(hits)):
        pyro.sample("hits", dist.Binomial(at_bats, chance), obs=hits)


def no_pooling(at_bats, hits):
    with pyro.plate("player", len(hits)):
        chance = pyro.sample("chance", dist.Uniform(0.0, 1.0))
        pyro.sample("hits", dist.Binomial(at_bats, chance), obs=hits)


def partial_pooling(at_bats, hits):
    mean = pyro.sample("mean", dist.Uniform(0.0, 1.0))
    kappa = pyro.sample("kappa", dist.Pareto(1.0, 1.5))
    with pyro.plate("player", len(hits)):
        chance = pyro.sample("chance", dist.Beta(mean * kappa, (1.0 - mean) * kappa))
        pyro.sample("hits", dist.Binomial(at_bats, chance), obs=hits)


def normal_log_odds(at_bats, hits):
    loc = pyro.sample("loc", dist.Normal(-1.0, 1.0))
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))
    with pyro.plate("player", len(hits)):
        log_odds = pyro.sample("log_odds", dist.Normal(loc, scale))
        pyro.sample("hits", dist.Binomial(at_bats, logits=log_odds), obs=hits)


MODELS = {
    "complete pooling": complete_pooling,
    "no pooling": no_pooling,
    "partial pooling": partial_pooling,
    "normal log-odds": normal_log_odds,
}

# %%
# Four fits
# ---------
#
# ``fit_many`` runs them in processes of their own, as many at once as ``num_jobs`` says; with 1 they run here, one
# after the other. Each has a seed of its own, so the errors of the log evidences are independent.

pyro.set_rng_seed(0)
runs = fit_many({name: OSDS(model) for name, model in MODELS.items()}, at_bats, hits, num_jobs=1)
table = compare_evidence(runs)
print(table.drop(columns="pareto_k").to_string(float_format="{:.4f}".format))

# %%
# Exact log evidences
# -------------------
#
# Two closed forms, and two integrals over a square by Gauss-Legendre quadrature.


def exact(at_bats, hits, num_nodes=200):
    n, y = at_bats.double().numpy(), hits.double().numpy()
    choose = -np.log(n + 1.0) - betaln(1.0 + y, 1.0 + n - y)  # log of n choose y
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    u, log_weight = 0.5 * (nodes + 1.0), np.log(0.5 * weights)
    log_weights = log_weight[:, None] + log_weight

    # Beta: the mean is uniform; kappa = s^-2, which has density 3 s^2 for s in (0, 1).
    mean, kappa = u[:, None, None], u[:, None] ** -2.0
    likelihood = choose + betaln(mean * kappa + y, (1.0 - mean) * kappa + n - y)
    likelihood = (likelihood - betaln(mean * kappa, (1.0 - mean) * kappa)).sum(-1)
    partial = logsumexp(likelihood + np.log(3.0 * u**2) + log_weights)

    # Log-odds: the location within six standard deviations, the scale by its quantiles, players by Gauss-Hermite.
    offset, scale = 12.0 * u - 6.0, np.tan(0.5 * math.pi * u)
    log_prior = -0.5 * offset**2 - 0.5 * math.log(2.0 * math.pi) + math.log(12.0)
    normal, normal_weights = np.polynomial.hermite_e.hermegauss(60)
    log_odds = (offset - 1.0)[:, None, None] + scale[:, None] * normal
    log_normal = np.log(normal_weights / normal_weights.sum())
    players = zip(choose, y, n, strict=True)
    likelihood = sum(
        logsumexp(c + k * log_odds - m * np.logaddexp(0.0, log_odds) + log_normal, -1) for c, k, m in players
    )

    return {
        "complete pooling": choose.sum() + betaln(1.0 + y.sum(), 1.0 + (n - y).sum()),
        "no pooling": -np.log(n + 1.0).sum(),
        "partial pooling": partial,
        "normal log-odds": logsumexp(likelihood + log_prior[:, None] + log_weights),
    }


truth = exact(at_bats, hits)
best = table.index[0]
for name, osds in runs.items():
    evidence = osds.evidence
    print(
        f"{name}: log evidence {evidence.log_evidence:.4f} +- {evidence.std_error:.4f}, exact {truth[name]:.4f}; "
        f"log Bayes factor {table.loc[name, 'log_bayes_factor']:.4f}, exact {truth[name] - truth[best]:.4f}"
    )
    for reason in evidence.reasons:
        print(f"  NOT reliable: {reason}")

# %%
# The forest plot
# ---------------

plot_evidence(table).figure.set_label("model_comparison")
plt.show()

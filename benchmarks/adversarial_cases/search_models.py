"""Regressions with many explanations: spikes and slabs, sinusoids of unknown frequency."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import special

from .base import Kind
from .integrals import LOG_2PI, data, exact, integrate_log_2d, normal

search = Kind("search")


# ---- spike and slab ----


def spike_slab(name: str, dim: int, spike: float, seed: int, rows: int = 40) -> None:
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(rows, dim // 2))
    x = data(np.concatenate([base + 0.25 * rng.normal(size=base.shape) for _ in range(2)], 1))
    y = data(0.8 * exact(x)[:, 0] - 0.6 * exact(x)[:, 2] + rng.normal(size=rows))

    @search.model(dim, lambda: spike_slab_truth(exact(x), exact(y), spike), name)
    def model() -> None:
        """Pairs of features that are nearly the same: which of them is in, and a spike for those that are out."""
        beta = pyro.sample("beta", dist.Normal(torch.zeros(dim), 1.0).to_event(1))
        slab, narrow = dist.Normal(0.0, 1.0).log_prob(beta), dist.Normal(0.0, spike).log_prob(beta)
        prior = torch.logaddexp(math.log(0.7) + narrow, math.log(0.3) + slab)
        pyro.factor("spike", (prior - slab).sum(-1))
        with pyro.plate("n", rows):
            pyro.sample("y", dist.Normal((x * beta.unsqueeze(-2)).sum(-1), 1.0), obs=y)


def spike_slab_truth(x, y, spike: float) -> float:
    """All subsets of features."""
    dim, logs = x.shape[1], []
    for subset in range(2**dim):
        inside = (subset >> np.arange(dim)) & 1
        variances = np.where(inside, 1.0, spike**2)
        factor = np.linalg.cholesky(np.diag(1 / variances) + x.T @ x)
        half = np.linalg.solve(factor, x.T @ y)
        log_det = np.log(variances).sum() + 2 * np.log(np.diag(factor)).sum()
        weight = np.where(inside, math.log(0.3), math.log(0.7)).sum()
        logs.append(weight - 0.5 * (y @ y - half @ half + log_det + len(y) * LOG_2PI))
    return special.logsumexp(logs)


spike_slab("spike_slab_8", 8, 0.001, 40)
spike_slab("spike_slab_6", 6, 0.02, 42)
spike_slab("spike_slab_12", 12, 0.03, 41)

# ---- sinusoids ----

rng = np.random.default_rng(20)
times = data(np.sort(rng.uniform(0, 1000, 70)))
velocity = data(1.7 * np.sin(2 * np.pi * 0.1234 * exact(times) + 0.4) + 2.0 + 1.2 * rng.normal(size=70))


def amplitudes_integrated(design, y, variance: float, prior_variances):
    """Log likelihoods of frequencies, given designs `(F, N, K)` whose weights have normal priors."""
    gram, product = np.einsum("fni,fnj->fij", design, design), np.einsum("fni,n->fi", design, y) / variance
    precision = np.diag(1 / np.array(prior_variances)) + gram / variance
    fit = np.linalg.solve(precision, product[..., None])[..., 0]
    quadratic = y @ y / variance - (product * fit).sum(1)
    log_det = len(y) * math.log(variance) + np.log(prior_variances).sum() + np.linalg.slogdet(precision)[1]
    return -0.5 * (quadratic + log_det + len(y) * LOG_2PI)


def velocity_truth() -> float:
    frequency, log_sd = np.linspace(0, 0.5, 40_001), np.linspace(-1.5, 1.5, 61)
    angle = 2 * np.pi * frequency[:, None] * exact(times)
    design = np.stack([np.sin(angle), np.cos(angle), np.ones_like(angle)], -1)
    priors = [16.0, 16.0, 100.0]
    log_f = np.stack([amplitudes_integrated(design, exact(velocity), math.exp(2 * u), priors) for u in log_sd], 1)
    return integrate_log_2d(log_f + normal(log_sd, 0, 1)[None] - math.log(0.5), frequency, log_sd)


@search.model(5, velocity_truth)
def sinusoid_jitter() -> None:
    """A planet's period: hundreds of frequencies explain something."""
    f = pyro.sample("f", dist.Uniform(0.0, 0.5))
    a = pyro.sample("a", dist.Normal(0.0, 4.0))
    b = pyro.sample("b", dist.Normal(0.0, 4.0))
    v = pyro.sample("v", dist.Normal(0.0, 10.0))
    u = pyro.sample("l", dist.Normal(0.0, 1.0))
    angle = 2 * math.pi * f * times
    with pyro.plate("n", 70):
        pyro.sample("y", dist.Normal(a * angle.sin() + b * angle.cos() + v, u.exp()), obs=velocity)


times_2 = data(np.sort(rng.uniform(0, 40, 36)))
waves = np.sin(2 * np.pi * 0.21 * exact(times_2)), np.cos(2 * np.pi * 0.33 * exact(times_2))
signal = data(1.5 * waves[0] + waves[1] + 0.6 * rng.normal(size=36))


def two_frequencies_truth(n: int = 700) -> float:
    """By the midpoint rule, which for this smooth function is as good as any."""
    frequency = (np.arange(n) + 0.5) / n * 0.5
    angle = 2 * np.pi * frequency[:, None] * exact(times_2)
    pair = np.stack([np.sin(angle), np.cos(angle)], -1)
    log_f = [
        amplitudes_integrated(np.concatenate([np.repeat(one[None], n, 0), pair], 2), exact(signal), 0.36, [4.0] * 4)
        for one in pair
    ]
    return special.logsumexp(log_f) - 2 * math.log(n)


@search.model(6, two_frequencies_truth)
def two_frequencies() -> None:
    """Two sinusoids that may trade places, and aliases of both."""
    with pyro.plate("k", 2):
        f = pyro.sample("f", dist.Uniform(0.0, 0.5))
        a = pyro.sample("a", dist.Normal(0.0, 2.0))
        b = pyro.sample("b", dist.Normal(0.0, 2.0))
    angle = 2 * math.pi * f * times_2[:, None]
    with pyro.plate("n", 36):
        pyro.sample("y", dist.Normal((a * angle.sin() + b * angle.cos()).sum(-1), 0.6), obs=signal)

"""Pyro models and log densities whose log evidence is known exactly."""

import math

import pyro
import pyro.distributions as dist
import torch

CONJUGATE_Y = (1.2, 0.4, 2.1, 1.7, 0.9)
CONJUGATE_LOG_EVIDENCE = -7.191953884885075
CONJUGATE_MEAN, CONJUGATE_SD = sum(CONJUGATE_Y) / 5.25, 5.25**-0.5
BETA_BINOMIAL_LOG_EVIDENCE = -7.1853870155804165
SCHOOLS_Y = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
SCHOOLS_SIGMA = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)
SCHOOLS_LOG_EVIDENCE = -31.311347352295602
REGRESSION_X = ((1.0, -1.5), (1.0, -0.5), (1.0, 0.0), (1.0, 0.7), (1.0, 1.6), (1.0, 2.0))
REGRESSION_Y = (-2.1, -0.3, 0.4, 1.9, 3.2, 4.4)


def conjugate():
    """Normal mean with known scale; the posterior is normal with CONJUGATE_MEAN and CONJUGATE_SD."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", 5):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=torch.tensor(CONJUGATE_Y))


def beta_binomial():
    """Ten coin flips, seven of them ones: the posterior is Beta(8, 4)."""
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    with pyro.plate("flips", 10):
        pyro.sample("y", dist.Bernoulli(p), obs=torch.tensor([1.0] * 7 + [0.0] * 3))


def regression():
    """Two coefficients with independent N(0, 3) priors, noise of standard deviation 1/2."""
    w = pyro.sample("w", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    with pyro.plate("data", len(REGRESSION_Y)):
        pyro.sample("y", dist.Normal(torch.tensor(REGRESSION_X) @ w, 0.5), obs=torch.tensor(REGRESSION_Y))


def regression_log_evidence():
    """The data are jointly normal with covariance 9 X X^T + I / 4."""
    x = torch.tensor(REGRESSION_X, dtype=torch.float64)
    covariance = 9.0 * x @ x.T + 0.25 * torch.eye(len(x), dtype=torch.float64)
    joint = torch.distributions.MultivariateNormal(torch.zeros(len(x), dtype=torch.float64), covariance)

    return joint.log_prob(torch.tensor(REGRESSION_Y, dtype=torch.float64)).item()


def schools_centred():
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, torch.tensor(SCHOOLS_SIGMA)), obs=torch.tensor(SCHOOLS_Y))


def schools_non_centred():
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 8):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("y", dist.Normal(theta, torch.tensor(SCHOOLS_SIGMA)), obs=torch.tensor(SCHOOLS_Y))


LOG_GAMMA_SHAPE = 1.5


def log_gamma(z):
    """Logarithms of independent Gamma(1.5, 1) variables: skew, so that a flipped sign shows."""
    return (LOG_GAMMA_SHAPE * z - z.exp()).sum(-1)


def log_gamma_log_evidence(dim):
    return dim * math.lgamma(LOG_GAMMA_SHAPE)


def mixture_log_prob(locs, weights, scale=1.0):
    """A normalised mixture of isotropic Gaussians, locations ``(K, D)``."""
    locs = torch.as_tensor(locs)
    log_weights = torch.as_tensor(weights, dtype=locs.dtype).log()

    def log_prob(z):
        log_normal = dist.Normal(locs.to(z), scale).log_prob(z[:, None]).sum(-1)
        return torch.logsumexp(log_normal + log_weights.to(z), -1)

    return log_prob


def mixture_draws(locs, counts, scale=1.0):
    """Exact draws, ``counts[k]`` of the k-th component in that order."""
    locs = torch.as_tensor(locs)

    return locs.repeat_interleave(torch.as_tensor(counts), 0) + scale * torch.randn(sum(counts), locs.shape[1])

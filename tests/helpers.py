"""What several tests need: comparison in standard errors, Jacobians, flows with weights that are not zero, runs."""

import math

import pyro
import torch

from pyro_osds import OSDS


def assert_within_standard_error(estimate, truth, std_error, k=5):
    """A Monte Carlo number agrees with the truth within ``k`` of its standard errors, which must mean something."""
    assert math.isfinite(std_error) and std_error > 0, f"no usable standard error: {std_error}"
    distance = abs(float(estimate) - float(truth)) / std_error
    assert distance <= k, f"{float(estimate)} is {distance:.1f} standard errors of {std_error} away from {float(truth)}"


def log_abs_det_of_jacobian(function, x):
    """Log-determinants of the Jacobians of a batched map ``(B, D) -> (B, D)`` by autograd, ``(B,)``."""
    rows = [torch.autograd.functional.jacobian(lambda row: function(row[None])[0], row) for row in x]

    return torch.stack([torch.linalg.slogdet(jacobian).logabsdet for jacobian in rows])


def perturbed(module, size=0.05):
    """The same module with noise on its weights: an untrained flow is the identity and would prove nothing."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn_like(parameter))

    return module


def reliable_run(log_prob, dim, **options):
    """A run of a log density, with the random numbers that it always has; its verdict must be good."""
    pyro.set_rng_seed(0)
    osds = OSDS.from_log_prob(log_prob, dim, disable_progbar=True, **options)
    osds.run()
    assert osds.evidence.reliable, osds.evidence.reasons

    return osds

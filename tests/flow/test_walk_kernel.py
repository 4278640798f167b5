"""Kernels of steps, held against torch's multivariate normal."""

import pytest
import torch
from helpers import assert_within_standard_error, perturbed
from torch.distributions import MultivariateNormal

from pyro_osds.flow.kernel import Kernel, KernelNetwork, StepNoise


def some_kernel(count=5, dim=3, full=True):
    lower = torch.randn(count, dim, dim).tril(-1) if full else None
    return Kernel(torch.randn(count, dim), torch.rand(count, 1) + 0.1, 0.5 * torch.randn(count, dim), lower)


def as_normal(kernel):
    diagonal = torch.diag_embed(kernel.log_diagonal.exp())
    factor = (diagonal if kernel.lower is None else diagonal + kernel.lower) / kernel.scale[..., None]

    return MultivariateNormal(kernel.mean, precision_matrix=factor.mT @ factor)


@pytest.mark.parametrize("full", [True, False])
def test_density_is_that_of_the_normal(float64, full):
    kernel = some_kernel(full=full)
    x = torch.randn(5, 3)
    torch.testing.assert_close(kernel.log_prob(x), as_normal(kernel).log_prob(x))


@pytest.mark.parametrize("full", [True, False])
def test_noise_is_moved_to_where_it_came_from(float64, full):
    kernel, noise = some_kernel(full=full), torch.randn(5, 3)
    x = kernel.moved(noise)
    torch.testing.assert_close(kernel.whitened(x), noise)
    torch.testing.assert_close(kernel.log_prob_of_noise(noise), as_normal(kernel).log_prob(x))


@pytest.mark.parametrize("full", [True, False])
def test_cross_entropy_of_gaussians(float64, full):
    # Its change from one kernel to another is that of torch's closed form.
    mean, variance = torch.randn(5, 3), torch.rand(5, 1)
    scale = torch.rand(5, 1) + 0.1
    kernels = [some_kernel(full=full)._replace(scale=scale) for _ in range(2)]
    other = MultivariateNormal(mean, covariance_matrix=torch.diag_embed((variance * scale.square()).expand(-1, 3)))
    exact = [torch.distributions.kl_divergence(other, as_normal(kernel)) for kernel in kernels]
    cost = [kernel.cross_entropy(mean, variance) for kernel in kernels]
    torch.testing.assert_close(cost[0] - cost[1], exact[0] - exact[1])


@pytest.mark.parametrize("dim", [1, 2, 17])
def test_network_gives_kernels_in_any_dimension(float64, dim):
    network = perturbed(KernelNetwork(dim, hidden_features=8), 0.3)
    column = torch.full((1, 1), 0.5)
    kernel = network(torch.randn(4, dim), column, column, StepNoise(column, column, column), torch.randn(4, dim))
    # Beyond sixteen coordinates the correlations would outnumber all else.
    assert (kernel.lower is not None) == (dim == 2)
    noise = torch.randn(4, dim)
    torch.testing.assert_close(kernel.whitened(kernel.moved(noise)), noise)


def test_correlations_are_learnt_along_with_a_narrow_direction(float64):
    # A Gaussian that is narrow along a diagonal is fitted by the factor alone: its cost is its entropy.
    exact = MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.999], [0.999, 1.0]]))
    factor = torch.linalg.cholesky(exact.precision_matrix.flip(0, 1)).flip(0, 1).mT
    lower = factor.tril(-1)[None].expand(4000, 2, 2)
    kernel = Kernel(torch.zeros(4000, 2), torch.ones(1, 1), factor.diagonal().log().expand(4000, 2), lower)
    x = exact.sample((4000,))
    cost = -kernel.log_prob(x)
    assert_within_standard_error(cost.mean(), exact.entropy(), cost.std() / 4000**0.5)

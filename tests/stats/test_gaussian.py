"""Several normals at once, as in a mixture: densities and gradients by one product of matrices, against torch's own."""

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from pyro_osds.stats.gaussian import Gaussian


def normals(count, dim, offset=0.0, smallest=0.1):
    generator = torch.Generator().manual_seed(count + dim)
    loc = offset + 5.0 * torch.randn(count, dim, generator=generator, dtype=torch.float64)
    root = torch.randn(count, dim, dim, generator=generator, dtype=torch.float64)
    eye = torch.eye(dim, dtype=torch.float64)

    return loc, smallest * torch.linalg.cholesky(root @ root.mT + eye)


@pytest.mark.parametrize(("count", "dim"), [(1, 1), (2, 1), (3, 5), (129, 13), (40, 60)])
@pytest.mark.parametrize(("offset", "smallest"), [(0.0, 1.0), (1e6, 1e-3)])
def test_mixtures_have_the_density_and_the_gradient_of_torch(count, dim, offset, smallest):
    loc, scale_tril = normals(count, dim, offset, smallest)
    z = (loc[torch.arange(3000) % count] + smallest * torch.randn(3000, dim, dtype=torch.float64)).requires_grad_()
    found = []
    for components in (Gaussian(loc, scale_tril), MultivariateNormal(loc, scale_tril=scale_tril)):
        mixture = MixtureSameFamily(Categorical(probs=torch.ones(count).double()), components, validate_args=False)
        log_prob = mixture.log_prob(z)
        found += [log_prob, torch.autograd.grad(log_prob.sum(), z)[0]]
    torch.testing.assert_close(found[0], found[2], rtol=1e-9, atol=1e-6)
    torch.testing.assert_close(found[1], found[3], rtol=1e-7, atol=1e-6 / smallest**2)


def test_points_may_have_any_batch_shape():
    loc, scale_tril = normals(4, 3)
    z = torch.randn(2, 5, 1, 3, dtype=torch.float64)
    ours, theirs = Gaussian(loc, scale_tril).log_prob(z), MultivariateNormal(loc, scale_tril=scale_tril).log_prob(z)
    assert ours.shape == (2, 5, 4)
    torch.testing.assert_close(ours, theirs)
    assert Gaussian(loc, scale_tril).log_prob(z[:0]).shape == (0, 5, 4)


def test_points_of_their_own_for_each_normal_are_as_they_were():
    loc, scale_tril = normals(4, 3)
    z = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(
        Gaussian(loc, scale_tril).log_prob(z), MultivariateNormal(loc, scale_tril=scale_tril).log_prob(z)
    )


def test_gradients_of_locations_are_not_lost():
    loc, scale_tril = normals(2, 3)
    loc.requires_grad_()
    Gaussian(loc, scale_tril).log_prob(torch.zeros(5, 1, 3, dtype=torch.float64)).sum().backward()
    assert loc.grad is not None and loc.grad.abs().sum() > 0

"""Several normals at once, as in a mixture: densities and gradients by one product of matrices, against torch's own."""

import resource

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from pyro_osds.stats import gaussian
from pyro_osds.stats.gaussian import Gaussian, GaussianMixture


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("count", "dim", "num_draws"), [(1, 1, 1), (3, 2, 4001), (40, 1, 7), (60, 31, 512)])
def test_draws_of_a_mixture_are_those_of_torch(count, dim, num_draws, dtype):
    loc, scale_tril = (part.to(dtype) for part in normals(count, dim))
    weights = Categorical(probs=torch.arange(1, count + 1, dtype=dtype))
    torch.manual_seed(0)
    theirs = MixtureSameFamily(weights, MultivariateNormal(loc, scale_tril=scale_tril)).sample(torch.Size([num_draws]))
    after = torch.randn(1)
    torch.manual_seed(0)
    assert torch.equal(GaussianMixture(weights, Gaussian(loc, scale_tril)).sample(torch.Size([num_draws])), theirs)
    assert torch.equal(torch.randn(1), after)


@pytest.mark.parametrize("num_draws", [15, 16, 17, 64, 79, 80, 81, 1000])
def test_noise_in_blocks_is_that_of_one_block(monkeypatch, num_draws):
    loc, scale_tril = normals(3, 5)
    mixture = GaussianMixture(Categorical(probs=torch.ones(3).double()), Gaussian(loc, scale_tril))
    torch.manual_seed(0)
    at_once = mixture.sample(torch.Size([num_draws]))
    monkeypatch.setattr(gaussian, "_MAX_NOISE", 2 * 16 * loc.numel())
    torch.manual_seed(0)
    assert torch.equal(mixture.sample(torch.Size([num_draws])), at_once)


def test_draws_of_a_mixture_have_any_shape_and_its_moments():
    loc, scale_tril = normals(3, 2)
    weights = torch.tensor([0.2, 0.3, 0.5]).double()
    mixture = GaussianMixture(Categorical(probs=weights), Gaussian(loc, scale_tril))
    assert mixture.sample().shape == (2,)
    torch.manual_seed(0)
    z = mixture.sample(torch.Size([200, 500]))
    assert z.shape == (200, 500, 2)
    mean = weights @ loc
    second = torch.einsum("k,kij->ij", weights, scale_tril @ scale_tril.mT + loc[:, :, None] * loc[:, None])
    sd = (second - mean[:, None] * mean).diagonal().sqrt()
    assert ((z.mean((0, 1)) - mean).abs() < 4 * sd / 100_000**0.5).all()


def test_a_mixture_of_many_components_needs_no_matrix_for_each_of_them_at_each_draw():
    """128 components in 64 dimensions filled 17 GB, a matrix of each component for each draw."""
    loc, scale_tril = normals(128, 64)
    mixture = GaussianMixture(Categorical(probs=torch.ones(128).double()), Gaussian(loc, scale_tril))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mixture.sample(torch.Size([4096]))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kB

r"""Where the leap starts: a Gaussian, or a Gaussian mixture where the posterior has separated modes.

.. math:: z = \mathrm{loc} + L\,u, \qquad x \sim b(x) = \sum_k \pi_k\, \mathcal{N}(x;\, \mu_k, \Sigma_k)

Whitening by ``loc`` and the lower triangular ``L`` keeps the order of the coordinates, so that parents still come
before children. The density of the base is exact, so a mixture changes nothing in the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from pyro_osds.moments import weighted_moments

_EM_ITERATIONS = 60
_MAX_COMPONENTS = 64
_WIDENING = 1.1


@dataclass(frozen=True)
class Base:
    """A whitening and the density that the flow starts from.

    Arguments:
        loc: Centre of the posterior, ``(D,)``.
        scale_tril: Lower triangular scale of the posterior, ``(D, D)``.
        density: Normalised density in whitened coordinates.
    """

    loc: Tensor
    scale_tril: Tensor
    density: MultivariateNormal | MixtureSameFamily

    @property
    def num_components(self) -> int:
        """Components of the density; 1 for a Gaussian."""
        return self.density.mixture_distribution.probs.numel() if isinstance(self.density, MixtureSameFamily) else 1

    @property
    def log_abs_det(self) -> Tensor:
        """Log-determinant of the step from whitened to original coordinates, a scalar."""
        return self.scale_tril.diagonal().log().sum()

    def to_whitened(self, z: Tensor) -> Tensor:
        """Whitened coordinates of points, ``(B, D) -> (B, D)``."""
        return torch.linalg.solve_triangular(self.scale_tril, (z - self.loc).mT, upper=False).mT

    def from_whitened(self, u: Tensor) -> Tensor:
        """Original coordinates of whitened points, ``(B, D) -> (B, D)``."""
        return self.loc + u @ self.scale_tril.mT

    def sample(self, num_draws: int) -> Tensor:
        """Draws in original coordinates, ``(num_draws, D)``."""
        return self.from_whitened(self.density.sample(torch.Size([num_draws])))

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density in original coordinates, ``(B, D) -> (B,)``."""
        return self.density.log_prob(self.to_whitened(z)) - self.log_abs_det


def gaussian_base(z: Tensor) -> Base:
    """A Gaussian with the particles' mean and covariance: the standard normal in whitened coordinates.

    Arguments:
        z: Equally weighted particles, ``(N, D)``.

    Example:
        >>> base = gaussian_base(torch.randn(1000, 2) * torch.tensor([1.0, 100.0]))
        >>> base.sample(3).shape
        torch.Size([3, 2])
    """
    loc, scale_tril = weighted_moments(z, z.new_zeros(len(z)))
    dim = z.shape[1]
    standard = MultivariateNormal(z.new_zeros(dim), scale_tril=torch.eye(dim, dtype=z.dtype, device=z.device))

    return Base(loc, scale_tril, standard)


def mixture_base(z: Tensor, labels: Tensor) -> Base:
    """A Gaussian mixture fitted to particles by expectation-maximisation.

    It starts with one component for each mode; components are doubled as long as that raises the log likelihood of
    particles held out.

    Arguments:
        z: Equally weighted particles, ``(N, D)``.
        labels: The mode of each particle, ``(N,)``, counted from 0.

    Returns:
        The base; its whitening is the one of all particles together.
    """
    loc, scale_tril = weighted_moments(z, z.new_zeros(len(z)))
    u = torch.linalg.solve_triangular(scale_tril, (z - loc).mT, upper=False).mT
    shuffle = torch.randperm(len(u), device=u.device)
    fit, held_out = shuffle[: len(u) // 2], shuffle[len(u) // 2 :]
    responsibilities = torch.nn.functional.one_hot(labels).to(u.dtype)
    best = _expectation_maximisation(u[fit], responsibilities[fit])
    score = best.log_prob(u[held_out]).mean()
    best_responsibilities = responsibilities
    while 2 * responsibilities.shape[1] <= min(_MAX_COMPONENTS, len(fit) // (2 * u.shape[1] + 2)):
        responsibilities = _split(u, responsibilities)
        candidate = _expectation_maximisation(u[fit], responsibilities[fit])
        candidate_score = candidate.log_prob(u[held_out]).mean()
        if not candidate_score > score:
            break
        responsibilities = _responsibilities(candidate, u)
        best_responsibilities, score = responsibilities, candidate_score
    fitted = _expectation_maximisation(u, best_responsibilities)
    components = _components(fitted)
    # A little wider than fitted: where a mixture is too narrow the weights have no bound, where it is wide they have
    # one.
    wider = MultivariateNormal(components.loc, scale_tril=_WIDENING * components.scale_tril)

    return Base(loc, scale_tril, MixtureSameFamily(fitted.mixture_distribution, wider))


def _expectation_maximisation(u: Tensor, responsibilities: Tensor) -> MixtureSameFamily:
    mixture = _maximisation(u, responsibilities)
    for _ in range(_EM_ITERATIONS):
        mixture = _maximisation(u, _responsibilities(mixture, u))

    return mixture


def _responsibilities(mixture: MixtureSameFamily, u: Tensor) -> Tensor:
    log_joint = mixture.component_distribution.log_prob(u[:, None]) + mixture.mixture_distribution.logits

    return torch.softmax(log_joint, -1)


def _maximisation(u: Tensor, responsibilities: Tensor) -> MixtureSameFamily:
    dim = u.shape[1]
    counts = responsibilities.sum(0) + 1e-6
    locs = responsibilities.mT @ u / counts[:, None]
    centred = u - locs[:, None]
    covariances = torch.einsum("nk,kni,knj->kij", responsibilities, centred, centred) / counts[:, None, None]
    # A few pseudo-particles of the component's own mean variance keep a thin component from collapsing.
    variance = (covariances.diagonal(dim1=-2, dim2=-1).mean(-1) + 1e-8)[:, None, None]
    shrinkage = (dim / (dim + counts))[:, None, None]
    eye = torch.eye(dim, dtype=u.dtype, device=u.device)
    covariances = (1 - shrinkage) * covariances + (shrinkage * 0.5 + 1e-6) * variance * eye
    components = MultivariateNormal(locs, scale_tril=torch.linalg.cholesky(covariances))

    return MixtureSameFamily(Categorical(probs=counts / counts.sum()), components)


def _components(mixture: MixtureSameFamily) -> MultivariateNormal:
    components = mixture.component_distribution
    assert isinstance(components, MultivariateNormal)

    return components


def _split(u: Tensor, responsibilities: Tensor) -> Tensor:
    """Cut each component in two across its longest axis."""
    mixture = _maximisation(u, responsibilities)
    components = _components(mixture)
    _, vectors = torch.linalg.eigh(components.covariance_matrix)
    side = ((u[:, None] - components.mean) * vectors[..., -1]).sum(-1) > 0

    return torch.cat([responsibilities * side, responsibilities * ~side], 1)

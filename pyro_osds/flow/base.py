r"""Where the leap starts: a Gaussian, or a Gaussian mixture where the posterior has separated modes.

.. math:: z = \mathrm{loc} + L\,u, \qquad x \sim b(x) = \sum_k \pi_k\, \mathcal{N}(x;\, \mu_k, \Sigma_k)

Whitening by ``loc`` and the lower triangular ``L`` keeps the order of the coordinates, so that parents still come
before children. The density of the base is exact, so a mixture changes nothing in the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from pyro_osds.stats.gaussian import MANY_DIMENSIONS, Gaussian, is_unit
from pyro_osds.stats.moments import fisher_moments, weighted_moments
from pyro_osds.stats.weights import effective_sample_size
from pyro_osds.target import Target, finite_log_prob, in_chunks

_EM_ITERATIONS = 60
_SHORT = 15
MAX_COMPONENTS = 128
_WIDENING = 1.1
# Log likelihood of the particles held out that a cut must gain, nats.
_MIN_GAIN = 2.0
_ADAPTATION_ROUNDS = 5
_ADAPTATION_DRAWS = 8192


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

    @cached_property
    def _diagonal(self) -> Tensor | None:
        """The scale of each coordinate, where in many dimensions it has no others."""
        scale = self.scale_tril.diagonal()
        many = len(scale) >= MANY_DIMENSIONS

        return scale if many and torch.equal(scale.diag(), self.scale_tril) else None

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
        if self._diagonal is not None:
            return (z - self.loc) / self._diagonal

        return torch.linalg.solve_triangular(self.scale_tril, (z - self.loc).mT, upper=False).mT

    def from_whitened(self, u: Tensor) -> Tensor:
        """Original coordinates of whitened points, ``(B, D) -> (B, D)``."""
        u = u.to(self.loc)
        if self._diagonal is not None:
            return self.loc + u * self._diagonal

        return self.loc + u @ self.scale_tril.mT

    def score_from_whitened(self, score: Tensor) -> Tensor:
        """Scores in original coordinates of those in whitened ones, ``(B, D) -> (B, D)``."""
        score = score.to(self.loc)
        if self._diagonal is not None:
            return score / self._diagonal

        return torch.linalg.solve_triangular(self.scale_tril.mT, score.mT, upper=True).mT

    @cached_property
    def noise_scale(self) -> Tensor | None:
        """Scale from standard normal noise to draws of the density, ``(D, D)``; None where a draw is its own noise."""
        if isinstance(self.density, MixtureSameFamily) or is_unit(self.density.scale_tril):
            return None

        return self.density.scale_tril

    def sample(self, num_draws: int) -> Tensor:
        """Draws in original coordinates, ``(num_draws, D)``."""
        return self.from_whitened(self.density.sample(torch.Size([num_draws])))

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density in original coordinates, ``(B, D) -> (B,)``."""
        return self.density.log_prob(self.to_whitened(z)) - self.log_abs_det


def coordinatewise(base: Base) -> Base:
    """The same Gaussian, whitened coordinate by coordinate; its density keeps the correlations.

    A flow on such coordinates shapes those that the model has, one by one, rather than mixtures of them.

    Arguments:
        base: A Gaussian base.
    """
    scale_tril = _whole_scale(base)
    scale = scale_tril.square().sum(-1).sqrt()

    return Base(base.loc, scale.diag(), Gaussian(torch.zeros_like(base.loc), scale_tril / scale[:, None]))


def whitened(base: Base) -> Base:
    """The same Gaussian with the standard normal as its density; what :func:`coordinatewise` takes apart.

    Arguments:
        base: A Gaussian base, or a mixture, which stays as it is.
    """
    return base if base.num_components > 1 else standard_base(base.loc, _whole_scale(base))


def _whole_scale(base: Base) -> Tensor:
    return base.scale_tril if base.noise_scale is None else base.scale_tril @ base.noise_scale


def gaussian_base(z: Tensor, score: Tensor | None = None) -> Base:
    """A Gaussian fitted to particles: the standard normal in whitened coordinates.

    Arguments:
        z: Equally weighted particles, ``(N, D)``.
        score: Scores of the target there, ``(N, D)``; with them the fit is that of least Fisher divergence, without
            them it has the particles' mean and covariance.

    Example:
        >>> base = gaussian_base(torch.randn(1000, 2) * torch.tensor([1.0, 100.0]))
        >>> base.sample(3).shape
        torch.Size([3, 2])
    """
    return standard_base(*(weighted_moments(z, z.new_zeros(len(z))) if score is None else fisher_moments(z, score)))


def standard_base(loc: Tensor, scale_tril: Tensor) -> Base:
    """A Gaussian: the standard normal in whitened coordinates.

    Arguments:
        loc: Its mean, ``(D,)``.
        scale_tril: Its lower triangular scale, ``(D, D)``.
    """
    return Base(
        loc, scale_tril, Gaussian(torch.zeros_like(loc), torch.eye(len(loc), dtype=loc.dtype, device=loc.device))
    )


def mixture_base(z: Tensor, labels: Tensor) -> Base:
    """A Gaussian mixture fitted to particles by expectation-maximisation.

    It starts with one component for each mode; a component is cut in two as long as that raises the log likelihood of
    its particles that were held out.

    Arguments:
        z: Equally weighted particles, ``(N, D)``.
        labels: The mode of each particle, ``(N,)``, counted from 0.

    Returns:
        The base; its whitening is the one of all particles together.
    """
    loc, scale_tril = weighted_moments(z, z.new_zeros(len(z)))
    u = torch.linalg.solve_triangular(scale_tril, (z - loc).mT, upper=False).mT
    held_out = torch.rand(len(u), device=u.device) < 0.5
    candidates, num_components = list(range(int(labels.max()) + 1)), 0
    while candidates and num_components < MAX_COMPONENTS:
        num_components = int(labels.max()) + 1
        labels, candidates = _split_where_it_pays(u, labels, held_out, candidates)
        if candidates:
            mixture = _expectation_maximisation(u, _one_hot(labels, u), _SHORT)
            labels = _responsibilities(mixture, u).argmax(1)

    return Base(loc, scale_tril, _widened(_expectation_maximisation(u, _one_hot(labels, u))))


def _split_where_it_pays(
    u: Tensor, labels: Tensor, held_out: Tensor, candidates: list[int]
) -> tuple[Tensor, list[int]]:
    """Labels with some candidates cut in two, those whose particles held out become more likely; and the halves."""
    halves = []
    for component in candidates:
        inside = labels == component
        fit, test = u[inside & ~held_out], u[inside & held_out]
        count = int(labels.max()) + 1
        if len(fit) < 4 * (u.shape[1] + 1) or not len(test) or count >= MAX_COMPONENTS:
            continue
        one = _maximisation(fit, torch.ones_like(fit[:, :1]))
        two = _expectation_maximisation(fit, _halves(fit, one), _SHORT)
        if (two.log_prob(test) - one.log_prob(test)).sum() > _MIN_GAIN:
            second = inside.clone()
            second[inside] = _responsibilities(two, u[inside]).argmax(1) == 1
            labels = torch.where(second, count, labels)
            halves += [component, count]

    return labels, halves


def _halves(u: Tensor, mixture: MixtureSameFamily) -> Tensor:
    """Which side of a single Gaussian's longest axis each point lies on, as responsibilities ``(N, 2)``."""
    components = _components(mixture)
    _, vectors = torch.linalg.eigh(components.covariance_matrix[0])

    return _one_hot(((u - components.mean[0]) @ vectors[:, -1] > 0).long(), u, 2)


def _one_hot(labels: Tensor, like: Tensor, num_classes: int = -1) -> Tensor:
    return torch.nn.functional.one_hot(labels, num_classes).to(like.dtype)


def adapt_mixture(base: Base, target: Target) -> Base:
    """A mixture base fitted once more, to its own draws weighted by the target.

    Annealing leaves noise in how particles share the modes, and few of them describe each; fresh weighted draws have
    neither fault. A round that does not raise the effective sample size is not taken.

    Arguments:
        base: A base with a mixture density.
        target: The target.

    Source: population Monte Carlo for mixtures, Cappe et al. 2008 (0710.4242).
    """
    best, best_ess = base, 0.0
    for _ in range(_ADAPTATION_ROUNDS):
        assert isinstance(base.density, MixtureSameFamily)
        u, log_weight = _weighted_draws(base, target)
        if not log_weight.isfinite().any():
            return best
        weight = torch.softmax(log_weight, 0)
        ess = 1.0 / weight.square().sum().item()
        if ess <= best_ess:
            return best
        best, best_ess = base, ess
        # Truncated (Ionides 2008): no single draw may decide on a mode.
        weight = weight.clamp(max=len(u) ** -0.5)
        shares = _responsibilities(base.density, u) * (ess * weight / weight.sum()).to(u.dtype)[:, None]
        base = Base(base.loc, base.scale_tril, _widened(_maximisation(u, shares)))

    return best


def effective_share(base: Base, target: Target) -> float:
    """Share of effective draws among the base's own, weighted by the target."""
    _, log_weight = _weighted_draws(base, target)

    return effective_sample_size(log_weight) / len(log_weight) if log_weight.isfinite().any() else 0.0


def _weighted_draws(base: Base, target: Target) -> tuple[Tensor, Tensor]:
    """Whitened draws ``(S, D)`` and their log weights ``(S,)``, in double precision."""
    u = base.density.sample(torch.Size([_ADAPTATION_DRAWS]))
    with torch.no_grad():
        log_prob = finite_log_prob(in_chunks(target.log_prob, base.from_whitened(u)))

    return u, finite_log_prob((log_prob - base.density.log_prob(u) + base.log_abs_det).double())


def _widened(mixture: MixtureSameFamily) -> MixtureSameFamily:
    """A little wider than fitted: where a mixture is too narrow the weights have no bound, where it is wide they do."""
    components = _components(mixture)
    wider = Gaussian(components.loc, _WIDENING * components.scale_tril)

    return MixtureSameFamily(mixture.mixture_distribution, wider, validate_args=False)


def _expectation_maximisation(
    u: Tensor, responsibilities: Tensor, num_iterations: int = _EM_ITERATIONS
) -> MixtureSameFamily:
    mixture = _maximisation(u, responsibilities)
    for _ in range(num_iterations):
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
    components = Gaussian(locs, torch.linalg.cholesky(covariances))

    return MixtureSameFamily(Categorical(probs=counts / counts.sum()), components, validate_args=False)


def _components(mixture: MixtureSameFamily) -> MultivariateNormal:
    components = mixture.component_distribution
    assert isinstance(components, MultivariateNormal)

    return components

r"""A Gaussian mixture as the base: fitted to particles, then to its own weighted draws.

.. math:: b(x) = \sum_k \pi_k\, \mathcal{N}(x;\, \mu_k, \Sigma_k), \qquad
    r_{nk} \propto \pi_k\, \mathcal{N}(x_n;\, \mu_k, \Sigma_k), \qquad
    \pi_k \propto \sum_n r_{nk}, \quad
    \mu_k = \frac{\sum_n r_{nk}\, x_n}{\sum_n r_{nk}}, \quad
    \Sigma_k = \frac{\sum_n r_{nk}\, (x_n - \mu_k)(x_n - \mu_k)^\top}{\sum_n r_{nk}},

by expectation-maximisation, in whitened coordinates *x*. It begins with one component for each mode; components are
cut in two where particles that were held out say so, and all are made a little wider in the end.

Source: Dempster, Laird, Rubin 1977; the second fit is population Monte Carlo, Cappe et al. 2008 (0710.4242).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from pyro_osds.flow.base import Base
from pyro_osds.stats.gaussian import Gaussian, GaussianMixture
from pyro_osds.stats.moments import weighted_moments
from pyro_osds.stats.weights import effective_sample_size
from pyro_osds.target import Target, finite_log_prob, in_chunks

# Components at most: each takes part in every density of the base, and some thousand particles say little about more.
MAX_COMPONENTS = 128
# Iterations of the last fit, and of those that only tell whether a cut pays. Separated components need a few; more
# help those that overlap. Chosen on the accuracy cases.
_EM_ITERATIONS, _SHORT = 60, 15
# Particles for each parameter of a half that a cut needs on the side that is fitted: fewer fit themselves.
_PARTICLES_TO_CUT = 4
# Log likelihood of the particles held out that a cut must gain, nats. With less, noise makes components, which cost
# time; with more, modes of few particles stay in one. Chosen on the accuracy cases.
_MIN_GAIN = 2.0
# How much wider a component is made than it was fitted, as a standard deviation. Weights of a component that is too
# narrow have no bound; a tenth costs 0.01 nats for each dimension.
_WIDENING = 1.1
# Fits to weighted draws at most. A fit that does not raise the effective sample size ends them, so more cost nothing
# where there is nothing to gain, and a batch of draws each elsewhere.
_ADAPTATION_ROUNDS = 5
# Draws of each: where all are effective, the share of a mode is known to half a percent.
_ADAPTATION_DRAWS = 8192
# The same where the density has more terms: the share of a mode is known to a percent, in a quarter of the time.
_MANY_TERMS, _FEWER_DRAWS = 5_000, 2048
# What keeps a component without particles from dividing by zero, in particles; the least variance, whitened; and the
# least variance beside the shrinkage, as a share of the mean one. All far below what a particle more or less changes.
_NO_PARTICLES, _NO_VARIANCE, _JITTER = 1e-6, 1e-8, 1e-6
# Share of the mean variance that pseudo-particles bring along.
_PSEUDO_VARIANCE = 0.5


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
        if len(fit) < _PARTICLES_TO_CUT * (u.shape[1] + 1) or not len(test) or count >= MAX_COMPONENTS:
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
    num_draws = _ADAPTATION_DRAWS if target.num_terms <= _MANY_TERMS else _FEWER_DRAWS
    u = base.density.sample(torch.Size([num_draws]))
    with torch.no_grad():
        log_prob = finite_log_prob(in_chunks(target.log_prob, base.from_whitened(u)))

    return u, finite_log_prob((log_prob - base.density.log_prob(u) + base.log_abs_det).double())


def _widened(mixture: MixtureSameFamily) -> MixtureSameFamily:
    """A little wider than fitted: where a mixture is too narrow the weights have no bound, where it is wide they do."""
    components = _components(mixture)
    wider = Gaussian(components.loc, _WIDENING * components.scale_tril)

    return GaussianMixture(mixture.mixture_distribution, wider)


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
    counts = responsibilities.sum(0) + _NO_PARTICLES
    locs = responsibilities.mT @ u / counts[:, None]
    centred = u - locs[:, None]
    covariances = torch.einsum("nk,kni,knj->kij", responsibilities, centred, centred) / counts[:, None, None]
    # A few pseudo-particles of the component's own mean variance keep a thin component from collapsing.
    variance = (covariances.diagonal(dim1=-2, dim2=-1).mean(-1) + _NO_VARIANCE)[:, None, None]
    shrinkage = (dim / (dim + counts))[:, None, None]
    eye = torch.eye(dim, dtype=u.dtype, device=u.device)
    covariances = (1 - shrinkage) * covariances + (shrinkage * _PSEUDO_VARIANCE + _JITTER) * variance * eye
    components = Gaussian(locs, torch.linalg.cholesky(covariances))

    return GaussianMixture(Categorical(probs=counts / counts.sum()), components)


def _components(mixture: MixtureSameFamily) -> MultivariateNormal:
    components = mixture.component_distribution
    assert isinstance(components, MultivariateNormal)

    return components

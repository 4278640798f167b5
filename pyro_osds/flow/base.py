r"""Where the leap starts: a Gaussian, or a Gaussian mixture where the posterior has separated modes.

.. math:: z = \mathrm{loc} + L\,u, \qquad x \sim b(x) = \sum_k \pi_k\, \mathcal{N}(x;\, \mu_k, \Sigma_k)

Whitening by ``loc`` and the lower triangular ``L`` keeps the order of the coordinates, so that parents still come
before children. The density of the base is exact, so a mixture changes nothing in the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from pyro_osds.stats.gaussian import MANY_DIMENSIONS, Gaussian, GaussianMixture, is_unit
from pyro_osds.stats.moments import fisher_moments, weighted_moments


@dataclass(frozen=True)
class Base:
    """A whitening and the density that the flow starts from.

    Arguments:
        loc: Centre of the posterior, ``(D,)``.
        scale_tril: Lower triangular scale of the posterior, ``(D, D)``.
        density: Normalised density in whitened coordinates.
        num_plain: Components that a flow was trained from, the first ones, where others joined them later; else 0.
    """

    loc: Tensor
    scale_tril: Tensor
    density: MultivariateNormal | MixtureSameFamily
    num_plain: int = 0

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
    def plain(self) -> Base:
        """The base that a flow was trained from, without components that joined it later."""
        density = self.density
        if not self.num_plain or not isinstance(density, MixtureSameFamily):
            return self
        components: Any = density.component_distribution
        locs, factors = components.loc[: self.num_plain], components.scale_tril[: self.num_plain]
        if self.num_plain == 1:
            return Base(self.loc, self.scale_tril, Gaussian(locs[0], factors[0]))
        probs = density.mixture_distribution.probs[: self.num_plain]
        mixture = GaussianMixture(Categorical(probs=probs), Gaussian(locs, factors))

        return Base(self.loc, self.scale_tril, mixture)

    @cached_property
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
            # Rows of points, as a recorded density expects them, whatever the flow has made of their order.
            return self.loc + u.contiguous() * self._diagonal

        return torch.addmm(self.loc, u, self.scale_tril.mT)

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


def without_mixture(base: Base) -> Base:
    """A mixture of one component as the Gaussian that it is: the same density, in a fifth of the operations.

    Arguments:
        base: Any base; one that is no such mixture stays as it is.

    Example:
        >>> one = torch.distributions.Categorical(torch.ones(1))
        >>> mixture = MixtureSameFamily(one, Gaussian(torch.ones(1, 2), 2.0 * torch.eye(2)[None]))
        >>> base = without_mixture(Base(torch.zeros(2), torch.eye(2), mixture))
        >>> base.loc, base.density.is_standard
        (tensor([1., 1.]), True)
    """
    density = base.density
    if not isinstance(density, MixtureSameFamily) or base.num_components > 1:
        return base
    component: Any = density.component_distribution

    return standard_base(base.from_whitened(component.loc)[0], base.scale_tril @ component.scale_tril[0])


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

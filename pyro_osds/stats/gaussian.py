"""Multivariate normal distributions from tensors that fit each other."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, MixtureSameFamily, MultivariateNormal

MANY_DIMENSIONS = 129
"""From so many on, a flow works on the coordinates of the model, without products of whole matrices: these cost the
square of the dimension, and whitening smears over all coordinates what sits in single ones."""

# Numbers in one block of points whitened by several normals: what fits into the memory near the processor.
_MAX_NUMBERS = 2**18
# Numbers in one block of noise for all components, 256 MB in double precision, and the rows that a block is made of
# whole sets of: noise on a CPU comes in sets of so many numbers, so that blocks give those that all at once would.
_MAX_NOISE, _NOISE_ROWS = 2**25, 16


class Gaussian(MultivariateNormal):
    """A multivariate normal from its location and lower triangular scale.

    Torch's constructor broadcasts shapes by a function that imports symbolic algebra, a second at the first use; and
    its draws and densities multiply by a matrix for each of them, also where that is the identity.

    Arguments:
        loc: Locations, ``(*batch, D)``.
        scale_tril: Lower triangular scales, ``(*batch, D, D)``.

    Raises:
        ValueError: If the shapes do not fit each other.

    Example:
        >>> Gaussian(torch.zeros(2), torch.eye(2)).log_prob(torch.zeros(2))
        tensor(-1.8379)
    """

    def __init__(self, loc: Tensor, scale_tril: Tensor) -> None:
        if scale_tril.shape != (*loc.shape, loc.shape[-1]):
            raise ValueError(
                f"scale_tril must have shape {(*loc.shape, loc.shape[-1])}, got {tuple(scale_tril.shape)}: one "
                "triangular matrix for each location."
            )
        # The scale is a lazy property, and the second name is the one that the density uses.
        self.__dict__.update(loc=loc, scale_tril=scale_tril, _unbroadcasted_scale_tril=scale_tril)
        Distribution.__init__(self, loc.shape[:-1], loc.shape[-1:], validate_args=False)
        # Then the score of a point is the point with its sign changed.
        self.is_standard = loc.dim() == 1 and not loc.any() and is_unit(scale_tril)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, ``(*sample_shape, *batch, D)``; of one normal by one product of matrices, where torch takes many."""
        if self.loc.dim() > 1:
            return super().rsample(sample_shape)
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)

        return noise if self.is_standard else self.loc + noise @ self.scale_tril.mT

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, ``(*, D) -> (*,)``, in the precision of the location."""
        value = value.to(self.loc)
        if self._is_set and value.dim() > 1 and value.shape[-2] == 1:
            return self._of_each(value.squeeze(-2))
        if not self.is_standard:
            return super().log_prob(value)

        return -0.5 * value.square().sum(-1) - 0.5 * value.shape[-1] * math.log(2 * math.pi)

    @property
    def _is_set(self) -> bool:
        """Whether these are several normals, as of a mixture, in double precision, and nobody learns them."""
        return self.loc.dim() == 2 and self.loc.dtype == torch.float64 and not self.loc.requires_grad

    def _of_each(self, value: Tensor) -> Tensor:
        """Log densities of all normals at all points, ``(*, D) -> (*, K)``, by one product of matrices for a block.

        Torch solves a triangular system for each pair, which takes ten times as long.
        """
        if "_inverse" not in self.__dict__:
            with torch.no_grad():
                eye = torch.eye(self.loc.shape[1], dtype=self.loc.dtype, device=self.loc.device)
                inverse = torch.linalg.solve_triangular(self.scale_tril, eye.expand_as(self.scale_tril), upper=False)
                # Differences from the centre of all keep the digits that a product of large numbers loses.
                centre = self.loc.mean(0)
                shift = (inverse @ (self.loc - centre)[:, :, None]).squeeze(-1)
                half_log_det = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
                constant = -half_log_det - 0.5 * self.loc.shape[1] * math.log(2 * math.pi)
            self._inverse = inverse.flatten(0, 1).mT.contiguous(), shift, centre, constant
        inverse, shift, centre, constant = self._inverse

        def block(points: Tensor) -> Tensor:
            whitened = ((points - centre) @ inverse).unflatten(-1, shift.shape) - shift
            return constant - 0.5 * whitened.square().sum(-1)

        points = value.flatten(0, -2) if value.dim() != 2 else value
        size = max(1, _MAX_NUMBERS // shift.numel())
        blocks = [block(part) for part in points.split(size)] if len(points) > size else [block(points)]
        log_prob = blocks[0] if len(blocks) == 1 else torch.cat(blocks)

        return log_prob.unflatten(0, value.shape[:-1]) if value.dim() != 2 else log_prob


class GaussianMixture(MixtureSameFamily):
    """A mixture of normals whose draws cost one product of matrices each, and not one for every component.

    Torch draws from all components and keeps one of them: with 128 of them in 64 dimensions, 4,096 draws multiply by
    half a million matrices and fill 17 GB. The noise is drawn as torch does, so that draws are the same numbers.

    Arguments:
        weights: The weights of the components.
        components: The components, one batch dimension.

    Example:
        >>> two = Gaussian(torch.tensor([[-9.0], [9.0]]), torch.ones(2, 1, 1))
        >>> GaussianMixture(Categorical(torch.ones(2)), two).sample(torch.Size([1000])).abs().mean().round()
        tensor(9.)
    """

    def __init__(self, weights: Categorical, components: MultivariateNormal) -> None:
        super().__init__(weights, components, validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, ``(*sample_shape, D)``."""
        components: Any = self.component_distribution
        loc, scale_tril = components.loc, components.scale_tril
        if loc.dim() != 2:
            return super().sample(sample_shape)
        with torch.no_grad():
            chosen = self.mixture_distribution.sample(sample_shape)
            noise = _noise_of_chosen(chosen.reshape(-1), loc)
            size = max(1, _MAX_NUMBERS // scale_tril[0].numel())
            blocks = zip(chosen.reshape(-1).split(size), noise.split(size), strict=True)
            moved = torch.cat([(scale_tril[index] @ part[:, :, None]).squeeze(-1) for index, part in blocks])

            return (loc[chosen.reshape(-1)] + moved).view(*chosen.shape, loc.shape[1])


def _noise_of_chosen(chosen: Tensor, loc: Tensor) -> Tensor:
    """Standard normal noise of all components at each draw, and of it that of the chosen one, ``(N,) -> (N, D)``."""
    rows = max(1, _MAX_NOISE // (loc.numel() * _NOISE_ROWS)) * _NOISE_ROWS
    # A short rest would get other numbers by itself.
    starts = range(0, max(1, len(chosen) - _NOISE_ROWS + 1), rows)
    parts = []
    for begin, end in zip(starts, [*starts[1:], len(chosen)], strict=True):
        noise = torch.randn(end - begin, *loc.shape, dtype=loc.dtype, device=loc.device)
        parts.append(noise[torch.arange(end - begin, device=loc.device), chosen[begin:end]])

    return parts[0] if len(parts) == 1 else torch.cat(parts)


def is_unit(matrix: Tensor) -> bool:
    """Whether a matrix is the identity."""
    return torch.equal(matrix, torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device))

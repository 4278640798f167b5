"""Multivariate normal distributions from tensors that fit each other."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

MANY_DIMENSIONS = 129
"""From so many on, a flow works on the coordinates of the model, without products of whole matrices: these cost the
square of the dimension, and whitening smears over all coordinates what sits in single ones."""


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
        if not self.is_standard:
            return super().log_prob(value)

        return -0.5 * value.square().sum(-1) - 0.5 * value.shape[-1] * math.log(2 * math.pi)


def is_unit(matrix: Tensor) -> bool:
    """Whether a matrix is the identity."""
    return torch.equal(matrix, torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device))

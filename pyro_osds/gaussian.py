"""Multivariate normal distributions from tensors that fit each other."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal


class Gaussian(MultivariateNormal):
    """A multivariate normal from its location and lower triangular scale.

    Torch's constructor broadcasts shapes by a function that imports symbolic algebra, a second at the first use.

    Arguments:
        loc: Locations, ``(*batch, D)``.
        scale_tril: Lower triangular scales, ``(*batch, D, D)``.

    Raises:
        ValueError: If the shapes do not fit each other.

    Example:
        >>> import torch
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

r"""Positive definite matrices: their coordinates, and the Wishart density in these.

.. math::
    S = L L^\top, \qquad u = (\log L_{ii}, \, L_{ij}), \qquad
    \log \Big| \frac{dS}{du} \Big| = n \log 2 + \sum_{i=1}^n (n - i + 2) \, u_{ii}

A Wishart matrix of a scale with the Cholesky factor :math:`C` is :math:`L = C A` with the entries of :math:`A`
independent (Bartlett): :math:`A_{ii}^2` has a chi-square distribution with :math:`\nu - i + 1` degrees of freedom, the
entries below the diagonal are standard normal. So its density in these coordinates needs no determinant of a value that
rounding may have made singular:

.. math::
    \log p(u) = \sum_i (\nu - i + 1) \, u_{ii} - \tfrac12 \lVert C^{-1} L \rVert^2 - \nu \sum_i \log C_{ii}
        + n \log 2 - \tfrac{\nu n}{2} \log 2 - \log \Gamma_n(\tfrac \nu 2)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform, constraints


class LogCholesky(Transform):
    """Real vectors to positive definite matrices, by the Cholesky factor with the logarithms of its diagonal.

    The entries of the factor come row by row, ``(*, n (n + 1) / 2) -> (*, n, n)``.

    Example:
        >>> LogCholesky()(torch.tensor([0.0, 3.0, 0.0]))
        tensor([[ 1.,  3.],
                [ 3., 10.]])
    """

    domain = constraints.real_vector
    codomain = constraints.positive_definite
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LogCholesky)

    __hash__ = Transform.__hash__

    def with_cache(self, cache_size: int = 1) -> LogCholesky:
        """The same map, which remembers its latest value if asked to."""
        return LogCholesky(cache_size)

    def _call(self, x: Tensor) -> Tensor:
        factor = cholesky_factor(x)

        return factor @ factor.mT

    def _inverse(self, y: Tensor) -> Tensor:
        return from_factor(torch.linalg.cholesky(y))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Of each matrix, from ``x`` alone."""
        size = size_of(x)
        power = torch.arange(size + 1, 1, -1, dtype=x.dtype, device=x.device)

        return size * math.log(2.0) + (power * log_diagonal(x)).sum(-1)

    def forward_shape(self, shape: Any) -> torch.Size:
        """The shape of matrices, of that of vectors."""
        size = round((math.sqrt(8 * shape[-1] + 1) - 1) / 2)
        return torch.Size((*shape[:-1], size, size))

    def inverse_shape(self, shape: Any) -> torch.Size:
        """The shape of vectors, of that of matrices."""
        return torch.Size((*shape[:-2], shape[-1] * (shape[-1] + 1) // 2))


def size_of(x: Tensor) -> int:
    """The number of rows of the matrices that vectors ``(*, n (n + 1) / 2)`` stand for."""
    return round((math.sqrt(8 * x.shape[-1] + 1) - 1) / 2)


def log_diagonal(x: Tensor) -> Tensor:
    """The logarithms of the factor's diagonal, ``(*, n (n + 1) / 2) -> (*, n)``."""
    row = torch.arange(size_of(x), device=x.device)

    return x[..., row * (row + 3) // 2]


def cholesky_factor(x: Tensor) -> Tensor:
    """The lower triangular factor of each vector, ``(*, n (n + 1) / 2) -> (*, n, n)``."""
    size, count = size_of(x), x.shape[-1]
    row, column = torch.tril_indices(size, size, device=x.device)
    # The square of an entry of the diagonal must not underflow: the matrix would be singular.
    least = 0.5 * math.log(torch.finfo(x.dtype).tiny)
    entries = torch.where(row == column, x.clamp(min=least).exp(), x)
    entries = torch.cat([entries, torch.zeros_like(x[..., :1])], -1)
    place = torch.full((size, size), count, device=x.device)
    place[row, column] = torch.arange(count, device=x.device)

    return entries[..., place]


def from_factor(factor: Tensor) -> Tensor:
    """The vector of each lower triangular factor, ``(*, n, n) -> (*, n (n + 1) / 2)``."""
    size = factor.shape[-1]
    row, column = torch.tril_indices(size, size, device=factor.device)
    entries = factor[..., row, column]
    is_diagonal = row == column

    return torch.where(is_diagonal, torch.where(is_diagonal, entries, 1.0).log(), entries)


def by_value(fn: Any, u: Tensor) -> Tensor:
    """The log density of any distribution of positive definite matrices in :class:`LogCholesky`'s coordinates.

    Where rounding makes a value singular, its inverse and determinant are noise, and so is a density that is made of
    them. There, far out, it is zero.

    Arguments:
        fn: The distribution.
        u: Coordinates, ``(*batch_shape, n (n + 1) / 2)``.

    Returns:
        ``(*batch_shape,)``.
    """
    transform = LogCholesky()
    value = transform(u)
    squares = cholesky_factor(u).square()
    rest = squares.diagonal(dim1=-2, dim2=-1) / squares.sum(-1)
    # What is left of a variance after the others are accounted for, with three digits at least.
    is_known = (rest > 1e3 * torch.finfo(u.dtype).eps).all(-1)
    log_prob = fn.log_prob(value) + transform.log_abs_det_jacobian(u, value)  # type: ignore[arg-type]

    return torch.where(is_known, log_prob, -math.inf)


def wishart(fn: Any, u: Tensor) -> Tensor:
    """The log density of a Wishart distribution in :class:`LogCholesky`'s coordinates.

    Arguments:
        fn: The distribution.
        u: Coordinates, ``(*batch_shape, n (n + 1) / 2)``.

    Returns:
        ``(*batch_shape,)``.
    """
    scale, df, size = fn.scale_tril, fn.df, size_of(u)
    order = torch.arange(size, dtype=u.dtype, device=u.device)
    powers = ((df[..., None] - order) * log_diagonal(u)).sum(-1)
    whitened = torch.linalg.solve_triangular(scale, cholesky_factor(u), upper=False)
    constant = size * (1.0 - 0.5 * df) * math.log(2.0) - torch.mvlgamma(0.5 * df, size)
    log_scale = scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    return powers - 0.5 * whitened.square().sum((-2, -1)) - df * log_scale + constant

"""Many small matrices, and many rows, at once: what patterns of missing entries are computed with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

MAX_UNROLLED = 5
"""Rows of matrices up to which arithmetic on all matrices, entry by entry, is faster than a factorisation of each."""


def inverse_factor(matrix: Tensor) -> tuple[Tensor, Tensor]:
    r"""The logarithm of the determinant of a Cholesky factor, and the inverse of the factor, entry by entry.

    .. math:: L_{jj} = \Big(A_{jj} - \sum_{k<j} L_{jk}^2\Big)^{1/2}, \qquad
        L_{ij} = \Big(A_{ij} - \sum_{k<j} L_{ik} L_{jk}\Big) / L_{jj}

    Arguments:
        matrix: Symmetric matrices, ``(*shape, n, n)``; where one is not positive definite, the results are nan.

    Returns:
        ``(*shape,)`` and ``(*shape, n, n)``.

    Example:
        >>> inverse_factor(torch.tensor([[4.0, 2.0], [2.0, 2.0]]))
        (tensor(0.6931), tensor([[ 0.5000,  0.0000],
                [-0.5000,  1.0000]]))
    """
    size = matrix.shape[-1]
    factor: list[list[Tensor]] = [[] for _ in range(size)]
    scale: list[Tensor] = []
    for j in range(size):
        for i in range(j, size):
            entry = matrix[..., i, j]
            for k in range(j):
                entry = entry - factor[i][k] * factor[j][k]
            if i == j:
                scale.append(entry.rsqrt())
            factor[i].append(entry * scale[j])
    inverse: list[list[Tensor]] = []
    for i in range(size):
        row = []
        for j in range(i):
            entry = factor[i][j] * inverse[j][j]
            for k in range(j + 1, i):
                entry = entry + factor[i][k] * inverse[k][j]
            row.append(-scale[i] * entry)
        inverse.append([*row, scale[i]])
    zero = torch.zeros_like(scale[0])
    rows = [torch.stack([*row, *[zero] * (size - len(row))], -1) for row in inverse]
    log_det = -torch.stack(scale, -1).log().sum(-1)

    return log_det, torch.stack(rows, -2)


class Rearranged(Function):
    """Some of the numbers in another order, each once; its gradient is a rearrangement, too, and no sum."""

    generate_vmap_rule = False

    @staticmethod
    def forward(x: Tensor, places: Tensor, there: Tensor) -> Tensor:
        """``x[..., places]``; ``there`` says which of the results each of ``x`` is, or how many there are, ``(N,)``."""
        return x.index_select(-1, places)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        """Keeps both orders."""
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Each of ``x`` gets what its result gets; what is not read gets nothing."""
        _, there = ctx.saved_tensors
        padded = torch.cat([gradient, torch.zeros_like(gradient[..., :1])], -1)

        return padded.index_select(-1, there), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, places: Tensor, there: Tensor) -> tuple[Tensor, int]:
        """All points at once."""
        return Rearranged.apply(x.movedim(in_dims[0], 0), places, there), 0

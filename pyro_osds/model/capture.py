"""A batched log density as one recorded graph of tensor operations.

Running a Pyro model is mostly Python: handlers, distribution objects, transforms. All of it is done once, while the
tensor operations of densities and scores are recorded (``recorder``), and never again. The record is traced and frozen
by TorchScript where that holds. It belongs to one batch size, so batches are cut into blocks; and to one run, whose
data are constants in it. Where there are very many observations, blocks are what keeps memory bounded.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_osds.model.recorder import record_operations

BLOCK_SIZE = 256
"""Points that a graph evaluates at once, where the density is not large."""

MIN_BATCH = 64
"""A smaller batch is not worth a whole block."""

_MIN_BLOCK_SIZE = 16
# Numbers in one tensor of a block, with an entry for each term of the density or for each coordinate: what fits into
# the memory near the processor, and little of the rest. Coordinates cost more, since matrices come with them.
_MAX_TERMS, _MAX_COORDINATES = 2**19, 2**17

Densities = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps points ``(B, D)`` to log priors and log likelihoods, ``(B,)`` each."""

Graph = Callable[[Tensor], tuple[Tensor, ...]]
"""Maps a block of points to densities ``(B,), (B,)`` and, if asked for, their scores ``(B, D), (B, D)``."""


def block_size(dim: int, num_terms: int) -> int:
    """Points that are evaluated at once: fewer where there are many observations or many dimensions.

    Arguments:
        dim: The number of dimensions.
        num_terms: Terms of the log density.

    Example:
        >>> block_size(dim=20, num_terms=1000), block_size(dim=20, num_terms=100_000)
        (256, 16)
    """
    size = BLOCK_SIZE
    while size > _MIN_BLOCK_SIZE and (size * num_terms > _MAX_TERMS or size * dim > _MAX_COORDINATES):
        size //= 2

    return size


def with_scores(densities: Densities) -> Graph:
    """Log prior, log likelihood, and the score of each.

    Example:
        >>> f = with_scores(lambda z: (-z.square().sum(-1), 2 * z[:, 0]))
        >>> f(torch.tensor([[1.0, 3.0]]))
        (tensor([-10.]), tensor([2.]), tensor([[-2., -6.]]), tensor([[2., 0.]]))
    """

    def evaluate(z: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            log_prior, log_likelihood = densities(z)
            scores = [_gradient(log_prior, z), _gradient(log_likelihood, z)]

        return log_prior.detach(), log_likelihood.detach(), *scores

    return evaluate


def _gradient(values: Tensor, z: Tensor) -> Tensor:
    if not values.requires_grad:
        return torch.zeros_like(z)
    return torch.autograd.grad(values.sum(), z, retain_graph=True, materialize_grads=True)[0]


def record(function: Graph, z: Tensor) -> Graph:
    """The tensor operations of a function, recorded at a block of points.

    Arguments:
        function: What to record; it must do the same operations at every point.
        z: The block, ``(S, D)``.

    Returns:
        The recorded function, for blocks of the same size.
    """
    with torch.no_grad():
        return _freeze(record_operations(function, z).eval(), z)


def _freeze(graph: Any, z: Tensor) -> Graph:
    """The graph without Python between its operations, or as it is where TorchScript cannot hold it."""
    try:
        with warnings.catch_warnings():
            # torch >= 2.13 announces the end of TorchScript; traced values that became constants are checked later.
            warnings.simplefilter("ignore")
            return torch.jit.freeze(torch.jit.trace(graph, (z,), check_trace=False))
    except Exception:  # noqa: BLE001 - whatever TorchScript objects to, the graph itself still works
        return graph


def in_blocks(graph: Graph, z: Tensor, size: int = BLOCK_SIZE) -> tuple[Tensor, ...]:
    """A function on any number of points, block by block; the last block is filled up with copies of the last point.

    Arguments:
        graph: The function, recorded for blocks or not.
        z: Points, ``(B, D)``.
        size: Points of a block.
    """
    if len(z) == size:
        with torch.no_grad():
            return tuple(graph(z))
    num_blocks = math.ceil(len(z) / size)
    filling = z[-1:].expand(num_blocks * size - len(z), -1)
    blocks = torch.cat([z, filling]).split(size)
    with torch.no_grad():
        results = zip(*[graph(block) for block in blocks], strict=True)

    return tuple(torch.cat(parts)[: len(z)] for parts in results)


class DensitiesWithScores(torch.autograd.Function):
    """Densities whose gradients are scores that a graph has computed already."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, graph: Graph, densities: Densities, size: int = BLOCK_SIZE
    ) -> tuple[Tensor, Tensor]:
        """Densities at ``z``, ``(B, D) -> (B,), (B,)``; the scores are kept."""
        log_prior, log_likelihood, *scores = in_blocks(graph, z, size)
        ctx.save_for_backward(z, *scores)
        ctx.densities = densities

        return log_prior, log_likelihood

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Gradients of the densities times their scores; where they are to be differentiated again, without a graph."""
        z, *scores = ctx.saved_tensors
        if torch.is_grad_enabled():
            log_prior, log_likelihood = ctx.densities(z)
            total = gradients[0] @ log_prior + gradients[1] @ log_likelihood
            if not total.requires_grad:
                return torch.zeros_like(z), None, None, None
            return torch.autograd.grad(total, z, create_graph=True, materialize_grads=True)[0], None, None, None
        # A density that nobody asked for must not bring in its infinities.
        pairs = zip(gradients, scores, strict=True)
        parts = [torch.where(gradient[:, None] == 0, 0.0, gradient[:, None] * score) for gradient, score in pairs]

        return parts[0] + parts[1], None, None, None

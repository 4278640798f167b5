"""A batched log density as one recorded graph of tensor operations.

Running a Pyro model is mostly Python: handlers, distribution objects, transforms. All of it is done once, while the
tensor operations of densities and scores are recorded (``recorder``), and never again; ``execution`` runs the record.
It belongs to one batch size, so batches are cut into blocks; and to one run, whose data are constants in it. A small
operation takes as long for 512 points as for 256, so large batches get a graph of their own where that is soon
recorded. Where there are very many observations, blocks are what keeps memory bounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_osds.model.foreign.integration import Integration, integrations_used
from pyro_osds.model.layout import entries_added, rows_first
from pyro_osds.runtime.clock import check_time
from pyro_osds.runtime.recording.execution import freeze
from pyro_osds.runtime.recording.interpreter import Interpreter
from pyro_osds.runtime.recording.recorder import record_operations

BLOCK_SIZE = 256
"""Points that a graph evaluates at once, where the density is not large."""

LARGE_BLOCK_SIZE = 512
"""Points that another graph evaluates at once in larger batches, where the first one has few operations."""

MIN_BATCH = 64
"""A smaller batch is not worth a whole block."""

# Fewer points at once would leave most of the time to the bookkeeping of operations.
_MIN_BLOCK_SIZE = 16
# Numbers in one tensor of a block, with an entry for each term of the density or for each coordinate: what fits into
# the memory near the processor. With 1,000 terms in double precision, 512 points took 25 ms in one block, 17 ms in two
# and 14 ms in four. Where there are very many terms, the least block is what keeps memory bounded.
_MAX_TERMS, _MAX_COORDINATES = 2**17, 2**17

# Operations of a run without gradients from which on one graph is recorded, for large batches: a second one would take
# seconds. With so few numbers for a point each, they take as long for 512 points as for 256: a differential equation of
# 200 steps 27 ms, where 2,048 points take 41; a recursion of 200 steps takes 12 ms for 512 points, and 10 for 256.
_MANY_OPERATIONS, _FEW_NUMBERS = 1000, 4.0

Densities = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps points ``(B, D)`` to log priors and log likelihoods, ``(B,)`` each."""

Scored = Callable[[Tensor], tuple[Tensor, ...]]
"""Maps points to densities ``(B,), (B,)`` and, if asked for, their scores ``(B, D), (B, D)``."""


@dataclass(frozen=True)
class Graph:
    """A function for blocks of points, recorded or not.

    Arguments:
        run: The function, for blocks of this size.
        block_size: Points that it evaluates at once.
        num_operations: Tensor operations of a run, if it is recorded.
        keeps: Initial value problems that it solves, which have to live as long.
    """

    run: Scored
    block_size: int
    num_operations: int = 0
    keeps: tuple[Integration, ...] = ()


def block_size(dim: int, num_terms: int) -> int:
    """Points that are evaluated at once: fewer where there are many observations or many dimensions.

    Arguments:
        dim: The number of dimensions.
        num_terms: Terms of the log density.

    Example:
        >>> block_size(dim=20, num_terms=500), block_size(dim=20, num_terms=1000), block_size(dim=20, num_terms=100_000)
        (256, 128, 16)
    """
    return min(large_block_size(dim, num_terms), BLOCK_SIZE)


def large_block_size(dim: int, num_terms: int) -> int:
    """Points that are evaluated at once in larger batches.

    Example:
        >>> large_block_size(dim=20, num_terms=200), large_block_size(dim=20, num_terms=1000)
        (512, 128)
    """
    size = LARGE_BLOCK_SIZE
    while size > _MIN_BLOCK_SIZE and (size * num_terms > _MAX_TERMS or size * dim > _MAX_COORDINATES):
        size //= 2

    return size


def block_sizes(dim: int, num_terms: int, num_operations: int = 0, num_numbers: int = 0) -> tuple[int, int]:
    """Points that are evaluated at once, and in larger batches: the same where a run has many small operations.

    Arguments:
        dim: The number of dimensions.
        num_terms: Terms of the log density.
        num_operations: Operations of one run, without gradients.
        num_numbers: Numbers that these read or write for a point.

    Example:
        >>> block_sizes(20, 200), block_sizes(20, 200, num_operations=5000, num_numbers=10_000)
        ((256, 512), (512, 512))
    """
    large = large_block_size(dim, num_terms)
    is_small = num_operations >= _MANY_OPERATIONS and num_numbers <= _FEW_NUMBERS * num_operations

    return (large if is_small else block_size(dim, num_terms)), large


def with_scores(densities: Densities) -> Scored:
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


def record(function: Scored, z: Tensor) -> Graph:
    """The tensor operations of a function, recorded at a block of points.

    Arguments:
        function: What to record; it must do the same operations at every point.
        z: The block, ``(block_size, D)``.

    Returns:
        The recorded function, for blocks of the same size.
    """
    with torch.no_grad(), integrations_used() as used:
        operations = rows_first(entries_added(record_operations(function, z)), (z,))
        # A solution may be stopped by Ctrl-C or a limit of time, which TorchScript would make another error.
        run = Interpreter(operations) if used else freeze(operations, (z,))

    return Graph(run, len(z), len(operations.graph.nodes), tuple(used))


def in_blocks(graph: Graph, z: Tensor) -> tuple[Tensor, ...]:
    """A function on any number of points, block by block; the last block is filled up with copies of the last point.

    Arguments:
        graph: The function.
        z: Points, ``(B, D)``.
    """
    if len(z) == graph.block_size:
        with torch.no_grad():
            return tuple(graph.run(z))
    num_blocks = math.ceil(len(z) / graph.block_size)
    filling = z[-1:].expand(num_blocks * graph.block_size - len(z), -1)
    results = []
    with torch.no_grad():
        for block in torch.cat([z, filling]).split(graph.block_size):
            check_time()
            results.append(graph.run(block))

    return tuple(torch.cat(parts)[: len(z)] for parts in zip(*results, strict=True))


class DensitiesWithScores(torch.autograd.Function):
    """Densities whose gradients are scores that a graph has computed already."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, graph: Graph, densities: Densities) -> tuple[Tensor, Tensor]:
        """Densities at ``z``, ``(B, D) -> (B,), (B,)``; the scores are kept."""
        log_prior, log_likelihood, *scores = in_blocks(graph, z)
        ctx.save_for_backward(z, *scores)
        ctx.densities = densities

        return log_prior, log_likelihood

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Gradients of the densities times their scores; where they are to be differentiated again, without a graph."""
        z, *scores = ctx.saved_tensors
        if torch.is_grad_enabled():
            log_prior, log_likelihood = ctx.densities(z)
            total = gradients[0] @ log_prior + gradients[1] @ log_likelihood
            if not total.requires_grad:
                return torch.zeros_like(z), None, None
            return torch.autograd.grad(total, z, create_graph=True, materialize_grads=True)[0], None, None
        parts = [_weighed(gradient, score) for gradient, score in zip(gradients, scores, strict=True)]

        return parts[0] + parts[1], None, None


def _weighed(gradient: Tensor, score: Tensor) -> Tensor:
    """Scores times what each density counts; one that nobody asked for must not bring in its infinities."""
    # Of a sum each counts once, and its gradient is one number, seen as many; to look at it costs a GPU its pace.
    if gradient.stride() == (0,) and not gradient.is_cuda and len(gradient) and gradient[0].item() == 1.0:
        return score

    return torch.where(gradient[:, None] == 0, 0.0, gradient[:, None] * score)

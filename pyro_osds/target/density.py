"""How every part of the sampler evaluates a log density: in chunks, with its score, and where it is not a number.

Values that are not finite are a fact of life far from the posterior, so one function decides what they mean:
:func:`finite_log_prob`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_osds.runtime.clock import check_time


class NotFiniteError(ValueError):
    """A target that is finite at none of the points that were tried.

    Arguments:
        message: What was tried.
        point: One of the points, ``(D,)``.
    """

    def __init__(self, message: str, point: Tensor) -> None:
        super().__init__(message)
        self.point = point


def finite_log_prob(log_prob: Tensor) -> Tensor:
    """Log densities with nan and +inf turned into -inf: such a point gets no weight, and is never averaged away.

    Arguments:
        log_prob: Log densities, any shape.

    Returns:
        The same values; ``-inf`` where they were nan or ``+inf``.

    Example:
        >>> finite_log_prob(torch.tensor([0.5, float("nan"), float("inf")]))
        tensor([0.5000,   -inf,   -inf])
    """
    return log_prob.nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)


def log_prob_and_score(log_prob_fn: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    r"""Log densities and their scores :math:`\nabla_z \log \gamma(z)` at a batch.

    Only the points are differentiated, so gradients that the caller's model keeps (``pyro.param``) stay untouched.

    Arguments:
        log_prob_fn: Maps ``(B, D)`` to ``(B,)``.
        z: Points, ``(B, D)``.

    Returns:
        Log densities ``(B,)``, ``-inf`` where they are not numbers, and scores ``(B, D)``, zero where not finite.

    Example:
        >>> log_prob_and_score(lambda z: -0.5 * z.square().sum(-1), torch.tensor([[1.0, 2.0]]))
        (tensor([-2.5000]), tensor([[-1., -2.]]))
    """
    check_time()
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        log_prob = log_prob_fn(z)
        # A density that is constant, or cut out of a plateau by comparisons, may have no gradient to ask for.
        (score,) = torch.autograd.grad(log_prob.sum(), z) if log_prob.requires_grad else (torch.zeros_like(z),)
    log_prob = finite_log_prob(log_prob.detach())
    score = score.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

    return log_prob, score * (log_prob > -torch.inf)[:, None]


def in_chunks(function: Callable[[Tensor], Tensor], z: Tensor, chunk_size: int = 8192) -> Tensor:
    """A batched function applied chunk by chunk, so that memory stays bounded.

    Example:
        >>> in_chunks(lambda z: z.sum(-1), torch.ones(5, 2), chunk_size=2)
        tensor([2., 2., 2., 2., 2.])
    """

    def evaluate(chunk: Tensor) -> Tensor:
        check_time()
        return function(chunk)

    return torch.cat([evaluate(chunk) for chunk in z.split(chunk_size)])

r"""What every part of the sampler asks of a posterior: a batched, unnormalised log density.

.. math:: \log \gamma(z), \quad z \in \mathbb{R}^D, \qquad Z = \int \gamma(z)\,dz.

The rooms between the Pyro front-end and ArviZ see a posterior only through :class:`Target`. Values that are not finite
are a fact of life far from the posterior, so one function decides what they mean: :func:`finite_log_prob`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import pyro
import torch
from torch import Tensor

from pyro_osds.runtime.precision import most_precise

# Points at which the precisions of a function are compared.
_NUM_PROBES = 8


@runtime_checkable
class Target(Protocol):
    """An unnormalised log density on ``R^D``, evaluated in batches of points in double precision."""

    dim: int
    dtype: torch.dtype
    device: torch.device

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of a batch, ``(B, D) -> (B,)``."""
        ...


class NotFiniteError(ValueError):
    """A target that is finite at none of the points that were tried.

    Arguments:
        message: What was tried.
        point: One of the points, ``(D,)``.
    """

    def __init__(self, message: str, point: Tensor) -> None:
        super().__init__(message)
        self.point = point


class FunctionTarget:
    """A target from a plain function.

    Arguments:
        log_prob_fn: Maps unconstrained points ``(B, D)`` to log densities ``(B,)``.
        dim: The number of dimensions ``D``.
        dtype: Floating point type that the function is written for, and that draws have. Default:
            :func:`torch.get_default_dtype`.
        device: Device of the points. Default: the CPU.

    Raises:
        ValueError: If ``dim`` is not positive, or the function does not map ``(B, D)`` to ``(B,)``.

    Example:
        >>> target = FunctionTarget(lambda z: -0.5 * z.square().sum(-1), dim=2)
        >>> target.log_prob(torch.ones(3, 2))
        tensor([-1., -1., -1.], dtype=torch.float64)
    """

    def __init__(
        self,
        log_prob_fn: Callable[[Tensor], Tensor],
        dim: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if not isinstance(dim, int) or dim < 1:
            raise ValueError(f"dim must be a positive integer, got {dim!r}; pass the length of one point.")
        self.dim = dim
        self.draw_dtype = dtype or torch.get_default_dtype()
        self.dtype = torch.float64
        self.device = torch.device(device)
        probe = log_prob_fn(torch.zeros(2, dim, dtype=self.draw_dtype, device=self.device))
        if not isinstance(probe, Tensor) or probe.shape != (2,):
            got = tuple(probe.shape) if isinstance(probe, Tensor) else type(probe).__name__
            raise ValueError(
                f"log_prob_fn must map (B, {dim}) to (B,); for a (2, {dim}) batch it returned {got}. "
                "Sum over the last dimension, not over the batch."
            )
        with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
            points = torch.randn(_NUM_PROBES, dim, dtype=self.dtype, device="cpu").to(self.device)
            self._log_prob_fn = most_precise(log_prob_fn, self.draw_dtype, points)

    @property
    def is_double(self) -> bool:
        """Whether the function computes in double precision."""
        return self._log_prob_fn.is_double

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of a batch, ``(B, D) -> (B,)``.

        The function was validated at its first call. Far out, where a scale may underflow, one bad point must not make
        distributions refuse the whole batch: it gets a density that is not a number, which the sampler counts.
        """
        with pyro.validation_enabled(False):
            return self._log_prob_fn(z.to(self.dtype))

    def from_samples(self, samples: Mapping[str, Tensor]) -> Tensor:
        """The points ``(S, D)`` of the single site ``z``."""
        z = torch.as_tensor(samples["z"]) if "z" in samples else None
        if z is None or z.dim() != 2 or z.shape[1] != self.dim or not len(z):
            got = sorted(samples) if z is None else tuple(z.shape)
            raise ValueError(f"samples must have the site 'z' with shape (draws, {self.dim}); got {got}.")

        return z.to(device=self.device, dtype=self.dtype)

    def constrain(self, z: Tensor) -> dict[str, Tensor]:
        """The draws as the single site ``z``, beside the sites that a model has."""
        return {"z": z.to(self.draw_dtype)}


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
    bad = log_prob.isnan() | (log_prob == torch.inf)

    return log_prob.masked_fill(bad, -torch.inf)


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
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        log_prob = log_prob_fn(z)
        # A density that is constant, or cut out of a plateau by comparisons, may have no gradient to ask for.
        (score,) = torch.autograd.grad(log_prob.sum(), z) if log_prob.requires_grad else (torch.zeros_like(z),)
    log_prob = finite_log_prob(log_prob.detach())
    valid = log_prob.isfinite()[:, None] & score.isfinite()

    return log_prob, torch.where(valid, score, torch.zeros_like(score))


def in_chunks(function: Callable[[Tensor], Tensor], z: Tensor, chunk_size: int = 8192) -> Tensor:
    """A batched function applied chunk by chunk, so that memory stays bounded.

    Example:
        >>> in_chunks(lambda z: z.sum(-1), torch.ones(5, 2), chunk_size=2)
        tensor([2., 2., 2., 2., 2.])
    """
    return torch.cat([function(chunk) for chunk in z.split(chunk_size)])

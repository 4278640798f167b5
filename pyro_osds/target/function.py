"""The simplest target: a plain function of a batch of points."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import torch
from torch import Tensor

from pyro_osds.runtime.precision import most_precise
from pyro_osds.target.density import in_chunks
from pyro_osds.target.protocol import Target

# Points at which the precisions of a function are compared.
_NUM_PROBES = 8
# Points with gradients at once: a limit of time is looked at in between.
_BLOCK_SIZE = 512


class FunctionTarget(Target):
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
        self.is_double = self._log_prob_fn.is_double

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of a batch, ``(B, D) -> (B,)``.

        The function was validated at its first call. Far out, where a scale may underflow, one bad point must not make
        distributions refuse the whole batch: it gets a density that is not a number, which the sampler counts.
        """
        with pyro.validation_enabled(False):
            z = z.to(self.dtype)
            if not z.requires_grad or len(z) <= _BLOCK_SIZE:
                return self._log_prob_fn(z)
            return in_chunks(self._log_prob_fn, z, _BLOCK_SIZE)

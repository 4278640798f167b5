"""The simplest target: a plain function of a batch of points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_osds.runtime.precision import most_precise
from pyro_osds.runtime.source import first_line, own_line
from pyro_osds.target.gradient import has_wrong_gradient
from pyro_osds.target.protocol import Target

# Points at which the precisions of a function are compared.
_NUM_PROBES = 8
# Threads may add up in another order, which changes the last digits of single precision.
_SAME = 1e-6


class FunctionTarget(Target):
    """A target from a plain function.

    Arguments:
        log_prob_fn: Maps unconstrained points ``(B, D)`` to log densities ``(B,)``.
        dim: The number of dimensions ``D``.
        dtype: Floating point type that the function is written for, and that draws have. Default:
            :func:`torch.get_default_dtype`.
        device: Device of the points. Default: the CPU.

    Raises:
        ValueError: If an argument is out of range, or the function fails, is random, has a wrong gradient, or does not
            map ``(B, D)`` to ``(B,)``.

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
        if isinstance(dim, bool) or not isinstance(dim, (int, np.integer)) or dim < 1:
            raise ValueError(f"dim must be a positive integer, got {dim!r}; pass the length of one point.")
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"dtype must be a floating point type, such as torch.float32, got {dtype!r}.")
        self.dim = int(dim)
        self.draw_dtype = dtype or torch.get_default_dtype()
        self.dtype = torch.float64
        self.device = _usable_device(device)
        probe = _probed(log_prob_fn, torch.zeros(2, self.dim, dtype=self.draw_dtype, device=self.device))
        if not isinstance(probe, Tensor) or probe.shape != (2,):
            got = tuple(probe.shape) if isinstance(probe, Tensor) else type(probe).__name__
            raise ValueError(
                f"log_prob_fn must map (B, {dim}) to (B,); for a (2, {dim}) batch it returned {got}. "
                "Sum over the last dimension, not over the batch."
            )
        if not probe.is_floating_point():
            raise ValueError(
                f"log_prob_fn must return a floating point tensor, and returned {probe.dtype}: a density in whole "
                "numbers has no gradient. Leave out .long(), .int() and comparisons."
            )
        with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
            points = torch.randn(_NUM_PROBES, dim, dtype=self.dtype, device="cpu").to(self.device)
            self._log_prob_fn = most_precise(log_prob_fn, self.draw_dtype, points)
            _check_gradient(self._log_prob_fn, points)
        self.is_double = self._log_prob_fn.is_double

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of a batch, ``(B, D) -> (B,)``.

        The function was validated at its first call. Far out, where a scale may underflow, one bad point must not make
        distributions refuse the whole batch: it gets a density that is not a number, which the sampler counts.
        """
        with pyro.validation_enabled(False):
            return self._log_prob_fn(z.to(self.dtype))


def _usable_device(device: Any) -> torch.device:
    """The device, if tensors can be put there."""
    try:
        found = torch.device(device)
        torch.zeros(1, device=found)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device={device!r} cannot be used: {first_line(error)}. Pass 'cpu', or 'cuda' where "
            "torch.cuda.is_available()."
        ) from error

    return found


def _probed(log_prob_fn: Callable[[Tensor], Tensor], z: Tensor) -> Any:
    """What a function makes of two points, with a gradient to be asked for."""
    try:
        with torch.enable_grad():
            return log_prob_fn(z.requires_grad_())
    except Exception as error:  # noqa: BLE001 - whatever it raises is told with its line
        if isinstance(error, Warning) or type(error).__module__ not in ("builtins", "torch"):
            raise
        line = own_line(error)
        cure = f"It gets a batch of points, a tensor {tuple(z.shape)}, and returns one number for each row."
        if "numpy" in str(error):
            cure = "Numpy and scipy have no gradient: compute with torch's functions from the points to the density."
        raise ValueError(
            f"log_prob_fn failed{f' at {line}' if line else ''}: {type(error).__name__}: {first_line(error)}. {cure}"
        ) from error


def _check_gradient(log_prob: Callable[[Tensor], Tensor], z: Tensor) -> None:
    """Refuse a density that is another one each time, or whose gradient is that of another one."""
    with torch.no_grad():
        first, second = log_prob(z), log_prob(z)
    if not torch.allclose(first, second, rtol=_SAME, atol=_SAME, equal_nan=True):
        raise ValueError(
            f"log_prob_fn changes between two evaluations at the same points, by up to "
            f"{(first - second).abs().nan_to_num(0.0).max().item():.2g}. A posterior needs a density that is a "
            "function of its points: draw random numbers once, before, and leave dropout out by .eval()."
        )
    if has_wrong_gradient(log_prob, z):
        raise ValueError(
            "log_prob_fn has no gradient, or a wrong one: its values change from point to point otherwise than their "
            "gradient says. Compute in torch from the points to the density, without .detach(), .item(), numpy, whole "
            "numbers and torch.no_grad()."
        )

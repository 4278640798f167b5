"""The simplest target: a plain function of a batch of points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_osds.runtime.clock import now
from pyro_osds.runtime.errors.lines import own_line
from pyro_osds.runtime.errors.told import first_line, named, telling, told
from pyro_osds.runtime.precision import most_precise
from pyro_osds.runtime.resume import seed_refusal, sets_seed
from pyro_osds.target.cost import CostCounter, terms_in
from pyro_osds.target.density import in_chunks
from pyro_osds.target.gradient import differing, has_wrong_gradient
from pyro_osds.target.protocol import Target

# Points at which the precisions of a function are compared.
_NUM_PROBES = 8
# Threads may add up in another order, which changes the last digits of single precision.
_SAME = 1e-6
# Seconds of an evaluation at these that no count of operations explains.
_LONG = 0.5
# Points with gradients at once: a limit of time is looked at in between.
_BLOCK_SIZE = 512


@telling(lambda target, error: _midst_failure(error), "log_prob")
class FunctionTarget(Target):
    """A target from a plain function.

    Arguments:
        log_prob_fn: Maps unconstrained points ``(B, D)`` to log densities ``(B,)``.
        dim: The number of dimensions ``D``.
        dtype: Floating point type that the function is written for, and that draws have. Default:
            :func:`torch.get_default_dtype`.
        device: Device of the points. Default: the CPU.
        score_fn: Maps points ``(B, D)`` to gradients of the log density, ``(B, D)``, for a ``log_prob_fn`` that torch
            cannot differentiate. Both get tensors in double precision without gradients, which numpy reads, and may
            return tensors or arrays.

    Raises:
        ValueError: If an argument is out of range, or the function fails, is random, has a wrong gradient, or does not
            map ``(B, D)`` to ``(B,)``, or ``score_fn`` is not its gradient.

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
        score_fn: Callable[[Tensor], Any] | None = None,
    ) -> None:
        if isinstance(dim, bool) or not isinstance(dim, (int, np.integer)) or dim < 1:
            raise ValueError(f"dim must be a positive integer, got {dim!r}; pass the length of one point.")
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"dtype must be a floating point type, such as torch.float32, got {dtype!r}.")
        self.dim = int(dim)
        self.draw_dtype = dtype or torch.get_default_dtype()
        self.dtype = torch.float64
        self.device = _usable_device(device)
        self._score_fn = score_fn
        if score_fn is not None:
            log_prob_fn = _Foreign(log_prob_fn)
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
            start = now()
            with CostCounter(len(points), num_calls=2) as cost:
                _check_same(self._log_prob_fn, cost.watch(points))
            seconds = 0.5 * (now() - start)
            if score_fn is None:
                _check_gradient(self._log_prob_fn, points)
        self.is_double = self._log_prob_fn.is_double
        # What computes outside of torch, or waits, is seen on the clock only.
        is_seen = score_fn is None and seconds < _LONG
        self.num_terms = cost.terms(0) if is_seen else terms_in(seconds, len(points))
        if score_fn is not None:
            self._check_score(points)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of a batch, ``(B, D) -> (B,)``.

        The function was validated at its first call. Far out, where a scale may underflow, one bad point must not make
        distributions refuse the whole batch: it gets a density that is not a number, which the sampler counts.
        """
        with pyro.validation_enabled(False):
            z = z.to(self.dtype)
            if not (torch.is_grad_enabled() and z.requires_grad):
                return self._values(z)
            return self._scored(z) if len(z) <= _BLOCK_SIZE else in_chunks(self._scored, z, _BLOCK_SIZE)

    def _scored(self, z: Tensor) -> Tensor:
        return self._values(z) if self._score_fn is None else _WithScore.apply(z, self._values, self._score)

    def _values(self, z: Tensor) -> Tensor:
        return self._log_prob_fn(z)

    def _score(self, z: Tensor) -> Tensor:
        """The gradient as the user gives it, ``(B, D)``."""
        assert self._score_fn is not None
        with torch.no_grad():
            score = _as_tensor(self._score_fn(z.detach()), z)
        if score.shape != z.shape:
            raise ValueError(
                f"score_fn must map {tuple(z.shape)} to {tuple(z.shape)}, the gradient of each point; it returned "
                f"{tuple(score.shape)}. Do not sum over the batch."
            )

        return score

    def _check_score(self, z: Tensor) -> None:
        """Hold the gradient against central differences of the density, coordinate by coordinate."""
        score = self._score(z)
        for index in range(self.dim):
            step = torch.zeros_like(z)
            step[:, index] = 1.0
            got = score[:, index].double()
            with pyro.validation_enabled(False):
                known, wrong, narrow = differing(self._values, z, step, got)
            if 2 * wrong.sum() > known.sum():
                row = int(wrong.nonzero()[0])
                raise ValueError(
                    f"score_fn is not the gradient of log_prob_fn: in coordinate {index} it gives {got[row]:.6g} where "
                    f"differences of log_prob_fn give {narrow[row]:.6g}, at z = {z[row].tolist()}. Return the "
                    "derivative of the log density, not of minus it, with respect to each coordinate of z."
                )


class _Foreign:
    """A log density outside of torch: it gets points that numpy reads, and may return an array."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        self.function = function

    def __call__(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            return _as_tensor(self.function(z.detach()), z)


class _WithScore(torch.autograd.Function):
    """A log density whose gradient is the user's."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, values: Callable[[Tensor], Tensor], score: Callable[[Tensor], Tensor]) -> Tensor:
        """Log densities, ``(B, D) -> (B,)``."""
        ctx.save_for_backward(z)
        ctx.score = score

        return values(z)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Scores times what comes for them; a density that nobody asked for does not bring in its infinities."""
        score = ctx.score(ctx.saved_tensors[0])

        return torch.where(gradient[:, None] == 0, 0.0, gradient[:, None] * score), None, None


def _as_tensor(value: Any, like: Tensor) -> Tensor:
    """A tensor of what a function of another package returns, on the device of the points."""
    if isinstance(value, Tensor):
        return value.detach().to(like.device)

    return torch.as_tensor(np.asarray(value), device=like.device)


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
        if isinstance(error, Warning):
            raise
        line = own_line(error)
        cure = f"It gets a batch of points, a tensor {tuple(z.shape)}, and returns one number for each row."
        if "numpy" in str(error):
            cure = (
                "Numpy and scipy have no gradient: compute with torch's functions from the points to the density, or "
                "pass its gradient, score_fn=."
            )
        sentence = f"log_prob_fn failed{f' at {line}' if line else ''}: {named(error)}. {cure}"
        raise told(error, sentence, ValueError) from error


def _midst_failure(error: Exception) -> str:
    """The sentence on a function that fails at points that it had not met before."""
    return (
        f"log_prob_fn failed in the midst of a run, in {own_line(error)}: {named(error)}. Return -inf at points "
        "that are impossible."
    )


def _check_same(log_prob: Callable[[Tensor], Tensor], z: Tensor) -> None:
    """Refuse a density that is another one each time."""
    kept: list[Tensor] = []
    with torch.no_grad():
        if sets_seed(lambda: kept.append(log_prob(z))):
            raise ValueError(seed_refusal("log_prob_fn"))
        first, second = kept[0], log_prob(z)
    if not torch.allclose(first, second, rtol=_SAME, atol=_SAME, equal_nan=True):
        raise ValueError(
            f"log_prob_fn changes between two evaluations at the same points, by up to "
            f"{(first - second).abs().nan_to_num(0.0).max().item():.2g}. A posterior needs a density that is a "
            "function of its points: draw random numbers once, before, and leave dropout out by .eval()."
        )


def _check_gradient(log_prob: Callable[[Tensor], Tensor], z: Tensor) -> None:
    """Refuse a density whose gradient is that of another one."""
    if has_wrong_gradient(log_prob, z):
        raise ValueError(
            "log_prob_fn has no gradient, or a wrong one: its values change from point to point otherwise than their "
            "gradient says. Compute in torch from the points to the density, without .detach(), .item(), numpy, whole "
            "numbers and torch.no_grad()."
        )

r"""Double precision where the density is, whatever the user's code is written in.

A log density of large counts, or at a large offset, is a small difference of large numbers: in single precision its
rounding goes straight into the weights, and no weight shows it. So the density is evaluated in double precision, with
the data as they were given and every operation on them in double. Networks stay in single precision.

The functions that the user's code calls are answered in double precision while it runs: arguments in a lower precision
are raised once, and a lower precision that is asked for is double. That happens above autograd and ``torch.func.vmap``,
so gradients need no care. Where code insists on single precision (a check of ``dtype``, numpy in between), the density
stays as it is written, and :func:`rounding_noise` measures what its rounding is worth.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

NETWORK_DTYPE = torch.float32
"""What networks are evaluated in; their maps are bijections in any precision."""

_LOW = {torch.float32, torch.float16, torch.bfloat16}
_CASTS = {Tensor.float, Tensor.half, Tensor.bfloat16}
# What a tensor is to autograd is asked of the user's own.
_ABOUT_GRADIENTS = {Tensor.requires_grad.__get__, Tensor.is_leaf.__get__, Tensor.grad.__get__}  # type: ignore[attr-defined]
# Two precisions of one density differ by its rounding, which is large where terms cancel: by this share of its value at
# most, at half of the points. Or by more still; rounding then changes from one point to its neighbour by at least this
# share of itself. All of it is to notice code that does something else in another precision.
_RESEMBLANCE, _ROUGH, _NEIGHBOUR = 0.25, 0.05, 1e-3
# Constants that are made in single precision before they meet the point differ by this much.
_SAME = 1e-9
# Probes of a log density, their steps in standard deviations of draws, and what two rules for a change by slopes may
# differ by, nats.
_NUM_PROBES, _PROBE_STEPS, _MAX_CURVED = 256, (0.5, 0.05, 0.005), 0.02
# Over so short a step nothing is left of a smooth density in double precision, and some 1e-8 of its size in single.
_TINY_STEP, _ROUGHNESS = 1e-3, 1e-9


class RaisePrecision(TorchFunctionMode):
    """Torch, with every floating point tensor in double precision.

    A tensor in a lower precision is raised when it is first used, and the raised one takes its place from then on: what
    is changed in place is that copy, for as long as the mode lives.

    Example:
        >>> data = torch.tensor([0.1, 0.2])
        >>> with RaisePrecision():
        ...     (data @ torch.ones(2)).dtype, data.float().dtype, data.dtype
        (torch.float64, torch.float64, torch.float64)
    """

    def __init__(self) -> None:
        super().__init__()
        # The lower one is kept too: an id belongs to a tensor as long as the tensor lives.
        self._raised: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _ABOUT_GRADIENTS:
            return func(*args, **(kwargs or {}))
        func = Tensor.double if func in _CASTS else func
        result = func(*self._raise_all(args), **{name: self._raise(value) for name, value in (kwargs or {}).items()})

        return self._raise(result) if isinstance(result, Tensor) else result

    def _raise_all(self, values: Any) -> Any:
        return [self._raise(value) for value in values]

    def _raise(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if value.dtype not in _LOW:
                return value
            if id(value) not in self._raised:
                self._raised[id(value)] = value, value.double()
            return self._raised[id(value)][1]
        if isinstance(value, torch.dtype):
            return torch.float64 if value in _LOW else value
        if type(value) in (list, tuple):
            return type(value)(self._raise_all(value))

        return value


@contextlib.contextmanager
def in_double() -> Iterator[None]:
    """Run the user's code in double precision; numbers that it turns into tensors are double, too.

    Example:
        >>> with in_double():
        ...     torch.tensor(0.1).dtype
        torch.float64
        >>> torch.tensor(0.1).dtype
        torch.float32
    """
    with default_dtype(torch.float64), RaisePrecision():
        yield


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """What torch makes of numbers, and of quotients of integers, for a while.

    Example:
        >>> with default_dtype(torch.float64):
        ...     (torch.ones(1, dtype=torch.long) / 2).dtype
        torch.float64
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def resembles(double: Tensor, single: Tensor) -> bool:
    """Whether the log densities of two precisions are those of one density.

    Arguments:
        double: In double precision, ``(N,)``.
        single: As the user wrote it, ``(N,)``; where it is not finite, rounding may be the reason.

    Example:
        >>> resembles(torch.tensor([-1000.0]), torch.tensor([-1000.5])), resembles(torch.zeros(1), torch.ones(1))
        (True, False)
    """
    if double.dtype != torch.float64 and not double.isfinite().any():
        return False
    both = double.isfinite() & single.isfinite()
    if not both.any():
        return not bool((single.isfinite() & ~double.isfinite()).any())
    difference = (double[both].double() - single[both].double()).abs()

    return bool((difference / (1.0 + single[both].double().abs())).median() < _RESEMBLANCE)


def is_rounding(
    double: Callable[[Tensor], Tensor], single: Callable[[Tensor], Tensor], z: Tensor, difference: Tensor
) -> bool:
    """Whether the difference between two precisions of a density is noise, and not that of two densities.

    Arguments:
        double: The log density in double precision, ``(N, D) -> (N,)``.
        single: The same as the user wrote it.
        z: The points, ``(N, D)``.
        difference: What they differ by at the points, ``(N,)``.
    """
    neighbours = z * (1.0 + _NEIGHBOUR)
    with torch.no_grad():
        other = double(neighbours).double() - single(neighbours).double()
    both = difference.isfinite() & other.isfinite()
    if not both.any():
        return False

    return bool((other - difference)[both].abs().median() >= _ROUGH * difference[both].abs().median())


def most_precise(function: Callable[[Tensor], Tensor], dtype: torch.dtype, z: Tensor) -> Precise:
    """A log density in double precision: as it is where it follows its argument, else raised, else as it is written.

    Arguments:
        function: Maps points ``(B, D)`` to log densities ``(B,)``.
        dtype: The precision that it is written for.
        z: Some points to try, ``(N, D)``, in double precision.

    Returns:
        The function that takes double precision and returns it, with ``is_double`` telling whether it computes in it.

    Example:
        >>> scale = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> fn = most_precise(lambda z: (z @ scale).sum(-1), torch.float32, torch.zeros(1, 2, dtype=torch.float64))
        >>> fn(torch.ones(1, 2, dtype=torch.float64)), fn.is_double
        (tensor([3.], dtype=torch.float64), True)
    """
    written = _Written(function, dtype)
    if z.device.type == "mps":  # has no double precision
        return written
    single, raised = written(z), _tried(_Raised(function), z)
    native = _tried(Precise(function), z)
    if (
        native is not None
        and raised is not None
        and torch.allclose(native, raised, rtol=_SAME, atol=_SAME, equal_nan=True)
    ):
        return Precise(function)
    if raised is not None and (
        resembles(raised, single) or is_rounding(_Raised(function), written, z, raised - single)
    ):
        return _Raised(function)
    if native is not None and raised is None and resembles(native, single):
        return Precise(function)

    return written


class Precise:
    """A log density with points and values in double precision; the function itself follows the precision of points.

    Arguments:
        function: Maps points ``(B, D)`` to log densities ``(B,)``.
    """

    is_double = True

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def __call__(self, z: Tensor) -> Tensor:
        """Log densities, ``(B, D) -> (B,)``."""
        with default_dtype(torch.float64):
            return self.function(z)


class _Raised(Precise):
    """A function whose constants are raised while it runs."""

    def __call__(self, z: Tensor) -> Tensor:
        with in_double():
            return self.function(z)


class _Written(Precise):
    """A function in the precision that it is written for."""

    is_double = False

    def __init__(self, function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
        super().__init__(function)
        self.dtype = dtype

    def __call__(self, z: Tensor) -> Tensor:
        return self.function(z.to(self.dtype)).to(z.dtype)


def _tried(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor | None:
    """What a function makes of points in double precision, or None where it cannot, or does not, compute in it."""
    try:
        with torch.no_grad():
            value = function(z)
    except Exception:  # noqa: BLE001 - whatever the user's code has against double precision means the same
        return None

    return value if isinstance(value, Tensor) and value.dtype == torch.float64 and value.shape == z.shape[:1] else None


def is_rough(log_prob_and_score: Callable[[Tensor], tuple[Tensor, Tensor]], z: Tensor) -> bool:
    """Whether a log density is noisy at most points: computed in double, it has a part that is not.

    Arguments:
        log_prob_and_score: Maps points ``(B, D)`` to log densities ``(B,)`` and scores ``(B, D)``.
        z: Posterior draws, ``(S, D)``.

    Example:
        >>> z = torch.randn(256, 1, dtype=torch.float64)
        >>> is_rough(lambda z: (-0.5 * z.square().sum(-1), -z), z)
        False
        >>> is_rough(lambda z: (-0.5 * z.float().square().sum(-1).double(), -z), z)
        True
    """
    z = z[:_NUM_PROBES].detach()
    if len(z) < 2 or z.shape[1] == 0:
        return False
    left = _left(log_prob_and_score, z, _TINY_STEP * z.std(0).nan_to_num(1.0) * torch.randn_like(z))[0]
    size = 1.0 + log_prob_and_score(z)[0].abs()
    share = (left.abs() / size)[left.isfinite() & size.isfinite()]

    return len(share) > 0 and bool(share.median() > _ROUGHNESS)


def _left(
    log_prob_and_score: Callable[[Tensor], tuple[Tensor, Tensor]], z: Tensor, step: Tensor
) -> tuple[Tensor, Tensor]:
    """What slopes leave of a change, by Simpson's rule, and what it and the trapezoid's differ by, ``(B,)``."""
    (before, first), (_, middle), (after, last) = map(log_prob_and_score, (z, z + 0.5 * step, z + step))
    ends, middle = 0.5 * ((first + last) * step).sum(-1), (middle * step).sum(-1)

    return after - before - (ends + 2.0 * middle) / 3.0, (ends - middle).abs()


def rounding_noise(log_prob_and_score: Callable[[Tensor], tuple[Tensor, Tensor]], z: Tensor) -> float:
    r"""What single precision adds to a log density at random, nats: a standard deviation.

    .. math::
        \tfrac12 \mathrm{Var}\big[ f(z + \delta) - f(z) - \tfrac16 \big(\nabla f(z)
        + 4 \nabla f(z + \tfrac12 \delta) + \nabla f(z + \delta)\big)^\top \delta \big]

    Slopes tell by how much the density changes, up to the fifth power of the step; what is left of the difference is
    rounding. The step changes the density by a good part of a nat, since values that are rounded alike show nothing:
    where they are rounded to more than that, what is left is at least the change that is lost. Where slopes at the ends
    and in the middle disagree, as in the neck of a funnel, a shorter step is taken.

    Arguments:
        log_prob_and_score: Maps points ``(B, D)`` to log densities ``(B,)`` and scores ``(B, D)``.
        z: Posterior draws, ``(S, D)``.

    Example:
        >>> z = torch.randn(256, 1)
        >>> noise = rounding_noise(lambda z: (-0.5 * z.square().sum(-1) + 1e6, -z), z)
        >>> 0.01 < noise < 0.03  # values are multiples of 1/16, and 1 / 16 / sqrt(12) = 0.018
        True
    """
    z = z[:_NUM_PROBES].detach()
    # Heavy tails have no standard deviation; half of the draws lie within 1.35 of a Gaussian's.
    if not z.shape[1]:  # one point, at which nothing can be moved
        return 0.0
    half = (z.quantile(0.75, 0) - z.quantile(0.25, 0)) / 1.35
    scale = torch.where(half > 0, half, 1.0) / max(z.shape[1], 1) ** 0.5
    left = [z.new_zeros(0)]
    for size in _PROBE_STEPS:
        noise, curved = _left(log_prob_and_score, z, size * scale * torch.randn_like(z))
        known = (curved < _MAX_CURVED) | (size == _PROBE_STEPS[-1])
        left.append(noise[known])
        z = z[~known]
        if not len(z):
            break
    values = torch.cat(left)
    values = values[values.isfinite()]

    return values.square().mean().div(2.0).sqrt().item() if len(values) else 0.0

r"""Does a log density change as its gradient says?

.. math:: f(z + h v) - f(z - h v) \approx 2 h\, v^\top \nabla f(z)

Where two step sizes agree on the change, and the gradient says another one at nearly all points, it is the gradient
that is wrong: a part of the computation was detached from its argument. Where they disagree, the density is rough, and
nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Sharpness(NamedTuple):
    """How sharply differences are looked at.

    Arguments:
        steps: Lengths of the two differences.
        same: Share up to which these two are the same.
        other: Share beyond which a gradient is another one.
        flat: Nats for each unit of a coordinate: below this, a density is as good as flat.
        tellable: Of a log density, the change by the shorter step that its precision can still tell.
    """

    steps: tuple[float, float]
    same: float
    other: float
    flat: float
    tellable: float


# Whatever the precision: long steps, of which a hundred spacings of single precision can be told.
_ROUGH = Sharpness((1e-2, 5e-3), 0.02, 0.2, 1e-3, 1e-5)
# In double precision rounding is a millionth of a short step.
FINE = Sharpness((1e-4, 5e-5), 1e-3, 1e-2, 1e-6, 0.0)
# Points of all that have to say so, and how many at least: kinks and edges lie at a few.
_MOST, _AT_LEAST = 0.75, 3


def differing(
    log_prob: Callable[[Tensor], Tensor], z: Tensor, way: Tensor, slope: Tensor, sharpness: Sharpness = FINE
) -> tuple[Tensor, Tensor, Tensor]:
    """At which points differences of a log density tell its slope, and at which of these it is not the one given.

    Arguments:
        log_prob: Maps points ``(B, D)`` to log densities ``(B,)``.
        z: The points, ``(B, D)``.
        way: The direction of the slope, ``(B, D)``.
        slope: The slope as the gradient has it, ``(B,)``.
        sharpness: How sharply to look.

    Returns:
        Two masks, ``(B,)``; and what the shorter difference says, ``(B,)``, as the third.

    Example:
        >>> z = torch.ones(1, 1, dtype=torch.float64)
        >>> differing(lambda z: -0.5 * z.square().sum(-1), z, z, torch.tensor([1.0]))  # it is -1
        (tensor([True]), tensor([True]), tensor([-1.0000], dtype=torch.float64))
    """
    with torch.no_grad():
        first, second = (
            (log_prob(z + step * way).double() - log_prob(z - step * way).double()) / (2.0 * step)
            for step in sharpness.steps
        )
    size = torch.maximum(second.abs(), slope.nan_to_num(0.0).abs()) + sharpness.flat
    tells = first.isfinite() & second.isfinite() & ((first - second).abs() < sharpness.same * size)
    if sharpness.tellable > 0.0:
        with torch.no_grad():
            tells = tells & (2.0 * sharpness.steps[1] * size > sharpness.tellable * (1.0 + log_prob(z).abs()))

    return tells, tells & ~((second - slope).abs() <= sharpness.other * size), second


def has_wrong_gradient(log_prob: Callable[[Tensor], Tensor], z: Tensor) -> bool:
    """Whether a log density changes smoothly, and not as its gradient says.

    Arguments:
        log_prob: Maps points ``(B, D)`` to log densities ``(B,)``.
        z: Some points, ``(B, D)``.

    Example:
        >>> z = torch.randn(8, 2, dtype=torch.float64)
        >>> has_wrong_gradient(lambda z: -0.5 * z.square().sum(-1), z)
        False
        >>> has_wrong_gradient(lambda z: -0.5 * z.detach().square().sum(-1), z)
        True
    """
    if not z.shape[1]:
        return False
    with torch.random.fork_rng(devices=[]):
        # Each coordinate may have been detached alone, so they are looked at together, with random signs.
        way = (torch.randint(2, z.shape, device="cpu") * 2 - 1).to(z) / z.shape[1] ** 0.5
    with torch.enable_grad():
        start = z.detach().requires_grad_()
        value = log_prob(start)
        (score,) = torch.autograd.grad(value.sum(), start, allow_unused=True) if value.requires_grad else (None,)
    slope = z.new_zeros(len(z)) if score is None else (score * way).sum(-1)
    _, wrong, second = differing(log_prob, z, way, slope, _ROUGH)
    usable = second.isfinite() & slope.isfinite()

    return int((wrong & usable).sum()) >= max(_AT_LEAST, _MOST * int(usable.sum()))

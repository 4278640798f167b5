r"""Does a log density change as its gradient says?

.. math:: f(z + h v) - f(z - h v) \approx 2 h\, v^\top \nabla f(z)

Where two step sizes agree on the change, and the gradient says another one at nearly all points, it is the gradient
that is wrong: a part of the computation was detached from its argument. Where they disagree, the density is rough, and
nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Steps of the two differences. In double precision their rounding is a millionth; a smooth density bends little.
_STEPS = (1e-2, 5e-3)
# The two differences are the same up to this share, and the gradient is another one beyond that share.
_SAME, _OTHER = 0.02, 0.2
# Points of all that have to say so, and how many at least: kinks and edges lie at a few.
_MOST, _AT_LEAST = 0.75, 3
# Of a log density, the change by the shorter step that single precision can still tell, a hundred of its spacings.
_TELLABLE = 1e-5
# Nats for each unit of a coordinate: below this, a density is as good as flat.
_FLAT = 1e-3


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
    with torch.no_grad():
        first, second = ((log_prob(z + step * way) - log_prob(z - step * way)) / (2.0 * step) for step in _STEPS)
    usable = first.isfinite() & second.isfinite() & slope.isfinite()
    size = torch.maximum(second.abs(), slope.abs()) + _FLAT
    tellable = 2.0 * _STEPS[1] * size > _TELLABLE * (1.0 + value.detach().abs())
    smooth = usable & tellable & ((first - second).abs() < _SAME * size)
    told = int((smooth & ((second - slope).abs() > _OTHER * size)).sum())

    return told >= max(_AT_LEAST, _MOST * int(usable.sum()))

r"""What every optimiser step has in common: clipped gradients, and the moving average of the weights.

.. math:: g \leftarrow g \min\!\big(1,\ 1 / \|g\|\big), \qquad \bar\theta \leftarrow 0.98\,\bar\theta + 0.02\,\theta .

A step whose gradient is not finite is left out: it would spoil the weights for good.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

# The average looks back over fifty steps, a fifth of the first round. Nearer to one it lags behind where a round is
# short; further from one it keeps the noise of single steps.
_EMA_DECAY = 0.98
# A few draws that carry a batch make gradients of any size, which Adam would remember for a thousand steps; others are
# rarely far above one. Chosen on the accuracy cases.
_MAX_GRADIENT_NORM = 1.0
_update = get_ema_multi_avg_fn(_EMA_DECAY)


class MovingAverage:
    """The exponential moving average of the weights of a module; the first one is the weights themselves.

    Arguments:
        module: What is trained.

    Example:
        >>> line = nn.Linear(1, 1)
        >>> average = MovingAverage(line)
        >>> average.update()
        >>> bool(average.module.weight == line.weight)
        True
    """

    def __init__(self, module: nn.Module) -> None:
        self._source = module
        self._averaged = AveragedModel(module, multi_avg_fn=_update)
        # Looked up once: a module searches all of its parts for parameters, at each step.
        self._from: list[Tensor] = list(module.parameters())
        self._to: list[Tensor] = list(self._averaged.parameters())

    @property
    def module(self) -> nn.Module:
        """A copy of the module, with averaged weights."""
        return self._averaged.module

    def update(self) -> None:
        """Take in the present weights, as ``AveragedModel.update_parameters`` does."""
        if self._averaged.n_averaged == 0:
            self._averaged.update_parameters(self._source)
            return
        with torch.no_grad():
            _update(self._to, self._from, self._averaged.n_averaged)
        self._averaged.n_averaged += 1

    def state_dict(self) -> dict[str, Any]:
        """The state of torch's ``AveragedModel``."""
        return self._averaged.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where another average of the same module stood."""
        self._averaged.load_state_dict(state)


def gradients_of(loss: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of a loss; zero for parameters that it does not depend on."""
    return torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)


def flat_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients as one vector, a scalar.

    Torch's own ``get_total_norm`` is the norm of their norms, which is the same up to rounding. Where trained weights
    have to be the same bit for bit, each training keeps to one of them.
    """
    return torch.cat([gradient.flatten() for gradient in gradients]).norm()


def clipped(parameters: Sequence[Tensor], gradients: Sequence[Tensor], norm: Tensor) -> bool:
    """Put gradients beside their parameters, clipped in place; whether they are finite, if not nothing happens.

    Arguments:
        parameters: What is trained.
        gradients: One for each parameter.
        norm: Their norm, which tells whether any entry is not finite.

    Example:
        >>> x = torch.zeros(2, requires_grad=True)
        >>> gradient = torch.tensor([3.0, 4.0])
        >>> clipped([x], [gradient], gradient.norm()), x.grad
        (True, tensor([0.6000, 0.8000]))
    """
    if not norm.isfinite():
        return False
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    clip_grads_with_norm_(parameters, _MAX_GRADIENT_NORM, norm)

    return True

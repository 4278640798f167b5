r"""What every optimiser step has in common: clipped gradients, and the moving average of the weights.

.. math:: g \leftarrow g \min\!\big(1,\ 1 / \|g\|\big), \qquad \bar\theta \leftarrow 0.98\,\bar\theta + 0.02\,\theta .

A step whose gradient is not finite is left out: it would spoil the weights for good.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pyro_osds.train.flat import FlatParameters

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
        flat: The vector that its parameters are views of; the average's are then views of one, too.

    Example:
        >>> line = nn.Linear(1, 1)
        >>> average = MovingAverage(line)
        >>> average.update()
        >>> bool(average.module.weight == line.weight)
        True
    """

    def __init__(self, module: nn.Module, flat: FlatParameters | None = None) -> None:
        self._source, self._flat = module, flat
        self._averaged = AveragedModel(module, multi_avg_fn=_update)
        self._to_flat = None if flat is None else FlatParameters(self._averaged.module)
        # Looked up once: a module searches all of its parts for parameters, at each step.
        self._from: list[Tensor] = list(module.parameters())
        self._to: list[Tensor] = list(self._averaged.parameters())
        self._num_averaged = 0

    @property
    def module(self) -> nn.Module:
        """A copy of the module, with averaged weights."""
        return self._averaged.module

    def update(self) -> None:
        """Take in the present weights, as ``AveragedModel.update_parameters`` does."""
        self._num_averaged += 1
        if self._num_averaged == 1:
            self._averaged.update_parameters(self._source)
            return
        with torch.no_grad():
            if self._flat is None or self._to_flat is None:
                _update(self._to, self._from, self._averaged.n_averaged)
            else:
                self._to_flat.vector.lerp_(self._flat.vector, 1 - _EMA_DECAY)

    def state_dict(self) -> dict[str, Any]:
        """The state of torch's ``AveragedModel``."""
        self._averaged.n_averaged.fill_(self._num_averaged)

        return self._averaged.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where another average of the same module stood."""
        self._averaged.load_state_dict(state)
        self._num_averaged = int(self._averaged.n_averaged)


def gradients_of(loss: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of a loss; zero for parameters that it does not depend on."""
    return torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)


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


def flat_gradient(loss: Tensor, flat: FlatParameters) -> Tensor:
    """The gradient of a loss that depends on a vector, or on the parameters that are views of it, or on both.

    Arguments:
        loss: What is differentiated, a scalar.
        flat: The parameters and their vector.

    Example:
        >>> line = nn.Linear(1, 1)
        >>> flat = FlatParameters(line)
        >>> flat_gradient(flat.vector.sum() + 2.0 * line.weight.sum(), flat)
        tensor([3., 1.])
    """
    gradient, *others = torch.autograd.grad(loss, [flat.vector, *flat.parameters], allow_unused=True)
    if any(other is not None for other in others):
        pairs = zip(flat.parameters, others, strict=True)
        joined = flat.join([torch.zeros_like(value) if other is None else other for value, other in pairs])
        gradient = joined if gradient is None else gradient + joined

    return torch.zeros_like(flat.vector) if gradient is None else gradient


def clip_flat(gradient: Tensor) -> bool:
    """Clip a gradient in place, as :func:`clipped`; whether it is finite, if not nothing happens.

    Arguments:
        gradient: One vector.

    Example:
        >>> gradient = torch.tensor([3.0, 4.0])
        >>> clip_flat(gradient), gradient
        (True, tensor([0.6000, 0.8000]))
    """
    norm = gradient.norm().item()
    if not math.isfinite(norm):
        return False
    if norm > _MAX_GRADIENT_NORM:
        # Torch's own clipping adds the same to the norm.
        gradient *= _MAX_GRADIENT_NORM / (norm + 1e-6)

    return True

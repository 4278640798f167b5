"""The parameters of a module as views of one vector, so that what is done to all of them is one operation.

An optimiser's step, a moving average, clipping and the question whether a gradient is finite ask nothing of shapes. On
thirty-five small tensors each of them is thirty-five times the work of its bookkeeping.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FlatParameters:
    """The parameters of a module, which from now on are views of one vector.

    Whatever changes a parameter in place, such as ``load_state_dict``, changes the vector, and the other way round.

    Arguments:
        module: The module; its parameters have one type and one device.

    Example:
        >>> line = nn.Linear(2, 1)
        >>> flat = FlatParameters(line)
        >>> with torch.no_grad():
        ...     _ = flat.vector.fill_(3.0)
        >>> line.weight, line.bias
        (Parameter containing:
        tensor([[3., 3.]], requires_grad=True), Parameter containing:
        tensor([3.], requires_grad=True))
    """

    def __init__(self, module: nn.Module) -> None:
        self.parameters: list[Tensor] = list(module.parameters())
        self.vector = torch.cat([parameter.detach().flatten() for parameter in self.parameters]).requires_grad_()
        self._tie()

    def _tie(self) -> None:
        for parameter, view in zip(self.parameters, self.views(self.vector.detach()), strict=True):
            parameter.data = view
        self._places = [parameter.data_ptr() for parameter in self.parameters]

    def keep(self) -> bool:
        """Make sure that parameters are views of the vector; whether they had been moved elsewhere, with new values.

        ``module.to(device)`` and ``module.load_state_dict(..., assign=True)`` give a module other memory.
        """
        if [parameter.data_ptr() for parameter in self.parameters] == self._places:
            return False
        self.vector = self.join(self.parameters).requires_grad_()
        self._tie()

        return True

    def views(self, vector: Tensor) -> list[Tensor]:
        """A vector of as many numbers, seen as the parameters are shaped."""
        parts = vector.split([parameter.numel() for parameter in self.parameters])

        return [part.view(parameter.shape) for part, parameter in zip(parts, self.parameters, strict=True)]

    def join(self, values: list[Tensor]) -> Tensor:
        """One value for each parameter as one vector."""
        return torch.cat([value.detach().flatten() for value in values])

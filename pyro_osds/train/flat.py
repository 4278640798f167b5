"""The parameters of a module as views of one vector, so that what is done to all of them is one operation.

An optimiser's step, a moving average, clipping and the question whether a gradient is finite ask nothing of shapes. On
thirty-five small tensors each of them is thirty-five times the work of its bookkeeping.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyro_osds.runtime.light_adam import LightAdam
from pyro_osds.runtime.torch_internals import fused_adam


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


class FlatAdam(LightAdam):
    """Adam on the vector that parameters are views of: one operation, whatever their number.

    Options, schedules and the state that goes into files are those of torch's Adam on the parameters; the gradient is
    that of the vector.

    Arguments:
        flat: The parameters.
        lr: The learning rate.

    Example:
        >>> flat = FlatParameters(torch.nn.Linear(1, 1))
        >>> optimizer = FlatAdam(flat, lr=0.5)
        >>> before, flat.vector.grad = flat.vector.detach().clone(), torch.ones(2)
        >>> optimizer.step()
        >>> before - flat.vector.detach()
        tensor([0.5000, 0.5000])
    """

    def __init__(self, flat: FlatParameters, lr: float) -> None:
        super().__init__(flat.parameters, lr=lr, fused=True)
        self._flat = flat
        # First moments, second moments and the number of steps, once there has been one.
        self._moments: tuple[Tensor, Tensor, Tensor] | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One update by the gradient of the vector.

        Raises:
            ValueError: If there is a closure, which would have to set that gradient.
        """
        if closure is not None:
            raise ValueError("FlatAdam.step takes no closure: the gradient is that of the vector.")
        vector, group = self._flat.vector, self.param_groups[0]
        if self._moments is None:
            start = torch.zeros((), dtype=torch.float32, device=vector.device)
            self._hold(torch.zeros_like(vector), torch.zeros_like(vector), start)
        assert self._moments is not None and vector.grad is not None
        first, second, num_steps = self._moments
        beta1, beta2 = group["betas"]
        fused_adam(vector, vector.grad, first, second, num_steps, group["lr"], beta1, beta2, group["eps"])

    def _hold(self, first: Tensor, second: Tensor, num_steps: Tensor) -> None:
        """Keep moments as vectors, and their views where torch's Adam has its state."""
        self._moments = first, second, num_steps
        views = zip(self._flat.parameters, self._flat.views(first), self._flat.views(second), strict=True)
        for parameter, exp_avg, exp_avg_sq in views:
            self.state[parameter] = {"step": num_steps, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}

    def state_dict(self) -> dict[str, Any]:
        """The state of torch's Adam, in which each parameter counts its own steps."""
        state = super().state_dict()
        parts = {index: {**part, "step": part["step"].clone()} for index, part in state["state"].items()}

        return {**state, "state": parts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Stand where another Adam on such parameters stood, flat or not."""
        super().load_state_dict(state_dict)
        states = [self.state[parameter] for parameter in self._flat.parameters if parameter in self.state]
        if not states:
            self._moments = None
            return
        first, second = (self._flat.join([state[name] for state in states]) for name in ("exp_avg", "exp_avg_sq"))
        self._hold(first, second, states[0]["step"].detach().clone())

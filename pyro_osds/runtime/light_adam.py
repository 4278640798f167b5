"""Adam without what imports a compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pyro_osds.runtime.torch_internals import undecorated


class LightAdam(torch.optim.Adam):
    """Adam without its decorators for ``torch.compile``, which import TorchDynamo: two seconds at the first use.

    Example:
        >>> x = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = LightAdam([x], lr=0.5)
        >>> x.grad = torch.ones(1)
        >>> optimizer.step()
        >>> x.detach()
        tensor([0.5000])
    """

    add_param_group = undecorated(torch.optim.Adam.add_param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One update, as Adam's."""
        return undecorated(torch.optim.Adam.step)(self, closure)

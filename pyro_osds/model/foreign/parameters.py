"""Parameters of the model, ``pyro.param`` and those of modules: constants, with the values that they had first.

A posterior belongs to the values that it was fitted with. Later ones, an emptied parameter store among them, do not
reach it until the next run.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor


class Constants(Messenger):
    """Answers every ``pyro.param`` statement with the value that it had when it was first seen.

    Example:
        >>> import pyro
        >>> constants = Constants()
        >>> with constants:
        ...     before = pyro.param("scale", torch.tensor(1.0))
        >>> pyro.clear_param_store()
        >>> with constants:
        ...     pyro.param("scale", torch.tensor(2.0))
        tensor(1.)
    """

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[str, Tensor] = {}

    def _pyro_param(self, msg: Any) -> None:
        weights = [value for value in msg["args"][1:] if isinstance(value, torch.nn.Parameter)]
        if weights:
            # A module computes with its own weights, whatever the answer is; another one could end up inside it.
            msg["value"], msg["done"] = weights[0], True
        elif msg["name"] in self._values:
            msg["value"], msg["done"] = self._values[msg["name"]], True

    def _pyro_post_param(self, msg: Any) -> None:
        if msg["name"] not in self._values and not isinstance(msg["value"], torch.nn.Parameter):
            self._values[msg["name"]] = msg["value"].detach().clone()

r"""The network that steers a coupling block: a multilayer perceptron beside a linear map, conditioned on time and step.

.. math:: f(x, t, d) = A\,(x, t, d) + \mathrm{MLP}(x, t, d)

The linear part is what a hierarchical model needs where its scale goes to zero: the children's location then has to
match the parents' far more closely than a network of kinks learns to.
"""

from __future__ import annotations

from typing import cast

import torch
import zuko
from torch import Tensor, nn


class Conditioner(nn.Module):
    """Parameters of an elementwise map from the coordinates that stay fixed.

    Arguments:
        in_features: Number of fixed coordinates.
        out_features: Number of parameters.
        hidden_features: Width of the two hidden layers.

    Example:
        >>> network = Conditioner(2, 5, hidden_features=8)
        >>> network(torch.randn(3, 2), t=torch.zeros(3, 1), d=torch.ones(3, 1)).abs().sum()
        tensor(0., grad_fn=<SumBackward0>)
    """

    def __init__(self, in_features: int, out_features: int, hidden_features: int) -> None:
        super().__init__()
        # ReLU: on a CPU the smooth activations cost five times as much and did not raise the ELBO.
        self.curve = zuko.nn.MLP(in_features + 2, out_features, [hidden_features] * 2, activation=nn.ReLU)
        self.line = nn.Linear(in_features + 2, out_features, bias=False)
        # Zero heads: the untrained flow is the identity.
        head = cast("nn.Linear", self.curve[-1])
        for parameter in (head.weight, head.bias, self.line.weight):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, t: Tensor, d: Tensor) -> Tensor:
        """``(B, in_features)``, times and step sizes ``(B, 1)`` or ``(1, 1)``, to ``(B, out_features)``.

        Without fixed coordinates the parameters depend on time and step alone, and one row serves all.
        """
        rows = len(x) if x.shape[1] else max(len(t), len(d))
        inputs = torch.cat([x[:rows], t.expand(rows, 1), d.expand(rows, 1)], -1)

        return self.curve(inputs) + self.line(inputs)

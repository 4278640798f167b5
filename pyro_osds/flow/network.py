r"""The network that steers a coupling block: a multilayer perceptron beside a linear map, conditioned on time and step.

.. math:: f(x, t, d) = A\,(x, t, d) + \mathrm{MLP}(x, t, d)

The linear part is what a hierarchical model needs where its scale goes to zero: the children's location then has to
match the parents' far more closely than a network of kinks learns to. Between very many coordinates :math:`A` has a low
rank, so that weights and time grow linearly with their number.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from pyro_osds.runtime.torch_internals import unchanged_validation

# Importing zuko turns the checks of all torch distributions off.
with unchanged_validation():
    import zuko

# Weights from which on the linear part goes through as few features as the other one.
_MAX_WEIGHTS = 2**17


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
        self.line = _line(in_features + 2, out_features, hidden_features)
        # Zero heads: the untrained flow is the identity.
        head = cast("nn.Linear", self.curve[-1])
        for parameter in (head.weight, head.bias, list(self.line.parameters())[-1]):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, t: Tensor, d: Tensor) -> Tensor:
        """``(B, in_features)``, times and step sizes ``(B, 1)`` or ``(1, 1)``, to ``(B, out_features)``.

        Without fixed coordinates the parameters depend on time and step alone, and one row serves all.
        """
        rows = len(x) if x.shape[1] else max(len(t), len(d))
        inputs = torch.cat([x[:rows], t.expand(rows, 1), d.expand(rows, 1)], -1)

        return self.curve(inputs) + self.line(inputs)


def _line(in_features: int, out_features: int, rank: int) -> nn.Module:
    """A linear map; of this rank at most, where it would be large."""
    if in_features * out_features <= _MAX_WEIGHTS:
        return nn.Linear(in_features, out_features, bias=False)

    return nn.Sequential(nn.Linear(in_features, rank, bias=False), nn.Linear(rank, out_features, bias=False))


class ControlNetwork(nn.Module):
    r"""The teacher's control: free in form, conditioned on time and step size, helped by guidance.

    .. math:: r(x, t, d) = \mathrm{MLP}(x, t, d) + g(t, d)\, \mathrm{guidance}

    The heads start at zero and the gate :math:`g` at one.

    Arguments:
        dim: The number of coordinates.
        hidden_features: Width of the hidden layers.
        num_frequencies: Frequencies of the time features.

    Example:
        >>> network = ControlNetwork(2)
        >>> guidance = torch.randn(3, 2)
        >>> r = network(torch.randn(3, 2), torch.zeros(1, 1), torch.ones(1, 1), guidance)
        >>> torch.equal(r, guidance)
        True

    Source: the step-conditioned network of arXiv 2512.05251.
    """

    frequencies: Tensor

    def __init__(self, dim: int, hidden_features: int = 128, num_frequencies: int = 4) -> None:
        super().__init__()
        num_time_features = 2 * num_frequencies + 2
        self.curve = zuko.nn.MLP(dim + num_time_features, dim, [hidden_features] * 3, activation=nn.SiLU)
        self.gate = zuko.nn.MLP(num_time_features, dim, [hidden_features], activation=nn.SiLU)
        self.register_buffer("frequencies", 0.5 * torch.pi * 2.0 ** torch.arange(num_frequencies))
        for head in (self.curve[-1], self.gate[-1]):
            nn.init.zeros_(cast("nn.Linear", head).weight)
            nn.init.zeros_(cast("nn.Linear", head).bias)

    def forward(self, x: Tensor, t: Tensor, d: Tensor, guidance: Tensor) -> Tensor:
        """Points and guidance ``(B, dim)``, times and steps ``(B, 1)`` or ``(1, 1)``, to the control ``(B, dim)``."""
        x, t, d, guidance = (value.to(self.frequencies) for value in (x, t, d, guidance))
        t, d = torch.broadcast_tensors(t, d)
        angles = t * self.frequencies
        time = torch.cat([t, d, angles.sin(), angles.cos()], -1)

        return self.curve(torch.cat([x, time.expand(len(x), -1)], -1)) + (1.0 + self.gate(time)) * guidance

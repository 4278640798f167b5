r"""The weights of a flow as they are multiplied: biases and scalings folded into the matrices beside them.

.. math::
    W x + b = \begin{pmatrix} W & b \end{pmatrix} \begin{pmatrix} x \\ 1 \end{pmatrix}, \qquad
    A\,x + V h + c = \begin{pmatrix} V & c & A \end{pmatrix} \begin{pmatrix} h \\ 1 \\ x \end{pmatrix}

The one that a bias is a factor of is a row of what goes in, and each layer hands it on to the next. The step size,
which parameters of a block are multiplied by, and the bound of log scales are factors of the last matrix. All of it is
one gather from the vector of weights, and its gradient one gather back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor

from pyro_osds.flow.coupling import MAX_LOG_SCALE, CouplingBlock, FlowMap


class Folded(NamedTuple):
    """The matrices of one block with ``F`` fixed coordinates, whose network has ``H`` wide layers and ``P`` outputs.

    Arguments:
        first: First layer, ``(H + 1, F + 3)``: fixed coordinates, time, step size, one.
        second: Second layer, ``(H + 1, H + 1)``.
        head: Last layer and linear map side by side, ``(P, H + 1 + F + 3)``; where the linear map is a product, its
            left factor, ``(P, H + 1 + R)``.
        first_back: The first layer for fixed coordinates, transposed, ``(F, H + 1)``.
        second_back: The second layer, transposed.
        head_back: The head transposed, without time, step size and one.
        line: Right factor of a linear map that is a product, ``(R, F + 3)``.
        line_back: The same for fixed coordinates, transposed, ``(F, R)``.
    """

    first: Tensor
    second: Tensor
    head: Tensor
    first_back: Tensor
    second_back: Tensor
    head_back: Tensor
    line: Tensor | None = None
    line_back: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """All of them in a row."""
        return [matrix for matrix in self if matrix is not None]


class Folding:
    """A place for the folded weights of a flow; its matrices are views of one vector that :meth:`fill` writes.

    Arguments:
        flow: The flow map.
        d: Step size.
    """

    def __init__(self, flow: FlowMap, d: float) -> None:
        blocks = cast("list[CouplingBlock]", list(flow.blocks))
        device, start = flow.layout_steps.device, 0
        places, factors = [], []
        for block in blocks:
            for place, factor in _of_block(block, start, d):
                places.append(place)
                factors.append(factor)
            start += sum(parameter.numel() for parameter in block.parameters())
        place = torch.cat([part.flatten() for part in places])
        is_weight = place >= 0
        factor = torch.cat([part.flatten() for part in factors])
        back = torch.empty(start, dtype=torch.long)
        back[place[is_weight]] = is_weight.nonzero().squeeze(1)
        self._take, self._back = place.clamp(min=0).to(device), back.to(device)
        self._factor = torch.where(is_weight, factor, 0.0).to(device=device, dtype=flow.dtype)
        self._constant = torch.where(is_weight, 0.0, factor).to(device=device, dtype=flow.dtype)
        self._factor_back = self._factor[self._back]
        self.vector = self._constant.clone()
        parts = iter(self.vector.split([part.numel() for part in places]))
        shapes = iter(part.shape for part in places)
        self.matrices = [_views(block, parts, shapes) for block in blocks]

    def fill(self, weights: Tensor) -> None:
        """Fold weights, one vector in the order of the flow's parameters."""
        torch.addcmul(self._constant, weights.index_select(0, self._take), self._factor, out=self.vector)

    def gradient(self, folded: Tensor) -> Tensor:
        """The gradient for weights from that for folded ones, matrix after matrix."""
        return folded.index_select(0, self._back).mul_(self._factor_back)


def _of_block(block: CouplingBlock, start: int, d: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Where each entry of a block's matrices comes from, ``-1`` where it is a constant; and its factor or value."""
    places, start = [], start
    for parameter in block.network.parameters():
        places.append(torch.arange(start, start + parameter.numel()).view(parameter.shape))
        start += parameter.numel()
    w1, b1, w2, b2, w3, b3, *line = places
    yield _with_row(torch.cat([w1, b1[:, None]], 1))
    yield _with_row(torch.cat([w2, b2[:, None]], 1))
    none = torch.full((len(line[0]), 1), -1)
    first_line = torch.cat([line[0], none], 1)
    head = torch.cat([w3, b3[:, None], line[1] if len(line) > 1 else first_line], 1)
    factor = torch.full(head.shape, d, dtype=torch.float64)
    factor[block.num_moving : 2 * block.num_moving] /= MAX_LOG_SCALE
    yield head, torch.where(head < 0, 0.0, factor)
    if len(line) > 1:
        yield first_line, torch.where(first_line < 0, 0.0, 1.0).double()


def _with_row(place: Tensor) -> tuple[Tensor, Tensor]:
    """A layer with one more row, which hands the one on."""
    place = torch.cat([place, torch.full((1, place.shape[1]), -1)])
    factor = torch.ones(place.shape, dtype=torch.float64)
    factor[-1, :-1] = 0.0

    return place, factor


def _views(block: CouplingBlock, parts: Iterator[Tensor], shapes: Iterator[torch.Size]) -> Folded:
    num_matrices = 3 + (len(list(block.network.line.parameters())) > 1)
    first, second, head, *line = (next(parts).view(next(shapes)) for _ in range(num_matrices))
    fixed = block.num_fixed
    if line:
        return Folded(first, second, head, first[:, :fixed].mT, second.mT, head.mT, line[0], line[0][:, :fixed].mT)

    return Folded(first, second, head, first[:, :fixed].mT, second.mT, head[:, : len(second) + fixed].mT)

r"""The leap with its score, and the gradient for the weights, in closed form: some fifty operations for each block.

With :math:`y_b = e^{s} h(x_b) + m` and cotangents *v* of the points and *c* of the log-determinants,

.. math::
    \bar m = v_b, \qquad \bar s = v_b\, h(x_b)\, e^{s} + c, \qquad
    v_a \leftarrow v_a + \big(\partial_{x_a} \mathrm{network}\big)^{\!\top} (\bar m, \bar s, \bar\theta),

and the score of the density goes through the same formula with :math:`v = g_b'`, :math:`c = 1`. Autograd would record
the way there and make thrice as many operations of it.

Points are columns here and coordinates are rows, in the order (moving, fixed) of each block, with time, step size and
one as three more rows: what steers a block is then one piece of memory, and so is each part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pyro_osds.flow import curve
from pyro_osds.flow.coupling import MAX_LOG_SCALE, SPLINE_BOUND, CouplingBlock, FlowMap
from pyro_osds.flow.folding import Folded, Folding

# Rows below the coordinates: time, step size, and the one that biases are factors of.
_NUM_CONSTANTS = 3


class _Hidden(NamedTuple):
    """What a network made of its input ``(F + 3, B)``: first layer, the narrow line if it has one, and the rest."""

    inputs: Tensor
    first: Tensor
    second: Tensor
    end: Tensor


class _Block(NamedTuple):
    """What one block leaves for its gradient; the last two are empty where it has no curve.

    Arguments:
        hidden: What its network leaves.
        rate: What a log scale gains for each unit of its parameter.
        scale: The factor of the affine part.
        bent: Moving coordinates behind the curve.
        knots: Bins of the curve.
        curved: The points on it.
    """

    hidden: _Hidden
    rate: Tensor
    scale: Tensor
    bent: Tensor
    knots: curve.Knots | None
    curved: curve.Curved | None


class Passes:
    """Forward and backward passes of a flow, without autograd.

    Arguments:
        flow: The flow map.
        t: Time.
        d: Step size.
    """

    def __init__(self, flow: FlowMap, t: float, d: float) -> None:
        self._blocks = cast("list[CouplingBlock]", list(flow.blocks))
        self._dim, self._d = flow.dim, d
        constants = [[t], [d], [1.0]]
        self._constants = torch.tensor(constants, dtype=flow.dtype, device=flow.layout_steps.device)
        self._max_log_scale = self._constants.new_tensor(MAX_LOG_SCALE)
        self._one = self._constants[2:]
        bins = {block.num_bins for block in self._blocks if block.num_bins}
        self._bending = {num_bins: curve.bending(num_bins, self._constants) for num_bins in bins}
        self._moves = _moves(flow)

    # ---- forward ----

    def forward_with_score(
        self, weights: Sequence[Folded], x: Tensor, score: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, list[_Block]]:
        """As :meth:`FlowMap.forward_with_score`, and what the gradient needs.

        Arguments:
            weights: Those of each block.
            x: Points, ``(B, D)``.
            score: The score of their density, ``(B, D)``.
        """
        like = self._constants
        state = torch.cat([score.to(like).mT, x.to(like).mT, like.expand(-1, len(x))])
        kept, log_slopes = [], []
        for block, at, move in zip(self._blocks, weights, self._moves, strict=False):
            state = move.forward(state) if not kept else state
            num_inputs = block.num_fixed + _NUM_CONSTANTS
            parts = state.split([block.num_moving, block.num_fixed, block.num_moving, num_inputs])
            score_moving, score_fixed, moving, inputs = parts
            moved, log_slope, block_kept = self._forward(block, at, moving, inputs)
            scores = self._carry(block, at, block_kept, score_moving, score_fixed)
            state = self._moves[len(kept) + 1].joined(*scores, moved, inputs)
            log_slopes.append(log_slope)
            kept.append(block_kept)
        score, x, _ = state.split([self._dim, self._dim, _NUM_CONSTANTS])
        log_abs_det = torch.cat(log_slopes).sum(0, dtype=torch.float64)

        return x.mT, log_abs_det, score.mT, kept

    def forward(self, weights: Sequence[Folded], x: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`FlowMap.forward`, without gradients: points ``(B, D)`` and log-determinants ``(B,)``.

        Arguments:
            weights: Those of each block.
            x: Points, ``(B, D)``.
        """
        like = self._constants
        state = torch.cat([x.to(like).mT, like.expand(-1, len(x))])
        log_slopes = []
        for block, at, move in zip(self._blocks, weights, self._moves, strict=False):
            state = move.points(state)
            moving, inputs = state.split([block.num_moving, block.num_fixed + _NUM_CONSTANTS])
            log_slope = self._move(block, at, moving, inputs)
            log_slopes.append(log_slope.expand_as(moving).sum(0, dtype=torch.float64))
        state = self._moves[-1].points(state)

        return state[: self._dim].mT, torch.stack(log_slopes).sum(0)

    def _move(self, block: CouplingBlock, at: Folded, moving: Tensor, inputs: Tensor) -> Tensor:
        """Move the moving rows where they lie, by the operations of :meth:`_forward`; their log slopes, or one column.

        Nothing is kept for a gradient, so that each large matrix is written once and never copied.
        """
        parameters = _network_in_place(at, inputs if block.num_fixed else inputs[:, :1])
        num = block.num_moving
        shift, log_slope, rest = parameters.split([num, num, len(parameters) - 2 * num])
        log_slope = log_slope.tanh_().mul_(MAX_LOG_SCALE)
        scale, bent = log_slope.exp(), moving
        if block.num_bins:
            bending = self._bending[block.num_bins]
            knots = curve.knots(rest.unflatten(0, (num, -1)), bending, SPLINE_BOUND, block.tail_offset, self._d)
            curved = curve.curve(moving, knots, SPLINE_BOUND)
            bent, log_slope = curved.y, curved.slope.log() + log_slope
        torch.addcmul(shift, bent, scale, out=moving)

        return log_slope

    def _forward(
        self, block: CouplingBlock, at: Folded, moving: Tensor, inputs: Tensor
    ) -> tuple[Tensor, Tensor, _Block]:
        # Without fixed coordinates one column serves all points.
        hidden, parameters = _network(at, inputs if block.num_fixed else inputs[:, :1])
        num = block.num_moving
        shift, log_scale, rest = parameters.split([num, num, len(parameters) - 2 * num])
        bounded = log_scale.tanh()
        rate = torch.addcmul(self._max_log_scale, bounded, bounded, value=-MAX_LOG_SCALE)
        log_slope = bounded * MAX_LOG_SCALE
        scale = log_slope.exp()
        if not block.num_bins:
            moved = torch.addcmul(shift, moving, scale)
            return moved, log_slope.expand_as(moving), _Block(hidden, rate, scale, moving, None, None)
        bending = self._bending[block.num_bins]
        knots = curve.knots(rest.unflatten(0, (num, -1)), bending, SPLINE_BOUND, block.tail_offset, self._d)
        curved = curve.curve(moving, knots, SPLINE_BOUND)
        moved, log_slope = torch.addcmul(shift, curved.y, scale), curved.slope.log() + log_slope

        return moved, log_slope, _Block(hidden, rate, scale, curved.y, knots, curved)

    def _carry(
        self, block: CouplingBlock, at: Folded, kept: _Block, moving: Tensor, fixed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The score of the density after a block, moving and fixed part, from that before."""
        if kept.curved is not None:
            moving = (moving - curve.curvature(kept.curved)) / kept.curved.slope
        after = moving / kept.scale
        if not block.num_fixed:
            return after, fixed
        # The gradient of sum(after * y + log slope) for the fixed coordinates.
        rate, rest = torch.addcmul(kept.rate, kept.rate * moving, kept.bent), None
        if kept.curved is not None and kept.knots is not None:
            rest = curve.pull(kept.curved, kept.knots, SPLINE_BOUND, moving, self._one)[1]
        first, _, _, through = _pulled(at, kept.hidden, _stacked(after, rate, rest))

        return after, torch.addmm(fixed, at.first_back, first, alpha=-1.0).sub_(through)

    # ---- backward ----

    def backward(
        self, weights: Sequence[Folded], kept: Sequence[_Block], points: Tensor, log_abs_det: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of points and log-determinants, times what each of them counts.

        Arguments:
            weights: Those of each block, as for the pass forward.
            kept: What that left.
            points: What a unit of each new point counts, ``(B, D)``.
            log_abs_det: What a nat of each log-determinant counts, ``(B,)``.

        Returns:
            The gradient for the folded weights as one vector, block by block, and that for the points that came in,
            ``(B, D)``.
        """
        v, c = points.to(self._constants).mT, log_abs_det.to(self._constants)[None]
        v = self._moves[-1].backward(v)
        gradients: list[list[Tensor]] = []
        for index in reversed(range(len(self._blocks))):
            parts, found = self._backward(self._blocks[index], weights[index], kept[index], v, c)
            gradients.insert(0, found)
            v = self._moves[index].apart(*parts)

        return torch.cat([value.flatten() for found in gradients for value in found]), v.mT

    def _backward(
        self, block: CouplingBlock, at: Folded, kept: _Block, v: Tensor, c: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        moving, fixed = v.split([block.num_moving, block.num_fixed])
        before, rest = moving * kept.scale, None
        rate = torch.addcmul(c, before, kept.bent) * kept.rate
        if kept.curved is not None and kept.knots is not None:
            before, rest = curve.pull(kept.curved, kept.knots, SPLINE_BOUND, before, c)
        if not block.num_fixed:
            moving, rate = moving.sum(1, keepdim=True), rate.sum(1, keepdim=True)
        parameters = _stacked(moving, rate, rest)
        first, second, line, through = _pulled(at, kept.hidden, parameters)
        found = _for_weights(kept.hidden, first, second, line, parameters)
        if not block.num_fixed:
            return [before], found

        return [before, torch.addmm(fixed, at.first_back, first).add_(through)], found


class WithoutGradients:
    """A flow map as it is now, for draws alone: the same map in half the time.

    What depends on the sizes of a flow alone is kept with the flow, and the weights are folded at each call.

    Arguments:
        flow: The flow map.

    Example:
        >>> flow, x = FlowMap(2), torch.randn(5, 2)
        >>> torch.allclose(WithoutGradients(flow)(x)[0], flow(x)[0], atol=1e-5)
        True
    """

    def __init__(self, flow: FlowMap) -> None:
        self._flow = flow

    @torch.no_grad()
    def __call__(self, x: Tensor, t: float = 0.0, d: float = 1.0) -> tuple[Tensor, Tensor]:
        """As :meth:`FlowMap.forward`, without gradients."""
        flow = self._flow
        kind = t, d, flow.dtype, flow.layout_steps.device
        known = _KNOWN.setdefault(flow, {})
        if kind not in known:
            known[kind] = Passes(flow, t, d), Folding(flow, d)
        passes, folding = known[kind]
        folding.fill(torch.cat([parameter.flatten() for parameter in flow.parameters()]))

        return passes.forward(folding.matrices, x)


# By flow, as long as it lives; copies, pickles and other processes begin anew.
_KNOWN: WeakKeyDictionary[FlowMap, dict[Any, tuple[Passes, Folding]]] = WeakKeyDictionary()


def _stacked(shift: Tensor, rate: Tensor, rest: Tensor | None) -> Tensor:
    """What the network's parameters count, ``(P, B)``, from what shifts, log scales and curves do."""
    return torch.cat([shift, rate] if rest is None else [shift, rate, rest.flatten(0, 1)])


# ---- the network ----


def _network(at: Folded, inputs: Tensor) -> tuple[_Hidden, Tensor]:
    """Hidden layers and parameters ``(P, B)`` of inputs ``(F + 3, B)``."""
    first = (at.first @ inputs).relu_()
    second = (at.second @ first).relu_()
    end = torch.cat([second, inputs if at.line is None else at.line @ inputs])

    return _Hidden(inputs, first, second, end), at.head @ end


def _network_in_place(at: Folded, inputs: Tensor) -> Tensor:
    """The parameters that :func:`_network` gives, of which nothing is kept."""
    first, width = (at.first @ inputs).relu_(), len(at.second)
    line = inputs if at.line is None else at.line @ inputs
    end = first.new_empty((width + len(line), inputs.shape[1]))
    torch.mm(at.second, first, out=end[:width]).relu_()
    end[width:] = line

    return at.head @ end


def _pulled(at: Folded, hidden: _Hidden, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the layers count before their activation, the first, the second, and the line; and inputs by the line."""
    second, line = (at.head_back @ parameters).split([len(hidden.second), len(at.head_back) - len(hidden.second)])
    second = torch.ops.aten.threshold_backward(second, hidden.second, 0.0)
    first = torch.ops.aten.threshold_backward(at.second_back @ second, hidden.first, 0.0)

    return first, second, line, line if at.line_back is None else at.line_back @ line


def _for_weights(hidden: _Hidden, first: Tensor, second: Tensor, line: Tensor, parameters: Tensor) -> list[Tensor]:
    """Gradients for the folded weights, in their order."""
    inputs = hidden.inputs.mT
    found = [first @ inputs, second @ hidden.first.mT, parameters @ hidden.end.mT]

    return found if len(hidden.end) == len(hidden.second) + len(hidden.inputs) else [*found, line @ inputs]


# ---- from the layout of one block to that of the next ----


class _Move:
    """Rows in another order; where two blocks change roles, two pieces change places, and nothing is looked up.

    Arguments:
        before: The coordinates in their present order.
        after: In the new order.
        swap: Moving and fixed coordinates of the block before, where these change roles.
        device: Where the rows are.
    """

    def __init__(self, before: list[int], after: list[int], swap: tuple[int, int] | None, device: torch.device) -> None:
        self._swap, self._is_same = swap, before == after
        place = {coordinate: row for row, coordinate in enumerate(before)}
        order, dim = [place[coordinate] for coordinate in after], len(before)
        constants = range(dim, dim + _NUM_CONSTANTS)
        points = [*order, *constants]
        self._points = torch.tensor(points, device=device)
        self._rows = torch.tensor([*order, *(dim + row for row in points)], device=device)
        self._back = torch.tensor(order, device=device).argsort()

    def forward(self, state: Tensor) -> Tensor:
        """Scores, points and constants, ``(2 D + 3, B)``, laid out for the next block."""
        return state if self._is_same else state.index_select(0, self._rows)

    def joined(self, score_moving: Tensor, score_fixed: Tensor, moving: Tensor, inputs: Tensor) -> Tensor:
        """The same of what a block leaves."""
        if self._swap is None:
            return self.forward(torch.cat([score_moving, score_fixed, moving, inputs]))
        fixed, constants = inputs.split([self._swap[1], _NUM_CONSTANTS])

        return torch.cat([score_fixed, score_moving, fixed, moving, constants])

    def points(self, state: Tensor) -> Tensor:
        """Points and constants alone, ``(D + 3, B)``."""
        return state if self._is_same else state.index_select(0, self._points)

    def backward(self, v: Tensor) -> Tensor:
        """Cotangents of points, ``(D, B)``, laid out as they were before."""
        return v if self._is_same else v.index_select(0, self._back)

    def apart(self, *parts: Tensor) -> Tensor:
        """The same of those of a block's moving and fixed coordinates."""
        if self._swap is not None:
            return torch.cat(parts[::-1])

        return self.backward(parts[0] if len(parts) == 1 else torch.cat(parts))


def _moves(flow: FlowMap) -> list[_Move]:
    """From the user's order to that of the first block, and so on, back to the user's."""
    blocks = cast("list[CouplingBlock]", list(flow.blocks))
    present = list(range(flow.dim))
    layouts, sizes = [present], [(0, flow.dim)]
    for block, step in zip(blocks, flow.layout_steps.tolist(), strict=False):
        present = [present[row] for row in step]
        fixed, moving = present[: block.num_fixed], present[block.num_fixed :]
        layouts.append(moving + fixed)
        sizes.append((block.num_moving, block.num_fixed))
    layouts.append(list(range(flow.dim)))
    moves = []
    after_sizes = [*sizes[1:], sizes[-1][::-1]]
    for before, after, (first, second), (moving, _) in zip(layouts, layouts[1:], sizes, after_sizes, strict=False):
        # The order alone does not tell: the next block may cut the same row of coordinates elsewhere.
        is_swap = first > 0 and moving == second > 0 and before[first:] + before[:first] == after
        swap = (first, second) if is_swap else None
        moves.append(_Move(before, after, swap, flow.layout_steps.device))

    return moves

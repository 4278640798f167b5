r"""The student: a bijective flow map that leaps over a time step of any size.

.. math:: \Phi(x;\, t, d) \mapsto \big(x',\ \log|\det \partial x' / \partial x|\big), \qquad \Phi(x;\, t, 0) = x

Each coupling block leaves one part :math:`x_a` of the coordinates as it is and maps the other elementwise,

.. math:: x_b' = e^{d\,s(x_a, t, d)}\; \mathrm{RQS}\big(x_b;\ d\,\theta(x_a, t, d)\big) + d\,m(x_a, t, d),

a monotone rational-quadratic spline followed by an affine map. So every block is a bijection with a triangular
Jacobian, its log-determinant is a sum, its inverse is in closed form, and one leap from the base, ``t = 0, d = 1``,
costs one network evaluation per block and no integration.

Sources: coupling layers (Dinh et al. 2017), splines (Durkan et al. 2019), step conditioning (arXiv 2512.05251, 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyro_osds.flow.network import Conditioner, zuko
from pyro_osds.flow.tail import TailTransform
from pyro_osds.stats.gaussian import MANY_DIMENSIONS

# A block stretches or shrinks by exp(7), a factor of 1,100, at most: single precision keeps its digits.
MAX_LOG_SCALE = 7.0
# Splines are straight further out, where one of 5e8 draws of the base lies.
SPLINE_BOUND = 6.0
# An untrained tail has the weight softplus(-4) = 0.02: next to none, and still with a gradient.
_TAIL_OFFSET = 4.0
# In many dimensions even a little of a tail in each adds up, so there it begins with next to none.
_SMALL_TAIL_OFFSET = 8.0


class Spline(zuko.transforms.MonotonicRQSTransform):
    """Zuko's spline, whose way to broadcast makes torch import its symbolic algebra, a second at the first use."""

    def bin(self, k: Tensor) -> tuple[Tensor, ...]:
        """Whether bins ``k``, as many as points, are bins; their corners, the slopes there, and the mean slope."""
        inside = (k >= 0) & (k < self.bins)
        k = k % self.bins
        ends = torch.stack((k, k + 1))[..., None]
        knots = (self.horizontal, self.vertical, self.derivatives)
        x, y, d = (values.expand(*ends.shape[:-1], -1).gather(-1, ends).squeeze(-1) for values in knots)

        return inside, *x, *y, *d, (y[1] - y[0]) / (x[1] - x[0])


class _LaidOut(torch.autograd.Function):
    """Columns in another order; the gradient of an index adds up at each place, where a permutation takes it back."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        return x.index_select(-1, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        _, order, back = inputs
        ctx.save_for_backward(order, back)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        order, back = ctx.saved_tensors

        return lay_out(gradient, back, order), None, None


def lay_out(x: Tensor, order: Tensor, back: Tensor) -> Tensor:
    """The columns of ``x`` in another order, differentiable.

    Arguments:
        x: Points, ``(B, D)``.
        order: Which column comes at each place, a permutation, ``(D,)``.
        back: The inverse permutation, ``(D,)``.

    Example:
        >>> lay_out(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([2, 0, 1]), torch.tensor([1, 2, 0]))
        tensor([[3., 1., 2.]])
    """
    return cast("Tensor", _LaidOut.apply(x, order, back))


class CouplingBlock(nn.Module):
    """One bijective block on coordinates that are laid out as ``(fixed, moving)``.

    Arguments:
        num_fixed: Coordinates that stay as they are and steer the others.
        num_moving: Coordinates that move.
        hidden_features: Width of the conditioner's two hidden layers.
        num_bins: Spline bins; 0 leaves the affine part only.
    """

    def __init__(self, num_fixed: int, num_moving: int, hidden_features: int = 64, num_bins: int = 0) -> None:
        super().__init__()
        self.num_fixed = num_fixed
        self.num_moving = num_moving
        self.num_bins = num_bins
        self.tail_offset = _TAIL_OFFSET if num_fixed + num_moving < MANY_DIMENSIONS else _SMALL_TAIL_OFFSET
        per_coordinate = 2 + (2 + 3 * num_bins - 1 if num_bins else 0)
        self.network = Conditioner(num_fixed, num_moving * per_coordinate, hidden_features)

    def forward(self, fixed: Tensor, moving: Tensor, t: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """Where ``moving`` goes and the log of its slope, both ``(B, num_moving)``; ``t`` and ``d`` are ``(B, 1)``."""
        shift, log_scale, curve = self._elementwise(fixed, t, d)
        log_slope = log_scale
        if curve is not None:
            moving, log_curve_slope = curve.call_and_ladj(moving)
            log_slope = log_scale + log_curve_slope

        return torch.addcmul(shift, moving, log_scale.exp()), log_slope.expand_as(moving)

    def inverse(self, fixed: Tensor, moved: Tensor, t: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """What ``forward`` maps to ``moved``, and the log of the slope of ``forward`` there."""
        shift, log_scale, curve = self._elementwise(fixed, t, d)
        moving = (moved - shift) * (-log_scale).exp()
        if curve is None:
            return moving, log_scale.expand_as(moving)
        moving = cast("Tensor", curve.inv(moving))

        return moving, log_scale + curve.call_and_ladj(moving)[1]

    def _elementwise(
        self, fixed: Tensor, t: Tensor, d: Tensor
    ) -> tuple[Tensor, Tensor, zuko.transforms.ComposedTransform | None]:
        parameters = d * self.network(fixed, t, d)
        affine, rest = parameters[:, : 2 * self.num_moving], parameters[:, 2 * self.num_moving :]
        shift, log_scale = affine.chunk(2, -1)
        log_scale = MAX_LOG_SCALE * torch.tanh(log_scale / MAX_LOG_SCALE)
        if not self.num_bins:
            return shift, log_scale, None
        bins = self.num_bins
        widths, heights, slopes, tails = rest.unflatten(-1, (self.num_moving, -1)).split([bins, bins, bins - 1, 2], -1)
        spline = Spline(widths, heights, slopes, bound=SPLINE_BOUND)
        # Softplus keeps the tails' weights positive; the offset starts them near zero, the factor ends them at d = 0.
        weights = d[..., None] * nn.functional.softplus(tails - self.tail_offset)

        return shift, log_scale, zuko.transforms.ComposedTransform(spline, TailTransform(weights))


class FlowMap(nn.Module):
    """A chain of coupling blocks, bijective for every time and step size.

    Arguments:
        dim: The number of coordinates.
        groups: Sizes of consecutive groups of coordinates, parents before children; they add up to ``dim``.
        num_blocks: Coupling blocks.
        num_spline_blocks: How many of them, from the base on, have a spline part.
        hidden_features: Width of the conditioners.
        num_bins: Bins of each spline.

    Example:
        >>> flow = FlowMap(dim=3)
        >>> x = torch.randn(4, 3)
        >>> y, log_abs_det = flow(x, t=0.0, d=1.0)
        >>> back, _ = flow.inverse(y, t=0.0, d=1.0)
        >>> torch.allclose(back, x, atol=1e-5)
        True
    """

    layout_steps: Tensor
    layout_back: Tensor

    def __init__(
        self,
        dim: int,
        groups: Sequence[int] = (),
        num_blocks: int = 6,
        num_spline_blocks: int = 0,
        hidden_features: int = 64,
        num_bins: int = 8,
    ) -> None:
        super().__init__()
        self.dim = dim
        splits = coupling_splits(dim, groups, num_blocks)
        self.blocks = nn.ModuleList(
            CouplingBlock(len(fixed), len(moving), hidden_features, num_bins if index < num_spline_blocks else 0)
            for index, (fixed, moving) in enumerate(splits)
        )
        # Coordinates are laid out anew for each block, in one step from the layout of the block before.
        layouts = [list(range(dim)), *(fixed + moving for fixed, moving in splits), list(range(dim))]
        steps = [[place[i] for i in after] for place, after in zip(map(_places, layouts), layouts[1:], strict=False)]
        self.register_buffer("layout_steps", torch.tensor(steps, dtype=torch.long))
        self.register_buffer("layout_back", self.layout_steps.argsort(-1), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the networks, in which points are mapped; log-determinants are summed in double."""
        return next(self.parameters()).dtype

    def forward(self, x: Tensor, t: float | Tensor = 0.0, d: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
        """Leap from time ``t`` over a step ``d``: ``(B, D)`` to the new points and log-determinants ``(B,)``."""
        x = x.to(self.dtype)
        t, d = _column(t, x), _column(d, x)
        log_slopes = []
        for block, *step in self._chain():
            fixed, moving = lay_out(x, *step).split([block.num_fixed, block.num_moving], -1)
            moving, log_slope = block(fixed, moving, t, d)
            x = torch.cat([fixed, moving], -1)
            log_slopes.append(log_slope)

        return lay_out(x, *self._last_step), torch.cat(log_slopes, -1).sum(-1, dtype=torch.float64)

    def _chain(self) -> list[tuple[CouplingBlock, Tensor, Tensor]]:
        """Each block with the step of layout before it, and the step back."""
        blocks = cast("list[CouplingBlock]", list(self.blocks))

        return list(zip(blocks, self.layout_steps[:-1], self.layout_back[:-1], strict=True))

    @property
    def _last_step(self) -> tuple[Tensor, Tensor]:
        return self.layout_steps[-1], self.layout_back[-1]

    def inverse(self, y: Tensor, t: float | Tensor = 0.0, d: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
        """The points that the same leap maps to ``y``, and the log-determinants of the leap there."""
        y = y.to(self.dtype)
        t, d = _column(t, y), _column(d, y)
        y = lay_out(y, *reversed(self._last_step))
        log_slopes = []
        for block, step, back in reversed(self._chain()):
            fixed, moved = y.split([block.num_fixed, block.num_moving], -1)
            moving, log_slope = block.inverse(fixed, moved, t, d)
            y = lay_out(torch.cat([fixed, moving], -1), back, step)
            log_slopes.append(log_slope)

        return y, torch.cat(log_slopes, -1).sum(-1, dtype=torch.float64)

    def forward_with_score(
        self, x: Tensor, score: Tensor, t: float | Tensor = 0.0, d: float | Tensor = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        r"""The leap, and the score of the density that it carries along, without an inverse.

        With :math:`y_b = h(x_b; x_a)` and slope :math:`h'`, the score :math:`g` of the density before a block becomes

        .. math::
            g_b' = (g_b - \partial_b \log h') / h', \qquad
            g_a' = g_a - \nabla_{x_a} \textstyle\sum \big( \bar g_b'\, h(x_b; x_a) + \log h' \big).

        Arguments:
            x: Points, ``(B, D)``.
            score: Score of their density, ``(B, D)``.
            t: Time.
            d: Step size.

        Returns:
            The new points and log-determinants, differentiable with respect to the weights, and the scores, detached.

        Source: recursion for path gradients, Vaitl et al. 2024 (arXiv 2403.15881).
        """
        x, score = x.to(self.dtype), score.to(self.dtype)
        t, d = _column(t, x), _column(d, x)
        log_slopes = []
        for block, *step in self._chain():
            sizes = [block.num_fixed, block.num_moving]
            x = x if x.requires_grad else x.detach().requires_grad_()
            fixed, moving = lay_out(x, *step).split(sizes, -1)
            moved, log_slope = block(fixed, moving, t, d)
            score_fixed, score_moving = lay_out(score, *step).split(sizes, -1)
            score_moving = score_moving * (-log_slope.detach()).exp()
            if block.num_bins:
                (curvature,) = torch.autograd.grad(log_slope.sum(), moving, retain_graph=True)
                score_moving = score_moving - curvature * (-log_slope.detach()).exp()
            if block.num_fixed:
                # As a sum: gradients that are given as tensors make torch import its symbolic algebra.
                pulled = (moved * score_moving).sum() + log_slope.sum()
                score_fixed = score_fixed - torch.autograd.grad(pulled, fixed, retain_graph=True)[0]
            x, score = torch.cat([fixed, moved], -1), torch.cat([score_fixed, score_moving], -1)
            log_slopes.append(log_slope)

        last = self._last_step

        return lay_out(x, *last), torch.cat(log_slopes, -1).sum(-1, dtype=torch.float64), lay_out(score, *last)


def coupling_splits(dim: int, groups: Sequence[int], num_blocks: int) -> list[tuple[list[int], list[int]]]:
    """Which coordinates steer which, block by block.

    The first block moves every coordinate by itself. The last one lets parents steer their children, as the model does,
    the one before it the other way round; those between split at random, in both directions, so that coordinates meet.

    Arguments:
        dim: The number of coordinates.
        groups: Sizes of consecutive groups, parents first.
        num_blocks: How many splits.

    Returns:
        Pairs of index lists, ``(condition, transform)``.

    Example:
        >>> coupling_splits(4, groups=[1, 3], num_blocks=3)
        [([], [0, 1, 2, 3]), ([1, 2, 3], [0]), ([0], [1, 2, 3])]
    """
    everything = list(range(dim))
    if dim == 1:
        return [([], [0])]
    boundary = _site_boundary(dim, groups)
    generator = torch.Generator().manual_seed(0)
    splits = [(everything[:boundary], everything[boundary:]), (everything[boundary:], everything[:boundary])]
    while len(splits) < num_blocks - 1:
        shuffled = torch.randperm(dim, generator=generator, device="cpu").tolist()
        first, second = sorted(shuffled[: dim // 2]), sorted(shuffled[dim // 2 :])
        splits += [(first, second), (second, first)]

    splits = splits[: num_blocks - 1] + [([], everything)]

    return splits[::-1]


def _site_boundary(dim: int, groups: Sequence[int]) -> int:
    """The boundary between sites that lies before the largest group, or the middle where there is one group."""
    if len(groups) < 2:
        return dim // 2
    largest = max(range(1, len(groups)), key=lambda index: groups[index])

    return sum(groups[:largest])


def _places(layout: Sequence[int]) -> dict[int, int]:
    return {index: place for place, index in enumerate(layout)}


def _column(value: float | Tensor, like: Tensor) -> Tensor:
    """A time or step size as a column: ``(1, 1)`` if all rows share it, else ``(B, 1)``."""
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).reshape(-1, 1)

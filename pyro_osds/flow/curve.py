r"""The curve of a coupling block, a spline with tails, in closed form: values, slopes, curvature and gradients.

.. math::
    y = y_0 + h\,\frac{A}{B}, \qquad \frac{dy}{dx} = \frac{s^2 N}{B^2}, \qquad \xi = \frac{x - x_0}{w}, \quad s = h / w,

with :math:`A = s\xi^2 + d_0\,\xi(1-\xi)`, :math:`B = s + (d_0 + d_1 - 2s)\,\xi(1-\xi)` and
:math:`N = d_1\xi^2 + 2s\,\xi(1-\xi) + d_0(1-\xi)^2` in a bin of width *w* and height *h*; then the tails
:math:`y + \kappa_\pm\, y\,|y|`. It is the same map as :class:`~pyro_osds.flow.coupling.Spline` before
:class:`~pyro_osds.flow.tail.TailTransform`. Rows are coordinates here and columns are points, so that a coordinate lies
in one piece of memory; autograd is not asked.

Source: splines, Durkan et al. 2019 (arXiv 1906.04032), eqs. 4 and 5.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

# Slopes of a bin, and at a knot, lie within this factor of one, as those of zuko's spline.
_STEEPEST = -math.log(1e-3)


class Knots(NamedTuple):
    """Bins of each coordinate, and what their gradients need; ``P`` is 1, or the number of points.

    Arguments:
        bins: Left end, lower end, width, height, slope left and right of each bin, ``(M, 6, K, P)``.
        shares: Widths and heights as shares of the whole, ``(M, 2, K, P)``.
        bent: What divides parameters of widths, heights and slopes, ``(M, 3 K - 1, P)``.
        slopes: Slopes at inner knots, ``(M, K - 1, P)``.
        tails: Weights of the tails, left and right, ``(M, 2, P)``.
        tail_rates: What the weights gain for each unit of their parameters.
    """

    bins: Tensor
    shares: Tensor
    bent: Tensor
    slopes: Tensor
    tails: Tensor
    tail_rates: Tensor


class Curved(NamedTuple):
    """Points on their curves, ``(M, B)`` each, and what gradients need of the way there.

    Arguments:
        y: Where the curve, tails included, leads.
        slope: Its slope there.
        index: The bin of each point, shaped as a gather from the bins needs it.
        parts: Everything in between.
    """

    y: Tensor
    slope: Tensor
    index: Tensor
    parts: tuple[Tensor, ...]


def bending(num_bins: int, like: Tensor) -> Tensor:
    """How parameters of widths, heights and slopes are bent, so that bins stay wide enough, ``(2, 1, 3 K - 1, 1)``.

    A parameter *a* is divided by the first one plus the second one times its size.

    Arguments:
        num_bins: The number of bins *K*.
        like: A tensor of the type and on the device.
    """
    rates = [2.0 / _STEEPEST] * (2 * num_bins) + [1.0 / _STEEPEST] * (num_bins - 1)

    return like.new_tensor([[1.0] * len(rates), rates])[:, None, :, None]


def knots(parameters: Tensor, bending: Tensor, bound: float, tail_offset: float, d: float) -> Knots:
    """Bins and tails from a network's parameters.

    Arguments:
        parameters: Widths, heights, inner slopes and tails of each coordinate, ``(M, 3 K + 1, P)``.
        bending: That of *K* bins.
        bound: Where the spline ends, on either side.
        tail_offset: What is taken off the parameters of tails.
        d: The step size, which is a factor of the tails.
    """
    num_bins = parameters.shape[1] // 3
    shape, tails = parameters.split([3 * num_bins - 1, 2], 1)
    bent = torch.addcmul(bending[0], shape.abs(), bending[1])
    sizes, inner = (shape / bent).split([2 * num_bins, num_bins - 1], 1)
    shares = torch.softmax(sizes.unflatten(1, (2, num_bins)), 2)
    spans = shares * (2.0 * bound)
    starts = spans.cumsum(2) - spans - bound
    slopes = pad(inner.exp(), (0, 0, 1, 1), value=1.0)
    bins = torch.cat([starts, spans, slopes[:, None, :-1], slopes[:, None, 1:]], 1)
    moved = tails - tail_offset
    weights, tail_rates = softplus(moved), torch.sigmoid(moved)
    if d != 1.0:
        weights, tail_rates = weights * d, tail_rates * d

    return Knots(bins, shares, bent, slopes[:, 1:-1], weights, tail_rates)


def curve(x: Tensor, at: Knots, bound: float) -> Curved:
    """Where points ``(M, B)`` go, and the slopes there."""
    inner = x.clamp(-bound, bound)
    k = (at.bins[:, 0, 1:] < inner[:, None]).sum(1)
    num_points = x.shape[1]
    if at.bins.shape[-1] == 1:
        index = k[:, None].expand(-1, 6, -1)
        values = at.bins.squeeze(-1).gather(2, index)
    else:
        index = k[:, None, None].expand(-1, 6, 1, num_points)
        values = at.bins.gather(2, index).squeeze(2)
    x0, y0, w, h, d0, d1 = values.unbind(1)
    z = (inner - x0) / w
    r = 1.0 - z
    q, s = z * r, h / w
    bend = torch.add(d0 + d1, s, alpha=-2.0)
    bottom = torch.addcmul(s, bend, q)
    ratio = z * torch.addcmul(d0 * r, s, z) / bottom
    # d1 z^2 + 2 s q + d0 r^2
    top = torch.addcmul(z * torch.addcmul(d1 * z, s, r), r, torch.addcmul(d0 * r, s, z))
    steep = s / bottom
    slope = steep * steep * top
    # Beyond its ends the spline goes on straight, with slope one.
    u = torch.addcmul(y0, h, ratio) + (x - inner)
    tail = torch.where(u < 0, at.tails[:, 0], at.tails[:, 1])
    bent = tail * u.abs()
    tail_slope = 1.0 + 2.0 * bent
    y = torch.addcmul(u, u, bent)

    return Curved(
        y,
        slope * tail_slope,
        index,
        (x, inner, w, h, d0, d1, z, r, q, s, bend, bottom, ratio, top, slope, u, tail, tail_slope),
    )


def curvature(on: Curved) -> Tensor:
    """The derivative of the log slope at each point, ``(M, B)``."""
    x, inner, w, _, d0, d1, z, r, _, s, bend, bottom, _, top, slope, u, tail, tail_slope = on.parts
    p = r - z
    of_spline = ((torch.addcmul(d1 * z, s, p) - d0 * r) / top - bend * p / bottom) / w
    of_spline = torch.where(x == inner, of_spline, 0.0)

    return 2.0 * torch.addcmul(of_spline, tail * u.sign() / tail_slope, slope)


def pull(on: Curved, at: Knots, bound: float, v: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    r"""Gradients of :math:`\sum v\,y + c \log y'`.

    Arguments:
        on: Points on their curves.
        at: The bins.
        bound: Where the spline ends.
        v: What a unit of each ``y`` counts, ``(M, B)``.
        c: What a nat of each log slope counts, ``(1, B)`` or ``(1, 1)``.

    Returns:
        The gradients for the points ``(M, B)`` and for the parameters ``(M, 3 K + 1, P)``.
    """
    x, inner, w, h, d0, d1, z, r, q, s, bend, bottom, ratio, top, _, u, tail, tail_slope = on.parts
    c2 = 2.0 * c
    by_tail = c2 / tail_slope
    for_tail = u.abs() * torch.addcmul(by_tail, v, u)
    v = torch.addcmul(tail * u.sign() * by_tail, v, tail_slope)
    p, n = r - z, c / top
    lift = v * h
    for_a = lift / bottom
    for_b = torch.addcmul(c2, lift, ratio) / -bottom
    for_bq, zz = for_b * q, z * z
    for_d1 = torch.addcmul(for_bq, n, zz)
    for_d0 = torch.addcmul(torch.addcmul(for_bq, for_a, q), n * r, r)
    for_s = torch.addcmul(torch.addcmul(for_b + c2 / s, for_a, zz), n - for_b, q, value=2.0)
    slide = torch.addcmul(for_b * (bend * p), n, torch.addcmul(d1 * z, s, p) - d0 * r, value=2.0)
    for_z = torch.addcmul(slide, for_a, torch.addcmul(d0 * p, s, z, value=2.0)) / w
    for_s = for_s / w
    for_w = -torch.addcmul(for_s * s, for_z, z)
    for_bins = torch.stack([-for_z, v, for_w, torch.addcmul(for_s, v, ratio), for_d0, for_d1], 1)
    for_x = torch.where(x == inner, for_z, v)

    return for_x, _parameters(at, bound, _per_bin(on, at, for_bins), _per_tail(u, at, for_tail))


def _per_bin(on: Curved, at: Knots, values: Tensor) -> Tensor:
    """What points say of their bins, ``(M, 6, B)``, added up by bin, ``(M, 6, K, P)``."""
    if at.bins.shape[-1] == 1:
        return torch.zeros_like(at.bins.squeeze(-1)).scatter_add(2, on.index, values)[..., None]

    return torch.zeros_like(at.bins).scatter(2, on.index, values[:, :, None])


def _per_tail(u: Tensor, at: Knots, values: Tensor) -> Tensor:
    """What points say of the weight of their tail, ``(M, B)``, added up by tail, ``(M, 2, P)``."""
    sides = torch.stack([torch.where(u < 0, values, 0.0), torch.where(u < 0, 0.0, values)], 1)

    return sides.sum(-1, keepdim=True) if at.tails.shape[-1] == 1 else sides


def _parameters(at: Knots, bound: float, bins: Tensor, tails: Tensor) -> Tensor:
    """Gradients for the parameters from those for bins and tails."""
    starts, spans, left, right = bins.split([2, 2, 1, 1], 1)
    # A start is the sum of the spans before it; what all shares have in common means nothing to a softmax.
    shares = 2.0 * bound * (spans - starts.cumsum(2))
    weighed = shares * at.shares
    sizes = weighed - at.shares * weighed.sum(2, keepdim=True)
    inner = (left[:, 0, 1:] + right[:, 0, :-1]) * at.slopes

    return torch.cat([torch.cat([sizes.flatten(1, 2), inner], 1) / at.bent.square(), tails * at.tail_rates], 1)

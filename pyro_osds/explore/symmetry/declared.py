r"""Does a density have the symmetry that was declared? The largest difference between points and their copies.

.. math:: \max_i \left|\log\gamma(g_i z_i) - \log\gamma(z_i)\right|

A symmetry that holds nearly everywhere and is broken in a small place is the most dangerous one: what is fitted stands
for copies that nobody has looked at. So copies are looked at where a run begins, at the particles of the exploration,
and at the posterior draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_osds.explore.symmetry.frames import Rotation
from pyro_osds.explore.symmetry.ordering import SAME_DENSITY
from pyro_osds.explore.symmetry.resolved import Declared
from pyro_osds.stats.hashing import hashed_normals
from pyro_osds.target import Target, finite_log_prob, in_chunks

# Copies of each point that are looked at.
_NUM_COPIES = 2
# Points at which a run looks before it explores: what a fitted copy stands for is searched for modes at one side only,
# and a mode at the other side makes the density differ in a wide region around it. Fewer where densities take long.
_NUM_FIRST, _FEWER, _FEWEST, _MANY_TERMS = 2048, 256, 32, 20_000
# Their scales, where there is no prior.
_SCALES = (0.25, 1.0, 4.0, 16.0)
# Where sums round, copies differ: by how much is seen at points that are moved by so many units in the last place. The
# worst of a few thousand points lies this many times as far off.
_UNITS, _WORST = 4.0, 100.0
# Log densities below which rounding hides no difference that counts.
_TELLING = 1e5
# What rounding may leave of a log density in itself.
_RELATIVE = {True: 1e-9, False: 1e-5}


class Difference(NamedTuple):
    """How far the densities of copies differ.

    Arguments:
        largest: The largest difference beyond rounding, nats; 0 where there is none.
        count: At how many points they differ beyond rounding.
        total: At how many points there is a density.
        here: The log density at the worst point.
        there: That at its copy.
    """

    largest: float
    count: int
    total: int
    here: float
    there: float

    def sentence(self) -> str:
        """What was seen, in words."""
        points = f"at {self.count} of {self.total} points" if self.total > 1 else "at the only point"

        return (
            f"{points} the log density of a copy is another one, by up to {self.largest:.3g} nats "
            f"({self.here:.8g} and {self.there:.8g})"
        )


def difference(target: Target, declared: Declared, z: Tensor, num_copies: int = _NUM_COPIES) -> Difference:
    """The largest difference between points and their copies.

    Arguments:
        target: The target.
        declared: The symmetry, as it acts on the target's coordinates.
        z: Points, ``(N, D)``.
        num_copies: Copies of each that are looked at.

    Example:
        >>> from pyro_osds.explore.symmetry.flips import Flip
        >>> from pyro_osds.symmetries import sign_flips
        >>> from pyro_osds.target import FunctionTarget
        >>> tilted = FunctionTarget(lambda z: 0.25 * z[:, 0] - z.square().sum(-1), dim=1)
        >>> flip = Declared(sign_flips("z"), Flip(torch.tensor([[0]])))
        >>> difference(tilted, flip, torch.tensor([[2.0]], dtype=torch.float64), num_copies=8).largest
        1.0
    """
    z = z[z.isfinite().all(-1)]
    here = _log_prob(target, z)
    precision = torch.finfo(torch.float64 if target.is_double else torch.float32).eps
    size = z.abs().amax(-1, keepdim=True) if len(z) else z[:, :1]
    nearby = z + _UNITS * max(precision, torch.finfo(z.dtype).eps) * size * hashed_normals(z, z.shape[1]).to(z.dtype)
    rounding = (_log_prob(target, nearby) - here).abs().nan_to_num(0.0, posinf=0.0)
    allowed = SAME_DENSITY + _WORST * rounding + _RELATIVE[target.is_double] * here.abs().nan_to_num(posinf=0.0)
    largest, wrong, worst = 0.0, torch.zeros(len(z), dtype=torch.bool, device=z.device), (math.nan, math.nan)
    for number in range(num_copies):
        # Bits of other points, so that each copy is another one; those of the mirror image look much the same.
        there = _log_prob(target, declared.action.at_random(z, by=(math.pi + number) * z + number))
        apart = torch.where(here == there, torch.zeros_like(here), (here - there).abs())
        beyond = torch.where(apart > allowed, apart, torch.zeros_like(apart))
        wrong |= beyond > 0.0
        if len(z) and beyond.amax().item() > largest:
            at = int(beyond.argmax())
            largest, worst = beyond[at].item(), (here[at].item(), there[at].item())

    return Difference(largest, int(wrong.sum()), int((here > -torch.inf).sum()), *worst)


def _log_prob(target: Target, z: Tensor) -> Tensor:
    with torch.no_grad():
        return finite_log_prob(in_chunks(target.log_prob, z)).double()


def first_points(target: Target, starts: Tensor | None) -> Tensor:
    """Points where a run begins, ``(N, D)``: draws of the prior, or around the starts at several scales.

    Arguments:
        target: The target.
        starts: Unconstrained points to look around, ``(S, D)``, where no prior can be sampled.
    """
    number = _FEWEST if not target.vectorized else _FEWER if target.num_terms > _MANY_TERMS else _NUM_FIRST
    if target.can_sample_prior:
        return target.sample_prior(number)
    z = torch.randn(number, target.dim, dtype=target.dtype, device=target.device)
    z = z * torch.tensor(_SCALES, dtype=z.dtype, device=z.device).repeat(number)[:number, None]

    return z if starts is None else z + starts.to(z)[torch.arange(number, device=z.device) % len(starts)]


def check_declared(target: Target, declared: Sequence[Declared], z: Tensor, where: str) -> None:
    """Refuse a symmetry that the density does not have, and one that leaves it without an integral.

    Arguments:
        target: The target, in the coordinates of its sites.
        declared: The symmetries.
        z: Points to look at, ``(N, D)``.
        where: What points these are, in words.

    Raises:
        ValueError: If the density of a copy is another one, or the same wherever particles are together.
    """
    for each in declared:
        seen = difference(target, each, z)
        if seen.count:
            raise ValueError(
                f"The density does not have the symmetry {each.symmetry!r}: among {where}, {seen.sentence()}. "
                f"{_cure(target, each, z)}"
            )
        if isinstance(each.action, Rotation):
            _check_centre(target, each, each.action, z)


def _cure(target: Target, declared: Declared, z: Tensor) -> str:
    """What to declare instead: rotations without mirror images where these are to blame, and otherwise nothing."""
    action = declared.action
    if isinstance(action, Rotation) and action.reflections:
        turned = Declared(declared.symmetry, Rotation(action.rows, reflections=False))
        if not difference(target, turned, z).count:
            return "Mirror images are to blame: declare it with reflections=False."

    return "Leave it out of symmetries: without it the run takes the density as it is."


def _check_centre(target: Target, declared: Declared, rotation: Rotation, z: Tensor) -> None:
    """Refuse particles that may be shifted together."""
    # Where rounding takes all digits, nothing would be told from a shift.
    z = z[_log_prob(target, z).abs() < _TELLING]
    index = rotation.rows.reshape(-1)
    shift = z[:, index].square().mean().sqrt() * hashed_normals(z, rotation.rows.shape[1])
    shifted = z.index_add(1, index, shift.to(z.dtype).repeat(1, len(rotation.rows)))
    if len(z) > 1 and ((_log_prob(target, shifted) - _log_prob(target, z)).abs() < SAME_DENSITY).all():
        number, dim = rotation.rows.shape
        raise ValueError(
            f"The density of {declared.symmetry!r} stays the same when all particles are shifted together, so it has "
            "no integral. Tie their centre by a density of its own: with x of the shape "
            f"(..., {number}, {dim}), add -0.5 * {number} * x.mean(-2).square().sum(-1) - "
            f"0.5 * {dim} * math.log(2 * math.pi), which leaves the log evidence that of orthonormal coordinates "
            "without the centre. Or use such coordinates."
        )

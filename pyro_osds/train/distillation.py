r"""From many small steps to one giant leap: the flow map learns that one step is two half steps.

.. math::
    \Phi(x;\, t, d) \approx \Phi^-\big(\Phi^-(x;\, t, \tfrac d2);\, t + \tfrac d2, \tfrac d2\big), \qquad
    \log|\det \partial_x \Phi(x;\, t, d)| \approx \text{the sum of the two halves'},

with :math:`\Phi^-` the moving average of the student. The smallest step, which has no halves, is held to a step of the
teacher's probability flow. All of it happens at states that the teacher's own flow visits.

Source: arXiv 2512.05251, section 3; self-consistency of shortcuts, Frans et al. 2024 (2410.12557).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_osds.flow.diffusion import Diffusion
from pyro_osds.flow.leap import Leap
from pyro_osds.train.objectives import Loss, Objective, state_consistency, two_half_steps, volume_consistency

# Walks that all evaluations share, some for each draw of a batch: with fewer the flow learns these paths only, and more
# take longer before the first step.
_NUM_PATHS = 1024


class Walks:
    """Walks of the teacher's probability flow from fresh base draws, taken when they are first asked for.

    Arguments:
        diffusion: The teacher; it should be trained by then.
        num_time_steps: Steps of each walk.
    """

    def __init__(self, diffusion: Diffusion, num_time_steps: int) -> None:
        self.taken: Tensor | None = None
        self.diffusion = diffusion
        self._num_time_steps = num_time_steps

    def states(self) -> Tensor:
        """``(num_time_steps + 1, N, D)``, the same ones each time."""
        if self.taken is None:
            like = self.diffusion.base.loc
            with torch.no_grad():
                start = torch.randn(_NUM_PATHS, len(like), dtype=like.dtype, device=like.device)
                self.taken = self.diffusion.flow(start, self._num_time_steps)

        return self.taken


def self_distillation(
    diffusion: Diffusion,
    num_time_steps: int,
    batch_size: int,
    state_weight: float = 1.0,
    volume_weight: float = 0.25,
    shortcut: bool = True,
    walks: Walks | None = None,
) -> Objective:
    """Teach the flow map the teacher's probability flow, at all dyadic step sizes.

    Arguments:
        diffusion: The teacher.
        num_time_steps: Steps of the finest grid, a power of two.
        batch_size: States per evaluation.
        state_weight: Weight of where the steps land.
        volume_weight: Weight of how much they stretch; the defaults are those of the paper's released code.
        shortcut: Whether half of the states are also held to the end of the teacher's own walk over the step, which
            does not wait for the small steps to be learnt first.
        walks: The teacher's own walks; default: taken at the first evaluation.

    Returns:
        The objective.

    Raises:
        ValueError: If ``num_time_steps`` is no power of two.
    """
    num_levels = math.log2(num_time_steps) if num_time_steps > 0 else 0.5
    if num_levels != int(num_levels):
        raise ValueError(f"num_time_steps must be a power of two, got {num_time_steps}.")
    dim = diffusion.target.dim
    taken = walks or Walks(diffusion, num_time_steps)

    def loss(leap: Leap, average: Leap) -> Loss:
        walks = taken.states()
        stride = 2 ** int(torch.randint(int(num_levels) + 1, ()))
        step = stride * torch.randint(num_time_steps // stride, (batch_size,), device=walks.device)
        path = torch.randint(_NUM_PATHS, (batch_size,), device=walks.device)
        x, t = walks[step, path], (step / num_time_steps).to(walks)[:, None]
        d = torch.full_like(t, stride / num_time_steps)
        landed, log_abs_det = leap.flow(x, t, d)
        walked = walks[step + stride, path]
        terms = {}
        if stride == 1:
            terms["state_consistency"] = state_consistency(landed, walked)
        else:
            goal, goal_log_abs_det = two_half_steps(average.flow, x, t, d)
            if shortcut:
                goal = torch.cat([goal[: batch_size // 2], walked[batch_size // 2 :]])
            terms["state_consistency"] = state_consistency(landed, goal)
            terms["volume_consistency"] = volume_consistency(log_abs_det, goal_log_abs_det)
        weights = {"state_consistency": state_weight, "volume_consistency": volume_weight / dim}
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()

        return Loss(total, {name: term.detach() for name, term in terms.items()}, walks.new_zeros(0))

    return loss


def retrace(leap: Leap, batch_size: int, volume_weight: float = 0.25) -> Objective:
    """Teach a flow map to do in several steps what a trained leap does in one: the same law, read from the other end.

    Arguments:
        leap: The trained leap; it stays as it is.
        batch_size: Base draws per evaluation.
        volume_weight: Weight of the log-determinants beside the states.
    """

    def loss(walk: Leap, average: Leap) -> Loss:
        x = leap.base.density.sample(torch.Size([batch_size]))
        with torch.no_grad():
            goal, goal_log_abs_det = leap(x)
        landed, log_abs_det = walk(x)
        whitened = leap.base.to_whitened(torch.cat([landed, goal]))
        state = state_consistency(whitened[:batch_size], whitened[batch_size:])
        volume = volume_consistency(log_abs_det, goal_log_abs_det)
        terms = {"state_consistency": state.detach(), "volume_consistency": volume.detach()}

        return Loss(state + volume_weight / x.shape[1] * volume, terms, x.new_zeros(0))

    return loss


def dyadic(num_time_steps: int) -> tuple[int, ...]:
    """The numbers of steps 1, 2, 4, ... up to the finest grid's.

    Example:
        >>> dyadic(8)
        (1, 2, 4, 8)
    """
    return tuple(2**level for level in range(int(math.log2(num_time_steps)) + 1))

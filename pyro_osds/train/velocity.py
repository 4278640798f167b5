r"""The paper's sampler as it was published, beside the exact volume of the same network.

One free-form network :math:`r(x, t, d)` serves all step sizes; one step of the probability flow is

.. math:: F(x) = x + c\, r(x, t, d), \qquad c = -\log a .

**Published** volume: :math:`c\, v^\top (\partial r / \partial x)\, v` with one Rademacher probe *v* and the guidance
held fixed. That is a noisy trace where a log-determinant is needed, without the curvature of the target; and nothing
makes :math:`F` a bijection. **Exact** volume: :math:`\log|\det \partial F / \partial x|`, all of it differentiated.
Even that gives the evidence only where no point is reached twice:

.. math:: \mathrm{E}\Big[\frac{\gamma(F(x))\,|\det F'(x)|}{b(x)}\Big] = \int \gamma(z)\, \#F^{-1}(z)\, dz \;\neq\; Z.

A negative determinant shows a fold, so the share of draws that have one is counted.

Source: arXiv 2512.05251 and the authors' released code. Schedule and transitions are those of module ``diffusion``.
"""

from __future__ import annotations

import copy
import math
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from pyro_osds.choices import Volume
from pyro_osds.flow.diffusion import Diffusion
from pyro_osds.runtime.clock import is_past
from pyro_osds.runtime.light_adam import LightAdam
from pyro_osds.runtime.progress import NoBar, progress_bar
from pyro_osds.runtime.warnings import InterruptedWarning, warn
from pyro_osds.stats.weights import summarize_weights, weigh
from pyro_osds.train.budget import Budget
from pyro_osds.train.descent import MovingAverage, clipped, gradients_of
from pyro_osds.train.history import History
from pyro_osds.train.loop import go_on, run_moves
from pyro_osds.train.objectives import path_reverse_kl, state_consistency, two_half_steps, volume_consistency

VOLUMES: tuple[Volume, ...] = get_args(Volume)

# The released code's weights of the terms.
_CONSISTENCY_WEIGHT = 0.25
_VOLUME_WEIGHT = 0.25


class VelocityLeap(nn.Module):
    """Draws of the free-form probability flow in a given number of steps.

    Arguments:
        diffusion: The network and its target.
        num_steps: Network evaluations per draw.
        volume: ``"published"`` or ``"exact"``.

    Raises:
        ValueError: If the volume is unknown.
    """

    can_invert = False
    has_exact_density = False

    def __init__(self, diffusion: Diffusion, num_steps: int = 1, volume: str = "exact") -> None:
        super().__init__()
        if volume not in VOLUMES:
            raise ValueError(f"volume must be one of {VOLUMES}, got {volume!r}.")
        self.diffusion = diffusion
        self.base = diffusion.base
        self.num_steps = num_steps
        self.volume = volume

    def sample(self, num_draws: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draws ``(n, D)``, what the volume makes of their log densities ``(n,)``, and the volumes ``(n,)``."""
        z, log_base, log_abs_det, _ = self._walk(num_draws)

        return z, log_base - log_abs_det, log_abs_det

    def fold_share(self, num_draws: int = 2048) -> float:
        """Share of draws on whose way a step has a negative determinant."""
        return self._walk(num_draws, "exact")[3].float().mean().item()

    def _walk(self, num_draws: int, volume: str | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draws, log base densities, volumes of the whole map, and whether a step folded."""
        like = self.base.loc
        x = torch.randn(num_draws, len(like), dtype=like.dtype, device=like.device)
        log_base = -0.5 * (x.square().sum(-1) + x.shape[1] * math.log(2 * math.pi))
        log_abs_det, folded = self.base.log_abs_det.expand(num_draws), torch.zeros_like(log_base, dtype=torch.bool)
        d = x.new_full((1, 1), 1.0 / self.num_steps)
        for step in range(self.num_steps):
            if (volume or self.volume) == "exact":
                x, log_abs_det_step, sign_step = exact_step(self.diffusion, x, step * d, d)
                folded = folded | (sign_step < 0)
            else:
                x, log_abs_det_step = (part.detach() for part in published_step(self.diffusion, x, step * d, d))
            log_abs_det = log_abs_det + log_abs_det_step

        return self.base.from_whitened(x), log_base, log_abs_det, folded


def published_step(
    diffusion: Diffusion, x: Tensor, t: Tensor, d: Tensor, probe: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One step of the probability flow and the published estimate of its log-determinant; both carry gradients.

    Arguments:
        diffusion: The network and its target.
        x: Whitened states, ``(B, D)``.
        t: Times, ``(B, 1)`` or ``(1, 1)``.
        d: Step sizes, shaped like ``t``.
        probe: Signs, ``(B, D)``; drawn afresh by default.
    """
    probe = torch.randint_like(x, 2) * 2.0 - 1.0 if probe is None else probe
    size = -diffusion.log_decay(t, d)
    guidance = diffusion.guidance(x, t)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        control = diffusion.network(x, t, d, guidance)
        (pulled,) = torch.autograd.grad((control * probe).sum(), x, create_graph=True)

    return x.detach() + size * control, size.squeeze(-1) * (pulled * probe).sum(-1)


def exact_step(diffusion: Diffusion, x: Tensor, t: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One step, the log of its determinant's size ``(B,)`` and the sign ``(B,)``; nothing carries gradients.

    The Jacobian takes D backward passes, through the guidance too.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        guidance = diffusion.guidance(x, t, differentiable=True)
        landed = x - diffusion.log_decay(t, d) * diffusion.network(x, t, d, guidance)
        rows = [torch.autograd.grad(column.sum(), x, retain_graph=True)[0] for column in landed.unbind(-1)]
    sign, log_abs_det = torch.linalg.slogdet(torch.stack(rows, 1))

    return landed.detach(), log_abs_det, sign


class VelocityTrainer:
    """Trains the free-form network as published: reverse KL through the simulation, then consistency, in turns.

    Arguments:
        diffusion: The network and its target; trained in place.
        num_time_steps: Steps of the finest grid, a power of two.
        budget: Iterations, batch size and learning rate.
        num_steps: Steps of the leap that it makes.
        volume: ``"published"`` or ``"exact"``: how the leap's draws are weighed.
        disable_progbar: Whether to hide the progress bar.

    Source: arXiv 2512.05251, algorithm 1, with the released code's weights of the terms.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        num_time_steps: int = 16,
        budget: Budget | None = None,
        num_steps: int = 1,
        volume: str = "exact",
        disable_progbar: bool = False,
    ) -> None:
        self.diffusion = diffusion
        self.target = diffusion.target
        self.num_time_steps = num_time_steps
        self.budget = budget or Budget()
        self.history = History()
        self.leap = VelocityLeap(diffusion, num_steps, volume)
        self.disable_progbar = disable_progbar
        self._parameters = list(diffusion.network.parameters())
        self._optimizer = LightAdam(self._parameters, lr=self.budget.learning_rate)
        self._average = MovingAverage(diffusion.network)
        self._has_ended = False
        self.paused: dict[str, Any] | None = None

    def step(self) -> float:
        """One iteration: a step on the paths' reverse KL, one on consistency; returns the first loss, nats."""
        paths = self.diffusion.simulate(self.budget.batch_size, self.num_time_steps)
        loss = path_reverse_kl(self.diffusion.log_weight(paths))
        self._descend(loss)
        terms = {"path_reverse_kl": loss.detach()}
        if self.num_time_steps > 1:
            terms |= self._learn_consistency(paths.x.detach())
        self.history.record(loss.item(), terms)

        return loss.item()

    def _learn_consistency(self, states: Tensor) -> dict[str, Tensor]:
        num_steps = self.num_time_steps
        stride = 2 ** int(torch.randint(1, int(math.log2(num_steps)) + 1, ()))
        step = stride * torch.randint(num_steps // stride, (states.shape[1],), device=states.device)
        x, t = states[step, torch.arange(len(step), device=states.device)], (step / num_steps).to(states)[:, None]
        d = torch.full_like(t, stride / num_steps)
        average = copy.copy(self.diffusion)
        average._modules = {**self.diffusion._modules, "network": self._average.module}
        probe = torch.randint_like(x, 2) * 2.0 - 1.0
        goal, goal_volume = two_half_steps(lambda x, t, d: published_step(average, x, t, d, probe), x, t, d)
        landed, volume = published_step(self.diffusion, x, t, d, probe)
        state, stretch = state_consistency(landed, goal.detach()), volume_consistency(volume, goal_volume.detach())
        self._descend(_CONSISTENCY_WEIGHT * (state + _VOLUME_WEIGHT * stretch))

        return {"state_consistency": state.detach(), "volume_consistency": stretch.detach()}

    def _descend(self, loss: Tensor) -> None:
        gradients = gradients_of(loss, self._parameters)
        if clipped(self._parameters, gradients, get_total_norm(gradients)):
            self._optimizer.step()
            self._average.update()
        else:
            self.history.num_skipped += 1

    def averaged(self) -> VelocityLeap:
        """The leap as it is: the published sampler draws with the weights that were optimised, not their average."""
        return self.leap

    def evaluate(self) -> float:
        """Minus the mean log weight of a fresh batch, nats: no bound unless the volume is exact and nothing folds."""
        log_weight = weigh(self.leap, self.target, self.budget.batch_size).log_weight

        return -log_weight[log_weight.isfinite()].mean().item()

    def run(self) -> History:
        """Spend the budget; Ctrl-C or the deadline keep the weights so far, and another run goes on from there."""
        go_on(self, self.paused)
        if self._has_ended:
            return self.history
        left = self.budget.num_iterations - len(self.history.loss)
        run_moves(self, progress_bar(left, "Train", self.disable_progbar))
        self._validate()
        self._has_ended = self.paused is None

        return self.history

    @property
    def is_done(self) -> bool:
        """Whether the budget is spent."""
        return len(self.history.loss) >= self.budget.num_iterations

    @property
    def is_late(self) -> bool:
        """Whether the deadline has passed."""
        return is_past(self.budget.deadline)

    def advance(self, progress: NoBar) -> None:
        """One whole move: an iteration."""
        progress.set_postfix(loss=f"{self.step():.3f}")
        progress.update()

    def end_early(self, paused: dict[str, Any], interrupt: KeyboardInterrupt | None) -> None:
        """Note where to go on; the weights stay as they are.

        Arguments:
            paused: Where training stands.
            interrupt: What cut it short, unless it was the deadline.
        """
        self.paused = paused
        if interrupt is not None:
            self.history.interrupted = True
            warn("Training was interrupted; the weights so far are used.", InterruptedWarning)

    def _validate(self) -> None:
        log_weight = weigh(self.leap, self.target, self.budget.num_validation_draws).log_weight
        finite = log_weight[log_weight.isfinite()]
        self.history.look(summarize_weights(log_weight), finite.mean().item() if len(finite) else -math.inf)

    def stop(self) -> None:
        """End training as it stands."""
        self._has_ended, self.paused = True, None

    # ---- where training stands ----

    def state(self) -> dict[str, Any]:
        """All that further steps depend on, except random numbers."""
        return {
            "network": self.diffusion.network.state_dict(),
            "average": self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "history": self.history,
            "is_done": self._has_ended,
            "paused": self.paused,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Stand where another trainer of the same network and budget stood.

        Arguments:
            state: What its :meth:`state` gave; it stays as it is.
        """
        state = copy.deepcopy(state)
        self.history, self.paused, self._has_ended = state["history"], state["paused"], state["is_done"]
        self.diffusion.network.load_state_dict(state["network"])
        self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])

r"""Training the teacher: score matching on explored particles first, then the log-variance of its path weights.

Score matching needs no simulation and brings the control near in seconds. Path weights then correct what particles got
wrong: half of the paths are the teacher's own, half end at particles and are noised backwards, so that no mode is
forgotten. With ``objective="reverse_kl"`` it is the paper's loss instead, differentiated through the simulation.

Source: arXiv 2512.05251, section 2; off-policy log-variance, Richter, Berner 2023 (2307.01198).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pyro_osds.diffusion import Diffusion, Paths
from pyro_osds.objective import path_log_variance, path_reverse_kl, score_matching
from pyro_osds.progress import progress_bar
from pyro_osds.target import log_prob_and_score

_EMA_DECAY = 0.98
_MAX_GRADIENT_NORM = 1.0
OBJECTIVES = ("log_variance", "reverse_kl")


@dataclass(frozen=True)
class TeacherBudget:
    """How long and how hard to train the teacher.

    Arguments:
        num_matching: Iterations of score matching.
        num_path: Iterations on path weights.
        num_time_steps: Steps of each path.
        matching_batch_size: Points of each iteration of score matching.
        batch_size: Paths of each iteration on path weights.
        learning_rate: Peak of a one-cycle schedule over all iterations.
        objective: ``"log_variance"`` or ``"reverse_kl"``.
    """

    num_matching: int = 300
    num_path: int = 60
    num_time_steps: int = 16
    matching_batch_size: int = 1024
    batch_size: int = 256
    learning_rate: float = 3e-3
    objective: str = "log_variance"

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {OBJECTIVES}, got {self.objective!r}.")


@dataclass
class TeacherHistory:
    """What the teacher's training saw.

    Arguments:
        terms: Each loss by name, one value an iteration, of the iterations that minimised it.
        num_skipped: Iterations whose gradient was not finite, and that were left out.
        interrupted: Whether Ctrl-C ended training.
    """

    terms: dict[str, list[float]] = field(default_factory=dict)
    num_skipped: int = 0
    interrupted: bool = False


def train_teacher(
    diffusion: Diffusion, z: Tensor, budget: TeacherBudget | None = None, disable_progbar: bool = True
) -> TeacherHistory:
    """Train a diffusion in place; its network ends up with the moving average of its weights.

    Arguments:
        diffusion: The teacher.
        z: Particles that stand for the posterior, in the target's coordinates, ``(N, D)``.
        budget: How long and how hard.
        disable_progbar: Whether to hide the progress bar.

    Returns:
        The history. Ctrl-C ends training with what was learnt so far.
    """
    budget = budget or TeacherBudget()
    u = diffusion.base.to_whitened(z)
    score = log_prob_and_score(diffusion.log_prob, u)[1]
    parameters = list(diffusion.network.parameters())
    optimizer = torch.optim.Adam(parameters, lr=budget.learning_rate, fused=True)
    num_iterations = budget.num_matching + budget.num_path
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, budget.learning_rate, total_steps=max(num_iterations, 20), pct_start=0.1
    )
    average = AveragedModel(diffusion.network, multi_avg_fn=get_ema_multi_avg_fn(_EMA_DECAY))
    history = TeacherHistory()
    progress = progress_bar(num_iterations, "Teach", disable_progbar)
    try:
        for iteration in range(num_iterations):
            if iteration < budget.num_matching:
                chosen = torch.randint(len(u), (budget.matching_batch_size,), device=u.device)
                name = "score_matching"
                loss = score_matching(diffusion, u[chosen], score[chosen], 1.0 / budget.num_time_steps)
            else:
                name, loss = f"path_{budget.objective}", _path_loss(diffusion, z, budget)
            history.terms.setdefault(name, []).append(loss.item())
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            if torch.stack([gradient.sum() for gradient in gradients]).sum().isfinite():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
                clip_grad_norm_(parameters, _MAX_GRADIENT_NORM)
                optimizer.step()
                average.update_parameters(diffusion.network)
            else:
                history.num_skipped += 1
            scheduler.step()
            progress.set_postfix(loss=f"{history.terms[name][-1]:.3f}")
            progress.update()
    except KeyboardInterrupt:
        history.interrupted = True
    progress.close()
    diffusion.network.load_state_dict(average.module.state_dict())

    return history


def _path_loss(diffusion: Diffusion, z: Tensor, budget: TeacherBudget) -> Tensor:
    if budget.objective == "reverse_kl":
        return path_reverse_kl(diffusion.log_weight(diffusion.simulate(budget.batch_size, budget.num_time_steps)))
    with torch.no_grad():
        half = budget.batch_size // 2
        chosen = torch.randint(len(z), (half,), device=z.device)
        own = diffusion.simulate(budget.batch_size - half, budget.num_time_steps)
        noised = diffusion.noise(z[chosen], budget.num_time_steps)
        paths = Paths(*(torch.cat(pair, -1 if pair[0].dim() == 1 else 1) for pair in zip(own, noised, strict=True)))

    return path_log_variance(diffusion.log_weight(paths))

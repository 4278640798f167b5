r"""The paper's training: reverse KL through the noisy paths and self-distillation, in turns, on one optimiser.

.. math:: L_\text{diff} = -\mathrm{E} \log w, \qquad
    L_\text{sd} = \tfrac1D \|x_2 - x_1\|^2 + \tfrac14 (V_2 - V_1)^2 + 10^{-4}\, \tfrac1D \|J v\|^2

where 2 are two half steps of the moving average and 1 is one step of the network, from states of the paths, with
published volumes V. The distillation's weight rises to 1/4 in the first twenty-fourth of the training.

Source: arXiv 2512.05251 and what its released code does.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from paper_sampler import PaperTarget, Sampler, Velocity
from torch import Tensor, nn
from torch.nn.functional import gelu

_CONSISTENCY, _VOLUME, _JACOBIAN, _WARM_UP = 0.25, 0.25, 1e-4, 1.0 / 24.0
_DECAY, _WEIGHT_DECAY, _MAX_NORM = 0.999, 0.1, 1.0
NUM_STEPS = 128


class Training:
    """The network while it is trained; `history` has the first loss of each iteration, nats."""

    def __init__(self, target: PaperTarget, num_iterations: int, batch_size: int) -> None:
        self.sampler = Sampler(target, Velocity(target.dim))
        self.average = copy.deepcopy(self.sampler.network).requires_grad_(False)
        self.num_iterations, self.batch_size = num_iterations, batch_size
        self.parameters = list(self.sampler.network.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, target.learning_rate, weight_decay=_WEIGHT_DECAY)
        self.history: list[float] = []

    def iterate(self) -> None:
        """One step on the paths, one on consistency of their states."""
        x = self.sampler.prior(self.batch_size, self.parameters[0])
        loss, states, gradients = reverse_kl(self.sampler, x, NUM_STEPS)
        self._descend(gradients)
        weight = _CONSISTENCY * min(1.0, len(self.history) / (_WARM_UP * self.num_iterations))
        loss_of_steps = weight * self.consistency(states)
        self._descend(torch.autograd.grad(loss_of_steps, self.parameters, allow_unused=True, materialize_grads=True))
        self.history.append(loss)

    def consistency(self, states: Tensor) -> Tensor:
        """How far one step of the network is from two of the average, from states ``(K + 1, B, D)`` of paths."""
        count, finest = states.shape[1], NUM_STEPS.bit_length() - 1
        stride = 2 ** torch.randint(1, finest + 1, (count,))
        # Steps already gone on the grid, in whole strides: times fall from 1.
        gone = (torch.rand(count) * (NUM_STEPS // stride)).long() * stride
        x = states[gone, torch.arange(count)]
        t, d = 1.0 - gone / NUM_STEPS, stride / NUM_STEPS
        probe, other = (torch.randint_like(x, 2) * 2.0 - 1.0 for _ in range(2))
        landed, volume, pushed = self.sampler.step(self.sampler.network, x, t, d, probe)
        with torch.no_grad():
            half, first, _ = self.sampler.step(self.average, x, t, 0.5 * d, probe)
            goal, second, _ = self.sampler.step(self.average, half, t - 0.5 * d, 0.5 * d, other)
        state, stretch = (goal - landed).square().mean(), (first + second - volume).square().mean()

        return state + _VOLUME * stretch + _JACOBIAN * pushed.square().mean()

    def _descend(self, gradients: Sequence[Tensor]) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        nn.utils.clip_grad_norm_(self.parameters, _MAX_NORM)
        self.optimizer.step()
        with torch.no_grad():
            for average, parameter in zip(self.average.parameters(), self.parameters, strict=True):
                average.lerp_(parameter, 1.0 - _DECAY)


@torch.no_grad()
def reverse_kl(sampler: Sampler, x: Tensor, num_steps: int) -> tuple[float, Tensor, list[Tensor]]:
    """Minus the mean log weight of noisy paths, their states ``(K + 1, B, D)``, and its gradients for the parameters.

    What autograd makes of :meth:`Sampler.paths`, in a third of its operations: the adjoints of the states are carried
    back step by step, the weights' gradients are summed over all steps at once.
    """
    network = sampler.network
    first, hidden, out = network.from_x.weight, network.hidden, network.out
    with torch.enable_grad():
        t, d, beta, sigma, clock, gain = sampler.grid(num_steps, x)
    noise = torch.randn(num_steps, *x.shape, dtype=x.dtype)
    spread = sigma * d.sqrt()
    # Plain numbers and lists: an operation on a tensor of one number takes as long as one on a batch.
    keep, push, times, sigmas = ((1.0 + 0.5 * beta * d).tolist(), (sigma * d).tolist(), t.tolist(), sigma.tolist())
    shaken, clocks, gains = ((spread[:, None, None] * noise).unbind(), clock.unbind(), gain.unbind())
    path, kept = [x], []
    for k in range(num_steps):
        guidance = sampler.guidance(x, times[k], sigmas[k])
        below = torch.addmm(clocks[k], x, first.T)
        one = gelu(below, approximate="tanh")
        above = torch.addmm(hidden.bias, one, hidden.weight.T)
        two = gelu(above, approximate="tanh")
        control = torch.addcmul(torch.addmm(out.bias, two, out.weight.T), gains[k], guidance)
        x = torch.add(torch.add(shaken[k], x, alpha=keep[k]), control, alpha=push[k])
        kept.append((guidance, below, one, above, two))
        path.append(x)
    states = torch.stack(path)
    shrink, variance = (1.0 - 0.5 * beta * d)[:, None, None], spread.square()[:, None, None]
    back = states[:-1] - shrink * states[1:]
    ratio = (-0.5 * back.square() / variance + 0.5 * noise.square()).sum((0, 2))
    loss = -(sampler.target.log_prob(x) - sampler.log_prior(states[0]) + ratio).mean()
    # What each state adds to the loss by itself, as gradients for the states.
    alone = torch.zeros_like(states)
    alone[:-1] += back / variance
    alone[1:] -= shrink * back / variance
    alone[-1] -= sampler.target.score(x)
    alone /= x.shape[0]
    adjoint, pulled = alone[-1], []
    for k in reversed(range(num_steps)):
        _, below, _, above, _ = kept[k]
        of_control = push[k] * adjoint
        of_above = torch.ops.aten.gelu_backward(of_control @ out.weight, above, approximate="tanh")
        of_below = torch.ops.aten.gelu_backward(of_above @ hidden.weight, below, approximate="tanh")
        pulled.append((of_control, of_above, of_below))
        adjoint = torch.add(torch.addmm(alone[k], of_below, first), adjoint, alpha=keep[k])
    of_control, of_above, of_below = (torch.stack(parts[::-1]) for parts in zip(*pulled, strict=True))
    guidance, _, one, _, two = (torch.stack(parts) for parts in zip(*kept, strict=True))
    found = {
        first: torch.einsum("kbi,kbj->ij", of_below, states[:-1]),
        hidden.weight: torch.einsum("kbi,kbj->ij", of_above, one),
        hidden.bias: of_above.sum((0, 1)),
        out.weight: torch.einsum("kbi,kbj->ij", of_control, two),
        out.bias: of_control.sum((0, 1)),
    }
    parameters = list(network.parameters())
    of_times = (of_below.sum(1), (of_control * guidance).sum(1))
    through_times = torch.autograd.grad((clock, gain), parameters, of_times, allow_unused=True, materialize_grads=True)
    gradients = [
        found[parameter] + gradient if parameter in found else gradient
        for parameter, gradient in zip(parameters, through_times, strict=True)
    ]

    return loss.item(), states, gradients

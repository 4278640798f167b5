r"""What is minimised: small functions for the leap, for the teacher, and for the passage from one to the other.

**The leap, on its own exact weights.** With draws :math:`z_\theta(x)` and log weights
:math:`\log w = \log \gamma(z) - \log q_\theta(z)`, both directions of the Kullback-Leibler divergence have a path
gradient of one form,

.. math::
    \nabla_\theta = -\sum_i c_i\, \big(\nabla_z \log \gamma(z_i) - \nabla_z \log q(z_i)\big)^{\!\top}
    \frac{\partial z_i}{\partial \theta}, \qquad
    c_i = \begin{cases} 1/B & \mathrm{KL}(q\,\|\,p) \\ w_i / \sum_j w_j & \mathrm{KL}(p\,\|\,q). \end{cases}

It has no variance at the optimum, where the two scores agree. The first direction sharpens, the second covers: draws
that weigh too much pull the flow towards them.

**The leap, on points from elsewhere.** Particles or draws of the teacher sit in every mode, and may be wrong about how
much: :func:`forward_kl` brings the flow there, :func:`log_variance` then makes its weights equal on all of them.

**The teacher.** :func:`path_reverse_kl`, :func:`path_log_variance`, :func:`score_matching`.

**From many steps to one.** :func:`state_consistency`, :func:`volume_consistency`.

Sources: path gradients, Roeder et al. 2017 (1703.09194), for flows Vaitl et al. 2022 (2207.08219), 2024 (2403.15881);
log-variance, Richter et al. 2020 (2010.10436); target score matching, De Bortoli et al. 2024 (2402.08667);
consistency, arXiv 2512.05251, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import huber_loss, pad

from pyro_osds.flow.diffusion import Diffusion
from pyro_osds.flow.leap import Leap
from pyro_osds.runtime.parallel import by_rows
from pyro_osds.target import Target, finite_log_prob, log_prob_and_score

# How far base points are stretched along one coordinate to look at the tails: to where the flow's own draws are rare,
# and not to where they never are, which a flow of this size cannot learn as well. Chosen on the accuracy cases.
_STRETCH = 2.0
# What stretched points count beside draws: enough for the tail, too little to spoil the bulk. The gradient's noise at
# them grows with the dimension, so beyond ten they count less. Chosen on the accuracy cases.
_TAIL_WEIGHT, _TAIL_DIM = 0.1, 10
# What the log-variance on particles counts beside the divergences: both are in nats.
_COVER_WEIGHT = 1.0
# Nats from which on a log weight pulls with a constant force: a particle in a mode that the flow does not yet know is
# hundreds of nats off, and would drown all others.
_OUTLIER = 1.0
# Times the flow's own scores at which those of the posterior end: on a wall like exp(-exp(z)) they reach 1e100, of
# which single precision has no square, and one draw would cost the whole step.
_STEEPEST = 1e6
# Floors that keep divisions from failing: of the noise of a state, which vanishes at the end of the way, and of the
# variance of the second target of score matching, which vanishes for a Gaussian posterior.
_MIN_NOISE, _MIN_VARIANCE = 1e-3, 1e-6


class Loss(NamedTuple):
    """A loss, what it is the sum of, and the weights of the batch.

    Arguments:
        total: What is differentiated.
        terms: Its parts by name, detached, for the record.
        log_weight: Log weights of the batch's own draws, detached, ``(B,)``; empty where it has none.
    """

    total: Tensor
    terms: dict[str, Tensor]
    log_weight: Tensor


Objective = Callable[[Leap, Leap], Loss]
"""Maps the leap, and the leap with the moving average of its weights, to a loss."""

Step = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Maps points ``(B, D)``, times and step sizes ``(B, 1)`` to points and log-determinants; a ``FlowMap`` is one."""


# ---- the leap, on its own weights ----


def exact_volume(
    target: Target,
    batch_size: int,
    coverage: float = 0.5,
    tail_share: float = 0.125,
    points: Tensor | None = None,
    num_steps: tuple[int, ...] = (),
) -> Objective:
    r"""Both directions of the divergence between the flow and the target, by path gradients, and a look elsewhere.

    A share of the batch starts from base points stretched to twice their value along one coordinate, where the flow's
    own draws are too rare to learn from. On them the log weight should be what it is on average,

    .. math:: \lambda\, \mathrm{E}\, h\big(\log w - \overline{\log w}\big),

    with Huber's function *h*: the log-variance objective, which may take its points from anywhere. Where ``points`` are
    given, as many of them as there are draws are asked the same.

    Arguments:
        target: The target.
        batch_size: Draws per evaluation.
        coverage: Share of the covering direction KL(p || q); the rest is the sharpening one, KL(q || p). Alone, the
            first leaves draws where there is nothing, the second leaves tails too light.
        tail_share: Share of stretched points in the batch, which are as many draws less; without any, pareto k was
            above 0.7 on flows that were exact otherwise. A mixture base, wide as it is, gets none.
        points: Points that sit in every mode, ``(N, D)``.
        num_steps: If given, each evaluation leaps in one of these numbers of steps, with probability ``1 / steps``.

    Returns:
        The objective. Its total is a surrogate, of which only the gradient means something.

    Raises:
        ValueError: If a share is out of range.
    """
    if not 0 <= coverage <= 1 or not 0 <= tail_share <= 0.5:
        raise ValueError(
            f"coverage must lie in [0, 1] and tail_share in [0, 0.5]; got coverage={coverage}, tail_share={tail_share}."
        )

    def loss(leap: Leap, average: Leap) -> Loss:
        if num_steps:
            leap = Leap(leap.base, leap.flow, _draw_num_steps(num_steps))
        num_tail = int(tail_share * batch_size) if leap.base.num_components == 1 else 0
        num_body = batch_size - num_tail
        x = leap.base.density.sample(torch.Size([batch_size]))
        x = torch.cat([x[:num_body], _stretch(x[num_body:])]) if num_tail else x
        z, log_q, score_q, log_p, score_p = by_rows(partial(_both_scores, leap, target), x)
        log_weight, steepest = log_p - log_q.detach(), _STEEPEST * score_q.square().mean(0).sqrt()
        score_p = score_p.clamp(-steepest, steepest)
        # One point so far out that neither density is a number there would spoil the whole step.
        usable = log_weight.abs() < torch.inf
        body = torch.where(usable, log_weight, -torch.inf)[:num_body]
        known = log_weight.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        # Truncated (Ionides 2008): early on, one draw would otherwise carry the whole batch.
        weight = torch.softmax(body, 0).clamp(max=num_body**-0.5)
        count = usable[:num_body].sum(dtype=log_weight.dtype)
        center = known[:num_body].sum() / count
        share = torch.lerp(usable[:num_body] / count, weight, coverage)
        for_z = share[:, None] * (score_q[:num_body] - score_p[:num_body])
        for_log_q, terms = None, {"exact_volume": -center}
        if num_tail:
            excess = (known[num_body:] - center) * usable[num_body:]
            weight_of_tail = _TAIL_WEIGHT * min(1.0, _TAIL_DIM / leap.flow.dim) / num_tail
            tail = excess.clamp(-_OUTLIER, _OUTLIER) * weight_of_tail
            for_z, for_log_q = torch.cat([for_z, tail[:, None] * score_p[num_body:]]), pad(-tail, (num_body, 0))
            terms["tail_log_variance"] = _huber(excess).mean()
        total = _weighed(z, log_q, for_z, for_log_q)
        if points is not None:
            (at_points,) = by_rows(partial(_log_weight_at, leap, target), _pick(points, batch_size))
            cover = log_variance(at_points)
            total = total + _COVER_WEIGHT * cover
            terms["cover_log_variance"] = cover.detach()

        return Loss(total, terms, body)

    return loss


def reverse_kl(target: Target, batch_size: int) -> Objective:
    """KL(q || p) by the plain reparametrised estimator: noisier near the optimum, tamer far from it.

    Arguments:
        target: The target.
        batch_size: Draws per evaluation.

    Returns:
        The objective; its total is the negative ELBO of the batch, nats.
    """

    def loss(leap: Leap, average: Leap) -> Loss:
        x = leap.base.density.sample(torch.Size([batch_size]))
        (log_weight,) = by_rows(partial(_log_weight_from, leap, target), x)
        usable = finite_log_prob(log_weight.detach()).isfinite()
        total = -torch.where(usable, log_weight, 0.0).sum() / usable.sum().clamp(min=1)

        return Loss(total, {"reverse_kl": total.detach()}, log_weight.detach())

    return loss


# ---- the leap, on points from elsewhere ----


def forward_kl(points: Tensor, batch_size: int) -> Objective:
    """KL(p || q) up to a constant, on points that stand for the posterior: minus their mean log density.

    Arguments:
        points: Equally weighted points, ``(N, D)``.
        batch_size: Points per evaluation.

    Returns:
        The objective; its total is in nats.
    """

    def loss(leap: Leap, average: Leap) -> Loss:
        (log_prob,) = by_rows(lambda z: (leap.log_prob(z),), _pick(points, batch_size))
        total = -log_prob.mean()

        return Loss(total, {"forward_kl": total.detach()}, points.new_zeros(0))

    return loss


def log_variance(log_weight: Tensor) -> Tensor:
    """Half the spread of log weights around their mean, by Huber's function: zero where all weights are equal.

    The points that the weights belong to may come from anywhere, on the flow or off it.

    Arguments:
        log_weight: Log weights, ``(B,)``, of leaps or of paths; those that are not finite are left out.

    Example:
        >>> log_variance(torch.tensor([0.0, 1.0]))
        tensor(0.1250)
    """
    usable = log_weight.isfinite()
    log_weight = torch.where(usable, log_weight, 0.0)
    count = usable.sum().clamp(min=1)
    excess = log_weight - log_weight.detach().sum() / count

    return (_huber(excess) * usable).sum() / count


class _Weighed(torch.autograd.Function):
    """The sum of points and log densities times what each counts, whose gradient is just that."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, log_q: Tensor, for_z: Tensor, for_log_q: Tensor | None) -> Tensor:
        ctx.save_for_backward(for_z, for_log_q)
        total = z.reshape(-1) @ for_z.reshape(-1)

        return total if for_log_q is None else total + log_q @ for_log_q

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        for_z, for_log_q = ctx.saved_tensors
        # A GPU would have to be waited for to look.
        if gradient.is_cuda or gradient.item() != 1.0:
            for_z, for_log_q = gradient * for_z, None if for_log_q is None else gradient * for_log_q

        return for_z, for_log_q, None, None


def _weighed(z: Tensor, log_q: Tensor, for_z: Tensor, for_log_q: Tensor | None) -> Tensor:
    # A base in single precision meets densities in double.
    for_z, for_log_q = for_z.to(z.dtype), None if for_log_q is None else for_log_q.to(log_q.dtype)

    return cast("Tensor", _Weighed.apply(z, log_q, for_z, for_log_q))


def _both_scores(leap: Leap, target: Target, x: Tensor) -> tuple[Tensor, ...]:
    """From base points to draws, and the log densities and scores of the flow and of the target there."""
    z, log_q, score_q = leap.with_score(x)

    return z, log_q, score_q, *log_prob_and_score(target.log_prob, z)


def _log_weight_from(leap: Leap, target: Target, x: Tensor) -> tuple[Tensor]:
    """Log weights of the draws from base points, ``(B,)``, with gradients through the draws."""
    z, log_abs_det = leap(x)
    # Through its score: where the density is not finite, its own gradient would spoil those of all other points.
    log_prob, score = log_prob_and_score(target.log_prob, z)
    log_prob = log_prob + ((z - z.detach()) * score).sum(-1)

    return (log_prob - (leap.base.density.log_prob(x) - log_abs_det),)


def _log_weight_at(leap: Leap, target: Target, z: Tensor) -> tuple[Tensor]:
    """Log weights of given points, ``(B,)``, with gradients for the flow."""
    with torch.no_grad():
        log_prob = finite_log_prob(target.log_prob(z))

    return (log_prob - leap.log_prob(z),)


# ---- the teacher ----


def path_reverse_kl(log_weight: Tensor) -> Tensor:
    """Negative ELBO of paths, nats: the paper's loss, differentiated through the simulation.

    Arguments:
        log_weight: Log weights of paths that carry gradients, ``(B,)``.
    """
    usable = log_weight.isfinite()

    return -torch.where(usable, log_weight, 0.0).sum() / usable.sum().clamp(min=1)


def path_log_variance(log_weight: Tensor) -> Tensor:
    """Variance of the log weights of paths: zero where the control is exact, wherever the paths come from.

    Arguments:
        log_weight: Log weights of detached paths, ``(B,)``; those that are not finite are left out.
    """
    usable = log_weight.isfinite()

    return log_weight[usable].var() if usable.sum() > 1 else 0.0 * torch.where(usable, log_weight, 0.0).sum()


def score_matching(diffusion: Diffusion, u: Tensor, score: Tensor, d: float) -> Tensor:
    r"""Fit the control to what noised points say of it, without any simulation.

    .. math::
        r(x_t, t) = \mathrm{E}\Big[(1 - \lambda)\Big(x_t - \frac{\varepsilon}{\sigma}\Big)
        + \lambda\,\alpha\,\big(x_1 + \nabla\log\gamma(x_1)\big)\ \Big|\ x_t\Big]

    The first target is steady where there is much noise, the second where there is little;
    :math:`\lambda` weighs them by their variances. The second vanishes for a Gaussian posterior.

    Arguments:
        diffusion: The teacher.
        u: Points that stand for the posterior, whitened, ``(B, D)``.
        score: Scores of the whitened target there, ``(B, D)``.
        d: The step size that the network is told.

    Returns:
        Mean squared error, weighted by the inverse of the target's variance.
    """
    t = torch.rand(len(u), 1, dtype=u.dtype, device=u.device)
    log_signal = diffusion.schedule.log_signal(t)
    signal, noise = log_signal.exp(), torch.sqrt(-torch.expm1(2.0 * log_signal)).clamp(min=_MIN_NOISE)
    epsilon = torch.randn_like(u)
    x = signal * u + noise * epsilon
    by_score, by_noise = signal * (u + score), x - epsilon / noise
    score_variance = signal.square() * (u + score).square().mean(0) + _MIN_VARIANCE
    noise_variance = (signal / noise).square()
    share = noise_variance / (noise_variance + score_variance)
    variance = share.square() * score_variance + (1.0 - share).square() * noise_variance
    error = diffusion.network(x, t, torch.full_like(t, d), diffusion.guidance(x, t)) - torch.lerp(
        by_noise, by_score, share
    )

    return (error.square() / (1.0 + variance)).mean()


# ---- from many steps to one ----


def two_half_steps(step: Step, x: Tensor, t: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Where two steps of half the size lead, and the sum of their log-determinants; nothing is differentiated."""
    with torch.no_grad():
        x, first = step(x, t, 0.5 * d)
        x, second = step(x, t + 0.5 * d, 0.5 * d)

    return x, first + second


def state_consistency(landed: Tensor, goal: Tensor) -> Tensor:
    """Mean squared distance, per coordinate, between where one step landed and where two half steps did.

    Arguments:
        landed: Where the student landed, ``(B, D)``.
        goal: Where the teacher landed, ``(B, D)``.
    """
    return (landed - goal).square().mean()


def volume_consistency(log_abs_det: Tensor, goal: Tensor) -> Tensor:
    """Mean squared difference of log-determinants between one step and two half steps.

    Arguments:
        log_abs_det: The student's, ``(B,)``.
        goal: The sum of the teacher's, ``(B,)``.
    """
    return (log_abs_det - goal).square().mean()


# ---- small change ----


def _huber(excess: Tensor) -> Tensor:
    return huber_loss(excess, torch.zeros_like(excess), reduction="none", delta=_OUTLIER)


def _pick(points: Tensor, count: int) -> Tensor:
    return points[torch.randint(len(points), (count,), device=points.device)]


def _stretch(x: Tensor) -> Tensor:
    """Points with one coordinate of each, drawn at random, made twice as large."""
    chosen = torch.randint(x.shape[1], (len(x), 1), device=x.device)

    return x.scatter(1, chosen, _STRETCH * x.gather(1, chosen))


def _draw_num_steps(num_steps: tuple[int, ...]) -> int:
    """One of the numbers of steps, the more often the fewer."""
    index = torch.multinomial(1.0 / torch.tensor(num_steps, dtype=torch.float64), 1).item()

    return num_steps[int(index)]

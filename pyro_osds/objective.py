r"""What the flow is trained on: its own exact weights.

With draws :math:`z_\theta(x)` of the flow and log weights :math:`\log w = \log \gamma(z) - \log q_\theta(z)`, both
directions of the Kullback-Leibler divergence have a path gradient of one form,

.. math::
    \nabla_\theta = -\sum_i c_i\, \big(\nabla_z \log \gamma(z_i) - \nabla_z \log q(z_i)\big)^{\!\top}
    \frac{\partial z_i}{\partial \theta}, \qquad
    c_i = \begin{cases} 1/B & \mathrm{KL}(q\,\|\,p) \\ w_i / \sum_j w_j & \mathrm{KL}(p\,\|\,q). \end{cases}

It has no variance at the optimum, where the two scores agree. The first direction sharpens, the second covers: draws
that weigh too much pull the flow towards them. A plain estimator stands by for the start, where scores are steep.

Sources: path gradients, Roeder et al. 2017 (1703.09194), for flows Vaitl et al. 2022 (2207.08219), 2024 (2403.15881).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_osds.leap import Leap
from pyro_osds.target import Target, finite_log_prob, log_prob_and_score

_STRETCH = 2.0
_TAIL_WEIGHT = 0.1

Objective = Callable[[Leap], tuple[Tensor, Tensor]]
"""Maps the leap to a loss to differentiate and the detached log weights of the batch, ``(B,)``."""


def exact_volume(target: Target, batch_size: int, coverage: float = 0.5, tail_share: float = 0.125) -> Objective:
    r"""Both directions of the divergence between the flow and the target, by path gradients, and a look at the tails.

    A share of the batch starts from base points stretched to twice their value along one coordinate, where the flow's
    own draws are too rare to learn from. On them the log weight should be what it is on average,

    .. math:: \lambda\, \mathrm{E}\, h\big(\log w - \overline{\log w}\big),

    with Huber's function *h*: the log-variance objective, which may take its points from anywhere.

    Arguments:
        target: The target.
        batch_size: Draws per evaluation.
        coverage: Share of the covering direction KL(p || q); the rest is the sharpening one, KL(q || p).
        tail_share: Share of stretched points in the batch; a mixture base, wide as it is, gets none.

    Returns:
        The objective. Its loss is a surrogate: only its gradient means something.

    Raises:
        ValueError: If a share is out of range.

    Source: log-variance divergence, Richter et al. 2020 (2010.10436).
    """
    if not 0 <= coverage <= 1 or not 0 <= tail_share <= 0.5:
        raise ValueError(
            f"coverage must lie in [0, 1] and tail_share in [0, 0.5]; got coverage={coverage}, tail_share={tail_share}."
        )

    def loss(leap: Leap) -> tuple[Tensor, Tensor]:
        num_tail = int(tail_share * batch_size) if leap.base.num_components == 1 else 0
        num_body = batch_size - num_tail
        x = leap.base.density.sample(torch.Size([batch_size]))
        z, log_q, score_q = leap.with_score(torch.cat([x[:num_body], _stretch(x[num_body:])]))
        log_p, score_p = log_prob_and_score(target.log_prob, z)
        log_weight = (log_p - log_q).detach()
        body = log_weight[:num_body]
        # Truncated (Ionides 2008): early on, one draw would otherwise carry the whole batch.
        weight = torch.softmax(body, 0).clamp(max=num_body**-0.5)
        usable = body.isfinite()
        share = (1 - coverage) / usable.sum().clamp(min=1) * usable + coverage * weight
        surrogate = (share * ((score_q - score_p) * z)[:num_body].sum(-1)).sum()
        if num_tail:
            excess = (log_weight - body[usable].mean()).clamp(-1.0, 1.0) * log_weight.isfinite()
            tail = excess * ((score_p * z).sum(-1) - log_q)
            surrogate = surrogate + _TAIL_WEIGHT * tail[num_body:].mean()

        return surrogate, body

    return loss


def _stretch(x: Tensor) -> Tensor:
    """Points with one coordinate of each, drawn at random, made twice as large."""
    chosen = torch.randint(x.shape[1], (len(x), 1), device=x.device)

    return x.scatter_add(1, chosen, (_STRETCH - 1.0) * x.gather(1, chosen))


def reverse_kl(target: Target, batch_size: int) -> Objective:
    """KL(q || p) by the plain reparametrised estimator: noisier near the optimum, tamer far from it.

    Arguments:
        target: The target.
        batch_size: Draws per evaluation.

    Returns:
        The objective; its loss is the negative ELBO of the batch, nats.
    """

    def loss(leap: Leap) -> tuple[Tensor, Tensor]:
        z, log_q, _ = leap.sample(batch_size)
        log_weight = target.log_prob(z) - log_q
        usable = finite_log_prob(log_weight.detach()).isfinite()

        return -torch.where(usable, log_weight, 0.0).sum() / usable.sum().clamp(min=1), log_weight.detach()

    return loss

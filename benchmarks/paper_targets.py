"""Four targets of the paper as plain log densities with their scores, and true draws where they can be had.

Prior scales and learning rates are those that the released code sets, but for the learning rate of the wells (1e-5
there, which a short training cannot use). Funnel: neck N(0, 9), nine N(0, exp(neck)). MW54: exp(-sum (x^2 - 4)^2) in
5-D. Seeds and ionosphere: the posteriors of `target_cases.py`; the precision of seeds is fitted as its logarithm.
"""

import functools
import math

import torch
from cases import KNOWN, read_rows
from paper_sampler import PaperTarget
from target_cases import DATA, even_wells
from torch import Tensor


def funnel() -> PaperTarget:
    dim = 10

    def log_prob(z: Tensor) -> Tensor:
        neck, rest = z[:, 0], z[:, 1:]
        square = (neck / 3.0).square() + (dim - 1) * neck + rest.square().sum(-1) * (-neck).exp()

        return -0.5 * square - math.log(3.0) - 0.5 * dim * math.log(2.0 * math.pi)

    def score(z: Tensor) -> Tensor:
        neck, rest = z[:, :1], z[:, 1:]
        of_rest = rest * -(-neck).exp()
        of_neck = neck * (-1.0 / 9.0) - 0.5 * ((of_rest * rest).sum(-1, keepdim=True) + (dim - 1))

        return torch.cat([of_neck, of_rest], -1)

    def sample(count: int) -> Tensor:
        neck = 3.0 * torch.randn(count, 1, dtype=torch.float64)

        return torch.cat([neck, (0.5 * neck).exp() * torch.randn(count, dim - 1, dtype=torch.float64)], -1)

    return PaperTarget("funnel 10-D", log_prob, score, dim, 0.0, 0.0, sample=sample)


def wells() -> PaperTarget:
    def score(z: Tensor) -> Tensor:
        return z * (16.0 - 4.0 * z.square())

    def sample(count: int) -> Tensor:
        grid = torch.linspace(-4.0, 4.0, 20001, dtype=torch.float64)
        weight = even_wells(grid[:, None]).exp()

        return grid[torch.multinomial(weight, 5 * count, replacement=True)].view(count, 5)

    known = _known("many_well_5d")

    return PaperTarget("MW54 5-D", even_wells, score, 5, *known, scale=0.1, sample=sample, alone=even_wells)


def seeds() -> PaperTarget:
    """Coordinates: log tau, a_0, a_1, a_2, a_12, and 21 plates b."""
    germinated, total, x1, x2 = read_rows(DATA / "seeds.csv").double().T
    design = torch.stack([torch.ones_like(x1), x1, x2, x1 * x2], 1)
    constant = (total + 1.0).lgamma() - (germinated + 1.0).lgamma() - (total - germinated + 1.0).lgamma()
    # Gamma(0.01, 0.01) in log tau, four Normal(0, 10), and what Normals of the plates have without tau.
    log_norm = 0.01 * math.log(0.01) - math.lgamma(0.01) - 4.0 * math.log(10.0) - 12.5 * math.log(2.0 * math.pi)

    def log_prob(z: Tensor) -> Tensor:
        log_tau, a, b = z[:, 0], z[:, 1:5], z[:, 5:]
        logits = a @ design.to(z).T + b
        likelihood = (germinated.to(z) * logits - total.to(z) * torch.nn.functional.softplus(logits)).sum(-1)
        prior = (0.01 + 10.5) * log_tau - log_tau.exp() * (0.01 + 0.5 * b.square().sum(-1))

        return likelihood + prior - a.square().sum(-1) / 200.0 + float(constant.sum()) + log_norm

    @functools.cache
    def in_precision(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        return design.to(dtype), germinated.to(dtype), total.to(dtype)

    def score(z: Tensor) -> Tensor:
        log_tau, a, b = z[:, :1], z[:, 1:5], z[:, 5:]
        plates, grown, all_of_them = in_precision(z.dtype)
        tau = log_tau.exp()
        left = grown - all_of_them * torch.addmm(b, a, plates.T).sigmoid()
        of_tau = 0.01 + 10.5 - tau * (0.01 + 0.5 * b.square().sum(-1, keepdim=True))

        return torch.cat([of_tau, left @ plates - a / 100.0, left - tau * b], -1)

    return PaperTarget("seeds 26-D", log_prob, score, 26, *_known("seeds"))


def ionosphere() -> PaperTarget:
    rows = read_rows(DATA / "ionosphere.csv").double()
    x, y = rows[:, :-1], (rows[:, -1] + 1.0) / 2.0
    sd = x.std(0, correction=0)
    x = torch.cat([torch.ones(len(x), 1).to(x), (x - x.mean(0)) / torch.where(sd > 0, sd, 1.0)], 1)

    @functools.cache
    def in_precision(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return x.to(dtype), y.to(dtype)

    def log_prob(z: Tensor) -> Tensor:
        logits = z @ x.to(z).T
        likelihood = (y.to(z) * logits - torch.nn.functional.softplus(logits)).sum(-1)

        return likelihood - 0.5 * z.square().sum(-1) - 0.5 * z.shape[1] * math.log(2.0 * math.pi)

    def score(z: Tensor) -> Tensor:
        given, label = in_precision(z.dtype)

        return (label - (z @ given.T).sigmoid()) @ given - z

    return PaperTarget("ionosphere 35-D", log_prob, score, x.shape[1], *_known("ionosphere"))


def _known(name: str) -> tuple[float, float]:
    return KNOWN[name]["log_evidence"], KNOWN[name]["std_error"]


def paper_targets() -> dict[str, PaperTarget]:
    """By name."""
    return {target.name: target for target in (funnel(), wells(), seeds(), ionosphere())}

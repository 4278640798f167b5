r"""In how many of the copies that a symmetry makes do draws sit, where a fit looks at one copy for all?

Signs of K rows make :math:`2^K` copies of the same density, K components that may trade places :math:`K!`. One copy
gives the log evidence of all, whichever copies the draws are from; means and modes of the draws themselves are wrong
where they lack some. That N independent draws see no more than *k* of *n* copies has at most the chance

.. math:: \binom{n}{k} \left(\frac{k}{n}\right)^N.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_osds.explore.symmetry.mirrored import MirroredTarget
from pyro_osds.explore.symmetry.ordering import OrderedTarget
from pyro_osds.stats.bridge import effective_number
from pyro_osds.stats.thresholds import MAX_SIGMAS
from pyro_osds.target import MovedTarget, Target

# From so many copies on the logarithm of a binomial coefficient is that of a power, to a millionth.
_MANY_COPIES = 10**12


@dataclass(frozen=True)
class Copies:
    """The copies that draws sit in.

    Arguments:
        seen: How many of them hold a part of the draws that counts.
        total: How many there are.
        of_what: What makes them, such as ``"signs"``.
        effective: How many independent draws the copies of the draws are worth.
        largest: Share of the draws in the fullest of them.
    """

    seen: int
    total: int
    of_what: str
    effective: float
    largest: float

    @property
    def lacks_some(self) -> bool:
        """Whether draws lack copies by more than chance."""
        if self.seen >= self.total:
            return False
        log_total, seen = math.log(self.total), self.seen
        if self.total >= _MANY_COPIES:
            log_ways = seen * log_total - math.lgamma(seen + 1)
        else:
            log_ways = math.lgamma(self.total + 1) - math.lgamma(seen + 1) - math.lgamma(self.total - seen + 1)
        log_chance = log_ways + self.effective * (math.log(seen) - log_total)

        return log_chance < math.log(_CHANCE)

    @property
    def is_uneven(self) -> bool:
        """Whether draws are in the fullest copy more often than by chance, and than what matters."""
        share, log_total = 1.0 / min(self.total, _MANY_COPIES), math.log(self.total)
        if log_total > math.log(max(1.0, self.effective / _DRAWS_A_COPY)):
            return False
        excess = self.largest - share
        sigmas = excess / math.sqrt(share * (1.0 - share) / self.effective)

        return excess > _MATTERS * share and self.total * math.erfc(sigmas / math.sqrt(2.0)) < _CHANCE

    def sentence(self) -> str:
        """Where the draws sit, if not in all copies alike; or nothing."""
        made = f"{self.total:,} copies that symmetry makes ({self.of_what})"
        flows = "all" if self.total <= _LISTABLE else "all at random"
        if self.lacks_some:
            return f"the given draws sit in {self.seen} of the {made}; the flow's draws are in {flows}"
        if self.is_uneven:
            return (
                f"the given draws are spread unevenly over the {made}: {self.largest:.0%} of them sit in one, and each "
                f"holds {1.0 / self.total:.0%} of the posterior, and of the flow's draws"
            )

        return ""


# The chance of three standard errors.
_CHANCE = math.erfc(MAX_SIGMAS / math.sqrt(2.0))
# Draws a copy that tell shares; the part of a share that matters; and of what should be in a copy the part up to which
# draws have only passed through, which is far below chance where there are many a copy.
_DRAWS_A_COPY, _MATTERS, _PASSED = 20, 0.2, 0.05
# Copies that some thousand draws of the flow are sure to visit.
_LISTABLE = 200


def copies_of(target: Target, z: Tensor, num_chains: int) -> Copies | None:
    """The copies that draws sit in; None where the target looks at all there is.

    Arguments:
        target: The target of a fit.
        z: Draws in the coordinates of the innermost target, chain after chain, ``(num_chains * S, D)``.
        num_chains: The number of chains.

    Example:
        >>> from pyro_osds.explore.symmetry.flips import Flip
        >>> from pyro_osds.target import FunctionTarget
        >>> two = FunctionTarget(lambda z: -0.5 * (z.square() - 9.0).square().sum(-1), dim=1)
        >>> mirror = MirroredTarget(two, Flip(torch.tensor([[0]])), torch.tensor([0]), length=0.1)
        >>> found = copies_of(mirror, -3.0 + 0.1 * torch.randn(100, 1), 4)
        >>> found.seen, found.total, found.of_what, found.lacks_some
        (1, 2, 'signs', True)
    """
    layers: list[MovedTarget] = []
    while isinstance(target, MovedTarget):
        layers.append(target)
        target = target.target
    labels, total, of_what = [], 1, {}
    for layer in reversed(layers):
        if isinstance(layer, MirroredTarget):
            labels.append((z[:, layer.column] < 0).long())
            total *= 2 ** len(layer.column)
            of_what["signs"] = None
        elif isinstance(layer, OrderedTarget):
            labels.append(z[:, layer.ordering].argsort(-1))
            total *= math.factorial(len(layer.ordering))
            of_what["orders"] = None
        z = layer.outside(z)
    if not labels:
        return None
    signs = torch.cat(labels, 1)
    _, place, count = signs.unique(dim=0, return_inverse=True, return_counts=True)
    seen = int((count > max(0.0, _PASSED * len(z) / min(total, _MANY_COPIES))).sum())
    columns = (*signs.T, place)
    effective = min(_effective(column.double().view(num_chains, -1)) for column in columns)

    return Copies(seen, total, " and ".join(of_what), effective, count.max().item() / len(z))


def _effective(by_chain: Tensor) -> float:
    """How many independent draws labels are worth; chains that never change theirs count as one each."""
    if (by_chain == by_chain[:, :1]).all() and not (by_chain == by_chain[0, 0]).all():
        return float(len(by_chain))

    return effective_number(by_chain)

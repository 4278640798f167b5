r"""How a space was searched, in numbers: how many points climbed, where they ended, and how many may end elsewhere.

Of *n* points at random whose ascents ended in basins, :math:`n_1` ended in one that no other met. A further one ends in
a basin that is not known with a probability of about :math:`n_1 / n` (Good 1953), and of less than the *b* for which

.. math:: \sum_{k \le n_1} \binom nk b^k (1 - b)^{n-k} = 0.05.

That is a share of such points, not of the evidence: a basin that hardly any of them climbs to may hold half of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Probability that the bound of the unseen holds.
_BOUND = 0.95
# Share of random points that may have come to basins of their own, where basins can be counted.
_MAX_SINGLE = 0.1
# Halvings of the interval in which the bound lies: to twelve digits.
_NUM_HALVINGS = 40


@dataclass(frozen=True)
class Coverage:
    """How the space was searched.

    Arguments:
        num_starts: Points that climbed.
        num_random: Those of them that were taken at random, and came to rest.
        num_basins: Basins that were looked at.
        num_single: Random points that came to a basin to which no other did, or to one that was not looked at.
        num_added: Parts that annealing had lost, and that were added to where the flow starts.
        num_dropped: Points that came to rest in basins beyond those that were looked at.

    Example:
        >>> searched = Coverage(312, 192, 2, 0, num_added=1)
        >>> f"{searched.known_share:.0%} in known basins, less than {searched.unseen:.1%} in others"
        '100% in known basins, less than 1.5% in others'
    """

    num_starts: int
    num_random: int
    num_basins: int
    num_single: int
    num_added: int = 0
    num_dropped: int = 0

    @property
    def is_countable(self) -> bool:
        """Whether the basins can be counted: each of them was looked at, and most ascents ended in known ones."""
        return self.num_dropped == 0 and self.num_single <= _MAX_SINGLE * self.num_random

    @property
    def known_share(self) -> float:
        """Share of the random points that ended in a basin that others met; 0 where none came to rest."""
        return 1.0 - self.num_single / self.num_random if self.num_random else 0.0

    @property
    def unseen(self) -> float:
        """Upper bound of the probability that another random point ends in a basin that is not known."""
        return upper_bound(self.num_single, self.num_random)

    def sentence(self) -> str:
        """How the space was searched, in one line."""
        more = f" and {self.num_dropped} tops beyond" if self.num_dropped else ""
        basins = f"{self.num_basins} basin{'s' * (self.num_basins != 1)}{more}"
        added = f", {self.num_added} lost by annealing and added" if self.num_added else ""
        found = f"{self.num_starts} ascents found {basins}{added}; "
        if not self.num_random:
            return f"{found}no random one came to rest, so that nothing bounds what was not seen"

        return (
            f"{found}{self.known_share:.1%} of {self.num_random} random ones ended in a basin that others met, unseen "
            f"ones take less than {self.unseen:.1%} of them (Good-Turing, {_BOUND:.0%})"
        )


def upper_bound(count: int, num_draws: int) -> float:
    """Upper end of the binomial interval of a probability, of one that is exceeded with probability 0.05 (Clopper).

    Arguments:
        count: How often it was seen.
        num_draws: In how many draws.

    Returns:
        The bound; 1 where all draws saw it, or there is none.

    Example:
        >>> round(upper_bound(0, 192), 4)  # 1 - 0.05 ** (1 / 192)
        0.0155
    """
    if num_draws == 0 or count >= num_draws:
        return 1.0
    low, high = count / num_draws, 1.0
    for _ in range(_NUM_HALVINGS):
        middle = 0.5 * (low + high)
        terms = [
            math.lgamma(num_draws + 1)
            - math.lgamma(k + 1)
            - math.lgamma(num_draws - k + 1)
            + k * math.log(middle)
            + (num_draws - k) * math.log1p(-middle)
            for k in range(count + 1)
        ]
        low, high = (middle, high) if sum(map(math.exp, terms)) > 1.0 - _BOUND else (low, middle)

    return high

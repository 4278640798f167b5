r"""How many steps of a solver each point of a batch asks for, and which points ask for too many.

.. math:: n_b = \sum_{\text{tries}} \min(r_b, 1)^{1/p}

for a point whose errors are :math:`r_b` of what is tolerated: a step that could be longer by a factor counts for as
much less.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Steps after which it is looked whether a point asks for too many; it does at once where it asks for so many times as
# many, and steps do not grow by this factor from one look to the next.
_LOOK, _HOPELESS, _GROWTH = 50, 100, 2.0
# An error ratio that rounding alone may make: 1e-16 of a state, at tolerances of 1e-7 and less, with some to spare.
_ROUNDED = 1e-6


class Demand:
    """How many steps each point would take if it were alone, and which ask for too many.

    A point for which a step could be longer by a factor counts for as much less; where its error is not larger than
    what rounding makes, it counts for nothing.

    Arguments:
        t: Where steps begin.
        end: Where they end.
        most: Steps that a point may ask for.
        order: The order of the method.
    """

    def __init__(self, t: float, end: float, most: int, order: int) -> None:
        self._begin, self._end, self._most, self._order = t, end, most, order
        self._total: Tensor | float = 0.0
        # Of the steps since the last look.
        self._ratios: list[Tensor] = []
        # Where the last look was, how far the steps had come since the one before, and who was slow then.
        self._last, self._progress, self._slow = t, 0.0, torch.zeros((), dtype=torch.bool)

    def too_many(self, ratios: Tensor, t: float, lost: Tensor) -> Tensor | None:
        """Note a step that was tried, whether it counts or not; looks for points that ask for too many now and then.

        Arguments:
            ratios: Error ratios of the step, ``(B,)``.
            t: The time that is reached.
            lost: Points that do not count any more.

        Returns:
            Which points do, as far as is known at this time, ``(B,)``; None if nobody looked.
        """
        self._ratios.append(ratios)
        if len(self._ratios) < _LOOK:
            return None
        asked = torch.stack(self._ratios).double().nan_to_num(0.0).clamp(max=1.0)
        window = (torch.where(asked > _ROUNDED, asked, 0.0) ** (1.0 / self._order)).sum(0)
        self._ratios = []
        self._total, progress = self._total + window, t - self._last
        # At this pace; at the beginning of a solution steps grow, and are no pace yet.
        slow = window * (self._end - t) > _HOPELESS * self._most * progress
        found = slow & self._slow.to(slow.device) if progress < _GROWTH * self._progress else torch.zeros_like(slow)
        if self._total.masked_fill(lost, 0.0).amax().item() > self._most and t > self._begin:
            found = found | (self._total * ((self._end - self._begin) / (t - self._begin)) > self._most)
        self._last, self._progress, self._slow = t, progress, slow

        return found

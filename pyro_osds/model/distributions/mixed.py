"""Values of which each entry has one of two supports, as those of a ``MaskedMixture``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Transform, constraints


class Choice(Transform):
    """One of two maps of single numbers for each entry.

    The entries that go the other way are put at zero first: where a map overflows, its gradient would be no number.

    Arguments:
        mask: Which entries go by the second map, of a shape that broadcasts with the values.
        first: The map where the mask is false.
        second: The map where it is true.

    Example:
        >>> from torch.distributions import AffineTransform, ExpTransform
        >>> choice = Choice(torch.tensor([False, True]), ExpTransform(), AffineTransform(0.0, 1.0))
        >>> choice(torch.tensor([0.0, 1000.0]))
        tensor([   1., 1000.])
    """

    domain = constraints.real
    codomain = constraints.real
    bijective = True

    def __init__(self, mask: Tensor, first: Transform, second: Transform) -> None:
        super().__init__()
        self.mask, self.first, self.second = mask, first, second

    def with_cache(self, cache_size: int = 1) -> Choice:
        """The same map: nothing is remembered."""
        return self

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What goes by either map, with zeros elsewhere."""
        return torch.where(self.mask, 0.0, x), torch.where(self.mask, x, 0.0)

    def _call(self, x: Tensor) -> Tensor:
        first, second = self.parts(x)

        return torch.where(self.mask, self.second(second), self.first(first))  # type: ignore[arg-type]

    def _inverse(self, y: Tensor) -> Tensor:
        middle = torch.zeros_like(y)
        first, second = self.first(middle), self.second(middle)
        first, second = torch.where(self.mask, first, y), torch.where(self.mask, y, second)  # type: ignore[arg-type]

        return torch.where(self.mask, self.second.inv(second), self.first.inv(first))  # type: ignore[arg-type]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Of each entry, from ``x`` alone."""
        first, second = self.parts(x)
        one = self.first.log_abs_det_jacobian(first, self.first(first))  # type: ignore[arg-type]
        other = self.second.log_abs_det_jacobian(second, self.second(second))  # type: ignore[arg-type]

        return torch.where(self.mask, other, one)

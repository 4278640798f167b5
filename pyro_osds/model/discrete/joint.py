r"""Discrete latents whose elements interact, summed over all their joint values.

.. math:: \log \gamma(u) = \log \sum_{a} \exp \log \gamma(u, a)

Each *a* is a plain run of the model with one value for each element, whatever it does with them; one run is made for
all of them at once. What elimination sums rightly stays with it, inside each of the runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_osds.model.discrete.assignments import one_by_one, over_assignments

Run = Callable[[Mapping[str, Tensor]], Any]
"""Runs the model at one point, given a value for each of the discrete latents that are summed jointly."""


@dataclass(frozen=True)
class Joint:
    """The joint values of some discrete latents, and how the model is run at all of them.

    Arguments:
        values: By site, ``(A, *shape)``.
        vectorized: Whether one run is made for all of them; otherwise one for each.
        batched_factories: Whether new tensors of a run belong to the batch from the start.
        tied: Sites whose density depends on these discrete latents, and deterministic ones whose value does.
        has_plain_prior: Whether the prior of the continuous latents depends on no discrete one.
        log_weight: The log of how many joint values each stands for, ``(A,)``; None for one each.
    """

    values: Mapping[str, Tensor]
    vectorized: bool = True
    batched_factories: bool = False
    tied: frozenset[str] = frozenset()
    has_plain_prior: bool = False
    log_weight: Tensor | None = None

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def spread(self, count: int) -> list[dict[str, Tensor]]:
        """Some joint values: the first, the last, and others between them."""
        last = len(self) - 1
        # Steps that share no factor with the numbers of values, so that each element changes.
        between = [int(last * (0.5 + 0.618034 * i) % (last + 1)) for i in range(count - 2)]

        return [self.at(index) for index in dict.fromkeys((0, last, *between))]

    def at(self, index: int) -> dict[str, Tensor]:
        """One joint value, by site."""
        return {name: value[index] for name, value in self.values.items()}

    def read(self, run: Run, read: Callable[[Any], Any]) -> Any:
        """What runs tell at all joint values, stacked.

        Arguments:
            run: Runs the model.
            read: Reads a run: tensors, in a tuple or a mapping.
        """

        def one(given: Mapping[str, Tensor]) -> Any:
            return read(run(given))

        if self.vectorized:
            return over_assignments(one, self.values, self.batched_factories)

        return one_by_one(one, self.values)

    def densities(self, run: Run, like: Tensor) -> tuple[Tensor, Tensor]:
        """Log prior (with Jacobians) and log likelihood (with factors) of one point, two scalars.

        Arguments:
            run: Runs the model at the point.
            like: A tensor of the type and on the device of the densities.
        """
        latents, prior, joint = self.read(run, lambda seen: seen.log_terms(like))
        if self.log_weight is not None:
            prior, joint = prior + self.log_weight, joint + self.log_weight
        log_prior = latents[0] if self.has_plain_prior else torch.logsumexp(prior, 0)

        return log_prior, torch.logsumexp(joint, 0) - log_prior

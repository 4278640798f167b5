"""Pairs of densities to anneal between: from a model's own prior, or from any density that can be sampled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_osds.target import Target

# Batches of some hundred draws: with one usable draw in some ten thousand there are enough to begin with, after a few
# seconds of a density with so many terms.
_PATIENCE, _MAX_TERMS, _LEAST = 256, 1_000, 8


def patience_for(target: Target) -> int:
    """How many batches of draws may be looked through for those with a density.

    Arguments:
        target: The target.
    """
    if not target.vectorized:
        return _LEAST

    return max(_LEAST, int(_PATIENCE * min(1.0, _MAX_TERMS / max(1, target.num_terms))))


class AnnealingPath(Protocol):
    """A pair of densities to anneal between.

    Arguments:
        dim: The number of dimensions.
        patience: Batches of draws that are made at most, until enough of them have a density.
    """

    dim: int
    patience: int

    def sample(self, num_draws: int, /) -> Tensor:
        """Draws of the reference, ``(num_draws, D)``."""
        ...

    def log_densities(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log reference and log target at a batch, ``(B, D) -> (B,), (B,)``."""
        ...


class PriorPath:
    """From a model's own prior to its posterior; one run of the model gives both densities.

    Arguments:
        target: A target with ``sample_prior`` and ``log_prior_and_likelihood``, such as ``ModelTarget``.
    """

    def __init__(self, target: Target) -> None:
        self.dim, self.patience = target.dim, patience_for(target)
        self._target = target

    def sample(self, num_draws: int, /) -> Tensor:
        """Draws of the prior, ``(num_draws, D)``."""
        return self._target.sample_prior(num_draws)  # type: ignore[attr-defined]

    def log_densities(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log prior and log joint density, ``(B, D) -> (B,), (B,)``."""
        log_prior, log_likelihood = self._target.log_prior_and_likelihood(z)  # type: ignore[attr-defined]

        return log_prior, log_prior + log_likelihood


class ReferencePath:
    """From any normalised density that can be sampled, such as a fitted base, to the target.

    Arguments:
        target: The target.
        sample: Draws of the reference, ``n -> (n, D)``.
        log_prob: Log density of the reference, ``(B, D) -> (B,)``.
    """

    def __init__(self, target: Target, sample: Callable[[int], Tensor], log_prob: Callable[[Tensor], Tensor]) -> None:
        self.dim, self.patience = target.dim, patience_for(target)
        self.sample = sample
        self._target = target
        self._log_prob = log_prob

    @classmethod
    def from_density(cls, target: Target, density: Distribution) -> ReferencePath:
        """From a density in the target's coordinates.

        Arguments:
            target: The target.
            density: The density of the reference.
        """
        return cls(target, lambda count: density.sample(torch.Size([count])), density.log_prob)

    def log_densities(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log reference and log target, ``(B, D) -> (B,), (B,)``."""
        return self._log_prob(z), self._target.log_prob(z)

"""A target around another one: what does not depend on coordinates is handed on."""

from __future__ import annotations

from pyro_osds.target.protocol import Target


class TargetWrapper(Target):
    """A target that evaluates another one somewhere else.

    What a density costs and how it is evaluated is handed on. What depends on coordinates has the defaults of
    :class:`Target`, which promise nothing; a wrapper that knows better says so.

    Arguments:
        target: The target inside.

    Example:
        >>> import torch
        >>> from pyro_osds.target import FunctionTarget
        >>> class Doubled(TargetWrapper):
        ...     def log_prob(self, z):
        ...         return self.target.log_prob(2.0 * z)
        >>> inside = FunctionTarget(lambda z: -z.square().sum(-1), dim=1)
        >>> inside.num_terms = 1_000_000
        >>> Doubled(inside).num_terms
        1000000
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.dim, self.dtype, self.device, self.draw_dtype = target.dim, target.dtype, target.device, target.draw_dtype
        self.num_terms, self.vectorized, self.is_double = target.num_terms, target.vectorized, target.is_double

    @property
    def backend(self) -> str:
        """How batches are evaluated; a property, since a model records its graph when first asked."""
        return self.target.backend

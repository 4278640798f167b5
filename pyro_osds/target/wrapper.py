"""A target around another one: what does not depend on coordinates is handed on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping

from torch import Tensor

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
        self.num_at_once, self.has_tolerance = target.num_at_once, target.has_tolerance

    @property
    def backend(self) -> str:
        """How batches are evaluated; a property, since a model records its graph when first asked."""
        return self.target.backend


class MovedTarget(TargetWrapper):
    r"""The posterior of another target in other coordinates.

    .. math:: \gamma'(u) = \gamma(z(u))\,|\det \partial z / \partial u|.

    All that the target inside declares holds for this one, with the same sites in the same places; only which density
    is where is another matter. A class says where a point lies inside, where a point from inside lies, and the volume.

    Arguments:
        target: The target in the coordinates ``z``.
    """

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.sites, self.supports, self.dims = target.sites, target.supports, target.dims
        self.observed, self.standardized, self.is_model = target.observed, target.standardized, target.is_model
        self.improper_sites, self.discrete_sites = target.improper_sites, target.discrete_sites
        self.discrete_observations = target.discrete_observations
        self.notes, self.mistakes = target.notes, target.mistakes
        self.can_sample_prior, self.has_bounded_likelihood = target.can_sample_prior, target.has_bounded_likelihood

    @abstractmethod
    def inside(self, u: Tensor) -> Tensor:
        """Points of the target inside, ``(B, D) -> (B, D)``."""
        ...

    @abstractmethod
    def outside(self, z: Tensor) -> Tensor:
        """Points of the target inside as points of this one, ``(B, D) -> (B, D)``."""
        ...

    @abstractmethod
    def volume_inside(self, u: Tensor) -> Tensor:
        """Log of the volume inside that a point stands for, ``(B,)``."""
        ...

    def drawn(self, u: Tensor) -> Tensor:
        """Points of the target inside as draws show them, ``(B, D) -> (B, D)``. Default: those of :meth:`inside`."""
        return self.inside(u)

    # ---- the density ----

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density in these coordinates, ``(B, D) -> (B,)``."""
        return self.target.log_prob(self.inside(z)) + self.volume_inside(z)

    def sample_prior(self, num_draws: int) -> Tensor:
        """Draws of the prior in these coordinates, ``(num_draws, D)``."""
        return self.outside(self.target.sample_prior(num_draws))

    def log_prior_and_likelihood(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The two terms of the log density, ``(B, D) -> (B,), (B,)``; the volume counts in the prior."""
        log_prior, log_likelihood = self.target.log_prior_and_likelihood(self.inside(z))

        return log_prior + self.volume_inside(z), log_likelihood

    # ---- to the target in the middle of all, which moves nothing ----

    @property
    def unordered(self) -> Target:
        """The innermost target, in the coordinates of its sites."""
        return self.target.unordered

    def log_volume(self, u: Tensor) -> Tensor:
        """Log of the volume that a point stands for in the innermost target, ``(B,)``."""
        return self.volume_inside(u) + self.target.log_volume(self.inside(u))

    def to_target(self, u: Tensor) -> Tensor:
        """Points of the innermost target as draws show them, always the same one for the same ``u``."""
        return self.target.to_target(self.drawn(u))

    def in_order(self, u: Tensor) -> Tensor:
        """Points of the innermost target, components in order, ``(B, D) -> (B, D)``."""
        return self.target.in_order(self.inside(u))

    def to_ordered(self, z: Tensor) -> Tensor:
        """Points of the innermost target as points of this one, ``(B, D) -> (B, D)``."""
        return self.outside(self.target.to_ordered(z))

    # ---- sites ----

    def constrain(self, z: Tensor) -> dict[str, Tensor]:
        """Draws by site, ``(B, D)`` to ``{name: (B, *shape)}``."""
        return self.target.constrain(self.drawn(z))

    def from_samples(self, samples: Mapping[str, Tensor]) -> Tensor:
        """Points ``(S, D)`` of values by site."""
        return self.outside(self.target.from_samples(samples))

    def unconstrain(self, values: Mapping[str, Tensor]) -> Tensor:
        """Points ``(S, D)`` of unconstrained values by site."""
        return self.outside(self.target.unconstrain(values))

    def plain_coordinates(self, z: Tensor) -> Tensor:
        """The draws of :meth:`constrain` in the coordinates that Pyro gives its latents, ``(B, D) -> (B, D)``."""
        return self.target.plain_coordinates(self.drawn(z))

    def log_likelihood(self, z: Tensor) -> dict[str, Tensor]:
        """Log likelihood by observed site, ``(B, D)`` to ``{name: (B, *batch_shape)}``."""
        return self.target.log_likelihood(self.drawn(z))

    def by_group(self, z: Tensor, groups: Collection[str]) -> dict[tuple[str, str], Tensor]:
        """What InferenceData holds of the draws of :meth:`constrain`, ``{(group, site): (B, *shape)}``."""
        return self.target.by_group(self.drawn(z), groups)

    def saturated_sites(self, z: Tensor) -> dict[str, Tensor]:
        """Which points have a value that was rounded to a bound, ``{name: (S,)}``."""
        return self.target.saturated_sites(self.inside(z))

    def beyond_bounds(self, z: Tensor) -> Tensor | None:
        """Nats that values beyond stated bounds would add, ``(S,)``."""
        return self.target.beyond_bounds(self.inside(z))

    def unseen_dependence(self, z: Tensor) -> str | None:
        """What a sum over discrete latents does not see at some points, in sentences."""
        return self.target.unseen_dependence(self.inside(z))

    def out_of_range(self, z: Tensor) -> tuple[str, Tensor] | None:
        """What is said of parameters that are out of range, and log ratios of the density without that, ``(S,)``."""
        return self.target.out_of_range(self.inside(z))

    def has_closed_form(self, name: str) -> bool:
        """Whether a site's density is computed in its unconstrained coordinate."""
        return self.target.has_closed_form(name)

    def not_finite_sites(self, z: Tensor) -> list[str]:
        """Names of the sites whose log density is not finite at one point ``(D,)``."""
        return self.target.not_finite_sites(self.inside(z[None])[0])

r"""What every part of the sampler asks of a posterior: a batched, unnormalised log density, and what it can do besides.

.. math:: \log \gamma(z), \quad z \in \mathbb{R}^D, \qquad Z = \int \gamma(z)\,dz.

The packages between the Pyro front-end and ArviZ see a posterior only through :class:`Target`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

_NONE: Mapping[str, Any] = MappingProxyType({})


class Site(Protocol):
    """A latent site: its place in the flat vector and its two shapes.

    Arguments:
        name: The site's name.
        start: First index of the site in ``z``.
        stop: One past the last index.
        shape: The shape of its values.
        unconstrained_shape: The site's shape on the unconstrained side.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 - the class says it

    @property
    def start(self) -> int: ...  # noqa: D102

    @property
    def stop(self) -> int: ...  # noqa: D102

    @property
    def shape(self) -> torch.Size: ...  # noqa: D102

    @property
    def unconstrained_shape(self) -> torch.Size: ...  # noqa: D102


@runtime_checkable
class Target(Protocol):
    """An unnormalised log density on ``R^D``, evaluated in batches of points, with all its declared capabilities.

    Only ``dim``, ``dtype``, ``device`` and ``log_prob`` are required. Everything else has a default, which says that a
    target knows nothing of the kind; a class that inherits from this one has the defaults, and an object of any other
    class gets them from :func:`~pyro_osds.target.as_target`. Nobody asks a target whether it has a member.

    Arguments:
        dim: The number of dimensions ``D``.
        dtype: Floating point type of points.
        device: Device of points.
        draw_dtype: Floating point type that draws are handed out in. Default: double precision.
        num_terms: What one evaluation costs, in terms of a log density such as observations, some 30 ns each with
            their gradient; :class:`CostCounter` counts it. Default: 0, not known, which is taken for cheap.
        vectorized: Whether densities come in batches. Default: True. Point by point, everything that needs tens of
            thousands of densities is left out.
        num_at_once: Where they do not, how many points take hardly longer than one, because an evaluation is mostly
            something that is done once for all of them. Default: 1.
        is_double: Whether densities are evaluated in double precision. Default: True.
        has_tolerance: Whether a solver that chooses its steps by tolerances is part of the density. Default: False.
        backend: How batches are evaluated. Default: ``"given"``.
        sites: Latent sites, in the order of their coordinates. Default: none, the coordinates have no names.
        supports: What each latent site's support is, in words. Default: none.
        dims: Names of the dimensions of each site. Default: none.
        observed: Observations by site. Default: none.
        improper_sites: Latent sites whose prior has no integral. Default: none.
        discrete_sites: Discrete latents that were summed out. Default: none.
        discrete_observations: Observed sites with a probability, at most one, instead of a density. Default: none.
        notes: What is suspicious about the model, in sentences. Default: none.
        mistakes: Those of the notes that make every result wrong. Default: none.
        start: A point to look around first, ``(D,)``. Default: None, the origin.
        can_sample_prior: Whether there is a proper prior: :meth:`sample_prior` and :meth:`log_prior_and_likelihood`.
            Default: False.
        has_bounded_likelihood: Whether the likelihood is known to be bounded. Default: False.
        has_other_coordinates: Whether there is :meth:`other_coordinates`. Default: False.
        standardized: Whether these are the other ones. Default: False.
        is_model: Whether it is a Pyro model that can be run again, which only the package's front-end may say.
            Default: False.
    """

    dim: int
    dtype: torch.dtype
    device: torch.device
    draw_dtype: torch.dtype = torch.float64
    num_terms: int = 0
    vectorized: bool = True
    num_at_once: int = 1
    is_double: bool = True
    has_tolerance: bool = False
    backend: str = "given"
    sites: Sequence[Site] = ()
    supports: Mapping[str, str] = _NONE
    dims: Mapping[str, Sequence[str]] = _NONE
    observed: Mapping[str, Any] = _NONE
    improper_sites: Sequence[str] = ()
    discrete_sites: Sequence[str] = ()
    discrete_observations: Sequence[str] = ()
    notes: Sequence[str] = ()
    mistakes: Sequence[str] = ()
    start: Tensor | None = None
    can_sample_prior: bool = False
    has_bounded_likelihood: bool = False
    has_other_coordinates: bool = False
    standardized: bool = False
    is_model: bool = False

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of a batch, ``(B, D) -> (B,)``."""
        ...

    # ---- prior ----

    def sample_prior(self, num_draws: int) -> Tensor:
        """Draws of the prior, ``(num_draws, D)``; with ``can_sample_prior`` only."""
        raise ValueError(f"{type(self).__name__} has no prior that can be sampled; look at can_sample_prior first.")

    def log_prior_and_likelihood(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The two terms of the log density, ``(B, D) -> (B,), (B,)``; with ``can_sample_prior`` only."""
        raise ValueError(f"{type(self).__name__} has no proper prior; look at can_sample_prior first.")

    # ---- sites ----

    def constrain(self, z: Tensor) -> dict[str, Tensor]:
        """Draws by site, ``(B, D)`` to ``{name: (B, *shape)}``. Default: the single site ``z``."""
        return {"z": z.to(self.draw_dtype)}

    def from_samples(self, samples: Mapping[str, Tensor]) -> Tensor:
        """Points ``(S, D)`` of values by site, the inverse of :meth:`constrain`. Default: of the single site ``z``."""
        z = torch.as_tensor(samples["z"]) if "z" in samples else None
        if z is None or z.dim() != 2 or z.shape[1] != self.dim or not len(z):
            got = sorted(samples) if z is None else tuple(z.shape)
            raise ValueError(f"samples must have the site 'z' with shape (draws, {self.dim}); got {got}.")

        return z.to(device=self.device, dtype=self.dtype)

    def unconstrain(self, values: Mapping[str, Tensor]) -> Tensor:
        """Points ``(S, D)`` of unconstrained values by site. Default: refused, there are no sites."""
        raise ValueError("initial_params must be a tensor (D,) or (S, D) for a log density; got a mapping.")

    def saturated_sites(self, z: Tensor) -> dict[str, Tensor]:
        """Which draws have a value that was rounded to a bound, ``(S, D)`` to ``{name: (S,)}``. Default: not known."""
        return {}

    def beyond_bounds(self, z: Tensor) -> Tensor | None:
        """Nats that values beyond stated bounds would add, ``(S, D) -> (S,)``. Default: None, nothing is bounded."""
        return None

    def unseen_dependence(self, z: Tensor) -> str | None:
        """What a sum over discrete latents does not see at points ``(S, D)``, in sentences. Default: None, nothing."""
        return None

    def out_of_range(self, z: Tensor) -> tuple[str, Tensor] | None:
        """A sentence on parameters of distributions that are out of range, and log ratios of the density without that.

        Ratios are ``(S,)`` for points ``(S, D)``. Default: None, nothing is known to be out of range.
        """
        return None

    def has_closed_form(self, name: str) -> bool:
        """Whether a site's density is computed in its unconstrained coordinate. Default: no."""
        return False

    def not_finite_sites(self, z: Tensor) -> list[str]:
        """Names of the sites whose log density is not finite at one point ``(D,)``. Default: not known."""
        return []

    def log_likelihood(self, z: Tensor) -> dict[str, Tensor]:
        """Log likelihood by observed site, ``(B, D)`` to ``{name: (B, *batch_shape)}``. Default: not known."""
        return {}

    def by_group(self, z: Tensor, groups: Collection[str]) -> dict[tuple[str, str], Tensor]:
        """What InferenceData holds of each draw, ``{(group, site): (B, *shape)}``. Default: nothing."""
        return {}

    # ---- other coordinates ----

    def other_coordinates(self, z: Tensor) -> tuple[Target, Tensor, Tensor]:
        """The same density in other coordinates; with ``has_other_coordinates`` only.

        Returns:
            The target there, the points there ``(B, D)``, and the log-determinants of the way back, ``(B,)``.
        """
        raise ValueError(f"{type(self).__name__} has no other coordinates; look at has_other_coordinates first.")

    def plain_coordinates(self, z: Tensor) -> Tensor:
        """The same points in the coordinates that Pyro gives its latents, ``(B, D) -> (B, D)``. Default: these."""
        return z

    # ---- components in order; of these only OrderedTarget has others than the defaults ----

    @property
    def unordered(self) -> Target:
        """The target whose components are in no order. Default: this one."""
        return self

    def to_target(self, u: Tensor) -> Tensor:
        """Points of the unordered target, components in a random order, ``(B, D) -> (B, D)``. Default: the same."""
        return u

    def in_order(self, u: Tensor) -> Tensor:
        """Points of the unordered target, components in order, ``(B, D) -> (B, D)``. Default: the same."""
        return u

    def to_ordered(self, z: Tensor) -> Tensor:
        """Points of the unordered target as points of this one, ``(B, D) -> (B, D)``. Default: the same."""
        return z

    def log_volume(self, u: Tensor) -> Tensor:
        """Log of the volume that a point stands for in the unordered target, ``(B,)``. Default: zero."""
        return u.new_zeros(len(u))

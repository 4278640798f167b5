r"""Which coordinates a model's continuous latents have.

Pyro's own, by the support of each site, or one's own transforms. The standardised ones of a location-scale site are
:math:`(\theta - \mu) / \sigma`: a centred hierarchy with weak data is a funnel, in these it is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributions import AffineTransform, Transform, identity_transform

from pyro_osds.model.distributions.densities import unconstrained_log_prob
from pyro_osds.model.distributions.edge_draws import unconstrained_draw
from pyro_osds.model.distributions.transforms import to_support
from pyro_osds.model.distributions.wrappers import by_batch, loc_scale
from pyro_osds.model.sites import LatentSite


@dataclass(frozen=True)
class Coordinates:
    """The map between the values of each site and its coordinates.

    A site is given by its name and its distribution in the present run, ``{"name": ..., "fn": ...}``.

    Arguments:
        transforms: The user's constrained-to-unconstrained transforms, by site.
        event_dims: Event dimensions by site.
        below_discrete: Sites whose prior depends on a discrete latent.
        standardized: Whether location-scale sites are standardised.
    """

    transforms: Mapping[str, Transform]
    event_dims: Mapping[str, int]
    below_discrete: frozenset[str] = field(default_factory=frozenset)
    standardized: bool = False

    def to_value(self, site: Mapping[str, Any]) -> Any:
        """The transform from coordinates to a site's value."""
        name = site["name"]
        if name in self.transforms:
            return self.transforms[name].inv
        standard = self.standard(site) if self.standardized else None
        if standard is not None:
            return AffineTransform(*standard, event_dim=site["fn"].event_dim)

        return to_support(site["fn"], centered=name not in self.below_discrete)

    def to_support(self, site: Mapping[str, Any]) -> Any:
        """As :meth:`to_value`, and no map that is known where the transform is the user's own."""
        return identity_transform if site["name"] in self.transforms else self.to_value(site)

    def standard(self, site: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
        """Location and scale of a site that has other coordinates; None where it has none."""
        name = site["name"]

        return None if name in self.transforms or name in self.below_discrete else loc_scale(site["fn"])

    def value_with_density(self, site: Mapping[str, Any], u: Tensor) -> tuple[Tensor, Tensor]:
        """A site's value and its log density.

        Arguments:
            site: The site.
            u: Its coordinates.

        Returns:
            The value ``(*shape,)``, and the log density of the coordinates, ``(*batch_shape,)``.
        """
        name, fn, transform = site["name"], site["fn"], self.to_value(site)
        value = transform(u)
        log_prob = None if name in self.transforms else unconstrained_log_prob(fn, transform, u)
        if log_prob is None:
            log_prob = fn.log_prob(value) + self.by_batch(name, value, transform.log_abs_det_jacobian(u, value))

        return value, log_prob

    def by_batch(self, name: str, value: Tensor, log_abs_det: Tensor) -> Tensor:
        """Log-determinants of the way to a site's value with its event dimensions summed, ``(*batch_shape,)``."""
        return by_batch(log_abs_det, value, self.event_dims[name])

    def of_site(self, site: Mapping[str, Any]) -> Tensor:
        """The coordinates of a site that was run: those that were drawn, or those of its value."""
        u = unconstrained_draw(site)

        return self.to_value(site).inv(site["value"]) if u is None else u

    def of_run(self, sites: Sequence[LatentSite], nodes: Mapping[str, Any], like: Tensor) -> Tensor:
        """The coordinates of all sites of a run in one vector, ``(D,)``, with the type and device of ``like``."""
        flat = [self.of_site(nodes[site.name]).reshape(-1).to(like.dtype) for site in sites]

        return torch.cat(flat) if flat else like.new_empty(0)

    def layout(self, latents: Sequence[Mapping[str, Any]]) -> tuple[LatentSite, ...]:
        """Where the coordinates of each latent of the first run lie in the flat vector."""
        sites, start = [], 0
        for site in latents:
            value = site["value"]
            unconstrained = self.to_value(site).inv(value).shape
            stop = start + unconstrained.numel()
            sites.append(LatentSite(site["name"], start, stop, unconstrained, value.shape, value.dtype))
            start = stop

        return tuple(sites)

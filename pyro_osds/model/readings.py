"""What draws mean at the sites of a model: values, log likelihoods and log priors, from one run of it for each draw."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_osds.model.batching import Ladder
from pyro_osds.model.checks.ranges import ROUNDING, End, cut_outside, site_beyond
from pyro_osds.model.coordinates import Coordinates
from pyro_osds.model.discrete.joint import Joint
from pyro_osds.model.distributions.saturation import is_saturated
from pyro_osds.model.run import ModelRun
from pyro_osds.model.sites import LatentSite
from pyro_osds.model.values import values_at

# Terms of log densities that are held at once where parameters are looked at.
_MAX_TERMS = 2**20


class SiteReadings:
    """The part of a model target that reads its runs; what it reads from belongs to the target."""

    sites: tuple[LatentSite, ...]
    dtype: torch.dtype
    coordinates: Coordinates
    _ladder: Ladder
    _run: Callable[..., ModelRun]
    _value_shapes: Mapping[str, torch.Size]
    _dtypes: Mapping[str, torch.dtype]
    _closed_forms: Collection[str]
    _discrete_observations: tuple[str, ...]
    num_terms: int
    _joint: Joint | None
    _single: Callable[[Tensor], tuple[Tensor, Tensor]]

    def has_closed_form(self, name: str) -> bool:
        """Whether a site's density is computed in its unconstrained coordinate, so that no mass is lost at an edge."""
        return name in self._closed_forms

    @property
    def discrete_observations(self) -> tuple[str, ...]:
        """Observed sites with a probability, which is at most one, instead of a density."""
        return self._discrete_observations

    @property
    def standardized(self) -> bool:
        """Whether location-scale sites have standardised coordinates."""
        return self.coordinates.standardized

    @property
    def has_latents_below_discrete(self) -> bool:
        """Whether the prior of a continuous latent depends on a discrete one."""
        return bool(self.coordinates.below_discrete)

    def constrain(self, z: Tensor) -> dict[str, Tensor]:
        """Draws at every continuous latent site, ``(B, D)`` to ``{name: (B, *shape)}``."""
        return self._as_drawn(values_at(self._ladder, lambda row: self._run(row).values, z.to(self.dtype)))

    def constrain_with_log_abs_det(self, z: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Draws at every continuous latent site, and the log-determinants of the way there from ``z``.

        Arguments:
            z: Points, ``(B, D)``.

        Returns:
            ``{name: (B, *shape)}`` and, event dimensions summed, ``{name: (B, *batch_shape)}``.
        """

        def read(row: Tensor) -> tuple[Tensor, ...]:
            run = self._run(row)
            parts = zip(run.values.items(), run.log_abs_det, strict=True)
            by_batch = self.coordinates.by_batch
            return *run.values.values(), *(by_batch(name, value, part) for (name, value), part in parts)

        names = [site.name for site in self.sites]
        columns = self._ladder.map(read, z.to(self.dtype))
        values, log_abs_det = columns[: len(names)], columns[len(names) :]

        return self._as_drawn(dict(zip(names, values, strict=True))), dict(zip(names, log_abs_det, strict=True))

    def saturated_sites(self, z: Tensor) -> dict[str, Tensor]:
        """Which draws have a value that was rounded to a bound of its support, so that nothing tells how near it is.

        Arguments:
            z: Draws, ``(S, D)``.

        Returns:
            ``{name: (S,)}``, booleans: whether any entry of the site's value is 0 or 1, at an end of its interval, or
            infinite.

        Example:
            >>> import pyro, pyro.distributions as dist
            >>> from pyro_osds.model import ModelTarget
            >>> target = ModelTarget(lambda: pyro.sample("x", dist.Beta(0.05, 0.05)))
            >>> target.saturated_sites(torch.tensor([[0.0], [50.0]]))
            {'x': tensor([False,  True])}
        """

        def read(row: Tensor) -> dict[str, Tensor]:
            run = self._run(row)
            return {name: is_saturated(run.transforms[name], value).any() for name, value in run.values.items()}

        return self._ladder.map(read, z.to(self.dtype))

    def out_of_range(self, z: Tensor) -> tuple[str, Tensor] | None:
        r"""Where parameters of distributions lie out of their ranges, and what is left of the density without that.

        .. math:: \log \gamma'(z) - \log \gamma(z),

        where :math:`\gamma'` is zero wherever a parameter is out of range that counts: not masked, and not of a value
        of a discrete latent that cannot be.

        Arguments:
            z: Draws with a finite log density, ``(S, D)``.

        Returns:
            None where all are inside at all draws; else a sentence on the parameter that is so most often, with its
            cure, and the log ratios ``(S,)``.
        """
        z = z.to(self.dtype)
        ends = self._in_parts(self._farthest, z)
        outside = {key: far for key, far in ends.items() if bool((far > ROUNDING).any())}
        if not outside:
            return None

        def left(row: Tensor) -> Tensor:
            if self._joint is None:
                strict = _cut(self._run(row)).log_densities(row)
            else:
                strict = self._joint.densities(lambda given: _cut(self._run(row, given)), row)
            kept = sum(strict, row.new_zeros(())).nan_to_num(-torch.inf, neginf=-torch.inf)
            return kept - sum(self._single(row), row.new_zeros(()))

        return _sentence(outside), self._in_parts(lambda row: {"": left(row)}, z)[""]

    def _farthest(self, row: Tensor) -> dict[tuple[str, End], Tensor]:
        """How far each parameter lies beyond an end of its range at one point, at any values of discrete latents."""
        if self._joint is None:
            return _farthest(self._run(row))
        at_all = self._joint.read(lambda given: self._run(row, given), _farthest)

        return {key: far.amax() for key, far in at_all.items()}

    def _in_parts(self, read: Callable[[Tensor], Any], z: Tensor) -> dict[Any, Tensor]:
        """Tensors by key at each of some points, of so many points at once as memory is no matter for."""
        size = max(1, _MAX_TERMS // max(1, self.num_terms))
        parts = [self._ladder.map(read, part) for part in z.split(size)]

        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def deterministics(self, z: Tensor) -> dict[str, Tensor]:
        """Values of the ``pyro.deterministic`` sites, ``(B, D)`` to ``{name: (B, *shape)}``.

        One that depends on a discrete latent has no single value and is left out.
        """
        return self._as_drawn(self._ladder.map(lambda row: self._plain(self._run(row)), z.to(self.dtype)))

    def log_likelihood(self, z: Tensor) -> dict[str, Tensor]:
        """Pointwise log likelihood of the observed sites, ``(B, D)`` to ``{name: (B, *batch_shape)}``.

        A site whose rows a discrete latent ties together has none, and is left out.
        """
        return self._ladder.map(lambda row: self._run(row).log_likelihood(), z.to(self.dtype))

    def log_prior(self, z: Tensor) -> dict[str, Tensor]:
        """Log prior of the continuous latents' values, ``(B, D)`` to ``{name: (B, *batch_shape)}``.

        Densities of values as the model has them, without Jacobians. A site whose rows a discrete latent ties together
        is left out, and so is the missing part of an observed one.
        """
        return self._ladder.map(lambda row: self._run(row).log_prior(), z.to(self.dtype))

    def by_group(self, z: Tensor, groups: Collection[str]) -> dict[tuple[str, str], Tensor]:
        """What InferenceData holds of each draw, from one run of the model.

        Arguments:
            z: Draws, ``(B, D)``.
            groups: Some of ``"posterior"`` (its deterministic values), ``"log_likelihood"`` and ``"log_prior"``.

        Returns:
            ``{(group, site): (B, *shape)}``.
        """
        readers = {
            "posterior": self._plain, "log_likelihood": ModelRun.log_likelihood, "log_prior": ModelRun.log_prior,
        }  # fmt: skip

        def read(row: Tensor) -> dict[tuple[str, str], Tensor]:
            run = self._run(row)
            return {(group, name): value for group in groups for name, value in readers[group](run).items()}

        values = self._ladder.map(read, z.to(self.dtype))
        drawn = self._as_drawn({name: value for (group, name), value in values.items() if group == "posterior"})

        return values | {("posterior", name): value for name, value in drawn.items()}

    def _plain(self, run: ModelRun) -> dict[str, Tensor]:
        """The deterministic values that have the same shape for all values of the discrete latents."""
        values = run.deterministics

        return {name: value for name, value in values.items() if value.shape == self._value_shapes[name]}

    def _as_drawn(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values in the precision that the model, as it is written, has them in."""
        return {name: value.to(self._dtypes[name]) for name, value in values.items()}


def _cut(run: ModelRun) -> ModelRun:
    """A run whose densities are zero where a parameter is out of range."""
    for site in (*run.latents, *run.discrete, *run.observed):
        site["log_prob"] = cut_outside(site)

    return run


def _farthest(run: ModelRun) -> dict[tuple[str, End], Tensor]:
    """How far each parameter of each site lies beyond an end of its range at the most, scalars."""
    sites = (*run.latents, *run.discrete, *run.observed)

    return {(site["name"], end): far.amax() for site in sites for end, far in site_beyond(site).items()}


def _sentence(outside: Mapping[tuple[str, End], Tensor]) -> str:
    """Which parameter is out of range at most draws, one of its values, its range, and the cure."""
    name, end = max(outside, key=lambda key: int((outside[key] > ROUNDING).sum()))
    far = outside[name, end]
    value = end.value(far[far > ROUNDING].median().item())
    others = sorted({other for other, _ in outside if other != name})
    also = f" (and some of site{'s' * (len(others) > 1)} {', '.join(map(repr, others[:3]))})" if others else ""

    return (
        f"{end.parameter} of site {name!r}, {end.kind}, is out of its range{also}: {value:.4g} at one of them, where "
        f"it has to be {end.words}. {end.cure}"
    )

"""A potential function, as Pyro's ``HMC(potential_fn=...)`` takes it, as a batched log density."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform

from pyro_osds.model.agreement import check_points
from pyro_osds.model.batching import Ladder
from pyro_osds.model.checks.determinism import check_deterministic, no_training_layers
from pyro_osds.model.checks.gradients import check_gradients
from pyro_osds.model.graph import with_scores
from pyro_osds.model.sites import LatentSite, checked_samples, flatten, split
from pyro_osds.runtime.errors.lines import is_refusal, own_line
from pyro_osds.runtime.errors.told import named, telling, told
from pyro_osds.runtime.warnings import AmbiguousArgumentWarning, warn
from pyro_osds.target import Target


@telling(lambda target, error: _midst_failure(error), "log_prob")
class PotentialTarget(Target):
    r"""The density :math:`\gamma(z) = \exp(-U(z))` of a potential function *U*.

    Arguments:
        potential_fn: Maps unconstrained values by site to a scalar.
        initial_params: Unconstrained values by site: one point.
        transforms: Constrained-to-unconstrained transforms by site, for the draws.
        vectorize: As for :class:`pyro_osds.OSDS`.
        capture: As for :class:`pyro_osds.OSDS`.

    Raises:
        ValueError: If the potential is not a scalar, or random.

    Example:
        >>> target = PotentialTarget(lambda params: 0.5 * params["x"].square().sum(), {"x": torch.zeros(2)})
        >>> target.log_prob(torch.ones(3, 2))
        tensor([-1., -1., -1.], dtype=torch.float64)
    """

    sites: tuple[LatentSite, ...]

    def __init__(
        self,
        potential_fn: Callable[[dict[str, Tensor]], Tensor],
        initial_params: Mapping[str, Tensor],
        transforms: Mapping[str, Transform] | None = None,
        vectorize: str = "auto",
        capture: str | bool = "auto",
    ) -> None:
        self.potential_fn = potential_fn
        self.transforms = dict(transforms or {})
        self.sites = _layout(initial_params, self.transforms)
        self.dim = self.sites[-1].stop
        self.device = next(iter(initial_params.values())).device
        self.draw_dtype = functools.reduce(torch.promote_types, (site.dtype for site in self.sites))
        self.dtype = torch.float64
        example = self.unconstrain(initial_params)[0]
        with no_training_layers():
            value = _first_value(potential_fn, split(self.sites, example))
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"potential_fn must return a scalar tensor for the values of one point; it returned {got}."
            )
        check_deterministic(lambda row: {"potential_fn": self._single(row)[1]}, check_points(example)[:2])
        self._ladder = Ladder(self._single, example, vectorize, capture)
        self.vectorized = self._ladder.vectorized
        if not self.vectorized and self.is_double:
            check_gradients(with_scores(self._ladder.densities), self.sites, check_points(example)[:4])

    @property
    def is_double(self) -> bool:
        """Whether the potential is evaluated in double precision."""
        return self._ladder.is_double

    @property
    def backend(self) -> str:
        """How batches are evaluated: ``"captured"``, ``"vmap"`` or ``"loop"``."""
        return self._ladder.backend

    def log_prob(self, z: Tensor) -> Tensor:
        """Minus the potential, ``(B, D) -> (B,)``."""
        return self._ladder.densities(z.to(self.dtype))[1]

    def constrain(self, z: Tensor) -> dict[str, Tensor]:
        """Draws by site, through the inverse transforms, ``(B, D)`` to ``{name: (B, *shape)}``."""

        def values(row: Tensor) -> dict[str, Tensor]:
            inverse: dict[str, Any] = {name: transform.inv for name, transform in self.transforms.items()}
            return {name: inverse[name](u) if name in inverse else u for name, u in split(self.sites, row).items()}

        drawn = self._ladder.map(values, z.to(self.dtype))

        return {site.name: drawn[site.name].to(site.dtype) for site in self.sites}

    def unconstrain(self, values: Mapping[str, Tensor]) -> Tensor:
        """Flat vectors ``(S, D)`` of unconstrained values by site."""
        return flatten(self.sites, values, torch.empty(0, dtype=self.dtype, device=self.device))

    def from_samples(self, samples: Mapping[str, Tensor]) -> Tensor:
        """Flat vectors ``(S, D)`` of values by site after the transforms, each ``(S, *shape)``."""
        values = checked_samples(samples, {site.name: site.shape for site in self.sites})
        transforms: dict[str, Any] = self.transforms
        columns = [transforms[name](v) if name in transforms else v for name, v in values.items()]

        return torch.cat([column.flatten(1).to(device=self.device, dtype=self.dtype) for column in columns], 1)

    def _single(self, row: Tensor) -> tuple[Tensor, Tensor]:
        return row.new_zeros(()), -self.potential_fn(split(self.sites, row)).reshape(()).to(row.dtype)


def one_point(
    potential_fn: Callable[[dict[str, Tensor]], Tensor], initial_params: Mapping[str, Tensor], num_chains: int
) -> dict[str, Tensor]:
    """The values of one site each, out of ``initial_params`` for one point or, as ``MCMC`` wants it, for each chain.

    Arguments:
        potential_fn: The potential, which decides where both readings are possible.
        initial_params: Unconstrained values by site.
        num_chains: With more than one, a leading dimension of this size everywhere means one row for each chain.

    Returns:
        The values of the first chain, or of the one point.
    """
    values = {name: torch.as_tensor(value).detach() for name, value in initial_params.items()}
    by_chain = num_chains > 1 and all(value.dim() and len(value) == num_chains for value in values.values())
    if not by_chain:
        return values
    first = {name: value[0] for name, value in values.items()}
    if not _is_scalar(potential_fn, first):
        return values
    if _is_scalar(potential_fn, values):
        warn(
            f"The leading dimension of initial_params is num_chains = {num_chains}, so it is read as one row for each "
            "chain, as MCMC does. If it is one point, pass another num_chains.",
            AmbiguousArgumentWarning,
        )

    return first


def _first_value(potential_fn: Callable[[dict[str, Tensor]], Any], values: dict[str, Tensor]) -> Any:
    """The potential of one point, with a gradient to be asked for; explained where it fails."""
    try:
        with torch.enable_grad():
            return potential_fn({name: value.requires_grad_() for name, value in values.items()})
    except Exception as error:  # noqa: BLE001 - whatever it raises is told with its line
        if is_refusal(error) or isinstance(error, Warning):
            raise
        asked = error.args[0] if isinstance(error, KeyError) and error.args else None
        if isinstance(asked, str):
            raise ValueError(
                f"potential_fn asks for the site {asked!r}, which initial_params lacks; they name {list(values)}. Give "
                "an unconstrained value for each site of the potential."
            ) from error
        line = own_line(error)
        cure = "Numpy and scipy have no gradient: use torch's functions." if "numpy" in str(error) else ""
        shapes = ", ".join(f"{name!r} {tuple(value.shape)}" for name, value in values.items())
        sentence = (
            f"potential_fn failed{f' at {line}' if line else ''}: {named(error)} (sites: {shapes}). {cure}".rstrip()
        )
        raise told(error, sentence, ValueError) from error


def _midst_failure(error: Exception) -> str:
    """The sentence on a potential that fails at values that it had not met before."""
    return (
        f"potential_fn failed in the midst of a run, in {own_line(error)}: {named(error)}. Where it has no value, "
        "return torch.tensor(torch.inf)."
    )


def _is_scalar(potential_fn: Callable[[dict[str, Tensor]], Tensor], values: dict[str, Tensor]) -> bool:
    try:
        return torch.as_tensor(potential_fn(values)).numel() == 1
    except (RuntimeError, ValueError, TypeError, LookupError):
        return False


def _layout(initial_params: Mapping[str, Tensor], transforms: Mapping[str, Any]) -> tuple[LatentSite, ...]:
    if not initial_params:
        raise ValueError("initial_params names no sites; give an unconstrained value for each site of the potential.")
    unknown = sorted(transforms.keys() - initial_params.keys())
    if unknown:
        raise ValueError(f"transforms names the sites {unknown}, which are not in initial_params.")
    sites, start = [], 0
    for name, value in initial_params.items():
        shape = transforms[name].inv(value).shape if name in transforms else value.shape
        dtype = value.dtype if value.is_floating_point() else torch.get_default_dtype()
        sites.append(LatentSite(name, start, start + value.numel(), value.shape, shape, dtype))
        start += value.numel()

    return tuple(sites)

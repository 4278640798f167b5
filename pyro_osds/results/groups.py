"""From a fit to the groups of InferenceData: which there are, what is in them, how many predictive draws.

What costs more than about a second is left to the user: predictive draws are capped, unconstrained draws are on
request.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pyro_osds.fit import Fit
from pyro_osds.posterior.readings import by_chain, by_draw
from pyro_osds.results.report import arrays, fit_group, fit_stats_dims, fit_stats_group, sample_stats
from pyro_osds.runtime.arguments import check_counts, check_switches
from pyro_osds.runtime.warnings import OSDSWarning, warn

if TYPE_CHECKING:
    from pyro_osds.results.inference_data import InferenceData

# Predictive draws of each chain, unless the user says how many: the largest number that takes no longer than this.
_SECONDS, _NUMBERS = 0.3, (100, 50, 20, 10)


class Source(Protocol):
    """What draws observations; see ``pyro_osds.model.predictive``."""

    def posterior(self, samples: Mapping[str, Tensor], num_draws: int) -> dict[str, Tensor]:
        """Draws given those of the latents, by site."""
        ...

    def prior(self, num_draws: int) -> dict[str, Tensor]:
        """Draws of all sites, by site."""
        ...


@dataclass(frozen=True)
class Groups:
    """Which groups are asked for; as in :meth:`pyro_osds.OSDS.to_inference_data`.

    Raises:
        ValueError: If a number of draws is neither a switch nor a positive integer.

    Example:
        >>> Groups(prior=-3)
        Traceback (most recent call last):
        ValueError: prior must be an integer of at least 1, got -3.
    """

    log_likelihood: bool = True
    log_prior: bool = True
    posterior_predictive: bool | int | None = None
    prior: bool | int | None = None
    unconstrained: bool = False

    def __post_init__(self) -> None:
        names = ("log_likelihood", "log_prior", "unconstrained")
        check_switches({name: getattr(self, name) for name in names})
        given = {"posterior_predictive": self.posterior_predictive, "prior": self.prior}
        check_counts({name: value for name, value in given.items() if value is not None and type(value) is not bool})


def export(
    fit: Fit,
    groups: Groups,
    source: Source | None = None,
    constant: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
) -> InferenceData:
    """A fit as InferenceData.

    Arguments:
        fit: The fit.
        groups: What is asked for.
        source: Draws observations; None where there is no model.
        constant: Variables of the group ``constant_data``.
        dims: Names of dimensions by variable, from the user.
        coords: Labels by dimension, from the user.

    Raises:
        ValueError: If something is asked for that there is not, or names do not fit.
    """
    target, recipe, draws = fit.model_target, fit.recipe, fit.draws
    history, taught = fit.trainer.history, recipe.teacher_history
    sampled: dict[str, Mapping[str, Tensor]] = {"posterior": fit.samples, "sample_stats": sample_stats(draws)}
    sampled |= _of_each_draw(fit, groups)
    predicted, labels = _predicted(fit, groups, source, sampled["posterior"])
    found = fit_group(draws.evidence, recipe.found, recipe.name, target.backend, fit.run_report, draws.source)

    from pyro_osds.results.inference_data import to_inference_data  # here, since xarray takes half a second

    return to_inference_data(
        {group: arrays(values) for group, values in (sampled | predicted).items()},
        {
            "observed_data": arrays(target.observed),
            "constant_data": _constant_arrays(constant or {}),
            "fit": found,
            "fit_stats": fit_stats_group(history, taught, draws.flow_log_weight),
        },
        {**fit_stats_dims(history, taught), **target.dims},
        {**fit.seconds, "log_evidence": draws.evidence.log_evidence, "num_steps": fit.settings.num_steps},
        own_dims=dims,
        coords=coords,
        draws=labels,
    )


def _of_each_draw(fit: Fit, groups: Groups) -> dict[str, Mapping[str, Tensor]]:
    """Groups with a value for each posterior draw."""
    target = fit.model_target
    sampled: dict[str, Mapping[str, Tensor]] = {}
    z = fit.target.to_target(fit.draws.z)
    if target.is_model:
        wanted = ["posterior", *(name for name in ("log_likelihood", "log_prior") if getattr(groups, name))]
        values = by_chain(by_draw(lambda chunk: target.by_group(chunk, wanted), target, z), fit.settings.num_chains)
        sampled = {group: {name: value for (g, name), value in values.items() if g == group} for group in wanted}
        sampled["posterior"] = {**fit.samples, **sampled["posterior"]}
    if groups.unconstrained:
        has_sites = target.sites or not target.dim
        plain = by_draw(lambda chunk: _by_site(target, chunk), target, z) if has_sites else {"z": z}
        sampled["unconstrained_posterior"] = by_chain(plain, fit.settings.num_chains)

    return sampled


def _by_site(target: Any, z: Tensor) -> dict[str, Tensor]:
    plain = target.plain_coordinates(z)

    return {s.name: plain[:, s.start : s.stop].reshape(-1, *s.unconstrained_shape) for s in target.sites}


def _predicted(
    fit: Fit, groups: Groups, source: Source | None, posterior: Collection[str]
) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, np.ndarray]]:
    """The predictive groups, and which draws of each chain they belong to."""
    asked = [name for name in ("posterior_predictive", "prior") if getattr(groups, name)]
    if source is None:
        if asked:
            raise ValueError(f"{asked[0]} needs a Pyro model to draw from; this sampler has a density only.")
        return {}, {}
    target: Any = fit.model_target
    if groups.posterior_predictive and not target.observed:
        raise ValueError("posterior_predictive needs observed sites, and the model has none: leave it away.")
    predicted: dict[str, Mapping[str, Tensor]] = {}
    labels = {}
    with _own_randomness():
        if groups.posterior_predictive or (groups.posterior_predictive is None and target.observed):
            with _left_out_on_error("posterior_predictive", groups.posterior_predictive):
                kept, drawn = _posterior_predictive(fit, groups.posterior_predictive, source)
                predicted["posterior_predictive"] = {name: drawn[name] for name in target.observed}
                labels["posterior_predictive"] = kept
        if groups.prior or (groups.prior is None and target.can_sample_prior):
            with _left_out_on_error("prior", groups.prior):
                drawn = _prior(fit, groups.prior, source)
                predicted["prior"] = {name: value for name, value in drawn.items() if name in posterior}
                predicted["prior_predictive"] = {name: drawn[name] for name in target.observed}

    return predicted, labels


@contextlib.contextmanager
def _left_out_on_error(group: str, asked: bool | int | None) -> Iterator[None]:
    """A group that nobody asked for must not cost the others, whatever the model raises."""
    try:
        yield
    except Exception as error:  # noqa: BLE001
        if asked is not None:
            raise
        warn(f"The group {group!r} is left out: {error} {group}=False leaves it out without a warning.", OSDSWarning)


def _prior(fit: Fit, asked: bool | int | None, source: Source) -> dict[str, Tensor]:
    """Draws of all sites from the prior, as one chain."""
    num_chains, num_samples = fit.settings.num_chains, fit.settings.num_samples
    number = num_chains * num_samples if asked is True else asked
    if not number:
        number = num_chains * _affordable(source.prior, num_chains)

    return {name: value[None] for name, value in source.prior(number).items()}


def _posterior_predictive(fit: Fit, asked: bool | int | None, source: Source) -> tuple[np.ndarray, dict[str, Tensor]]:
    """Which draws of each chain are predicted from, and their predictions by chain."""
    num_chains, num_samples = fit.settings.num_chains, fit.settings.num_samples
    first = {name: value[0, :1] for name, value in fit.samples.items()}
    number = num_samples if asked is True else asked
    if not number:
        number = _affordable(lambda count: source.posterior(first, count), num_chains)
    number = min(number, num_samples)
    index = torch.arange(number) * num_samples // number
    thinned = {name: value[:, index].flatten(0, 1) for name, value in fit.samples.items()}
    drawn = source.posterior(thinned, num_chains * number)

    return index.numpy(), {name: value.unflatten(0, (num_chains, number)) for name, value in drawn.items()}


def _affordable(draw: Callable[[int], Any], num_chains: int) -> int:
    """How many draws of each chain take a fraction of a second of this process."""
    durations = []
    for _ in range(2):  # the first run of a model is slower than the rest
        start = time.process_time()
        draw(1)
        durations.append(time.process_time() - start)
    seconds = num_chains * min(durations)

    return next((number for number in _NUMBERS if number * seconds < _SECONDS), _NUMBERS[-1])


@contextlib.contextmanager
def _own_randomness() -> Iterator[None]:
    """Take one random number, however many are drawn: how many are affordable must not change what comes later."""
    seed = int(torch.randint(2**31, ()).item())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _constant_arrays(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Tensors, arrays, lists and numbers as arrays."""
    constant = {}
    for name, value in values.items():
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        if array.dtype == object:
            raise ValueError(
                f"constant_data[{name!r}] is {type(value).__name__}, which is no array of numbers or strings. Pass a "
                "tensor, an array, a list or a number."
            )
        constant[name] = array

    return constant

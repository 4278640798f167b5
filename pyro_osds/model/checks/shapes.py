"""Do observations fit their plates, and log densities their observations? Read off the first run.

Where shapes do not fit, torch broadcasts: a column of 10 values in a plate of 10 becomes 100 observations.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_osds.model.distributions.latents import UnsupportedSiteError
from pyro_osds.model.distributions.missing import without_missing
from pyro_osds.model.distributions.supports import UnknownSupportError
from pyro_osds.model.distributions.wrappers import unwrap
from pyro_osds.model.pyro_internals import Subsample
from pyro_osds.model.run import is_deterministic
from pyro_osds.runtime.errors.lines import failed_message
from pyro_osds.runtime.errors.told import first_line


def check_shapes(trace: Any) -> None:
    """Refuse observations, masks and scales whose shape does not fit the site's distribution and plates.

    Arguments:
        trace: A trace of the model.

    Raises:
        UnsupportedSiteError: If there is one.
    """
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not isinstance(site["fn"], Subsample):
            _check_parts(name, site)
        if not _is_observed(site):
            continue
        value, fn = tuple(site["value"].shape), site["fn"]
        event_dim = len(fn.event_shape)
        try:
            np.broadcast_shapes(value, fn.batch_shape + fn.event_shape)
        except ValueError:
            raise UnsupportedSiteError(_not_fitting(name, site, value)) from None
        batch = value[: len(value) - event_dim]
        if _is_outer(batch, tuple(fn.batch_shape)) or _is_outer(batch, _own_batch(site)):
            raise UnsupportedSiteError(_not_fitting(name, site, value))


def _check_parts(name: str, site: Any) -> None:
    """Refuse a mask, or a scale, that would make more terms of a site than it has."""
    batch = tuple(site["fn"].batch_shape)
    for what in ("mask", "scale"):
        part = site[what]
        if not isinstance(part, Tensor):
            continue
        try:
            fits = tuple(np.broadcast_shapes(part.shape, batch)) == batch
        except ValueError:
            fits = False
        if not fits:
            event = tuple(site["fn"].event_shape)
            whole = f", and the event shape {event}, of which a mask takes out all or nothing" if event else ""
            raise UnsupportedSiteError(
                f"The {what} of site {name!r} has the shape {tuple(part.shape)}, and its distribution "
                f"{type(site['fn']).__name__} the batch shape {batch}{whole}: each would meet each. Give the {what} "
                "the batch shape (squeeze or transpose it)"
                + (
                    "; what is missing inside an event is NanMaskedMultivariateNormal's, or .mask(...).to_event(1)."
                    if event
                    else "."
                )
            )


def compute_log_prob(trace: Any) -> None:
    """The log densities of a trace, in which what is masked out is not looked at.

    Raises:
        UnsupportedSiteError: If a masked observation cannot be left out by a value inside of the support.
    """
    values = {}
    for name, site in trace.nodes.items():
        if not _is_observed(site):
            continue
        try:
            replacement = without_missing(site)
        except UnknownSupportError as error:
            raise UnsupportedSiteError(
                f"Observed site {name!r} has masked entries outside of its support, and {first_line(error)}, by which "
                "they could be left out. Fill in any value of the support there; the mask takes it out."
            ) from error
        if replacement is not site["value"]:
            values[name], site["value"] = site["value"], replacement
    try:
        trace.compute_log_prob()
    except NotImplementedError as error:
        _refuse_without_density(trace)
        raise error
    finally:
        for name, value in values.items():
            trace.nodes[name]["value"] = value


def _refuse_without_density(trace: Any) -> None:
    """Name the site whose distribution has no log density."""
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or isinstance(site["fn"], Subsample):
            continue
        try:
            site["fn"].log_prob(site["value"])
        except NotImplementedError:
            kind = type(site["fn"]).__name__
            raise UnsupportedSiteError(
                f"The distribution {kind} of site {name!r} has no log_prob, so there is no density. Give its class "
                "one, or take another distribution: Pyro's reparametrisers (poutine.reparam with LinearHMMReparam or "
                "StableReparam) make one of those that it has."
            ) from None


def check_densities(trace: Any) -> None:
    """Refuse distributions whose log density has another shape than their batch of values.

    Arguments:
        trace: A trace with log densities computed.

    Raises:
        UnsupportedSiteError: If there is one.
    """
    for name, site in trace.nodes.items():
        is_sampled = site["type"] == "sample" and not isinstance(site["fn"], Subsample)
        if not is_sampled or not isinstance(site["value"], Tensor):
            continue
        fn, value = site["fn"], site["value"]
        batch = value.shape[: max(0, value.dim() - len(fn.event_shape))]
        expected, got = np.broadcast_shapes(batch, fn.batch_shape), site["unscaled_log_prob"]
        # A flat prior says so by one zero for all.
        if got.shape == expected or (got.dim() == 0 and got == 0):
            continue
        raise UnsupportedSiteError(
            f"The distribution {type(fn).__name__} of site {name!r} has a log_prob of shape {tuple(got.shape)} for "
            f"values of shape {tuple(value.shape)}, of which {len(fn.event_shape)} dimensions are the event: one of "
            f"shape {tuple(expected)} is needed, a number for each event. Sum its log_prob over the event dimensions "
            "and no others, without keepdim, and declare these dimensions by event_shape."
        )


def repeated(trace: Any) -> list[str]:
    """Sentences on single observations that count for all places of a plate."""
    notes = []
    for name, site in trace.nodes.items():
        if not _is_observed(site) or site["infer"].get("is_auxiliary"):
            continue
        value, plates = site["value"].shape, _plates(site)
        batch = value[: max(0, len(value) - len(site["fn"].event_shape))]
        shape = tuple(site["fn"].batch_shape)
        free = set(range(-len(shape), 0)) - {frame.dim for frame in plates}
        loose = [dim for dim in sorted(free) if shape[dim] > 1 and (len(batch) < -dim or batch[dim] == 1)]
        # A single number for many is a way to pull them all towards it.
        if loose and site["value"].numel() > 1:
            times = torch.Size([shape[dim] for dim in loose]).numel()
            notes.append(
                f"The observation of site {name!r} has the shape {tuple(value)}, and its distribution the batch shape "
                f"{shape}, whose dimension {loose[0]} is in no plate: each value counts {times} times. If that is "
                "meant, put it into a pyro.plate; else correct the shape of what the distribution is made of."
            )
        times = [frame.size for frame in plates if len(batch) < -frame.dim or batch[frame.dim] == 1]
        size = torch.Size(times).numel()
        if size > 1:
            sizes = ", ".join(f"{frame.name!r} of {frame.size}" for frame in plates)
            notes.append(
                f"The observation of site {name!r} has the shape {tuple(value)} in plate {sizes}: each of its values "
                f"counts {size} times. If that is meant, expand it to the plate; else take the site out of the plate."
            )

    return notes


def failed_site(error: BaseException) -> None:
    """Name the site at which Pyro could not expand a distribution to its plates.

    Arguments:
        error: What the model's run raised.

    Raises:
        UnsupportedSiteError: If that was it.
    """
    msg, functions = failed_message(error)
    if msg is None or not isinstance(error, NotImplementedError) or "expand" not in functions:
        return
    fn = msg["fn"]
    sizes = ", ".join(f"{frame.name!r} of {frame.size}" for frame in msg["cond_indep_stack"] if frame.vectorized)
    raise UnsupportedSiteError(
        f"The distribution {type(fn).__name__} of site {msg['name']!r} has the batch shape {tuple(fn.batch_shape)} and "
        f"cannot be expanded to plate {sizes}: its class has no expand method of its own. Write def expand(self, "
        "batch_shape, _instance=None) that returns one with expanded parameters, or give it parameters of the plate's "
        "size."
    ) from error


def _is_observed(site: Any) -> bool:
    is_sampled = site["type"] == "sample" and not isinstance(site["fn"], Subsample)

    return is_sampled and site["is_observed"] and isinstance(site["value"], Tensor) and not is_deterministic(site)


def _own_batch(site: Any) -> tuple[int, ...]:
    """The batch shape that a distribution had before its plates expanded it, read off parameters without strides.

    A column of covariates in a plate of rows makes a distribution for each pair of rows.
    """
    fn, plates = unwrap(site["fn"]), {frame.dim for frame in _plates(site)}
    batch, shift = list(site["fn"].batch_shape), len(site["fn"].event_shape) - len(fn.event_shape)
    parts = [part for part in vars(fn).values() if isinstance(part, Tensor) and part.dim() >= len(batch) + shift]
    if len(batch) <= len(plates) or not parts:
        return tuple(batch)
    for dim in plates & set(range(-len(batch), 0)):
        # Event dimensions of the parameters stand on the right; only where there are none it is known which is which.
        if all(part.dim() == len(batch) + shift and part.stride(dim - shift) == 0 for part in parts):
            batch[dim] = 1

    return tuple(batch)


def _plates(site: Any) -> list[Any]:
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized]


def _is_outer(value: tuple[int, ...], batch: tuple[int, ...]) -> bool:
    """Whether values and distributions lie along different dimensions, so that each is paired with each."""
    rank = max(len(value), len(batch))
    value, batch = (1,) * (rank - len(value)) + value, (1,) * (rank - len(batch)) + batch
    pairs = list(zip(value, batch, strict=True))

    return any(one > 1 and other == 1 for one, other in pairs) and any(one == 1 and other > 1 for one, other in pairs)


def _not_fitting(name: str, site: Any, value: tuple[int, ...]) -> str:
    fn = site["fn"]
    sizes = " and ".join(f"{frame.name!r} of {frame.size} along dimension {frame.dim}" for frame in _plates(site))
    where = f" in plate {sizes}" if sizes else ""

    return (
        f"The observation of site {name!r} has the shape {value}, and its distribution {type(fn).__name__} the batch "
        f"shape {_own_batch(site)} and the event shape {tuple(fn.event_shape)}{where}: they do not fit. Values "
        "need the batch shape and then the event shape; reshape the observation (squeeze or transpose it), or what the "
        "distribution is made of, or correct the plate's size or the distribution's .to_event()."
    )

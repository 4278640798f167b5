"""The first run of a model, from which its sites are read; and whether what it observes can be observed at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger

from pyro_osds.model.checks.constraints import refuse_outside
from pyro_osds.model.checks.determinism import TrainingLayerError, no_training_layers
from pyro_osds.model.checks.failures import SiteCheck, failure
from pyro_osds.model.checks.observations import impossible, refusal
from pyro_osds.model.checks.parameters import NanParameter, lasting, nan_parameters, refuse_missing
from pyro_osds.model.checks.shapes import check_densities, check_shapes, compute_log_prob, failed_site
from pyro_osds.model.distributions.latents import UnsupportedSiteError
from pyro_osds.model.foreign.moments import trace_of
from pyro_osds.model.foreign.parameters import Constants
from pyro_osds.model.pyro_internals import as_raised
from pyro_osds.model.trace import check_priors, init_anywhere, is_latent
from pyro_osds.model.vmap import VmapCompat, vmappable_pyro
from pyro_osds.runtime.errors.lines import is_refusal

# Runs until one has a finite density, or an observation inside a support that moves with the latents.
_TRIES = 20


def first_trace(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    init_strategy: Callable[..., Any],
    constants: Constants,
    transforms: Mapping[str, Any] | None = None,
) -> Any:
    """The trace of a first run that starts where all latents are numbers, if one of several does.

    Arguments:
        model: The model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        init_strategy: Pyro's init strategy.
        constants: Keeps the values that parameters have now.
        transforms: The user's transforms by site.

    Raises:
        ValueError: If the model fails; with the sites that were reached.
    """
    trace = poutine.Trace()
    for _ in range(_TRIES):
        with constants, vmappable_pyro(), VmapCompat(), no_training_layers():
            trace = _trace(
                model, InitMessenger(init_anywhere(init_strategy, transforms)), args, kwargs, transforms or {}
            )
        latents = (site["value"] for site in trace.nodes.values() if is_latent(site))
        if all(torch.as_tensor(value).isfinite().all() for value in latents):
            break

    return trace


def _trace(
    model: Any, init: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], transforms: Mapping[str, Any]
) -> Any:
    """One run, explained where it fails.

    Arguments:
        model: What the user gave.
        init: Gives latents their values.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        transforms: The user's transforms by site.
    """

    def attempt(given: tuple[Any, ...], named: Mapping[str, Any], check: SiteCheck | None = None) -> Any:
        trace = trace_of(init((check or SiteCheck())(model))).get_trace(*given, **named)
        # Other arguments are tried to see whether the model runs with them, whatever else is wrong.
        is_asked = given is args
        check_priors(trace, transforms)
        if is_asked:
            check_shapes(trace)
        compute_log_prob(trace)
        if is_asked:
            check_densities(trace)
        return trace

    try:
        return attempt(args, kwargs)
    except TrainingLayerError:
        raise
    except UnsupportedSiteError as error:
        # A trace adds the shapes of all its sites to what goes through it.
        raise UnsupportedSiteError(str(error).split("\nTrace Shapes:")[0]) from error
    except Exception as error:  # noqa: BLE001 - whatever it raises is told with site and line
        if is_refusal(error):
            raise
        failed_site(error)
        raised = as_raised(error)
        explained = failure(raised, model, args, kwargs, attempt)
        if explained is raised:
            raise raised from None
        raise explained from raised


def check_observations(trace: Any, model: Callable[[], Any]) -> None:
    """An observation outside its support under every one of several prior draws has probability zero.

    Arguments:
        trace: The first run.
        model: The model with its arguments.

    Raises:
        ValueError: If there is one.
    """
    found = impossible(trace)
    tries = 0
    while found and tries < _TRIES:
        try:
            still = impossible(_prior_trace(model))
        except NotImplementedError:  # an improper prior cannot be sampled: the first run decides
            break
        # A support that moves with the latents may yet reach the observation.
        # The place and the reason tell whether it is the same; a missing value does not equal itself.
        found = {name: seen for name, seen in found.items() if name in still and still[name][1:] == seen[1:]}
        tries += 1
    for name, seen in found.items():
        raise ValueError(refusal(name, seen))


def check_parameters(
    trace: Any, call: Callable[[], Any], model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[NanParameter]:
    """Refuse parameters that are out of range, or nan and not masked, under every one of several prior draws.

    Arguments:
        trace: The first run.
        call: The model with its arguments.
        model: The model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Returns:
        Those that a mask takes out, which are wrong only where a gradient goes through them.

    Raises:
        ValueError: If there is one, and data are why.
    """
    refuse_outside(trace, _prior_traces(call))
    found = nan_parameters(trace)
    if not found:
        return []
    last = lasting(found, _prior_traces(call))
    refuse_missing([parameter for parameter in last if not parameter.is_masked], model, args, kwargs)

    return [parameter for parameter in last if parameter.is_masked]


def _prior_traces(call: Callable[[], Any]) -> Iterator[Any]:
    for _ in range(_TRIES):
        try:
            yield _prior_trace(call)
        except NotImplementedError:  # an improper prior cannot be sampled: the first run decides
            return


def _prior_trace(model: Callable[[], Any]) -> Any:
    with torch.no_grad(), vmappable_pyro(), VmapCompat():
        return trace_of(model).get_trace()

"""The first run of a model, from which its sites are read; and whether what it observes can be observed at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Tensor

from pyro_osds.model.checks.constraints import refuse_outside
from pyro_osds.model.checks.determinism import TrainingLayerError, no_training_layers
from pyro_osds.model.checks.failures import SiteCheck, failure
from pyro_osds.model.checks.observations import Impossible, impossible, observed_sites, refusal
from pyro_osds.model.checks.parameters import NanParameter, lasting, nan_parameters, refuse_missing
from pyro_osds.model.checks.shapes import check_densities, check_shapes, compute_log_prob, failed_site
from pyro_osds.model.discrete.joint import Joint
from pyro_osds.model.discrete.supports import Wider, is_bounded, is_enumerable, single_values, wider
from pyro_osds.model.distributions.latents import UnsupportedSiteError
from pyro_osds.model.foreign.moments import trace_of
from pyro_osds.model.foreign.parameters import Constants
from pyro_osds.model.pyro_internals import as_raised, enumerated_dim
from pyro_osds.model.trace import check_priors, init_anywhere, is_latent
from pyro_osds.model.vmap import VmapCompat, vmappable_pyro
from pyro_osds.runtime.errors.lines import is_refusal

# Runs until one has a finite density, or an observation inside a support that moves with the latents.
_TRIES = 20
# Names of discrete latents that a sentence holds.
_MAX_NAMES = 4


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


def check_observations(trace: Any, model: Callable[[], Any]) -> dict[str, Impossible]:
    """Refuse an observation that has probability zero in every one of several prior draws.

    Arguments:
        trace: The first run.
        model: The model with its arguments.

    Returns:
        Sites whose observations may have it for other values of discrete latents only, to be looked at when it is known
        how these are summed; none without any.

    Raises:
        ValueError: If there is one.
    """
    found = impossible(observed_sites(trace))
    is_doubtful = any(is_latent(site) and is_enumerable(site) for site in trace.nodes.values())
    doubtful = {name: seen for name, seen in found.items() if is_doubtful and not seen.is_fixed}
    found = {name: seen for name, seen in found.items() if name not in doubtful}
    tries = 0
    while found and tries < _TRIES:
        try:
            still = impossible(observed_sites(_prior_trace(model)))
        except NotImplementedError:  # an improper prior cannot be sampled: the first run decides
            break
        found = _lasting(found, still)
        tries += 1
    for name, seen in found.items():
        raise ValueError(refusal(name, seen.seen()))

    return doubtful


def check_all_values(
    doubtful: Mapping[str, Impossible], run: Callable[..., Any], rows: Tensor, joint: Joint | None, nesting: int
) -> None:
    """Refuse an observation that has probability zero for every value of the discrete latents.

    Arguments:
        doubtful: What a plain run has seen.
        run: Runs the model at a point, with a value for each of some discrete latents and all others enumerated, to
            stated bounds or beyond.
        rows: A few points ``(S, D)``: a support that continuous latents move is none to judge by.
        joint: The joint values of those that are not enumerated.
        nesting: How many dimensions from the right belong to plates.

    Raises:
        ValueError: If there is one.
    """
    if not doubtful:
        return

    def look(
        given: Mapping[str, Tensor], row: Tensor, widened: Mapping[str, Wider] | None = None
    ) -> tuple[dict[str, Impossible], Any]:
        with torch.no_grad(), vmappable_pyro(), VmapCompat():
            seen = run(row, given, widened)
        return impossible({site["name"]: site for site in seen.observed if site["name"] in doubtful}), seen.discrete

    found: dict[str, Impossible] = {}
    assignments = iter([{}] if joint is None else (joint.at(index) for index in range(len(joint))))
    for index, given in enumerate(assignments):
        now, discrete = look(given, rows[0])
        now = _lasting(now, look(given, rows[-1])[0]) if rows.shape[1] else now
        if any(enumerated_dim(site) is not None for site in discrete):
            now = {name: each.for_all_values(nesting) for name, each in now.items()}
        # What another value makes of the bounds is that value's own.
        found = _lasting(found, {name: each._replace(bounds=()) for name, each in now.items()}) if index else now
        found = {name: each for name, each in found.items() if each.wrong.any()}
        if not found:
            return
    twice = {site["name"]: _twice(single_values(site)) for site in discrete if is_bounded(site)}
    beyond = look({}, rows[0], twice)[0] if joint is None and twice else {}
    for name, each in found.items():
        raise ValueError(refusal(name, each.seen(_always(each, discrete, joint is None, beyond.get(name)))))


def _twice(stated: Tensor) -> Wider:
    """All values up to twice a stated bound."""
    last = int(stated.max())

    return wider(stated, 2 * last + 1, last + 1)


def _lasting(found: Mapping[str, Impossible], other: Mapping[str, Impossible]) -> dict[str, Impossible]:
    both = {name: seen.lasting(other[name]) for name, seen in found.items() if name in other}

    return {name: seen for name, seen in both.items() if seen.wrong.any()}


def _always(seen: Impossible, discrete: Sequence[Any], is_at_once: bool, wider: Impossible | None) -> str:
    """What is wrong whatever discrete latents are, in words, with the bounds that can be raised."""
    what = seen.always() if is_at_once else seen.why.split(" support")[0] + " support" * seen.why.startswith("outside")
    bounded = [site["name"] for site in discrete if is_bounded(site)]
    is_short = bounded and is_at_once and seen.is_short(wider)
    more = f", up to the stated bound of {_names(bounded)}" if is_short else ""

    return f"{what} for all values of the discrete latents ({_names([site['name'] for site in discrete])}){more}"


def _names(names: Sequence[str]) -> str:
    few = ", ".join(map(repr, names[:_MAX_NAMES]))

    return few if len(names) <= _MAX_NAMES else f"{few} and {len(names) - _MAX_NAMES} more"


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

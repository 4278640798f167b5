"""Why a model fails: at which site, on which line, and in which of the runs before the first step."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.distributions import Distribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger

from pyro_osds.model.checks.cures import Reached, constant_cure, cure, misfit_sentence
from pyro_osds.model.checks.data import Attempt, argument_cure, describe, trying
from pyro_osds.model.pointwise import OnePoint
from pyro_osds.runtime.arguments import misfit
from pyro_osds.runtime.errors.lines import is_refusal, own_line, user_line
from pyro_osds.runtime.errors.told import named, place_of, told
from pyro_osds.runtime.options import nearest
from pyro_osds.runtime.torch_internals import is_batchedtensor

_EXPLAINED = ("builtins", "torch", "numpy", "pandas", "pyro")
_SHAPE = (
    "Site {!r} has a sample shape at {}, which no density knows. Write .expand({}).to_event(1) after the distribution, "
    "or put the site into a pyro.plate."
)
_MIDST_CURE = (
    "It fails at these values each time, and a model has to run at all values that its priors allow. Before that line, "
    "put a value that works in the place of what fails, and where that is impossible say so by "
    "pyro.factor('possible', torch.tensor(0.0 if is_possible else -torch.inf))."
)
RUNNING = (
    "log_prior_and_likelihood",
    "sample_prior",
    "from_samples",
    "other_coordinates",
    "infer_discrete",
    "beyond_bounds",
    "unseen_dependence",
    "not_finite_sites",
    "why_not_finite",
    "constrain",
    "constrain_with_log_abs_det",
    "saturated_sites",
    "out_of_range",
    "deterministics",
    "log_likelihood",
    "log_prior",
    "by_group",
)
"""Methods of a model's target that run the model."""
_SAMPLE_OPTIONS = ("obs", "obs_mask", "infer")
_DATA = ("observed", "value", "data", "y", "observation", "observations", "target", "given")
_VALUES = re.compile(r"Boolean value of Tensor|one element tensors|single element|converted to (a )?Python|to an index")


def check_site(msg: Mapping[str, Any]) -> None:
    """Refuse a sample site without a name, or without a distribution of Pyro's.

    Raises:
        TypeError: If its name is no string, or what it is drawn from is no distribution.
    """
    name, fn = msg["name"], msg["fn"]
    if not isinstance(name, str):
        swapped = " The name comes first." if isinstance(fn, str) else ""
        raise TypeError(
            f"A site's name must be a string, got {type(name).__name__} at {user_line()}.{swapped} Write "
            "pyro.sample('x', distribution)."
        )
    if isinstance(fn, (TorchDistributionMixin, Distribution)):
        if msg["args"] or msg["kwargs"]:
            _refuse_extra(msg)
        return
    if isinstance(fn, torch.distributions.Distribution):
        kind = type(fn).__name__
        raise TypeError(
            f"Site {name!r} has a {kind} of torch.distributions at {user_line()}, which has no plates and no event "
            f"dimensions. Use pyro.distributions.{kind}, with the same arguments."
        )
    if isinstance(fn, type):
        raise TypeError(
            f"Site {name!r} has the class {fn.__name__} at {user_line()}, not a distribution: give it its arguments, "
            f"such as {fn.__name__}(...)."
        )
    if "log_prob" not in dir(fn):
        raise TypeError(
            f"Site {name!r} has {fn!r} ({type(fn).__name__}) at {user_line()}, where a distribution belongs. Write "
            f"pyro.sample({name!r}, pyro.distributions.Normal(0.0, 1.0)), for instance."
        )


def _refuse_extra(msg: Mapping[str, Any]) -> None:
    """Refuse what ``pyro.sample`` takes for arguments of the distribution's sampler, and is meant as data."""
    name, kind = msg["name"], type(msg["fn"]).__name__
    for value in msg["args"]:
        if isinstance(value, tuple) and all(isinstance(size, int) for size in value):
            raise TypeError(_SHAPE.format(name, user_line(), list(value)))
        raise TypeError(
            f"Site {name!r} has {describe(value)} after its distribution at {user_line()}. Observations have a name: "
            f"write pyro.sample({name!r}, {kind}(...), obs=y)."
        )
    for option in msg["kwargs"]:
        if option == "sample_shape":
            raise TypeError(_SHAPE.format(name, user_line(), list(msg["kwargs"][option])))
        if option in inspect.signature(msg["fn"].sample).parameters:
            continue
        told = "Data are obs=" if option in _DATA else "Leave it out"
        told = nearest(option, _SAMPLE_OPTIONS).strip() or f"{told}; its options are {', '.join(_SAMPLE_OPTIONS)}."
        raise TypeError(f"pyro.sample has no option {option!r}, at {user_line()} for site {name!r}. {told}")


class SiteCheck(Messenger):
    """Checks each sample site when it is reached, before anything else looks at it.

    Arguments:
        is_noting: Whether to note the sites with their lines, which takes a while.
    """

    def __init__(self, is_noting: bool = False) -> None:
        super().__init__()
        self.is_noting = is_noting
        self.reached: list[Reached] = []

    def _pyro_sample(self, msg: Any) -> None:
        check_site(msg)
        if self.is_noting:
            line = user_line()
            self.reached.append(Reached(msg["name"], msg["fn"], line, msg["value"], msg["is_observed"]))

    def _pyro_post_sample(self, msg: Any) -> None:
        if self.is_noting and self.reached and self.reached[-1].name == msg["name"]:
            last = self.reached[-1]
            last.fn, last.value, last.is_done = msg["fn"], msg["value"], True


def failure(
    error: Exception, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], attempt: Attempt
) -> Exception:
    """The error to raise for a model that failed in a plain run.

    Arguments:
        error: What it raised.
        model: The model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        attempt: A plain run with other arguments.

    Returns:
        One with site, line, what was got and the cure, which is a ValueError as well as what it was; without a cure,
        and no ValueError, where it is of the user's own kind.
    """
    if isinstance(error, Warning):
        return error
    is_explained = _is_explained(error)
    wrong = misfit(model, args, kwargs) if is_explained else ""
    if wrong:
        return ValueError(misfit_sentence(wrong, model, args, kwargs))
    seen = _reached(attempt, args, kwargs)
    line = own_line(error)
    site = seen[-1] if seen and not seen[-1].is_done else None
    if not line:
        # It went through the model, and failed at the log density of one of its sites.
        site, error = _improbable(seen, error)
        line = site.line if site else ""
    where = f"at site {site.name!r}" if site else f"after site {seen[-1].name!r}" if seen else "before its first site"
    given = ", ".join(map(describe, (*args, *kwargs.values()))) or "none"
    where = f"{where}, in {line}" if line else where
    sentence = f"The model failed {where}: {named(error)} (arguments: {given})."
    if not is_explained:
        return told(error, sentence)

    return told(error, f"{sentence} {cure(error, seen, site, model, args, kwargs, attempt)}".rstrip(), ValueError)


def _is_explained(error: Exception) -> bool:
    """Whether an exception is one of Python or of a package whose mistakes are known, and not the user's own."""
    return type(error).__module__.partition(".")[0] in _EXPLAINED


def _improbable(seen: list[Reached], error: Exception) -> tuple[Reached | None, Exception]:
    """The site whose log density fails, and what it raises."""
    for site in seen:
        try:
            site.fn.log_prob(site.value)
        except Exception as raised:  # noqa: BLE001 - it is told
            return site, raised

    return None, error


def later_failure(
    error: Exception,
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    discrete: tuple[str, ...],
    attempt: Attempt,
) -> Exception:
    """The error to raise for a model that ran once, and failed when its density or its gradient was asked for.

    Arguments:
        error: What it raised.
        model: The model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        discrete: Its discrete latents, which take all their values at once by then.
        attempt: The same with other arguments.
    """
    if isinstance(error, Warning):
        return error
    line, place = own_line(error), place_of(error)
    on = f" at {line}" if line else ""
    on, text = (f"{on}, {place.where}" if place else on), named(error)
    if not _is_explained(error):
        return told(error, f"The model runs once, and fails elsewhere{on}: {text}.")
    if discrete:
        names = ", ".join(map(repr, discrete))
        cure = (
            constant_cure(error)
            if "numpy" in str(error)
            else (
                "Python cannot look at such a value: write torch.where(k == 1, a, b), or values[..., k] with "
                "pyro.ops.indexing.Vindex, in the place of an if, int(k) or a list."
                if _VALUES.search(str(error))
                else "Values lie along new dimensions on the left: use operations that broadcast there, such as "
                "(x * k).sum(-1), or a sequential plate, for i in pyro.plate(name, size), around the discrete site."
            )
        )
        return told(
            error,
            f"The model fails{on} where the discrete latents {names} take all their values at once, to be summed out: "
            f"{text}. {cure}",
            ValueError,
        )
    cure = argument_cure(args, kwargs, model, attempt, error) or constant_cure(error)

    return told(
        error,
        f"The model runs once, but its log density has no value elsewhere, or no gradient{on}: {text}. {cure}".rstrip(),
        ValueError,
    )


def explained(make: Callable[..., None]) -> Callable[..., None]:
    """A decorator for what makes a target of a model: what fails after the first run is told as such.

    Arguments:
        make: The ``__init__`` of a target with the attributes ``model``, ``args``, ``kwargs`` and ``discrete_sites``.
    """

    @functools.wraps(make)
    def call(self: Any, *given: Any, **options: Any) -> None:
        def attempt(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            others = {name: value for name, value in options.items() if name not in ("args", "kwargs")}
            return make(copy.copy(self), given[0], args, kwargs, *given[3:], **others)

        try:
            make(self, *given, **options)
        except Exception as error:  # noqa: BLE001 - whatever it raises is told with its line
            if is_refusal(error) or "sites" not in vars(self):
                raise
            explained = later_failure(error, self.model, self.args, self.kwargs, self.discrete_sites, attempt)
            if explained is error:
                raise
            raise explained from error

    return call


def midst_failure(target: Any, error: Exception) -> str:
    """The sentence on a model that fails in the midst of a run, at values that it had not met before.

    Arguments:
        target: The target, with the density ``_single`` of one point.
        error: What was raised.
    """
    place = place_of(error)
    where = f"{place.where}, in {own_line(error)}" if place else f"in {own_line(error)}"
    sentence = f"The model failed in the midst of a run, {where}: {named(error)}."
    point = place.point if place else {}
    names = [site.name for site in target.sites]
    if not names or any(name not in point or is_batchedtensor(point[name]) for name in names):
        return sentence
    row = torch.cat([point[name].detach().reshape(-1) for name in names])
    try:
        OnePoint(target._single, target.is_double, False)(row, None)
    except type(error):
        return f"{sentence} {_MIDST_CURE}"
    except Exception:  # noqa: BLE001 - another mistake at the same point: the first is told
        return sentence

    return f"{sentence} Run once more at the same values it did not: what decides is not among its latents."


def _reached(attempt: Attempt, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Reached]:
    """The sites that another run with the same arguments reaches."""
    check = SiteCheck(is_noting=True)
    with trying(), contextlib.suppress(Exception):
        attempt(args, kwargs, check)

    return check.reached

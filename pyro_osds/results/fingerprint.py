"""Which model and which data a fit belongs to, as words and digests that a file can hold and hold against others."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_osds.runtime.arguments import parameters_of, positional_names

# Points at which two densities are held against each other: a file stays small, and chance agrees at none.
_NUM_POINTS = 8
# Another machine, or another backend, sums in another order: this many units in the last place are the same.
_ROUNDING = 100


def identity(given: Any, target: Any, z: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What tells a fit's model and data from others.

    Arguments:
        given: The posterior in the coordinates of its sites.
        target: The same in the coordinates that were fitted.
        z: Points in these, ``(N, D)``; the first few are kept with their log densities.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
    """
    points = z[:_NUM_POINTS]

    return {
        "arguments": _described({**{f"args[{i}]": value for i, value in enumerate(args)}, **kwargs}),
        "observed": _described(given.observed),
        "sites": _sites(given),
        "points": points,
        "log_prob": _log_prob(target, points),
    }


def check_arguments(
    saved: dict[str, Any], model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Refuse arguments of the model that differ in value from those of the saved fit, whether by position or by name.

    Arguments:
        saved: What :func:`identity` gave.
        model: The model, which has names for its positional arguments, and defaults.
        args: Positional arguments.
        kwargs: Keyword arguments.

    Raises:
        ValueError: If one differs, is missing or is too many.
    """
    given = _described({**{f"args[{i}]": value for i, value in enumerate(args)}, **kwargs})
    before = saved["arguments"]
    own = positional_names(model, {**before, **given})
    before, now = ({own[name]: value for name, value in each.items()} for each in (before, given))
    # What was left out has its default, which may be given in so many words as well.
    parameters = parameters_of(model) or {}
    left_out = {name: parameters[name].default for name in before.keys() ^ now.keys() if name in parameters}
    default = _described({name: value for name, value in left_out.items() if value is not inspect.Parameter.empty})
    _refuse_differences("argument", default | before, default | now)


def check_model(saved: dict[str, Any], given: Any) -> None:
    """Refuse a model with other latent sites, or with other observations, than that of the saved fit.

    Raises:
        ValueError: If it is another model.
    """
    sites = _sites(given)
    if sites != saved["sites"]:
        names = sorted(set(sites.items()) ^ set(saved["sites"].items()))
        before, now = ({name: each.get(name, "none") for name, _ in names} for each in (saved["sites"], sites))
        raise ValueError(
            f"The file holds a fit of another model: its latent sites were {before}, this model's are {now}. Pass the "
            "model that was fitted, or run() this one."
        )
    _refuse_differences("observed site", saved["observed"], _described(given.observed))


def check_density(saved: dict[str, Any], target: Any) -> None:
    """Refuse a posterior whose log density is not that of the saved fit at the points kept.

    Raises:
        ValueError: If it differs by more than rounding.
    """
    expected = saved["log_prob"]
    got = _log_prob(target, saved["points"])
    rounding = _ROUNDING * torch.finfo(expected.dtype).eps * (10.0 + expected.abs())
    same = torch.where(expected.isfinite(), (got - expected).abs() <= rounding, got == expected)
    if not same.all():
        worst = int((~same).nonzero()[0, 0])
        raise ValueError(
            "The file holds a fit of another model: the latent sites are the same, but at a point where its log "
            f"density was {expected[worst].item():.6g} this model has {got[worst].item():.6g}. Pass the model that was "
            "fitted (priors, factors and parameters too), or run() this one."
        )


def _refuse_differences(what: str, saved: dict[str, list[str]], given: dict[str, list[str]]) -> None:
    different = [name for name in {**saved, **given} if saved.get(name) != given.get(name)]
    if different:
        name = different[0]
        before, now = (each[name][0] if name in each else "none" for each in (saved, given))
        raise ValueError(
            f"The file holds a fit to other data: {what} {name!r} differs (saved: {before}; got: {now}"
            f"{', with other values' if before == now else ''}). Load it with the data that it was fitted to; then "
            "run() may be given others."
        )


def _log_prob(target: Any, points: Tensor) -> Tensor:
    with torch.no_grad():
        return target.log_prob(points)


def _sites(target: Any) -> dict[str, str]:
    """Latent sites: shape, shape of the coordinates, and support where it is known."""
    supports = target.supports
    sites = {
        site.name: f"{tuple(site.shape)} from {tuple(site.unconstrained_shape)} {supports.get(site.name, '')}".strip()
        for site in target.sites
    }

    return {**supports, **sites} or {"all": f"{target.dim} coordinates"}


def _described(values: Mapping[str, Any]) -> dict[str, list[str]]:
    """What each value is and, where its value can be told, a digest of it."""
    return {name: [_description(value), _digest(value)] for name, value in values.items()}


def _description(value: Any) -> str:
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{value.dtype} {tuple(value.shape)}"
    if isinstance(value, (list, tuple, dict)):
        return f"{type(value).__name__} of {len(value)}"

    return type(value).__name__


def _digest(value: Any) -> str:
    digest = hashlib.sha256()
    _update(digest, value)

    return digest.hexdigest()


def _update(digest: Any, value: Any) -> None:
    """Feed the type and the value; of what has no value that can be told, such as a function, the type alone."""
    digest.update(f"<{_description(value)}>".encode())
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray) and value.dtype != object:
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, (bool, int, float, complex, str, bytes)):
        digest.update(repr(value).encode())
    elif isinstance(value, Mapping):
        for key, part in value.items():
            _update(digest, str(key))
            _update(digest, part)
    elif isinstance(value, (list, tuple, np.ndarray)):
        for part in value:
            _update(digest, part)

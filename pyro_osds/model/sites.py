"""Where latent sites lie in the flat vector ``z``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Beyond a bound by this share of it is what single precision makes of the bound itself.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class LatentSite:
    """A continuous latent and its place in ``z``.

    Arguments:
        name: The site's name.
        start: First index of the site in ``z``.
        stop: One past the last index.
        unconstrained_shape: The site's shape on the unconstrained side.
        shape: The shape of its values.
        dtype: Floating point type that the model uses at the site.
    """

    name: str
    start: int
    stop: int
    unconstrained_shape: torch.Size
    shape: torch.Size
    dtype: torch.dtype


def split(sites: Sequence[LatentSite], z: Tensor) -> dict[str, Tensor]:
    """Unconstrained values by site of one flat vector ``(D,)``.

    Example:
        >>> site = LatentSite("x", 0, 2, torch.Size([2]), torch.Size([2]), torch.float32)
        >>> split([site], torch.ones(2))
        {'x': tensor([1., 1.])}
    """
    return {s.name: z[s.start : s.stop].reshape(s.unconstrained_shape).to(s.dtype) for s in sites}


def checked_samples(samples: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The draws at these sites, in this order.

    Arguments:
        samples: Draws by site, ``(S, *shape)``; others are left out.
        shapes: The shape of a value by site.

    Raises:
        ValueError: If a site is missing, or has another shape or number of draws.
    """
    missing = [name for name in shapes if name not in samples]
    if missing:
        raise ValueError(f"samples lacks the sites {missing}; got {sorted(samples)}.")
    values = {name: torch.as_tensor(samples[name]) for name in shapes}
    for name, value in values.items():
        if value.shape[1:] != shapes[name] or not len(value):
            raise ValueError(
                f"samples[{name!r}] has shape {tuple(value.shape)}; it must be (draws, *{tuple(shapes[name])}), chains "
                "one after the other."
            )
    lengths = {name: len(value) for name, value in values.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"samples must have the same number of draws at every site; got {lengths}.")

    return values


def check_support(name: str, fn: Any, value: Tensor, row: int) -> None:
    """Refuse a draw beyond a bound of its support; one on the bound was rounded there.

    Arguments:
        name: The site.
        fn: Its distribution.
        value: The draw, ``(*shape,)``.
        row: Its number among the draws.

    Raises:
        ValueError: If it lies outside, or is nan.
    """
    support = fn.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    wrong = value.isnan()
    for bound, sign in (("lower_bound", 1.0), ("upper_bound", -1.0)):
        end = getattr(support, bound, None)
        if end is not None:
            end = torch.as_tensor(end).to(value)
            wrong = wrong | (sign * (value - end) < -_ROUNDING * (1.0 + end.abs()))
    if wrong.any():
        kind = type(support).__name__.strip("_")
        raise ValueError(
            f"samples[{name!r}] holds {value[wrong].reshape(-1)[0].item():.6g} at draw {row}, outside the support of "
            f"the site, {kind}. Pass draws of the site itself, as get_samples() gives them: no logarithms, no other "
            "parametrisation."
        )


def flatten(sites: Sequence[LatentSite], values: Mapping[str, Tensor], like: Tensor) -> Tensor:
    """Flat unconstrained vectors of unconstrained values by site, as ``MCMC``'s ``initial_params``.

    Arguments:
        sites: The layout.
        values: One value for each site, or one row of values for each start.
        like: A tensor with the type and device of ``z``.

    Returns:
        ``(S, D)``, with ``S = 1`` for single values.

    Raises:
        ValueError: If a site is missing, unknown, or has another shape.
    """
    names = [site.name for site in sites]
    missing, unknown = [name for name in names if name not in values], sorted(values.keys() - set(names))
    if missing or unknown:
        raise ValueError(
            f"initial_params lacks the latent sites {missing} and has the unknown ones {unknown}; "
            f"the model's latent sites are {names}."
        )
    columns = []
    for site in sites:
        value, shape = torch.as_tensor(values[site.name]), tuple(site.unconstrained_shape)
        if tuple(value.shape) != shape and tuple(value.shape[1:]) != shape:
            raise ValueError(
                f"initial_params[{site.name!r}] has shape {tuple(value.shape)}; its unconstrained shape is {shape}, "
                "after one leading dimension if there are several starts."
            )
        columns.append(value.reshape(-1, site.stop - site.start).to(like))
    lengths = {len(column) for column in columns}
    if len(lengths) > 1:
        raise ValueError(f"initial_params must have the same number of starts at every site; got {sorted(lengths)}.")

    return torch.cat(columns, -1)

"""Draws by site and by chain, out of whatever holds them: dictionaries, InferenceData, samplers, a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_osds.explore.particles import GivenDraws
from pyro_osds.runtime.names import exported_names
from pyro_osds.target import Target

# Names that a sentence lists.
_NUM_NAMED = 6


def reference_draws(samples: Any, what: str = "samples") -> dict[str, Tensor]:
    """Draws by site as they are held: of a mapping, of the group ``posterior`` of InferenceData, of a sampler.

    Arguments:
        samples: What the user has.
        what: What the argument is called.

    Returns:
        ``{name: (draws, *shape)}`` or, from InferenceData and from a sampler, ``{name: (chains, draws, *shape)}``.

    Raises:
        TypeError: If there are no draws by site in it.
        ValueError: If a site has no draws.

    Example:
        >>> {name: draws.shape for name, draws in reference_draws({"x": np.zeros((5, 2))}).items()}
        {'x': torch.Size([5, 2])}
    """
    posterior = _posterior_group(samples)
    if posterior is None:
        _check_groups(samples, what)
    if posterior is not None:
        given = {str(name): _in_order(value) for name, value in posterior.data_vars.items()}
    elif isinstance(samples, Mapping):
        given = {str(name): value for name, value in samples.items()}
    elif hasattr(samples, "get_samples"):
        given = _of_sampler(samples, what)
    else:
        raise TypeError(
            f"{what} must be a mapping of draws by site, or InferenceData with a group posterior; got "
            f"{type(samples).__name__}. Pass mcmc.get_samples(), for instance, or fit.stan_variables() of CmdStanPy."
        )

    return {name: _tensor(name, value, what) for name, value in given.items()}


def _of_sampler(sampler: Any, what: str) -> dict[str, Any]:
    """The draws that a sampler has made.

    Raises:
        ValueError: If it has made none.
    """
    try:
        return dict(sampler.get_samples(group_by_chain=True))
    except (AttributeError, TypeError) as error:
        # What NumPyro's and Pyro's MCMC say then is that None is no mapping.
        if "None" not in str(error):
            raise
        name = type(sampler).__name__
        raise ValueError(f"{what} holds no draws: this {name} has not been run. Call its run(...) first.") from error


def _tensor(name: str, value: Any, what: str) -> Tensor:
    try:
        # Arrays of jax are none of numpy's, and those of numpy may be read-only, of which torch warns.
        draws = value if isinstance(value, Tensor) else torch.as_tensor(np.array(value))
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{what}[{name!r}] is {type(value).__name__}, which is no array of draws. Pass a tensor (draws, *shape) "
            "for each site."
        ) from error
    if draws.is_complex():
        raise TypeError(f"{what}[{name!r}] holds complex numbers; pass the real values of the site.")
    if not draws.dim() or not draws.numel():
        raise ValueError(
            f"{what}[{name!r}] has shape {tuple(draws.shape)}, which holds no draws. Pass (draws, *shape), the draws "
            "of all chains one after the other, or (chains, draws, *shape)."
        )

    return draws.detach()


def _posterior_group(samples: Any) -> Any:
    """The group ``posterior`` of InferenceData or DataTree, or a data set itself; None for anything else.

    InferenceData is a mapping too, of groups; a plain mapping of draws has no groups that hold variables.
    """
    group = getattr(samples, "posterior", None)
    if group is None and isinstance(samples, Mapping) and "posterior" in samples:
        group = samples["posterior"]
    if hasattr(group, "data_vars"):
        return group
    sizes = {str(dim) for dim in getattr(samples, "sizes", ())}

    return samples if hasattr(samples, "data_vars") and {"chain", "draw", "sample"} & sizes else None


def _check_groups(samples: Any, what: str) -> None:
    """Refuse groups of variables of which none is the posterior.

    Raises:
        TypeError: If there are such groups.
    """
    holder = samples if isinstance(samples, Mapping) else getattr(samples, "children", {})
    groups = [str(name) for name, value in holder.items() if hasattr(value, "data_vars")]
    if groups:
        raise TypeError(
            f"{what} has the group{'s' * (len(groups) > 1)} {_listed(groups)} and no group 'posterior', which the "
            "draws are read from. Pass what holds the posterior draws."
        )


def _in_order(variable: Any) -> np.ndarray:
    """The values of a variable with its dimensions of draws in front."""
    front = [dim for dim in ("sample", "chain", "draw") if dim in variable.dims]

    return np.asarray(variable.transpose(*front, ...))


def shapes_of(target: Target) -> dict[str, torch.Size]:
    """The shape of a value at each site that draws are needed of, ``{"z": (D,)}`` for a density.

    Arguments:
        target: The target, in the coordinates of its sites.
    """
    return {site.name: site.shape for site in target.sites} or {"z": torch.Size([target.dim])}


def given_draws(samples: Any, target: Target, what: str = "initial_samples") -> GivenDraws:
    """Draws from elsewhere as points of a target, chain after chain.

    Arguments:
        samples: A mapping of draws by site, each ``(draws, *shape)`` or ``(chains, draws, *shape)``; InferenceData,
            DataTree or a data set; a sampler with ``get_samples``; for a density a tensor ``(draws, D)``, too.
        target: The target, in the coordinates of its sites.
        what: What the argument is called.

    Raises:
        TypeError: If there are no draws in it.
        ValueError: If a site is missing, has another shape, holds nan, or lies outside of its support.

    Example:
        >>> from pyro_osds.target import FunctionTarget
        >>> target = FunctionTarget(lambda z: -z.square().sum(-1), dim=2)
        >>> given_draws(torch.randn(4, 100, 2), target).num_chains
        4
    """
    shapes = shapes_of(target)
    if not target.sites and isinstance(samples, (Tensor, np.ndarray)):
        samples = {"z": samples}
    every = _renamed_back(reference_draws(samples, what), shapes)
    missing = [name for name in shapes if name not in every]
    if missing:
        raise ValueError(
            f"{what} lacks the site{'s' * (len(missing) > 1)} {_listed(missing)}; got {_listed(every)}. Pass draws of "
            f"all continuous latents of this model, by the names of its sites: {_listed(shapes)}."
        )
    chains, values = 0, {}
    for name, shape in shapes.items():
        values[name], chains = _flat(name, every[name], shape, chains, what)
    lengths = {name: len(value) for name, value in values.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"{what} must have the same number of draws at every site; got {lengths}. Pass them of one run."
        )
    for name, value in values.items():
        _check_numbers(name, value, what)
    known = (*shapes, *target.discrete_sites)
    ignored = tuple(name for name in every if name not in known)
    total = next(iter(lengths.values()))
    # Of draws that nobody has grouped the quarters are likely to be the chains, and are blocks of one if they are not.
    num_chains = chains if chains > 1 else min(_NUM_BLOCKS, total)
    length = total // num_chains
    index = torch.arange(total - num_chains * length, total).view(num_chains, length)
    kept = index[:, :: _stride(total, target.dim)].reshape(-1)
    chosen = {name: value[kept] for name, value in values.items()}
    z = target.from_samples(chosen)
    _check_round_trip(chosen, z, target, what)

    return GivenDraws(z, num_chains, total, ignored, is_grouped=chains > 1)


def given_or_none(samples: Any, target: Target) -> GivenDraws | None:
    """The same of ``initial_samples``; None where there are none, or the model has no continuous latents.

    Arguments:
        samples: What the user gave, or None.
        target: The target, in the coordinates of its sites.
    """
    return None if samples is None or not target.dim else given_draws(samples, target)


def by_draw(samples: Any, target: Target) -> dict[str, Tensor]:
    """Draws by site with chains one after the other, ``{name: (draws, *shape)}``; of other names as they are held.

    Arguments:
        samples: As for :func:`given_draws`.
        target: The target, in the coordinates of its sites.
    """
    shapes = shapes_of(target)
    every = _renamed_back(reference_draws(samples), shapes)
    for name in shapes:
        if name in every:
            _check_no_axis_of_one(name, every[name], shapes[name], "samples")
    # A mapping may hold only what is wanted; what a sampler or InferenceData hold beside it is not asked for.
    is_plain = isinstance(samples, Mapping) and _posterior_group(samples) is None

    return {
        name: value.flatten(0, 1) if name in shapes and value.dim() == len(shapes[name]) + 2 else value
        for name, value in every.items()
        if name in shapes or is_plain
    }


def check_alone(initial_samples: Any, warm_start: bool, initial_params: Any) -> None:
    """Refuse two places to start from.

    Arguments:
        initial_samples: Draws to start from, or None.
        warm_start: Whether to start from the last flow.
        initial_params: Points to look around first, or None.

    Raises:
        ValueError: If there are draws and another place.
    """
    if initial_samples is None:
        return
    if warm_start:
        raise ValueError(
            "initial_samples and warm_start=True are two places to start from: leave warm_start out, or "
            "initial_samples. "
            "Draws of a new run belong to a new sampler."
        )
    if initial_params is not None:
        raise ValueError(
            "initial_samples and initial_params are two places to start from: leave initial_params out; draws of the "
            "posterior say more than points to look around."
        )


# Parts that ungrouped draws are taken for.
_NUM_BLOCKS = 4
MAX_DRAWS, MAX_PER_DIM = 1000, 20
"""Draws that are looked at, evenly spread: with more of them a base is no better; of each dimension so many at "
"least."""


def _stride(total: int, dim: int) -> int:
    return max(1, total // max(MAX_DRAWS, MAX_PER_DIM * dim))


def _renamed_back(every: dict[str, Tensor], shapes: Mapping[str, Any]) -> dict[str, Tensor]:
    """Sites that InferenceData cannot hold under their names, under their names."""
    other = {exported: name for name, exported in exported_names(shapes).items() if name not in every}

    return {other.get(name, name): value for name, value in every.items()}


def _flat(name: str, value: Tensor, shape: torch.Size, chains: int, what: str) -> tuple[Tensor, int]:
    """The draws of a site one after the other, and in how many chains they are; one where nobody said."""
    own, size = value.dim() - len(shape), tuple(value.shape)
    _check_no_axis_of_one(name, value, shape, what)
    if own not in (1, 2) or value.shape[own:] != shape:
        wanted = ", ".join(["draws", *map(str, shape)])
        raise ValueError(
            f"{what}[{name!r}] has shape {size}; the site has shape {tuple(shape)}, so it must be ({wanted}) or "
            f"(chains, {wanted}). Pass draws of this model, fitted to data of the same size."
        )
    number = len(value) if own == 2 else 1
    if chains and chains != number:
        raise ValueError(
            f"{what}[{name!r}] has shape {size}, {number} chain{'s' * (number > 1)}, and other sites have {chains}: "
            f"group "
            "the draws of all sites by chain, or of none."
        )

    return value.reshape(-1, *shape), number


def _check_no_axis_of_one(name: str, value: Tensor, shape: torch.Size, what: str) -> None:
    """Refuse an axis of one that is too many, or too few, at the site that has it.

    A scalar site with draws ``(800, 1)`` would pass for 800 chains of one draw each, and others would be blamed.

    Raises:
        ValueError: If the draws fit without that axis, or with one more.
    """
    own, size = value.dim() - len(shape), tuple(value.shape)
    said = f"{what}[{name!r}] has shape {size} and the site has shape {tuple(shape)}"
    fits = own in (1, 2) and value.shape[own:] == shape
    if fits and own == 2 and size[0] > 1 and size[1] == 1:
        cure = ".squeeze(-1)" if not shape else ".squeeze(1)"
        raise ValueError(
            f"{said}: an axis of one is too many, or these are {size[0]} chains of one draw each, which say nothing "
            f"of how the draws follow each other. Pass the draws as {(size[0], *shape)}, by {cure}."
        )
    if not fits and size[-1:] == (1,) and own in (2, 3) and value.shape[own - 1 : -1] == shape:
        raise ValueError(f"{said}: its last axis of one is too many. Pass the draws without it, by .squeeze(-1).")
    if not fits and shape[-1:] == (1,) and own in (0, 1) and (*size, 1)[own + 1 :] == shape:
        raise ValueError(f"{said}, whose last axis of one the draws lack. Add it, by [..., None].")


def _check_numbers(name: str, value: Tensor, what: str) -> None:
    """Refuse draws that are no numbers."""
    bad = ~value.isfinite() if value.is_floating_point() else torch.zeros_like(value, dtype=torch.bool)
    if bad.any():
        rows = bad.flatten(1).any(1) if bad.dim() > 1 else bad
        got = value[bad].reshape(-1)[0].item()
        raise ValueError(
            f"{what}[{name!r}] holds {got} in {int(rows.sum())} of {len(rows)} draws, first in draw "
            f"{int(rows.nonzero()[0])}. Leave those draws out, or run the sampler again: a chain that gave nan or "
            "inf has failed."
        )


# Single precision, and the six digits of a CSV file of Stan, give values back to this share of their size.
_SAME_VALUE = 1e-3


def _check_round_trip(values: Mapping[str, Tensor], z: Tensor, target: Target, what: str) -> None:
    """Refuse values that are others once they went to the unconstrained side and back: they lie outside a support."""
    if not target.sites:
        return
    sample = torch.arange(0, len(z), max(1, len(z) // 256))
    back = target.constrain(z[sample])
    for name, value in values.items():
        given, again = (x.detach().cpu().double().reshape(len(sample), -1) for x in (value[sample], back[name]))
        away = (given - again).abs()
        if target.supports.get(name) == "Real":
            # An angle is the same after any number of turns; what is no angle comes back as it was.
            away = torch.minimum(away, 2.0 * torch.sin(0.5 * away).abs())
        scale = torch.maximum(given.abs(), given.std(0, keepdim=True).nan_to_num(0.0)).clamp(min=_SAME_VALUE)
        wrong = ~(away <= _SAME_VALUE * scale) & ~(away <= _SAME_VALUE)
        if wrong.any():
            row, column = (int(index) for index in wrong.nonzero()[0])
            raise ValueError(
                f"{what}[{name!r}] holds {value[sample][row].reshape(-1)[column].item():.6g} at draw "
                f"{int(sample[row])}, "
                f"which the support of the site ({target.supports.get(name, 'its transform')}) has as "
                f"{again[row, column].item():.6g}. Pass values of the site itself, as get_samples() gives them: a "
                "probability vector sums to one, a Cholesky factor of correlations has rows of length one."
            )


def _listed(names: Any) -> str:
    names = [repr(name) for name in names] or ["none"]

    return ", ".join(names[:_NUM_NAMED]) + (f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else "")

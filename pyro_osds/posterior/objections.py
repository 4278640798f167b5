"""What speaks against draws and evidence whatever their weights: of the density, of the flow, of the model itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch

from pyro_osds.explore.survey import Survey
from pyro_osds.explore.symmetry.declared import difference
from pyro_osds.explore.symmetry.resolved import resolved
from pyro_osds.posterior.evidence import Reason
from pyro_osds.posterior.plausibility import model_reasons, out_of_range, truncated, undefined_reasons, wrong_sums
from pyro_osds.runtime.clock import now
from pyro_osds.stats.weights import weigh
from pyro_osds.symmetries import Symmetry
from pyro_osds.target import Target
from pyro_osds.train.velocity import VelocityLeap

# Draws that show what is wrong with a model: a share of 0.001 is seen in half of them, and one of 0.01 nearly always.
# Where densities come point by point, a run of the model each.
_NUM_LOOKED_AT, _NUM_LOOKED_AT_SLOWLY = 512, 64
# Of what is left when draws begin, the part in which a model is looked at; and its draws at least, however late it is:
# a mistake that is everywhere shows at each of them.
_LOOK_SHARE, _FEWEST_LOOKED_AT = 0.1, 8
# Draws whose copies are looked at: a thousandth of the mass that has no copy is seen nearly always.
_NUM_COPIED = 4096

InTime = Callable[[int], int]
"""Maps a number of draws to that which there is time for."""


def objections(
    leap: Any, target: Target, given: Target, found: Survey | None, in_time: InTime = int
) -> tuple[Reason, ...]:
    """All that speaks against draws and evidence, whatever their weights.

    Arguments:
        leap: The trained leap.
        target: The target that it leaps to.
        given: The user's posterior.
        found: What exploration found, if there was something to explore.
        in_time: How many draws there is time for, of so many.
    """
    hopeless = hopeless_objections(leap, target.unordered, found)

    return (*_stopped(found), *hopeless, *model_objections(leap, target, given, found, in_time))


def broken_symmetries(
    leap: Any, target: Target, given: Target, symmetries: Sequence[Symmetry], in_time: InTime = int
) -> tuple[Reason, ...]:
    """Declared symmetries that the density does not have where the draws lie; random numbers stay as they are.

    Arguments:
        leap: The trained leap.
        target: The target that it leaps to.
        given: The user's posterior.
        symmetries: What was declared.
        in_time: How many draws there is time for, of so many.
    """
    if not symmetries or not given.dim:
        return ()
    count = in_time(_NUM_COPIED if given.vectorized else _NUM_LOOKED_AT_SLOWLY)
    plain = target.unordered
    with torch.random.fork_rng(devices=[given.device] if given.device.type == "cuda" else []):
        z = target.to_target(weigh(leap, target, count).z)
    z = plain.other_coordinates(z)[1] if plain.standardized != given.standardized else z
    reasons = []
    for each in resolved(symmetries, given):
        seen = difference(given, each, z)
        if seen.count:
            reasons.append(
                Reason(
                    f"The density does not have the declared symmetry {each.symmetry!r}: among posterior draws, "
                    f"{seen.sentence()}. At points to begin with and at explored particles nothing was seen of it. "
                    "Leave it out of symmetries, and run again.",
                    mendable=False,
                )
            )

    return tuple(reasons)


def hopeless_objections(leap: Any, target: Target, found: Survey | None) -> tuple[Reason, ...]:
    """What no further work cures: a density without an integral, a flow without a volume.

    Arguments:
        leap: The trained leap.
        target: The target in the coordinates of the model's sites.
        found: What exploration found, if there was something to explore.
    """
    return (*_endless(target, found), *_without_volume(leap))


def model_objections(
    leap: Any, target: Target, given: Target, found: Survey | None, in_time: InTime = int
) -> tuple[Reason, ...]:
    """What a few draws of the flow show about the model itself; the caller's random numbers stay as they are.

    Arguments:
        leap: The trained leap.
        target: The target that it leaps to.
        given: The user's posterior.
        found: What exploration found, if there was something to explore.
        in_time: How many draws there is time for, of so many.
    """
    model = target.unordered
    if not model.is_model:
        return ()
    if found is None:
        return _point_objections(model)
    count = in_time(_NUM_LOOKED_AT if model.vectorized else _NUM_LOOKED_AT_SLOWLY)
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        draws = weigh(leap, target, count)
    reasons = model_reasons(model, target.to_target(draws.z), draws.log_weight)

    return (*reasons, *undefined_reasons(given, found.undefined_share, found.undefined_at))


def num_in_time(wanted: int, deadline: float, per_draw: float) -> int:
    """Draws at which a model is looked at more closely: as many as a part of the time allows, and always some.

    Arguments:
        wanted: How many there are to be with time enough.
        deadline: Time of :func:`~pyro_osds.runtime.clock.now` at which the run should end.
        per_draw: Seconds of a weighted draw.

    Example:
        >>> num_in_time(64, math.inf, 0.1), num_in_time(64, now() - 1.0, 0.1), num_in_time(64, now() + 1e6, 0.1)
        (64, 8, 64)
    """
    if deadline == math.inf or per_draw <= 0.0:
        return wanted
    there_is_time_for = _LOOK_SHARE * max(deadline - now(), 0.0) / per_draw

    return min(wanted, max(_FEWEST_LOOKED_AT, int(there_is_time_for)))


def _point_objections(given: Target) -> tuple[Reason, ...]:
    """What speaks against a model without continuous latents, whose log evidence is a sum.

    Arguments:
        given: The user's posterior.
    """
    if given.dim:
        return ()
    point = torch.zeros(1, 0, dtype=given.dtype, device=given.device)
    weight = torch.ones(1, dtype=given.dtype, device=given.device)
    with torch.no_grad():
        outside = out_of_range(given, point, weight)

        wrong = wrong_sums(given, point, weight)

    return (*outside, *wrong, *truncated(given, point, weight))


def _stopped(found: Survey | None) -> tuple[Reason, ...]:
    """What speaks against everything that comes after an exploration that was stopped before its end."""
    if found is None or not found.progress:
        return ()

    return (
        Reason(
            f"Exploration was stopped before its end, {found.progress}: parts of the posterior may be missing, and the "
            "base of the flow is preliminary. Call resume(), which goes on from there, or raise max_time.",
            mendable=False,
        ),
    )


def _endless(target: Target, found: Survey | None) -> tuple[Reason, ...]:
    """What was seen of a density that does not fall off, and the cure that fits it."""
    endless = found.endless if found else None
    if endless is None:
        return ()
    sites = target.sites
    names = [site.name for site in sites if any(site.start <= index < site.stop for index in endless.coordinates)]
    where = name_sites(names) if names else f"coordinate {', '.join(map(str, endless.coordinates))}"
    flat = [name for name in names if name in target.improper_sites]
    if flat:
        cure = f"Give {name_sites(flat)} a proper prior."
    elif names:
        cure = (
            "With a proper prior that takes a likelihood without bound, as where a scale shrinks around equal "
            f"values, or a factor that undoes the prior. Keep scales away from zero, and check {where}."
        )
    else:
        cure = f"Add the log density of a proper prior along {where}."

    return (Reason(f"{endless.sentence(where)} {cure}", mendable=False),)


def _without_volume(leap: Any) -> tuple[Reason, ...]:
    """Why the leap's volume is not to be trusted, if it is not."""
    if leap.has_exact_density:
        return ()
    free_form = cast("VelocityLeap", leap)
    share = free_form.fold_share()

    return (
        Reason(
            f"The velocity network is no bijection (negative determinant at {share:.0%} of draws) and its volume "
            f"is {free_form.volume}: its weights are no bound and count folds twice. Use network='coupling'."
        ),
    )


def name_sites(names: Sequence[str]) -> str:
    """Sites in a sentence.

    Example:
        >>> name_sites(["mu", "tau"])
        "sites 'mu', 'tau'"
    """
    return f"site{'s' * (len(names) > 1)} {', '.join(map(repr, names))}"

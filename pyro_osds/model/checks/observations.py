"""What can be wrong with the observations of a model, read off a trace: impossible values, and forgotten ones.

An impossible observation leaves the posterior without mass and is refused. What is only suspicious is told: a model
without observations is a prior, and may be meant as one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Independent, constraints

from pyro_osds.model.distributions.missing import without_missing
from pyro_osds.model.distributions.supports import bare
from pyro_osds.model.distributions.wrappers import unwrap
from pyro_osds.model.run import is_deterministic
from pyro_osds.model.trace import is_latent, is_value

# From here on not every whole number is one of single precision.
_LARGEST_WHOLE = 2**24


def observed_sites(trace: Any) -> dict[str, Any]:
    """The sites with observed values, by name; what only shows others is none."""
    nodes = trace.nodes.items()

    return {name: s for name, s in nodes if is_value(s) and s["is_observed"] and not is_deterministic(s)}


def observed_values(trace: Any) -> dict[str, Tensor]:
    """Values of the observed sites, by name."""
    return {name: site["value"] for name, site in observed_sites(trace).items()}


class Impossible(NamedTuple):
    """What is impossible about the observed values of a site, in one run.

    Arguments:
        site: The site.
        wrong: Which values cannot be, of the batch shape, to the left of which are the values of discrete latents.
        why: Why they cannot, in words.
        bounds: The bounds of the support that are tensors: those of another run may be others.
        is_fixed: Whether no value of a latent can change it.
    """

    site: Any
    wrong: Tensor
    why: str
    bounds: tuple[Tensor, ...]
    is_fixed: bool

    def lasting(self, other: Impossible) -> Impossible:
        """What is wrong in another run, too, with the same bounds: a support that moves may reach further yet."""
        wrong = self.wrong & other.wrong
        for own, its in zip(self.bounds, other.bounds, strict=False):
            wrong = wrong & _in_batch(own == its, self.site["fn"].event_dim)

        return self._replace(wrong=wrong)

    def for_all_values(self, nesting: int) -> Impossible:
        """What is wrong for every value of discrete latents, which lie to the left of so many plates."""
        enumerated = self.wrong.dim() - nesting
        wrong = self.wrong.flatten(0, enumerated - 1).all(0) if enumerated > 0 else self.wrong

        return self._replace(wrong=wrong)

    def seen(self, why: str = "") -> tuple[Any, ...]:
        """What :func:`refusal` tells: the first value, its place, how many, of how many, why, and what they are."""
        fn, place = self.site["fn"], tuple(self.place())
        shown = _shown(fn, torch.as_tensor(self.site["value"]), self.wrong).item()

        return shown, place, int(self.wrong.sum()), self.wrong.numel(), why or self.why, *_whole(fn)

    def place(self) -> list[int]:
        """Where the first value is that cannot be."""
        return self.wrong.nonzero()[0].tolist()

    def reach(self, place: Sequence[int]) -> tuple[float, float]:
        """How far the support reaches at one place of the batch shape; infinite without bounds."""
        fn = self.site["fn"]
        shape = (*self.wrong.shape, *(1,) * fn.event_dim)
        at = (..., *place, *(slice(None),) * fn.event_dim)
        support, ends = bare(fn.support), []
        for name, default in (("lower_bound", -math.inf), ("upper_bound", math.inf)):
            bound = torch.as_tensor(getattr(support, name, default))
            ends.append(bound.expand(np.broadcast_shapes(bound.shape, shape))[at])

        return ends[0].min().item(), ends[1].max().item()

    def is_short(self, wider: Impossible | None) -> bool:
        """Whether a value is a whole number above a support that a higher bound of a count would widen."""
        place, value = self.place(), self.seen()[0]
        high = self.reach(place)[1]

        return value > high and value == int(value) and (wider is None or wider.reach(place)[1] > high)

    def always(self) -> str:
        """What is wrong for all values of discrete latents, in words."""
        low, high = self.reach(self.place())
        if not self.why.startswith("outside") or math.isinf(low) and math.isinf(high):
            return self.why
        kind = "whole numbers" if bare(self.site["fn"].support).is_discrete else "numbers"
        start = "" if math.isinf(low) else f" from {low:g}"
        end = "" if math.isinf(high) else f" to {high:g}"

        return f"outside its support ({kind}{start}{end} at most)"


def impossible(sites: Mapping[str, Any]) -> dict[str, Impossible]:
    """Observed sites with a value of probability zero, by name.

    Arguments:
        sites: Observed sites of a run, enumerated or not, by name.
    """
    found = {}
    for name, site in sites.items():
        # What is masked out, by any mask, or missing for its distribution, may be anything.
        value = torch.as_tensor(without_missing(site))
        if not value.numel():  # of a factor
            continue
        wrong, why, is_fixed = _wrong(site["fn"], value)
        mask = site["mask"]
        if mask is not None:
            wrong = wrong & torch.as_tensor(mask, device=wrong.device)
        if wrong.any():
            ends = (getattr(bare(site["fn"].support), end, None) for end in ("lower_bound", "upper_bound"))
            bounds = tuple(end for end in ends if isinstance(end, Tensor)) if why.startswith("outside") else ()
            found[name] = Impossible(site, wrong, why, bounds, is_fixed and not bounds)

    return found


def _in_batch(same: Tensor, event_dim: int) -> Tensor:
    """What holds for all of an event's entries, of a shape that broadcasts with the batch shape."""
    for _ in range(min(event_dim, same.dim())):
        same = same.all(-1)

    return same


def _shown(fn: Any, value: Tensor, wrong: Tensor) -> Tensor:
    """The number to show of events that cannot be: one that is not finite, or is outside, or the first."""
    inner, every = bare(fn.support), value.expand(wrong.shape + value.shape[value.dim() - fn.event_dim :])
    flat = every[wrong].reshape(-1)
    bad = ~flat.isfinite()
    if not bad.any() and not inner.event_dim:
        outside = ~inner.check(value)
        # To the left of the plates are the values of discrete latents, for all of which it is outside.
        while outside.dim() > every.dim():
            outside = outside.all(0)
        bad = outside.expand(every.shape)[wrong].reshape(-1)

    return flat[bad.nonzero()[0, 0]] if bad.any() else flat[0]


def _whole(fn: Any) -> tuple[str, ...]:
    """What a site's events are: nothing for single numbers, "independent" ones, or the name of their distribution."""
    base = unwrap(fn)
    if base.event_shape:
        return (type(base).__name__,)

    return ("independent",) if fn.event_shape else ()


def _wrong(fn: Any, value: Tensor) -> tuple[Tensor, str, bool]:
    """Which values cannot be, in the batch shape, why, and whether that is so whatever the parameters are."""
    support = fn.support
    inside = support.check(value)
    if value.is_floating_point():
        missing = value.isnan()
        while missing.dim() > inside.dim():
            missing = missing.any(-1)
        if missing.any():
            return missing, "a missing value has no density", True
        infinite = value.isinf()
        while infinite.dim() > inside.dim():
            infinite = infinite.any(-1)
        if infinite.any():
            return infinite | ~inside, "no observation is infinite", True
    plain = fn
    while isinstance(plain, Independent):
        plain = plain.base_dist
    if isinstance(plain, Bernoulli) and "probs" in plain.__dict__:
        never = ((plain.probs == 0) & (value == 1)) | ((plain.probs == 1) & (value == 0))
        if never.any():
            never = never.flatten(never.dim() - fn.event_dim).any(-1) if fn.event_dim else never
            return never | ~inside, "its probability is exactly zero", False

    if inside.all():
        why = "on a bound of its support, where its density is zero or infinite"
        return _on_bound(fn, value, torch.Size(np.broadcast_shapes(inside.shape, fn.batch_shape))), why, False
    plain_support = bare(support)

    return ~inside, f"outside its support {plain_support}{_coded_otherwise(plain_support, value)}", True


def _coded_otherwise(support: Any, value: Tensor) -> str:
    """What makes zeros and ones of labels of two kinds that are coded otherwise; empty for what is none."""
    if support is not constraints.boolean or value.dtype == torch.bool:
        return ""
    seen = value.unique().tolist()
    code = {(-1, 1): "(y + 1) / 2", (1, 2): "y - 1"}.get(tuple(seen)) if len(seen) == 2 else None

    return f", which holds 0 and 1, and labels here are {seen[0]:g} and {seen[1]:g} (pass {code})" if code else ""


def _on_bound(fn: Any, value: Tensor, shape: torch.Size) -> Tensor:
    """Which values lie on a bound of their support and have no finite density there, in the batch shape."""
    support = bare(fn.support)
    # Counts have their probability on a bound as elsewhere.
    bounds = () if support.is_discrete else (getattr(support, name, None) for name in ("lower_bound", "upper_bound"))
    at_bound = [value == bound for bound in bounds if bound is not None]
    if not any(at.any() for at in at_bound):
        return torch.zeros(shape, dtype=torch.bool, device=value.device)
    event = value.shape[value.dim() - fn.event_dim :]
    on_bound = torch.stack([torch.broadcast_to(at, (*shape, *event)) for at in at_bound]).any(0)
    on_bound = on_bound.flatten(len(shape)).any(-1) if event else on_bound

    return on_bound & ~torch.broadcast_to(fn.log_prob(value), shape).isfinite()


def refusal(name: str, seen: tuple[Any, ...]) -> str:
    """The sentence for an impossible observation.

    Example:
        >>> print(refusal("y", (float("inf"), (3,), 1, 30, "no observation is infinite")))
        Observed site 'y' has the value inf at index (3,) (1 of 30 values): no observation is infinite, so the posterior has no mass. Remove or transform that observation, or change the site's distribution.
    """  # noqa: E501 - one line is printed
    value, place, count, total, why, *whole = seen
    cure = "Remove or transform that observation, or change the site's distribution."
    if "labels here" in why:
        cure = "Code them as 0 and 1, by what stands in the brackets."
    if "up to the stated bound" in why:
        cure = "Raise the bound, correct that observation, or change the site's distribution."
    if "missing" in why:
        cure = _cure_of_missing(name, whole)
    if "on a bound" in why:
        cure = (
            "If rounding put it on the bound, pass the data in float64 or move it inside (clamp to 1e-6 and 1 - 1e-6, "
            "for instance); else change the site's distribution."
        )
    at = f" at index {place}" if place else ""

    return (
        f"Observed site {name!r} has the value {value}{at} ({count} of {total} values): {why}, so the posterior has no "
        f"mass. {cure}"
    )


def _cure_of_missing(name: str, whole: Sequence[str]) -> str:
    """How to leave missing values out, by what a mask can take out of the site."""
    if not whole:
        return (
            f"Leave them out, by poutine.mask(mask=~y.isnan()) around the site, or have them imputed, by "
            f"pyro.sample({name!r}, ..., obs=y, obs_mask=~y.isnan()); y itself may keep its nan."
        )
    if whole[0] == "MultivariateNormal":
        return (
            "Leave single entries out, by NanMaskedMultivariateNormal in the place of MultivariateNormal, or whole "
            f"events, by poutine.mask(mask=~y.isnan().any(-1)) around the site or the same as obs_mask of "
            f"pyro.sample({name!r}, ...); y itself may keep its nan."
        )
    if whole[0] == "independent":
        return (
            "Leave single entries out, by .mask(~y.isnan()) before .to_event(), or have whole events imputed, by "
            f"pyro.sample({name!r}, ..., obs=y, obs_mask=~y.isnan().any(-1)); y itself may keep its nan."
        )
    return (
        f"{whole[0]} has no density of a part of an event. Leave whole events out, by poutine.mask around the site, or "
        f"have them imputed, by an obs_mask of pyro.sample({name!r}, ...); the mask has the batch shape, and y itself "
        "may keep its nan. A series with gaps can be written step by step, with a site for each step that is there."
    )


def rounded_counts(trace: Any) -> list[str]:
    """Sentences on counts that single precision, or less, cannot hold."""
    notes = []
    for name, site in observed_sites(trace).items():
        value = torch.as_tensor(without_missing(site))
        if not value.is_floating_point() or value.dtype == torch.float64 or not site["fn"].support.is_discrete:
            continue
        largest = value.abs().max().item() if value.numel() else 0.0
        bound = min(_LARGEST_WHOLE, round(2 / torch.finfo(value.dtype).eps))
        if largest > bound:
            dtype = str(value.dtype).removeprefix("torch.")
            notes.append(
                f"Observed site {name!r} holds counts up to {largest:.10g} in {dtype}, "
                f"which has not every whole number above {bound}: they may be rounded. Pass them in torch.float64."
            )

    return notes


def one_hot(trace: Any) -> list[str]:
    """Sentences on indicators of categories that are observed as if each were a label."""
    notes = []
    for name, site in observed_sites(trace).items():
        fn, value = unwrap(site["fn"]), torch.as_tensor(site["value"])
        if (
            not isinstance(fn, Categorical)
            or value.dim() < 2
            or value.shape[-1] != fn.param_shape[-1]
            or len(value) < 3
        ):
            continue
        if fn.param_shape[-1] > 2 and bool((((value == 0) | (value == 1)).all() & (value.sum(-1) == 1)).all()):
            notes.append(
                f"The observation of site {name!r} has the shape {tuple(value.shape)} with a single 1 in each row, and "
                "its Categorical takes every entry for a label. Pass y.argmax(-1), or use OneHotCategorical."
            )

    return notes


def forgotten(trace: Any, unreached: Collection[str], arguments: Iterable[Any]) -> tuple[list[str], bool]:
    """Sentences on latents that no observation says anything about, and whether to warn of them.

    Arguments:
        trace: The trace of a first run.
        unreached: Latent sites that reach no observation.
        arguments: The model's arguments; data among them that go nowhere are a mistake.
    """
    latents: Mapping[str, Any] = {name: site for name, site in trace.nodes.items() if is_latent(site)}
    sizes = {size for value in arguments if isinstance(value, Tensor) for size in value.shape}
    in_plate = [
        name
        for name in unreached
        if any(frame.vectorized and frame.size in sizes for frame in latents[name]["cond_indep_stack"])
    ]
    if not observed_sites(trace) and not any(site["is_observed"] for site in _sampled(trace)):
        where = f" Site {in_plate[0]!r} lies in a plate as long as the data." if in_plate else ""
        note = f"No site of the model is observed: the draws are those of its prior.{where} Is an obs= missing?"
        return [note], bool(sizes)
    if not unreached:
        return [], False
    names = ", ".join(map(repr, unreached))

    return [f"No observation depends on site {names}: its draws are those of its prior. Is an obs= missing?"], bool(
        in_plate
    )


def scaled(trace: Any) -> list[str]:
    """Sentences on sites whose log density is scaled, by ``poutine.scale`` for instance."""
    sites = [site for site in _sampled(trace) if (torch.as_tensor(site["scale"]) != 1).any()]
    names = ", ".join(repr(site["name"]) for site in sites)
    if not sites:
        return []

    return [
        f"The log density of site {names} is scaled: draws and log evidence are those of the scaled density, and the "
        "evidence is no marginal likelihood to compare models by."
    ]


def _sampled(trace: Any) -> list[Any]:
    return [site for site in trace.nodes.values() if site["type"] == "sample" and not is_deterministic(site)]

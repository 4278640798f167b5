"""What is said where discrete latents cannot be summed out: which sites, why, and the cure that fits."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pyro_osds.model.discrete.assignments import Discrete, num_joint
from pyro_osds.model.discrete.interactions import ELEMENTS, HISTORY, PLATE, VECTOR, Interaction
from pyro_osds.runtime.errors.told import first_line
from pyro_osds.stats.thresholds import MAX_JOINT, MAX_JOINT_SLOWLY, MAX_JOINT_TERMS

# Each step of a sequential plate takes a tensor dimension, of which torch has 64.
_MAX_STEPS = 50


# What Pyro says of a dimension that it does not know.
_PACKING = re.compile(r"Error while packing tensors at site ('[^']*')")
_MANY_TERMS = "Take fewer elements or fewer rows, or a statistic of the rows that is sufficient."
_FEWER = "fewer elements, fewer values, or continuous latents in their place, such as RelaxedBernoulli"


class MovingSupportError(ValueError):
    """The support of a continuous latent depends on a discrete one."""


def support_refusal(name: str, shapes: str = "") -> str:
    """The sentence for a support that depends on a discrete latent.

    Arguments:
        name: The continuous latent.
        shapes: What was seen of it.
    """
    return (
        f"The support of site {name!r} {shapes or 'moves'}: it depends on a discrete latent, which is summed out. Give "
        "the site a support that holds for all values of the discrete latent, for instance by scaling a fixed one."
    )


def refusal(
    jointly: Sequence[Discrete],
    found: Sequence[Interaction],
    num_terms: int,
    vectorized: bool,
    error: Exception | None,
    history: int | None,
) -> str:
    """The sentences for discrete latents that interact and have too many joint values.

    Arguments:
        jointly: What would have to be summed jointly.
        found: What elimination does not see.
        num_terms: Densities of single values that the sum would have.
        vectorized: Whether one run can be made for many joint values.
        error: What elimination failed with.
        history: The ``history=`` of ``pyro.markov`` that was found to be right.
    """
    seen = worst(found)
    sizes = {site.name: site.num_values for site in jointly}

    cure = _MANY_TERMS if vectorized and num_joint(jointly) <= MAX_JOINT else _cure(seen, sizes, vectorized, history)

    return f"{_what(seen, jointly, error)} {_too_many(jointly, num_terms, vectorized)} {cure}"


def unseen(found: Sequence[Interaction], names: Sequence[str], sizes: dict[str, int], start: str) -> str:
    """The sentences for discrete latents that were summed as if they did not interact, where they do.

    Arguments:
        found: What elimination does not see.
        names: The discrete latents that were eliminated.
        sizes: How many values one element of each has.
        start: A point at which it is seen, as Python; empty where that is no matter of the point.
    """
    seen = worst(found)
    what = f"The discrete latents {list(names)} interact." if seen is None else _told(seen)
    cure = _cure(seen, sizes, True, None)
    if start:
        cure = (
            "Let the model be looked at where it shows: "
            f"init_strategy=pyro.infer.autoguide.init_to_value(values={start})."
        )

    return (
        f"{what} That is so at draws of the posterior, and was not seen at the first run and draws of the prior: the "
        f"sum over discrete latents, and with it the log evidence and the draws, are wrong. {cure}"
    )


def worst(found: Sequence[Interaction]) -> Interaction | None:
    """The one to tell: of those that another site is in, that which reads most."""
    between = [seen for seen in found if seen.kind != VECTOR]

    return max(between or found, key=lambda seen: seen.num_read, default=None)


def _what(seen: Interaction | None, jointly: Sequence[Discrete], error: Exception | None) -> str:
    if seen is None:
        why = f" ({type(error).__name__}: {first_line(error)})" if error is not None and str(error) else ""
        if why and (packing := _PACKING.match(str(error))):
            why = f": the log density of site {packing[1]} has a dimension of neither a plate nor a discrete latent"
        return f"The discrete latents {[site.name for site in jointly]} cannot be summed out one after the other{why}."

    return _told(seen)


def _told(seen: Interaction) -> str:
    """What one interaction is."""
    what = f"discrete latent {seen.discrete!r}"

    return {
        HISTORY: f"Site {seen.reader!r} depends on {what}, which lies further back than pyro.markov lets it see.",
        PLATE: (
            f"Site {seen.reader!r} depends on {what} from outside of its plate, each of its elements on up to "
            f"{seen.num_read} of {seen.num_elements}."
        ),
        ELEMENTS: (
            f"Site {seen.reader!r} depends on {what} across elements of the plate, each of its own on up to "
            f"{seen.num_read} of {seen.num_elements}."
        ),
        VECTOR: f"{what.capitalize()} has {seen.num_elements} elements that belong to no plate.",
    }[seen.kind]


def _too_many(jointly: Sequence[Discrete], num_terms: int, vectorized: bool) -> str:
    names = ", ".join(repr(site.name) for site in jointly[:3]) + (", ..." if len(jointly) > 3 else "")
    count = num_joint(jointly)
    shown = f"{count:,}" if count < 10**9 else f"10^{len(str(count)) - 1}"
    if not vectorized and MAX_JOINT_SLOWLY < count <= MAX_JOINT:
        return (
            f"Summed together, {names} have {shown} joint values, and without torch.func.vmap at most "
            f"{MAX_JOINT_SLOWLY} can be summed."
        )
    if count <= MAX_JOINT:
        return (
            f"Summed together, {names} have {shown} joint values with {num_terms:,} densities of single values, of "
            f"which {MAX_JOINT_TERMS:,} can be summed."
        )

    return f"Summed together, {names} have {shown} joint values, of which {MAX_JOINT:,} can be summed."


def _cure(seen: Interaction | None, sizes: dict[str, int], vectorized: bool, history: int | None) -> str:
    if history is not None:
        return f"Say pyro.markov(..., history={history})."
    if seen is None and not vectorized:
        return "Read values by indexing (table[k]) or torch.where instead of if, and declare dimensions by pyro.plate."
    if seen is None:
        return f"Declare every dimension by pyro.plate, read values inside of their plates, or take {_FEWER}."
    if seen.kind == HISTORY:
        return (
            "Let the state of the chain carry what is read later, such as a count so far or the first state, as more "
            "values of the state."
        )
    if seen.kind == VECTOR:
        return "Declare them by pyro.plate, without .to_event()."
    if seen.is_sum:
        return _cure_of_sum(seen)

    return _cure_of_elements(seen, sizes.get(seen.discrete, 2))


def _cure_of_sum(seen: Interaction) -> str:
    """What helps where a log density is a sum over elements: each of its terms beside the element that it reads."""
    what = "Its log density is a sum over these elements: "
    if not seen.in_plates:
        return (
            f"{what}declare them by pyro.plate, without .to_event(), and put {seen.reader!r} into that plate, with an "
            "element for each of theirs."
        )
    if seen.kind == PLATE:
        return f"{what}put {seen.reader!r} into their plate, with an element for each of theirs."

    return f"{what}write each of its terms beside the element that it reads, as an element of a site in that plate."


def _cure_of_elements(seen: Interaction, num_values: int) -> str:
    """What helps where elements of a plate are read from elsewhere."""
    is_sequential = seen.num_elements <= _MAX_STEPS
    loop = f"Write {'the plate' if seen.in_plates else 'them'} as a loop, `for i in pyro.plate(...)`"
    if seen.num_read <= 1:
        inside = f"Put {seen.reader!r} into the plate of {seen.discrete!r}, what belongs to an element beside it"
        or_loop = (
            f", or write the plate as a loop, `for i in pyro.plate(...)`, with a site like {seen.reader!r} for each i"
        )
        return f"{inside}{or_loop if is_sequential else ''}."
    is_one_by_one = seen.kind == ELEMENTS and seen.num_read < seen.num_elements
    if is_sequential and is_one_by_one and num_values**seen.num_together <= MAX_JOINT_TERMS:
        return (
            f"{loop}, with a site of its own for each element of {seen.reader!r}: sums then go over those that are "
            "read together."
        )
    if is_sequential and num_values**seen.num_read * seen.num_rows <= MAX_JOINT_TERMS:
        return (
            f"{loop}, and compute what {seen.reader!r} reads step by step, with tensors that broadcast "
            "(total = total + w[i] * z_i; none = none * (1 - z_i)) and without torch.stack: "
            f"{num_values**seen.num_read:,} values are few enough for that."
        )
    if seen.num_read < seen.num_elements and num_values**seen.num_read <= MAX_JOINT:
        return (
            f"Where neighbours are read together, write a chain by pyro.markov(..., history={seen.num_read - 1}); "
            f"otherwise take {_FEWER}."
        )

    return f"They are read all together, which no way of writing plates changes: take {_FEWER}."

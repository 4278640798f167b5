"""Names that ArviZ and files can hold, for sites that have others."""

from __future__ import annotations

import re
from collections.abc import Iterable

RESERVED = ("chain", "draw", "sample")
"""What ArviZ calls the dimensions of draws."""
# netCDF: no slash, no control character, no space at an end.
_FORBIDDEN = re.compile(r"[/\x00-\x1f\x7f]")


def exported_names(names: Iterable[str]) -> dict[str, str]:
    """What variables, or dimensions, are called in InferenceData, by name: as they are, wherever that is possible.

    Arguments:
        names: The names of sites or plates.

    Example:
        >>> exported_names(["mu", "chain", "a/b", "a_b"])
        {'mu': 'mu', 'chain': 'chain_', 'a/b': 'a_b_', 'a_b': 'a_b'}
    """
    names = list(names)
    good = {name: _FORBIDDEN.sub("_", name).strip() or "_" for name in names}
    taken = {name for name in names if good[name] == name and name not in RESERVED}
    exported = {}
    for name in names:
        other = good[name]
        if name not in taken:
            while other in taken or other in RESERVED:
                other += "_"
            taken.add(other)
        exported[name] = other

    return exported


def renamed(names: Iterable[str]) -> dict[str, str]:
    """Those of the names that are others in InferenceData, with what they are there."""
    return {name: other for name, other in exported_names(names).items() if name != other}

"""Posteriors made to mislead, each with a log evidence in closed form, by quadrature or by enumeration.

One file a kind, or two. A truth is that of the model as it is written and of the data as they are given: 0.1 means a
tenth, and readings in single precision are what they were rounded to.
"""

from . import (
    controls,
    precision_counts,
    precision_offsets,
    propriety,
    propriety_flat,
    search,
    search_models,
    shapes,
    shapes_models,
    shapes_necks,
    shapes_tails,
    support,
    support_moving,
    symmetry,
)
from .base import CASES, KINDS, Case, Moments

__all__ = [
    "CASES",
    "KINDS",
    "Case",
    "Moments",
    "controls",
    "precision_counts",
    "precision_offsets",
    "propriety",
    "propriety_flat",
    "search",
    "search_models",
    "shapes",
    "shapes_models",
    "shapes_necks",
    "shapes_tails",
    "support",
    "support_moving",
    "symmetry",
]

"""The coordinates that a survey chose, in words that a file can hold, and found again in another target."""

from __future__ import annotations

from typing import Any

import torch

from pyro_osds.explore.ordering import Exchange, OrderedTarget
from pyro_osds.target import Target


def coordinates_of(target: Target) -> dict[str, Any]:
    """Whether a target is standardised, and which of its components are in which order.

    Example:
        >>> from pyro_osds.target import FunctionTarget
        >>> coordinates_of(FunctionTarget(lambda z: -z.square().sum(-1), dim=2))
        {'standardized': False, 'exchange': None, 'ordering': None}
    """
    is_ordered = isinstance(target, OrderedTarget)

    return {
        "standardized": target.standardized,
        "exchange": target.exchange if is_ordered else None,
        "ordering": target.ordering if is_ordered else None,
    }


def in_coordinates(target: Target, coordinates: dict[str, Any]) -> Target:
    """A target seen in the coordinates that :func:`coordinates_of` told of.

    Arguments:
        target: The target, in the coordinates of its sites.
        coordinates: What was told of another one with the same sites.
    """
    exchange: Exchange | None = coordinates["exchange"]
    if coordinates["standardized"]:
        target = target.other_coordinates(torch.zeros(1, target.dim, dtype=target.dtype, device=target.device))[0]

    return target if exchange is None else OrderedTarget(target, exchange, coordinates["ordering"])

"""The coordinates that a survey chose, in words that a file can hold, and found again in another target."""

from __future__ import annotations

from typing import Any

import torch

from pyro_osds.explore.circle.turned import TurnedTarget
from pyro_osds.explore.heavy.radial import RadialTarget
from pyro_osds.explore.heavy.stretched import StretchedTarget
from pyro_osds.explore.symmetry.frames import FramedTarget
from pyro_osds.explore.symmetry.mirrored import MirroredTarget
from pyro_osds.explore.symmetry.ordering import Exchange, OrderedTarget
from pyro_osds.target import Target

_LAYERS = TurnedTarget, StretchedTarget, RadialTarget, OrderedTarget, MirroredTarget, FramedTarget


def coordinates_of(target: Target) -> dict[str, Any]:
    """Whether a target is standardised, which components are in order, and what was cut, drawn in or has one sign.

    With symmetries that were declared also which frames turn with particles, and further orders.

    Example:
        >>> from pyro_osds.target import FunctionTarget
        >>> coordinates_of(FunctionTarget(lambda z: -z.square().sum(-1), dim=2))
        {'standardized': False, 'exchange': None, 'ordering': None, 'circles': None, 'heavy': [], 'mirrors': []}
    """
    circles = exchange = ordering = None
    mirrors, frames, orders, heavy = [], [], [], []
    layer = target
    while isinstance(layer, _LAYERS):
        if isinstance(layer, MirroredTarget):
            mirrors.insert(0, (layer.flip, layer.column, layer.length))
        elif isinstance(layer, TurnedTarget):
            circles = layer.index, layer.cut
        elif isinstance(layer, FramedTarget):
            frames.insert(0, (layer.rotation, layer.frame))
        elif isinstance(layer, (StretchedTarget, RadialTarget)):
            by_distance = [layer.h] if isinstance(layer, RadialTarget) else []
            heavy.insert(0, (layer.index, layer.loc, layer.scale, *by_distance))
        else:
            orders.insert(0, (layer.exchange, layer.ordering))
        layer = layer.target
    if orders:
        (exchange, ordering), *orders = orders
    # What only a declared symmetry brings is told where there is some: files of others stay as they were.
    declared = {"frames": frames, "more_orders": orders} if frames or orders else {}

    return {
        "standardized": target.standardized,
        "exchange": exchange,
        "ordering": ordering,
        "circles": circles,
        "heavy": heavy,
        "mirrors": mirrors,
        **declared,
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
    target = in_circles(target, coordinates)
    for rotation, frame in coordinates.get("frames", []):
        target = FramedTarget(target, rotation, frame)
    # Files of earlier versions know of no mirrors.
    for flip, column, length in coordinates.get("mirrors", []):
        target = MirroredTarget(target, flip, column, length)

    target = target if exchange is None else OrderedTarget(target, exchange, coordinates["ordering"])
    for another, ordering in coordinates.get("more_orders", []):
        target = OrderedTarget(target, another, ordering)

    return target


def in_circles(target: Target, coordinates: dict[str, Any]) -> Target:
    """A target with its circles and heavy tails, and nothing else, as :func:`coordinates_of` told of.

    Arguments:
        target: The target, in the coordinates of its sites.
        coordinates: What was told of another one with the same sites.
    """
    # Files of earlier versions know of neither.
    for heavy in coordinates.get("heavy", []):
        target = (StretchedTarget if len(heavy) == 3 else RadialTarget)(target, *heavy)
    circles = coordinates.get("circles")

    return target if circles is None else TurnedTarget(target, *circles)

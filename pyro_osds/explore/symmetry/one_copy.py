"""Particles in all copies of what is the same or, where valleys lie between the copies, the target with one of them."""

from __future__ import annotations

from dataclasses import replace

import torch

from pyro_osds.explore.modes import Modes, find_modes
from pyro_osds.explore.particles import Exploration
from pyro_osds.explore.symmetry.flips import Flip, find_flips
from pyro_osds.explore.symmetry.mirrored import mirrored
from pyro_osds.explore.symmetry.ordering import Exchange, find_exchanges, ordered
from pyro_osds.stats.thresholds import MANY_PARTED, MAX_MODES_IN_ORDER
from pyro_osds.target import MovedTarget, Target, finite_log_prob, in_chunks

# Modes that a mixture can cover, in whatever order: half as many as it may have components.
_FEW_MODES = 64


def in_one_copy(target: Target, exploration: Exploration) -> tuple[Target, Exploration, Modes]:
    """Particles in all orders and with all signs or, where these are modes of their own, in one order, with one sign.

    Arguments:
        target: The target.
        exploration: The particles in its coordinates; annealing may have left them in some of the copies.

    Returns:
        The target in the coordinates that suit it, the particles there, and their modes.
    """
    flips = _flips(target, exploration)
    for flip in flips:
        exploration = replace(exploration, z=flip.at_random(exploration.z))
    exploration, exchanges = _in_all_orders(target, exploration)
    modes = _modes(target, exploration)
    if modes.parted <= MANY_PARTED:
        return target, exploration, modes
    plain = target
    for flip in flips:
        mirror = mirrored(target, flip, exploration.z)
        if mirror is not None:
            target, exploration = mirror, moved(mirror, exploration)
    if target is not plain:
        # Signs hide an order: that of the sizes of what may have either sign.
        exploration, exchanges = _in_all_orders(target, exploration)
        modes = _modes(target, exploration)

    if modes.parted <= MANY_PARTED:
        return target, exploration, modes

    return _in_one_order(target, exploration, modes, exchanges)


def _modes(target: Target, exploration: Exploration) -> Modes:
    return find_modes(exploration.z, exploration.log_prob, target.log_prob)


def _flips(target: Target, exploration: Exploration) -> list[Flip]:
    return find_flips(target, exploration.z, exploration.start) if target.vectorized else []


def _in_all_orders(target: Target, exploration: Exploration) -> tuple[Exploration, list[Exchange]]:
    """Particles with their exchangeable components in random orders, and which these are."""
    z = exploration.z
    exchanges = find_exchanges(target, z, exploration.log_prob) if target.vectorized else []
    for exchange in exchanges:
        # No order is better than another: particles that annealing left in some of them now sit in all.
        z = exchange.permute(z, torch.rand(len(z), exchange.num_components, device=z.device).argsort(-1))

    return replace(exploration, z=z), exchanges


def _in_one_order(
    target: Target, exploration: Exploration, modes: Modes, exchanges: list[Exchange]
) -> tuple[Target, Exploration, Modes]:
    """The order that leaves the fewest valleys, if one leaves fewer than there are, and few modes.

    In order, a round mode whose components lie far apart is bent and thin: moves along it are short, and what lies at
    its ends is easily lost. That is no price for one copy of a mode in place of all; it is where many modes are left,
    which a mixture covers in every order as well.
    """
    best = target, exploration, modes
    for exchange in exchanges:
        one_order = ordered(target, exchange, exploration.z)
        if one_order is not None:
            inside = moved(one_order, exploration)
            seen = _modes(one_order, inside)
            many_left = seen.count > MAX_MODES_IN_ORDER and modes.count <= _FEW_MODES
            if seen.parted < best[2].parted and not many_left:
                best = one_order, inside, seen

    return best


def moved(target: MovedTarget, exploration: Exploration) -> Exploration:
    """Particles of the target inside as particles of the one around it.

    Arguments:
        target: The target around.
        exploration: The particles.
    """
    u = target.outside(exploration.z)
    with torch.no_grad():
        log_prob = finite_log_prob(in_chunks(target.log_prob, u))
    start, passed = target.outside(exploration.start), target.outside(exploration.passed)

    return replace(exploration, z=u, log_prob=log_prob, start=start, passed=passed)

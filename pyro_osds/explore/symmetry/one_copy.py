"""Particles in all copies of what is the same or, where valleys lie between the copies, the target with one of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from pyro_osds.explore.modes import Modes, find_modes
from pyro_osds.explore.particles import Exploration
from pyro_osds.explore.symmetry.declared import difference
from pyro_osds.explore.symmetry.flips import Flip, find_flips
from pyro_osds.explore.symmetry.frames import FramedTarget, Rotation, framed
from pyro_osds.explore.symmetry.mirrored import mirrored
from pyro_osds.explore.symmetry.ordering import Exchange, find_exchanges, ordered
from pyro_osds.explore.symmetry.resolved import Declared
from pyro_osds.stats.thresholds import MANY_PARTED, MAX_MODES_IN_ORDER
from pyro_osds.symmetries import Symmetry
from pyro_osds.target import MovedTarget, Target, finite_log_prob, in_chunks

# Modes that a mixture can cover, in whatever order: half as many as it may have components.
_FEW_MODES = 64
# Points of either kind at which a symmetry is looked at in coordinates that another one has changed.
_NUM_POINTS = 64
# Share of pairs of particles in one mode below which some hundred pairs tell nothing.
_LEAST_SHARE = 1 / 512
# What nobody declared, and was found.
_FOUND = Symmetry("found", ())


def in_one_copy(
    target: Target, exploration: Exploration, declared: Sequence[Declared] = ()
) -> tuple[Target, Exploration, Modes]:
    """Particles in all orders and with all signs or, where these are modes of their own, in one order, with one sign.

    Arguments:
        target: The target.
        exploration: The particles in its coordinates; annealing may have left them in some of the copies.
        declared: Symmetries that the user knows of, which the density has; further ones are found as without.

    Returns:
        The target in the coordinates that suit it, the particles there, and their modes.
    """
    if declared:
        return _in_declared_copy(target, exploration, declared)
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


def _in_declared_copy(
    target: Target, exploration: Exploration, declared: Sequence[Declared]
) -> tuple[Target, Exploration, Modes]:
    """As :func:`in_one_copy`, with what was declared first.

    Each step leaves a density with the same integral. So that nothing is counted twice, a symmetry is used only where
    the density has it in the coordinates of the step before, and orders only where they share no coordinate.
    """
    # A cut of circles, for instance, takes some of what was declared for the coordinates of sites.
    declared = [each for each in declared if _has(target, each, exploration)]
    for each in declared:
        exploration = replace(exploration, z=each.action.at_random(exploration.z))
    found = _with_found(target, exploration, declared)
    for each in declared:
        if not isinstance(each.action, Rotation) or not _has(target, each, exploration):
            continue
        frame = framed(target, each.action, exploration.z)
        if frame is not None:
            target, exploration = frame, moved(frame, exploration)
            found = _in_frame(frame, found)
    for each in found:
        exploration = replace(exploration, z=each.action.at_random(exploration.z))
    modes = _modes(target, exploration)
    if modes.parted <= MANY_PARTED:
        return target, exploration, modes
    plain = target
    for each in found:
        if isinstance(each.action, Flip) and _has(target, each, exploration):
            mirror = mirrored(target, each.action, exploration.z)
            if mirror is not None:
                target, exploration = mirror, moved(mirror, exploration)
    exploration, more = _in_all_orders(target, exploration)
    exchanges = [each.action for each in found if isinstance(each.action, Exchange) and _has(target, each, exploration)]
    for exchange in exchanges:
        exploration = replace(exploration, z=exchange.at_random(exploration.z))
    with torch.no_grad():
        exploration = replace(exploration, log_prob=finite_log_prob(in_chunks(target.log_prob, exploration.z)))
    modes = _modes(target, exploration) if target is not plain else modes

    return _in_several_orders(target, exploration, modes, [*exchanges, *more])


def _with_found(target: Target, exploration: Exploration, declared: Sequence[Declared]) -> list[Declared]:
    """Signs and places that were declared, and signs that are found besides, on other coordinates."""
    kept = [each for each in declared if not isinstance(each.action, Rotation)]
    taken = [each.action.rows.reshape(-1) for each in declared if not isinstance(each.action, Exchange)]
    for flip in _flips(target, exploration):
        # Of one that was declared a found one may know more: rows that may change their signs one by one.
        finer = [each for each in kept if isinstance(each.action, Flip) and _is_made_of(each.action, flip)]
        if finer:
            kept = [each for each in kept if each is not finer[0]] + [replace(finer[0], action=flip)]
        elif not any(torch.isin(flip.rows, rows).any() for rows in taken):
            kept.append(Declared(_FOUND, flip))

    return kept


def _is_made_of(declared: Flip, found: Flip) -> bool:
    """Whether each row that was declared is a row that was found, or several of them together."""
    rows = {frozenset(row.tolist()) for row in found.rows}

    return len(declared.rows) < len(found.rows) and all(
        set(row.tolist()) == set().union(*(each for each in rows if each <= set(row.tolist()))) for row in declared.rows
    )


def _in_frame(frame: FramedTarget, found: Sequence[Declared]) -> list[Declared]:
    """Signs and places as they are seen from a frame, with the mirror image of what is off it."""
    seen = []
    for each in found:
        action = frame.without_frame(each.action) if isinstance(each.action, Exchange) else each.action
        seen += [replace(each, action=action)] if action is not None else []
    mirror = frame.mirror()

    return seen if mirror is None else [Declared(_FOUND, mirror), *seen]


def _has(target: Target, each: Declared, exploration: Exploration) -> bool:
    """Whether a density has a symmetry in its present coordinates."""
    points = torch.cat([exploration.z[:_NUM_POINTS], exploration.start[:_NUM_POINTS].to(exploration.z)])

    return not difference(target, each, points).count


def _in_several_orders(
    target: Target, exploration: Exploration, modes: Modes, exchanges: Sequence[Exchange]
) -> tuple[Target, Exploration, Modes]:
    """One order after the other, those first that leave the fewest valleys, while there are fewer than before."""
    left = list(exchanges)
    while left and modes.parted > MANY_PARTED:
        seen = [_in_one_order(target, exploration, modes, [exchange]) for exchange in left]
        best = min(range(len(left)), key=lambda place: seen[place][2].parted)
        if seen[best][0] is target or not _is_worth_it(modes, seen[best][2], left[best]):
            break
        target, exploration, modes = seen[best]
        used = left[best].coordinates()
        left = [exchange for exchange in left if not torch.isin(exchange.coordinates(), used).any()]

    return target, exploration, modes


def _is_worth_it(before: Modes, after: Modes, exchange: Exchange) -> bool:
    """Whether an order removes copies: pairs of particles in one mode grow by half of what they could, in logarithms.

    Where an order cuts through modes, as that of particles along an axis, some valleys go and edges come.
    """
    together, then = (max(1.0 - modes.parted, _LEAST_SHARE) for modes in (before, after))
    possible = min(math.lgamma(exchange.num_components + 1), -math.log(together))

    return math.log(then / together) >= 0.5 * possible


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

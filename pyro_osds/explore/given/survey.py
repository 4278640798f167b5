r"""A survey from draws of another sampler: no way from the prior, and what is left to hold its evidence against.

Draws tell where the posterior is and how wide; nothing tells the log evidence. The base is fitted to the first half of
each chain. From that base particles are annealed to the target, on eight replicates: their log evidence is the check of
the flow's, and has never seen the flow. The second half of each chain was seen by neither, and is held against the
flow's own draws (:mod:`~pyro_osds.posterior.given`).

What the draws have missed is missed by base and particles as well. So modes are searched for, from draws of the prior
and along lines, as in every survey; what is found is added to the base, and told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pyro_osds.explore.annealing import explore
from pyro_osds.explore.base_choice import choose_base, has_many_dimensions, modes_of
from pyro_osds.explore.circle.cut import turned
from pyro_osds.explore.given.checks import (
    check_densities,
    check_number,
    check_same_model,
    without_stragglers,
    without_stuck_chains,
)
from pyro_osds.explore.heavy.tails import drawn_in, stretched
from pyro_osds.explore.journal import Journal
from pyro_osds.explore.modes import Modes
from pyro_osds.explore.particles import Exploration, GivenDraws
from pyro_osds.explore.paths import ReferencePath
from pyro_osds.explore.propriety import find_endless
from pyro_osds.explore.reference import throw
from pyro_osds.explore.search.mode_search import lost_modes
from pyro_osds.explore.search.parts import Part, lost_by_particles
from pyro_osds.explore.search.second_search import Search, log_total, search_further
from pyro_osds.explore.survey import Survey, choose_coordinates
from pyro_osds.explore.symmetry.declared import check_declared
from pyro_osds.explore.symmetry.one_copy import in_one_copy
from pyro_osds.explore.symmetry.resolved import Declared, resolved
from pyro_osds.explore.variational import explore_from, variational_base
from pyro_osds.flow.base import Base
from pyro_osds.stats.moments import weighted_moments
from pyro_osds.stats.thresholds import LOWER_SIGMAS, MANY_PARTED
from pyro_osds.symmetries import Symmetry
from pyro_osds.target import MovedTarget, NotFiniteError, Target, as_target, finite_log_prob, in_chunks

# Share of the mass of a part from which on the draws count as having visited it. Draws that are ten times too wide have
# a tenth of it in the middle, and miss nothing; what they are like is for the agreement to say.
_VISITED = 0.05


def survey_of_draws(
    target: Target,
    given: GivenDraws,
    num_particles: int = 64,
    num_replicates: int = 8,
    journal: Journal | None = None,
    symmetries: Sequence[Symmetry] = (),
) -> Survey:
    """What an exploration would find out, from draws of another sampler.

    Arguments:
        target: The target, in the coordinates of the draws.
        given: The draws.
        num_particles: Particles on each replicate.
        num_replicates: Independent repeats of the annealing.
        journal: Where all is noted, so that a survey that was stopped can be taken up again.
        symmetries: Symmetries of the density that the user declares.

    Returns:
        The survey; its exploration is the annealing from the base, and its ``given`` knows what the draws have missed.

    Raises:
        ValueError: If they are too few, all the same, on their way, or draws of another model.

    Example:
        >>> from pyro_osds.target import FunctionTarget
        >>> torch.manual_seed(0) and None
        >>> normal = FunctionTarget(lambda z: -0.5 * z.square().sum(-1), dim=2)
        >>> found = survey_of_draws(normal, GivenDraws(torch.randn(1000, 2), 2, 1000))
        >>> round(found.exploration.log_evidence, 1), found.given.missed  # exact: log(2 pi) = 1.84
        (1.8, ())
    """
    journal = journal or Journal()
    target, before = as_target(target), as_target(target)
    given = replace(given, z=given.z.to(dtype=target.dtype, device=target.device))
    check_number(given)
    spread = journal.part(lambda: _spread_widely(target, given, num_particles * num_replicates))
    log_prob = journal.part(lambda: _densities(target, given.z))
    check_densities(given, log_prob)
    given, log_prob = without_stuck_chains(given, log_prob)
    good, note = without_stragglers(given, log_prob)
    half = torch.zeros_like(good).view(given.num_chains, -1)
    half[:, : len(given.fitted) // given.num_chains] = True
    chosen = half.flatten() & good
    drawn = Exploration(
        given.z[chosen], log_prob[chosen], _nothing(given), 0, len(given.z), 1.0, 0, start=spread, passed=given.z[:1]
    )
    declared = resolved(symmetries, target)
    if declared:
        check_declared(target, declared, torch.cat([drawn.z, spread]), "given draws")
    target, drawn, modes = _coordinates(target, drawn, declared)
    base = journal.part(lambda: choose_base(target, drawn, modes))
    journal.reached = target, drawn, base
    if has_many_dimensions(target, drawn) and modes.parted <= MANY_PARTED:
        base = journal.part(lambda: variational_base(target, base))
    exploration = _annealed(target, base, drawn, num_particles, num_replicates, journal)
    check_same_model(_densities(target, drawn.z), exploration)
    journal.reached = target, exploration, base
    num_evaluations = drawn.num_evaluations + exploration.num_evaluations
    again = _with_lost_modes(target, drawn, exploration, num_particles, num_replicates, journal)
    if again is not exploration:
        exploration, num_evaluations = again, num_evaluations + again.num_evaluations
        base = journal.part(lambda: choose_base(target, exploration, modes_of(target, exploration)))
        journal.reached = target, exploration, base
    undefined, undefined_at = _undefined(before, spread)
    loc, scale_tril = weighted_moments(exploration.z, torch.zeros_like(exploration.log_prob))
    endless = journal.part(lambda: find_endless(target, loc, scale_tril))
    found = Survey(
        target,
        base,
        exploration,
        modes_of(target, exploration),
        num_evaluations,
        endless,
        undefined,
        undefined_at,
        plan=_plan(given),
        given=replace(given, z=_as_seen(before, target, given.z), notes=tuple(filter(None, (given.stuck, note)))),
    )
    if endless:
        return found
    looked = search_further(target, exploration, base, exploration, num_particles, num_replicates, journal)
    assert found.given is not None
    missed = _missed(found.given, looked.search, looked.exploration)

    return replace(
        found,
        base=looked.base,
        exploration=looked.exploration,
        modes=modes_of(target, looked.exploration) if looked.exploration is not exploration else found.modes,
        num_evaluations=num_evaluations + looked.num_evaluations,
        search=looked.search,
        given=replace(found.given, missed=missed),
    )


def _plan(given: GivenDraws) -> str:
    chains = f" of {given.num_chains} chains" if given.num_chains > 1 and not given.stuck else ""

    fitted = len(given.fitted)

    return f"{given.total} draws given{chains}, {fitted} of them fitted, {len(given.z) - fitted} held out"


def _spread_widely(target: Target, given: GivenDraws, num_points: int) -> Tensor:
    """Points spread as widely as the posterior may be, to search from: of the prior, or thrown around the draws."""
    if target.can_sample_prior:
        z = target.sample_prior(num_points)
    elif target.vectorized:
        try:
            z = throw(target, num_points, starts=given.z[:: max(1, len(given.z) // 16)]).z
        except NotFiniteError:
            z = given.z
    else:
        z = given.z
    z = z[z.isfinite().all(-1)]

    return z if len(z) else given.z


def _densities(target: Target, z: Tensor) -> Tensor:
    with torch.no_grad():
        return finite_log_prob(in_chunks(target.log_prob, z))


def _nothing(given: GivenDraws) -> Tensor:
    """No evidence: draws have none."""
    return given.z.new_full((2,), -torch.inf, dtype=torch.float64)


def _coordinates(target: Target, drawn: Exploration, declared: Sequence[Declared]) -> tuple[Target, Exploration, Modes]:
    """The coordinates that suit the draws best: heavy tails, circles, components in order, sites standardised."""
    heavy = None if declared else stretched(target, drawn.z, drawn.log_prob)
    if heavy is not None:
        target = heavy
    moved = drawn if heavy is None else _moved(heavy, drawn)
    given, (target, ordered, modes) = target, in_one_copy(target, moved, declared)
    is_cut = not declared or target is given
    around = turned(target, ordered.z, ordered.log_prob, drawn_in(heavy)) if is_cut else None
    if around is not None:
        target, ordered, modes = in_one_copy(around, _moved(around, drawn), declared)
    seen, ordered = choose_coordinates(target, ordered)

    return seen, ordered, modes if seen is target else modes_of(seen, ordered)


def _moved(around: MovedTarget, drawn: Exploration) -> Exploration:
    """Draws in the coordinates of the sites in other ones."""
    z, start = around.to_ordered(drawn.z), around.to_ordered(drawn.start)

    return replace(drawn, z=z, log_prob=_densities(around, z), start=start, passed=z[:1])


def _as_seen(given: Target, seen: Target, z: Tensor) -> Tensor:
    """Points in the coordinates of the sites, in those that were chosen, ``(N, D)``."""
    if seen.standardized != given.standardized:
        z = given.other_coordinates(z)[1]

    return seen.to_ordered(z)


def _annealed(
    target: Target, base: Base, drawn: Exploration, num_particles: int, num_replicates: int, journal: Journal
) -> Exploration:
    """Particles annealed from the base; the draws without an evidence, where none of its draws has a density."""
    try:
        return explore_from(target, base, drawn, num_particles, num_replicates, journal)
    except NotFiniteError:
        return drawn


def _with_lost_modes(
    target: Target,
    drawn: Exploration,
    exploration: Exploration,
    num_particles: int,
    num_replicates: int,
    journal: Journal,
) -> Exploration:
    """The particles, or better ones where mode search found a mode that holds neither draws nor particles."""
    if not target.vectorized:
        return exploration
    z, log_prob = torch.cat([drawn.z, exploration.z]), torch.cat([drawn.log_prob, exploration.log_prob])
    reference = journal.part(lambda: lost_modes(target, drawn.start, z, log_prob))
    if reference is None:
        return exploration
    way = ReferencePath.from_density(target, reference)
    again = explore(way, num_particles, num_replicates, phase="Explore again", journal=journal)
    # A lower evidence than before is no discovery.
    lower = again.log_evidence < exploration.log_evidence - LOWER_SIGMAS * exploration.std_error

    return exploration if lower else replace(again, start=drawn.start)


def _missed(given: GivenDraws, search: Search | None, exploration: Exploration) -> tuple[tuple[Part, float], ...]:
    """Parts that search found and the draws lack: chains are held against them as replicates are."""
    if search is None or not search.parts:
        return ()
    parts = [part for part in search.parts if not part.is_halo]
    total = log_total(exploration, search.parts)
    as_replicates = torch.full(
        (given.num_chains,), exploration.log_evidence, dtype=torch.float64, device=given.z.device
    )

    return tuple(lost_by_particles(parts, given.z, as_replicates, total, most=_VISITED))


def _undefined(target: Target, spread: Tensor) -> tuple[float, Tensor]:
    """Share of the draws of the prior with a density that is nan or ``+inf``, and one of them."""
    if not target.can_sample_prior:
        return 0.0, spread[:0].flatten()
    with torch.no_grad():
        log_prob = in_chunks(target.log_prob, spread)
    bad = log_prob.isnan() | (log_prob == torch.inf)

    return bad.double().mean().item(), spread[bad][:1].flatten()

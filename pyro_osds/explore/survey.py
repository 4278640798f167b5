r"""Before any training: explore the posterior, count its modes, choose the base, and take an independent log evidence.

From the prior, where there is one, or else from a wide Gaussian, particles are annealed to the posterior. Where that
way was long, its log evidence is worth little; then a second, short way from the base that the first one found gives
the check. In many dimensions particles are too few for a base: the Gaussian of the largest ELBO takes its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_osds.explore.annealing import explore
from pyro_osds.explore.base_choice import choose_base, has_many_dimensions, modes_of
from pyro_osds.explore.circle.cut import turned
from pyro_osds.explore.coordinates import coordinates_of
from pyro_osds.explore.heavy.tails import drawn_in, stretched
from pyro_osds.explore.journal import Journal
from pyro_osds.explore.mixture import MAX_COMPONENTS
from pyro_osds.explore.modes import Modes
from pyro_osds.explore.particles import Exploration, GivenDraws
from pyro_osds.explore.paths import AnnealingPath, PriorPath, ReferencePath
from pyro_osds.explore.propriety import Endless, find_endless
from pyro_osds.explore.reference import throw, wide_reference
from pyro_osds.explore.search.mode_search import lost_modes
from pyro_osds.explore.search.parts import Part
from pyro_osds.explore.search.second_search import Search, search_further
from pyro_osds.explore.symmetry.declared import check_declared, first_points
from pyro_osds.explore.symmetry.one_copy import in_one_copy
from pyro_osds.explore.symmetry.resolved import resolved
from pyro_osds.explore.variational import explore_from, variational_base
from pyro_osds.flow.base import Base
from pyro_osds.stats.moments import weighted_moments
from pyro_osds.stats.thresholds import (
    FOLDED,
    LOWER_SIGMAS,
    MANY_PARTED,
    MIN_COORDINATE_GAIN,
    SHORT_WAY,
)
from pyro_osds.symmetries import Symmetry
from pyro_osds.target import (
    NotFiniteError,
    Target,
    as_target,
)

# Ways in all, so that exploration ends where each of them is long.
_MAX_WAYS = 3
# Times the particles of a slow way: a mode with a hundredth of the mass then holds some forty of them.
_MORE_PARTICLES = 8
# What the slow way may cost, in terms of the log density: about a minute on one core.
MAX_TERMS = 2e9
# Evaluations of the slow way by temperature of the first one and by particle: it has more temperatures, and more moves.
SLOW_WAY = 50
# The same before training, of which it is a part: some thirty seconds.
_SLOW_TERMS = 1e9
# With no more terms lost modes are searched for however many were found: outliers of heavy tails look like modes.
_CHEAP_TERMS = 1_000


class _Pace(NamedTuple):
    """How slowly a way is gone: the share of effective particles, moves, and evaluations as those of ``SLOW_WAY``."""

    ess_threshold: float
    num_moves: int
    evaluations: int


# Where the density is so large that even as many particles as before could not go slowly, they go less slowly.
_SLOWLY, _LESS_SLOWLY = _Pace(0.8, 4, SLOW_WAY), _Pace(0.6, 2, 20)


@dataclass(frozen=True)
class Survey:
    """What exploration found.

    Arguments:
        target: The target, in the coordinates that suit it best.
        base: The base that the leap starts from.
        exploration: The last annealing run; its log evidence is the check of the flow's.
        modes: Separated modes among the particles.
        num_evaluations: Points at which the density was evaluated in annealing.
        endless: Where the density was seen not to fall off, as one without an integral does not; or None.
        undefined_share: Share of the draws of the prior with a density that is nan or ``+inf``.
        undefined_at: One of them, ``(D,)``; empty where there is none.
        progress: How far an exploration had come that was stopped; empty for one that came to its end.
        search: What was found by ascents and probes, and what of it annealing had lost; None where nobody looked.
        plan: What the density was counted to cost, and the particles that it was given, in words.
        given: Draws from elsewhere that took the place of the way from the prior, in the target's coordinates, if any.
    """

    target: Any
    base: Base
    exploration: Exploration
    modes: Modes
    num_evaluations: int
    endless: Endless | None = None
    undefined_share: float = 0.0
    undefined_at: Tensor = field(default_factory=lambda: torch.empty(0))
    progress: str = ""
    search: Search | None = None
    plan: str = ""
    given: GivenDraws | None = None

    def __post_init__(self) -> None:
        # Files of earlier versions hold the coordinates alone.
        if isinstance(self.endless, (tuple, list)):
            noted = tuple(self.endless)
            object.__setattr__(self, "endless", Endless(noted) if noted else None)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Parts of the posterior that search found, which draws have to reach."""
        return self.search.parts if self.search else ()

    @property
    def is_simple(self) -> bool:
        """Whether there is one mode in so many dimensions that a Gaussian of the largest ELBO is the base."""
        return has_many_dimensions(self.target, self.exploration) and self.modes.parted <= MANY_PARTED

    @property
    def is_folded(self) -> bool:
        """Whether valleys run through the posterior, and no mixture base takes care of them."""
        return self.modes.parted > FOLDED and self.base.num_components == 1

    def description(self) -> list[str]:
        """What was found, in lines for a log."""
        seen, exploration = coordinates_of(self.target), self.exploration
        coordinates = "standardised" if seen["standardized"] else "as given"
        ordered = ", exchangeable components in order" if seen["exchange"] else ""
        mirrors = sum(len(flip.rows) for flip, *_ in seen["mirrors"])
        mirrored = f", {mirrors} row(s) with one sign of two" if mirrors else ""
        frames = f", {len(seen['frames'])} frame(s) that turn with particles" if seen.get("frames") else ""
        turned = f"{frames}, {len(seen['circles'][0])} angle(s) cut elsewhere" if seen["circles"] else frames
        num_heavy = sum(len(index) for index, *_ in seen["heavy"])
        heavy = f", {num_heavy} with heavy tails drawn in" if num_heavy else ""

        return [
            f"coordinates: {coordinates}{mirrored}{ordered}{turned}{heavy}",
            f"modes: {self.modes.count}, valleys between {self.modes.parted:.0%} of pairs",
            f"base: {self.base.num_components} Gaussian component(s)",
            f"exploration: log evidence {exploration.log_evidence:.3f} +- {exploration.std_error:.3f}, "
            f"{self.num_evaluations} evaluations",
            *([f"plan: {self.plan}"] if self.plan else []),
            f"search: {self.search.sentence() if self.search else 'none'}",
        ]


def survey(
    target: Target,
    num_particles: int = 64,
    num_replicates: int = 8,
    starts: Tensor | None = None,
    journal: Journal | None = None,
    symmetries: Sequence[Symmetry] = (),
) -> Survey:
    """Explore a target and choose the base.

    Arguments:
        target: The target; if it can sample its own prior, annealing starts there.
        num_particles: Particles on each replicate.
        num_replicates: Independent repeats of the annealing.
        starts: Unconstrained points to look around, ``(S, D)``, where no prior can be sampled.
        journal: Where all is noted, so that an exploration that was stopped can be taken up again.
        symmetries: Symmetries of the density that the user declares.

    Returns:
        The base, the particles and the check.

    Raises:
        ValueError: If the density does not have a symmetry that was declared.

    Example:
        >>> from pyro_osds.target import FunctionTarget
        >>> torch.manual_seed(0) and None
        >>> found = survey(FunctionTarget(lambda z: -0.5 * (z - 3).square().sum(-1), dim=2))
        >>> found.modes.count, found.base.loc.round().tolist()
        (1, [3.0, 3.0])
    """
    journal = journal or Journal()
    target = as_target(target)
    declared = resolved(symmetries, target)
    if declared:
        check_declared(target, declared, journal.part(lambda: first_points(target, starts)), "points to begin with")
    way, spread, exploration = _fast(target, num_particles, num_replicates, starts, journal)
    if declared:
        check_declared(target, declared, torch.cat([exploration.z, exploration.start]), "explored particles")
    num_evaluations, ways = exploration.num_evaluations, 1
    first, from_prior = exploration, isinstance(way, PriorPath)
    # What was declared belongs to the coordinates of sites, and comes before any others.
    around = heavy = None if declared else stretched(target, exploration.z, exploration.log_prob)
    if around is not None:
        # Few particles have come far out, and those that have hardly move: what is drawn in has no such ends.
        target, seen = around, None if starts is None else around.to_ordered(starts)
        way, spread, exploration = _fast(target, num_particles, num_replicates, seen, journal)
        num_evaluations += exploration.num_evaluations
    given, (target, exploration, modes) = target, in_one_copy(target, exploration, declared)
    is_cut = not declared or target is given
    around = turned(target, exploration.z, exploration.log_prob, drawn_in(heavy)) if is_cut else None
    if around is not None:
        # Particles do not walk over a cut: where it lay among them, both what they are and what they tell is wrong.
        given, starts = around, None if starts is None else around.to_ordered(starts)
        way, spread, exploration = _fast(given, num_particles, num_replicates, starts, journal)
        num_evaluations += exploration.num_evaluations
        target, exploration, modes = in_one_copy(given, exploration, declared)
    more, pace = _affordable(given, exploration) if modes.parted > MANY_PARTED and given.vectorized else (0, _SLOWLY)
    if more:
        # Modes share the particles, and few particles lose small ones: the same way again, slowly, with many more.
        num_particles *= more
        exploration = explore(
            way,
            num_particles,
            num_replicates,
            ess_threshold=pace.ess_threshold,
            num_moves=pace.num_moves,
            phase="Explore slowly",
            journal=journal,
        )
        num_evaluations += exploration.num_evaluations
        exploration = replace(exploration, start=exploration.start if spread is None else spread)
        target, exploration, modes = in_one_copy(given, exploration, declared)
    target, exploration = choose_coordinates(target, exploration)
    journal.reached = target, exploration, None
    # Of more modes than can be counted none is worth another way, but where it costs next to nothing.
    if modes.count <= MAX_COMPONENTS or given.num_terms <= _CHEAP_TERMS:
        exploration = _with_lost_modes(target, exploration, num_particles, num_replicates, journal)
        modes = modes_of(target, exploration)
    seen = exploration
    base = journal.part(lambda: choose_base(target, exploration, modes))
    journal.reached = target, exploration, base
    if has_many_dimensions(target, exploration) and modes.parted <= MANY_PARTED:
        base = journal.part(partial(variational_base, target, base))
        journal.reached = target, exploration, base
        exploration = explore_from(target, base, exploration, num_particles, num_replicates, journal)
        num_evaluations += exploration.num_evaluations
        ways = _MAX_WAYS
    while exploration.num_temperatures > SHORT_WAY and ways < _MAX_WAYS and modes.parted <= MANY_PARTED:
        way = ReferencePath(target, base.sample, base.log_prob)
        try:
            exploration = explore(
                way, num_particles, num_replicates, max_settling=0, phase="Explore again", journal=journal
            )
        except NotFiniteError:
            # A base all of whose draws overflow knows less than the particles that it was fitted to.
            break
        modes = modes_of(target, exploration)
        base = journal.part(partial(choose_base, target, exploration, modes))
        journal.reached = target, exploration, base
        num_evaluations += exploration.num_evaluations
        ways += 1

    plan = _plan(given, first, num_replicates, more, pace)
    loc, scale_tril = weighted_moments(exploration.z, torch.zeros_like(exploration.log_prob))
    endless = journal.part(lambda: find_endless(target, loc, scale_tril))

    undefined = first.num_undefined / len(first.start) if from_prior else 0.0
    found = Survey(target, base, exploration, modes, num_evaluations, endless, undefined, first.undefined_at, plan=plan)
    if endless:
        return found
    looked = search_further(target, exploration, base, seen, num_particles, num_replicates, journal)
    if looked.exploration is not exploration:
        found = replace(found, modes=modes_of(target, looked.exploration))

    return replace(
        found,
        base=looked.base,
        exploration=looked.exploration,
        num_evaluations=num_evaluations + looked.num_evaluations,
        search=looked.search,
    )


def _fast(
    target: Target, num_particles: int, num_replicates: int, starts: Tensor | None, journal: Journal
) -> tuple[AnnealingPath, Tensor | None, Exploration]:
    """The first way, fast: the way itself, points that were spread widely, and the particles at its end."""
    way, spread = journal.part(lambda: first_way(target, starts, journal))
    found = explore(way, num_particles, num_replicates, ess_threshold=0.3, num_moves=1, num_leapfrog=6, journal=journal)
    found = replace(found, start=found.start if spread is None else spread)
    journal.reached = target, found, None

    return way, spread, found


def first_way(
    target: Target, starts: Tensor | None, journal: Journal | None = None
) -> tuple[AnnealingPath, Tensor | None]:
    """The way from the prior or, where it cannot be sampled, from a wide reference; then with points spread widely.

    Arguments:
        target: The target.
        starts: Unconstrained points to look around, ``(S, D)``, where no prior can be sampled.
        journal: Where moves of the points are noted, if this is the part at work.
    """
    if target.can_sample_prior:
        return PriorPath(target), None
    rest = throw(target, starts=starts, journal=journal)
    reference = wide_reference(target, rest)

    return ReferencePath.from_density(target, reference), rest.z


def _with_lost_modes(
    target: Target, exploration: Exploration, num_particles: int, num_replicates: int, journal: Journal
) -> Exploration:
    """The exploration, or a better one where mode search found a mode that holds none of its particles."""
    if not target.vectorized:
        return exploration
    reference = journal.part(lambda: lost_modes(target, exploration.start, exploration.z, exploration.log_prob))
    if reference is None:
        return exploration
    way = ReferencePath.from_density(target, reference)
    again = explore(way, num_particles, num_replicates, phase="Explore again", journal=journal)
    # A lower evidence than before is no discovery.
    lower = again.log_evidence < exploration.log_evidence - LOWER_SIGMAS * exploration.std_error

    return exploration if lower else replace(again, start=exploration.start, passed=exploration.passed)


def choose_coordinates(target: Target, exploration: Exploration) -> tuple[Target, Exploration]:
    r"""Standardise location-scale sites if the particles are then closer to a Gaussian.

    The divergence to the best Gaussian is, up to a constant that all coordinates :math:`u` share,
    :math:`\tfrac12 \log\det \mathrm{Cov}(u) + \mathrm{E} \log|\det \partial z / \partial u|`.
    """
    if not target.has_other_coordinates:
        return target, exploration
    other, u, log_abs_det = target.other_coordinates(exploration.z)
    _, start, _ = target.other_coordinates(exploration.start)
    start = start[start.isfinite().all(-1)]
    _, passed, _ = target.other_coordinates(exploration.passed)
    usable = u.isfinite().all(-1) & log_abs_det.isfinite()
    if not usable.all():
        return target, exploration
    change = _log_volume(u) + log_abs_det.double().mean() - _log_volume(exploration.z)
    if change > -MIN_COORDINATE_GAIN:
        return target, exploration
    log_prob = exploration.log_prob + log_abs_det

    start = start if len(start) else u

    return other, replace(exploration, z=u, log_prob=log_prob, start=start, passed=passed)


def _log_volume(z: Tensor) -> Tensor:
    """Half the log-determinant of the covariance of particles, a scalar."""
    return weighted_moments(z, z.new_zeros(len(z)))[1].diagonal().double().log().sum()


def _plan(target: Target, first: Exploration, num_replicates: int, more: int, pace: _Pace) -> str:
    """What the density costs, and what it was given, in one line."""
    cost = f"a density of {target.num_terms:,} terms" if target.num_terms else "a density of few terms"
    particles = f"{num_replicates} x {len(first.z) // num_replicates} particles"
    slowly = f", {more} times as many slowly with {pace.num_moves} moves a temperature" if more else ""

    return f"{cost}{'' if target.vectorized else ' and point by point'}: {particles}{slowly}"


def _affordable(target: Target, exploration: Exploration) -> tuple[int, _Pace]:
    """How many times the particles a slow way may have, and its pace; none where even a few moves take too long."""
    for pace in (_SLOWLY, _LESS_SLOWLY):
        cost = pace.evaluations * exploration.num_temperatures * len(exploration.z) * target.num_terms
        most = _MORE_PARTICLES if cost == 0 else min(_MORE_PARTICLES, int(_SLOW_TERMS / cost))
        if most:
            return most, pace

    return 0, _SLOWLY

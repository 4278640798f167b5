"""Which discrete latents are summed by elimination, and which jointly; what neither can sum is refused.

The model runs once with everything enumerated and once, for a few joint values at once, without. Where both agree
(``factors``), that is all. Otherwise what is to blame is looked for (``interactions``) and summed over its joint values
(``joint``), if there are not too many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_osds.model.discrete.assignments import (
    Discrete,
    all_indices,
    discrete_of,
    num_joint,
    some_indices,
    values_at,
)
from pyro_osds.model.discrete.dependence import with_dependence
from pyro_osds.model.discrete.elimination import BeyondReach, Elimination, Points, log_probs
from pyro_osds.model.discrete.factors import same
from pyro_osds.model.discrete.interactions import HISTORY, Interaction, interactions, is_sum_over
from pyro_osds.model.discrete.joint import Joint
from pyro_osds.model.discrete.refusals import refusal, worst
from pyro_osds.model.pyro_internals import longer_history
from pyro_osds.model.vmap import VmapCompat, vmappable_pyro
from pyro_osds.runtime.precision import in_double
from pyro_osds.stats.thresholds import MAX_JOINT, MAX_JOINT_SLOWLY, MAX_JOINT_TERMS

# Joint values of those that are summed jointly at which the elimination of the others is looked at.
_NUM_GIVEN = 3
# Joint values of a kind at which interactions are looked for, where they have not shown elsewhere.
_MAX_SPECIAL = 16
# Steps of history that are tried to see whether they would do.
_MAX_MORE_HISTORY = 3


@dataclass
class Plan:
    """Looks for discrete latents that elimination does not sum rightly.

    Arguments:
        run: Runs the model at a point, with a value for each of some discrete latents and all others enumerated.
        rows: A few points ``(S, D)``; where densities are finite at the first, it is looked at alone at first.
        elsewhere: As many other points as it is asked for, or fewer, such as draws of the prior.
        is_double: Whether runs are in double precision.
        nodes: All sites of a plain run, by name.
        names: The discrete latents.
        stray: What is to be said of dimensions of no plate, if there are some, where nothing can be summed.
        check_same: Called with what reads densities, before the model is called wrong: are they the same each time?
    """

    run: Callable[[Tensor, Mapping[str, Tensor]], Any]
    rows: Tensor
    elsewhere: Callable[[int], Points]
    is_double: bool
    nodes: Mapping[str, Any]
    names: Sequence[str]
    stray: str
    check_same: Callable[[Callable[[Tensor], Mapping[str, Tensor]]], None]
    _points: Points | None = None

    def __post_init__(self) -> None:
        self.sites = {name: discrete_of(self.nodes[name]) for name in self.names}
        self.held = Elimination(self.run, self.sites, self.is_double)
        self.rounding, self.row = self.held.rounding, self.rows[0]

    def joint(self) -> Joint | None:
        """The discrete latents that are summed jointly; None where elimination is right for all of them.

        Raises:
            ValueError: If there are too many joint values, or a support depends on them.
        """
        error = self._tried({})
        if error is None:
            return None
        self.check_same(self._terms)
        self._learn_supports()
        sites = tuple(self.sites.values())
        self.row, witness = self.held.row, dict(self.held.witness)
        found = interactions(self.held.plain, sites, self.nodes, self.rounding, witness)
        for special in () if found else self._specials(sites):
            found = interactions(self.held.plain, sites, self.nodes, self.rounding, special)
            if found:
                self.held.witness = special
                break
        jointly = self._which(found, witness)
        self._check_affordable(jointly, found, error)
        joint = self._made(jointly)
        # What ties sites together may do so at the point where it was seen, and nowhere near the first run.
        is_first = torch.equal(self.row, self.rows[0])
        rows = self.rows[:2] if is_first else torch.stack([self.row, self.rows[0]])

        return with_dependence(joint, self.run, rows, self.rounding)

    def _specials(self, sites: Sequence[Discrete]) -> Iterator[dict[str, Tensor]]:
        """Joint values at which rare combinations may show, as indices: all elements alike, and draws of the prior."""
        for value in range(1, min(max(site.num_values for site in sites), _MAX_SPECIAL)):
            yield {s.name: torch.full(s.elements, min(value, s.num_values - 1), dtype=torch.long) for s in sites}
        likely = self._elsewhere().likely
        for row in range(min(_MAX_SPECIAL, len(self._elsewhere().rows)) if likely else 0):
            yield {site.name: site.index_of(likely[site.name][row][None])[0] for site in sites}

    def can_run(self) -> bool:
        """Whether the model runs in this precision."""
        try:
            self._terms(self.row)
        except Exception:  # noqa: BLE001 - whatever it has against it, it is run as it is written
            return False

        return True

    # ---- is elimination right? ----

    def _tried(self, given: Mapping[str, Tensor]) -> Exception | None:
        """Why elimination is not right, or has failed, with some values given; None where it is right."""
        try:
            self.held.check(self.rows, given)
            points = self._elsewhere()
            count = len(points.rows)
            self.held.check_elsewhere(
                points, {name: value.expand(count, *value.shape) for name, value in given.items()}
            )
        except BeyondReach as found:
            return found.error

        return None

    def _elsewhere(self) -> Points:
        """Other points, with likely joint values; found once."""
        if self._points is None:
            self._points = self.elsewhere(self.held.num_points())

        return self._points

    def _terms(self, row: Tensor) -> dict[str, Tensor]:
        """Log densities by site of one plain run."""
        given = values_at(self.sites.values(), some_indices(self.sites.values(), 3))

        return log_probs(self.run(row, {name: value[2] for name, value in given.items()}))

    # ---- what has to be summed jointly ----

    def _learn_supports(self) -> None:
        """The same from plain runs, until all parents have had their largest value."""
        for _ in range(len(self.sites) + 1):
            before = num_joint(self.sites.values())
            given = {site.name: site.at(torch.full(site.elements, site.num_values - 1)) for site in self.sites.values()}
            for seen in self.run(self.row, given).discrete:
                known, now = self.sites[seen["name"]], discrete_of(seen)
                if now.num_values > known.num_values:
                    self.sites[known.name] = replace(known, values=now.values)
            if num_joint(self.sites.values()) == before:
                return

    def _which(self, found: Sequence[Interaction], witness: Mapping[str, Tensor]) -> tuple[Discrete, ...]:
        """As few discrete latents as leave a right elimination of the others, the witness included."""
        everything = tuple(self.sites.values())
        names = {seen.discrete for seen in found}
        if not names or len(names) == len(everything):
            return everything
        some = tuple(site for site in everything if site.name in names)
        indices = some_indices(some, _NUM_GIVEN)
        for name in indices.keys() & witness.keys():
            indices[name][-1] = witness[name]
        values = values_at(some, indices)
        for i in range(_NUM_GIVEN):
            if self._tried({name: value[i] for name, value in values.items()}) is not None:
                return everything

        return some

    def _check_affordable(
        self, jointly: Sequence[Discrete], found: Sequence[Interaction], error: Exception | None
    ) -> None:
        """Refuse what has too many joint values."""
        count = num_joint(jointly)
        num_terms = count * sum(log_prob.numel() for log_prob in self._terms(self.row).values())
        most = MAX_JOINT if self.held.vectorized else MAX_JOINT_SLOWLY
        if count <= most and num_terms <= MAX_JOINT_TERMS:
            return
        if self.stray and not found:
            raise ValueError(self.stray)
        seen = worst(found)
        if seen is not None and seen.num_read > 1 and seen.discrete != seen.reader:
            sites = tuple(self.sites.values())
            is_sum = is_sum_over(
                self.held.plain, sites, self.sites[seen.discrete], seen.reader, self.rounding, self.held.witness
            )
            found = [replace(seen, is_sum=is_sum)]
        raise ValueError(refusal(jointly, found, num_terms, self.held.vectorized, error, self._history(found)))

    def _history(self, found: Sequence[Interaction]) -> int | None:
        """The ``history=`` of ``pyro.markov`` with which elimination is right; None where none was found."""
        if not any(seen.kind == HISTORY for seen in found):
            return None
        for more in range(1, _MAX_MORE_HISTORY + 1):
            with longer_history(more) as longest:
                if self._tried({}) is None:
                    return longest[0]

        return None

    # ---- how it is summed ----

    def _made(self, jointly: Sequence[Discrete]) -> Joint:
        """The sum over joint values, by one run for all where that agrees with single runs."""
        values = values_at(jointly, all_indices(jointly))
        some = [index * (num_joint(jointly) - 1) // 5 for index in range(6)]
        few = Joint({name: value[some] for name, value in values.items()}, False)
        expected = self._densities(few)
        for batched_factories in (False, True):
            joint = Joint(values, True, batched_factories)
            try:
                got = [part[some] for part in self._densities(joint)]
            except Exception:  # noqa: BLE001 - whatever vmap cannot run, a loop can
                continue
            if all(same(*pair, self.rounding).all() for pair in zip(got, expected, strict=True)):
                return joint
        self.held.vectorized = False
        self._check_affordable(jointly, (), None)

        return Joint(values, False)

    def _densities(self, joint: Joint) -> Any:
        return joint.read(lambda given: self.run(self.row, given), lambda seen: seen.log_terms(self.row))


def joint_sum(
    run: Callable[[Tensor, Mapping[str, Tensor]], Any],
    rows: Tensor,
    elsewhere: Callable[[int], Points],
    nodes: Mapping[str, Any],
    names: Sequence[str],
    stray: str,
    check_same: Callable[[Callable[[Tensor], Mapping[str, Tensor]]], None],
) -> tuple[Joint | None, Elimination]:
    """The discrete latents that have to be summed jointly; None where elimination is right for all of them.

    Arguments:
        run: Runs the model at a point, with a value for each of some discrete latents and all others enumerated.
        rows: A few points ``(S, D)``.
        elsewhere: As for :class:`Plan`.
        nodes: All sites of a plain run, by name.
        names: The discrete latents.
        stray: As for :class:`Plan`.
        check_same: As for :class:`Plan`.

    Returns:
        They, and what holds the elimination of the others against plain runs.

    Raises:
        ValueError: If there are too many joint values, a support depends on them, or the density is random.
    """
    joint, held = _joint_in_double(run, rows, elsewhere, nodes, names, stray, check_same)
    if joint is None:
        return None, held

    def as_drawn(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # In double precision they were double, too.
        return {name: value.to(nodes[name]["value"].dtype) for name, value in values.items()}

    return replace(joint, values=as_drawn(joint.values)), held


def _joint_in_double(run: Any, rows: Tensor, elsewhere: Any, *args: Any) -> tuple[Joint | None, Elimination]:
    """In double precision, or as the model is written where it insists on that."""
    with torch.no_grad(), vmappable_pyro():
        if rows.device.type != "mps":  # has no double precision
            with in_double(), VmapCompat():
                plan = Plan(run, rows, elsewhere, True, *args)
                if plan.can_run():
                    return plan.joint(), plan.held
        with VmapCompat():
            plan = Plan(run, rows, elsewhere, False, *args)
            return plan.joint(), plan.held

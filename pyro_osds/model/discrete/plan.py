"""Which discrete latents are summed by elimination, and which jointly; what neither can sum is refused.

The model runs once with everything enumerated and once, for a few joint values at once, without. Where both agree
(``factors``), that is all. Otherwise what is to blame is looked for (``interactions``) and summed over its joint values
(``joint``), if there are not too many.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pyro_osds.model.discrete.assignments import (
    Discrete,
    all_indices,
    discrete_of,
    num_joint,
    one_by_one,
    over_assignments,
    some_indices,
    values_at,
)
from pyro_osds.model.discrete.dependence import log_probs, with_dependence
from pyro_osds.model.discrete.enumeration import sum_out
from pyro_osds.model.discrete.factors import beyond_plates, differing, same
from pyro_osds.model.discrete.interactions import HISTORY, Interaction, interactions, is_sum_over
from pyro_osds.model.discrete.joint import Joint
from pyro_osds.model.discrete.refusals import MovingSupportError, refusal, worst
from pyro_osds.model.discrete.supports import is_bounded
from pyro_osds.model.pyro_internals import enumerated_dim, longer_history
from pyro_osds.model.vmap import VmapCompat, vmappable_pyro
from pyro_osds.runtime.chunks import chunk_sizes
from pyro_osds.runtime.precision import in_double
from pyro_osds.stats.thresholds import MAX_JOINT, MAX_JOINT_SLOWLY, MAX_JOINT_TERMS

# Joint values of plain runs at once; without vmap, a run each.
_NUM_LOOKED_AT, _NUM_LOOKED_AT_SLOWLY, _MAX_AT_ONCE = 64, 12, 512
# Joint values of those that are summed jointly at which the elimination of the others is looked at.
_NUM_GIVEN = 3
# By which share two equal densities may differ in double precision, and in single.
_ROUNDING, _SINGLE_ROUNDING = 1e-6, 1e-3
# How many times as many joint values are summed at a few draws, to see what lies beyond a bound.
_WIDER = 4
# Steps of history that are tried to see whether they would do.
_MAX_MORE_HISTORY = 3


class _BeyondReach(Exception):
    """Elimination is wrong here, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error or self


@dataclass
class Plan:
    """Looks for discrete latents that elimination does not sum rightly.

    Arguments:
        run: Runs the model at a point, with a value for each of some discrete latents and all others enumerated.
        rows: A few points ``(S, D)``; where densities are finite at the first, it is looked at alone.
        is_double: Whether runs are in double precision.
        nodes: All sites of a plain run, by name.
        names: The discrete latents.
        stray: What is to be said of dimensions of no plate, if there are some, where nothing can be summed.
        check_same: Called with what reads densities, before the model is called wrong: are they the same each time?
    """

    run: Callable[[Tensor, Mapping[str, Tensor]], Any]
    rows: Tensor
    is_double: bool
    nodes: Mapping[str, Any]
    names: Sequence[str]
    stray: str
    check_same: Callable[[Callable[[Tensor], Mapping[str, Tensor]]], None]
    sites: dict[str, Discrete] = field(default_factory=dict)
    vectorized: bool = True

    def __post_init__(self) -> None:
        self.sites = {name: discrete_of(self.nodes[name]) for name in self.names}
        self.rounding = _ROUNDING if self.is_double else _SINGLE_ROUNDING
        self.row = self.rows[0]

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
        found = interactions(self._plain, tuple(self.sites.values()), self.nodes, self.rounding)
        jointly = self._which(found)
        self._check_affordable(jointly, found, error)
        joint = self._made(jointly)

        return replace(with_dependence(joint, self.run, self.rows[:2], self.rounding), widened=self._widened(jointly))

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
            self._check(given)
        except _BeyondReach as found:
            return found.error

        return None

    def _check(self, given: Mapping[str, Tensor]) -> None:
        rest = tuple(name for name in self.sites if name not in given)
        for row in self.rows:
            self.row = row
            run, sites, eliminated = self._eliminated(given)
            self._learn_values(run.discrete, given)
            discrete = [self.sites[name] for name in rest]
            is_all = num_joint(discrete) <= _NUM_LOOKED_AT
            indices = all_indices(discrete) if is_all else some_indices(discrete, self._num_looked_at())
            plain = self._plain(self._full(values_at(discrete, indices), given))
            names = differing(sites, plain, indices, self.rounding)
            above = {site["name"]: site["log_prob"] for site in run.above_and_below()[0]}
            names += [name for name in above if not same(plain[name], above[name], self.rounding).all()]
            total = torch.stack([_by_row(plain[site["name"]]) for site in sites]).sum(0)
            if names or (is_all and not same(eliminated, torch.logsumexp(total, 0), self.rounding)):
                raise _BeyondReach
            if total.isfinite().any():
                return

    def _eliminated(self, given: Mapping[str, Tensor]) -> tuple[Any, list[Any], Tensor]:
        """An enumerated run at the present point, the sites that are summed out, and their sum."""
        try:
            run = self.run(self.row, given)
            sites = [*run.discrete, *run.above_and_below()[1], *run.observed]
            is_beyond, eliminated = bool(beyond_plates(sites)), sum_out(sites)
        except MovingSupportError:
            raise
        except Exception as error:
            # Whatever the model, or Pyro, has against it, plain runs are looked at next.
            raise _BeyondReach(error) from error
        if is_beyond:
            raise _BeyondReach

        return run, sites, eliminated

    def _num_looked_at(self) -> int:
        return _NUM_LOOKED_AT if self.vectorized else _NUM_LOOKED_AT_SLOWLY

    def _full(self, values: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values of all discrete latents, of which those that are given are the same in each row."""
        count = len(next(iter(values.values()), torch.zeros(1)))

        return {**values, **{name: value.expand(count, *value.shape) for name, value in given.items()}}

    def _plain(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Log densities by site of plain runs, ``(M, *batch_shape)``, some at once."""
        chunks = []
        start, total = 0, len(next(iter(values.values())))
        for size in chunk_sizes(total, _MAX_AT_ONCE):
            part = {name: value[start : start + size] for name, value in values.items()}
            chunks.append(self._at_once(part))
            start += size

        return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}

    def _at_once(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        def read(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return log_probs(self.run(self.row, given))

        if self.vectorized:
            try:
                return over_assignments(read, values)
            except Exception:  # noqa: BLE001 - whatever vmap cannot run, a loop can
                self.vectorized = False
        return one_by_one(read, values)

    def _terms(self, row: Tensor) -> dict[str, Tensor]:
        """Log densities by site of one plain run."""
        given = values_at(self.sites.values(), some_indices(self.sites.values(), 3))

        return log_probs(self.run(row, {name: value[2] for name, value in given.items()}))

    # ---- what has to be summed jointly ----

    def _learn_values(self, discrete: Sequence[Any], given: Mapping[str, Tensor]) -> None:
        """Take over supports that are larger where parents have all their values than where they have one."""
        for site in discrete:
            dim = enumerated_dim(site)
            known = self.sites[site["name"]]
            if (
                site["name"] in given
                or dim is None
                or site["value"].shape[dim - site["fn"].event_dim] == known.num_values
            ):
                continue
            self.sites[known.name] = replace(known, values=discrete_of(site).values)

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

    def _which(self, found: Sequence[Interaction]) -> tuple[Discrete, ...]:
        """As few discrete latents as leave a right elimination of the others."""
        everything = tuple(self.sites.values())
        names = {seen.discrete for seen in found}
        if not names or len(names) == len(everything):
            return everything
        some = tuple(site for site in everything if site.name in names)
        values = values_at(some, some_indices(some, _NUM_GIVEN))
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
        most = MAX_JOINT if self.vectorized else MAX_JOINT_SLOWLY
        if count <= most and num_terms <= MAX_JOINT_TERMS:
            return
        if self.stray and not found:
            raise ValueError(self.stray)
        seen = worst(found)
        if seen is not None and seen.num_read > 1 and seen.discrete != seen.reader:
            sites = tuple(self.sites.values())
            is_sum = is_sum_over(self._plain, sites, self.sites[seen.discrete], seen.reader, self.rounding)
            found = [replace(seen, is_sum=is_sum)]
        raise ValueError(refusal(jointly, found, num_terms, self.vectorized, error, self._history(found)))

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
        self.vectorized = False
        self._check_affordable(jointly, (), None)

        return Joint(values, False)

    def _widened(self, jointly: Sequence[Discrete]) -> dict[str, Tensor] | None:
        """Joint values with as many beyond the stated bounds as can be summed now and then; None without any."""
        if not any(is_bounded(self.nodes[site.name]) for site in jointly):
            return None
        wider = [
            replace(site, values=discrete_of(self.nodes[site.name], widened=True).values)
            if is_bounded(self.nodes[site.name])
            else site
            for site in jointly
        ]
        num_terms = sum(log_prob.numel() for log_prob in self._terms(self.row).values())
        most = _WIDER * min(MAX_JOINT if self.vectorized else MAX_JOINT_SLOWLY, MAX_JOINT_TERMS // num_terms)
        while num_joint(wider) > most:
            # One value less of all, until there is one more than was stated.
            wider = [
                replace(now, values=now.values[:-1]) if now.num_values > site.num_values + 1 else now
                for now, site in zip(wider, jointly, strict=True)
            ]
            if all(now.num_values <= site.num_values + 1 for now, site in zip(wider, jointly, strict=True)):
                break

        return values_at(wider, all_indices(wider)) if num_joint(wider) <= most else None

    def _densities(self, joint: Joint) -> Any:
        return joint.read(lambda given: self.run(self.row, given), lambda seen: seen.log_terms(self.row))


def _by_row(rows: Tensor) -> Tensor:
    """Sums of all but the first dimension."""
    return rows.reshape(len(rows), -1).sum(1)


def joint_sum(
    run: Callable[[Tensor, Mapping[str, Tensor]], Any],
    rows: Tensor,
    nodes: Mapping[str, Any],
    names: Sequence[str],
    stray: str,
    check_same: Callable[[Callable[[Tensor], Mapping[str, Tensor]]], None],
) -> Joint | None:
    """The discrete latents that have to be summed jointly; None where elimination is right for all of them.

    Arguments:
        run: Runs the model at a point, with a value for each of some discrete latents and all others enumerated.
        rows: A few points ``(S, D)``.
        nodes: All sites of a plain run, by name.
        names: The discrete latents.
        stray: As for :class:`Plan`.
        check_same: As for :class:`Plan`.

    Raises:
        ValueError: If there are too many joint values, a support depends on them, or the density is random.
    """
    joint = _joint_in_double(run, rows, nodes, names, stray, check_same)
    if joint is None:
        return None

    def as_drawn(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # In double precision they were double, too.
        return {name: value.to(nodes[name]["value"].dtype) for name, value in values.items()}

    return replace(
        joint, values=as_drawn(joint.values), widened=None if joint.widened is None else as_drawn(joint.widened)
    )


def _joint_in_double(run: Any, rows: Tensor, *args: Any) -> Joint | None:
    """In double precision, or as the model is written where it insists on that."""
    with torch.no_grad(), vmappable_pyro():
        if rows.device.type != "mps":  # has no double precision
            with in_double(), VmapCompat():
                plan = Plan(run, rows, True, *args)
                if plan.can_run():
                    return plan.joint()
        with VmapCompat():
            return Plan(run, rows, False, *args).joint()

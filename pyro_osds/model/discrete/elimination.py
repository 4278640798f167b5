r"""Is elimination right? Runs with everything enumerated, held against plain ones, at points and joint values.

It is right where :math:`f_{s,j}(u, x) = F_{s,j}(u)[x]` (``factors``) at every point *u* and all joint values *x* of the
discrete latents. What ties them together may do so at some points only (``torch.relu(w) * z.roll(1, -1)``), or for a
rare combination of values. So points are those of the first run and its neighbours, draws of the prior and, when there
are some, of the posterior; joint values are all of them or, where they are many, draws of the prior and of the
posterior, any, and those that differ from likely ones in one element.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from pyro_osds.model.discrete.assignments import (
    Discrete,
    all_indices,
    discrete_of,
    moved_indices,
    num_joint,
    one_by_one,
    over_assignments,
    some_indices,
    values_at,
)
from pyro_osds.model.discrete.enumeration import sum_out
from pyro_osds.model.discrete.factors import (
    Enumerated,
    Rounding,
    beyond_plates,
    differing,
    read_enumerated,
    same,
)
from pyro_osds.model.discrete.refusals import MovingSupportError
from pyro_osds.model.pyro_internals import enumerated_dim
from pyro_osds.runtime.chunks import chunk_sizes

# Joint values of plain runs at once; without vmap, a run each.
_NUM_LOOKED_AT, _NUM_LOOKED_AT_SLOWLY, _MAX_AT_ONCE = 64, 12, 512
# Points elsewhere and pairs of a point and a joint value there; without vmap, a run each.
_NUM_ELSEWHERE, _NUM_ELSEWHERE_SLOWLY = 64, 3
# Densities of single values that all enumerated runs elsewhere may have together, and that all plain ones may.
_MAX_ENUMERATED, _MAX_PLAIN = 2**19, 2**20
# By which share two equal densities may differ in double precision, and in single.
_ROUNDING, _SINGLE_ROUNDING = 1e-6, 1e-3
# A step that is nothing but rounding, in double precision and in single: what it changes, rounding may.
_NUDGE, _SINGLE_NUDGE = 1e-13, 1e-5

Run = Callable[[Tensor, Mapping[str, Tensor]], Any]
"""Runs the model at a point, with a value for each of some discrete latents and all others enumerated."""


class BeyondReach(Exception):
    """Elimination is wrong here, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error or self


@dataclass(frozen=True)
class Points:
    """Points at which elimination is looked at, and joint values that are likely there.

    Arguments:
        rows: The points, ``(C, D)``.
        likely: Values by discrete latent, ``(C, *shape)``; empty where none are known.
    """

    rows: Tensor
    likely: Mapping[str, Tensor]


def log_probs(run: Any) -> dict[str, Tensor]:
    """Log densities of all sites of one run."""
    return {site["name"]: site["log_prob"] for site in (*run.latents, *run.discrete, *run.observed)}


@dataclass
class Elimination:
    """Holds enumerated runs against plain ones.

    Arguments:
        run: Runs the model.
        sites: The discrete latents by name; supports grow where parents are seen to make them larger.
        is_double: Whether runs are in double precision.
        vectorized: Whether one run is made for many joint values; a run that fails so makes it False.
        num_enumerated: Densities of single values that an enumerated run has.
        num_plain: The same of a plain run.
    """

    run: Run
    sites: dict[str, Discrete]
    is_double: bool = True
    vectorized: bool = True
    num_enumerated: int = 1
    num_plain: int = 1

    def __post_init__(self) -> None:
        self.rounding = _ROUNDING if self.is_double else _SINGLE_ROUNDING
        self.row, self.case = torch.empty(0), 0
        # The joint values at which elimination was last seen to be wrong, as indices of one.
        self.witness: dict[str, Tensor] = {}

    # ---- at the first run ----

    def check(self, rows: Tensor, given: Mapping[str, Tensor]) -> None:
        """Look at the first of some points where densities are finite, at any joint values.

        Arguments:
            rows: The points, ``(S, D)``.
            given: Values of discrete latents that are not eliminated.

        Raises:
            BeyondReach: If elimination is wrong, or fails.
        """
        rest = tuple(name for name in self.sites if name not in given)
        for row in rows:
            self.row = row
            run, sites, eliminated = self._eliminated(row, given)
            self._learn_values(run.discrete, given)
            discrete = [self.sites[name] for name in rest]
            is_all = num_joint(discrete) <= _NUM_LOOKED_AT
            indices = all_indices(discrete) if is_all else some_indices(discrete, self._num_looked_at())
            plain = self.plain(self._full(values_at(discrete, indices), given))
            above = {site["name"]: site["log_prob"][None] for site in run.above_and_below()[0]}
            seen = _stacked(read_enumerated(sites))
            count = len(next(iter(plain.values())))
            wrong = self._wrong(seen, above, plain, indices, torch.zeros(count, dtype=torch.long))
            total = torch.stack([_by_row(plain[site["name"]]) for site in sites]).sum(0)
            if wrong is not None or (is_all and not same(eliminated, torch.logsumexp(total, 0), self.rounding)):
                self._remember(indices, given, 0 if wrong is None else wrong)
                raise BeyondReach
            self.num_enumerated = sum(log_prob.numel() for log_prob in seen.log_probs.values())
            self.num_plain = sum(log_prob[0].numel() for log_prob in plain.values())
            if total.isfinite().any():
                return

    def _eliminated(self, row: Tensor, given: Mapping[str, Tensor]) -> tuple[Any, list[Any], Tensor]:
        """An enumerated run at a point, the sites that are summed out, and their sum."""
        try:
            run = self.run(row, given)
            sites = [*run.discrete, *run.above_and_below()[1], *run.observed]
            is_beyond, eliminated = bool(beyond_plates(sites)), sum_out(sites)
        except MovingSupportError:
            raise
        except Exception as error:
            # Whatever the model, or Pyro, has against it, plain runs are looked at next.
            raise BeyondReach(error) from error
        if is_beyond:
            raise BeyondReach

        return run, sites, eliminated

    # ---- elsewhere ----

    def num_points(self) -> int:
        """How many points elsewhere are worth their runs."""
        most = _NUM_ELSEWHERE if self.vectorized else _NUM_ELSEWHERE_SLOWLY

        return max(_NUM_ELSEWHERE_SLOWLY, min(most, _MAX_ENUMERATED // self.num_enumerated))

    def check_elsewhere(self, points: Points, given: Mapping[str, Tensor]) -> None:
        """Look at other points, at joint values that are likely there, any, and those near the best of them.

        Arguments:
            points: The points.
            given: Values of discrete latents that are not eliminated, ``(C, *shape)``.

        Raises:
            BeyondReach: If elimination is wrong, or fails.
        """
        discrete = [site for name, site in self.sites.items() if name not in given]
        if not discrete or not len(points.rows):
            return
        seen, above = self._enumerated(points.rows, given)
        count = len(points.rows)
        pairs = max(_NUM_LOOKED_AT, min(_MAX_AT_ONCE, _MAX_PLAIN // self.num_plain))
        each = max(2, pairs // count) if self.vectorized else 2
        indices = self._some_of_each(discrete, points, each)
        plain = self._compare(points, seen, above, indices, given)
        if num_joint(discrete) <= each or not self.vectorized:
            return
        total = torch.stack([_by_row(value) for value in plain.values()]).sum(0).nan_to_num(-torch.inf, -torch.inf)
        best = total.reshape(count, -1).argmax(1)
        likely = {name: rows[torch.arange(count), best] for name, rows in indices.items()}
        self._compare(points, seen, above, moved_indices(discrete, likely, each), given)

    def _enumerated(self, rows: Tensor, given: Mapping[str, Tensor]) -> tuple[Enumerated, dict[str, Tensor]]:
        """Densities of enumerated runs at all points, and those that no discrete latent is in, ``(C, *)``."""
        layout: list[Enumerated] = []

        def read(at: Mapping[str, Tensor]) -> dict[str, Tensor]:
            run = self.run(at["row"], {name: at["given " + name] for name in given})
            above, below = run.above_and_below()
            sites = [*run.discrete, *below, *run.observed]
            if beyond_plates(sites):
                raise BeyondReach
            layout.append(read_enumerated(sites))
            densities = {"site " + name: value for name, value in layout[-1].log_probs.items()}

            return densities | {"above " + site["name"]: site["log_prob"] for site in above}

        values = {"row": rows, **{"given " + name: value for name, value in given.items()}}
        try:
            found = self._read(read, values)
        except (MovingSupportError, BeyondReach):
            raise
        except Exception as error:
            raise BeyondReach(error) from error
        of_sites = {name[5:]: value for name, value in found.items() if name.startswith("site ")}
        above = {name[6:]: value for name, value in found.items() if name.startswith("above ")}

        return replace(layout[-1], log_probs=of_sites), above

    def _some_of_each(self, discrete: Sequence[Discrete], points: Points, each: int) -> dict[str, Tensor]:
        """Joint values at each point as indices, ``(C, A, *elements)``: all, or likely ones, others, and any."""
        count = len(points.rows)
        if num_joint(discrete) <= each:
            return {name: rows.expand(count, *rows.shape) for name, rows in all_indices(discrete).items()}
        anything = some_indices(discrete, count * each)
        indices = {name: rows.reshape(count, each, *rows.shape[1:]) for name, rows in anything.items()}
        if not points.likely:
            return indices
        likely = {site.name: site.index_of(points.likely[site.name]) for site in discrete}
        near = moved_indices(discrete, likely, max(1, each // 4))
        for name, rows in indices.items():
            rows[:, 0] = likely[name]
            # What is likely at another point.
            others = range(1, max(1, each // 2))
            for other in others:
                rows[:, other] = likely[name].roll(other, 0)
            rows[:, each - near[name].shape[1] :] = near[name]

        return indices

    def _compare(
        self,
        points: Points,
        seen: Enumerated,
        above: Mapping[str, Tensor],
        indices: Mapping[str, Tensor],
        given: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Log densities by site of plain runs at all pairs, ``(C A, *batch_shape)``, if enumerated ones agree."""
        count, each = next(iter(indices.values())).shape[:2]
        case = torch.arange(count).repeat_interleave(each)
        flat = {name: rows.flatten(0, 1) for name, rows in indices.items()}
        sites = [self.sites[name] for name in flat]
        values = {**values_at(sites, flat), **{name: value[case] for name, value in given.items()}}
        rows = points.rows[case.to(points.rows.device)]
        plain = self.plain(values, rows)
        wrong = self._wrong(seen, above, plain, flat, case, lenient=True)
        if wrong is None:
            return plain
        # An ill-conditioned density has fewer digits: what a nudge changes, rounding may.
        nudge = _NUDGE if self.is_double else _SINGLE_NUDGE
        nudged = self.plain(values, rows + nudge * rows.abs().clamp(min=1.0))
        noise = {name: 10.0 * (nudged[name] - value).abs().nan_to_num(torch.inf) for name, value in plain.items()}
        wrong = self._wrong(seen, above, plain, flat, case, lenient=True, noise=noise)
        if wrong is not None:
            self.row, self.case = rows[wrong], int(case[wrong])
            self._remember(flat, {name: value[case[wrong]] for name, value in given.items()}, wrong)
            raise BeyondReach

        return plain

    def _wrong(
        self,
        seen: Enumerated,
        above: Mapping[str, Tensor],
        plain: Mapping[str, Tensor],
        indices: Mapping[str, Tensor],
        case: Tensor,
        lenient: bool = False,
        noise: Mapping[str, Tensor] | None = None,
    ) -> int | None:
        """The first row of plain runs with another density than the enumerated run says; None where all agree."""
        rounding = Rounding(self.rounding, lenient, noise or {})
        wrong = differing(seen, plain, indices, case, rounding)
        for name, value in above.items():
            equal = same(plain[name], value[case], self.rounding, lenient, (noise or {}).get(name, 0.0))
            wrong = wrong | ~equal.reshape(len(case), -1).all(1)

        return int(wrong.nonzero()[0]) if wrong.any() else None

    def _remember(self, indices: Mapping[str, Tensor], given: Mapping[str, Tensor], row: int) -> None:
        self.witness = {name: rows[row] for name, rows in indices.items()}
        self.witness |= {name: self.sites[name].index_of(value[None])[0] for name, value in given.items()}

    # ---- plain runs ----

    def plain(self, values: Mapping[str, Tensor], rows: Tensor | None = None) -> dict[str, Tensor]:
        """Log densities by site of plain runs, ``(M, *batch_shape)``, some at once.

        Arguments:
            values: Values of all discrete latents, ``(M, *shape)``.
            rows: The points, ``(M, D)``; None for the present one.
        """
        row = self.row

        def read(at: Mapping[str, Tensor]) -> dict[str, Tensor]:
            given = {name[1:]: value for name, value in at.items() if name != "row"}
            return log_probs(self.run(at.get("row", row), given))

        everything = {"=" + name: value for name, value in values.items()} | ({} if rows is None else {"row": rows})
        chunks = []
        start, total = 0, len(next(iter(everything.values())))
        for size in chunk_sizes(total, _MAX_AT_ONCE):
            chunks.append(self._read(read, {name: value[start : start + size] for name, value in everything.items()}))
            start += size

        return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}

    def _read(self, read: Callable[[Mapping[str, Tensor]], Any], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.vectorized:
            try:
                return cast(dict[str, Tensor], over_assignments(read, values))
            except BeyondReach:
                raise
            except Exception:  # noqa: BLE001 - whatever vmap cannot run, a loop can
                self.vectorized = False
        return cast(dict[str, Tensor], one_by_one(read, values))

    def _num_looked_at(self) -> int:
        return _NUM_LOOKED_AT if self.vectorized else _NUM_LOOKED_AT_SLOWLY

    def _full(self, values: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values of all discrete latents, of which those that are given are the same in each row."""
        count = len(next(iter(values.values()), torch.zeros(1)))

        return {**values, **{name: value.expand(count, *value.shape) for name, value in given.items()}}

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


def _stacked(seen: Enumerated) -> Enumerated:
    """The same as that of one point among several."""
    return replace(seen, log_probs={name: value[None] for name, value in seen.log_probs.items()})


def _by_row(rows: Tensor) -> Tensor:
    """Sums of all but the first dimension."""
    return rows.reshape(len(rows), -1).sum(1)

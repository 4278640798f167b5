"""What a model's target asks of its discrete latents: are they summed rightly, and what lies beyond their bounds?"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions.transforms import identity_transform

from pyro_osds.model.agreement import check_points
from pyro_osds.model.batching import Ladder
from pyro_osds.model.coordinates import Coordinates
from pyro_osds.model.discrete.assignments import all_indices, num_joint, values_at
from pyro_osds.model.discrete.decode import decode
from pyro_osds.model.discrete.elimination import BeyondReach, Elimination, Points
from pyro_osds.model.discrete.interactions import interactions
from pyro_osds.model.discrete.joint import Joint
from pyro_osds.model.discrete.refusals import unseen
from pyro_osds.model.discrete.supports import Wider, mass_between, wider
from pyro_osds.model.foreign.moments import Copies, trace_of
from pyro_osds.model.prior import sample_latents
from pyro_osds.model.run import ModelRun
from pyro_osds.model.sites import LatentSite
from pyro_osds.model.vmap import VmapCompat, vmappable_pyro
from pyro_osds.runtime.precision import in_double
from pyro_osds.stats.thresholds import MAX_JOINT, MAX_JOINT_SLOWLY, MAX_JOINT_TERMS, MAX_PRIOR_BEYOND

# Draws at which sums beyond stated bounds are evaluated at once, and how many terms they may have together.
_MOST_TOGETHER, _MAX_TERMS = 64, 2**19
# How many times as many joint values are summed at a few draws, to see what lies beyond a bound.
_WIDER = 4
# Values beyond a bound where it is more than doubled, if fewer were stated.
_MIN_BEYOND = 128
# Joint values at which it is asked how much of a prior lies beyond, and how many probabilities that may take.
_NUM_SPREAD, _MAX_EVALUATED = 8, 2**24
# Draws of the prior where each takes a run of its own.
_NUM_SLOWLY = 8
# Points of the posterior at which discrete latents are drawn back, by a few runs each.
_NUM_DECODED = 2


class DiscreteSums:
    """The part of a model target that looks after its discrete latents; what it looks at belongs to the target."""

    sites: tuple[LatentSite, ...]
    discrete_sites: tuple[str, ...]
    nesting: int
    dtype: torch.dtype
    device: torch.device
    start: Tensor
    num_terms: int
    coordinates: Coordinates
    _ladder: Ladder
    _joint: Joint | None
    _held: Elimination | None
    _bounded: tuple[str, ...]
    _run: Callable[..., ModelRun]
    _call: Callable[[], Any]
    _flatten: Callable[[Mapping[str, Any]], Tensor]
    _single: Callable[[Tensor], tuple[Tensor, Tensor]]
    constrain: Callable[[Tensor], dict[str, Tensor]]

    @property
    def jointly_summed(self) -> tuple[str, ...]:
        """Discrete latents that are summed over all their joint values, because their elements interact."""
        return () if self._joint is None else tuple(self._joint.values)

    def infer_discrete(self, values: Mapping[str, Tensor], temperature: int = 1) -> dict[str, Tensor]:
        """Values of the discrete latents, given one value ``(*shape,)`` at every continuous latent site."""
        return decode(self._call, values, self.discrete_sites, self.nesting, temperature, self.jointly_summed)

    def beyond_bounds(self, z: Tensor) -> Tensor | None:
        """Nats that values beyond the stated bounds of counts would add to the log density, ``(S, D) -> (S,)``.

        At least as many values again as were stated are added, and more while the prior has mass beyond, given some
        values of other discrete latents; where there are many, some stand for their neighbours. None where no bound was
        stated, or none can be looked beyond.
        """
        if not self._bounded or self._held is None:
            return None
        with torch.no_grad():
            tops = self._tops(z)
            joint, eliminated = self._wider_joint(tops), self._wider_sites(tops)
            if joint is None and self._joint is not None:
                return None

            def read(row: Tensor) -> tuple[Tensor]:
                if joint is None:
                    wide = self._run(row, widened=eliminated).log_densities(row)
                else:
                    wide = joint.densities(lambda given: self._run(row, given, eliminated), row)
                return (sum(wide, row.new_zeros(())) - sum(self._single(row), row.new_zeros(())),)

            sites = self._held.sites
            growth = math.prod(len(wide.values) / sites[name].num_values for name, wide in eliminated.items())
            size = max(1, min(_MOST_TOGETHER, int(_MAX_TERMS / self.num_terms / growth)))
            return torch.cat([self._ladder.map(read, part.to(self.dtype))[0] for part in z.split(size)])

    def _tops(self, z: Tensor) -> dict[str, int]:
        """The largest value to look at of each bounded count: twice its bound, or where its prior has no mass left."""
        assert self._held is not None
        stated = {name: int(self._held.sites[name].values.max()) for name in self._bounded}
        tops, spent = dict(stated), 0
        below = dict.fromkeys(stated, -1)
        covered: dict[str, Tensor] = {}
        growing = list(stated)
        while growing:
            reached = {name: 2 * tops[name] + 1 for name in growing}
            mass = self._mass(z, {name: (below[name] + 1, reached[name]) for name in growing})
            for name in growing:
                covered[name] = covered.get(name, 0.0) + mass[name]
                spent += mass[name].numel() * (reached[name] - below[name])
            tops, below = {**tops, **reached}, {**below, **reached}
            growing = [name for name in growing if (1.0 - covered[name]).nan_to_num(0.0).max() > MAX_PRIOR_BEYOND]
            if spent > _MAX_EVALUATED:
                break

        return tops

    def _mass(self, z: Tensor, between: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
        """The prior's mass of some counts between two values at each point, ``{name: (S, *)}``.

        It is that given each value of other discrete latents, or given some joint values of those summed jointly.
        """

        def read(row: Tensor) -> dict[str, Tensor]:
            found: dict[str, list[Tensor]] = {name: [] for name in between}
            for given in [{}] if self._joint is None else self._joint.spread(_NUM_SPREAD):
                for site in self._run(row, given).discrete:
                    if site["name"] in between:
                        found[site["name"]].append(mass_between(site["fn"], *between[site["name"]]).reshape(-1))
            return {name: torch.cat(parts) for name, parts in found.items()}

        parts = [self._ladder.map(read, part.to(self.dtype)) for part in z.split(_MOST_TOGETHER)]

        return {name: torch.cat([part[name] for part in parts]) for name in between}

    def _wider_sites(self, tops: Mapping[str, int]) -> dict[str, Wider]:
        """Values beyond the bounds of counts that are eliminated."""
        assert self._held is not None
        found = {}
        for name in self._bounded:
            stated = self._held.sites[name].values
            if name not in self.jointly_summed:
                is_twice = tops[name] == 2 * int(stated.max()) + 1
                found[name] = wider(stated, tops[name], tops[name] if is_twice else max(len(stated), _MIN_BEYOND))

        return found

    def _wider_joint(self, tops: Mapping[str, int]) -> Joint | None:
        """Joint values with as many beyond the bounds as can be summed now and then; None without any, or too many."""
        joint, held = self._joint, self._held
        if joint is None or held is None:
            return None
        bounded = [name for name in self._bounded if name in joint.values]
        sites = {name: held.sites[name] for name in joint.values}
        most = _WIDER * min(MAX_JOINT if joint.vectorized else MAX_JOINT_SLOWLY, MAX_JOINT_TERMS // held.num_plain)
        count = max([1, *(tops[name] + 1 for name in bounded)])
        while True:
            wide = {name: wider(sites[name].values, tops[name], count) for name in bounded}
            now = [replace(site, values=wide[name].values) if name in wide else site for name, site in sites.items()]
            if num_joint(now) <= most or count == 1:
                break
            count = max(1, min(count - 1, int(0.9 * count)))
        if num_joint(now) > most:
            return None
        indices = all_indices(now)
        log_weight = torch.zeros(num_joint(now), dtype=self.dtype)
        for name in bounded:
            log_weight += wide[name].log_weight.to(log_weight)[indices[name]].reshape(len(log_weight), -1).sum(1)
        values = {name: value.to(joint.values[name]) for name, value in values_at(now, indices).items()}

        return replace(joint, values=values, log_weight=log_weight.to(self.device))

    def unseen_dependence(self, z: Tensor) -> str | None:
        """What discrete latents do at points ``(S, D)`` that their sum does not see, and the cure, in sentences.

        None where the sum is right at these points, and where no discrete latent is eliminated. The caller's random
        numbers stay as they are.
        """
        names = [name for name in self.discrete_sites if name not in self.jointly_summed]
        if self._held is None or not names or not len(z):
            return None
        held = replace(self._held, run=self._run, sites=dict(self._held.sites))
        z = z[: held.num_points()].to(self.dtype)
        with torch.no_grad(), vmappable_pyro():
            values = self.constrain(z)
            likely = self._decoded(values, _NUM_DECODED if held.vectorized else 1)
            with in_double() if held.is_double else contextlib.nullcontext(), VmapCompat():
                joint = self._joint
                index = torch.arange(len(z)) % (1 if joint is None else len(joint))
                given = {} if joint is None else {name: likely.get(name, v[index]) for name, v in joint.values.items()}
                if not _is_wrong(held, Points(z, likely), given):
                    return None
                return self._told(held, names, self._what_matters(held, z, given))

    def _what_matters(self, held: Elimination, z: Tensor, given: Mapping[str, Tensor]) -> list[str]:
        """The continuous latents whose values are needed for what was seen at one of some points ``(S, D)``."""
        row, at = z[held.case].clone(), {name: value[held.case][None] for name, value in given.items()}
        likely = {site.name: site.at(held.witness[site.name])[None] for site in held.sites.values()}
        needed = []
        for site in self.sites:
            other = row.clone()
            other[site.start : site.stop] = self.start[site.start : site.stop]
            if _is_wrong(replace(held, sites=dict(held.sites)), Points(other[None], likely), at):
                row = other
            else:
                needed.append(site.name)
        held.row = row

        return needed

    def _told(self, held: Elimination, names: Sequence[str], needed: Sequence[str]) -> str:
        """What was found to be wrong, in sentences."""
        values = {name: value[0] for name, value in self.constrain(held.row[None]).items()}
        at = Copies(values)
        with torch.random.fork_rng(devices=self._random_devices()):
            nodes = trace_of(poutine.condition(self._call, data=at)).get_trace().nodes
        found = interactions(held.plain, tuple(held.sites.values()), nodes, held.rounding, held.witness)
        shown = ", ".join(f"{name!r}: torch.tensor({values[name].tolist()})" for name in needed)
        sizes = {site.name: site.num_values for site in held.sites.values()}

        return unseen(
            [seen for seen in found if seen.discrete in names], names, sizes, f"{{{shown}}}" if needed else ""
        )

    def _decoded(self, values: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
        """Draws of the discrete latents given some values of the continuous ones, one after the other, ``(S, *shape)``.

        Empty where they cannot be drawn back.
        """
        num_rows = max([1, *(len(value) for value in values.values())])
        with torch.random.fork_rng(devices=self._random_devices()):
            torch.manual_seed(1)
            rows = []
            for row in range(min(count, num_rows)):
                try:
                    rows.append(self.infer_discrete({name: value[row] for name, value in values.items()}))
                except Exception:  # noqa: BLE001 - Pyro draws back scalars only; any joint values are looked at as well
                    return {}
        if any(set(row) != set(self.discrete_sites) for row in rows):
            return {}

        return {name: torch.stack([rows[i % len(rows)][name] for i in range(num_rows)]) for name in self.discrete_sites}

    def _elsewhere(self, count: int) -> Points:
        """Points other than the first run's, with joint values of the discrete latents that are likely there.

        They are the same for each seed, and the caller's random numbers stay as they are.
        """
        near = check_points(self.start)[:count] if len(self.start) else self.start[None]
        names = [site.name for site in self.sites] + list(self.discrete_sites)

        def to_value(site: Mapping[str, Any]) -> Any:
            return identity_transform if site["name"] in self.discrete_sites else self.coordinates.to_support(site)

        def draw(at: Mapping[str, Tensor]) -> dict[str, Tensor]:
            # Draws in place have to be made of a tensor that belongs to the batch.
            with VmapCompat(at.get("mark")):
                nodes = sample_latents(self._call, names, to_value=to_value)
            return {"row": self._flatten(nodes)} | {"=" + n: nodes[n]["value"] for n in self.discrete_sites}

        drawn = self._drawn(draw, max(count - len(near), _NUM_SLOWLY))
        usable = torch.zeros(0, dtype=torch.bool) if drawn is None else drawn["row"].isfinite().all(-1)
        if drawn is None or not usable.any():
            return Points(near, {})
        rows = drawn.pop("row")[usable]
        # Near the first run, what is likely anywhere.
        order = [i % len(rows) for i in range(len(near))] + list(range(len(rows)))
        likely = {name[1:]: value[usable][order] for name, value in drawn.items()}

        return Points(torch.cat([near, rows.to(near)]), likely)

    def _drawn(self, draw: Callable[[Mapping[str, Tensor]], dict[str, Tensor]], count: int) -> Any:
        """Draws of the prior, from one run where vmap can make one; None where the prior cannot be drawn from."""
        with torch.random.fork_rng(devices=self._random_devices()):
            torch.manual_seed(0)
            marks = {"mark": torch.zeros(count, device=self.device)}
            try:
                return torch.func.vmap(draw, randomness="different")(marks)
            except Exception:  # noqa: BLE001 - whatever vmap cannot run, a loop can
                pass
            try:
                rows = [draw({}) for _ in range(min(count, _NUM_SLOWLY))]
                return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
            except Exception:  # noqa: BLE001 - an improper prior has no draws; there are other points
                return None

    def _random_devices(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []


def _is_wrong(held: Elimination, points: Points, given: Mapping[str, Tensor]) -> bool:
    """Whether elimination is wrong at one of some points."""
    try:
        held.check_elsewhere(points, given)
    except BeyondReach as found:
        if found.error is not found:
            # The model itself fails there.
            raise found.error from None
        return True

    return False

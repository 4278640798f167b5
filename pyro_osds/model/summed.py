"""What a model's target asks of its discrete latents: are they summed rightly, and what lies beyond their bounds?"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_osds.model.agreement import check_points
from pyro_osds.model.batching import Ladder
from pyro_osds.model.coordinates import Coordinates
from pyro_osds.model.discrete.decode import decode
from pyro_osds.model.discrete.elimination import BeyondReach, Elimination, Points
from pyro_osds.model.discrete.interactions import interactions
from pyro_osds.model.discrete.joint import Joint
from pyro_osds.model.discrete.refusals import unseen
from pyro_osds.model.foreign.moments import Copies, trace_of
from pyro_osds.model.prior import sample_latents
from pyro_osds.model.run import ModelRun
from pyro_osds.model.sites import LatentSite
from pyro_osds.model.vmap import VmapCompat, vmappable_pyro
from pyro_osds.runtime.precision import in_double

# Draws at which sums beyond stated bounds are evaluated at once, and how many terms they may have together.
_MOST_TOGETHER, _MAX_TERMS = 64, 2**19
# Draws of the prior where each takes a run of its own.
_NUM_SLOWLY = 8
# Points of the posterior at which discrete latents are drawn back, by a few runs each.
_NUM_DECODED = 4


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
    _is_bounded: bool
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

        As many values again as were stated are added, or as many as can be summed. None where no bound was stated, or
        none can be looked beyond.
        """
        joint = self._joint
        if not self._is_bounded or (joint is not None and joint.widened is None):
            return None

        def read(row: Tensor) -> tuple[Tensor]:
            if joint is None or joint.widened is None:
                wide = self._run(row, widened=True).log_densities(row)
            else:
                wider = replace(joint, values=joint.widened)
                wide = wider.densities(lambda given: self._run(row, given, widened=True), row)
            return (sum(wide, row.new_zeros(())) - sum(self._single(row), row.new_zeros(())),)

        with torch.no_grad():
            size = max(1, min(_MOST_TOGETHER, _MAX_TERMS // self.num_terms))
            return torch.cat([self._ladder.map(read, part.to(self.dtype))[0] for part in z.split(size)])

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
                try:
                    held.check_elsewhere(Points(z, likely), given)
                except BeyondReach as found:
                    if found.error is not found:
                        raise found.error from None
                    return self._told(held, names, values)

        return None

    def _told(self, held: Elimination, names: Sequence[str], values: Mapping[str, Tensor]) -> str:
        """What was found to be wrong, in sentences."""
        at = Copies({name: value[held.case] for name, value in values.items()})
        with torch.random.fork_rng(devices=self._random_devices()):
            nodes = trace_of(poutine.condition(self._call, data=at)).get_trace().nodes
        found = interactions(held.plain, tuple(held.sites.values()), nodes, held.rounding, held.witness)
        start = {name: value[held.case].tolist() for name, value in values.items()}
        shown = ", ".join(f"{name!r}: torch.tensor({value})" for name, value in start.items())

        return unseen([seen for seen in found if seen.discrete in names], names, f"{{{shown}}}")

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

        def draw(at: Mapping[str, Tensor]) -> dict[str, Tensor]:
            nodes = sample_latents(self._call, names, to_value=self.coordinates.to_support)
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
                with VmapCompat():
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

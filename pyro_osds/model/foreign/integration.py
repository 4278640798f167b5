r"""Differential equations for a whole batch: one grid, on which every point meets the tolerances of its solver.

.. math::
    h' = h \min\Big(f_\max,\; s\, \big(\max_b r_b\big)^{-1/p}\Big), \qquad \text{a step counts where } \max_b r_b \le 1

A solver for one point chooses its steps by the error ratio *r* of that point. Here the largest ratio of all points
decides, so each point has steps that its own control would have accepted. The steps are chosen anew for each batch. A
point whose integration breaks down, or takes many times the steps of all others, is given up, so that the others go on:
it has no density, which the share of such points tells of.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_osds.model.foreign.demand import Demand
from pyro_osds.model.foreign.steps import Steps
from pyro_osds.runtime.clock import check_time

# A step at which a point has no number is tried shorter so many times before the point is given up: in all 1e-7.
_MAX_RETREATS, _RETREAT = 10, 0.2
MAX_STEPS = 10_000
"""Steps that a point may ask for where nothing is known of its model."""

_limit: ContextVar[int] = ContextVar("limit", default=MAX_STEPS)
_used: ContextVar[Used | None] = ContextVar("used", default=None)


@dataclass(frozen=True)
class Control:
    """How an adaptive solver chooses its steps.

    Arguments:
        order: The order of the method.
        safety: What a step is multiplied with.
        ifactor: A step grows by no more.
        dfactor: A step shrinks by no more.
        min_step: A step of this length always counts.
        max_step: No step is longer.
        stops: Times at which a step has to end.
        jumps: Those of them at which the field jumps.
        max_num_steps: Steps between two output times.
        first_step: The first step, if it is given.
    """

    order: int
    safety: float
    ifactor: float
    dfactor: float
    min_step: float
    max_step: float
    stops: tuple[float, ...]
    jumps: frozenset[float]
    max_num_steps: int
    first_step: float | None


@dataclass
class Path:
    """The steps that were taken: beginnings, lengths and ends, whether velocities are anew, states and velocities."""

    times: list[tuple[float, float, float, float]] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    velocities: list[Tensor] = field(default_factory=list)

    def add(self, t: float, dt: float, t1: float, fresh: int, y: Tensor, f: Tensor) -> None:
        """Note a step; ``fresh`` is 0 where its velocity comes from the step before, and 2 where from after a jump."""
        self.times.append((t, dt, t1, float(fresh)))
        self.states.append(y)
        self.velocities.append(f)


class Integration:
    """One initial value problem of a model, for whole batches.

    Arguments:
        steps: Steps of the method.
        times: Times of the solution, growing.
        control: How steps are chosen; None for a fixed grid.
        grid: The fixed grid.
        time_dtype: In which precision the field gets times.
        avoids_jumps: Whether the field is asked just after the beginning and just before the end of steps.
    """

    def __init__(
        self,
        steps: Steps,
        times: Sequence[float],
        control: Control | None,
        grid: Sequence[float],
        time_dtype: torch.dtype,
        avoids_jumps: bool,
    ) -> None:
        self.steps, self.times, self.control, self.grid = steps, list(times), control, list(grid)
        self.time_dtype, self.avoids_jumps = time_dtype, avoids_jumps
        self.num_steps, self.max_steps = 0, _limit.get()
        self.number = -1
        self.is_recorded = False
        if (used := _used.get()) is not None:
            used.append(self)

    @property
    def is_adaptive(self) -> bool:
        """Whether steps are chosen by values."""
        return self.control is not None

    @property
    def cost(self) -> int:
        """Tensor operations of the last solution, with its gradient."""
        return self.num_steps * self.steps.num_operations

    def record(self, y0: Tensor, taken: Sequence[Tensor]) -> None:
        """Record a step, where the field permits it; once for each shape."""
        with contextlib.suppress(RuntimeError):
            self.steps.record(self._time(self.times[0], y0), y0, taken)
            self.is_recorded = True

    def solve(self, y0: Tensor, taken: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The solution ``(T, B, *shape)``, which points were given up ``(B,)``, and times, states, velocities of steps.

        Arguments:
            y0: Initial states, ``(B, *shape)``.
            taken: What the field takes besides.
        """
        path, lost = Path(), torch.zeros(len(y0), dtype=torch.bool, device=y0.device)
        outputs = [y0]
        for t, dt, t1, y, f, y1, f1 in self._taken_steps(y0, taken, path, lost):
            middle = y
            if self.control is not None and self.times[len(outputs)] < t1:
                (middle,) = self.steps.middle(*self._scalars(t, dt, t1, y), y, f, *taken)
            while len(outputs) < len(self.times) and self.times[len(outputs)] <= t1:
                weights = self._weights(t, dt, t1, self.times[len(outputs)])
                outputs.append(_weighted(weights, (y, y1, middle, f, f1)))
        while len(outputs) < len(self.times):  # all points were given up
            outputs.append(torch.full_like(y0, torch.nan))
        self.num_steps = len(path.times)
        states = torch.stack(path.states) if path.states else y0.new_zeros(0, *y0.shape)
        velocities = torch.stack(path.velocities) if path.states else states.clone()
        times = torch.tensor(path.times, dtype=torch.float64).reshape(-1, 4)

        solution = torch.stack(outputs)
        solution[:, lost] = torch.nan

        return solution, lost, times, states, velocities

    def pull(
        self, gradient: Tensor, times: Tensor, states: Tensor, velocities: Tensor, taken: Sequence[Tensor]
    ) -> list[Tensor]:
        """Gradients with respect to initial states and to what the field takes, along a path.

        Arguments:
            gradient: That of the solution, ``(T, B, *shape)``.
            times: Of the steps.
            states: Before each step.
            velocities: Before each step.
            taken: What the field takes besides.
        """
        g_y, g_f = torch.zeros_like(gradient[0]), torch.zeros_like(gradient[0])
        g_taken = [torch.zeros_like(each) for each in taken]
        last = len(self.times) - 1
        for index, (t, dt, t1, is_fresh) in reversed(list(enumerate(times.tolist()))):
            check_time()
            y, f = states[index], velocities[index]
            parts: list[Tensor | None] = [None, g_y, None, None, g_f]
            while last > 0 and t < self.times[last] <= t1:
                weights = self._weights(t, dt, t1, self.times[last])
                parts = [_plus(a, w * gradient[last]) if w else a for a, w in zip(parts, weights, strict=True)]
                last -= 1
            g_y0, g_y1, g_middle, g_f0, g_f1 = parts
            arguments = (*self._scalars(t, dt, t1, y), y, f, g_y1, g_f1)
            if g_middle is None:
                g_y, g_f, *more = self.steps.pulled(*arguments, *taken)
            else:
                g_y, g_f, *more = self.steps.pulled_with_middle(*arguments, g_middle, *taken)
            g_y, g_f = _plus(g_y0, g_y), _plus(g_f0, g_f)
            g_taken = [a + b for a, b in zip(g_taken, more, strict=True)]
            if is_fresh:
                at = self._time(t, y, int(is_fresh) - 1)
                g_start, *more = self.steps.start_pulled(at, y, g_f, *taken)
                g_y, g_f = g_y + g_start, torch.zeros_like(g_f)
                g_taken = [a + b for a, b in zip(g_taken, more, strict=True)]

        return [g_y + gradient[0], *g_taken]

    # ---- inside ----

    def _taken_steps(self, y0: Tensor, taken: Sequence[Tensor], path: Path, lost: Tensor) -> Iterator[Any]:
        """Steps until the last time, each noted; ``lost`` is filled in."""
        if self.control is None:
            return self._fixed_steps(y0, taken, path)

        return self._chosen_steps(self.control, y0, taken, path, lost)

    def _fixed_steps(self, y: Tensor, taken: Sequence[Tensor], path: Path) -> Iterator[Any]:
        side = int(self.avoids_jumps)
        for t, t1 in zip(self.grid[:-1], self.grid[1:], strict=True):
            check_time()
            (f,) = self.steps.start(self._time(t, y, side), y, *taken)
            y1, f1 = self.steps.step(*self._scalars(t, t1 - t, t1, y), y, f, *taken)
            path.add(t, t1 - t, t1, 1 + side, y, f)
            yield t, t1 - t, t1, y, f, y1, f1
            y = y1

    def _chosen_steps(
        self, control: Control, y: Tensor, taken: Sequence[Tensor], path: Path, lost: Tensor
    ) -> Iterator[Any]:
        t, end = self.times[0], self.times[-1]
        (f,) = self.steps.start(self._time(t, y), y, *taken)
        # A state may be a single number.
        lost |= ~torch.stack([y, f]).isfinite().reshape(2, len(y), -1).all(-1).all(0)
        dt, fresh, count, retreats, reached = self._first_step(control, t, y, f, taken), 1, 0, 0, 1
        refused: Tensor | None = None
        demand = Demand(t, end, self.max_steps, control.order)
        while t < end and not bool(lost.all()):
            check_time()
            while t >= self.times[reached]:
                count, reached = 0, reached + 1
            if count >= control.max_num_steps:
                raise AssertionError(f"max_num_steps exceeded ({count}>={control.max_num_steps})")
            dt = min(max(dt, control.min_step), control.max_step)
            stop = min((stop for stop in control.stops if t < stop < t + dt), default=None)
            dt, t1 = (dt, t + dt) if stop is None else (stop - t, stop)
            y1, f1, ratios = self.steps.step(*self._scalars(t, dt, t1, y), y, f, *taken)
            count += 1
            ratio = ratios.masked_fill(lost, 0.0).amax().item()
            is_number = math.isfinite(ratio)
            if t1 <= t or (not is_number and (retreats >= _MAX_RETREATS or dt <= control.min_step)):
                # Nothing shorter helps these points: a solver of one of them would end here.
                lost |= ~ratios.isfinite() | (refused if t1 <= t and refused is not None else False)
                dt, retreats = 1e-6 * (end - t), 0
                continue
            if not is_number:
                dt, retreats = _RETREAT * dt, retreats + 1
                continue
            if ratio <= 1 or dt <= control.min_step:
                path.add(t, dt, t1, fresh, y, f)
                yield t, dt, t1, y, f, y1, f1
                t, y, f, fresh, retreats = t1, y1, f1, 2 * (t1 in control.jumps), 0
                refused = None
                if fresh:
                    (f,) = self.steps.start(self._time(t, y, 1), y, *taken)
            else:
                refused = ratios > 1
            if (asks_for_too_many := demand.too_many(ratios, t, lost)) is not None:
                lost |= asks_for_too_many
            dt = dt * _factor(ratio, control)

    def _first_step(self, control: Control, t: float, y: Tensor, f: Tensor, taken: Sequence[Tensor]) -> float:
        if control.first_step is not None:
            return control.first_step
        assert self.steps.first is not None

        return self.steps.first(self._time(t, y), y, f, *taken)[0].item()

    def _weights(self, t: float, dt: float, t1: float, at: float) -> tuple[float, ...]:
        """What the solution at a time takes of states before, after, in the middle, and of velocities."""
        x = (at - t) / (t1 - t)
        if x == 1.0:
            return 0.0, 1.0, 0.0, 0.0, 0.0
        if self.control is None:
            return 1.0 - x, x, 0.0, 0.0, 0.0

        return (
            1.0 - 11.0 * x**2 + 18.0 * x**3 - 8.0 * x**4,
            -5.0 * x**2 + 14.0 * x**3 - 8.0 * x**4,
            16.0 * x**2 - 32.0 * x**3 + 16.0 * x**4,
            dt * (x - 4.0 * x**2 + 5.0 * x**3 - 2.0 * x**4),
            dt * (x**2 - 3.0 * x**3 + 2.0 * x**4),
        )

    def _scalars(self, t: float, dt: float, t1: float, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A step's beginning, length and end, for the field."""
        return self._time(t, y), self._time(dt, y), self._time(t1, y, -int(self.avoids_jumps))

    def _time(self, t: float, y: Tensor, side: int = 0) -> Tensor:
        """A time, or the number just before or after it."""
        at = torch.tensor(t, dtype=self.time_dtype, device=y.device)

        return torch.nextafter(at, at + side) if side else at


def _factor(ratio: float, control: Control) -> float:
    if ratio == 0.0:
        return control.ifactor
    least = 1.0 if ratio < 1.0 else control.dfactor

    return min(control.ifactor, max(control.safety / ratio ** (1.0 / control.order), least))


def _plus(first: Tensor | None, second: Tensor) -> Tensor:
    return second if first is None else first + second


def _weighted(weights: Sequence[float], parts: Sequence[Tensor]) -> Tensor:
    total: Tensor | None = None
    for weight, part in zip(weights, parts, strict=True):
        if weight:
            total = weight * part if total is None else torch.add(total, part, alpha=weight)
    assert total is not None

    return total


@contextlib.contextmanager
def limited_steps(most: int) -> Iterator[None]:
    """Points that ask for more steps than this are given up, in initial value problems that are set up in here."""
    token = _limit.set(most)
    try:
        yield
    finally:
        _limit.reset(token)


class Used(list["Integration"]):
    """Initial value problems of batches, and how many an adaptive solver solved for a single point."""

    num_single = 0


def note_single() -> None:
    """An adaptive solver solves an initial value problem for a single point."""
    if (used := _used.get()) is not None:
        used.num_single += 1


@contextlib.contextmanager
def integrations_used() -> Iterator[Used]:
    """A list, which grows by each initial value problem that is set up in here.

    Example:
        >>> with integrations_used() as used:
        ...     pass
        >>> used
        []
    """
    used = Used()
    token = _used.set(used)
    try:
        yield used
    finally:
        _used.reset(token)
        before = _used.get()
        if before is not None:
            before += used
            before.num_single += used.num_single

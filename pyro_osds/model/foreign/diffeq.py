"""Solvers of the package torchdiffeq in a batch, where it is installed and a model uses it.

Under :func:`torch.func.vmap` its adaptive solvers ask whether the error of all points at once is small enough, which
has no answer, and all of its solvers write values of the batch into new tensors. So where an initial value problem
depends on a latent, its method, tolerances and grid go to :mod:`pyro_osds.model.foreign.integration`.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_osds.model.foreign.captures import modes_again, taken_from_outside, with_taken
from pyro_osds.model.foreign.integration import Control, Integration, note_single
from pyro_osds.model.foreign.solutions import Solution
from pyro_osds.model.foreign.steps import Steps, Tableau
from pyro_osds.runtime.torch_internals import function_modes, is_batchedtensor

_PACKAGE = "torchdiffeq._impl"
_THIRD = 1 / 3
# Fixed methods as their one-step functions have them; those with a memory of earlier steps stay as they are.
_FIXED = {
    "Euler": ((), (), (1.0,)),
    "Midpoint": ((0.5,), ((0.5,),), (0.0, 1.0)),
    "Heun2": ((1.0,), ((1.0,),), (0.5, 0.5)),
    "Heun3": ((_THIRD, 2 * _THIRD), ((_THIRD,), (0.0, 2 * _THIRD)), (0.25, 0.0, 0.75)),
    "RK4": (
        (_THIRD, 2 * _THIRD, 1.0),
        ((_THIRD,), (-_THIRD, 1.0), (1.0, -1.0, 1.0)),
        (0.125, 0.375, 0.375, 0.125),
    ),
}


@contextlib.contextmanager
def solvers_in_batches() -> Iterator[None]:
    """Solvers of torchdiffeq run in a batch, too, until they are put back; nothing is imported for that.

    Example:
        >>> with solvers_in_batches():
        ...     pass
    """
    own = [sys.modules.get(f"{_PACKAGE}.{name}") for name in ("solvers", "adjoint", "misc")]
    if None in own:
        yield
        return
    solvers, adjoint, misc = own
    places: list[tuple[Any, str, Callable[[Any], Any]]] = [
        (getattr(solvers, "AdaptiveStepsizeODESolver", None), "integrate", _adaptive),
        (getattr(solvers, "FixedGridODESolver", None), "integrate", _fixed),
        (adjoint, "OdeintAdjointMethod", _Adjoint),
        (misc, "_mixed_norm", lambda _: _mixed_norm),
    ]
    before = [(owner, name, vars(owner)[name]) for owner, name, _ in places if name in vars(owner or object)]
    try:
        for owner, name, answer in places:
            if name in vars(owner or object):
                setattr(owner, name, answer(vars(owner)[name]))
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _adaptive(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The answer to ``integrate`` of an adaptive solver."""

    def integrate(self: Any, t: Tensor) -> Tensor:
        taken = _taken(self.func, t, self.y0)
        if taken is None:
            note_single()
            return plain(self, t)
        if not hasattr(self, "tableau") or not hasattr(self, "mid"):
            raise RuntimeError(f"torchdiffeq's {type(self).__name__} does not run in a batch")
        _check(self, t)
        field, norm = _field(self.func, taken), torch.func.vmap(self.norm)
        tableau = Tableau(
            self.tableau.alpha.tolist(),
            [beta.tolist() for beta in self.tableau.beta],
            self.tableau.c_sol.tolist(),
            self.tableau.c_error.tolist(),
            self.mid.tolist(),
        )

        def error_ratio(error: Tensor, y: Tensor, y1: Tensor) -> Tensor:
            return norm(error / (self.atol + self.rtol * torch.max(y.abs(), y1.abs()))).abs()

        def first(t: Tensor, y: Tensor, f: Tensor, *others: Tensor) -> tuple[Tensor]:
            scale = self.atol + y.abs() * self.rtol

            def distance(e: Tensor) -> Tensor:
                return norm(e / scale).abs()

            return (_first_step(t, y, f, lambda t, y: field(t, y, others), distance, self.order),)

        times = t.to(self.dtype).tolist()
        steps = Steps(field, tableau, error_ratio, first)

        return _solution(self, steps, times, _control(self, times), (), taken)

    return integrate


def _fixed(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The answer to ``integrate`` of a solver with a fixed grid."""

    def integrate(self: Any, t: Tensor) -> Tensor:
        method = _FIXED.get(type(self).__name__) if self.interp == "linear" else None
        taken = None if method is None else _taken(self.func, t, self.y0)
        if method is None or taken is None:
            return plain(self, t)
        _check(self, t)
        grid = self.grid_constructor(self.func, self.y0, t)
        assert grid[0] == t[0] and grid[-1] == t[-1]
        alpha, beta, solution = method
        steps = Steps(_field(self.func, taken), Tableau(alpha, beta, solution, (), ()))

        return _solution(self, steps, t.tolist(), None, grid.tolist(), taken)

    return integrate


def _taken(func: Callable[..., Any], t: Tensor, y0: Tensor) -> tuple[Tensor, ...] | None:
    """What a field takes of a batch besides the state; None where nothing belongs to a batch."""
    # The field may take the initial state from outside, too, which then is another tensor.
    velocity, taken = taken_from_outside(func, t[0], y0.detach())

    return taken if taken or is_batchedtensor(velocity) or is_batchedtensor(y0) else None


def _check(solver: Any, t: Tensor) -> None:
    """Whether a solver asks for nothing that a batch cannot have.

    Raises:
        RuntimeError: If it does.
    """
    own = [name for name in ("callback_step", "callback_accept_step", "callback_reject_step")
           if getattr(getattr(solver.func, name, None), "__name__", "<lambda>") != "<lambda>"]  # fmt: skip
    if own:
        raise RuntimeError(
            f"torchdiffeq calls {own[0]} at each step, and the steps of a batch are not those of a point"
        )
    if is_batchedtensor(t):
        raise RuntimeError("the times of a solution depend on a latent")
    if solver.y0.is_complex():
        raise RuntimeError("the states of a differential equation are complex")


def _field(func: Callable[..., Any], taken: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    """The field for a whole batch."""
    modes = function_modes()

    def field(t: Tensor, y: Tensor, others: Sequence[Tensor]) -> Tensor:
        def single(y: Tensor, *others: Tensor) -> Tensor:
            with modes_again(modes):
                return with_taken(func, taken, others, t, y)

        return torch.func.vmap(single)(y, *others)

    return field


def _control(solver: Any, times: Sequence[float]) -> Control:
    """How an adaptive solver chooses its steps."""
    stops = [] if solver.step_t is None else solver.step_t.tolist()
    jumps = [] if solver.jump_t is None else solver.jump_t.tolist()
    if len({*stops, *jumps}) < len(stops) + len(jumps):
        raise ValueError("`step_t` and `jump_t` must not have any repeated elements between them.")
    safety, ifactor, dfactor, least, most = (
        getattr(solver, name).item() for name in ("safety", "ifactor", "dfactor", "min_step", "max_step")
    )
    later = tuple(sorted(stop for stop in (*stops, *jumps) if stop >= times[0]))
    first = None if solver.first_step is None else solver.first_step.item()

    return Control(
        solver.order, safety, ifactor, dfactor, least, most, later, frozenset(jumps), int(solver.max_num_steps), first
    )


def _first_step(
    t: Tensor, y: Tensor, f: Tensor, field: Callable[..., Tensor], norm: Callable[[Tensor], Tensor], order: int
) -> Tensor:
    """A first step, that of the point which wants the shortest."""
    d0, d1 = norm(y), norm(f)
    h0 = _least(torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1))
    d2 = norm(field(t + h0, y + h0 * f) - f) / h0
    h1 = (0.01 / torch.maximum(d1, d2)) ** (1.0 / order)
    h1 = torch.where((d1 <= 1e-15) & (d2 <= 1e-15), (1e-3 * h0).clamp(min=1e-6), h1)

    return torch.minimum(100.0 * h0, _least(h1))


def _least(steps: Tensor) -> Tensor:
    """The least step that is a number above zero."""
    usable = torch.where(steps.isfinite() & (steps > 0), steps, math.inf).amin()

    return torch.where(usable.isfinite(), usable, 1e-6)


def _solution(
    solver: Any, steps: Steps, times: Sequence[float], control: Control | None, grid: Sequence[float], taken: Any
) -> Tensor:
    avoids_jumps = control is not None or bool(solver.perturb)
    time_dtype = solver.y0.dtype
    integration = Integration(steps, times, control, grid, time_dtype, avoids_jumps)
    solution, lost = Solution.apply(integration, solver.y0, *taken)
    if control is not None:
        for mode in function_modes():
            if hasattr(mode, "factorisations"):
                mode.factorisations.note(lost)

    return solution


class _Adjoint:
    """The answer to the adjoint method: in a batch the gradient is that of the steps, without a second solution."""

    def __init__(self, plain: Any) -> None:
        self._plain = plain

    def apply(
        self, shapes: Any, func: Any, y0: Any, t: Any, rtol: Any, atol: Any, method: Any, options: Any, event_fn: Any,
        *more: Any,
    ) -> Any:  # fmt: skip
        """The solution."""
        if event_fn is not None or _taken(func, t, y0) is None:
            return self._plain.apply(shapes, func, y0, t, rtol, atol, method, options, event_fn, *more)
        odeint = sys.modules[f"{_PACKAGE}.odeint"].odeint

        return odeint(func, y0, t, rtol=rtol, atol=atol, method=method, options=options)


def _mixed_norm(parts: Any) -> Any:
    """The largest root mean square of the parts of a state; Python's ``max`` would compare points of a batch."""
    if len(parts) == 0:
        return 0.0

    return torch.stack([part.abs().pow(2).mean().sqrt() for part in parts]).amax()

r"""One step of a Runge-Kutta method for a whole batch, and its gradient, each recorded once and replayed at every step.

.. math::
    k_i = h\, f\Big(t + \alpha_i h,\; y + \sum_{j < i} \beta_{ij} k_j\Big), \qquad
    y_1 = y + \sum_i c_i k_i, \qquad e = \sum_i \epsilon_i k_i

The gradient is that of the step itself, stage by stage backwards, as automatic differentiation has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx

from pyro_osds.runtime.recording.execution import freeze
from pyro_osds.runtime.recording.recorder import record_operations
from pyro_osds.runtime.torch_internals import is_mutable, without_dispatch_modes

Field = Callable[..., Tensor]
"""Maps a time, states ``(B, *shape)`` and what else the field depends on to velocities ``(B, *shape)``."""


@dataclass(frozen=True)
class Tableau:
    """The numbers of a Runge-Kutta method; rows of ``beta`` grow.

    Arguments:
        alpha: Times of the stages after the first.
        beta: What each of them takes of the stages before.
        solution: What the new state takes of the stages.
        error: What the error estimate takes.
        middle: What the state in the middle of the step takes.
    """

    alpha: Sequence[float]
    beta: Sequence[Sequence[float]]
    solution: Sequence[float]
    error: Sequence[float]
    middle: Sequence[float]

    @property
    def ends_with_solution(self) -> bool:
        """Whether the last stage is at the new state."""
        return len(self.beta) > 0 and self.solution[-1] == 0 and list(self.solution[:-1]) == list(self.beta[-1])


class Steps:
    """A method and a field: steps, and their gradients, for states of one shape.

    Arguments:
        field: The field.
        tableau: The method.
        error_ratio: Maps an error estimate and the states before and after to how much larger than tolerated it is,
            ``(B,)``; None for a method without control.
        first: Maps a time, states, velocities and what the field takes to a first step, in a tuple; None for no such.
    """

    def __init__(
        self,
        field: Field,
        tableau: Tableau,
        error_ratio: Callable[..., Tensor] | None = None,
        first: Callable[..., tuple[Tensor, ...]] | None = None,
    ) -> None:
        self.tableau = tableau
        self._field, self._error_ratio = field, error_ratio
        self.first = first
        self.step: Callable[..., tuple[Tensor, ...]] = self._step
        self.middle: Callable[..., tuple[Tensor, ...]] = self._middle
        self.pulled: Callable[..., tuple[Tensor, ...]] = self._pulled
        self.pulled_with_middle: Callable[..., tuple[Tensor, ...]] = self._pulled_with_middle
        self.start: Callable[..., tuple[Tensor, ...]] = self._start
        self.start_pulled: Callable[..., tuple[Tensor, ...]] = self._start_pulled
        self.num_operations = 0

    def record(self, t: Tensor, y: Tensor, taken: Sequence[Tensor]) -> None:
        """From now on everything is replayed.

        Arguments:
            t: A time, a scalar.
            y: States of the shape that all will have.
            taken: What the field takes besides.

        Raises:
            RuntimeError: If the field looks at the values of its arguments.
        """
        dt, zero = torch.zeros_like(t), torch.zeros_like(y)
        states = (zero, zero, zero, zero)
        plans = [
            ("step", (t, dt, t, y, zero, *taken)),
            ("middle", (t, dt, t, y, zero, *taken)),
            ("pulled", (t, dt, t, y, zero, *states[:2], *taken)),
            ("pulled_with_middle", (t, dt, t, y, zero, *states[:3], *taken)),
            ("start", (t, y, *taken)),
            ("start_pulled", (t, y, zero, *taken)),
        ]
        if self.first is not None:
            plans.append(("first", (t, y, zero, *taken)))
        recorded: dict[str, Any] = {}
        with torch.no_grad(), without_dispatch_modes():
            for name, arguments in plans:
                arguments = tuple(each.detach().clone() for each in arguments)
                graph = record_operations(getattr(self, name), *arguments)
                _drop_repeats(graph)
                recorded[name] = freeze(graph, arguments)
                self.num_operations += len(graph.graph.nodes) if name in ("step", "pulled") else 0
        vars(self).update(recorded)

    # ---- forwards ----

    def _start(self, t: Tensor, y: Tensor, *taken: Tensor) -> tuple[Tensor, ...]:
        """The velocity at a point."""
        return (self._field(t, y, taken),)

    def _stages(self, t: Tensor, dt: Tensor, t1: Tensor, y: Tensor, k: Tensor, taken: Sequence[Tensor]) -> Any:
        """States and times of the stages after the first, and all of their velocities times the step."""
        tableau = self.tableau
        ks, places, f = [k], [], k
        for alpha, beta in zip(tableau.alpha, tableau.beta, strict=True):
            # The end is given, exactly: it may be just before a jump.
            at, state = t1 if alpha == 1.0 else t + alpha * dt, _combined(y, ks, beta)
            f = self._field(at, state, taken)
            ks.append(dt * f)
            places.append((at, state))

        return places, ks, f

    def _step(self, t: Tensor, dt: Tensor, t1: Tensor, y: Tensor, f: Tensor, *taken: Tensor) -> tuple[Tensor, ...]:
        """New states, velocities there, and error ratios ``(B,)``."""
        places, ks, last = self._stages(t, dt, t1, y, dt * f, taken)
        tableau = self.tableau
        y1 = places[-1][1] if tableau.ends_with_solution else _combined(y, ks, tableau.solution)
        if self._error_ratio is None:
            return y1, last

        return y1, last, self._error_ratio(_combined(None, ks, tableau.error), y, y1)

    def _middle(self, t: Tensor, dt: Tensor, t1: Tensor, y: Tensor, f: Tensor, *taken: Tensor) -> tuple[Tensor, ...]:
        """States in the middle of a step; only a few steps have times of the solution in them."""
        return (_combined(y, self._stages(t, dt, t1, y, dt * f, taken)[1], self.tableau.middle),)

    # ---- backwards ----

    def _start_pulled(self, t: Tensor, y: Tensor, gradient: Tensor, *taken: Tensor) -> tuple[Tensor, ...]:
        """Gradients of the velocity at a point, with respect to the state and to what the field takes."""
        return self._field_pulled(t, y, taken, gradient)

    def _pulled(
        self, t: Tensor, dt: Tensor, t1: Tensor, y: Tensor, f: Tensor, g_y1: Tensor, g_f1: Tensor, *taken: Tensor
    ) -> tuple[Tensor, ...]:
        """Gradients with respect to the state before the step, the velocity there, and what the field takes."""
        return self._back((t, dt, t1), y, f, g_y1, g_f1, None, taken)

    def _pulled_with_middle(
        self, t: Tensor, dt: Tensor, t1: Tensor, y: Tensor, f: Tensor, g_y1: Tensor, g_f1: Tensor, g_middle: Tensor,
        *taken: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """The same where the state in the middle of the step counts, too."""
        return self._back((t, dt, t1), y, f, g_y1, g_f1, g_middle, taken)

    def _back(
        self,
        times: tuple[Tensor, Tensor, Tensor],
        y: Tensor,
        f: Tensor,
        g_y1: Tensor,
        g_f1: Tensor,
        g_middle: Tensor | None,
        taken: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        (t, dt, t1), tableau = times, self.tableau
        places, ks, _ = self._stages(t, dt, t1, y, dt * f, taken)
        g_ks: list[Tensor | None] = [None] * len(ks)
        g_y: Tensor | None = None
        g_taken: list[Tensor] = []
        if g_middle is not None:
            g_y = g_middle
            _spread(g_ks, tableau.middle, g_middle)
        if not tableau.ends_with_solution:
            g_y = _plus(g_y, g_y1)
            _spread(g_ks, tableau.solution, g_y1)
        for index in reversed(range(len(places))):
            at, state = places[index]
            g_k, is_last = g_ks[index + 1], index == len(places) - 1
            g_f = None if g_k is None else dt * g_k
            if is_last:
                g_f = _plus(g_f, g_f1)
            g_state = g_y1 if is_last and tableau.ends_with_solution else None
            if g_f is not None:
                pulled, *more = self._field_pulled(at, state, taken, g_f)
                g_state = _plus(g_state, pulled)
                g_taken = [a + b for a, b in zip(g_taken, more, strict=True)] if g_taken else more
            if g_state is not None:
                g_y = _plus(g_y, g_state)
                _spread(g_ks, tableau.beta[index], g_state)
        g_f0 = torch.zeros_like(f) if g_ks[0] is None else dt * g_ks[0]

        return y.new_zeros(y.shape) if g_y is None else g_y, g_f0, *(g_taken or map(torch.zeros_like, taken))

    def _field_pulled(self, t: Tensor, y: Tensor, taken: Sequence[Tensor], gradient: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            inputs = [each.detach().requires_grad_() for each in (y, *taken)]
            velocity = self._field(t, inputs[0], inputs[1:])
            if not velocity.requires_grad:
                return tuple(map(torch.zeros_like, inputs))
            pulled = torch.autograd.grad(velocity, inputs, gradient, allow_unused=True, materialize_grads=True)

        return tuple(each.detach() for each in pulled)


def _plus(first: Tensor | None, second: Tensor) -> Tensor:
    return second if first is None else first + second


def _drop_repeats(recorded: fx.GraphModule) -> None:
    """Leave out what a record does twice, and permutations that are none; a field is asked at each stage anew."""
    graph = recorded.graph
    if any(
        node.op == "call_function" and is_mutable(node.target) for node in graph.nodes if node.target is not getitem
    ):
        return
    known: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is torch.ops.aten.permute.default and list(node.args[1]) == list(range(len(node.args[1]))):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
            continue
        key = repr((node.target, node.args, sorted(node.kwargs.items())))
        if key in known:
            node.replace_all_uses_with(known[key])
            graph.erase_node(node)
        else:
            known[key] = node
    recorded.recompile()


def _combined(y: Tensor | None, ks: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """A state plus stages with weights."""
    for k, weight in zip(ks, weights, strict=False):
        if weight:
            y = weight * k if y is None else torch.add(y, k, alpha=weight)
    assert y is not None

    return y


def _spread(gradients: list[Tensor | None], weights: Sequence[float], gradient: Tensor) -> None:
    """Add the gradient of a combination to those of its stages."""
    for index, weight in enumerate(weights):
        before = gradients[index]
        if weight:
            gradients[index] = weight * gradient if before is None else torch.add(before, gradient, alpha=weight)

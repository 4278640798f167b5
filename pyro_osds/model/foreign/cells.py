r"""Recurrent networks whose weights are latents, made of what a batch of points does at once.

.. math::
    \text{GRU:}\quad r, u = \sigma(W_i x + b_i + W_h h + b_h),\quad n = \tanh\big(W_i x + b_i + r (W_h h + b_h)\big),
    \quad h' = n + u (h - n)

    \text{LSTM:}\quad i, f, g, o = W_i x + b_i + W_h h + b_h,\quad c' = \sigma(f) c + \sigma(i) \tanh g,
    \quad h' = \sigma(o) \tanh c'

Torch has one operation for each of them, which :func:`torch.func.vmap` cannot do, or does point by point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pyro_osds.runtime.torch_internals import is_batchedtensor

States = tuple[Any, ...]
"""What a cell hands on: the hidden state, and in an LSTM the cell state."""

Step = Callable[[Tensor, States, Sequence[Tensor | None]], States]
"""Maps projected inputs, states and hidden weights (``w_hh``, ``b_hh``, ``w_hr``) to new states."""


def _gru(projected: Tensor, states: States, weights: Sequence[Tensor | None]) -> States:
    hidden = functional.linear(states[0], _first(weights), weights[1])
    (reset_x, update_x, new_x), (reset_h, update_h, new_h) = projected.chunk(3, -1), hidden.chunk(3, -1)
    new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)

    return (new + torch.sigmoid(update_x + update_h) * (states[0] - new),)


def _lstm(projected: Tensor, states: States, weights: Sequence[Tensor | None]) -> States:
    gates = projected + functional.linear(states[0], _first(weights), weights[1])
    enter, forget, new, leave = gates.chunk(4, -1)
    cell = torch.sigmoid(forget) * states[1] + torch.sigmoid(enter) * torch.tanh(new)
    hidden = torch.sigmoid(leave) * torch.tanh(cell)

    return hidden if weights[2] is None else functional.linear(hidden, weights[2]), cell


def _rnn(activation: Callable[[Tensor], Tensor]) -> Step:
    def step(projected: Tensor, states: States, weights: Sequence[Tensor | None]) -> States:
        return (activation(projected + functional.linear(states[0], _first(weights), weights[1])),)

    return step


def _first(weights: Sequence[Tensor | None]) -> Tensor:
    assert weights[0] is not None

    return weights[0]


_STEPS: dict[str, Step] = {"gru": _gru, "lstm": _lstm, "rnn_tanh": _rnn(torch.tanh), "rnn_relu": _rnn(torch.relu)}


def _cell(name: str) -> Callable[..., Any]:
    """The answer to one step of a network, as ``nn.GRUCell`` asks for it."""
    function, step = getattr(torch, f"{name}_cell"), _STEPS[name]

    def answer(
        x: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
    ) -> Any:
        states: States = tuple(hx) if isinstance(hx, (tuple, list)) else (hx,)
        if not _any_batched(x, *states, w_ih, w_hh, b_ih, b_hh):
            return function(x, hx, w_ih, w_hh, b_ih, b_hh)
        new = step(functional.linear(x, w_ih, b_ih), states, (w_hh, b_hh, None))

        return new if name == "lstm" else new[0]

    return answer


def _network(name: str) -> Callable[..., Any]:
    """The answer to a whole network, as ``nn.GRU`` asks for it, with sequences padded or packed."""
    function, step = getattr(torch, name), _STEPS[name]

    def answer(*args: Any) -> Any:
        is_packed = isinstance(args[1], Tensor) and not isinstance(args[3], bool)
        x, hx, params, has_biases, num_layers, dropout, train, bidirectional = _without_sizes(args, is_packed)
        states = tuple(hx) if isinstance(hx, (tuple, list)) else (hx,)
        if not _any_batched(x, *states, *params) or (dropout and train and num_layers > 1):
            return function(*args)
        batch_first = not is_packed and args[8]
        sizes = args[1].tolist() if is_packed else None
        x = x.transpose(0, 1) if batch_first else x
        inputs = list(x.split(sizes)) if sizes is not None else list(x.unbind(0))
        outputs, last = _layers(step, inputs, states, params, has_biases, num_layers, 2 if bidirectional else 1)
        if sizes is not None:
            return torch.cat(outputs), *last
        whole = torch.stack(outputs)

        return whole.transpose(0, 1) if batch_first else whole, *last

    return answer


def _without_sizes(args: tuple[Any, ...], is_packed: bool) -> tuple[Any, ...]:
    """Arguments in the order of padded sequences, without ``batch_first``, which packed ones do not have."""
    return (args[0], *args[2:9]) if is_packed else args[:8]


def _layers(
    step: Step,
    inputs: list[Tensor],
    states: States,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    num_directions: int,
) -> tuple[list[Tensor], States]:
    """Outputs of the last layer, one for each step, and the last states of all layers."""
    count = len(params) // (num_layers * num_directions)
    finals: list[States] = []
    for layer in range(num_layers):
        ways = []
        for way in range(num_directions):
            index = layer * num_directions + way
            own = list(params[index * count : (index + 1) * count])
            w_ih, w_hh = own[:2]
            b_ih, b_hh = own[2:4] if has_biases else (None, None)
            w_hr = own[-1] if count in (3, 5) else None
            projected = [functional.linear(x, w_ih, b_ih) for x in inputs]
            start = tuple(state[index] for state in states)
            outputs, final = _sweep(step, projected, start, (w_hh, b_hh, w_hr), backwards=way == 1)
            ways.append(outputs)
            finals.append(final)
        inputs = [torch.cat(parts, -1) for parts in zip(*ways, strict=True)] if num_directions > 1 else ways[0]

    return inputs, tuple(torch.stack(parts) for parts in zip(*finals, strict=True))


def _sweep(
    step: Step, projected: list[Tensor], start: States, weights: Sequence[Tensor | None], backwards: bool
) -> tuple[list[Tensor], States]:
    """One layer in one direction; packed sequences end, or backwards begin, at steps of their own."""
    order = list(range(len(projected)))
    order = order[::-1] if backwards else order
    outputs: dict[int, Tensor] = {}
    states, ended = start, list[States]()
    if backwards:
        states = tuple(state[: len(projected[order[0]])] for state in start) if start[0].dim() > 1 else start
    for t in order:
        rows = len(projected[t]) if start[0].dim() > 1 else None
        if rows is not None and rows < len(states[0]):
            ended.append(tuple(state[rows:] for state in states))
            states = tuple(state[:rows] for state in states)
        elif rows is not None and rows > len(states[0]):
            size = len(states[0])
            states = tuple(torch.cat([new, old[size:rows]]) for new, old in zip(states, start, strict=True))
        states = step(projected[t], states, weights)
        outputs[t] = states[0]
    for part in reversed(ended):
        states = tuple(torch.cat([state, rest]) for state, rest in zip(states, part, strict=True))

    return [outputs[t] for t in range(len(projected))], states


def _any_batched(*tensors: Any) -> bool:
    return any(isinstance(tensor, Tensor) and is_batchedtensor(tensor) for tensor in tensors)


ANSWERS: dict[Any, Callable[..., Any]] = {
    **{getattr(torch, f"{name}_cell"): _cell(name) for name in _STEPS},
    **{getattr(torch, name): _network(name) for name in _STEPS},
}
"""Answers to torch's recurrent functions."""

"""A flow whose passes, forward and backward, are recorded once and then replayed without Python.

Training asks for the same small tensor operations hundreds of times, and on a CPU most of its time is Python and the
bookkeeping of gradients between them. After a few calls of one kind (same shapes, same time and step size) the
operations of the pass and of its gradient are written down (``recorder``), cut apart into two graphs, and replayed
(``execution``). They are the same operations in the same order, so the numbers are the same to the last bit.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from pyro_osds.flow.coupling import FlowMap
from pyro_osds.runtime.execution import freeze
from pyro_osds.runtime.recorder import Recorder, needed

# Recording costs as much as some sixty passes, and a training has hundreds; the first calls wait for those that have.
_NUM_CALLS_BEFORE = 10


class ReplayedFlow:
    """A flow map with the same methods and parameters as another one, faster where it is asked the same again.

    Arguments:
        flow: The flow map; its parameters may change between calls.

    Example:
        >>> flow = FlowMap(dim=2)
        >>> fast, x = ReplayedFlow(flow), torch.randn(64, 2)
        >>> for _ in range(12):
        ...     y, log_abs_det, score = fast.forward_with_score(x, -x, 0.0, 1.0)
        >>> torch.equal(y, flow.forward_with_score(x, -x)[0])
        True
    """

    def __init__(self, flow: FlowMap) -> None:
        self._flow = flow
        self._parameters = tuple(flow.parameters())
        self._num_calls: dict[Any, int] = {}
        self._replays: dict[Any, _Replay] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._flow, name)

    def __call__(self, x: Tensor, t: float | Tensor = 0.0, d: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
        """As :meth:`FlowMap.forward`."""
        return self._flow(x, t, d)

    def inverse(self, y: Tensor, t: float | Tensor = 0.0, d: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
        """As :meth:`FlowMap.inverse`."""
        x, log_abs_det = self._pass("inverse", (y,), t, d)

        return x, log_abs_det

    def forward_with_score(
        self, x: Tensor, score: Tensor, t: float | Tensor = 0.0, d: float | Tensor = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`FlowMap.forward_with_score`."""
        y, log_abs_det, score = self._pass("forward_with_score", (x, score), t, d)

        return y, log_abs_det, score

    def _pass(self, name: str, inputs: tuple[Tensor, ...], t: float | Tensor, d: float | Tensor) -> tuple[Tensor, ...]:
        method = getattr(self._flow, name)
        is_alike = not isinstance(t, Tensor) and not isinstance(d, Tensor) and not any(x.requires_grad for x in inputs)
        if not is_alike or not torch.is_grad_enabled():
            return method(*inputs, t, d)
        kind = name, t, d, *((x.shape, x.dtype, x.device) for x in inputs)
        if kind not in self._replays:
            self._num_calls[kind] = self._num_calls.get(kind, 0) + 1
            if self._num_calls[kind] <= _NUM_CALLS_BEFORE:
                return method(*inputs, t, d)
            self._replays[kind] = _Replay(_Method(self._flow, name, t, d), inputs)

        return self._replays[kind](*inputs, *self._parameters)


class _Method(nn.Module):
    """One method of a flow as a module, so that its parameters can be put in."""

    def __init__(self, flow: FlowMap, name: str, t: float | Tensor, d: float | Tensor) -> None:
        super().__init__()
        self.flow = flow
        self._name, self._t, self._d = name, t, d

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return getattr(self.flow, self._name)(*inputs, self._t, self._d)


class _Replay:
    """What a module does to inputs of these shapes, and the gradient for its parameters, as two graphs."""

    def __init__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        leaves = {name: value.detach().requires_grad_() for name, value in module.named_parameters()}
        inputs = tuple(value.detach() for value in inputs)
        recorder = Recorder()
        for value in (*inputs, *leaves.values()):
            recorder.add_input(value)
        with torch.enable_grad(), recorder:
            outputs = functional_call(module, leaves, inputs)
        num_first = len(recorder.graph.nodes)
        self._is_differentiable = [value.requires_grad for value in outputs]
        differentiable = [value for value in outputs if value.requires_grad]
        cotangents = [torch.zeros_like(value) for value in differentiable]
        for value in cotangents:
            recorder.add_input(value)
        with torch.enable_grad(), recorder:
            pulled = sum((value * given).sum() for value, given in zip(differentiable, cotangents, strict=True))
            gradients = torch.autograd.grad(cast("Tensor", pulled), list(leaves.values()), allow_unused=True)
        self.num_outputs = len(outputs)
        self._is_used = [value is not None for value in gradients]
        ends = [recorder.node(value) for value in outputs]
        gradient_ends = [recorder.node(value) for value in gradients if value is not None]
        forward, backward = _cut(recorder, num_first, ends, gradient_ends)
        with torch.no_grad():
            arguments = (*inputs, *(value.detach() for value in leaves.values()))
            self._forward = freeze(forward, arguments)
            kept = forward(*arguments)[self.num_outputs :]
            self._backward = freeze(backward, (*kept, *cotangents))

    def __call__(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        return cast("tuple[Tensor, ...]", _Differentiable.apply(self, *arguments))

    def run(self, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The outputs, and behind them what the gradient needs."""
        return self._forward(*arguments)

    def pull(self, kept: tuple[Tensor, ...], cotangents: tuple[Tensor, ...]) -> list[Tensor | None]:
        """Gradients for the parameters; None for one that the outputs do not depend on."""
        wanted = [value for value, keep in zip(cotangents, self._is_differentiable, strict=True) if keep]
        gradients = iter(self._backward(*kept, *wanted))

        return [next(gradients) if is_used else None for is_used in self._is_used]


class _Differentiable(torch.autograd.Function):
    """A replay as one operation of autograd."""

    @staticmethod
    def forward(ctx: Any, replay: _Replay, *arguments: Tensor) -> tuple[Tensor, ...]:
        results = replay.run(arguments)
        outputs, kept = results[: replay.num_outputs], results[replay.num_outputs :]
        ctx.replay, ctx.num_arguments = replay, len(arguments)
        ctx.save_for_backward(*kept)
        ctx.mark_non_differentiable(
            *[value for value, keep in zip(outputs, replay._is_differentiable, strict=True) if not keep]
        )

        return outputs

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[None | Tensor, ...]:
        gradients = ctx.replay.pull(ctx.saved_tensors, cotangents)

        return None, *[None] * (ctx.num_arguments - len(gradients)), *gradients


def _cut(
    recorder: Recorder, num_first: int, outputs: list[fx.Node], gradients: list[fx.Node]
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """A record cut in two: one graph for the outputs and what the gradients need of the way there, one for these."""
    nodes = list(recorder.graph.nodes)
    first, second = nodes[:num_first], nodes[num_first:]
    # A change in place counts even where nothing takes its result by name.
    ends, outside = needed([*gradients, *(node for node in second if node.is_impure())]), set(first)
    crosses = {node for user in ends - outside for node in user.all_input_nodes if node.op != "get_attr"}
    kept = [node for node in first if node in crosses]
    forward, copies = fx.Graph(), cast("dict[fx.Node, fx.Node]", {})
    for node in first:
        copies[node] = forward.node_copy(node, copies.__getitem__)
    forward.output(tuple(copies[node] for node in (*outputs, *kept)))

    backward, copies = fx.Graph(), {}
    for index, node in enumerate(kept):
        copies[node] = backward.placeholder(f"kept_{index}")
    # All placeholders come first, also those of cotangents.
    constants = [node for node in first if node.op == "get_attr"]
    for node in sorted((*constants, *second), key=lambda node: node.op != "placeholder"):
        if node in ends or node.op == "placeholder":
            copies[node] = backward.node_copy(node, copies.__getitem__)
    backward.output(tuple(copies[node] for node in gradients))
    for graph in (forward, backward):
        graph.eliminate_dead_code()

    return fx.GraphModule(recorder.constants, forward), fx.GraphModule(recorder.constants, backward)

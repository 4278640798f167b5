"""A flow whose passes, forward and backward, are recorded once and then replayed without Python.

Training asks for the same small tensor operations hundreds of times, and on a CPU most of its time is Python and the
bookkeeping of gradients between them. After a few calls of one kind (same shapes, same time and step size) the
operations of the pass and of its gradient are written down (``recorder``), cut apart into two graphs, and replayed
(``execution``). They are the same operations in the same order, so the numbers are the same to the last bit.

The leap with its score is that of :mod:`pyro_osds.flow.passes`, with its gradient in closed form from the first call
on; the inverse is the flow's own, differentiated by autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from pyro_osds.flow.coupling import FlowMap
from pyro_osds.flow.folding import Folding
from pyro_osds.flow.passes import Passes
from pyro_osds.runtime.recording.execution import freeze
from pyro_osds.runtime.recording.recorder import Recorder, needed

# Recording costs as much as some sixty passes, and a training has hundreds; the first calls wait for those that have.
_NUM_CALLS_BEFORE = 10


class ReplayedFlow:
    """A flow map with the same methods and parameters as another one, faster where it is asked the same again.

    Arguments:
        flow: The flow map; its parameters may change between calls.
        vector: A vector that its parameters are views of, in their order. Then the gradient of
            :meth:`forward_with_score` is one for the vector, and none for the parameters.

    Example:
        >>> flow = FlowMap(dim=2)
        >>> fast, x = ReplayedFlow(flow), torch.randn(64, 2)
        >>> for _ in range(12):
        ...     y, log_abs_det, score = fast.forward_with_score(x, -x, 0.0, 1.0)
        >>> torch.allclose(y, flow.forward_with_score(x, -x)[0], atol=1e-5)
        True
    """

    def __init__(self, flow: FlowMap, vector: Tensor | None = None) -> None:
        self._flow = flow
        self._parameters = tuple(flow.parameters())
        self._leaves = self._parameters if vector is None else (vector,)
        self._num_calls: dict[Any, int] = {}
        self._replays: dict[Any, _Replay] = {}
        self._leaps: dict[Any, _Leap] = {}

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
        if isinstance(t, Tensor) or isinstance(d, Tensor):
            return self._flow.forward_with_score(x, score, t, d)
        kind = t, d, x.shape, x.dtype, score.dtype, x.device, x.requires_grad
        if kind not in self._leaps:
            self._leaps[kind] = _Leap(self._flow, t, d, x.requires_grad)
        y, log_abs_det, score = _Leaping.apply(self._leaps[kind], x, score.detach(), *self._leaves)

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


class _Leap:
    """The leap with its score at points of one shape, and its gradient: in Python at first, then recorded.

    Arguments:
        flow: The flow map.
        t: Time.
        d: Step size.
        wants_points: Whether the gradient for the points is wanted, too.
    """

    def __init__(self, flow: FlowMap, t: float, d: float, wants_points: bool) -> None:
        self._passes, self.folding, self._wants_points = Passes(flow, t, d), Folding(flow, d), wants_points
        self._num_calls = 0
        self._forward: Callable[..., tuple[Tensor, ...]] | None = None
        self._backward: Callable[..., tuple[Tensor, ...]] | None = None

    def run(self, weights: Tensor, x: Tensor, score: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Any]:
        """New points, log-determinants and scores, and what :meth:`pull` needs."""
        self.folding.fill(weights)
        self._num_calls += 1
        if self._num_calls == _NUM_CALLS_BEFORE + 1:
            self._record(x, score)
        if self._forward is None:
            *outputs, kept = self._passes.forward_with_score(self.folding.matrices, x, score)
        else:
            y, log_abs_det, carried, *kept = self._forward(*self._tensors(), x, score)
            outputs = [y, log_abs_det, carried]

        return cast("tuple[Tensor, Tensor, Tensor]", tuple(outputs)), (self._backward, kept)

    def pull(self, way: Any, points: Tensor, log_abs_det: Tensor) -> tuple[Tensor, Tensor | None]:
        """The gradient for the weights, one vector, and for the points, ``(B, D)``, if it is wanted."""
        backward, kept = way
        if backward is None:
            gradients = self._passes.backward(self.folding.matrices, kept, points, log_abs_det)
        else:
            gradients = backward(*kept, points, log_abs_det)

        return self.folding.gradient(gradients[0]), gradients[1] if self._wants_points else None

    def _tensors(self) -> list[Tensor]:
        return [matrix for folded in self.folding.matrices for matrix in folded.tensors()]

    def _record(self, x: Tensor, score: Tensor) -> None:
        tensors, inputs = self._tensors(), (x.detach(), score)
        recorder = Recorder()
        for value in (*tensors, *inputs):
            recorder.add_input(value)
        with torch.no_grad(), recorder:
            *outputs, kept = self._passes.forward_with_score(self.folding.matrices, *inputs)
        num_first = len(recorder.graph.nodes)
        cotangents = torch.zeros_like(outputs[0]), torch.zeros_like(outputs[1])
        for value in cotangents:
            recorder.add_input(value)
        with torch.no_grad(), recorder:
            gradients = self._passes.backward(self.folding.matrices, kept, *cotangents)[: 1 + self._wants_points]
        ends = [[recorder.node(value) for value in values] for values in (outputs, gradients)]
        forward, backward = _cut(recorder, num_first, *ends)
        with torch.no_grad():
            self._forward = freeze(forward, (*tensors, *inputs))
            crossing = forward(*tensors, *inputs)[len(outputs) :]
            self._backward = freeze(backward, (*crossing, *cotangents))


class _Leaping(torch.autograd.Function):
    """A leap as one operation of autograd."""

    @staticmethod
    def forward(ctx: Any, leap: _Leap, x: Tensor, score: Tensor, *leaves: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (y, log_abs_det, score), ctx.way = leap.run(_joined(leaves), x, score)
        ctx.save_for_backward(*leaves)
        ctx.leap, ctx.version = leap, leap.folding.vector._version
        ctx.mark_non_differentiable(score)

        return y, log_abs_det, score

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, points: Tensor, log_abs_det: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        leaves = ctx.saved_tensors
        if ctx.leap.folding.vector._version != ctx.version:
            # Another call has folded weights since; those of this one are unchanged, or autograd would have said so.
            ctx.leap.folding.fill(_joined(leaves))
        gradient, for_x = ctx.leap.pull(ctx.way, points, log_abs_det)
        parts = gradient.split([leaf.numel() for leaf in leaves])

        return None, for_x, None, *[part.view(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]


def _joined(leaves: Sequence[Tensor]) -> Tensor:
    return leaves[0].flatten() if len(leaves) == 1 else torch.cat([leaf.flatten() for leaf in leaves])


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
    is_first = set(nodes[:num_first])
    nodes = recorder.merge_repeats([*outputs, *gradients])
    is_first.update(node for node in nodes if node.op == "get_attr")
    first, second = [node for node in nodes if node in is_first], [node for node in nodes if node not in is_first]
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

"""The tensor operations of a function, written down as a graph while it runs once.

``torch.fx.experimental.proxy_tensor.make_fx`` does the same and more; it imports TorchDynamo first, which takes seconds
where many posteriors take no longer in all, and describes every tensor on its way.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import Tensor, fx

from pyro_osds.runtime.torch_internals import (
    TO_PYTHON,
    DispatchMode,
    is_mutable,
    memory_of,
    without_function_modes,
    written_arguments,
)

_aten = torch.ops.aten
# Operations whose result depends on the shapes and types of their arguments, not on their values.
_FILLED = frozenset(
    {
        _aten.zeros_like.default,
        _aten.ones_like.default,
        _aten.new_zeros.default,
        _aten.new_ones.default,
        _aten.zeros.default,
        _aten.ones.default,
        _aten.scalar_tensor.default,
    }
)
_recording: ContextVar[Recorder | None] = ContextVar("recording", default=None)


def record_operations(function: Callable[..., Any], *arguments: Tensor) -> fx.GraphModule:
    """The tensor operations of a function, recorded at one argument, or several.

    Arguments:
        function: Maps tensors to a tuple of tensors, by the same operations whatever the values.
        arguments: Where to record, of any shapes; the graph is for arguments of these shapes.

    Returns:
        The operations as a module, from the arguments to the tuple.

    Raises:
        RuntimeError: If a value that depends on the argument goes to Python, if a tensor from outside is changed in
            place, or if the function's values do not come from tensor operations.

    Example:
        >>> graph = record_operations(lambda z: (2 * z.exp(), z.sum()), torch.zeros(2))
        >>> graph(torch.ones(2))
        (tensor([5.4366, 5.4366]), tensor(2.))
    """
    recorder = Recorder()
    for argument in arguments:
        recorder.add_input(argument)
    with _recorded_by(recorder):
        values = function(*arguments)
    ends = [recorder.node(value) for value in values]
    recorder.merge_repeats(ends)
    recorder.graph.output(tuple(ends))
    recorder.graph.eliminate_dead_code()

    return fx.GraphModule(recorder.constants, recorder.graph)


@contextmanager
def _recorded_by(recorder: Recorder) -> Iterator[None]:
    token = _recording.set(recorder)
    try:
        with recorder:
            yield
    finally:
        _recording.reset(token)


def are_equal(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are equal; while a function is being recorded, whether they are for every argument of it.

    Equal for every argument they are where they came about by the same operations on the same tensors.

    Arguments:
        first: A tensor.
        second: Another one.

    Example:
        >>> are_equal(torch.ones(2), torch.ones(2))
        True
    """
    recorder = _recording.get()

    return torch.equal(first, second) if recorder is None else recorder.are_same(first, second)


def needed(ends: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes that these come from, directly or not, and these.

    Arguments:
        ends: Nodes of one graph.
    """
    found: set[fx.Node] = set()
    waiting = list(ends)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes

    return found


class Recorder(DispatchMode):
    """Writes down what passes the dispatcher, below vmap and autograd.

    Operations are replayed in their order, on tensors that share memory as they did when recorded, so views and changes
    in place need no care.

    Example:
        >>> recorder, x = Recorder(), torch.ones(2)
        >>> recorder.add_input(x)
        >>> with recorder:
        ...     y = x.exp()
        >>> [node.op for node in recorder.graph.nodes], recorder.node(y).target
        (['placeholder', 'call_function'], <OpOverload(op='aten.exp', overload='default')>)
    """

    def __init__(self) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.constants = torch.nn.Module()
        self._nodes: dict[int, fx.Node] = {}
        # An id belongs to a tensor as long as the tensor lives.
        self._alive: list[Any] = []
        self._own_memory: set[int] = set()
        self._depends: set[int] = set()
        self._written: set[fx.Node] = set()
        self._memory: dict[fx.Node, int] = {}
        self._written_memory: set[int] = set()
        self._merged: dict[fx.Node, fx.Node] = {}
        # Tensors whose values depend on shapes alone, by the node that makes them.
        self._filled: dict[fx.Node, Tensor] = {}

    def add_input(self, tensor: Tensor) -> None:
        """What stands for this tensor is given at each replay, in the order in which inputs were added."""
        node = self.graph.placeholder(f"input_{len(self._alive)}")
        self._nodes[id(tensor)], self._memory[node] = node, memory_of(tensor)
        self._alive.append(tensor)
        self._depends.add(memory_of(tensor))

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = _tensors((args, kwargs))
        depends = any(memory_of(tensor) in self._depends for tensor in tensors)
        if depends and operation in TO_PYTHON:
            raise RuntimeError(f"{operation} brings a value that depends on the point to Python.")
        if is_mutable(operation):
            self._check_own(operation, args)
            self._written.update(self.node(tensor) for tensor in tensors)
            written = [*_tensors(written_arguments(operation, args)), *_tensors(kwargs)]
            self._written_memory.update(map(memory_of, written))
        with without_function_modes():  # what torch makes of itself, such as torch.Tensor(3), is no call of the user's
            result = operation(*args, **kwargs)
        if operation is torch.ops.aten.detach.default:
            # The same tensor, to what has no gradients.
            self._write(self.node(args[0]), result, depends)
        elif operation not in TO_PYTHON:
            inputs = self._inputs(args), self._inputs(kwargs)
            self._write(self.graph.call_function(operation, *inputs), result, depends)
            fresh = {memory_of(leaf) for leaf in _tensors(result)}
            self._own_memory |= fresh - set(map(memory_of, tensors))
        if depends and is_mutable(operation):
            self._depends.update(map(memory_of, tensors))

        return result

    def node(self, tensor: Tensor) -> fx.Node:
        """The node that a tensor comes from; one that comes from nowhere is a constant."""
        if id(tensor) not in self._nodes:
            if not isinstance(tensor, Tensor):
                raise RuntimeError(f"A recorded function must give tensors, got {type(tensor).__name__}.")
            self._nodes[id(tensor)] = self._constant(tensor)
            self._alive.append(tensor)
        node = self._nodes[id(tensor)]

        return self._merged.get(node, node)

    def _constant(self, tensor: Tensor) -> fx.Node:
        name = f"constant_{len(list(self.constants.buffers()))}"
        with without_function_modes():  # a mode of the user's code would make it part of a batch
            self.constants.register_buffer(name, tensor.detach())
        node = self.graph.get_attr(name)
        self._memory[node] = memory_of(tensor)

        return node

    def merge_repeats(self, ends: Iterable[fx.Node] = ()) -> list[fx.Node]:
        """What is computed twice from the same tensors is computed once, if nothing is ever written where it lies.

        Formulas and their gradients ask for the same products, and autograd does not notice; zeros and ones of a known
        shape become constants. Values stay as they are, to the last bit.

        Arguments:
            ends: Nodes that stay, since whoever gets their values may change them.

        Returns:
            The nodes that are left, in their order.
        """
        found: dict[Any, fx.Node] = {}
        stay = set(ends)
        for node in list(self.graph.nodes):
            if node.op == "call_function" and node not in stay and self._may_merge(node):
                key = node.target, _written_out((node.args, node.kwargs))
                if key not in found and node in self._filled:
                    with self.graph.inserting_before(node):
                        found[key] = self._constant(self._filled[node])
                if node.target is _aten.pow.Tensor_Scalar and node.args[1] == 1:
                    # What the gradient of a square asks for.
                    found[key] = cast("fx.Node", node.args[0])
                if node.target is _aten.permute.default and _is_in_order(node.args[1]):
                    # What vmap makes of each number that is picked.
                    found[key] = cast("fx.Node", node.args[0])
                first = found.setdefault(key, node)
                if first is not node:
                    node.replace_all_uses_with(first)
                    self._merged[node] = first
                    self.graph.erase_node(node)

        return list(self.graph.nodes)

    def _may_merge(self, node: fx.Node) -> bool:
        """Whether a node's value depends on its arguments alone, and nothing changes either."""
        target: Any = node.target
        if target is not operator.getitem and (is_mutable(target) or torch.Tag.nondeterministic_seeded in target.tags):
            return False
        # Of several results each has its own memory.
        parts = [user for user in node.users if user.target is operator.getitem]
        around = (node, *parts, *node.all_input_nodes)

        return all(self._memory.get(value) not in self._written_memory for value in around)

    def are_same(self, first: Tensor, second: Tensor) -> bool:
        """Whether two tensors came about by the same operations, none of which changed anything in place."""
        waiting: list[tuple[Any, Any]] = [(self.node(first), self.node(second))]
        seen: set[tuple[fx.Node, fx.Node]] = set()
        while waiting:
            a, b = waiting.pop()
            if type(a) is not type(b):
                return False
            if isinstance(a, (tuple, list)):
                if len(a) != len(b):
                    return False
                waiting += zip(a, b, strict=True)
            elif not isinstance(a, fx.Node):
                if a is not b and a != b:
                    return False
            elif a is not b and (a, b) not in seen:
                seen.add((a, b))
                if not self._are_alike(a, b):
                    return False
                waiting += [(a.args, b.args), (tuple(a.kwargs.items()), tuple(b.kwargs.items()))]

        return True

    def _are_alike(self, a: fx.Node, b: fx.Node) -> bool:
        """Whether two nodes do the same, if their arguments are the same."""
        if a.op != b.op or a in self._written or b in self._written:
            return False
        if a.op == "get_attr":
            first, second = (getattr(self.constants, str(node.target)) for node in (a, b))
            return first.dtype == second.dtype and torch.equal(first, second)

        return a.op == "call_function" and a.target is b.target

    def _inputs(self, value: Any) -> Any:
        """Arguments with nodes in the place of tensors."""
        if isinstance(value, Tensor):
            return self.node(value)
        if isinstance(value, (tuple, list)):
            return type(value)(map(self._inputs, value))
        if isinstance(value, dict):
            return {name: self._inputs(part) for name, part in value.items()}

        return value

    def _write(self, node: fx.Node, result: Any, depends: bool) -> None:
        if isinstance(result, (tuple, list)):
            for index, part in enumerate(result):
                self._write(self.graph.call_function(operator.getitem, (node, index)), part, depends)
        elif isinstance(result, Tensor):
            if node.target in _FILLED:
                self._filled[node] = result
            self._nodes[id(result)] = node
            self._memory[node] = memory_of(result)
            self._alive.append(result)
            if depends:
                self._depends.add(memory_of(result))

    def _check_own(self, operation: Any, args: tuple[Any, ...]) -> None:
        """What is changed in place must have come into being in the record, or the next replay would see the change."""
        for arg in written_arguments(operation, args):
            if isinstance(arg, Tensor) and memory_of(arg) not in self._own_memory:
                raise RuntimeError(f"{operation} changes a tensor that was there before.")


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in arguments or results of an operation; a general walk through trees takes ten times as long."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return []

    return [tensor for part in value for tensor in _tensors(part)]


def _is_in_order(axes: Any) -> bool:
    """Whether axes stay where they are."""
    return list(axes) == list(range(len(axes)))


def _written_out(value: Any) -> Any:
    """Arguments of an operation as what can be compared: numbers by type and value, everything else by itself."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_written_out, value))
    if isinstance(value, dict):
        return tuple((name, _written_out(part)) for name, part in value.items())
    if isinstance(value, float):
        # Zero has two signs, and nan is no number that equals itself.
        return float, value.hex()

    return type(value), value

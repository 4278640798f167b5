"""A recorded graph as one straight Python function: a line for each operation, and nothing looked up on the way.

For the graph of ``(2 * z.exp(), z.sum())`` that is

.. code-block:: python

    def run(v0):
        v1 = exp_default(v0)
        v2 = mul_Tensor(v1, c0); v1 = None
        v3 = sum_default(v0); v0 = None
        return (v2, v3, )

Frequent operations are called as ``torch`` has them, which takes two thirds of the time for what is small. A value is
let go where it was last used. What depends on no argument is computed once, beforehand. The operations are
the recorded ones in their order, so values are those of the function to the last bit, on any device. A loop over a list
of operations does the same and takes a third longer.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from pyro_osds.runtime.recording.recorder import needed
from pyro_osds.runtime.torch_internals import direct_call, without_function_modes

_aten = torch.ops.aten
# Frequent operations by the name that torch gives them: the same kernels on the same positional arguments, and a call
# takes 1.0 us in place of 1.5 (products), or 2.5 in place of 3.9 (stacks). The first argument must be a tensor, or
# several.
FUNCTIONS: dict[Any, Callable[..., Any]] = {
    _aten.mul.Tensor: torch.mul,
    _aten.add.Tensor: torch.add,
    _aten.sub.Tensor: torch.sub,
    _aten.div.Tensor: torch.div,
    _aten.neg.default: torch.neg,
    _aten.exp.default: torch.exp,
    _aten.log.default: torch.log,
    _aten.sqrt.default: torch.sqrt,
    _aten.tanh.default: torch.tanh,
    _aten.reciprocal.default: torch.reciprocal,
    _aten.where.self: torch.where,
    _aten.permute.default: torch.permute,
    _aten.select.int: torch.select,
    _aten.unbind.int: torch.unbind,
    _aten.unsqueeze.default: torch.unsqueeze,
    _aten.stack.default: torch.stack,
    _aten.cat.default: torch.cat,
}
"""Operations that are called by another name, with the same bits."""


class Interpreter:
    """A recorded graph, to be called with tensors of the shapes that it was recorded for.

    As TorchScript it sees no ``TorchFunctionMode`` that is in force.

    Arguments:
        graph: What was recorded.

    Example:
        >>> from pyro_osds.runtime.recording.recorder import record_operations
        >>> run = Interpreter(record_operations(lambda z: (2 * z.exp(), z.sum()), torch.zeros(2)))
        >>> run(torch.ones(2))
        (tensor([5.4366, 5.4366]), tensor(2.))
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        with torch.no_grad(), without_function_modes():
            source = _Source(graph)
        self.code = source.text()
        exec(compile(self.code, "<recorded graph>", "exec"), source.names)
        self._run = source.names["run"]

    def __call__(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """The outputs of the graph."""
        with without_function_modes():
            return self._run(*arguments)


class _Source:
    """The Python source of a graph, and the operations and constants that it names."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.names: dict[str, Any] = {}
        self._known = _known(graph)
        self._nodes = [node for node in graph.graph.nodes if node not in self._known]
        self._variables = {node: f"v{index}" for index, node in enumerate(self._nodes)}
        self._constants: dict[fx.Node, str] = {}
        last_users = {value: node for node in self._nodes for value in (node, *node.all_input_nodes)}
        self._last_used: dict[fx.Node, list[str]] = {}
        for value, node in last_users.items():
            if value in self._variables:
                self._last_used.setdefault(node, []).append(self._variables[value])

    def text(self) -> str:
        """The whole function."""
        inputs = [self._variables[node] for node in self._nodes if node.op == "placeholder"]

        return "\n    ".join([f"def run({', '.join(inputs)}):", *self._lines()])

    def _lines(self) -> Iterator[str]:
        for node in self._nodes:
            if node.op == "output":
                yield f"return {self._written(node.args[0])}"
            elif node.op == "call_function":
                let_go = "".join(f"{name} = " for name in self._last_used.get(node, ()))
                yield f"{self._variables[node]} = {self._call(node)}" + (f"; {let_go}None" if let_go else "")

    def _call(self, node: fx.Node) -> str:
        args = [self._written(value) for value in node.args]
        if node.target is operator.getitem:
            return f"{args[0]}[{args[1]}]"
        args += [f"{name}={self._written(value)}" for name, value in node.kwargs.items()]
        name = str(node.target).removeprefix("aten.").replace(".", "_").replace("::", "_")
        self.names[name] = _function(node)

        return f"{name}({', '.join(args)})"

    def _written(self, value: Any) -> str:
        """An argument as Python writes it."""
        if isinstance(value, fx.Node):
            return self._variables.get(value) or self._constant(value)
        if isinstance(value, (tuple, list)):
            parts = "".join(f"{self._written(part)}, " for part in value)
            return f"[{parts}]" if isinstance(value, list) else f"({parts})"
        if value is None or type(value) in (bool, int):
            return repr(value)

        return self._name(value)

    def _constant(self, node: fx.Node) -> str:
        if node not in self._constants:
            self._constants[node] = self._name(self._known[node])

        return self._constants[node]

    def _name(self, value: Any) -> str:
        name = f"c{len(self.names)}"
        self.names[name] = value

        return name


def _function(node: fx.Node) -> Callable[..., Any]:
    """What to call for an operation."""
    first = node.args[0] if node.args else None
    is_tensor = isinstance(first, fx.Node) or (isinstance(first, (list, tuple)) and len(first) > 0)

    return FUNCTIONS.get(node.target, direct_call(node.target)) if is_tensor else direct_call(node.target)


def _known(graph: fx.GraphModule) -> dict[fx.Node, Any]:
    """Values that depend on no argument: constants, and what is made of them without chance and never changed."""
    changed = needed(node for node in graph.graph.nodes if node.op == "call_function" and node.is_impure())
    known: dict[fx.Node, Any] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            known[node] = getattr(graph, str(node.target))
            continue
        inputs_known = all(value in known for value in node.all_input_nodes)
        if node.op == "call_function" and inputs_known and node not in changed and not _is_random(node.target):
            args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)  # type: ignore[operator]

    return known


def _is_random(operation: Any) -> bool:
    return operation is not operator.getitem and torch.Tag.nondeterministic_seeded in operation.tags

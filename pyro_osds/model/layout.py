r"""Recorded densities, rewritten: products with points as rows, and gradients of picked entries added by entry.

.. math:: (A\,B^{\top})^{\top} = B\,A^{\top}

A regression ``x @ w`` is recorded for a batch as :math:`(X\,W^{\top})^{\top}`: the entries of one point then lie as far
apart as there are points, a power of two, where they fall on each other in the cache. All that is made of them is slow,
and what needs rows copies them first. With 1,000 rows and 128 points, the density of a logistic regression took 27 us a
point that way, and takes 7. Sums of products may differ in their last bit.

.. math:: \sum_t x_t\, e_{i_t} = \sum_i \Big(\sum_{t:\, i_t = i} x_t\Big)\, e_i

A loop that reads ``theta[0]`` in each of its steps has a gradient of as many vectors, all zero but for one entry, and
adds them up one by one. Entries are added in the same order instead, and put together once: the same bits, but for the
sign of a zero.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from pyro_osds.runtime.torch_internals import is_mutable, written_arguments

_aten = torch.ops.aten
# Vectors of one entry each, that many at least: fewer are not worth a vector that is put together.
_MANY_PICKS = 8
# Views that torch does not call views.
_ALSO_VIEWS = (_aten._unsafe_view.default, _aten._reshape_alias.default)


def rows_first(operations: fx.GraphModule, arguments: tuple[Tensor, ...]) -> fx.GraphModule:
    """The same operations with products turned; as they are, where nothing is to be gained or a view forbids it.

    Arguments:
        operations: What was recorded.
        arguments: Where it can be run.

    Example:
        >>> from pyro_osds.runtime.recording.recorder import record_operations
        >>> x, w = torch.randn(7, 3), torch.randn(4, 3)
        >>> recorded = record_operations(lambda w: ((x @ w.mT).mT,), w)
        >>> recorded(w)[0].stride(), rows_first(recorded, (w,))(w)[0].stride()
        ((1, 4), (7, 1))
    """
    if not any(node.target is _aten.mm.default for node in operations.graph.nodes):
        # To copy tens of thousands of operations takes a second.
        return operations
    graph = fx.Graph()
    graph.output(graph.graph_copy(operations.graph, {}))
    changed = _written(graph)
    products = [node for node in graph.nodes if node.target is _aten.mm.default and node not in changed]
    if not [product for product in products if _turn(graph, product)]:
        return operations
    graph.eliminate_dead_code()
    turned = fx.GraphModule(operations, graph)
    try:
        # Views are recorded as they suited the memory before.
        turned(*arguments)
    except RuntimeError:
        return operations

    return turned


def entries_added(operations: fx.GraphModule) -> fx.GraphModule:
    """The same operations, with long sums of vectors of one entry each taken entry by entry.

    Arguments:
        operations: What was recorded; it is changed.

    Example:
        >>> from pyro_osds.runtime.recording.recorder import record_operations
        >>> def gradient(z):
        ...     with torch.enable_grad():
        ...         z = z.detach().requires_grad_()
        ...         return torch.autograd.grad(sum((step * z[step % 2]).sin() for step in range(9)), z)
        >>> recorded = record_operations(gradient, torch.ones(2))
        >>> names = [str(node.target) for node in entries_added(recorded).graph.nodes]
        >>> names.count("aten.select_backward.default"), names.count("aten.stack.default")
        (0, 1)
    """
    graph = operations.graph
    ends = [node for node in graph.nodes if _is_sum(node) and not any(map(_is_sum, node.users))]
    picks = [_picked(end) for end in ends]
    changed = _written(graph) if any(picks) else set()
    rewritten = [
        _add_by_entry(graph, end, added)
        for end, added in zip(ends, picks, strict=True)
        if added and changed.isdisjoint(node for pair in added for node in pair)
    ]
    if not any(rewritten):
        return operations
    graph.eliminate_dead_code()
    operations.recompile()

    return operations


def _is_sum(node: fx.Node) -> bool:
    """Whether a node adds two tensors."""
    both = len(node.args) == 2 and all(isinstance(value, fx.Node) for value in node.args)

    return node.target is _aten.add.Tensor and both and not node.kwargs and node.args[0] is not node.args[1]


def _is_pick(node: Any) -> bool:
    """Whether a node is the gradient of one picked entry, which one sum asks for."""
    return isinstance(node, fx.Node) and node.target is _aten.select_backward.default and len(node.users) == 1


def _picked(end: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    """Sums that end in one, each with the vector of one entry that it adds; the first one is added to nothing."""
    added: list[tuple[fx.Node, fx.Node]] = []
    node: Any = end
    while _is_sum(node) and (node is end or len(node.users) == 1):
        first, second = node.args
        if not _is_pick(second):
            first, second = second, first
        if not _is_pick(second):
            return []
        added.append((node, second))
        node = first
    if not _is_pick(node) or len(added) + 1 < _MANY_PICKS:
        return []
    added.append((added[-1][0], node))
    # A vector of the same shape each, with its entry along the same axis.
    shapes = {(tuple(pick.args[1]), pick.args[2]) for _, pick in added}  # type: ignore[arg-type]

    return added[::-1] if len(shapes) == 1 else []


def _add_by_entry(graph: fx.Graph, end: fx.Node, added: list[tuple[fx.Node, fx.Node]]) -> bool:
    """Put another sum in the place of one; whether there are fewer entries than vectors."""
    _, sizes, axis, _ = added[0][1].args
    axis = axis % len(sizes)  # type: ignore[operator, arg-type]
    count = sizes[axis]  # type: ignore[index]
    if not 0 < 2 * count <= len(added):  # type: ignore[operator]
        return False
    entries: dict[Any, fx.Node] = {}
    for node, pick in added:
        value, _, _, index = pick.args
        index = index % count  # type: ignore[operator]
        with graph.inserting_before(node):
            so_far = entries.get(index)
            entries[index] = value if so_far is None else graph.call_function(_aten.add.Tensor, (so_far, value))  # type: ignore[assignment]
    with graph.inserting_before(end):
        nothing = graph.call_function(_aten.zeros_like.default, (added[0][1].args[0],))
        whole = [entries.get(index, nothing) for index in range(count)]  # type: ignore[arg-type]
        end.replace_all_uses_with(graph.call_function(_aten.stack.default, (whole, axis)))

    return True


def _turn(graph: fx.Graph, product: fx.Node) -> bool:
    """Turn a product with a transposed right factor that is only looked at transposed; whether it is one."""
    left, right = product.args
    users = list(product.users)
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node) or not users:
        return False
    if not _is_transposed(right) or not all(map(_is_transposed, users)):
        return False
    with graph.inserting_before(product):
        back = left.args[0] if _is_transposed(left) else graph.call_function(_aten.permute.default, (left, [1, 0]))
        turned = graph.call_function(_aten.mm.default, (right.args[0], back))
    for user in users:
        user.replace_all_uses_with(turned)

    return True


def _is_transposed(node: fx.Node) -> bool:
    """Whether a node is the transpose of a matrix."""
    if node.target is _aten.t.default:
        return True
    if node.target is _aten.permute.default:
        return [axis % 2 for axis in _numbers(node.args[1])] == [1, 0] and len(_numbers(node.args[1])) == 2
    if node.target is _aten.transpose.int:
        # Of a product there are two axes; of what is multiplied, too.
        return sorted(axis % 2 for axis in _numbers(node.args[1:])) == [0, 1]

    return False


def _numbers(value: Any) -> list[int]:
    return [axis for axis in value if isinstance(axis, int)]


def _written(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose memory some operation changes in place, by themselves or by a view."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        target: Any = node.target
        if node.op != "call_function" or not hasattr(target, "_schema") or not is_mutable(target):
            continue
        for value in (*written_arguments(target, node.args), *node.kwargs.values()):
            while isinstance(value, fx.Node) and value not in found:
                found.add(value)
                value = value.args[0] if _is_view(value) else None

    return found


def _is_view(node: fx.Node) -> bool:
    """Whether a node shares memory with its first argument; one of several results, such as of ``split``, may."""
    return getattr(node.target, "is_view", False) or node.target in (*_ALSO_VIEWS, operator.getitem)

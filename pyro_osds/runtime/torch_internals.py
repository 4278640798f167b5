"""Every private name of torch that the package uses, so that a new torch has one place to break, and one to mend.

Each name says what it is for and what happens when it is gone. "No import" means that importing the package then fails
with an error that names it; a test for each name says so first, in ``tests/runtime/test_torch_internals.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor, maybe_get_bdim
from torch.distributions import Distribution
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

__all__ = [
    "ARGUMENT_CHECKS",
    "TO_PYTHON",
    "TRACING",
    "BatchNorm",
    "DispatchMode",
    "NormLayer",
    "direct_call",
    "function_modes",
    "fused_adam",
    "has_gradient",
    "whole_batch",
    "is_batchedtensor",
    "is_mutable",
    "memory_of",
    "same_view",
    "traced",
    "undecorated",
    "unexpanded_factor",
    "unchanged_validation",
    "without_dispatch_modes",
    "without_function_modes",
    "written_arguments",
]

# Whether a tensor stands for a batch of points under vmap (`is_batchedtensor` above). Gone: no import.


def has_gradient(tensor: Tensor) -> bool:
    """Whether a gradient is wanted of a tensor, or of the batch that it stands for. Gone: no import.

    Example:
        >>> seen = []
        >>> _ = torch.func.vmap(lambda x: seen.append(has_gradient(x)) or x)(torch.ones(2, requires_grad=True))
        >>> seen, has_gradient(torch.ones(1))
        ([True], False)
    """
    while is_batchedtensor(tensor):
        tensor = get_unwrapped(tensor)

    return tensor.requires_grad


NormLayer, BatchNorm = _NormBase, _BatchNorm
"""Layers that keep running statistics, and those of them that normalise over a batch. Gone: no import."""

ARGUMENT_CHECKS: tuple[Any, ...] = tuple(filter(None, [getattr(torch, "_is_all_true", None)]))
"""What distributions check arguments with. Gone: a check that vmap refuses, so its model runs point by point, and says
so."""

TO_PYTHON = frozenset(
    {
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.is_nonzero.default,
        torch.ops.aten.equal.default,
    }
)
"""Operations that bring a number from a tensor to Python, where no graph can follow it. Gone: no import."""


def function_modes() -> list[Any]:
    """The modes that answer torch's functions now, the innermost last. Gone: no import.

    Example:
        >>> function_modes()
        []
    """
    return list(_get_current_function_mode_stack())


def whole_batch(tensor: Tensor) -> tuple[Tensor, int]:
    """All points of a batch that a tensor stands for, and their dimension, -1 where it stands for itself.

    Gone: no import.

    Example:
        >>> seen = []
        >>> _ = torch.func.vmap(lambda x: seen.append(whole_batch(x)) or x)(torch.ones(2))
        >>> seen
        [(tensor([1., 1.]), 0)]
    """
    return (get_unwrapped(tensor), maybe_get_bdim(tensor)) if is_batchedtensor(tensor) else (tensor, -1)


class DispatchMode(TorchDispatchMode):
    """Sees every operation below vmap and autograd; the recorder is one. Gone: no import."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Asked by torch; a yes would import TorchDynamo, to tell it that there is nothing to compile here.

        Gone: nobody asks, and the test that no run imports a compiler tells whether that is right.
        """
        return False


def is_mutable(operation: Any) -> bool:
    """Whether an operation changes one of its arguments. Gone: nothing can be recorded, densities run by vmap.

    Example:
        >>> is_mutable(torch.ops.aten.add_.Tensor), is_mutable(torch.ops.aten.add.Tensor)
        (True, False)
    """
    return operation._schema.is_mutable


def written_arguments(operation: Any, args: tuple[Any, ...]) -> list[Any]:
    """The positional arguments that an operation changes in place. Gone: as :func:`is_mutable`.

    Example:
        >>> written_arguments(torch.ops.aten.add_.Tensor, ("first", "second"))
        ['first']
    """
    pairs = zip(operation._schema.arguments, args, strict=False)

    return [arg for parameter, arg in pairs if parameter.alias_info is not None and parameter.alias_info.is_write]


def direct_call(operation: Any) -> Callable[..., Any]:
    """The function behind an operation, a fifth faster to call than the operation. Gone: the operation itself.

    Example:
        >>> direct_call(torch.ops.aten.add.Tensor)(torch.ones(1), 1.0)
        tensor([2.])
    """
    return getattr(operation, "_op", operation)


def memory_of(tensor: Tensor) -> int:
    """The same number for tensors that share memory, even where it is empty. Gone: nothing can be recorded.

    Example:
        >>> x = torch.zeros(3)
        >>> memory_of(x[1:]) == memory_of(x), memory_of(x.clone()) == memory_of(x)
        (True, False)
    """
    return tensor.untyped_storage()._cdata


def same_view(tensor: Tensor, copies: dict[int, Tensor]) -> Tensor:
    """A view of a copy of a tensor's memory, with the tensor's shape; views of one memory share the copy.

    Arguments:
        tensor: The tensor.
        copies: Copies that there are, by memory; a new one is added.

    Example:
        >>> x, copies = torch.zeros(3), {}
        >>> same_view(x, copies)[1] = 1.0
        >>> same_view(x[1:], copies), x
        (tensor([1., 0.]), tensor([0., 0., 0.]))
    """
    memory = memory_of(tensor)
    if memory not in copies:
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        copies[memory] = tensor.detach().as_strided((size,), (1,), 0).clone()

    return copies[memory].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


TRACING = (
    "_create_graph_by_tracing",
    "_jit_pass_constant_propagation",
    "_jit_pass_constant_pooling",
    "_create_function_from_graph",
)
"""Parts of TorchScript that :func:`traced` is made of. Gone: the interpreter runs recorded graphs; the log says so."""


def traced(function: Callable[..., tuple[Tensor, ...]], arguments: tuple[Tensor, ...]) -> Callable[..., Any]:
    """What a function does with such arguments, as a TorchScript function that goes with its last reference.

    ``torch.jit.trace`` leaves all that it traced to the process for good, the values between the operations included:
    so many megabytes for each graph as a batch of the density takes, and every fit records some ten graphs.

    Example:
        >>> traced(lambda x: (2 * x,), (torch.zeros(2),))(torch.ones(2))
        (tensor([2., 2.]),)
    """
    trace, propagate, pool, function_of = (getattr(torch._C, name) for name in TRACING)
    graph, _ = trace(function, arguments, lambda value: "", True, False)
    # Lists of constants, such as sizes, become constants: a third of the time of small operations.
    propagate(graph)
    pool(graph)

    return function_of("forward", graph)


def without_function_modes() -> AbstractContextManager[Any]:
    """Operations as they are, whatever ``TorchFunctionMode`` is in force. Gone: the interpreter raises.

    Example:
        >>> with without_function_modes():
        ...     torch.ones(1)
        tensor([1.])
    """
    return torch._C.DisableTorchFunction()


def without_dispatch_modes() -> AbstractContextManager[Any]:
    """Operations that no ``TorchDispatchMode`` sees, and so no record that is being made. Gone: no import.

    Example:
        >>> class Failing(DispatchMode):
        ...     def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        ...         raise ValueError(operation)
        >>> with Failing(), without_dispatch_modes():
        ...     torch.ones(1)
        tensor([1.])
    """
    return _disable_current_modes()


@contextmanager
def unchanged_validation() -> Iterator[None]:
    """Whether distributions check their arguments is afterwards as it was. Gone: no import.

    Example:
        >>> with unchanged_validation():
        ...     Distribution.set_default_validate_args(False)
        >>> torch.distributions.Normal(0.0, -1.0)
        Traceback (most recent call last):
        ValueError: Expected parameter scale ...
    """
    before = Distribution._validate_args  # type: ignore[attr-defined]
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


def undecorated(function: Callable[..., Any]) -> Callable[..., Any]:
    """An optimiser's method without what wraps it for ``torch.compile``. Gone (no ``__wrapped__``): as it is, slower.

    Example:
        >>> undecorated(torch.optim.Adam.step).__name__
        'step'
    """
    return inspect.unwrap(function)


def fused_adam(
    vector: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    num_steps: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """One step of Adam on one vector, in place, as the fused Adam of ``torch.optim`` takes it.

    Arguments:
        vector: What is changed, ``(N,)``.
        gradient: Its gradient.
        first: First moments, changed.
        second: Second moments, changed.
        num_steps: The number of steps, a scalar in single precision, changed.
        lr: The learning rate.
        beta1: Decay of first moments.
        beta2: Decay of second moments.
        eps: What keeps divisions from failing.

    Gone: no training; ``torch.optim.Adam`` on one parameter does the same.
    """
    num_steps += 1
    torch._fused_adam_(  # type: ignore[attr-defined]
        [vector],
        [gradient],
        [first],
        [second],
        [],
        [num_steps],
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        weight_decay=0.0,
        eps=eps,
        amsgrad=False,
        maximize=False,
    )


def unexpanded_factor(fn: Any) -> Tensor:
    """The Cholesky factor of a multivariate normal's covariance, with the batch dimensions that it was given.

    Gone: the expanded one, so a covariance that all rows share is factorised for each of them.

    Example:
        >>> fn = torch.distributions.MultivariateNormal(torch.zeros(5, 2), torch.eye(2))
        >>> unexpanded_factor(fn).shape, fn.scale_tril.shape
        (torch.Size([2, 2]), torch.Size([5, 2, 2]))
    """
    factor = getattr(fn, "_unbroadcasted_scale_tril", None)

    return fn.scale_tril if factor is None else factor

"""Functions with a gradient of their own (``torch.autograd.Function``) in a batch, also those of the older kind.

:func:`torch.func.vmap` runs a function that keeps what its gradient needs in ``setup_context``, and has a rule for
batches or asks for one. The older kind, whose ``forward`` takes a context, is made one of the newer kind here: its
``forward`` runs once for the whole batch, and what it keeps is handed out as further results and kept from there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.autograd import Function

from pyro_osds.runtime.torch_internals import function_modes, has_gradient, is_batchedtensor


@contextlib.contextmanager
def functions_in_batches() -> Iterator[None]:
    """Functions of the older kind, and those without a rule for batches, run in a batch, too.

    Example:
        >>> import torch
        >>> class Double(Function):
        ...     @staticmethod
        ...     def forward(ctx, x):
        ...         return 2 * x
        ...     @staticmethod
        ...     def backward(ctx, gradient):
        ...         return 2 * gradient
        >>> with functions_in_batches():
        ...     torch.func.vmap(Double.apply)(torch.ones(2))
        tensor([2., 2.])
    """
    before = vars(Function)["apply"]

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        plain: Callable[..., Any] = before.__get__(None, cls)
        if not any(map(_is_batched, (*args, *kwargs.values()))):
            return plain(*args, **kwargs)
        if cls.setup_context == Function.setup_context:
            return _older(cls, before, args, kwargs)
        if not cls.generate_vmap_rule and cls.vmap == Function.vmap:
            ruled = type(cls.__name__, (cls,), {"generate_vmap_rule": True})
            return before.__get__(None, ruled)(*args, **kwargs)

        return plain(*args, **kwargs)

    setattr(Function, "apply", classmethod(apply))  # noqa: B010 - a method of another package, for a while
    try:
        yield
    finally:
        setattr(Function, "apply", before)  # noqa: B010


class _Context:
    """What the two halves of a function of the older kind share; it answers what they ask a context for."""

    def __init__(self, needs_input_grad: tuple[bool, ...]) -> None:
        self.needs_input_grad = needs_input_grad
        self.to_save: tuple[Any, ...] = ()
        self.saved_tensors: tuple[Any, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        """Keep tensors for the gradient."""
        self.to_save = tensors

    def mark_non_differentiable(self, *tensors: Any) -> None:
        """These results have no gradient; the function's own ``backward`` leaves what comes for them alone."""

    def mark_dirty(self, *tensors: Any) -> None:
        """A function that changes its arguments has none that a batch could share.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("a torch.autograd.Function that changes its arguments in place does not run in a batch")

    def set_materialize_grads(self, value: bool) -> None:
        """Gradients that are missing come as zeros here, which every function has to be prepared for."""


_OWN = frozenset(vars(_Context(())))


def _older(cls: Any, before: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The results of a function of the older kind for a batch."""
    in_batch = _InBatch(cls, args, kwargs)
    results = before.__get__(None, in_batch.function)(*args)
    results = results if isinstance(results, tuple) else (results,)
    own = results[: in_batch.num_results]

    return own if in_batch.is_tuple else own[0]


class _InBatch:
    """A function of the newer kind for one call of one of the older kind.

    Arguments:
        cls: The function of the older kind.
        args: Arguments of its ``forward``.
        kwargs: Keyword arguments of its ``forward``.
    """

    def __init__(self, cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._modes = function_modes()
        self._needs = tuple(isinstance(arg, Tensor) and has_gradient(arg) for arg in args)
        self.num_results, self.is_tuple = 1, False
        # Where what was kept is found again: among arguments, results or further results; or the value itself.
        self._kept: list[tuple[str, Any]] = []
        self._attributes: dict[str, tuple[str, Any]] = {}
        whole = self

        class InBatch(Function):
            """The class that torch wants."""

            generate_vmap_rule = True

            @staticmethod
            def forward(*args: Any) -> Any:
                return whole.run(cls, args, kwargs)

            @staticmethod
            def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
                whole.keep(ctx, inputs, output if isinstance(output, tuple) else (output,))

            @staticmethod
            def backward(ctx: Any, *gradients: Any) -> Any:
                return cls.backward(whole.context(ctx), *gradients[: whole.num_results])

        self.function = InBatch

    def run(self, cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Results, and what is kept and is neither a result nor an argument."""
        context = _Context(self._needs)
        # Torch takes its modes away on the way here.
        missing = [mode for mode in self._modes if mode not in function_modes()]
        with contextlib.ExitStack() as stack:
            for mode in missing:
                stack.enter_context(mode)
            results = cls.forward(context, *args, **kwargs)
        self.is_tuple = isinstance(results, tuple)
        own = results if self.is_tuple else (results,)
        self.num_results = len(own)
        further: list[Tensor] = []

        def place(value: Any) -> tuple[str, Any]:
            if not isinstance(value, Tensor):
                return "value", value
            for kind, places in (("argument", args), ("result", own)):
                for index, other in enumerate(places):
                    if other is value:
                        return kind, index
            further.append(value)
            return "result", len(own) + len(further) - 1

        self._kept = [place(value) for value in context.to_save]
        self._attributes = {name: place(value) for name, value in vars(context).items() if name not in _OWN}

        return (*own, *further) if self.is_tuple or further else own[0]

    def keep(self, ctx: Any, inputs: tuple[Any, ...], results: tuple[Any, ...]) -> None:
        """Keep for the gradient what the function of the older kind kept."""
        places = {"argument": inputs, "result": results}
        wanted = [*self._kept, *self._attributes.values()]
        ctx.save_for_backward(*[places[kind][index] for kind, index in wanted if kind != "value"])

    def context(self, ctx: Any) -> _Context:
        """The context of the function of the older kind, filled."""
        tensors = iter(ctx.saved_tensors)
        context = _Context(ctx.needs_input_grad)

        def value(kind: str, index: Any) -> Any:
            return index if kind == "value" else next(tensors)

        context.saved_tensors = tuple(value(*place) for place in self._kept)
        for name, place in self._attributes.items():
            setattr(context, name, value(*place))

        return context


def _is_batched(value: Any) -> bool:
    return isinstance(value, Tensor) and is_batchedtensor(value)

"""Traces whose sites are as they were when the model came to them, whatever it changes in place afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pyro.poutine.trace_messenger import TraceHandler, TraceMessenger
from torch import Tensor
from torch.distributions import Distribution, Transform


def trace_of(model: Callable[..., Any]) -> Any:
    """The model with a trace, as ``poutine.trace`` makes it, whose sites notice later changes.

    Arguments:
        model: The model.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def model():
        ...     loc = torch.zeros(1)
        ...     pyro.sample("x", dist.Normal(loc, 1.0), obs=torch.zeros(1))
        ...     loc += 1.0
        >>> trace = trace_of(model).get_trace()
        >>> trace.nodes["x"]["fn"].loc
        tensor([0.])
    """
    return _Tracer(Moments(), model)


class Copies(dict[str, Tensor]):
    """Values by site, of which each run gets copies of its own to change.

    Example:
        >>> import torch
        >>> values = Copies(x=torch.zeros(1))
        >>> value = values["x"].add_(1.0)
        >>> values.get("x")
        tensor([0.])
    """

    def __getitem__(self, name: str) -> Tensor:
        return super().__getitem__(name).clone()


class _Tracer(TraceHandler):
    """Runs the model, and once more with copies if a site was changed after its moment."""

    def get_trace(self, *args: Any, **kwargs: Any) -> Any:
        """The trace of a run."""
        trace = super().get_trace(*args, **kwargs)
        if not self.msngr.are_changed():
            return trace
        self.msngr = Moments(copies=True)

        return super().get_trace(*args, **kwargs)


class Moments(TraceMessenger):
    """Notes what each site was made of.

    Arguments:
        copies: Whether to keep copies of it, where it is known to change.
    """

    def __init__(self, copies: bool = False) -> None:
        super().__init__()
        self._copies = copies
        self._versions: list[tuple[Tensor, int]] = []

    def are_changed(self) -> bool:
        """Whether a tensor of a site was changed in place after the site."""
        return any(tensor._version != version for tensor, version in self._versions)

    def _pyro_post_sample(self, msg: Any) -> None:
        super()._pyro_post_sample(msg)
        node: Any = self.trace.nodes.get(msg["name"])
        if node is None:
            return
        parts = {name: node[name] for name in ("value", "mask", "scale", "fn")}
        if self._copies:
            node.update({name: _copied(part) for name, part in parts.items()})
        else:
            self._versions += [(tensor, tensor._version) for part in parts.values() for tensor in _tensors(part)]


def _tensors(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """The tensors that a distribution, or a transform, is made of."""
    if isinstance(value, Tensor):
        if not value.is_inference():
            yield value
    elif isinstance(value, (Distribution, Transform)) and depth < 8:
        for part in vars(value).values():
            yield from _tensors(part, depth + 1)
    elif isinstance(value, (list, tuple)) and depth < 8:
        for part in value:
            yield from _tensors(part, depth + 1)


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, (Distribution, Transform)):
        other: Any = copy.copy(value)
        attributes: Mapping[str, Any] = vars(value)
        vars(other).update({name: _copied(part) for name, part in attributes.items()})
        return other
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(_copied(part) for part in value)

    return value

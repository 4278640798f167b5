"""Is the density the same each time? Randomness inside a model is an error, and its site and line are named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pyro_osds.model.source import user_line

_DROPOUTS = {
    functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d,
    functional.alpha_dropout, functional.feature_alpha_dropout,
}  # fmt: skip
_RANDOM = _DROPOUTS | {
    torch.rand, torch.randn, torch.randint, torch.rand_like, torch.randn_like, torch.randint_like, torch.randperm,
    torch.normal, torch.bernoulli, torch.multinomial, torch.poisson,
    Tensor.normal_, Tensor.uniform_, Tensor.bernoulli, Tensor.bernoulli_, Tensor.multinomial, Tensor.random_,
    Tensor.exponential_, Tensor.cauchy_, Tensor.geometric_, Tensor.log_normal_,
}  # fmt: skip


def check_deterministic(terms: Callable[[Tensor], Mapping[str, Tensor]], z: Tensor) -> None:
    """Evaluate twice and compare, site by site.

    Arguments:
        terms: The log density of every site at one point.
        z: A few points, ``(B, D)``.

    Raises:
        ValueError: If a density changes between two evaluations at the same point, or a layer is in training mode.
    """
    for row in z:
        with _RandomOperations() as watched, torch.no_grad():
            first, second = terms(row), terms(row)
        if watched.training_layer:
            raise ValueError(
                f"The model runs batch_norm in training mode at {watched.training_layer}: it would change with every "
                "evaluation. Call .eval() on the module before OSDS runs it."
            )
        changed = [name for name in first if name not in second or not _same(first[name], second[name])]
        if changed:
            raise ValueError(
                f"The log density of site {changed[0]!r} changes between two evaluations at the same point, because "
                f"of {watched.describe()}. A posterior needs a density that is a function of its latents: "
                f"{watched.cure()}"
            )


def _same(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, rtol=1e-6, atol=0.0, equal_nan=True)


class _RandomOperations(TorchFunctionMode):
    """Notes the random operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, str]] = []
        self.training_layer = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _RANDOM:
            self.seen.append((func, user_line()))
        if func is functional.batch_norm and (kwargs or {}).get("training", args[5] if len(args) > 5 else False):
            self.training_layer = user_line()

        return func(*args, **(kwargs or {}))

    def describe(self) -> str:
        if not self.seen:
            return "random numbers from outside torch"
        func, line = self.seen[0]

        return f"{func.__name__} at {line}"

    def cure(self) -> str:
        if any(func in _DROPOUTS for func, _ in self.seen):
            return "call .eval() on the module, which turns dropout off."
        return "draw noise with pyro.sample, or pass it as an argument."

"""Is the density the same each time? Randomness inside a model is an error, and its site and line are named."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pyro_osds.model.foreign.state import State
from pyro_osds.model.pyro_internals import is_numerical
from pyro_osds.runtime.errors.lines import user_line
from pyro_osds.runtime.resume import seed_refusal, sets_seed
from pyro_osds.runtime.torch_internals import BatchNorm, NormLayer

# Runs after the second one, where a model changes what it can find again.
_MORE_RUNS = 4
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


def check_deterministic(terms: Callable[[Tensor], Mapping[str, Tensor]], z: Tensor, state: State | None = None) -> None:
    """Evaluate twice and compare, site by site.

    Arguments:
        terms: The log density of every site at one point.
        z: A few points, ``(B, D)``.
        state: What the model can change; each second evaluation finds it as the first one left it.

    Raises:
        ValueError: If a density changes between two evaluations at the same point.
    """
    for row, other in zip(z, z.roll(1, 0), strict=True):
        with torch.no_grad(), state.remembering() if state is not None else contextlib.nullcontext():
            _check_at(row, terms, state)
            if state is not None and state.changed():
                _check_after(row, other, terms, state)


def _check_after(row: Tensor, other: Tensor, terms: Callable[[Tensor], Mapping[str, Tensor]], state: State) -> None:
    """Refuse a model that keeps what its first run computed, and finds it again at another point."""
    try:
        state.put_back()
        fresh = terms(other)
        state.put_back()
        terms(row)
        changes = state.changed()
        changed = _different(fresh, terms(other))
        if not changed or not changes:
            return
        state.put_back()
        terms(row)
        found = state.culprits(lambda: changed[0] in _different(fresh, terms(other)), 1)
    except RuntimeError as error:
        if not is_numerical(error):
            raise
        return
    if found:
        raise ValueError(remembered(changed[0], found))


def _check_at(row: Tensor, terms: Callable[[Tensor], Mapping[str, Tensor]], state: State | None) -> None:
    kept: list[Mapping[str, Tensor]] = []
    try:
        with _RandomOperations() as watched:
            if sets_seed(lambda: kept.append(terms(row))):
                raise ValueError(seed_refusal("The model"))
            first, second = kept[0], terms(row)
            changes = state is not None and state.changed()
            # A counter, or a list that grows, may make a difference later.
            later = [terms(row) for _ in range(_MORE_RUNS)] if changes else []
        changed = [name for run in (second, *later) for name in _different(first, run)]
        if changed and state is not None:
            found = state.culprits(lambda: changed[0] in _different(first, terms(row)), 1 + len(later))
            if found:
                raise ValueError(remembered(changed[0], found))
    except RuntimeError as error:
        if not is_numerical(error):
            raise
        return
    if changed:
        raise ValueError(
            f"The log density of site {changed[0]!r} changes between two evaluations at the same point, because "
            f"of {watched.describe()}. A posterior needs a density that is a function of its latents: "
            f"{watched.cure()}"
        )


def remembered(site: str, names: list[str]) -> str:
    """The refusal of a model whose density depends on what an earlier run of it left behind.

    Arguments:
        site: The site whose density changes.
        names: What was left behind, in words.
    """
    cure = "make it anew at the start of each run, or pass what it should be as an argument."
    what, _, rest = names[0].partition(" '")
    if what in ("argument", "buffer", "parameter"):
        own = rest.split("'")[0]
        whole = own if what == "argument" else f"self.{own}"
        cure = f"work on a copy, such as {own} = {whole}.clone() at the start of the model."

    return (
        f"The log density of site {site!r} changes between two evaluations at the same point, because the model "
        f"changes {', '.join(names)} and finds it changed in its next run. A posterior needs a density that is a "
        f"function of its latents: {cure}"
    )


def _different(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    return [name for name in first if name not in second or not _same(first[name], second[name])]


class TrainingLayerError(ValueError):
    """A layer of the model learns from every evaluation."""


@contextlib.contextmanager
def no_training_layers() -> Iterator[None]:
    """Refuse layers that learn from what they see, before they see it.

    Raises:
        TrainingLayerError: If the model calls a batch normalisation in training mode.
    """

    def refuse(module: nn.Module, inputs: Any) -> None:
        if isinstance(module, NormLayer) and module.training and module.track_running_stats:
            kind = "batch_norm" if isinstance(module, BatchNorm) else "instance_norm"
            raise TrainingLayerError(
                f"The model runs {kind} in training mode at {user_line()}: it would change with every evaluation. "
                "Call .eval() on the module before OSDS runs it."
            )

    handle = nn.modules.module.register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


def _same(first: Tensor, second: Tensor) -> bool:
    # Threads may add up in another order, which changes the last digits of single precision.
    return torch.allclose(first, second, rtol=1e-6, atol=0.0, equal_nan=True)


class _RandomOperations(TorchFunctionMode):
    """Notes the random operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, str]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _RANDOM:
            self.seen.append((func, user_line()))

        return func(*args, **(kwargs or {}))

    def describe(self) -> str:
        if not self.seen:
            return "random numbers from outside torch, or of something that the model keeps from one run to the next"
        func, line = self.seen[0]

        return f"{func.__name__} at {line}"

    def cure(self) -> str:
        if any(func in _DROPOUTS for func, _ in self.seen):
            return "call .eval() on the module, which turns dropout off."
        return "draw noise with pyro.sample, or pass it as an argument."

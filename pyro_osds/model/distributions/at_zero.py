r"""Gradients where a parameter is zero: of a density that is a number there, and of one that is zero.

Zero inflation is often written as a rate times an indicator, ``Poisson(rate * z)``. Where *z* is 0 the log density,

.. math:: y \log \lambda - \lambda - \log y!, \qquad 0 \log 0 = 0,

is 0 for *y* = 0 and minus infinity otherwise. Its derivative by the rate is -1 in the first case; in the second it
counts for nothing, in a sum over *z* that other values of *z* make up. Torch's is 0 / 0 and infinite, and zero times
that, on the way back through ``rate * z``, is no number. With the functions below the terms at zero are constants. What
is infinite at zero stays so; only its derivative is left out. The same goes for roots: ``sqrt(rate * 0)`` is the same
for all rates.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Binomial, Categorical
from torch.overrides import TorchFunctionMode

from pyro_osds.model.distributions.stable import replaced


def _constant_at_zero(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function of one tensor, of which nothing is derived where that is zero."""

    def answer(y: Tensor) -> Tensor:
        zero = y == 0
        return torch.where(zero, function(y.detach()), function(torch.where(zero, 1.0, y)))

    return answer


def _xlogy(x: Any, y: Any) -> Tensor:
    if not _has_slope(y):
        return torch.xlogy(x, y)

    return _constant_at_zero(lambda value: torch.xlogy(x, value))(y)


def _pow(y: Any, power: Any) -> Tensor:
    if not _has_slope(y) or isinstance(power, Tensor) or not 0 < power < 1:
        return torch.pow(y, power)

    return _constant_at_zero(lambda value: value.pow(power))(y)


def _has_slope(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


_ANSWERS: dict[Any, Callable[..., Tensor]] = {
    torch.xlogy: _xlogy,
    torch.special.xlogy: _xlogy,
    Tensor.xlogy: _xlogy,
    torch.log: _constant_at_zero(torch.log),
    Tensor.log: _constant_at_zero(torch.log),
    torch.lgamma: _constant_at_zero(torch.lgamma),
    torch.special.gammaln: _constant_at_zero(torch.lgamma),
    Tensor.lgamma: _constant_at_zero(torch.lgamma),
    torch.sqrt: _constant_at_zero(torch.sqrt),
    Tensor.sqrt: _constant_at_zero(torch.sqrt),
    torch.pow: _pow,
    Tensor.pow: _pow,
    Tensor.__pow__: _pow,
}


class GradientsAtZero(TorchFunctionMode):
    """Logarithms, gamma functions and roots whose derivative at zero is left out, while a model runs.

    Example:
        >>> rate = torch.tensor(2.0, requires_grad=True)
        >>> with GradientsAtZero():
        ...     log_prob = torch.distributions.Poisson(rate * torch.tensor([0.0, 1.0])).log_prob(torch.tensor(0.0))
        >>> log_prob.tolist(), torch.autograd.grad(log_prob.sum(), rate)
        ([0.0, -2.0], (tensor(-1.),))
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Torch's answer, or one of the above where it takes plain arguments."""
        answer = _ANSWERS.get(func)
        if answer is None or kwargs or (len(args) == 1 and not _has_slope(args[0])):
            return func(*args, **(kwargs or {}))

        return answer(*args)


# ---- probabilities of exactly zero ----


def _bernoulli_never(fn: Any, value: Tensor) -> Tensor:
    return ((fn.probs == 0) & (value == 1)) | ((fn.probs == 1) & (value == 0))


def _binomial_never(fn: Any, value: Tensor) -> Tensor:
    return ((fn.probs == 0) & (value > 0)) | ((fn.probs == 1) & (value < fn.total_count))


def _categorical_never(fn: Any, value: Tensor) -> Tensor:
    index, probs = torch.broadcast_tensors(value.long().unsqueeze(-1), fn.probs[..., :1])[0][..., :1], fn.probs

    return probs.expand(*index.shape[:-1], probs.shape[-1]).gather(-1, index).squeeze(-1) == 0


_NEVER: dict[type, Callable[[Any, Tensor], Tensor]] = {
    Bernoulli: _bernoulli_never,
    Binomial: _binomial_never,
    Categorical: _categorical_never,
}


def is_sure(fn: Any) -> bool:
    """Whether a distribution without wrappers has probabilities of exactly zero or one, which torch rounds away.

    Example:
        >>> is_sure(Bernoulli(torch.tensor([0.5, 0.0]))), is_sure(Bernoulli(torch.tensor(0.5)))
        (True, False)
    """
    probs = fn.__dict__.get("probs") if isinstance(fn, tuple(_NEVER)) else None

    return probs is not None and bool(((probs == 0) | (probs == 1)).any())


@contextlib.contextmanager
def sure_densities() -> Iterator[None]:
    """Where a probability is exactly zero so is that of what it is of, until the distributions are put back.

    Torch moves probabilities by the last place away from zero: 1e-7 or 2e-16, which is no zero where nothing else is
    possible.

    Example:
        >>> with sure_densities():
        ...     Bernoulli(torch.tensor([0.0, 0.5])).log_prob(torch.tensor(1.0))
        tensor([   -inf, -0.6931])
    """

    def cut(log_prob: Callable[[Any, Tensor], Tensor], never: Callable[[Any, Tensor], Tensor]) -> Any:
        def answer(self: Any, value: Tensor) -> Tensor:
            if "probs" not in self.__dict__:
                return log_prob(self, value)
            return torch.where(never(self, value), -torch.inf, log_prob(self, value))

        return answer

    with replaced({kind: cut(kind.__dict__["log_prob"], never) for kind, never in _NEVER.items()}):
        yield

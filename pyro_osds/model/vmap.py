r"""What :func:`torch.func.vmap` and Pyro do not agree on, made to agree while the model runs.

The mode below answers a few torch functions in a way that works for a batch of runs, with the same result for a single
one:

* A matrix without a Cholesky factor, or a singular one, becomes nan. Otherwise one of them raises for the whole batch;
  as nan it only marks its own point as impossible.
* ``x[mask] = value`` becomes a ``where``: a batch has a mask of its own for each point (``buffers``).
* ``torch.tensor([a, b])`` of tensors becomes a ``stack``, which also keeps their gradients.
* ``x.data`` becomes ``x.detach()`` in a batch, which has no other; in a single run it is what it is.
* ``torch.equal`` is true where tensors are equal at all points; in a graph, where both came about in the same way.
* Checks of arguments, which would look at all points at once, pass.
* Values that are the same for all points, such as the indices of a plate, can be read as Python numbers.
* New tensors belong to the batch from the start, if asked for, and others from when a value of the batch is written
  into them: writing a batched value into an unbatched tensor fails.
* ``clamp_`` and ``log_ndtr``, which vmap does one point after the other, are made of what it does at once.
* A large triangular matrix that all points share is inverted once: solving for a batch would copy it for each point.
* A normal draw with a negative scale is not a number, where torch would end the run.
* Recurrent networks are made of matrix products, where their weights or inputs are of the batch.
* Binary cross entropy on logits is written with ``logsigmoid``: the same function with a third of the operations.

Pyro's logarithm with a bounded gradient is a function that vmap refuses; :func:`vmappable_pyro` puts another in its
place, and the old one back.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pyro_osds.model.distributions.latents import quiet_draws
from pyro_osds.model.distributions.missing import nan_is_missing
from pyro_osds.model.distributions.outside import cut_densities
from pyro_osds.model.distributions.stable import stable_densities
from pyro_osds.model.foreign import buffers, cells
from pyro_osds.model.foreign.diffeq import solvers_in_batches
from pyro_osds.model.foreign.factorisations import FACTORISATIONS, Factorisations
from pyro_osds.model.foreign.functions import functions_in_batches
from pyro_osds.model.pyro_internals import safe_log_replaced
from pyro_osds.runtime.recording.recorder import are_equal
from pyro_osds.runtime.torch_internals import ARGUMENT_CHECKS, is_batchedtensor, whole_batch

_FACTORIES = {
    torch.zeros, torch.ones, torch.full, torch.empty, torch.eye, torch.tensor,
    torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like, torch.clone,
    Tensor.new_zeros, Tensor.new_ones, Tensor.new_full, Tensor.new_empty, Tensor.new_tensor, Tensor.clone,
}  # fmt: skip
_READS = {
    Tensor.item, Tensor.tolist, Tensor.__iter__, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__,
}  # fmt: skip
# Rows from which on a copy of a matrix for each point costs more than everything else.
_LARGE_MATRIX = 128
# Said of a gradient that is lost on the way through Python, which the check of gradients says better.
_TO_SCALAR = "Converting a tensor with requires_grad=True to a scalar"
_NO_RULE = "There is a performance drop because we have not yet implemented the batching rule"


class PointsDisagree(RuntimeError):
    """Python asked for one answer, and the points of a batch give several."""


class VmapCompat(TorchFunctionMode):
    """Torch as a batch of model runs needs it.

    Arguments:
        batched: If given, new tensors get the batch dimensions of this one.
    """

    def __init__(self, batched: Tensor | None = None) -> None:
        super().__init__()
        self.factorisations = Factorisations()
        self._zero = None if batched is None else torch.zeros_like(batched).sum()
        self._joined = None if self._zero is None else buffers.Joined(self._zero)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READS and not is_batchedtensor(args[0]):
            # The same for all points, so Python may know it, even while a graph is in the making.
            with disable_proxy_modes_tracing():
                return func(*args, **(kwargs or {}))
        if func in _READS and self.factorisations.knows(args[0]):
            with disable_proxy_modes_tracing():
                return func(self.factorisations.taken_as_done(args[0]))
        if self._joined is not None:
            args, kwargs = self._joined.replaced(func, args), self._joined.named(kwargs or {})
        answer = _ANSWERS.get(func) or func
        result = answer(*args, **(kwargs or {}))
        if func in FACTORISATIONS or self.factorisations:
            self.factorisations.follow(func, args, kwargs or {}, result)
        is_own = self._zero is not None and isinstance(result, Tensor) and func is not Tensor.__deepcopy__
        if not is_own or (args and result is args[0]):
            return result
        # Whole numbers may be indices, which are better off as they are, unless somebody is about to fill them in.
        if is_batchedtensor(result) or not (result.is_floating_point() or func in _FACTORIES):
            return result

        assert self._zero is not None
        return result | self._zero.bool() if result.dtype == torch.bool else result + self._zero.to(result.dtype)


@contextlib.contextmanager
def vmappable_pyro() -> Iterator[None]:
    """Pyro without validation and with operations that vmap can run; everything is put back, whatever happens."""
    with (
        safe_log_replaced(_SafeLog),
        pyro.validation_enabled(False),
        stable_densities(),
        cut_densities(),
        nan_is_missing(),
        functions_in_batches(),
        solvers_in_batches(),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message=_NO_RULE)
        warnings.filterwarnings("ignore", message=_TO_SCALAR)
        quiet_draws()
        yield


class _SafeLog:
    """A logarithm whose gradient is ``1 / max(x, eps)``."""

    @staticmethod
    def apply(x: Tensor) -> Tensor:
        fixed = x.detach()
        slope = fixed.clamp(min=torch.finfo(x.dtype).eps).reciprocal()

        # The last term is zero and carries the gradient.
        return fixed.log() + (x - fixed) * slope


# ---- answers ----


def _cholesky(*args: Any, **kwargs: Any) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(*args, **kwargs)

    return _nan_where(info != 0, factor)


def _cholesky_old(matrix: Tensor, upper: bool = False) -> Tensor:
    return _cholesky(matrix, upper=upper)


def _inv(*args: Any, **kwargs: Any) -> Tensor:
    inverse, info = torch.linalg.inv_ex(*args, **kwargs)

    return _nan_where(info != 0, inverse)


def _inverse_old(*args: Any, **kwargs: Any) -> Tensor:
    # Its argument has another name.
    return _inv(*args, *kwargs.values())


def _solve(*args: Any, **kwargs: Any) -> Tensor:
    solution, info = torch.linalg.solve_ex(*args, **kwargs)

    return _nan_where(info != 0, solution)


def _solve_triangular(matrix: Tensor, values: Tensor, *, upper: bool, **kwargs: Any) -> Tensor:
    if kwargs.get("out") is not None or not kwargs.get("left", True) or not _is_shared(matrix, values):
        return torch.linalg.solve_triangular(matrix, values, upper=upper, **kwargs)
    inverse = _triangular_inverse(matrix, upper, kwargs.get("unitriangular", False))

    return (values.mT @ inverse.mT).mT


def _cholesky_solve(values: Tensor, factor: Tensor, upper: bool = False, **kwargs: Any) -> Tensor:
    if kwargs.get("out") is not None or not _is_shared(factor, values):
        return torch.cholesky_solve(values, factor, upper, **kwargs)
    inverse = _triangular_inverse(factor, upper)

    return (values.mT @ (inverse @ inverse.mT if upper else inverse.mT @ inverse)).mT


def _is_shared(matrix: Tensor, values: Tensor) -> bool:
    """Whether a large matrix is the same for all points, and for all rows of a point, and the values are not."""
    size, dims = matrix.shape[-1], matrix.dim()

    return (
        size >= _LARGE_MATRIX
        and matrix.numel() == size**2
        and dims <= values.dim()
        and is_batchedtensor(values)
        and not is_batchedtensor(matrix)
    )


def _triangular_inverse(matrix: Tensor, upper: bool, unitriangular: bool = False) -> Tensor:
    """The inverse of one matrix, in double precision and rounded: as exact as solving is."""
    size = matrix.shape[-1]
    double = matrix.reshape(size, size).double()
    eye = torch.eye(size, dtype=double.dtype, device=double.device)
    inverse = torch.linalg.solve_triangular(double, eye, upper=upper, unitriangular=unitriangular)

    return inverse.to(matrix.dtype)


def _nan_where(failed: Tensor, result: Tensor) -> Tensor:
    failed = failed.reshape(failed.shape + (1,) * (result.dim() - failed.dim()))

    return torch.where(failed, torch.nan, result)


def _tensor(data: Any, **kwargs: Any) -> Tensor:
    if not _holds_tensors(data):
        return torch.tensor(data, **kwargs)
    options = {name: kwargs[name] for name in ("dtype", "device") if kwargs.get(name) is not None}
    stacked = _stack(data)

    return stacked.to(**options) if options else stacked


def _as_tensor(data: Any, **kwargs: Any) -> Tensor:
    return _tensor(data, **kwargs) if _holds_tensors(data) else torch.as_tensor(data, **kwargs)


def _new_tensor(like: Tensor, data: Any, **kwargs: Any) -> Tensor:
    if not _holds_tensors(data):
        return like.new_tensor(data, **kwargs)
    return _tensor(data, **{"dtype": like.dtype, "device": like.device, **kwargs})


def _holds_tensors(data: Any) -> bool:
    return isinstance(data, (list, tuple)) and any(isinstance(item, Tensor) or _holds_tensors(item) for item in data)


def _stack(data: Any) -> Tensor:
    if isinstance(data, (list, tuple)):
        return torch.stack(torch.broadcast_tensors(*[_stack(item) for item in data]))
    leaf = torch.as_tensor(data)

    # Torch takes a tensor with one entry for a number.
    return leaf.reshape(()) if leaf.numel() == 1 else leaf


def _bce_with_logits(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, *args: Any, reduction: str = "mean", **kwargs: Any
) -> Tensor:
    plain = weight is None and not args and kwargs.get("pos_weight") is None and reduction == "none"
    plain = plain and logits.shape == target.shape
    if not plain:
        return functional.binary_cross_entropy_with_logits(logits, target, weight, *args, reduction=reduction, **kwargs)

    return (1.0 - target) * logits - functional.logsigmoid(logits)


def _equal(first: Tensor, second: Tensor) -> bool:
    """Whether tensors are the same at every point of a batch; where they are at some only, there is no answer."""
    if not (is_batchedtensor(first) or is_batchedtensor(second)):
        return torch.equal(first, second)
    if first.shape != second.shape:
        return False
    (one, its_dim), (other, other_dim) = whole_batch(first), whole_batch(second)
    if its_dim != other_dim or not are_equal(one, other):
        raise PointsDisagree("torch.equal compares values that depend on a latent")

    return True


def _allclose(first: Tensor, second: Tensor, *args: Any, **kwargs: Any) -> bool:
    if not (is_batchedtensor(first) or is_batchedtensor(second)):
        return torch.allclose(first, second, *args, **kwargs)
    # Closer than equal nothing is.
    if first.shape != second.shape or not _equal(first, second):
        raise PointsDisagree("torch.allclose compares values that depend on a latent")

    return True


def _deepcopy(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    if is_batchedtensor(tensor):
        return memo.setdefault(id(tensor), tensor.clone())
    if type(tensor) is not Tensor or tensor.requires_grad or vars(tensor):
        return tensor.__deepcopy__(memo)

    # Torch copies the memory behind the tensor, which no graph could follow.
    return memo.setdefault(id(tensor), tensor.clone())


def _data(tensor: Tensor) -> Tensor:
    return tensor.detach() if is_batchedtensor(tensor) else tensor.data


def _is_all_true(_: Tensor) -> bool:
    return True


def _normal(mean: Any, std: Any = 1.0, *args: Any, **kwargs: Any) -> Tensor:
    """Draws; not a number where the scale is negative, which has no density either."""
    if not isinstance(std, Tensor) or not is_plain(std) or not (std < 0).any():
        return torch.normal(mean, std, *args, **kwargs)

    return torch.normal(mean, std.abs(), *args, **kwargs).masked_fill(std < 0, torch.nan)


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is the same for all points, so that Python may look at it."""
    return not is_batchedtensor(tensor)


def _log_ndtr(x: Tensor) -> Tensor:
    """Log of the normal distribution function, by the complement in the middle and scaled in the lower tail."""
    lower = torch.special.erfcx(-x.clamp(max=-1.0) / math.sqrt(2)).log() - math.log(2) - 0.5 * x.square()
    upper = torch.log1p(-0.5 * torch.special.erfc(x.clamp(min=-1.0) / math.sqrt(2)))

    # Torch changes over at -1, too: both are exact there.
    return torch.where(x < -1.0, lower, upper)


_ANSWERS: dict[Any, Callable[..., Any]] = {
    torch.linalg.cholesky: _cholesky,
    torch.cholesky: _cholesky_old,
    Tensor.cholesky: _cholesky_old,
    torch.linalg.inv: _inv,
    torch.inverse: _inverse_old,
    Tensor.inverse: _inverse_old,
    torch.linalg.solve: _solve,
    torch.linalg.solve_triangular: _solve_triangular,
    torch.cholesky_solve: _cholesky_solve,
    Tensor.cholesky_solve: _cholesky_solve,
    Tensor.data.__get__: _data,  # type: ignore[attr-defined]
    torch.tensor: _tensor,
    torch.as_tensor: _as_tensor,
    Tensor.new_tensor: _new_tensor,
    Tensor.__deepcopy__: _deepcopy,
    torch.equal: _equal,
    Tensor.equal: _equal,
    torch.allclose: _allclose,
    Tensor.allclose: _allclose,
    torch.special.log_ndtr: _log_ndtr,
    torch.normal: _normal,
    **dict.fromkeys(ARGUMENT_CHECKS, _is_all_true),
    **cells.ANSWERS,
    **buffers.ANSWERS,
    functional.binary_cross_entropy_with_logits: _bce_with_logits,
}

r"""One fit on several processes that go through it together: each evaluates its share of every batch.

All processes draw the same random numbers and take the same decisions; what costs time, densities and networks at the
rows of a batch, is shared out, and everybody gets all results. A batch on K processes is then the same batch as on one,

.. math:: \nabla_\theta L = \sum_{k=1}^{K} \sum_{i \in I_k} c_i\, \nabla_\theta f_i(\theta),

with coefficients :math:`c_i` that may depend on all rows: rows of other processes come in as constants, own ones carry
gradients, and the sum over processes is taken once, when there are gradients.

Nothing of it happens outside :func:`together`, which a module finds in a context variable, as it finds the progress
bar.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor

Made = TypeVar("Made")

_is_shared: ContextVar[bool] = ContextVar("is_shared", default=False)


@contextmanager
def together(is_shared: bool) -> Iterator[None]:
    """Share out the rows of batches among all processes of the group; they go on with the first one's random numbers.

    Arguments:
        is_shared: If not, nothing happens.

    Raises:
        RuntimeError: If there is no process group.

    Example:
        >>> with together(False):
        ...     is_together()
        False
    """
    if not is_shared or _is_shared.get():
        yield
        return
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise RuntimeError(
            "distributed=True needs a process group, and there is none: start the script with torchrun, and call "
            "torch.distributed.init_process_group() in it first; see docs/many.md."
        )
    token = _is_shared.set(True)
    try:
        _share_random_state()
        yield
    finally:
        _is_shared.reset(token)


def is_together() -> bool:
    """Whether processes share out rows now."""
    return _is_shared.get()


def is_silent() -> bool:
    """Whether another process shows the bar and warns."""
    return _is_shared.get() and torch.distributed.get_rank() > 0


def from_first(
    make: Callable[[], Made], pack: Callable[[Made], Any], unpack: Callable[[Any], Made], device: Any
) -> Made:
    """What the first process makes, by itself, and the others receive.

    Arguments:
        make: Makes it.
        pack: What to send of it.
        unpack: Makes the same of what was received.
        device: Where tensors go that were received.

    Raises:
        RuntimeError: In the other processes, if the first one failed; there, whatever went wrong.
    """
    if not _is_shared.get():
        return make()
    if torch.distributed.get_rank() == 0:
        token = _is_shared.set(False)
        try:
            made = make()
        except BaseException as error:
            _send((False, f"{type(error).__name__}: {error}"))
            raise
        finally:
            _is_shared.reset(token)
        buffer = io.BytesIO()
        torch.save(pack(made), buffer)
        _send((True, buffer.getvalue()))
    else:
        is_made, content = _send(None)
        if not is_made:
            raise RuntimeError(f"The first process failed: {content}")
        made = unpack(torch.load(io.BytesIO(content), map_location=device, weights_only=False))
    _share_random_state()

    return made


def by_rows(function: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor) -> tuple[Tensor, ...]:
    """What a function makes of all rows, of which this process evaluates its own.

    Gradients flow through own rows only, and count as many times as there are processes: the mean over processes that
    :func:`mean_gradients` takes is then right for results of this function and for what all processes did in full.

    Arguments:
        function: Maps rows ``(b, D)`` to tensors ``(b, *shape)``, each row by itself; not to be nested.
        x: All rows, ``(B, D)``, the same in all processes.

    Returns:
        Tensors ``(B, *shape)``.

    Example:
        >>> by_rows(lambda x: (x.sum(-1),), torch.ones(3, 2))
        (tensor([2., 2., 2.]),)
    """
    if not _is_shared.get() or len(x) < torch.distributed.get_world_size():
        return function(x)
    rank = torch.distributed.get_rank()
    counts = [len(part) for part in x.tensor_split(torch.distributed.get_world_size())]
    start, stop = sum(counts[:rank]), sum(counts[: rank + 1])
    own = function(x[start:stop])
    if not own:
        return own

    return tuple(_with_own(whole, part, start, stop) for whole, part in zip(_gather(own, counts), own, strict=True))


def mean_gradients(gradients: Sequence[Tensor]) -> Sequence[Tensor]:
    """Gradients averaged over processes, all in one message.

    Arguments:
        gradients: One for each parameter, any shapes.

    Example:
        >>> mean_gradients([torch.ones(1)])
        [tensor([1.])]
    """
    if not _is_shared.get():
        return gradients
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    parts = flat.split([gradient.numel() for gradient in gradients])

    return [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]


def _with_own(whole: Tensor, own: Tensor, start: int, stop: int) -> Tensor:
    """All rows, with the own ones as they were computed, gradients and all."""
    if not own.requires_grad:
        return whole
    num_processes = torch.distributed.get_world_size()
    own.register_hook(lambda gradient: num_processes * gradient)

    return torch.cat([whole[:start], own, whole[stop:]])


def _gather(own: tuple[Tensor, ...], counts: list[int]) -> list[Tensor]:
    """The rows of all processes, in one message; shares are filled up to the same length for it."""
    parts = [part.detach().reshape(len(part), -1) for part in own]
    rows = torch.cat(parts, -1)
    filled = torch.cat([rows, rows.new_zeros(max(counts) - len(rows), rows.shape[1])])
    received = [torch.empty_like(filled) for _ in counts]
    torch.distributed.all_gather(received, filled)
    whole = torch.cat([share[:count] for share, count in zip(received, counts, strict=True)])
    columns = whole.split([part.shape[1] for part in parts], -1)

    return [
        column.reshape(len(whole), *part.shape[1:]).to(part.dtype) for column, part in zip(columns, own, strict=True)
    ]


def _send(content: Any) -> Any:
    """What the first process has, in all of them."""
    box = [content]
    torch.distributed.broadcast_object_list(box, src=0)

    return box[0]


def _share_random_state() -> None:
    """The first process's random numbers, on the CPU and on the present GPU, for all."""
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    cpu, gpu = _send((torch.get_rng_state(), torch.cuda.get_rng_state() if on_gpu else None))
    torch.set_rng_state(cpu)
    if on_gpu and gpu is not None:
        torch.cuda.set_rng_state(gpu)

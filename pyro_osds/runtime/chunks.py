"""Many rows computed some at a time: the working memory is that of a chunk, however many rows there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor


def chunk_sizes(total: int, size: int) -> Iterator[int]:
    """Sizes of consecutive chunks that add up to a total.

    Example:
        >>> list(chunk_sizes(10, 4))
        [4, 4, 2]
    """
    while total > 0:
        yield min(total, size)
        total -= size


def stack_chunks(chunks: Iterable[tuple[Tensor, ...]], total: int) -> tuple[Tensor, ...]:
    """Chunks of rows below each other, each put in its place as soon as it is there.

    Joined at the end, the chunks and the whole would be in memory at once, twice as much.

    Arguments:
        chunks: Tuples of tensors with equally many rows, ``(b, *shape)`` each; computed one after the other.
        total: How many rows there will be.

    Returns:
        A tensor ``(total, *shape)`` for each place in the tuples, without gradients.

    Example:
        >>> import torch
        >>> stack_chunks(((torch.full((size,), size),) for size in chunk_sizes(5, 3)), total=5)
        (tensor([3, 3, 3, 2, 2]),)
    """
    columns: list[Tensor] = []
    done = 0
    for chunk in chunks:
        columns = columns or [part.new_empty((total, *part.shape[1:])) for part in chunk]
        rows = len(chunk[0]) if chunk else 0
        for column, part in zip(columns, chunk, strict=True):
            column[done : done + rows] = part.detach()
        done += rows

    return tuple(columns)


def repeated(values: Any, count: int) -> Any:
    """Tensors of one row, in tuples or mappings, as if each were that of many rows.

    Arguments:
        values: Tensors ``(1, *shape)``, or tuples or mappings of them.
        count: How many rows.

    Example:
        >>> import torch
        >>> repeated({"x": torch.ones(1, 2)}, 3)["x"].shape
        torch.Size([3, 2])
    """
    if isinstance(values, Mapping):
        return {name: repeated(value, count) for name, value in values.items()}
    if isinstance(values, Tensor):
        return values.expand(count, *values.shape[1:])

    return tuple(repeated(value, count) for value in values)

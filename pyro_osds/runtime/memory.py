"""Memory: freed blocks are kept by the process instead of being given back, and draws have to fit into it.

A recorded density makes and frees the same tensors of a megabyte or two thousands of times. The C library's allocator
(glibc) returns blocks of that size to the operating system, and every new one costs a page fault for each 4 kB of it:
more than the arithmetic in it. It learns from the largest block that it has seen freed, up to 32 MB, so one such block,
which nobody ever writes to, is allocated and freed. On a logistic regression of 1,000 rows in double precision that
took 512 scores from 36 ms to 14 ms. Other allocators do not care.
"""

from __future__ import annotations

import functools
import os

import torch

# A little below what glibc takes for a lesson (DEFAULT_MMAP_THRESHOLD_MAX, 32 MB).
_BYTES = 30 * 2**20
_DOUBLE = 8  # bytes of a number


@functools.cache
def keep_freed_memory() -> None:
    """Teach the allocator, once in a process."""
    torch.empty(_BYTES, dtype=torch.uint8, device="cpu")


def check_room(what: str, num_draws: int, dim: int, cure: str) -> None:
    """Refuse draws that fit into no memory of this machine, before anything long is done.

    Arguments:
        what: What was asked for, as the user calls it.
        num_draws: Draws.
        dim: Numbers of each draw.
        cure: What to do instead.

    Raises:
        ValueError: If one copy of them takes more than there is, nothing else counted.

    Example:
        >>> check_room("num_draws=10", 10, 3, "")
        >>> check_room("num_draws=1000000000000", 10**12, 8, "Use draw_batches.")
        Traceback (most recent call last):
        ValueError: num_draws=1000000000000 asks for 64,000 GB of draws, ... Use draw_batches.
    """
    needed, there = num_draws * max(dim, 1) * _DOUBLE, _memory()
    if needed > there:
        raise ValueError(
            f"{what} asks for {needed / 1e9:,.0f} GB of draws, and the machine has {there / 1e9:,.0f} GB of memory. "
            f"{cure}"
        )


@functools.cache
def _memory() -> float:
    """Bytes of memory that the machine has; infinity where it does not tell."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return float("inf")

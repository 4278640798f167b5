"""Freed memory is kept by the process instead of being given back and asked for again.

A recorded density makes and frees the same tensors of a megabyte or two thousands of times. The C library's allocator
(glibc) returns blocks of that size to the operating system, and every new one costs a page fault for each 4 kB of it:
more than the arithmetic in it. It learns from the largest block that it has seen freed, up to 32 MB, so one such block,
which nobody ever writes to, is allocated and freed. On a logistic regression of 1,000 rows in double precision that
took 512 scores from 36 ms to 14 ms. Other allocators do not care.
"""

from __future__ import annotations

import functools

import torch

# A little below what glibc takes for a lesson (DEFAULT_MMAP_THRESHOLD_MAX, 32 MB).
_BYTES = 30 * 2**20


@functools.cache
def keep_freed_memory() -> None:
    """Teach the allocator, once in a process."""
    torch.empty(_BYTES, dtype=torch.uint8, device="cpu")

"""Do two backends agree? Points to ask at, and how near their densities and gradients have to be."""

from __future__ import annotations

import torch
from torch import Tensor


def check_points(example: Tensor) -> Tensor:
    """Eight points at which backends are compared: near the example, and further out on both sides, ``(8, D)``."""
    with torch.random.fork_rng(devices=[]):
        noise = torch.randn(5, len(example), dtype=example.dtype, device="cpu").to(example.device)
    near = [example, example + 0.1 * noise[0], example + 0.5 * noise[1], 0.5 * noise[2]]

    return torch.stack([*near, noise[3], -noise[3], 2.0 * noise[4], -2.0 * noise[4]])


def agree(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], is_double: bool = True) -> bool:
    """Whether values and scores are equal up to rounding; where single runs are not finite, others must not be."""
    got, expected = got[: len(expected)], expected[: len(got)]
    usable = torch.stack([value.isfinite() for value in expected[:2]]).all(0)
    if not torch.equal(torch.stack([value.isfinite() for value in got[:2]]).all(0), usable):
        return False
    # Half of the digits in double precision, and all but the last three in single: terms may cancel.
    rounding = 1e-8 if is_double else 1e-4

    return all(_close(a[usable], b[usable], rounding) for a, b in zip(got, expected, strict=True))


def _close(got: Tensor, expected: Tensor, rounding: float) -> bool:
    finite = expected.isfinite()
    size = expected[finite].abs().amax().clamp(min=1.0).item() if finite.any() else 1.0

    return torch.allclose(got[finite], expected[finite], rtol=10 * rounding, atol=rounding * size)

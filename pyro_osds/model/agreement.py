"""Do two backends agree? Points to ask at, and how near their densities and gradients have to be."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_osds.stats.thresholds import MAX_SOLVER_DEPTH, MAX_SOLVER_DIFFERENCE, MAX_SOLVER_RATIO, MAX_SOLVER_SLOPE


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


def agree_within_tolerances(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    """Whether values and scores are equal but for what a solver's tolerances leave open, and what does no harm.

    Where single runs are not finite others may be: a solver of one point gives up sooner than one of a batch.

    Arguments:
        got: Log priors and log likelihoods ``(B,)``, and their scores ``(B, D)`` or none.
        expected: The same by single runs.

    Example:
        >>> one, other = torch.tensor([-3.0, torch.nan]), torch.tensor([-3.0001, 1.0])
        >>> agree_within_tolerances((other, one[:1].expand(2)), (one, one[:1].expand(2)))
        True
    """
    got, expected = got[: len(expected)], expected[: len(got)]
    usable = torch.stack([value.isfinite() for value in expected[:2]]).all(0)
    if not usable.any():
        return False
    total = (expected[0] + expected[1])[usable]
    # Nats below the best of these points; there, a share of them is nothing to a posterior.
    depth = total.max() - total
    pairs = [(a[usable], b[usable]) for a, b in zip(got, expected, strict=True)]
    values = all(_is_harmless(a, b, MAX_SOLVER_DIFFERENCE + MAX_SOLVER_DEPTH * depth) for a, b in pairs[:2])

    return values and all(_is_harmless(a, b, MAX_SOLVER_SLOPE) for a, b in pairs[2:])


def _is_harmless(got: Tensor, expected: Tensor, most: float | Tensor) -> bool:
    finite = expected.isfinite()
    # In units of the score of the whole point: of its coordinates one may be near zero.
    size = expected.abs().where(finite, 0.0) if expected.dim() == 1 else expected.abs().where(finite, 0.0).amax(1, True)
    relative = MAX_SOLVER_RATIO if expected.dim() == 1 else MAX_SOLVER_SLOPE
    allowed = (most + relative * size).expand_as(expected)

    return bool(((got - expected).abs()[finite] <= allowed[finite]).all())


def _close(got: Tensor, expected: Tensor, rounding: float) -> bool:
    finite = expected.isfinite()
    size = expected[finite].abs().amax().clamp(min=1.0).item() if finite.any() else 1.0

    return torch.allclose(got[finite], expected[finite], rtol=10 * rounding, atol=rounding * size)

"""Numbers that look random and depend on nothing but a point: all that is computed for a draw sees the same ones."""

from __future__ import annotations

import torch
from torch import Tensor

# Constants of the splitmix64 generator, as signed 64-bit integers.
_GOLDEN, _MIX_1, _MIX_2 = -7046029254386353131, -4658895280553007687, -7723592293110705685


def hashed_keys(u: Tensor, count: int) -> Tensor:
    """Keys of 64 bits, made of the bits of each point, ``(B, D) -> (B, count)``.

    Arguments:
        u: Points, ``(B, D)``.
        count: Keys of each point.

    Example:
        >>> keys = hashed_keys(torch.tensor([[1.0, 2.0], [1.0, 2.0], [2.0, 1.0]]), 3)
        >>> (keys[0] == keys[1]).all().item(), (keys[0] == keys[2]).any().item()
        (True, False)
    """
    bits = u.double().view(torch.int64)
    odd = 2 * torch.arange(bits.shape[1], device=u.device) + 1
    key = (bits ^ (bits >> 29)).mul(odd * _MIX_1).sum(-1, keepdim=True)
    key = key + _GOLDEN * torch.arange(1, count + 1, device=u.device)
    # The low bits after a shift to the right with sign are as good as those without.
    key = (key ^ (key >> 30)) * _MIX_1
    key = (key ^ (key >> 27)) * _MIX_2

    return key ^ (key >> 31)


def hashed_normals(u: Tensor, count: int) -> Tensor:
    """Standard normal numbers made of the bits of each point, ``(B, D) -> (B, count)``.

    Arguments:
        u: Points, ``(B, D)``.
        count: Numbers of each point.

    Example:
        >>> numbers = hashed_normals(torch.tensor([[1.0, 2.0], [1.0, 2.0]]), 2)
        >>> torch.equal(numbers[0], numbers[1]), numbers.dtype
        (True, torch.float64)
    """
    # The low 53 bits: the shift of the sign leaves the highest one zero in every key.
    share = ((hashed_keys(u, count) & (2**53 - 1)).double() + 0.5) * 2.0**-53

    return torch.special.ndtri(share.clamp(2.0**-54, 1.0 - 2.0**-53))

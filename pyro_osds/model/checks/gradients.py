r"""Is the gradient that of the density? Values that go through Python, ``x.item()``, ``math.exp(x)``, lose it.

.. math:: \nabla f(z)^\top v \approx \frac{f(z + h v) - f(z - h v)}{2 h}
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_osds.model.sites import LatentSite
from pyro_osds.runtime.errors.lines import is_ours, user_line
from pyro_osds.runtime.warnings import ModelWarning, warn
from pyro_osds.target.gradient import differing

_LOSES = {
    Tensor.item: "item", Tensor.__float__: "float", Tensor.tolist: "tolist", Tensor.numpy: "numpy",
    Tensor.__array__: "numpy", Tensor.detach: "detach", Tensor.data.__get__: "data",  # type: ignore[attr-defined]
    Tensor.__int__: "int",
}  # fmt: skip


def check_gradients(
    scored: Callable[[Tensor], tuple[Tensor, ...]],
    sites: Sequence[LatentSite],
    z: Tensor,
) -> set[str]:
    """Warn of a gradient that is not that of the log density; held against differences, at a few points, site by site.

    Arguments:
        scored: Maps points ``(B, D)`` to log priors and log likelihoods ``(B,)`` and their scores ``(B, D)``, in double
            precision.
        sites: The latents.
        z: A few points, ``(B, D)``.

    Returns:
        The latents whose gradient it is not.

    Warns:
        ModelWarning: If the gradient of a latent is missing or wrong at most of the points that tell.
    """
    with _Losses() as losses:
        log_prior, log_likelihood, *scores = scored(z)
    score = scores[0] + scores[1]
    usable = (log_prior + log_likelihood).isfinite() & score.isfinite().all(-1)
    z, score = z[usable], score[usable]
    if not len(z):
        return set()
    whole = LatentSite("", 0, z.shape[1], z.shape[1:], z.shape[1:], z.dtype)
    if not _is_wrong(scored, z, score, whole):
        return set()
    wrong = [site.name for site in sites if _is_wrong(scored, z, score, site)]
    if wrong:
        how = f" at {losses.seen[0][1]} ({losses.seen[0][0]})" if losses.seen else ""
        warn(
            f"The gradient of the log density with respect to site {wrong[0]!r} is not that of its values: the latent "
            f"leaves torch on its way{how}. Training relies on it, so it may take long and end unreliable. Compute "
            "with torch's functions instead, such as torch.exp(x) for math.exp(x) and x for x.item(), without "
            ".detach() and torch.no_grad(); a function of another package needs a torch.autograd.Function with its "
            "gradient.",
            ModelWarning,
        )

    return set(wrong)


def num_lost(densities: Sequence[Tensor]) -> int:
    """At how many of a few points the gradient is no number where the log density is one.

    Arguments:
        densities: As for :func:`lost_gradients`.
    """
    if len(densities) < 4:
        return 0
    log_prior, log_likelihood, *scores = densities

    return int(((log_prior + log_likelihood).isfinite() & ~(scores[0] + scores[1]).isfinite().all(-1)).sum())


def lost_gradients(densities: Sequence[Tensor], sites: Sequence[LatentSite]) -> list[str]:
    """Latents in whose direction the gradient is nan wherever the log density is a number; none if nothing tells.

    Arguments:
        densities: Log priors, log likelihoods, and the scores of both, at a few points.
        sites: The latents.

    Example:
        >>> z = torch.ones(2, 1)
        >>> site = LatentSite("x", 0, 1, torch.Size([1]), torch.Size([1]), torch.float32)
        >>> lost_gradients((z[:, 0], z[:, 0], z, torch.nan * z), [site])
        ['x']
    """
    if len(densities) < 4:
        return []
    log_prior, log_likelihood, *scores = densities
    usable = (log_prior + log_likelihood).isfinite()
    lost = (scores[0] + scores[1])[usable].isnan()
    if not usable.any() or not lost.any(-1).all():
        return []

    return [site.name for site in sites if lost[:, site.start : site.stop].any()]


def refuse_lost(names: Sequence[str]) -> None:
    """Refuse a gradient of nan.

    Arguments:
        names: What :func:`lost_gradients` found.

    Raises:
        ValueError: If that is anything.
    """
    if names:
        raise ValueError(
            f"The gradient of the log density with respect to site {names[0]!r} is nan where the log density is a "
            "number. A nan is computed and then left out, as by torch.nansum(...) or torch.where(y.isnan(), 0, ...): "
            "its value is gone, its gradient is not. Leave it out before, y[~y.isnan()], or put a number in its place. "
            "Or something has an infinite slope, times zero, such as a division by zero that torch.where leaves out: "
            "put a one where the zero is before it, x / torch.where(z == 0, 1.0, z)."
        )


def _is_wrong(scored: Callable[[Tensor], tuple[Tensor, ...]], z: Tensor, score: Tensor, site: LatentSite) -> bool:
    """Whether slopes along one direction in a site's coordinates are others than the gradient says."""
    way = torch.zeros_like(z)
    # Fixed numbers: nothing here may use up random ones.
    size = site.stop - site.start
    way[:, site.start : site.stop] = torch.cos(torch.arange(1.0, size + 1, dtype=z.dtype, device=z.device))
    way = way / way.norm(dim=-1, keepdim=True)

    def log_prob(points: Tensor) -> Tensor:
        log_prior, log_likelihood, *_ = scored(points)
        return log_prior + log_likelihood

    tells, wrong, _ = differing(log_prob, z, way, (score * way).sum(-1))

    return bool(tells.any()) and bool(2 * wrong.sum() > tells.sum())


class _Losses(TorchFunctionMode):
    """Notes where a tensor with a gradient leaves it behind."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str]] = []

    def __torch_function__(self, func: Any, types: Iterable[Any], args: Any = (), kwargs: Any = None) -> Any:
        if func in _LOSES and not self.seen and args and args[0].requires_grad and not is_ours():
            self.seen.append((_LOSES[func], user_line()))

        return func(*args, **(kwargs or {}))

"""Which latents the observations of a model depend on, read off the gradients of one run at a few points."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from pyro_osds.model.pyro_internals import is_numerical
from pyro_osds.model.run import ModelRun
from pyro_osds.model.sites import LatentSite


def reached(
    run: Callable[[Tensor], ModelRun], sites: Sequence[LatentSite], discrete: Sequence[str], rows: Iterable[Tensor]
) -> set[str]:
    """Latents that an observation, or a factor, depends on, by way of other latents or not.

    Arguments:
        run: Runs the model at one point ``(D,)``, with gradients.
        sites: The continuous latents.
        discrete: The discrete ones, which count as reached.
        rows: Points to look at; a gradient may vanish at one of them.
    """
    found: set[str] = set()
    for row in rows:
        found |= _reached_at(run, sites, discrete, row)
        if found >= {site.name for site in sites}:
            break

    return found


def _reached_at(
    run: Callable[[Tensor], ModelRun], sites: Sequence[LatentSite], discrete: Sequence[str], row: Tensor
) -> set[str]:
    row = row.detach().requires_grad_()
    try:
        seen = run(row)
    except RuntimeError as error:
        if not is_numerical(error):
            raise
        return set()
    found = set(discrete)
    depends = {site["name"]: _parents(site["log_prob"], row, sites) - {site["name"]} for site in seen.latents}
    for site in (*seen.observed, *seen.discrete):
        found |= _parents(site["log_prob"], row, sites)
    waiting = list(found)
    while waiting:
        more = depends.get(waiting.pop(), set()) - found
        found |= more
        waiting += more

    return found


def _parents(log_prob: Tensor, row: Tensor, sites: Sequence[LatentSite]) -> set[str]:
    """The latents that a log density depends on, by its gradient at one point."""
    if not log_prob.requires_grad:
        return set()
    (gradient,) = torch.autograd.grad(log_prob.sum(), row, retain_graph=True, materialize_grads=True)
    moves = gradient.ne(0)

    return {site.name for site in sites if moves[site.start : site.stop].any()}

"""Draws of a model's own prior: the model runs until its last continuous latent, and not on through its likelihood.

A thousand runs take a second. Most models can be run once for all draws, inside one more plate; but a model that says
``x.mean()`` or ``x[0]`` would then mix draws, or take one of them for a coordinate. So rows of the one run are held
against single runs, density by density.

What would round to a bound of its support is drawn on the unconstrained side
(:mod:`~pyro_osds.model.distributions.edge_draws`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_osds.model.distributions.densities import unconstrained_log_prob
from pyro_osds.model.distributions.edge_draws import DrawUnconstrained, unconstrained_draw
from pyro_osds.model.foreign.moments import Moments
from pyro_osds.model.run import is_computed
from pyro_osds.runtime.errors.told import note_place

# Rows that single runs are compared with; where draws are mixed up, the first few differ already.
_NUM_CHECKED = 3


class _LastLatent(Exception):
    """Ends a run; caught where it was started."""


class _StopAfter(Messenger):
    """Ends a run when all of some sites have been seen."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self._missing = set(names)
        self._at = self._after = ""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> Any:
        note_place(None if isinstance(error, _LastLatent) else error, self._at, self._after, {})

        return super().__exit__(kind, error, trace)

    def _pyro_sample(self, msg: Any) -> None:
        self._at = msg["name"]

    def _pyro_post_sample(self, msg: Any) -> None:
        self._at, self._after = "", msg["name"]
        if msg["name"] in self._missing:
            self._missing.remove(msg["name"])
            if not self._missing:
                raise _LastLatent


ToValue = Callable[[Mapping[str, Any]], Any]
"""The transform to a site's value, given the site."""


def sample_latents(
    run: Callable[[], Any], names: Collection[str], drawn: bool = True, to_value: ToValue | None = None
) -> dict[str, Any]:
    """One draw of the prior.

    Arguments:
        run: Runs the model.
        names: The sites that are wanted.
        drawn: Whether to leave out sites with a given value.
        to_value: The transform to a site's value, for draws on the unconstrained side; None for draws of values.

    Returns:
        All stochastic sites up to the last one that is wanted, by name.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     pyro.sample("x", dist.Uniform(0.0, 1.0))
        ...     print("a long likelihood")
        >>> list(sample_latents(model, ["x"]))
        ['x']
    """
    tracer = Moments()
    _run_until(names, run, tracer, to_value)
    if tracer.are_changed():
        tracer = Moments(copies=True)
        _run_until(names, run, tracer, to_value)

    sites: dict[str, Any] = {name: site for name, site in tracer.trace.nodes.items() if _is_stochastic(site)}

    return {name: site for name, site in sites.items() if not (drawn and site["is_observed"])}


def _run_until(names: Collection[str], run: Callable[[], Any], tracer: Moments, to_value: ToValue | None) -> None:
    # The trace is the outer of the two, so that it has noted the last site before the run ends.
    try:
        with _drawing(names, to_value), tracer, _StopAfter(names):
            run()
    except _LastLatent:
        pass


def _drawing(names: Collection[str], to_value: ToValue | None) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if to_value is None else DrawUnconstrained(names, to_value)


def sample_together(
    run: Callable[[], Any], names: Collection[str], num_draws: int, to_value: ToValue | None = None
) -> dict[str, Any] | None:
    """Many draws of the prior by one run of the model, or None where it cannot be run so.

    Arguments:
        run: Runs the model.
        names: The sites that are wanted.
        num_draws: How many draws.
        to_value: As for :func:`sample_latents`.

    Returns:
        As :func:`sample_latents`, with values ``(num_draws, *shape)`` and distributions to match.

    Example:
        >>> import pyro.distributions as dist
        >>> sites = sample_together(lambda: pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1)), ["x"], 100)
        >>> sites["x"]["value"].shape
        torch.Size([100, 3])
    """
    single = sample_latents(run, names)
    nesting = max(len(site["fn"].batch_shape) for site in single.values())
    try:
        # Draws on the unconstrained side are made outside of the plate, where its size is known.
        plate = pyro.plate("_pyro_osds_draws", num_draws, dim=-1 - nesting)
        with _drawing(names, to_value), plate:
            sites = sample_latents(run, names)
        rows = torch.linspace(0, num_draws - 1, _NUM_CHECKED).long().tolist()
        is_right = sites.keys() == single.keys() and all(
            _agrees(run, names, sites, single, row, to_value) for row in rows
        )
    except Exception:  # noqa: BLE001 - whatever a model has against one more plate, it means the same: run by run
        return None

    return sites if is_right else None


def _agrees(
    run: Callable[[], Any],
    names: Collection[str],
    sites: Mapping[str, Any],
    single: Mapping[str, Any],
    row: int,
    to_value: ToValue | None,
) -> bool:
    """Whether a single run with one row's values has that row's densities."""
    values = {name: sites[name]["value"][row].reshape(single[name]["value"].shape) for name in sites}
    alone = sample_latents(poutine.condition(run, data=values), names, drawn=False)
    many, one = [], []
    for name, site in sites.items():
        many.append(_log_density(site, site, to_value)[row].sum())
        one.append(_log_density(alone[name], site, to_value, row).sum())

    # Sums of many terms in single precision agree to about this; a row of somebody else's does not.
    return torch.allclose(torch.stack(many), torch.stack(one), rtol=1e-4, atol=1e-4)


def _log_density(site: Any, drawn: Any, to_value: ToValue | None, row: int | None = None) -> Tensor:
    """Log density of what was drawn at a site, or of one row of it, by the site's distribution in another run."""
    u = None if to_value is None else unconstrained_draw(drawn)
    if to_value is not None and u is not None:
        transform = to_value(site)
        u = u if row is None else u[row].reshape(transform.inverse_shape(site["value"].shape))
        log_prob = unconstrained_log_prob(site["fn"], transform, u)
        if log_prob is not None:
            return log_prob

    return site["fn"].log_prob(site["value"])


def _is_stochastic(site: Mapping[str, Any]) -> bool:
    """Plates are sample sites, too, but without a distribution; what an unobserved ``Delta`` holds is computed."""
    return site["type"] == "sample" and isinstance(site["fn"], TorchDistributionMixin) and not is_computed(site)

"""Draws of a model's own prior: the model runs until its last continuous latent, and not on through its likelihood."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_messenger import TraceMessenger


class _LastLatent(Exception):
    """Ends a run; caught where it was started."""


class _StopAfter(Messenger):
    """Ends a run when all of some sites have been seen."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self._missing = set(names)

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self._missing:
            self._missing.remove(msg["name"])
            if not self._missing:
                raise _LastLatent


def sample_latents(run: Callable[[], Any], names: Collection[str]) -> dict[str, Any]:
    """One draw of the prior.

    Arguments:
        run: Runs the model.
        names: The sites that are wanted.

    Returns:
        The sites, by name.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     pyro.sample("x", dist.Uniform(0.0, 1.0))
        ...     print("a long likelihood")
        >>> list(sample_latents(model, ["x"]))
        ['x']
    """
    # The trace is the outer of the two, so that it has noted the last site before the run ends.
    tracer = TraceMessenger()
    try:
        with tracer, _StopAfter(names):
            run()
    except _LastLatent:
        pass

    return {name: tracer.trace.nodes[name] for name in names}

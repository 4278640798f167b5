"""The log evidence of a fit that another sampler has made, in one line."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pyro_osds.explore.given.reading import check_alone
from pyro_osds.osds import OSDS
from pyro_osds.posterior.evidence import Evidence
from pyro_osds.runtime.options import short


def evidence_from_samples(model: Callable[..., Any] | OSDS, samples: Any, *args: Any, **kwargs: Any) -> Evidence:
    """The log evidence of a model from posterior draws of any sampler, with its standard error and the verdict.

    A flow is trained from the draws and weighs draws of its own; docs/any_fit.md says what it is held against.

    Arguments:
        model: A Pyro model; or a sampler that was not run, such as ``OSDS.from_log_prob(log_prob_fn, dim)``, for a log
            density or for options of one's own.
        samples: Draws of its posterior, by site: what ``mcmc.get_samples()`` gives, InferenceData, or any mapping of
            arrays by the names of the sites.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.

    Returns:
        The log evidence and the verdict.

    Raises:
        ValueError: If the draws are not those of this model, or too few.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> pyro.set_rng_seed(0)
        >>> y = torch.tensor([1.2, 0.4, 2.1, 1.7, 0.9])
        >>> samples = {"mu": 1.2 + 0.436 * torch.randn(1000)}  # draws of NUTS, for instance
        >>> evidence = evidence_from_samples(model, samples, y)
        >>> print(f"{evidence.log_evidence:.2f}", evidence.reliable)  # exact: -7.19
        -7.19 True
    """
    if samples is None:
        raise ValueError("samples is None: pass draws of the posterior by site, such as mcmc.get_samples().")
    later = [value for value in (*args, *kwargs.values()) if _holds_draws(value)]
    if later and not _holds_draws(samples):
        raise TypeError(
            f"samples come second, before the model's arguments: got {short(samples)} there, and {short(later[0])} "
            "later. Write evidence_from_samples(model, samples, *data)."
        )
    if isinstance(model, OSDS):
        check_alone(samples, model.settings.warm_start, None)
        osds = copy.copy(model)
        osds._initial_samples, osds._fit = samples, None
        osds.settings = replace(model.settings, disable_progbar=True)
    else:
        osds = OSDS(model, initial_samples=samples, disable_progbar=True)
    osds.run(*args, **kwargs)

    return osds.evidence


def _holds_draws(value: Any) -> bool:
    """Whether a value has draws by site: a mapping, InferenceData, or a sampler."""
    return isinstance(value, Mapping) or any(hasattr(value, name) for name in ("posterior", "get_samples"))

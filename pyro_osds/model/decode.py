"""Discrete latents that were summed out, drawn back: given continuous values, their posterior is exact."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import infer_discrete
from torch import Tensor

from pyro_osds.model.enumeration import is_enumerable
from pyro_osds.runtime.source import first_line

TEMPERATURES = (0, 1)


def decode(
    run: Callable[[], Any], given: Mapping[str, Tensor], names: Collection[str], nesting: int, temperature: int = 1
) -> dict[str, Tensor]:
    """Values of discrete latents by Pyro's ``infer_discrete``, given those of the continuous ones.

    Arguments:
        run: Runs the model.
        given: A value for each continuous latent.
        names: The discrete latents.
        nesting: How many dimensions from the right belong to plates.
        temperature: 1 for a draw, 0 for the most probable values together.

    Returns:
        A value for each of the discrete latents that the run reaches.

    Raises:
        ValueError: If Pyro cannot draw them.

    Example:
        >>> import pyro.distributions as dist
        >>> def model():
        ...     z = pyro.sample("z", dist.Bernoulli(0.5))
        ...     pyro.sample("y", dist.Normal(10 * z, 1.0), obs=torch.tensor(9.0))
        >>> decode(model, {}, ["z"], nesting=0)
        {'z': tensor(1.)}
    """
    enumerated = poutine.infer_config(poutine.condition(run, data=dict(given)), config_fn=_enumerate)
    # A run whose observations count for nothing may have nothing left to enumerate; that is no mistake.
    inferred: Any = infer_discrete(
        enumerated, first_available_dim=-1 - nesting, temperature=temperature, strict_enumeration_warning=False
    )
    try:
        with poutine.block(), torch.no_grad(), pyro.validation_enabled(False):
            nodes = poutine.trace(inferred).get_trace().nodes
    except ValueError as error:
        raise ValueError(
            f"The discrete latents {list(names)} cannot be drawn given the continuous ones: {first_line(error)}. "
            "Pyro's infer_discrete wants scalar values: Categorical instead of OneHotCategorical, for instance."
        ) from error

    return {name: nodes[name]["value"] for name in names if name in nodes}


def _enumerate(site: Any) -> Any:
    if site["type"] != "sample" or not is_enumerable(site):
        return {}

    return {"enumerate": "parallel", "num_samples": None}

r"""Discrete latents, summed out exactly.

.. math:: \gamma(u) = \sum_{k} \gamma(u, k)

Every discrete latent takes all its values at once, each along a tensor dimension of its own to the left of all plates;
Pyro's tensor variable elimination then sums the product of all densities over those dimensions, plate by plate and, in
a ``pyro.markov`` chain, step by step.

Source: Obermeyer et al. 2019 (1902.03210).
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from opt_einsum import shared_intermediates
from pyro import poutine
from pyro.distributions.util import is_identically_one
from pyro.ops.contract import contract_to_tensor
from pyro.poutine.enum_messenger import EnumMessenger
from torch import Tensor

from pyro_osds.model.discrete.supports import Wider, is_enumerable, listed
from pyro_osds.model.pyro_internals import allotted_dims, enumerated_dim, restore_allotted_dims


class Enumerate(EnumMessenger):
    """All discrete latents take all their values at once, whatever the model asks for, but for those that are given.

    Arguments:
        max_plate_nesting: How many dimensions from the right belong to plates.
        given: One value for each of some discrete latents, which have that one only.
        widened: Values beyond stated bounds, by site.
    """

    def __init__(
        self,
        max_plate_nesting: int,
        given: Mapping[str, Tensor] | None = None,
        widened: Mapping[str, Wider] | None = None,
    ) -> None:
        super().__init__(first_available_dim=-1 - max_plate_nesting)
        self._given = given or {}
        self._widened = widened
        self._outer: dict[str, Any] = {}

    def __enter__(self) -> Any:
        # Pyro allots dimensions in one place for everybody: whoever enumerates around this run gets it back as it was.
        self._outer = allotted_dims()

        return super().__enter__()

    def __exit__(self, *exception: Any) -> Any:
        restore_allotted_dims(self._outer)

        return super().__exit__(*exception)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or not is_enumerable(msg):
            super()._pyro_sample(msg)
        elif msg["name"] in self._given:
            # Pyro still has to learn how deep in pyro.markov the site is.
            msg["infer"]["enumerate"] = None
            super()._pyro_sample(msg)
            msg["value"], msg["done"] = self._given[msg["name"]], True
        else:
            msg["infer"] |= {"enumerate": "parallel", "num_samples": None}
            msg["fn"] = listed(msg, self._widened)
            super()._pyro_sample(msg)


def sum_out(sites: Iterable[Any]) -> Tensor:
    """The log of the sum over all discrete latents of the product of densities, a scalar.

    Arguments:
        sites: Sites of one enumerated run, each with its ``log_prob``.

    Raises:
        ValueError: If a density has a dimension that belongs neither to a plate nor to a discrete latent.
    """
    trace = packed(sites)
    factors: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    for site in trace.nodes.values():
        plates = frozenset(trace.plate_to_symbol[f.name] for f in site["cond_indep_stack"] if f.vectorized)
        factors.setdefault(plates, []).append(site["packed"]["log_prob"])
    enumerated = set(trace.symbol_to_dim) - set(trace.plate_to_symbol.values())
    with shared_intermediates() as cache:
        return contract_to_tensor(factors, enumerated, cache=cache)


def packed(sites: Iterable[Any]) -> Any:
    """A trace of some sites of one enumerated run, each with its log density by plates and discrete latents.

    Arguments:
        sites: The sites, each with its ``log_prob``; they stay as they are.

    Raises:
        ValueError: If a density has a dimension that belongs neither to a plate nor to a discrete latent.
    """
    trace: Any = poutine.Trace()
    sites = tuple(sites)
    # Observations in double precision have densities in it, and a product of tensors needs one type.
    dtype = functools.reduce(torch.promote_types, (site["log_prob"].dtype for site in sites), torch.float32)
    for site in sites:
        # Packing marks tensors, so it gets fresh ones.
        log_prob = site["log_prob"][...].to(dtype)
        infer = dict(site["infer"])
        trace.add_node(
            site["name"], **{**site, "infer": infer, "log_prob": log_prob, "unscaled_log_prob": log_prob[...]}
        )
    trace.pack_tensors()

    return trace


def pointwise(site: Any, latents: Iterable[Any], discrete: Sequence[Any]) -> Tensor | None:
    r"""An observed site's log likelihood of each row, if its rows are independent given the continuous latents.

    .. math:: \log p(y_i) = \log \sum_k p(k_i) \, p(y_i \mid k_i)

    Arguments:
        site: The observed site, with its ``log_prob``.
        latents: The continuous latents of the same run.
        discrete: Its discrete latents.

    Returns:
        ``(*batch_shape,)``, or None where a discrete latent ties rows together, as in a hidden Markov model, or where
        a latent below it, a mask or a scale changes its probabilities.
    """
    if not discrete:
        return site["log_prob"]
    plates = site["cond_indep_stack"]
    nesting = max((-frame.dim for frame in plates if frame.vectorized), default=0)
    dims = _enumerated_dims(site, nesting)
    total = site["log_prob"]
    if dims:
        parents = [latent for latent in discrete if enumerated_dim(latent) in dims]
        local = len(parents) == 1 and set(parents[0]["cond_indep_stack"]) == set(plates)
        if not local or _enumerated_dims(parents[0], nesting) != dims:
            return None
        if any(is_changed(s) for s in (site, *parents)) or any(_enumerated_dims(s, nesting) & dims for s in latents):
            return None
        total = torch.logsumexp(total + parents[0]["log_prob"], min(dims))

    return total.reshape(total.shape[max(0, total.dim() - nesting) :])


def is_changed(site: Any) -> bool:
    """Whether a mask or a scale changes the density of a site."""
    return site["mask"] is not None or not is_identically_one(site["scale"])


def _enumerated_dims(site: Any, nesting: int) -> set[int]:
    """Dimensions left of the plates in which a log density is not constant."""
    shape = site["log_prob"].shape

    return {-dim for dim in range(nesting + 1, len(shape) + 1) if shape[-dim] > 1}

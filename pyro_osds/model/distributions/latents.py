"""Distributions that cannot be the prior of a latent, each refused by a sentence with the cure that fits it."""

from __future__ import annotations

import warnings
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.constraints import sphere
from pyro.distributions.torch_distribution import TorchDistributionMixin

from pyro_osds.model.distributions.atoms import has_atom
from pyro_osds.model.distributions.supports import UnknownSupportError, bare, name_of
from pyro_osds.model.distributions.transforms import to_support
from pyro_osds.model.distributions.wrappers import unwrap


class UnsupportedSiteError(ValueError):
    """A site that cannot be fitted, in a sentence that names it and the cure."""


def check_latent(name: str, fn: Any, has_transform: bool = False) -> None:
    """Refuse distributions that a latent cannot have.

    Arguments:
        name: The latent's site.
        fn: Its distribution.
        has_transform: Whether the user gives a transform of their own for the site.

    Raises:
        UnsupportedSiteError: If it cannot.

    Example:
        >>> check_latent("x", dist.Empirical(torch.zeros(3), torch.zeros(3)))
        Traceback (most recent call last):
        pyro_osds.model.distributions.latents.UnsupportedSiteError: Latent site 'x' has the distribution Empirical, ...
    """
    why = _why_not(name, fn, has_transform)
    if why is not None:
        raise UnsupportedSiteError(f"Latent site {name!r} has the distribution {type(unwrap(fn)).__name__}, {why}")


def _why_not(name: str, fn: Any, has_transform: bool) -> str | None:
    plain = unwrap(fn)
    kind = type(plain).__name__
    if not isinstance(fn, TorchDistributionMixin):
        return _of_torch(kind)
    if isinstance(plain, dist.Empirical):
        return (
            "which is a list of values. Draw its index, i = pyro.sample('i', dist.Categorical(logits=log_weights)), "
            "which is summed out, and take values[i]."
        )
    if _is_discrete(plain):
        return None
    if has_atom(plain):
        return _of_atoms(plain)
    try:
        support = plain.support
    except (NotImplementedError, AttributeError):
        support = None
    if support is None:
        return (
            "which does not say where its values lie. Give its class a support, such as support = constraints.real, or "
            "take another distribution (MixtureSameFamily for a mixture)."
        )

    return None if has_transform else _of_support(name, fn, support)


def _is_discrete(fn: Any) -> bool:
    try:
        return bool(getattr(fn, "has_enumerate_support", False) or fn.support.is_discrete)
    except (NotImplementedError, AttributeError):
        return False


def _of_torch(kind: str) -> str:
    there = f"pyro.distributions.{kind}"
    if not hasattr(dist, kind):
        there = (
            f"a class of both, class My{kind}(torch.distributions.{kind}, TorchDistributionMixin), with the mixin from "
            "pyro.distributions.torch_distribution"
        )

    return f"which is no distribution of Pyro and cannot be sampled there. Write {there}."


def _of_atoms(fn: Any) -> str:
    if isinstance(fn, torch.distributions.TransformedDistribution):
        return (
            "which maps a Delta: it has one value, and no density of real numbers. Compute that value, and show it "
            "with pyro.deterministic."
        )

    return (
        "which has single values of positive probability beside a density (a spike and a slab). Draw which of the two "
        "it is, on = pyro.sample('on', dist.Bernoulli(p)), which is summed out, and the slab w at a site of its own; "
        "then use on * w."
    )


def _of_support(name: str, fn: Any, support: Any) -> str | None:
    try:
        to_support(fn)
    except UnknownSupportError as error:
        return (
            f"and {error}. Draw the component's number k, as a Categorical that is summed out, and a variable with the "
            "same support for all k; compute the value from both, for instance low[k] + (high[k] - low[k]) * u with u "
            "from Uniform(0, 1)."
        )
    except NotImplementedError:
        if bare(support) is sphere:
            return _of_sphere(name, fn)
        return (
            f"with the support {name_of(bare(support))}, which no known transform leads to from the real line. Pass "
            f"one of your own, OSDS(model, transforms={{{name!r}: from_support_to_real}}), or compute the value from "
            "latents with a simpler support."
        )

    return None


def _of_sphere(name: str, fn: Any) -> str:
    cure = (
        "Draw v = pyro.sample('v', dist.Normal(0, 1).expand([3]).to_event(1)), take v / v.norm(), and add its log "
        "density relative to the uniform one by pyro.factor."
    )
    if isinstance(unwrap(fn), dist.ProjectedNormal):
        cure = f"Wrap the model, poutine.reparam(model, config={{{name!r}: ProjectedNormalReparam()}})."

    return f"on a sphere, which no single transform leads to from the real line. {cure}"


def quiet_draws() -> None:
    """Torch's Wishart says of each of its draws that it is singular when it is not, and that it may be.

    Densities and draws here need no value that is regular. To be called where warnings are caught.
    """
    warnings.filterwarnings("ignore", message="Singular sample detected|Low df values detected")

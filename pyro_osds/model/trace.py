"""What the first run of a model tells: its latent sites, their dimensions, and what is not supported.

Everything here reads a Pyro trace; nothing runs the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.distributions import ImproperUniform
from torch import Tensor

from pyro_osds.model.discrete.supports import check_support, is_bounded
from pyro_osds.model.distributions.atoms import atom_log_density, is_atom, is_factor
from pyro_osds.model.distributions.latents import UnsupportedSiteError, check_latent
from pyro_osds.model.distributions.transforms import to_support
from pyro_osds.model.pyro_internals import Subsample, is_shown, mask_of
from pyro_osds.model.run import is_computed, is_deterministic, is_missing_part
from pyro_osds.runtime.options import short


def init_anywhere(strategy: Callable[..., Any], transforms: Mapping[str, Any] | None = None) -> Callable[..., Any]:
    """Pyro's init strategies sample the prior; where one cannot, a uniform value of the coordinates stands in.

    Arguments:
        strategy: Pyro's init strategy.
        transforms: The user's own transforms to coordinates, by site.

    Raises:
        UnsupportedSiteError: While the model runs, at a site whose distribution is none for a latent.
    """

    def init(site: Mapping[str, Any]) -> Tensor:
        fn, own = site["fn"], (transforms or {}).get(site["name"])
        if is_atom(fn):
            return fn.sample()
        try:
            if getattr(fn, "has_enumerate_support", False) or fn.support.is_discrete:
                return _draw(site)
            return strategy(site)
        except (NotImplementedError, AttributeError) as error:
            # Reparametrisers ask for values of sites that will be none, so only what has no value is refused here.
            check_latent(site["name"], fn, own is not None)
            if isinstance(error, AttributeError):
                raise
            transform = own.inv if own is not None else to_support(fn)
            shape = transform.inverse_shape(fn.shape())
            # The radius of Pyro's init_to_uniform.
            return transform(torch.empty(shape).uniform_(-2.0, 2.0))

    return init


def _draw(site: Mapping[str, Any]) -> Tensor:
    """A value of a discrete latent. One that cannot be summed out is refused later, unless it cannot be drawn."""
    try:
        return site["fn"].sample()
    except NotImplementedError:
        raise UnsupportedSiteError(_not_enumerable(site)) from None


def _not_enumerable(site: Mapping[str, Any]) -> str:
    name, fn = site["name"], site["fn"]
    cure = (
        f"State a bound, pyro.sample({name!r}, ..., infer={{'support': 100}}), to sum up to there, sum it out in the "
        "model, for instance GammaPoisson for a Poisson with a Gamma rate, or observe it."
    )
    if len(fn.event_shape) > 0:  # a vector has no values up to a bound
        cure = "Write its counts as Binomial sites, one given those before, sum it out in the model, or observe it."

    return f"Latent site {name!r} is discrete ({type(fn).__name__}) with values that cannot be enumerated. {cure}"


def check_priors(trace: Any, transforms: Mapping[str, Any]) -> None:
    """Refuse latents whose distribution cannot be that of one.

    Arguments:
        trace: A trace of the model.
        transforms: The user's own transforms, by site.

    Raises:
        UnsupportedSiteError: If there is one.
    """
    for name, site in trace.nodes.items():
        if is_latent(site) and not is_missing_part(site, trace.nodes):
            check_latent(name, site["fn"], name in transforms)


def support_kind(fn: Any) -> str:
    """The kind of a distribution's support, without its bounds, which may depend on other latents."""
    kind, support = "", fn.support
    while hasattr(support, "base_constraint"):
        kind, support = f"{kind}{type(support).__name__} ", support.base_constraint

    return f"{kind}{type(support).__name__}".replace("_", " ").strip()


def is_latent(site: Mapping[str, Any]) -> bool:
    """Whether a site is sampled: neither observed, nor computed, nor a plate's own bookkeeping."""
    is_free = site["type"] == "sample" and not site["is_observed"] and not isinstance(site["fn"], Subsample)

    return is_free and not is_computed(site)


def is_value(site: Mapping[str, Any]) -> bool:
    """Whether a site carries something a user reads: a latent, an observation or a deterministic value."""
    if site["type"] != "sample" or isinstance(site["fn"], Subsample):
        return False
    if is_computed(site):
        return not is_factor(site["fn"])

    return is_deterministic(site) or not site["infer"].get("is_auxiliary")


def check_latents(trace: Any, latents: list[Any], transforms: Mapping[str, Any]) -> None:
    """Refuse subsampled plates, discrete latents that cannot be summed out, and transforms of unknown sites."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not isinstance(site["value"], Tensor):
            got = short(site["value"])
            number = isinstance(site["value"], (int, float))
            # Densities subtract, which truth values do not allow.
            plain = float(site["value"]) if isinstance(site["value"], bool) else got
            cure = (
                f"torch.tensor({plain})" if number else "torch.as_tensor of its numbers, such as y.to_numpy() of pandas"
            )
            raise ValueError(f"Site {name!r} has the value {got}, which is no tensor. Pass {cure}.")
        if isinstance(site.get("fn"), Subsample) and len(site["value"]) < site["fn"].size:
            raise ValueError(
                f"Plate {name!r} subsamples {len(site['value'])} of {site['fn'].size} rows: the density would change "
                "at every evaluation. Remove subsample_size; whole data sets are evaluated in one batch."
            )
    for site in trace.nodes.values():
        if is_latent(site) and is_bounded(site):
            check_support(site)
    for site in latents:
        if site["fn"].support.is_discrete:
            raise ValueError(_not_enumerable(site))
    check_sites(trace)
    unknown = transforms.keys() - {site["name"] for site in latents}
    if unknown:
        raise ValueError(f"transforms names the sites {sorted(unknown)}, which are not latent sites of the model.")


def check_sites(trace: Any) -> None:
    """Refuse a model without sample sites."""
    if not any(site["type"] == "sample" and not isinstance(site["fn"], Subsample) for site in trace.nodes.values()):
        raise ValueError(
            "The model ran to its end without a sample site, so there is nothing to fit. Write "
            "pyro.sample('x', distribution) for latents, and with obs=y for data; a distribution that is only made, or "
            "returned, is no site."
        )


def check_plates(trace: Any, max_plate_nesting: int | None) -> None:
    """Refuse plates nested deeper than the user allows."""
    if max_plate_nesting is None:
        return
    for name, site in trace.nodes.items():
        depth = max((-f.dim for f in site.get("cond_indep_stack", ()) if f.vectorized), default=0)
        if depth > max_plate_nesting:
            raise ValueError(
                f"Site {name!r} lies {depth} plates deep, but max_plate_nesting is {max_plate_nesting}. "
                f"Pass max_plate_nesting={depth} or leave it away."
            )


def plate_nesting(trace: Any) -> int:
    """How many tensor dimensions belong to plates."""
    stacks = (site["cond_indep_stack"] for site in trace.nodes.values() if site["type"] == "sample")

    return max((-frame.dim for stack in stacks for frame in stack if frame.vectorized), default=0)


def stray_dims(trace: Any) -> str:
    """What is to be said of dimensions that belong to no plate: beside discrete latents nobody can tell what they are.

    Returns:
        The sentence with its cure; empty where there are none.
    """
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or isinstance(site["fn"], Subsample):
            continue
        shape = tuple(site["log_prob"].shape)
        plates = {frame.dim for frame in site["cond_indep_stack"] if frame.vectorized}
        if any(size > 1 and axis - len(shape) not in plates for axis, size in enumerate(shape)):
            return (
                f"Site {name!r} has a log density of shape {shape}, with a dimension that belongs to no plate. "
                "Beside discrete latents every dimension must: put the site into a pyro.plate, or declare the "
                "dimension with .to_event()."
            )

    return ""


def site_dims(site: Mapping[str, Any]) -> tuple[str, ...]:
    """Dimension names of a site's value: its plates, then numbered event dimensions."""
    rank = site["value"].dim()
    event = site["fn"].event_dim if not is_shown(site) else None
    batch = rank - event if event is not None else rank
    frames = {f.dim: f.name for f in site["cond_indep_stack"] if f.vectorized}
    names = []
    for axis in range(rank):
        # A plate counts its dimension from the right of the batch shape.
        plate = frames.get(axis - batch) if axis < batch else None
        names.append(plate or f"{site['name']}_dim_{axis}")

    return tuple(names)


def joint_like(trace: Any) -> Tensor:
    """An empty tensor with the device of the log joint density and its type, the widest of the sites'."""
    sites = [s for s in trace.nodes.values() if s["type"] == "sample" and not isinstance(s["fn"], Subsample)]
    terms = [s["log_prob_sum"] for s in sites if isinstance(s["log_prob_sum"], Tensor)]
    dtype = torch.float32
    for term in terms:
        dtype = torch.promote_types(dtype, term.dtype)
    latents = [s["value"] for s in sites if is_latent(s)]

    return torch.empty(0, dtype=dtype, device=(latents or terms or [torch.empty(0)])[0].device)


def improper_sites(trace: Any) -> tuple[str, ...]:
    """Latent sites whose prior is flat somewhere: ImproperUniform, or masked out."""
    latents = {name: site for name, site in trace.nodes.items() if is_latent(site)}

    return tuple(n for n, site in latents.items() if _is_improper(site) and not is_missing_part(site, trace.nodes))


def has_bounded_likelihood(trace: Any) -> bool:
    """Whether all observations are discrete, each with a probability of at most one; a factor may be anything."""
    samples = [s for s in trace.nodes.values() if s["type"] == "sample" and not isinstance(s["fn"], Subsample)]
    plain = [site for site in samples if site["is_observed"] and not is_deterministic(site)]
    if any(is_computed(site) and bool(atom_log_density(site["fn"]).ne(0).any()) for site in samples):
        return False

    return all(not site["infer"].get("is_auxiliary") and site["fn"].support.is_discrete for site in plain)


def _is_improper(site: Mapping[str, Any]) -> bool:
    fn = site["fn"]
    while fn is not None:
        mask = mask_of(fn)
        if isinstance(fn, ImproperUniform) or (mask is not None and not torch.as_tensor(mask).all()):
            return True
        fn = getattr(fn, "base_dist", None)
    mask = site["mask"]

    return mask is not None and not bool(torch.as_tensor(mask).all())

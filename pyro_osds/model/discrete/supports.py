r"""Which values a discrete latent has, element by element; and those of a count that somebody has bounded.

A latent count has no end. With ``infer={"support": 40}`` its sum has one,

.. math:: \gamma(u) = \sum_{n = 0}^{40} \gamma(u, n),

each value with the probability that the site's own distribution gives it: nothing is normalised anew, so that the sum
comes nearer to that of all values as the bound grows, from below.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution

from pyro_osds.model.distributions.wrappers import unwrap

SUPPORT = "support"
"""The key of a site's ``infer`` under which its bound stands."""


def is_enumerable(site: Any) -> bool:
    """Whether a site is a discrete latent with finitely many values."""
    if site["is_observed"]:
        return False

    return is_bounded(site) or bool(getattr(unwrap(site["fn"]), "has_enumerate_support", False))


def is_bounded(site: Mapping[str, Any]) -> bool:
    """Whether a latent's values are bounded by what the model says in ``infer``."""
    return site["infer"].get(SUPPORT) is not None and not site["is_observed"]


def check_support(site: Mapping[str, Any]) -> None:
    """Refuse a bound that says nothing sensible about the site.

    Arguments:
        site: A discrete latent with a bound of its own, in a plain run.

    Raises:
        ValueError: If the bound is neither a whole number in the support nor a vector of different values of it.
    """
    given, fn = site["infer"][SUPPORT], unwrap(site["fn"])
    what = f"infer={{'support': ...}} of site {site['name']!r}"
    if not fn.support.is_discrete or fn.event_shape:
        raise ValueError(
            f"{what} is for discrete latents with values that are single numbers; the site has a "
            f"{type(fn).__name__}. Remove it."
        )
    if isinstance(given, Tensor):
        is_vector = given.dim() == 1 and len(given) > 0 and len(given.unique()) == len(given)
        if not is_vector or not bool(fn.support.check(given.to(site["value"])).all()):
            raise ValueError(
                f"{what} must be a vector of different values that the {type(fn).__name__} can have; got {given!r}."
            )
    elif isinstance(given, bool) or not isinstance(given, int) or given < lowest(fn):
        raise ValueError(
            f"{what} must be the largest value, a whole number of at least {lowest(fn)}, or a tensor of values; "
            f"got {given!r}."
        )


def lowest(fn: Any) -> int:
    """The smallest value of a distribution of whole numbers.

    Example:
        >>> import pyro.distributions as dist
        >>> lowest(dist.Poisson(3.0))
        0
    """
    bound = getattr(fn.support, "lower_bound", 0)

    return int(bound.min()) if isinstance(bound, Tensor) else int(bound)


class Wider(NamedTuple):
    """Values within a stated bound and beyond it; where there are many beyond, some of them stand for their neighbours.

    Arguments:
        values: The values, ``(K,)``.
        log_weight: The log of how many values each stands for, ``(K,)``.
    """

    values: Tensor
    log_weight: Tensor


def wider(stated: Tensor, top: int, count: int) -> Wider:
    """Values up to a larger bound.

    Arguments:
        stated: The values that were stated, ``(K,)``; what they leave out between them, they mean to leave out.
        top: The largest value, above all of them.
        count: How many values beyond the stated ones there may be.

    Example:
        >>> wider(torch.tensor([0.0, 1.0]), 7, 3).values.tolist()
        [0.0, 1.0, 2.0, 4.0, 6.0]
    """
    last = int(stated.max())
    edges = torch.linspace(last, top, min(count, top - last) + 1, dtype=torch.double).round().long()
    low, high = edges[:-1] + 1, edges[1:]
    size = torch.cat([torch.ones(len(stated)), (high - low + 1).to(stated.device)])

    return Wider(torch.cat([stated, ((low + high) // 2).to(stated)]), size.to(stated).log())


def single_values(site: Mapping[str, Any]) -> Tensor:
    """What one element of a discrete latent can be.

    Arguments:
        site: The site, in a plain run or in an enumerated one.

    Returns:
        ``(K, *event_shape)``; event dimensions that ``.to_event()`` declares hold elements, and are none of these.
    """
    fn = unwrap(site["fn"])
    if is_bounded(site):
        given = site["infer"][SUPPORT]
        stated = given if isinstance(given, Tensor) else torch.arange(lowest(fn), given + 1)
        given = [part for part in vars(fn).values() if isinstance(part, Tensor) and part.is_floating_point()]
        return stated.to(given[0] if given else torch.zeros(()))
    try:
        values = fn.enumerate_support(expand=False)
    except NotImplementedError:
        # A binomial with another number of trials in each row has the values of the largest one.
        if not hasattr(fn, "total_count"):
            raise
        return torch.arange(int(fn.total_count.max()) + 1).to(fn.total_count)

    return values.reshape(len(values), *fn.event_shape)


class Bounded(TorchDistribution):
    """A distribution as it is, with a list of values to sum over.

    Arguments:
        fn: The distribution; its values are single numbers.
        values: The values, ``(K,)``.

    Example:
        >>> import pyro.distributions as dist
        >>> counts = Bounded(dist.Poisson(torch.ones(3)), torch.arange(5.0))
        >>> counts.enumerate_support(expand=False).shape, counts.log_prob(torch.tensor(0.0))
        (torch.Size([5, 1]), tensor([-1., -1., -1.]))
    """

    arg_constraints: dict[str, Any] = {}
    has_enumerate_support = True

    def __init__(self, fn: Any, values: Tensor, log_weight: Tensor | None = None) -> None:
        self.fn, self.values, self.log_weight = fn, values, log_weight
        Distribution.__init__(self, fn.batch_shape, fn.event_shape, validate_args=False)

    @property
    def support(self) -> Any:  # type: ignore[override]
        """That of the distribution."""
        return self.fn.support

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, which know no bound."""
        return self.fn.sample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, not normalised anew."""
        log_prob = self.fn.log_prob(value)
        if self.log_weight is None:
            return log_prob

        return log_prob + torch.where(value.unsqueeze(-1) == self.values, self.log_weight, 0.0).sum(-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Bounded:
        """The same in a larger batch."""
        return Bounded(self.fn.expand(batch_shape), self.values, self.log_weight)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """The values, ``(K, *batch_shape)`` or ``(K, 1, ..., 1)``."""
        values = self.values.reshape(-1, *(1,) * len(self.batch_shape))

        return values.expand(-1, *self.batch_shape) if expand else values


def mass_between(fn: Any, low: int, high: int) -> Tensor:
    """The probability that a count lies between two values, both included, ``(*batch_shape,)``.

    Arguments:
        fn: The distribution of the count, as it stands at its site.
        low: The lower one.
        high: The upper one.

    Example:
        >>> import pyro.distributions as dist
        >>> mass_between(dist.Geometric(torch.tensor([0.5, 0.1])), 0, 1)
        tensor([0.7500, 0.1900])
    """
    plain = unwrap(fn.fn if isinstance(fn, Bounded) else fn)
    values = torch.arange(low, high + 1).reshape(-1, *(1,) * len(plain.batch_shape))
    given = [part for part in vars(plain).values() if isinstance(part, Tensor) and part.is_floating_point()]
    like = given[0] if given else torch.zeros(())

    return plain.log_prob(values.to(device=like.device, dtype=like.dtype)).exp().sum(0)


def listed(site: Mapping[str, Any], widened: Mapping[str, Wider] | None = None) -> Any:
    """A site's distribution in a form that Pyro can enumerate.

    Arguments:
        site: The site.
        widened: Values beyond stated bounds, by site.
    """
    fn = site["fn"]
    if widened and site["name"] in widened:
        values = widened[site["name"]].values.to(single_values(site))
        return Bounded(fn, values, widened[site["name"]].log_weight)
    plain = unwrap(fn)
    is_listed = is_bounded(site)
    if not is_listed and hasattr(plain, "total_count") and not fn.event_shape:
        try:
            plain.enumerate_support(expand=False)
        except NotImplementedError:
            is_listed = True

    return Bounded(fn, single_values(site)) if is_listed else fn

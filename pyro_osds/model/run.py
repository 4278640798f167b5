r"""One run of the user's model at one point ``u`` of the unconstrained space.

.. math::
    \log \gamma(u) = \sum_{\text{latent } i} \Big[ \log p_i(z_i) + \log \Big| \frac{dz_i}{du_i} \Big| \Big]
        + \sum_{\text{observed } j} m_j \log p_j(y_j), \qquad z_i = T_i(u_i)

:math:`T_i` maps the real line to the support of site *i*. It is looked up while the model runs, so a support may depend
on other latents. Where :mod:`~pyro_osds.model.distributions.densities` has a latent's two terms in closed form,
:math:`z_i` is never looked at: it may have been rounded to a bound of its support. What a mask :math:`m` takes out of
an observation is not looked at either (:mod:`~pyro_osds.model.distributions.missing`). An unobserved ``Delta`` is no
latent: its value is computed, its log density counts as a factor.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any

import torch
from pyro.distributions import Delta
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Transform

from pyro_osds.model.discrete.enumeration import is_changed, pointwise, sum_out
from pyro_osds.model.discrete.refusals import MovingSupportError, support_refusal
from pyro_osds.model.discrete.supports import is_enumerable
from pyro_osds.model.distributions.atoms import atom_log_density, is_atom, is_factor
from pyro_osds.model.distributions.densities import unconstrained_log_prob
from pyro_osds.model.distributions.missing import observed_log_prob
from pyro_osds.model.distributions.wrappers import by_batch
from pyro_osds.model.pyro_internals import Subsample, enumerated_dim, is_shown, mask_of
from pyro_osds.runtime.errors.told import note_place

_NO_DENSITY = "so there is no density of fixed dimension"


class ModelRun(Messenger):
    """Puts values at the latents of a running model and takes its log densities.

    As the outermost handler it sees each site after plates, masks and scales have been applied to it.

    Arguments:
        unconstrained: Values on the real line by site.
        to_value: The transform from there to a site's support, given the site.
        shapes: Shapes of the values by site.
        transformed: Sites with a transform of the user's own, which no closed form knows.
        tied: Sites that discrete latents tie together which are summed jointly: no row of them has a density alone.
        copies: Whether the model changes values in place, and so gets copies of them.
    """

    def __init__(
        self,
        unconstrained: Mapping[str, Tensor],
        to_value: Callable[[Mapping[str, Any]], Transform],
        shapes: Mapping[str, torch.Size],
        transformed: Container[str] = (),
        tied: Container[str] = (),
        copies: bool = False,
    ) -> None:
        super().__init__()
        self._copies, self._versions = copies, dict[str, int]()
        self.unconstrained = unconstrained
        self.to_value = to_value
        self.shapes = shapes
        self.transformed = transformed
        self.tied = tied
        self.latents: list[Any] = []
        self.discrete: list[Any] = []
        self.observed: list[Any] = []
        self.log_abs_det: list[Tensor] = []
        self.transforms: dict[str, Transform] = {}
        self._closed_forms: dict[str, Tensor] = {}
        self.values: dict[str, Tensor] = {}
        self.deterministics: dict[str, Tensor] = {}
        self._at = self._after = ""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> Any:
        """As for any handler; what the model raised goes on with a note on where that was."""
        note_place(error, self._at, self._after, self.unconstrained)

        return super().__exit__(kind, error, trace)

    def _pyro_sample(self, msg: Any) -> None:
        self._at = msg["name"]
        if msg["is_observed"] or isinstance(msg["fn"], Subsample):
            return
        if is_missing_part(msg, {site["name"] for site in self.observed}):
            # Pyro masks what is observed out of the prior of what is not, which would leave it without a density.
            msg["mask"] = None
        if is_enumerable(msg) or is_atom(msg["fn"]):
            return
        name = msg["name"]
        if name not in self.unconstrained:
            raise ValueError(
                f"Site {name!r} did not exist when the model was first run: the model's structure changes with its "
                f"latent values, {_NO_DENSITY}. Make the site unconditional."
            )
        transform: Any = self.to_value(msg)
        u = self.unconstrained[name]
        value = transform(u)
        self._check_shape(msg, value)
        self.latents.append(msg)
        self.values[name] = value
        self.transforms[name] = transform
        self.log_abs_det.append(transform.log_abs_det_jacobian(u, value))
        closed = None if name in self.transformed else unconstrained_log_prob(msg["fn"], transform, u)
        if closed is not None:
            self._closed_forms[name] = closed - by_batch(self.log_abs_det[-1], value, msg["fn"].event_dim)
        msg["value"] = value.clone() if self._copies else value
        self._versions[name] = value._version
        msg["done"] = True

    def _check_shape(self, msg: Any, value: Tensor) -> None:
        name, expected, shape = msg["name"], self.shapes[msg["name"]], msg["fn"].shape()
        if value.shape != expected:
            shapes = f"has another shape, {tuple(value.shape)}, than its values, {tuple(expected)}"
            raise MovingSupportError(support_refusal(name, shapes))
        if shape[len(shape) - len(expected) :] != expected:
            raise ValueError(
                f"Site {name!r} had the shape {tuple(expected)} when the model was first run and now has "
                f"{tuple(shape)}: the model's structure changes with its latent values, {_NO_DENSITY}. Give plates a "
                "size that does not depend on latents."
            )

    def _pyro_post_sample(self, msg: Any) -> None:
        self._at = ""
        if isinstance(msg["fn"], Subsample):
            return
        self._after = msg["name"]
        if is_deterministic(msg):
            if msg["name"] not in self.tied:
                self.deterministics[msg["name"]] = msg["value"].clone() if self._copies else msg["value"]
                self._versions[msg["name"]] = msg["value"]._version
            return
        if is_computed(msg) and not is_factor(msg["fn"]):
            self.deterministics[msg["name"]] = msg["value"].clone() if self._copies else msg["value"]
            self._versions[msg["name"]] = msg["value"]._version
        msg["log_prob"] = scale_and_mask(self._log_prob(msg), msg["scale"], msg["mask"])
        if msg["is_observed"] or is_computed(msg):
            self.observed.append(msg)
        elif is_enumerable(msg):
            self.discrete.append(msg)

    def _log_prob(self, msg: Any) -> Tensor:
        if msg["is_observed"]:
            return observed_log_prob(msg["fn"], msg["value"], msg["mask"])
        if is_computed(msg):
            return atom_log_density(msg["fn"])
        log_prob = self._closed_forms.get(msg["name"])

        return msg["fn"].log_prob(msg["value"]) if log_prob is None else log_prob

    @property
    def closed_forms(self) -> frozenset[str]:
        """Latents whose density was computed in the unconstrained coordinate."""
        return frozenset(self._closed_forms)

    def check_complete(self) -> None:
        """Refuse a run that passed by a latent site."""
        absent = [name for name in self.unconstrained if name not in self.values]
        for site in self.latents:
            # What the model made of its copy is none of the site's.
            site["value"] = self.values[site["name"]]
        if absent:
            raise ValueError(
                f"Site {absent[0]!r} was there when the model was first run and is not any more: the model's structure "
                f"changes with its latent values, {_NO_DENSITY}. Make the site unconditional."
            )

    def log_densities(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Log prior (with Jacobians) and log likelihood (with factors), two scalars."""
        if not self.discrete:
            log_prior = _sum([site["log_prob"] for site in self.latents] + self.log_abs_det, like)
            return log_prior, _sum([site["log_prob"] for site in self.observed], like)
        above, below = self.above_and_below()
        log_prior = _sum([site["log_prob"] for site in above] + self.log_abs_det, like)
        # Summed out, the discrete latents are one, unless somebody changed their densities.
        changed = any(map(is_changed, self.discrete))
        mixture = sum_out([*self.discrete, *below]).to(like.dtype) if below or changed else like.new_zeros(())
        joint = sum_out([*self.discrete, *below, *self.observed]).to(like.dtype)

        return log_prior + mixture, joint - mixture

    def above_and_below(self) -> tuple[list[Any], list[Any]]:
        """The continuous latents whose density is the same for all values of enumerated ones, and the others."""
        is_below = [site["log_prob"].dim() > _nesting(site) for site in self.latents]
        pairs = list(zip(self.latents, is_below, strict=True))

        return [site for site, below in pairs if not below], [site for site, below in pairs if below]

    def log_terms(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Three log densities where some discrete latents have one value each: of latents, with discrete ones, of all.

        The first is that of the continuous latents alone, if it depends on no discrete one.
        """
        is_summed = any(enumerated_dim(site) is not None for site in self.discrete)
        above, below = self.above_and_below() if is_summed else (self.latents, [])
        latents = _sum([site["log_prob"] for site in above] + self.log_abs_det, like)
        priors, everything = [*self.discrete, *below], [*self.discrete, *below, *self.observed]
        if is_summed:
            return latents, latents + sum_out(priors).to(like.dtype), latents + sum_out(everything).to(like.dtype)
        prior, joint = ([site["log_prob"] for site in sites] for sites in (priors, everything))

        return latents, latents + _sum(prior, like), latents + _sum(joint, like)

    def log_likelihood(self) -> dict[str, Tensor]:
        """Pointwise log likelihood of the observed sites whose rows are independent; factors are none."""
        sites = [s for s in self.observed if not (s["infer"].get("is_auxiliary") or is_computed(s))]
        sites = [site for site in sites if site["name"] not in self.tied]
        rows = {site["name"]: pointwise(site, self.latents, self.discrete) for site in sites}

        return {name: value for name, value in rows.items() if value is not None}

    def log_prior(self) -> dict[str, Tensor]:
        """Log prior of each continuous latent's rows, where they are independent; what is missing data has none."""
        observed = {site["name"] for site in self.observed}
        rows = {}
        for site in self.latents:
            others = [other for other in self.latents if other is not site]
            left_out = site["name"] in self.tied or is_missing_part(site, observed)
            value = None if left_out else pointwise(site, others, self.discrete)
            if value is not None:
                rows[site["name"]] = value

        return rows

    @property
    def changes_values(self) -> bool:
        """Whether the model changed a latent's or a deterministic value in place, after its site."""
        values = self.values | self.deterministics

        return any(value._version != self._versions[name] for name, value in values.items())

    @property
    def num_terms(self) -> int:
        """Log densities of single values that the joint one is made of."""
        return sum(site["log_prob"].numel() for site in (*self.latents, *self.discrete, *self.observed))

    def terms(self) -> dict[str, Tensor]:
        """The log density of every site, summed, and the log-determinants of the latents."""
        sites = (*self.latents, *self.discrete, *self.observed)
        terms = {site["name"]: _summed(site["log_prob"]) for site in sites}
        for site, log_abs_det in zip(self.latents, self.log_abs_det, strict=True):
            terms[site["name"]] = terms[site["name"]] + _summed(log_abs_det)

        return terms


def _nesting(site: Mapping[str, Any]) -> int:
    return max((-frame.dim for frame in site["cond_indep_stack"] if frame.vectorized), default=0)


def _sum(terms: list[Tensor], like: Tensor) -> Tensor:
    return sum((_summed(term).to(like.dtype) for term in terms), like.new_zeros(()))


def _summed(values: Tensor) -> Tensor:
    """The sum of all values; a scalar is its own, and to sum it would be an operation of every evaluation."""
    return values.sum() if values.dim() else values


def is_deterministic(site: Mapping[str, Any]) -> bool:
    """Whether a site only shows what others make: ``pyro.deterministic``, or what a reparametrised site once was."""
    if is_shown(site):
        return True
    fn = site["fn"]
    shown = isinstance(fn, MaskedDistribution) and mask_of(fn) is False and isinstance(fn.base_dist, Delta)

    return site["is_observed"] and shown


def is_computed(site: Mapping[str, Any]) -> bool:
    """Whether an unobserved site has only one value: it is a deterministic value, and its density is a factor."""
    return not site["is_observed"] and is_atom(site["fn"])


def is_missing_part(site: Mapping[str, Any], names: Container[str]) -> bool:
    """Whether a site is what ``obs_mask`` makes of the missing part of an observed one."""
    stem, _, ending = site["name"].rpartition("_")

    return ending == "unobserved" and f"{stem}_observed" in names

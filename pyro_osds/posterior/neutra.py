r"""NeuTra: a model in the coordinates of the base, where its posterior is nearly the standard normal.

.. math:: p(x \mid y) \propto \gamma\big(z(x)\big) \, \Big| \frac{dz}{dx} \Big|

A Markov chain that is slow in the model's own coordinates is quick in these, and as exact there as it is anywhere: the
flow is used as a change of coordinates only.

Source: Hoffman et al. 2019 (1903.03704).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.reparam.reparam import Reparam
from pyro.poutine.plate_messenger import block_plate
from torch import Tensor

from pyro_osds.flow.leap import Leap

LATENT = "osds_shared_latent"


class FlowReparam(Reparam):
    """Puts the flow's coordinates in the place of a model's continuous latents; see :meth:`pyro_osds.OSDS.neutra`.

    Pyro's ``NeuTraReparam`` asks for a guide whose coordinates have nothing to do with the model. Here they come from
    the present run, so that supports, and standardised coordinates, may depend on other latents.

    Arguments:
        leap: The trained leap.
        target: The model target that it leaps to, or that with its components put in order.
        constrain: Maps points ``(B, D)`` that the leap makes to draws by site.
    """

    def __init__(self, leap: Leap, target: Any, constrain: Callable[[Tensor], dict[str, Tensor]]) -> None:
        self.leap = leap
        self.target = target
        self._model_target: Any = target.unordered
        self._constrain = constrain
        self._coordinates: dict[str, Tensor] = {}

    def reparam(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """The model with a single continuous latent ``osds_shared_latent``, ``(D,)``, as NUTS takes it."""

        def config(site: Any) -> FlowReparam | None:
            return self if site["name"] in self._model_target.frames else None

        return poutine.reparam(fn, config=config)

    def apply(self, msg: Any) -> Any:
        """What Pyro asks at every latent site: its value, and the density that it has in the base's coordinates."""
        name, fn = msg["name"], msg["fn"]
        if msg["is_observed"]:
            raise ValueError(f"Site {name!r} was a latent when the flow was trained and is observed now. Train again.")
        if name not in self._coordinates:
            self._coordinates = self._split_latent(name)
        value, log_density = self._model_target.coordinates.value_with_density(
            {"name": name, "fn": fn}, self._coordinates.pop(name)
        )

        return {
            "fn": dist.Delta(value, log_density, event_dim=fn.event_dim),
            "value": value,
            "is_observed": True,
        }

    def transform_sample(self, latent: Tensor) -> dict[str, Tensor]:
        """Draws by site of draws at ``osds_shared_latent``, ``(*shape, D)`` to ``{name: (*shape, *site_shape)}``."""
        with torch.no_grad():
            z, _ = self.leap(latent.reshape(-1, latent.shape[-1]))
        draws = self._constrain(z)

        return {name: value.unflatten(0, latent.shape[:-1]) for name, value in draws.items()}

    def _split_latent(self, first: str) -> dict[str, Tensor]:
        """The shared latent, at the first site of a run, and the coordinates of all sites that it makes."""
        with ExitStack() as stack:
            for frame in self._model_target.frames[first]:
                stack.enter_context(block_plate(dim=frame.dim, strict=False))
            # The model runs in the precision that it is written in.
            like = self.leap.base.loc.to(self._model_target.draw_dtype)
            noise = dist.Normal(torch.zeros_like(like), torch.ones_like(like)).to_event(1)
            # Its density is that of the model; the noise only says where chains may start.
            x = pyro.sample(LATENT, noise.mask(False))
            z, log_abs_det = self.leap(x[None])
            z, log_abs_det = self.target.in_order(z), log_abs_det + self.target.log_volume(z)
            pyro.factor(f"{LATENT}_log_abs_det", log_abs_det.squeeze(0).to(like))

        return self._model_target.split(z.squeeze(0))

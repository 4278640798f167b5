r"""The trained leap as a Pyro guide: one draw of the flow, laid out at the sites of the model.

.. math:: \log q(\theta) = \log q(z) - \sum_i \log \Big| \frac{d\theta_i}{dz_i} \Big|

An auxiliary site carries the flow's draw ``z`` with its density; each latent site is then a point mass at the value
that belongs to ``z``, and carries the log-determinant. Where components are put in order, the flow knows one order of
K! and each of them is equally likely, so that :math:`\log q(z)` is lower by :math:`\log K!`.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

LATENT = "_osds_latent"


class FlowDistribution(TorchDistribution):
    """Draws of a leap in the coordinates of the model target, with their exact density.

    The leap is fixed, so that draws are reparametrised: there is nothing that gradients could flow to.

    Arguments:
        leap: The leap.
        target: What it leaps to; an :class:`~pyro_osds.explore.symmetry.ordering.OrderedTarget` where components are
            put in order.
        batch_shape: The shape of independent draws, each ``(D,)``.

    Example:
        >>> from pyro_osds.flow.base import gaussian_base
        >>> from pyro_osds.flow.coupling import FlowMap
        >>> from pyro_osds.flow.leap import Leap
        >>> from pyro_osds.target import FunctionTarget
        >>> leap = Leap(gaussian_base(torch.randn(100, 2)), FlowMap(2))
        >>> flow = FlowDistribution(leap, FunctionTarget(lambda z: z.sum(-1), dim=2)).expand([3])
        >>> flow.log_prob(flow.sample()).shape
        torch.Size([3])
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - torch's own way
    support = constraints.real_vector  # type: ignore[assignment]
    has_rsample = True

    def __init__(self, leap: Any, target: Any, batch_shape: torch.Size = torch.Size()) -> None:  # noqa: B008
        self.leap = leap
        self.target = target
        self._latest: tuple[Tensor, Tensor] | None = None
        super().__init__(batch_shape, torch.Size([target.dim]), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        """The same distribution, drawn from independently for each place in a batch."""
        return FlowDistribution(self.leap, self.target, torch.Size(batch_shape))

    @torch.no_grad()
    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draws, ``(*sample_shape, *batch_shape, D)``."""
        shape = torch.Size(sample_shape) + self.batch_shape
        z, log_prob, _ = self.leap.sample(shape.numel())
        z, log_prob = self.target.to_target(z), log_prob - self.target.log_volume(z)
        z = z.reshape(shape + self.event_shape)
        self._latest = z, self._as_drawn(log_prob).reshape(shape)

        return z

    @torch.no_grad()
    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, ``(*shape, D)`` to ``(*shape,)``: known for the latest draws, through the inverse for others."""
        if self._latest is not None and torch.equal(value, self._latest[0]):
            return self._latest[1]
        z = self.target.to_ordered(value.reshape(-1, value.shape[-1]))

        return self._as_drawn(self.leap.log_prob(z) - self.target.log_volume(z)).reshape(value.shape[:-1])

    def _as_drawn(self, log_prob: Tensor) -> Tensor:
        """Densities in the precision of the model, with whose own Pyro multiplies them."""
        return log_prob.to(self.target.draw_dtype)


class FlowGuide:
    """A guide with the exact density of the trained flow; see :attr:`pyro_osds.OSDS.guide`.

    It may be called with any arguments, those of the model for instance, and looks at none of them: the flow belongs to
    the data that it was trained on.

    Arguments:
        leap: The trained leap.
        target: The model target that it leaps to, or that with its components put in order.
    """

    def __init__(self, leap: Any, target: Any) -> None:
        self.leap = leap
        self.target = target
        self._model_target: Any = target.unordered

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """One draw, or one for each place in the plates around the guide, by site."""
        if self.target.dim == 0:
            return {}
        z = pyro.sample(LATENT, FlowDistribution(self.leap, self.target), infer={"is_auxiliary": True})
        batch_shape = z.shape[:-1]
        # The model runs to find the supports; its statements are nobody else's business.
        with poutine.block(), torch.no_grad():
            values, log_abs_det = self._model_target.constrain_with_log_abs_det(z.reshape(-1, z.shape[-1]))
        frames = self._model_target.frames
        unique = {frame.name: frame for stack in frames.values() for frame in stack}
        plates = {name: pyro.plate(name, frame.size, dim=frame.dim) for name, frame in unique.items()}
        draw = {}
        for name, value in values.items():
            event_dim = self._model_target.event_dims[name]
            point = _in_batch(value, batch_shape, event_dim)
            density: Any = -_in_batch(log_abs_det[name], batch_shape, 0).to(self._model_target.draw_dtype)
            with ExitStack() as stack:
                for frame in frames[name]:
                    stack.enter_context(plates[frame.name])
                draw[name] = pyro.sample(name, dist.Delta(point, log_density=density, event_dim=event_dim))

        return draw


def _in_batch(value: Tensor, batch_shape: torch.Size, event_dim: int) -> Tensor:
    """Values ``(B, *shape)`` with the batch laid out to the left of the site's own plates."""
    own = value.dim() - 1 - event_dim

    return value.reshape(batch_shape[: max(0, len(batch_shape) - own)] + value.shape[1:])

r"""From a flow that is nearly right to the posterior: annealing in the flow's own latent space.

In the coordinates *x* of the base, the posterior seen through the leap :math:`\Phi`,

.. math:: \gamma_\Phi(x) = \gamma\big(\Phi(x)\big) \left|\det \frac{\partial \Phi}{\partial x}\right|, \qquad
    \pi_\beta(x) \propto b(x)^{1-\beta}\, \gamma_\Phi(x)^{\beta},

lies close to the base :math:`b` and has its scales, so a short sequential Monte Carlo run with Hamiltonian moves gets
there. It needs no heavy tails of the flow: where its weights have a tail of shape *k*, those of one of *T* temperatures
have :math:`k / T`, and particles walk to where the flow proposes too little.

Source: annealed flow transport (Arbel, Matthews, Doucet 2021, 2102.07501), here with a single flow.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pyro_osds.explore.annealing import explore
from pyro_osds.explore.particles import Exploration
from pyro_osds.explore.paths import ReferencePath
from pyro_osds.flow.base import whitened
from pyro_osds.flow.leap import Leap
from pyro_osds.target import Target, TargetWrapper

# The tail of the weights of one temperature is as many times lighter as there are temperatures: that of a flow with a
# pareto k of one is then as good as any.
_MIN_TEMPERATURES = 5
# Share of effective particles that a change of temperature leaves: higher than for an exploration, whose way is long.
_ESS_THRESHOLD = 0.7
# Rounds of moves at the target at most: particles come from next to it.
_MAX_SETTLING = 5


class LatentTarget(TargetWrapper):
    """A posterior in the base coordinates of a leap; in those of the noise, where base draws are correlated.

    Arguments:
        leap: The leap.
        target: The posterior.
    """

    def __init__(self, leap: Leap, target: Target) -> None:
        super().__init__(target)
        self._leap = leap

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of the posterior at base coordinates, ``(B, D) -> (B,)``."""
        z, log_abs_det = self.leap(z)

        return self.target.log_prob(z) + log_abs_det

    def leap(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From base coordinates, or noise, to points of the posterior, with log-determinants."""
        scale = self._leap.base.noise_scale
        if scale is None:
            return self._leap(x)
        z, log_abs_det = self._leap(x @ scale.mT)

        return z, log_abs_det + scale.diagonal().log().sum()


def refine(leap: Leap, target: Target, num_particles: int, num_replicates: int = 8) -> Exploration:
    """Anneal from the leap's draws to the target.

    Arguments:
        leap: A leap that is nearly right.
        target: The target.
        num_particles: Particles on each replicate.
        num_replicates: Independent repeats, whose spread is the uncertainty of the evidence.

    Returns:
        Equally weighted particles at the target, in its own coordinates, and the replicates' log evidences.
    """
    latent, base = LatentTarget(leap, target), whitened(leap.base).density
    path = ReferencePath(latent, lambda count: base.sample(torch.Size([count])), base.log_prob)
    found = explore(
        path,
        num_particles,
        num_replicates,
        ess_threshold=_ESS_THRESHOLD,
        min_temperatures=_MIN_TEMPERATURES,
        max_settling=_MAX_SETTLING,
        phase="Refine",
    )
    with torch.no_grad():
        z, log_abs_det = latent.leap(found.z)

    return replace(found, z=z, log_prob=found.log_prob - log_abs_det)

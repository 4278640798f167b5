"""What every part of the sampler asks of a posterior, and the ways to answer: see :class:`Target`."""

from pyro_osds.target.adapter import as_target
from pyro_osds.target.cost import CostCounter
from pyro_osds.target.density import NotFiniteError, finite_log_prob, in_chunks, log_prob_and_score
from pyro_osds.target.function import FunctionTarget
from pyro_osds.target.gradient import has_wrong_gradient
from pyro_osds.target.protocol import Site, Target
from pyro_osds.target.wrapper import MovedTarget, TargetWrapper

__all__ = [
    "CostCounter",
    "FunctionTarget",
    "MovedTarget",
    "NotFiniteError",
    "Site",
    "Target",
    "TargetWrapper",
    "as_target",
    "finite_log_prob",
    "has_wrong_gradient",
    "in_chunks",
    "log_prob_and_score",
]

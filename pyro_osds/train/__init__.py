"""How the flow is trained: objectives, rounds, the diffusion teacher and its distillation, recipes."""

from pyro_osds.runtime.moved import handed_on

__getattr__ = handed_on(__name__, "pyro_osds.train.trainer")

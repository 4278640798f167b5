"""Before training: where the mass of the posterior lies, how much of it there is, and which modes it has."""

from pyro_osds.runtime.moved import handed_on

__getattr__ = handed_on(__name__, "pyro_osds.explore.annealing")

"""A trained flow at work: weighted draws, the verdicts on them, and what a run does while a verdict is bad."""

from pyro_osds.runtime.moved import handed_on

__getattr__ = handed_on(__name__, "pyro_osds.posterior.draws")

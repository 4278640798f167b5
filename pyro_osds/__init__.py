"""One-step diffusion samplers for Pyro: posterior draws and a log evidence from one network evaluation per draw."""

import logging

from pyro_osds.any_fit import evidence_from_samples
from pyro_osds.kernel import OSDSKernel
from pyro_osds.many import FitManyError, fit_many
from pyro_osds.osds import OSDS
from pyro_osds.posterior.agreement import Agreement
from pyro_osds.posterior.verdict import Evidence, EvidenceCheck
from pyro_osds.results.compare import compare_evidence
from pyro_osds.results.plot_evidence import plot_evidence
from pyro_osds.results.plot_fit import plot_fit
from pyro_osds.results.plot_leap import plot_leap
from pyro_osds.runtime.moved import find_old_names
from pyro_osds.runtime.warnings import (
    AmbiguousArgumentWarning,
    InterruptedWarning,
    ModelWarning,
    OSDSWarning,
    TrainingWarning,
    UnreliableEvidenceWarning,
    VectorizationWarning,
)
from pyro_osds.runtime.watch.callback import RunProgress
from pyro_osds.stats.weights import WeightedDraws
from pyro_osds.version import __version__

# Silent until the user asks: logging.basicConfig(level="INFO") will do.
logging.getLogger(__name__).addHandler(logging.NullHandler())
find_old_names()

__all__ = [
    "OSDS",
    "Agreement",
    "AmbiguousArgumentWarning",
    "Evidence",
    "EvidenceCheck",
    "FitManyError",
    "InterruptedWarning",
    "OSDSKernel",
    "ModelWarning",
    "OSDSWarning",
    "RunProgress",
    "TrainingWarning",
    "UnreliableEvidenceWarning",
    "VectorizationWarning",
    "WeightedDraws",
    "__version__",
    "compare_evidence",
    "evidence_from_samples",
    "fit_many",
    "plot_evidence",
    "plot_fit",
    "plot_leap",
]


def __dir__() -> list[str]:
    """The public names, without the modules that they come from."""
    return sorted(__all__)

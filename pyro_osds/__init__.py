"""One-step diffusion samplers for Pyro: posterior draws and a log evidence from one network evaluation per draw."""

from pyro_osds.agreement import Agreement
from pyro_osds.compare import UnreliableEvidenceWarning, compare_evidence
from pyro_osds.evidence import Evidence, EvidenceCheck
from pyro_osds.importance import WeightedDraws
from pyro_osds.kernel import OSDSKernel
from pyro_osds.osds import OSDS
from pyro_osds.plot_evidence import plot_evidence
from pyro_osds.version import __version__

__all__ = [
    "OSDS",
    "Agreement",
    "Evidence",
    "EvidenceCheck",
    "OSDSKernel",
    "UnreliableEvidenceWarning",
    "WeightedDraws",
    "__version__",
    "compare_evidence",
    "plot_evidence",
]

"""What is no error, but must be known: the categories of our warnings, and one way to raise them."""

from __future__ import annotations

import os
import sys
import sysconfig
import warnings
from importlib.util import find_spec

from pyro_osds.runtime.parallel import is_silent

# A warning belongs to the line that called us: our own files, Pyro's effect handlers and what wraps functions are
# between that line and the place that noticed.
_PACKAGES = ("pyro_osds", "pyro", "torch")
_BETWEEN = (
    *(
        os.path.join(folder, "")
        for name in _PACKAGES
        if (spec := find_spec(name))
        for folder in spec.submodule_search_locations or ()
    ),
    *(os.path.join(sysconfig.get_paths()["stdlib"], name) for name in ("contextlib.py", "functools.py")),
)


class OSDSWarning(UserWarning):
    """Any warning of this package."""


class UnreliableEvidenceWarning(OSDSWarning):
    """A log evidence is not reliable; one warning for each reason of the verdict."""


class ModelWarning(OSDSWarning):
    """The model, or its data, may not be what was meant: an observation seems forgotten, or counts are rounded."""


class VectorizationWarning(OSDSWarning):
    """The model cannot be evaluated in batches and runs point by point, which is slow but right."""


class TrainingWarning(OSDSWarning):
    """Steps of the training were left out, since their gradient was not finite."""


class InterruptedWarning(OSDSWarning):
    """Ctrl-C ended a run early; what it had is kept."""


class AmbiguousArgumentWarning(OSDSWarning):
    """An argument can be read in two ways; the warning says which one was taken."""


def warn(message: str, category: type[OSDSWarning]) -> None:
    """Warn at the line of the user's code that led here, however deep the place that noticed.

    Arguments:
        message: What was seen, and the cure.
        category: What kind of trouble.

    Example:
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn("7 steps were skipped.", TrainingWarning)
        >>> caught[0].category.__name__
        'TrainingWarning'
    """
    if is_silent():
        return
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_BETWEEN):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)

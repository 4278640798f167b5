"""Modules by the names that they had before: old imports and old pickles find what they ask for.

An old name is a thin module that hands every attribute on to the new one, and says once where it is. Where a module has
become two, its name hands on to both. The names
``explore``, ``posterior`` and ``train`` are those of packages now, which hand on what the modules held.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

_PACKAGE = __name__.partition(".")[0]
_ERRORS = ("runtime.errors.lines", "runtime.errors.told")
_MOVED: dict[str, str | tuple[str, ...]] = {
    "agreement": "posterior.agreement",
    "arguments": "runtime.arguments",
    "base": "flow.base",
    "bridge": "explore.refinement",
    "card": "runtime.text",
    "chains": "stats.chains",
    "chunks": "runtime.chunks",
    "compare": "results.compare",
    "coordinates": "explore.coordinates",
    "diffusion": "flow.diffusion",
    "distillation": "train.distillation",
    "escalate": "posterior.escalation",
    "evidence": "posterior.verdict",
    "exchange": "explore.symmetry.ordering",
    "export": "results.groups",
    "flow_map": "flow.coupling",
    "gaussian": "stats.gaussian",
    "guide": "posterior.guide",
    "identity": "results.fingerprint",
    "importance": "stats.weights",
    "inference_data": "results.inference_data",
    "leap": "flow.leap",
    "memory": "runtime.memory",
    "modes": "explore.modes",
    "moments": "stats.moments",
    "network": "flow.network",
    "neutra": "posterior.neutra",
    "objective": "train.objectives",
    "optimizer": "train.optimizer",
    "parallel": "runtime.parallel",
    "pause": "runtime.resume",
    "plan": "train.flows",
    "plausibility": "posterior.plausibility",
    "plot_evidence": "results.plot_evidence",
    "plot_fit": "results.plot_fit",
    "plot_leap": "results.plot_leap",
    "point": "posterior.no_latents",
    "precision": "runtime.precision",
    "progress": "runtime.progress",
    "propriety": "explore.propriety",
    "recipe": "train.recipe",
    "recorder": "runtime.recording.recorder",
    "reference": "explore.reference",
    "replay": "flow.replay",
    "report": "results.report",
    "schedule": "flow.schedule",
    "scout": "explore.search.mode_search",
    "storage": "results.storage",
    "summary": "results.summary",
    "survey": "explore.survey",
    "tail": "flow.tail",
    "teacher": "train.teacher",
    "thresholds": "stats.thresholds",
    "trouble": "runtime.warnings",
    "valley": "explore.valley",
    "variational": "explore.variational",
    "velocity": "train.velocity",
    "warm": "explore.warm_start",
    "model.determinism": "model.checks.determinism",
    "model.observations": "model.checks.observations",
    "model.enumeration": "model.discrete.enumeration",
    "model.decode": "model.discrete.decode",
    "model.ladder": "model.batching",
    "model.parameters": "model.foreign.parameters",
    "model.capture": "model.graph",
    "model.compat": "model.vmap",
    "model.model_target": "model.target",
    "model.potential_target": "model.potential",
    "model.transforms": "model.distributions.transforms",
    "model.edge_draws": "model.distributions.edge_draws",
    "model.source": _ERRORS,
    "model.stable": "model.distributions.stable",
    "runtime.execution": "runtime.recording.execution",
    "runtime.interpreter": "runtime.recording.interpreter",
    "runtime.recorder": "runtime.recording.recorder",
    "runtime.source": _ERRORS,
}


class _OldModule(ModuleType):
    """A module by its old name; where a function has that name, too, the package hands out either as the other."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


class _OldNames(MetaPathFinder, Loader):
    """Finds a module by its old name."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        return spec_from_loader(fullname, self) if package == _PACKAGE and name in _MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        moved = _MOVED[module.__name__.partition(".")[2]]
        new = [f"{_PACKAGE}.{name}" for name in ([moved] if isinstance(moved, str) else moved)]
        where = f"is {' and '.join(new)} now; import from {'there' if len(new) == 1 else 'these'}"
        warnings.warn(f"{module.__name__} {where}.", DeprecationWarning, stacklevel=2)
        module.__dict__["__getattr__"] = handed_on(module.__name__, *new)
        module.__class__ = _OldModule


def handed_on(old: str, *new: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module whose content has another place.

    Arguments:
        old: The name of the module.
        new: Where its content is: one module, or several.
    """

    def __getattr__(name: str) -> Any:
        for place in () if name.startswith("__") else new:
            if hasattr(module := importlib.import_module(place), name):
                return getattr(module, name)
        raise AttributeError(f"module {old!r} has no attribute {name!r}")

    return __getattr__


def find_old_names() -> None:
    """From now on old names are found; once for each process."""
    if not any(isinstance(finder, _OldNames) for finder in sys.meta_path):
        sys.meta_path.append(_OldNames())

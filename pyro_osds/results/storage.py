"""A file for a fit: written whole or not at all, read without running anything that is in it.

What a fit knows is taken apart into tensors, containers, strings and numbers, which ``torch.load(weights_only=True)``
reads; the few kinds of records below are put together again by name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from pyro_osds.explore.modes import Modes
from pyro_osds.explore.necks.tilted import Tilted
from pyro_osds.explore.particles import Exploration, GivenDraws
from pyro_osds.explore.propriety import Endless
from pyro_osds.explore.search.coverage import Coverage
from pyro_osds.explore.search.parts import Part
from pyro_osds.explore.search.second_search import Search
from pyro_osds.explore.survey import Survey
from pyro_osds.explore.symmetry.flips import Flip
from pyro_osds.explore.symmetry.frames import Rotation
from pyro_osds.explore.symmetry.ordering import Exchange
from pyro_osds.flow.base import Base
from pyro_osds.posterior.draws import PosteriorDraws
from pyro_osds.posterior.verdict import Evidence, EvidenceCheck
from pyro_osds.stats.gaussian import Gaussian, GaussianMixture
from pyro_osds.stats.weights import FlowDraws
from pyro_osds.symmetries import Symmetry
from pyro_osds.train.flows import FlowSize, Plan
from pyro_osds.train.teacher import TeacherHistory
from pyro_osds.train.trainer import Course, History
from pyro_osds.version import __version__

FORMAT, FORMAT_VERSION = "pyro_osds fit", 1
_RECORDS: dict[str, Any] = {
    record.__name__: record
    for record in (
        Base,
        Coverage,
        Endless,
        Evidence,
        EvidenceCheck,
        Exchange,
        Exploration,
        Flip,
        FlowDraws,
        FlowSize,
        GivenDraws,
        Modes,
        Part,
        PosteriorDraws,
        Plan,
        Rotation,
        Search,
        Survey,
        Symmetry,
        Tilted,
    )
    + (TeacherHistory, Course, History)
}
# Fields by their names in files of earlier versions.
_RENAMED = {
    "Evidence": {"bridge": "refinement"},
    "PosteriorDraws": {"bridge": "refinement"},
    "Exploration": {"island_log_evidence": "replicate_log_evidence"},
}
_KIND = "kind of record"
_DENSITY = "density"
# What else people keep, by the ending of its name.
_OTHERS = {ending: " InferenceData is read by arviz.from_netcdf." for ending in (".nc", ".netcdf", ".h5")}


def check_place(path: str | os.PathLike[str]) -> Path:
    """The path, if a file can be put there.

    Raises:
        FileNotFoundError: If its directory does not exist.
    """
    path = _path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no directory {str(path.parent)!r} to put {path.name!r} into; make it first.")
    if path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a directory; give the name of a file.")

    return path


def _path(path: Any) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        order = " OSDS.load takes the path first, then the model." if callable(path) else ""
        raise TypeError(f"path must be the name of a file, got {type(path).__name__}.{order}")

    return Path(path)


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a file beside the path, then put it in its place: a crash on the way leaves what was there before.

    Arguments:
        path: The file.
        content: Containers of tensors, strings, numbers and records.
    """
    header = {"format": FORMAT, "format_version": FORMAT_VERSION, "package_version": __version__}
    half = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(half, "wb") as file:
            torch.save({**header, **pack(content)}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(half, path)
    except OSError as error:
        raise type(error)(
            error.errno,
            f"The fit cannot be written: {error.strerror or error}. The fit itself is kept; save it elsewhere",
            str(path),
        ) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            half.unlink()


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a file, its records not yet put together, all tensors on the CPU.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is none of ours, cut off, or of a newer format.
    """
    path = _path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}; give the path that OSDS.save was given.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - bytes that are no pickle may mean anything to the unpickler
        raise ValueError(
            f"{str(path)!r} is no file of a fit: it is cut off, or was not written by OSDS.save. Give the path that "
            f"OSDS.save was given.{_OTHERS.get(path.suffix.lower(), '')}"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{str(path)!r} holds something else than a fit; give a file that OSDS.save has written.")
    if content["format_version"] > FORMAT_VERSION:
        raise ValueError(
            f"{str(path)!r} has format {content['format_version']}, written by pyro_osds {content['package_version']}; "
            f"this is pyro_osds {__version__}, which reads formats up to {FORMAT_VERSION}. Upgrade the package."
        )

    return content


def pack(value: Any) -> Any:
    """Records taken apart, so that tensors, containers, strings and numbers are left.

    Raises:
        TypeError: If there is something else in it.

    Example:
        >>> unpack(pack({"check": EvidenceCheck(-1.0, 0.1)}))
        {'check': EvidenceCheck(log_evidence=-1.0, std_error=0.1)}
    """
    if isinstance(value, Tensor):
        value = value.detach()
        # A view would take all that it is a view of along.
        return value.clone() if value.untyped_storage().nbytes() > value.nbytes else value
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, float)):
        return float(value) if isinstance(value, float) else int(value)
    if type(value) in (list, tuple):
        return type(value)(map(pack, value))
    if isinstance(value, dict):
        return {key: pack(part) for key, part in value.items()}
    if isinstance(value, (MultivariateNormal, MixtureSameFamily)):
        return {_KIND: _DENSITY, **_pack_density(value)}
    if type(value).__name__ not in _RECORDS:
        raise TypeError(f"{type(value).__name__} has no place in a file; got {value!r}.")
    fields = value._asdict() if isinstance(value, (FlowDraws, Modes)) else _shallow(value)

    return {_KIND: type(value).__name__, **{name: pack(part) for name, part in fields.items()}}


def _shallow(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def unpack(value: Any, device: torch.device | str = "cpu") -> Any:
    """What :func:`pack` took apart, put together again.

    Arguments:
        value: The packed value.
        device: Where tensors belong; states of random numbers stay where they are.
    """
    if isinstance(value, Tensor):
        return value.to(device)
    if type(value) in (list, tuple):
        return type(value)(unpack(part, device) for part in value)
    if not isinstance(value, dict):
        return value
    parts = {key: part if key == "random" else unpack(part, device) for key, part in value.items()}
    kind = parts.pop(_KIND, None)
    if kind is None:
        return parts
    if kind == _DENSITY:
        return _density(**parts)

    renamed = _RENAMED.get(str(kind), {})

    return _RECORDS[str(kind)](**{renamed.get(str(name), str(name)): part for name, part in parts.items()})


def _pack_density(density: MultivariateNormal | MixtureSameFamily) -> dict[str, Any]:
    if isinstance(density, MultivariateNormal):
        return {"loc": density.loc, "scale_tril": density.scale_tril, "probs": None}
    components = density.component_distribution
    assert isinstance(components, MultivariateNormal)

    return {
        "loc": components.loc,
        "scale_tril": components.scale_tril,
        "probs": density.mixture_distribution.probs,
    }


def _density(loc: Tensor, scale_tril: Tensor, probs: Tensor | None) -> MultivariateNormal | MixtureSameFamily:
    components = Gaussian(loc, scale_tril)
    if probs is None:
        return components
    mixture = Categorical(probs=probs, validate_args=False)
    # Normalised a second time, they could differ in their last bit.
    mixture.__dict__.update(probs=probs, _param=probs)

    return GaussianMixture(mixture, components)

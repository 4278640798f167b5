"""The way out to ArviZ: named groups of arrays become InferenceData, or a DataTree from ArviZ 1.0 on.

The only module that knows ArviZ. It is imported when the first InferenceData is made, since that takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from pyro_osds.runtime.names import RESERVED, exported_names, renamed

if TYPE_CHECKING:
    # With ArviZ 1 it is xarray.DataTree, which has the groups as items, too.
    from arviz import InferenceData

Arrays = Mapping[str, np.ndarray]

_SAMPLE_DIMS = ("chain", "draw")


def to_inference_data(
    sampled: Mapping[str, Arrays],
    constant: Mapping[str, Arrays],
    dims: Mapping[str, Sequence[str]],
    attrs: Mapping[str, Any],
    *,
    own_dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    draws: Arrays | None = None,
) -> InferenceData:
    """InferenceData from groups of arrays.

    Arguments:
        sampled: Groups whose variables have shape ``(chains, draws, *shape)``.
        constant: Groups whose variables have no chain and draw.
        dims: Dimension names of a variable's own shape, by variable name; names are made up where there are none, or
            where they collide.
        attrs: Attributes of every group; what a file cannot hold is left out (None) or written out.
        own_dims: The same, from the user: as they are, or an error.
        coords: Labels by dimension, in every group that has it; dimensions without labels count from zero.
        draws: Labels of the dimension ``draw``, by group.

    Names that ArviZ has for its own dimensions, or that no file can hold, are changed as
    :func:`pyro_osds.runtime.names.exported_names` says; ``own_dims`` and ``coords`` may use either.

    Returns:
        ``arviz.InferenceData`` with ArviZ 0, ``xarray.DataTree`` with ArviZ 1.

    Raises:
        ValueError: If ``own_dims`` or ``coords`` do not fit the arrays.

    Example:
        >>> groups = {"posterior": {"theta": np.zeros((4, 10, 2))}}
        >>> idata = to_inference_data(groups, {}, {}, {}, own_dims={"theta": ["side"]}, coords={"side": ["a", "b"]})
        >>> dict(idata["posterior"].sizes)
        {'chain': 4, 'draw': 10, 'side': 2}
    """
    attrs = {
        "created_at": datetime.now(timezone.utc).isoformat(),
        "inference_library": "pyro_osds",
        "inference_library_version": _version("pyro-osds"),
        "arviz_version": version("arviz"),
        **{name: _storable(value) for name, value in attrs.items() if value is not None},
    }
    variables = exported_names(
        dict.fromkeys(name for group in (sampled, constant) for each in group.values() for name in each)
    )
    # A plate with one of ArviZ's own names gives way further below, by the names of its sites.
    plates = dict.fromkeys(dim for given in dims.values() for dim in given)
    axes = {**{dim: dim for dim in plates}, **exported_names(dim for dim in plates if dim not in RESERVED)}
    sampled, constant = (
        {group: {variables[name]: array for name, array in arrays.items()} for group, arrays in groups.items()}
        for groups in (sampled, constant)
    )
    dims = {variables.get(name, name): [axes[dim] for dim in given] for name, given in dims.items()}
    own_dims = {variables.get(name, name): given for name, given in (own_dims or {}).items()}
    coords = {axes.get(dim, dim): labels for dim, labels in (coords or {}).items()}
    shapes: dict[str, tuple[int, ...]] = {}
    for groups, skipped in ((sampled, len(_SAMPLE_DIMS)), (constant, 0)):
        for arrays in groups.values():
            for name, array in arrays.items():
                # A variable that is in several groups, with fewer dimensions in some, is named after the fullest.
                shape = np.shape(array)[skipped:]
                shapes[name] = max(shapes.get(name, ()), shape, key=len)
    _check_dims(own_dims, shapes)
    names = _Names(dims, own_dims, shapes)
    datasets = {group: _dataset(group, arrays, names, attrs, _SAMPLE_DIMS) for group, arrays in sampled.items()}
    datasets |= {group: _dataset(group, arrays, names, attrs, ()) for group, arrays in constant.items()}
    datasets = {group: dataset for group, dataset in datasets.items() if dataset.data_vars}
    for group, labels in (draws or {}).items():
        datasets[group] = datasets[group].assign_coords(draw=labels)
    for dim, labels in coords.items():
        datasets |= _labelled(datasets, dim, labels)
    if int(version("arviz").split(".")[0]) >= 1:
        tree = xr.DataTree.from_dict({f"/{group}": dataset for group, dataset in datasets.items()})
        tree.attrs.update(attrs)
        return tree

    import arviz

    return arviz.InferenceData(attrs=attrs, **datasets)  # type: ignore[arg-type]


class _Names:
    """Dimension names by variable: the user's, else the model's, else made-up ones.

    Arguments:
        dims: The model's.
        own_dims: The user's.
        shapes: The shapes that the user's names are for, by variable.
    """

    def __init__(
        self,
        dims: Mapping[str, Sequence[str]],
        own_dims: Mapping[str, Sequence[str]],
        shapes: Mapping[str, Sequence[int]],
    ) -> None:
        self.own = own_dims
        self._dims = {**dims, **own_dims}
        self._shapes = shapes

    def of(self, name: str, shape: Sequence[int]) -> list[str]:
        """Names for the axes of a variable; fewer than axes, where there are no more."""
        given = list(self._dims.get(name, ()))[: len(shape)]
        if name not in self.own:
            return given
        # Unconstrained values of a probability vector are one fewer: what the user has named is another dimension.
        same = [size == full for size, full in zip(shape, self._shapes[name], strict=False)]

        return [dim if is_same else f"{name}_dim_{axis}" for axis, (dim, is_same) in enumerate(zip(given, same))]  # noqa: B905


def _dataset(
    group: str, arrays: Arrays, names: _Names, attrs: Mapping[str, Any], sample_dims: tuple[str, ...]
) -> xr.Dataset:
    """Variables with dimensions and coordinates, safe against names that collide."""
    sizes: dict[str, int] = {}
    variables = {}
    # The user's names are not given up for others, so they come first.
    for name in sorted(arrays, key=lambda name: name not in names.own):
        array = np.asarray(arrays[name])
        leading = sample_dims[: array.ndim]
        shape = array.shape[len(leading) :]
        dims = names.of(name, shape)
        dims += [_free_name(name, axis, arrays) for axis in range(len(dims), len(shape))]
        for axis, size in enumerate(shape):
            dim = dims[axis]
            # A dimension may not share its name with a variable, nor have two sizes in one group.
            taken = dim in arrays or dim in RESERVED
            if taken or sizes.setdefault(dim, size) != size:
                if dim in names.own.get(name, ()):
                    raise ValueError(_collision(group, name, dim, size, None if taken else sizes[dim]))
                dims[axis] = _free_name(name, axis, arrays)
                sizes[dims[axis]] = size
        sizes |= dict(zip(leading, array.shape, strict=False))
        variables[name] = (*leading, *dims), array
    coords = {dim: np.arange(size) for dim, size in sizes.items()}

    return xr.Dataset({name: variables[name] for name in arrays}, coords=coords, attrs=dict(attrs))


def _free_name(name: str, axis: int, taken: Arrays) -> str:
    dim = f"{name}_dim_{axis}"
    while dim in taken:
        dim += "_"

    return dim


def _labelled(datasets: Mapping[str, xr.Dataset], dim: str, labels: Sequence[Any]) -> dict[str, xr.Dataset]:
    """The groups that have this dimension, with labels."""
    array = np.asarray(labels)
    if array.ndim != 1:
        raise ValueError(f"coords[{dim!r}] must be a list of labels, got shape {array.shape}.")
    if dim in RESERVED:
        raise ValueError(f"coords names {dim!r}, whose labels are the numbers of chains and draws. Leave it away.")
    having = {group: dataset for group, dataset in datasets.items() if dim in dataset.sizes}
    if not having:
        known = sorted({str(name) for dataset in datasets.values() for name in dataset.sizes} - set(RESERVED))
        raise ValueError(f"coords names {dim!r}, which is no dimension; there are {known}. Name it in dims= first.")
    fitting = {group: dataset for group, dataset in having.items() if dataset.sizes[dim] == len(array)}
    if not fitting:
        size = next(iter(having.values())).sizes[dim]
        raise ValueError(f"coords[{dim!r}] has {len(array)} labels for a dimension of size {size}.")

    return {group: dataset.assign_coords({dim: array}) for group, dataset in fitting.items()}


def _check_dims(own_dims: Mapping[str, Sequence[str]], shapes: Mapping[str, Sequence[int]]) -> None:
    for name, dims in own_dims.items():
        if name not in shapes:
            raise ValueError(f"dims names the variable {name!r}, which is in no group; there are {sorted(shapes)}.")
        if isinstance(dims, str) or not all(isinstance(dim, str) for dim in dims):
            raise ValueError(f"dims[{name!r}] must be a list of names, got {dims!r}.")
        if len(dims) != len(shapes[name]):
            raise ValueError(
                f"dims[{name!r}] has {len(dims)} names, {list(dims)}, but the variable has shape "
                f"{tuple(shapes[name])}. Give one name for each dimension besides chain and draw."
            )
        bad = [dim for dim in dims if renamed([dim]) and dim not in RESERVED]
        if bad:
            raise ValueError(
                f"dims[{name!r}] uses {bad[0]!r}, a name that no file of InferenceData can hold. Use a name without "
                f"slashes, such as {exported_names(bad)[bad[0]]!r}."
            )
        if len(set(dims)) < len(dims):
            raise ValueError(f"dims[{name!r}] has a name twice: {list(dims)}. Give each dimension a name of its own.")


def _collision(group: str, name: str, dim: str, size: int, other_size: int | None) -> str:
    if dim in RESERVED:
        return f"dims[{name!r}] uses {dim!r}, which is ArviZ's name for the draws. Give the dimension another name."
    if other_size is None:
        return (
            f"dims[{name!r}] uses {dim!r}, which is a variable of the group {group!r}, too. Give the dimension another "
            "name."
        )

    return (
        f"dims[{name!r}] uses {dim!r} for a dimension of size {size}, which has size {other_size} elsewhere in the "
        f"group {group!r}. Give dimensions of different sizes different names."
    )


def _storable(value: Any) -> Any:
    """A value that a netCDF file can hold as an attribute."""
    if isinstance(value, bool):
        return int(value)

    return value if isinstance(value, (int, float, str, np.number)) else str(value)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from its source
        return "unknown"

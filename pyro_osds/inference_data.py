"""The way out to ArviZ: named groups of arrays become InferenceData, or a DataTree from ArviZ 1.0 on.

The only room that knows ArviZ. It is imported when the first InferenceData is made, since that takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

import numpy as np
import xarray as xr

Arrays = Mapping[str, np.ndarray]

_SAMPLE_DIMS = ("chain", "draw")


def to_inference_data(
    sampled: Mapping[str, Arrays],
    constant: Mapping[str, Arrays],
    dims: Mapping[str, Sequence[str]],
    attrs: Mapping[str, Any],
) -> Any:  # noqa: ANN401 - InferenceData or DataTree
    """InferenceData from groups of arrays.

    Arguments:
        sampled: Groups whose variables have shape ``(chains, draws, *shape)``.
        constant: Groups whose variables have no chain and draw.
        dims: Dimension names of a variable's own shape, by variable name; names are made up where there are none.
        attrs: Attributes of every group: numbers and strings.

    Returns:
        ``arviz.InferenceData`` with ArviZ 0, ``xarray.DataTree`` with ArviZ 1.

    Example:
        >>> idata = to_inference_data({"posterior": {"mu": np.zeros((4, 10))}}, {}, {}, {})
        >>> dict(idata["posterior"].sizes)
        {'chain': 4, 'draw': 10}
    """
    attrs = {
        "created_at": datetime.now(timezone.utc).isoformat(),
        "inference_library": "pyro_osds",
        "inference_library_version": version("pyro-osds"),
        "arviz_version": version("arviz"),
        **attrs,
    }
    datasets = {group: _dataset(arrays, dims, attrs, _SAMPLE_DIMS) for group, arrays in sampled.items()}
    datasets |= {group: _dataset(arrays, dims, attrs, ()) for group, arrays in constant.items()}
    datasets = {group: dataset for group, dataset in datasets.items() if dataset.data_vars}
    if int(version("arviz").split(".")[0]) >= 1:
        tree = xr.DataTree.from_dict({f"/{group}": dataset for group, dataset in datasets.items()})
        tree.attrs.update(attrs)
        return tree

    import arviz

    return arviz.InferenceData(attrs=attrs, **datasets)  # type: ignore[arg-type]


def _dataset(
    arrays: Arrays, dims: Mapping[str, Sequence[str]], attrs: Mapping[str, Any], sample_dims: tuple[str, ...]
) -> xr.Dataset:
    """Variables with dimensions and coordinates, safe against names that collide."""
    sizes: dict[str, int] = {}
    variables = {}
    for name, array in arrays.items():
        array = np.asarray(array)
        leading = sample_dims[: array.ndim]
        shape = array.shape[len(leading) :]
        own = list(dims.get(name, ()))[: len(shape)]
        own += [_free_name(name, axis, arrays) for axis in range(len(own), len(shape))]
        for axis, size in enumerate(shape):
            # A dimension may not share its name with a variable, nor have two sizes in one group.
            taken = own[axis] in arrays or own[axis] in (*sample_dims, "sample")
            if taken or sizes.setdefault(own[axis], size) != size:
                own[axis] = _free_name(name, axis, arrays)
                sizes[own[axis]] = size
        sizes |= dict(zip(leading, array.shape, strict=False))
        variables[name] = (*leading, *own), array
    coords = {dim: np.arange(size) for dim, size in sizes.items()}

    return xr.Dataset(variables, coords=coords, attrs=dict(attrs))


def _free_name(name: str, axis: int, taken: Arrays) -> str:
    dim = f"{name}_dim_{axis}"
    while dim in taken:
        dim += "_"

    return dim

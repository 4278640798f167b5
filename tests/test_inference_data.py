"""The inference_data room: groups, dimensions and names that collide, there and back through a file."""

import importlib.metadata
import math
import warnings

import numpy as np
import pytest

from pyro_osds.compare import UnreliableEvidenceWarning, compare_evidence
from pyro_osds.inference_data import to_inference_data

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import arviz

ARVIZ_1 = int(importlib.metadata.version("arviz").split(".")[0]) >= 1
FIT = {"log_evidence": -7.25, "std_error": 0.01, "pareto_k": 0.3, "reliable": 1, "reasons": "none"}


def draws(*shape):
    return np.random.default_rng(0).normal(size=(2, 5, *shape))


def make(posterior, dims=None, constant=None, attrs=None):
    return to_inference_data({"posterior": posterior}, constant or {}, dims or {}, attrs or {})


def test_type():
    # InferenceData of ArviZ 0, DataTree of ArviZ 1.
    assert type(make({"mu": draws()})).__name__ == ("DataTree" if ARVIZ_1 else "InferenceData")


def test_dimensions_and_coordinates():
    # Chain, draw, the given names, made-up ones for the rest; coordinates count from zero; values are untouched.
    arrays = {"mu": draws(), "theta": draws(8), "w": draws(8, 3)}
    posterior = make(arrays, {"theta": ("school",), "w": ("school",)})["posterior"]
    assert posterior["mu"].dims == ("chain", "draw")
    assert posterior["theta"].dims == ("chain", "draw", "school")
    assert posterior["w"].dims == ("chain", "draw", "school", "w_dim_1")
    assert posterior["school"].values.tolist() == list(range(8)) and posterior["draw"].values.tolist() == list(range(5))
    for name, array in arrays.items():
        assert np.array_equal(posterior[name].values, array)


def test_constant_groups_have_no_chain():
    # Observations and scalars.
    idata = make({"mu": draws()}, {"y": ("data",)}, {"observed_data": {"y": np.arange(4.0)}, "fit": FIT})
    assert idata["observed_data"]["y"].dims == ("data",)
    assert idata["fit"]["log_evidence"].dims == () and float(idata["fit"]["log_evidence"]) == -7.25


def test_empty_groups_are_left_out():
    # No group without a variable.
    idata = to_inference_data({"posterior": {"mu": draws()}, "log_likelihood": {}}, {"observed_data": {}}, {}, {})
    groups = idata.children if ARVIZ_1 else idata.groups()
    assert set(groups) == {"posterior"}


def test_a_dimension_with_the_name_of_a_variable():
    # A plate "school" beside a site "school".
    posterior = make({"school": draws(), "theta": draws(3)}, {"theta": ("school",)})["posterior"]
    assert posterior["theta"].dims == ("chain", "draw", "theta_dim_0") and posterior["school"].shape == (2, 5)


@pytest.mark.parametrize("name", ["chain", "draw", "sample"])
def test_a_dimension_with_a_name_of_arviz(name):
    # A plate named as one of ArviZ's own dimensions.
    posterior = make({"theta": draws(3)}, {"theta": (name,)})["posterior"]
    assert posterior["theta"].dims == ("chain", "draw", "theta_dim_0")


def test_one_dimension_with_two_sizes():
    # The second one gets a name of its own.
    posterior = make({"a": draws(3), "b": draws(4)}, {"a": ("plate",), "b": ("plate",)})["posterior"]
    assert posterior["a"].dims[-1] == "plate" and posterior["b"].dims[-1] == "b_dim_0"
    assert posterior["a"].shape == (2, 5, 3) and posterior["b"].shape == (2, 5, 4)


def test_a_variable_with_the_name_of_a_made_up_dimension():
    # "x" of shape (3,) beside a site that is called "x_dim_0".
    posterior = make({"x": draws(3), "x_dim_0": draws()})["posterior"]
    assert posterior["x"].shape == (2, 5, 3) and posterior["x_dim_0"].shape == (2, 5)


def test_attributes():
    # The library and its version, and what was given.
    attrs = make({"mu": draws()}, attrs={"num_steps": 1, "training_time": 0.5})["posterior"].attrs
    assert attrs["inference_library"] == "pyro_osds" and attrs["num_steps"] == 1 and attrs["training_time"] == 0.5
    assert attrs["inference_library_version"] == importlib.metadata.version("pyro-osds")


def test_a_file_keeps_everything(tmp_path):
    # Written, read back: the same values and dimensions, and the evidence can still be compared.
    idata = make({"mu": draws(), "theta": draws(8)}, {"theta": ("school",)}, {"fit": FIT}, {"num_steps": 1})
    path = str(tmp_path / "run.nc")
    if ARVIZ_1:
        import xarray as xr

        idata.to_netcdf(path, engine="h5netcdf")
        stored = xr.open_datatree(path, engine="h5netcdf")
    else:
        idata.to_netcdf(path, engine="h5netcdf")
        stored = arviz.from_netcdf(path, engine="h5netcdf")
    assert np.array_equal(stored["posterior"]["theta"].values, idata["posterior"]["theta"].values)
    assert stored["posterior"]["theta"].dims == ("chain", "draw", "school")
    assert stored["posterior"].attrs["num_steps"] == 1 and str(stored["fit"]["reasons"].values) == "none"
    other = make({"mu": draws()}, constant={"fit": FIT | {"log_evidence": -7.25 - math.log(3), "reliable": 0}})
    with pytest.warns(UnreliableEvidenceWarning, match="'other'"):
        table = compare_evidence({"other": other, "stored": stored})
    assert list(table.index) == ["stored", "other"] and table["reliable"].tolist() == [True, False]
    assert math.isclose(table.loc["stored", "posterior_prob"], 0.75) and table.loc["stored", "std_error"] == 0.01


def test_arviz_reads_it():
    # summary() finds every variable.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        summary = arviz.summary(make({"mu": draws(), "theta": draws(2)}))
    assert len(summary) == 3

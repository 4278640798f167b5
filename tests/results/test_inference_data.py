"""Inference data: groups, dimensions and names that collide, there and back through a file.

It runs without torch, so that `make test-arviz1` can hold the module against ArviZ 1, which wants a newer Python than
the other tests have. So it loads the module from its file; where there is no Pyro, empty packages stand in for those
that import it.
"""

import importlib.metadata
import importlib.util
import sys
import types
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import xarray as xr

matplotlib.use("Agg")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import arviz

PACKAGE = Path(__file__).parents[2] / "pyro_osds"
SOURCE = PACKAGE / "results" / "inference_data.py"
if importlib.util.find_spec("pyro") is None:
    for name, folder in (("pyro_osds", PACKAGE), ("pyro_osds.runtime", PACKAGE / "runtime")):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(folder)]
SPEC = importlib.util.spec_from_file_location("inference_data_alone", SOURCE)
ROOM = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(ROOM)
to_inference_data = ROOM.to_inference_data

ARVIZ_1 = int(importlib.metadata.version("arviz").split(".")[0]) >= 1
FIT = {"log_evidence": -7.25, "std_error": 0.01, "pareto_k": 0.3, "reliable": 1, "reasons": "none"}


def draws(*shape):
    return np.random.default_rng(0).normal(size=(2, 5, *shape))


def make(posterior, dims=None, constant=None, attrs=None, **names):
    return to_inference_data({"posterior": posterior}, constant or {}, dims or {}, attrs or {}, **names)


def stored_and_read(idata, path):
    idata.to_netcdf(str(path), engine="h5netcdf")
    read = xr.open_datatree if ARVIZ_1 else arviz.from_netcdf

    return read(str(path), engine="h5netcdf")


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


# ---- names and labels from the user ----


def test_own_dimensions_and_labels():
    # By variable, in every group that has it; those with fewer dimensions get the first ones.
    groups = {"posterior": {"theta": draws(3, 2)}, "log_prior": {"theta": draws(3)}}
    names = {"own_dims": {"theta": ["school", "year"]}, "coords": {"school": ["a", "b", "c"]}}
    idata = to_inference_data(groups, {}, {"theta": ("plate", "theta_dim_1")}, {}, **names)
    assert idata["posterior"]["theta"].dims == ("chain", "draw", "school", "year")
    assert idata["log_prior"]["theta"].dims == ("chain", "draw", "school")
    for group in groups:
        assert idata[group]["school"].values.tolist() == ["a", "b", "c"]
    assert idata["posterior"]["year"].values.tolist() == [0, 1]
    np.testing.assert_array_equal(
        idata["posterior"]["theta"].sel(school="b").values, groups["posterior"]["theta"][:, :, 1]
    )


def test_labels_of_a_plate():
    # The model's own dimension needs no dims=.
    idata = make({"theta": draws(2)}, {"theta": ("school",)}, coords={"school": ["a", "b"]})
    assert idata["posterior"]["theta"].sel(school="b").shape == (2, 5)


def test_own_dimensions_go_first():
    # The user's name stays; a plate that is called the same and has another size gets out of its way.
    posterior = make({"a": draws(3), "b": draws(4)}, {"a": ("plate",)}, own_dims={"b": ["plate"]})["posterior"]
    assert posterior["b"].dims[-1] == "plate" and posterior["a"].dims[-1] == "a_dim_0"
    assert list(posterior.data_vars) == ["a", "b"]


def test_unconstrained_values_are_fewer():
    # A probability vector of three has two unconstrained coordinates: not the user's dimension any more.
    groups = {"posterior": {"w": draws(3)}, "unconstrained_posterior": {"w": draws(2)}}
    names = {"own_dims": {"w": ["party"]}, "coords": {"party": ["a", "b", "c"]}}
    idata = to_inference_data(groups, {}, {}, {}, **names)
    assert idata["posterior"]["w"].dims[-1] == "party" and idata["unconstrained_posterior"]["w"].dims[-1] == "w_dim_0"


def test_labels_of_thinned_draws():
    # A group with every second draw says which ones, so that groups can be aligned.
    groups = {"posterior": {"mu": draws()}, "posterior_predictive": {"y": draws(3)[:, ::2]}}
    idata = to_inference_data(groups, {}, {}, {}, draws={"posterior_predictive": np.arange(0, 5, 2)})
    assert idata["posterior_predictive"]["draw"].values.tolist() == [0, 2, 4]
    mu, _ = xr.align(idata["posterior"]["mu"], idata["posterior_predictive"]["y"], join="inner")
    np.testing.assert_array_equal(mu.values, groups["posterior"]["mu"][:, ::2])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"own_dims": {"thta": ["school"]}}, r"names the variable 'thta', .*\['mu', 'theta', 'w'\]"),
        ({"own_dims": {"theta": "school"}}, "must be a list of names, got 'school'"),
        ({"own_dims": {"theta": [1]}}, r"must be a list of names, got \[1\]"),
        ({"own_dims": {"theta": ["a", "b"]}}, r"has 2 names, \['a', 'b'\], but the variable has shape \(3,\)"),
        ({"own_dims": {"mu": ["a"]}}, r"has 1 names, \['a'\], but the variable has shape \(\)"),
        ({"own_dims": {"w": ["a", "a"]}}, r"a name twice: \['a', 'a'\]"),
        ({"own_dims": {"theta": ["chain"]}}, "uses 'chain', which is ArviZ's name"),
        ({"own_dims": {"theta": ["draw"]}}, "uses 'draw', which is ArviZ's name"),
        ({"own_dims": {"theta": ["mu"]}}, "uses 'mu', which is a variable of the group 'posterior'"),
        ({"own_dims": {"w": ["a", "b"], "theta": ["b"]}}, "uses 'b' for a dimension of size 2, .* size 3 elsewhere"),
        (
            {"coords": {"school": ["a"]}},
            r"names 'school', which is no dimension; there are \['plate', 'w_dim_0'",
        ),
        ({"coords": {"plate": ["a", "b"]}}, r"coords\['plate'\] has 2 labels for a dimension of size 3"),
        ({"coords": {"plate": [["a", "b", "c"]]}}, r"must be a list of labels, got shape \(1, 3\)"),
        ({"coords": {"chain": [1, 2]}}, "names 'chain', whose labels are the numbers of chains and draws"),
    ],
)
def test_names_that_do_not_fit(names, message):
    # What was given, and where it does not fit.
    with pytest.raises(ValueError, match=message):
        make({"mu": draws(), "theta": draws(3), "w": draws(3, 2)}, {"theta": ("plate",)}, **names)


# ---- attributes and files ----


def test_attributes():
    # The library and its version, what was given, and nothing that a file cannot hold.
    given = {"num_steps": 1, "training_time": 0.5, "reliable": True, "max_time": None, "options": {"a": 1}}
    attrs = make({"mu": draws()}, attrs=given)["posterior"].attrs
    assert attrs["inference_library"] == "pyro_osds" and attrs["num_steps"] == 1 and attrs["training_time"] == 0.5
    assert attrs["reliable"] == 1 and "max_time" not in attrs and attrs["options"] == "{'a': 1}"


def test_version():
    # Of the package, where it is installed; the module can be used without.
    attrs = make({"mu": draws()})["posterior"].attrs
    try:
        expected = importlib.metadata.version("pyro-osds")
    except importlib.metadata.PackageNotFoundError:
        expected = "unknown"
    assert attrs["inference_library_version"] == expected


@pytest.fixture(scope="module")
def regression():
    """All groups of a normal mean: exact draws, and all that belongs to them."""
    rng = np.random.default_rng(1)
    y = np.array([1.2, 0.4, 2.1, 1.7, 0.9, -0.3, 1.1, 0.8])
    mu = y.sum() / (len(y) + 0.25) + rng.normal(size=(4, 250)) / np.sqrt(len(y) + 0.25)
    thin = np.arange(0, 250, 5)
    log_likelihood = -0.5 * (y - mu[..., None]) ** 2 - 0.5 * np.log(2 * np.pi)
    sampled = {
        "posterior": {"mu": mu, "theta": rng.normal(size=(4, 250, 3))},
        "unconstrained_posterior": {"mu": mu},
        "sample_stats": {"lp": log_likelihood.sum(-1), "diverging": np.zeros((4, 250), dtype=bool)},
        "log_likelihood": {"y": log_likelihood},
        "log_prior": {"mu": -(mu**2) / 8},
        "posterior_predictive": {"y": mu[:, thin, None] + rng.normal(size=(4, len(thin), len(y)))},
        "prior": {"mu": 2 * rng.normal(size=(1, 100))},
        "prior_predictive": {"y": 2 * rng.normal(size=(1, 100, len(y)))},
    }
    constant = {"observed_data": {"y": y}, "constant_data": {"x": np.arange(8.0)}, "fit": FIT, "fit_stats": {"num": 3}}
    names = {
        "own_dims": {"x": ["day"]}, "coords": {"day": [f"day {i}" for i in range(8)]},
        "draws": {"posterior_predictive": thin},
    }  # fmt: skip

    return to_inference_data(sampled, constant, {"y": ("day",), "theta": ("school",)}, {"num_steps": 1}, **names)


def test_a_file_keeps_everything(regression, tmp_path):
    # Written, read back: the same groups, values, dimensions, labels and attributes.
    stored = stored_and_read(regression, tmp_path / "run.nc")
    groups = [group for group in (regression.groups if ARVIZ_1 else regression.groups()) if group != "/"]
    assert len(groups) == 12
    for group in groups:
        got, expected = stored[group], regression[group]
        assert set(got.data_vars) == set(expected.data_vars) and dict(got.attrs) == dict(expected.attrs)
        for name in expected.data_vars:
            assert got[name].dims == expected[name].dims
            np.testing.assert_array_equal(got[name].values, expected[name].values)
            for dim in got[name].dims:
                np.testing.assert_array_equal(got[dim].values, expected[dim].values)
    assert stored.attrs["num_steps"] == 1 and str(stored["fit"]["reasons"].values) == "none"


# ---- what ArviZ makes of it ----


@pytest.mark.filterwarnings("ignore")
def test_summary(regression):
    # Every variable, labels in the names.
    summary = arviz.summary(regression)
    assert list(summary.index) == ["mu", "theta[0]", "theta[1]", "theta[2]"]


@pytest.mark.filterwarnings("ignore")
def test_loo(regression):
    # It finds the log likelihood; leaving one out exactly is a normal density again.
    y = regression["observed_data"]["y"].values
    others = y.sum() - y
    variance = 1 / (len(y) - 0.75)
    exact = -0.5 * (y - others * variance) ** 2 / (1 + variance) - 0.5 * np.log(2 * np.pi * (1 + variance))
    loo = arviz.loo(regression, pointwise=True)
    elpd = loo.elpd if ARVIZ_1 else loo.elpd_loo
    np.testing.assert_allclose(elpd, exact.sum(), atol=0.03)
    assert float(loo.pareto_k.max()) < 0.7


@pytest.mark.filterwarnings("ignore")
def test_compare(regression):
    # Two of them, one with a worse likelihood.
    log_likelihood = regression["log_likelihood"]["y"].values - 0.5
    groups = {"posterior": {"mu": log_likelihood.sum(-1)}, "log_likelihood": {"y": log_likelihood}}
    worse = to_inference_data(groups, {}, {"y": ("day",)}, {})
    assert list(arviz.compare({"worse": worse, "better": regression}).index) == ["better", "worse"]


# What works of ArviZ 1 is tried here; what works of ArviZ 0, on a fit, in test_arviz.py.
NEW = ["plot_trace_dist", "plot_forest", "plot_pair", "plot_ppc_dist", "plot_prior_posterior"]
PLOTS = [*NEW, "plot_psense_dist"] if ARVIZ_1 else ["plot_posterior"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PLOTS)
def test_plots(regression, name):
    # They find their groups and draw.
    options = {"var_names": ["mu", "theta"]} if name == "plot_pair" else {}
    assert getattr(arviz, name)(regression, **options) is not None
    matplotlib.pyplot.close("all")

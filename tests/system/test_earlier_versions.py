"""What earlier versions wrote, and how they were imported: it works, or it says what to do.

The files in ``data`` were written by the code before there were packages: a fit, its InferenceData, and a pickle of an
Evidence with a few draws. The model and its data are in ``earlier_model``; its evidence is a ratio of beta functions.
"""

import gzip
import importlib
import math
import pickle
import sys
import warnings
from pathlib import Path

import pytest
import torch
from earlier_model import Y, coin

import pyro_osds
from pyro_osds import OSDS, compare_evidence
from pyro_osds.runtime import moved

DATA = Path(__file__).parent / "data"
EXACT = math.log((1 / 105) / (1 / 6))  # B(2 + 3, 2 + 1) / B(2, 2)


def unpacked(name, folder):
    path = folder / name
    path.write_bytes(gzip.decompress((DATA / f"{name}.gz").read_bytes()))

    return path


@pytest.fixture
def forgotten():
    """Old names are imported as if for the first time."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_file(tmp_path):
    # The same evidence, chains and flow; it can be drawn from, stepped and written again.
    osds = OSDS.load(unpacked("earlier_fit.pt", tmp_path), coin, Y)
    assert osds.log_evidence == -2.864257463509025 and osds.evidence.reliable
    assert osds.get_samples()["p"].shape == (20,) and osds.get_samples()["p"][0].item() == pytest.approx(
        0.9057, abs=1e-4
    )
    draws = osds.draw(4000)
    assert abs(draws.get_log_normalizer().item() - EXACT) < 4 * draws.log_weights.std().item() / math.sqrt(4000)
    assert math.isfinite(osds.step(Y))
    osds.save(tmp_path / "again.pt")
    assert OSDS.load(tmp_path / "again.pt", coin, Y).fit.trainer.history.loss == osds.trainer.history.loss


def test_inference_data(tmp_path):
    # compare_evidence takes it beside a fit of today.
    import arviz

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        idata = arviz.from_netcdf(str(unpacked("earlier_fit.nc", tmp_path)), engine="h5netcdf")
    osds = OSDS(coin, num_samples=100, num_chains=2, disable_progbar=True)
    osds.run(Y)
    table = compare_evidence({"earlier": idata, "today": osds})
    assert table.loc["earlier", "log_evidence"] == -2.864257463509025 and bool(table.loc["earlier", "reliable"])
    assert abs(osds.log_evidence - EXACT) < 4 * osds.log_evidence_se + 1e-4


def test_a_pickle(forgotten):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        evidence, draws = pickle.loads(gzip.decompress((DATA / "earlier_evidence.pkl.gz").read_bytes()))
    told = {str(warning.message) for warning in caught}
    assert "pyro_osds.evidence is pyro_osds.posterior.verdict now; import from there." in told
    assert type(evidence) is pyro_osds.Evidence and evidence.log_evidence == -2.864257463509025
    assert str(evidence) and evidence.reliable and evidence.all_reasons == ()
    assert type(draws) is pyro_osds.WeightedDraws and draws.samples["p"].shape == (3,)


@pytest.mark.parametrize("name", ["_model_target", "_potential_target", "_given_target"])
def test_a_pickle_of_a_sampler_says_what_to_do(name):
    # By reference to the function that made its target.
    with pytest.raises(RuntimeError, match="written by an earlier version.*OSDS.load; otherwise run the sampler again"):
        pickle.loads(f"cpyro_osds.osds\n{name}\n.".encode())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("old", moved._MOVED)
def test_old_names_are_found(old, forgotten):
    old_module = importlib.import_module(f"pyro_osds.{old}")
    new = moved._MOVED[old]
    for name in [new] if isinstance(new, str) else new:
        new_module = importlib.import_module(f"pyro_osds.{name}")
        # The model front-end's tell what they define.
        defined = [
            name for name, value in vars(new_module).items() if getattr(value, "__module__", "") == new_module.__name__
        ]
        assert defined and all(getattr(old_module, name) is getattr(new_module, name) for name in defined)


def test_a_module_that_became_two_is_found_by_its_name(forgotten):
    # As in the pickle of an exception that was told again, which another process sent.
    pickled = b"cpyro_osds.runtime.source\ntold\n(cbuiltins\nKeyError\n(Va\ntRVThere is no a.\nNtR."
    with pytest.warns(DeprecationWarning, match="is pyro_osds.runtime.errors.lines and .*.errors.told now"):
        error = pickle.loads(pickled)
    assert isinstance(error, KeyError) and str(error) == "There is no a."
    with pytest.raises(AttributeError, match="module 'pyro_osds.runtime.source' has no attribute 'nothing'"):
        importlib.import_module("pyro_osds.runtime.source").nothing  # noqa: B018


@pytest.mark.parametrize(
    ("package", "name"), [("explore", "Exploration"), ("posterior", "PosteriorDraws"), ("train", "History")]
)
def test_packages_hand_on_what_modules_of_their_names_held(package, name):
    assert getattr(importlib.import_module(f"pyro_osds.{package}"), name).__name__ == name
    with pytest.raises(AttributeError, match=f"module 'pyro_osds.{package}' has no attribute 'nothing'"):
        importlib.import_module(f"pyro_osds.{package}").nothing  # noqa: B018


def test_unknown_names_stay_unknown():
    with pytest.raises(ModuleNotFoundError, match="pyro_osds.nothing"):
        importlib.import_module("pyro_osds.nothing")


def test_public_names_alone():
    assert set(dir(pyro_osds)) == set(pyro_osds.__all__)
    assert torch.__name__ not in dir(pyro_osds)


def test_a_function_may_have_the_name_of_an_old_module(forgotten):
    # Whoever imports the old module puts it in the place of the function of that name.
    with pytest.warns(DeprecationWarning, match="plot_evidence is pyro_osds.results.plot_evidence now"):
        importlib.import_module("pyro_osds.plot_evidence")
    from pyro_osds import plot_evidence

    with pytest.raises(ValueError, match="at least one model"):
        plot_evidence({})

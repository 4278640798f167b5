"""Compare: order, Bayes factors, words, flags and probabilities from log evidences of the same data."""

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from helpers import assert_within_standard_error

from pyro_osds import OSDS
from pyro_osds.posterior.verdict import Evidence
from pyro_osds.results.compare import UnreliableEvidenceWarning, compare_evidence
from pyro_osds.results.inference_data import to_inference_data

Y = torch.tensor([1.2, 0.4, 2.1, 1.7, 0.9])
CONTRACT = ["log_evidence", "std_error", "log_bayes_factor", "posterior_prob", "pareto_k", "reliable"]


def fitted(log_evidence, std_error=0.01, reliable=True, **observed):
    """What the module knows of a fitted sampler."""
    reasons = () if reliable else ("too few draws", "a lost mode")
    evidence = Evidence(log_evidence, std_error, log_evidence, 900.0, 0.25, 1000, reliable, reasons)
    return SimpleNamespace(evidence=evidence, observed_data=observed)


def stored(log_evidence, reasons="", **observed):
    """Groups of arrays as a run hands them to ArviZ."""
    fit = {"log_evidence": log_evidence, "std_error": 0.01, "pareto_k": 0.25, "reliable": int(not reasons)}
    return {"observed_data": observed, "fit": fit | {"reasons": reasons}}


def test_order_factors_and_probabilities():
    # Best first; probabilities are evidences over their sum; the columns of the contract come first.
    table = compare_evidence({"a": fitted(-3.0), "b": fitted(-1.0, 0.02), "c": fitted(-2.0)})
    assert list(table.index) == ["b", "c", "a"] and table.index.name == "model"
    assert table["log_bayes_factor"].tolist() == [0.0, -1.0, -2.0]
    total = sum(math.exp(value) for value in (-1, -2, -3))
    for name, value in [("b", -1), ("c", -2), ("a", -3)]:
        assert math.isclose(table.loc[name, "posterior_prob"], math.exp(value) / total)
    assert table["std_error"].tolist() == [0.02, 0.01, 0.01]
    assert table["reliable"].all() and (table["pareto_k"] == 0.25).all()
    assert list(table.columns) == [*CONTRACT, "log_bayes_factor_se", "evidence_against", "flag", "draws_reliable"]
    assert table["draws_reliable"].all()


def test_standard_error_of_the_factor():
    # Root sum of squares of independent runs; the best is itself, without an error.
    table = compare_evidence({"a": fitted(-9.0, 0.4), "best": fitted(-1.0, 0.3)})
    assert table.loc["best", "log_bayes_factor_se"] == 0.0
    assert math.isclose(table.loc["a", "log_bayes_factor_se"], 0.5)


@pytest.mark.parametrize(
    ("log_bayes_factor", "word"),
    [
        (-0.9, "not worth more than a bare mention"),
        (-1.1, "positive"),
        (-2.9, "positive"),
        (-3.1, "strong"),
        (-4.9, "strong"),
        (-5.1, "very strong"),
        (-500.0, "very strong"),
    ],
)
def test_words(log_bayes_factor, word):
    # Kass and Raftery's borders 2, 6 and 10 of 2 ln B; the best has no word, and none of these a flag.
    table = compare_evidence({"best": fitted(0.0), "other": fitted(log_bayes_factor)})
    assert table["evidence_against"].tolist() == ["", word] and table["flag"].tolist() == ["", ""]


@pytest.mark.parametrize(
    ("log_bayes_factor", "std_error", "flag"),
    [
        (-0.1, 0.06, "order undecided within 2 standard errors"),
        (-0.1, 0.04, ""),
        (-1.05, 0.04, "between 'not worth more than a bare mention' and 'positive' within 2 standard errors"),
        (-2.95, 0.04, "between 'positive' and 'strong' within 2 standard errors"),
        (-4.0, 1.0, "between 'positive' and 'very strong' within 2 standard errors"),
        (-4.0, math.inf, "order undecided within 2 standard errors"),
        (0.0, 0.0, "order undecided within 2 standard errors"),
    ],
)
def test_undecided(log_bayes_factor, std_error, flag):
    # The order first, then the word; twice the error on either side, which may be a tie or infinite.
    table = compare_evidence({"best": fitted(0.0, 0.0), "other": fitted(log_bayes_factor, std_error)})
    assert table["flag"].tolist() == ["", flag]


def test_an_unreliable_evidence_is_not_overlooked():
    # Flagged, and a warning with the model and its first reason only.
    with pytest.warns(UnreliableEvidenceWarning, match="'worse': too few draws$"):
        table = compare_evidence({"best": fitted(0.0), "worse": fitted(-9.0, reliable=False), "worst": fitted(-20.0)})
    assert table["flag"].tolist() == ["", "unreliable evidence", ""]


def test_an_unreliable_best_spoils_all_factors():
    # Each of them rests on it.
    with pytest.warns(UnreliableEvidenceWarning, match="'best': too few draws$"):
        table = compare_evidence({"best": fitted(0.0, reliable=False), "worse": fitted(-9.0), "x": fitted(-9.02, 0.02)})
    spoilt = "unreliable evidence of the best model"
    assert table["flag"].tolist() == ["unreliable evidence", spoilt, spoilt]


def test_weights_that_are_all_zero():
    # An evidence of -inf is last but one, an evidence that is none is last; neither breaks the others.
    models = {"nan": fitted(math.nan, math.nan), "zero": fitted(-math.inf, math.inf), "a": fitted(-1.0)}
    table = compare_evidence(models)
    assert list(table.index) == ["a", "zero", "nan"] and table["posterior_prob"].tolist()[:2] == [1.0, 0.0]
    assert table["evidence_against"].tolist() == ["", "very strong", ""]
    assert compare_evidence({"zero": models["zero"]})["log_bayes_factor"].isna().all()


def test_tiny_evidences_do_not_underflow():
    # Evidences of exp(-5000) are compared in logs.
    table = compare_evidence({"a": fitted(-5000.0), "b": fitted(-5000.0 - math.log(3))})
    assert math.isclose(table.loc["a", "posterior_prob"], 0.75)


def test_one_model():
    # It has all the probability.
    table = compare_evidence({"a": fitted(-3.0)})
    assert table.loc["a", "posterior_prob"] == 1 and table.loc["a", "log_bayes_factor"] == 0


def test_prior():
    # Not normalised; a prior of zero rules a model out; Bayes factors do not know it.
    models = {"a": fitted(0.0), "b": fitted(-1.0), "c": fitted(5.0)}
    table = compare_evidence(models, prior={"a": 1.0, "b": 3.0, "c": 0.0})
    assert table.loc["c", "posterior_prob"] == 0 and table.loc["c", "log_bayes_factor"] == 0
    assert math.isclose(table.loc["a", "posterior_prob"], 1 / (1 + 3 * math.exp(-1)))
    assert math.isclose(table.loc["b", "posterior_prob"], 3 * math.exp(-1) / (1 + 3 * math.exp(-1)))


def test_models_without_an_evidence_come_last():
    # They take no part in the probabilities of the others.
    table = compare_evidence({"improper": fitted(math.nan), "a": fitted(-1.0), "b": fitted(-1.0)})
    assert table.index[-1] == "improper"
    assert table["posterior_prob"].tolist()[:2] == [0.5, 0.5] and math.isnan(table["posterior_prob"].iloc[-1])
    last = table.iloc[-1]
    assert math.isnan(last["log_bayes_factor"]) and math.isnan(last["log_bayes_factor_se"])
    assert last["evidence_against"] == "" and last["flag"] == "no evidence: improper prior"


def test_no_model():
    # Nothing to compare.
    with pytest.raises(ValueError, match="at least one model; got an empty mapping"):
        compare_evidence({})


@pytest.mark.parametrize("prior", [{"a": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 1.0, "c": 1.0}])
def test_prior_of_other_models(prior):
    # Every model once, no others.
    with pytest.raises(ValueError, match="prior must name every model once"):
        compare_evidence({"a": fitted(0.0), "b": fitted(0.0)}, prior)


@pytest.mark.parametrize("prior", [{"a": -1.0, "b": 2.0}, {"a": 0.0, "b": 0.0}, {"a": math.nan, "b": 1.0}])
def test_impossible_prior(prior):
    # Negative, zero everywhere, or not a number.
    with pytest.raises(ValueError, match="must not be negative and not all zero"):
        compare_evidence({"a": fitted(0.0), "b": fitted(0.0)}, prior)


@pytest.mark.parametrize("thing", [{"posterior": 1}, None, 3.0, "text"])
def test_things_without_an_evidence(thing):
    # The model's name and what was given are in the message.
    with pytest.raises(ValueError, match=f"Model 'b' holds no log evidence.*got {type(thing).__name__}"):
        compare_evidence({"a": fitted(0.0), "b": thing})


def test_prior_that_leaves_no_model():
    # All prior probability on a model without an evidence is refused.
    models = {"a": fitted(-1.0), "b": fitted(math.nan)}
    with pytest.raises(ValueError, match="no probability to any model"):
        compare_evidence(models, prior={"a": 0.0, "b": 1.0})


# ---- the data ----


@pytest.mark.parametrize(
    "other",
    [
        {"another_name": Y},
        {"y": Y.double()},
        {"y": Y.reshape(5, 1)},
        {"y": Y.flip(0)},
        {"first": Y[:2], "second": Y[2:]},
        {f"y_{i}": value for i, value in enumerate(Y)},
        {"y": torch.cat([Y, torch.tensor([math.nan])])},
        {"y": Y.numpy()},
        {"y": np.asarray(Y.tolist())},
    ],
)
def test_the_same_data_in_other_words(other):
    # Name, type, shape, order and split do not matter; nan is missing, no datum.
    table = compare_evidence({"a": fitted(-1.0, y=Y), "b": fitted(-9.0, **other)})
    assert table["flag"].tolist() == ["", ""]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"y": Y[:4]}, "5 values in 'a' and 4 in 'b', which differ at site 'y' of 'a'"),
        ({"y": Y, "x": Y[:1]}, "5 values in 'a' and 6 in 'b'.*Fit every model to the same observations"),
        ({"x": Y, "z": Y + 7.0}, "differ at site 'y' of 'a' and site 'z' of 'b'"),
        ({"y": Y + torch.tensor([0.0, 0.0, 0.0, 0.0, 1e-3])}, "site 'y' of 'a' and site 'y' of 'b'"),
        ({"log_y": Y.log()}, "site 'log_y' of 'b'.*Jacobian.*LogNormal.*check_data=False"),
        ({"y": (Y - Y.mean()) / Y.std()}, "standardised.*lacks the Jacobian"),
        ({f"y_{i}": Y[:1] + i for i in range(9)}, "site 'y_1', 'y_2', 'y_3' and 5 more of 'b'"),
    ],
)
def test_other_data_are_refused(other, message):
    # A subset, more, other values, a transform: models, sites and the cure are named; a keyword overrides.
    models = {"a": fitted(-1.0, y=Y), "b": fitted(-9.0, **other)}
    with pytest.raises(ValueError, match=f"Models 'a' and 'b' were fitted to different data.*{message}"):
        compare_evidence(models)
    assert len(compare_evidence(models, check_data=False)) == 2


def test_the_third_model_is_checked_too():
    # Only its pair is named.
    with pytest.raises(ValueError, match="Models 'a' and 'c'"):
        compare_evidence({"a": fitted(-1.0, y=Y), "b": fitted(-2.0, y=Y), "c": fitted(-3.0, y=Y + 1.0)})


def test_counts_that_occur_more_often():
    # The same set of values, other multiplicities.
    models = {"a": fitted(0.0, y=torch.tensor([0, 1, 1])), "b": fitted(-9.0, y=torch.tensor([0, 0, 1]))}
    with pytest.raises(ValueError, match="differ at site 'y' of 'a' and site 'y' of 'b'"):
        compare_evidence(models)


def test_integers_are_data_too():
    # Counts as integers and as floats, labels as booleans.
    models = {"a": fitted(0.0, y=torch.tensor([0, 1, 1])), "b": fitted(-9.0, y=torch.tensor([1.0, 0.0, 1.0]))}
    assert len(compare_evidence(models | {"c": fitted(-20.0, y=torch.tensor([True, False, True]))})) == 3


def test_a_model_without_observed_sites():
    # Nothing to check: flagged where others have data, and not where nobody has.
    table = compare_evidence({"sites": fitted(-1.0, y=Y), "factor": fitted(-9.0)})
    assert table["flag"].to_dict() == {"sites": "", "factor": "data not checked: no observed site"}
    assert (compare_evidence({"a": fitted(-1.0), "b": fitted(-9.0)})["flag"] == "").all()


# ---- files and runs ----


def through_a_file(groups, path):
    """Written and read back by the ArviZ that is installed."""
    idata = to_inference_data({"posterior": {"mu": np.zeros((2, 5))}}, groups, {}, {})
    idata.to_netcdf(str(path), engine="h5netcdf")
    if isinstance(idata, xr.DataTree):
        return xr.open_datatree(path, engine="h5netcdf")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz
    return arviz.from_netcdf(str(path), engine="h5netcdf")


def through_a_tree(groups, path):
    """The same as xarray's DataTree, which ArviZ 1 has instead of InferenceData."""
    tree = xr.DataTree.from_dict({group: xr.Dataset(values) for group, values in groups.items()})
    tree.to_netcdf(path, engine="h5netcdf")
    return xr.open_datatree(path, engine="h5netcdf")


@pytest.mark.parametrize("through", [through_a_file, through_a_tree])
def test_saved_runs(through, tmp_path):
    # Numbers, the first reason and the observations are read back.
    y = ("data", Y.numpy()) if through is through_a_tree else Y.numpy()
    good = through(stored(-1.0, y=y), tmp_path / "good.nc")
    bad = through(stored(-9.0, "too few draws\na lost mode", x=y), tmp_path / "bad.nc")
    other = through(stored(-9.0), tmp_path / "other.nc")
    with pytest.warns(UnreliableEvidenceWarning, match="'bad': too few draws$"):
        table = compare_evidence({"bad": bad, "good": good, "other": other})
    assert table["log_bayes_factor"].tolist() == [0.0, -8.0, -8.0] and table["std_error"].tolist() == [0.01] * 3
    assert table["flag"].tolist() == ["", "unreliable evidence", "data not checked: no observed site"]
    with pytest.raises(ValueError, match="Models 'good' and 'new'.*different data"):
        compare_evidence({"good": good, "new": fitted(-1.0, y=Y[:3])})


def log_normal(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.LogNormal(mu, 1.0), obs=y)


def normal_of_logarithms(y, jacobian):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("log_y", dist.Normal(mu, 1.0), obs=y.log())
    if jacobian:
        pyro.factor("jacobian", -y.log().sum())


def test_logarithms_need_their_jacobian():
    # Of runs and of what they save: refused, and with the Jacobian and the keyword the two models are one.
    runs = {
        name: OSDS(model, 250, disable_progbar=True)
        for name, model in [("y", log_normal), ("log", normal_of_logarithms)]
    }
    runs["y"].run(Y)
    runs["log"].run(Y, jacobian=True)
    for models in (runs, {name: run.to_inference_data(log_likelihood=False) for name, run in runs.items()}):
        with pytest.raises(ValueError, match="Models 'y' and 'log'.*site 'log_y' of 'log'.*Jacobian"):
            compare_evidence(models)
        table = compare_evidence(models, check_data=False)
        worse = table.iloc[1]
        # Both posteriors are Gaussian: the standard error is smaller than float32's rounding.
        assert_within_standard_error(worse["log_bayes_factor"], 0.0, worse["log_bayes_factor_se"] + 1e-5)

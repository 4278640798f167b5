"""The compare room: order, Bayes factors and probabilities from log evidences."""

import math
from types import SimpleNamespace

import pytest

from pyro_osds.compare import compare_evidence
from pyro_osds.evidence import Evidence


def fitted(log_evidence, std_error=0.01, reliable=True):
    return SimpleNamespace(
        evidence=Evidence(
            log_evidence, std_error, log_evidence, 900.0, 0.25, 1000, reliable, () if reliable else ("no",)
        )
    )


def test_order_factors_and_probabilities():
    # Best first; probabilities are evidences over their sum.
    table = compare_evidence({"a": fitted(-3.0), "b": fitted(-1.0, 0.02), "c": fitted(-2.0, reliable=False)})
    assert list(table.index) == ["b", "c", "a"] and table.index.name == "model"
    assert table["log_bayes_factor"].tolist() == [0.0, -1.0, -2.0]
    total = sum(math.exp(value) for value in (-1, -2, -3))
    for name, value in [("b", -1), ("c", -2), ("a", -3)]:
        assert math.isclose(table.loc[name, "posterior_prob"], math.exp(value) / total)
    assert table["std_error"].tolist() == [0.02, 0.01, 0.01]
    assert table["reliable"].tolist() == [True, False, True] and (table["pareto_k"] == 0.25).all()
    assert list(table.columns) == [
        "log_evidence", "std_error", "log_bayes_factor", "posterior_prob", "pareto_k", "reliable",
    ]  # fmt: skip


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
    assert math.isnan(table["log_bayes_factor"].iloc[-1])


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

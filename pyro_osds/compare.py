r"""Bayesian model comparison from log evidences.

.. math::
    p(M_i \mid y) \propto p(M_i)\, Z_i, \qquad
    \log \mathrm{BF}_{i,\mathrm{best}} = \log Z_i - \log Z_{\mathrm{best}}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd


def compare_evidence(models: Mapping[str, Any], prior: Mapping[str, float] | None = None) -> pd.DataFrame:
    """Compare models by their log evidences.

    Arguments:
        models: Fitted :class:`~pyro_osds.OSDS` objects, or the InferenceData that they made, by model name.
        prior: Prior probability of each model; default: equal. Need not be normalised.

    Returns:
        A table indexed by model name, best first: ``log_evidence`` and ``std_error`` (nats), ``log_bayes_factor`` of
        the model against the best (0 for the best, negative below), ``posterior_prob``, ``pareto_k``, ``reliable``.
        Models without an evidence (improper prior) come last and take no part in the probabilities.

    Raises:
        ValueError: If there is no model, the names of ``prior`` differ, a prior is negative, or an InferenceData holds
            no evidence.

    Example:
        >>> from pyro_osds.evidence import Evidence
        >>> class Fitted:
        ...     def __init__(self, log_evidence):
        ...         self.evidence = Evidence(log_evidence, 0.01, log_evidence, 900.0, 0.1, 1000, True, ())
        >>> table = compare_evidence({"a": Fitted(-3.0), "b": Fitted(-2.0)})
        >>> table["posterior_prob"].round(3).to_dict()
        {'b': 0.731, 'a': 0.269}
    """
    if not models:
        raise ValueError("compare_evidence needs at least one model; got an empty mapping.")
    rows = {name: _evidence(name, fitted) for name, fitted in models.items()}
    table = pd.DataFrame.from_dict(rows, orient="index").sort_values("log_evidence", ascending=False)
    table.index.name = "model"
    log_prior = pd.Series(_log_prior(list(models), prior))
    table["log_bayes_factor"] = table["log_evidence"] - table["log_evidence"].max()
    log_joint = table["log_bayes_factor"] + log_prior[table.index]
    if log_joint.notna().any() and not log_joint.max() > -math.inf:
        raise ValueError("prior gives no probability to any model that has a log evidence.")
    weight = (log_joint - log_joint.max()).map(math.exp)
    table["posterior_prob"] = weight / weight.sum()

    columns = ["log_evidence", "std_error", "log_bayes_factor", "posterior_prob", "pareto_k", "reliable"]

    return table.loc[:, columns]


def _log_prior(names: list[str], prior: Mapping[str, float] | None) -> dict[str, float]:
    if prior is None:
        return dict.fromkeys(names, 0.0)
    if set(prior) != set(names):
        raise ValueError(f"prior must name every model once: got {sorted(prior)} for the models {sorted(names)}.")
    bad = {name: value for name, value in prior.items() if not value >= 0}
    if bad or not any(prior.values()):
        raise ValueError(f"prior probabilities must not be negative and not all zero; got {dict(prior)}.")

    return {name: math.log(value) if value > 0 else -math.inf for name, value in prior.items()}


def _evidence(name: str, fitted: Any) -> dict[str, Any]:  # noqa: ANN401 - OSDS, InferenceData or DataTree
    """The columns that come straight from one model."""
    evidence = getattr(fitted, "evidence", None)
    if evidence is not None:
        return {
            "log_evidence": evidence.log_evidence,
            "std_error": evidence.std_error,
            "pareto_k": evidence.pareto_k,
            "reliable": evidence.reliable,
        }
    try:
        fit = fitted["fit"]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"Model {name!r} holds no log evidence (got {type(fitted).__name__}). Pass a fitted OSDS object, or the "
            "InferenceData of its to_inference_data()."
        ) from error

    return {
        "log_evidence": float(fit["log_evidence"]),
        "std_error": float(fit["std_error"]),
        "pareto_k": float(fit["pareto_k"]),
        "reliable": bool(fit["reliable"]),
    }

r"""Bayesian model comparison from log evidences.

.. math::
    p(M_i \mid y) \propto p(M_i)\, Z_i, \qquad
    \log B_i = \log Z_i - \log Z_{\mathrm{best}}, \qquad
    \mathrm{se}^2(\log B_i) = \mathrm{se}^2(\log Z_i) + \mathrm{se}^2(\log Z_{\mathrm{best}})

All of it presumes one data set :math:`y`: a density of other data, or of their logarithms, is in other units.

References:
    Kass, R. E. and Raftery, A. E. (1995), Bayes factors, Journal of the American Statistical Association 90, 773-795:
    the words for a Bayes factor, on the scale of :math:`2 \ln B`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pyro_osds.posterior.verdict import Evidence
from pyro_osds.runtime.arguments import check_mapping
from pyro_osds.runtime.options import explains_options
from pyro_osds.runtime.warnings import UnreliableEvidenceWarning, warn

if TYPE_CHECKING:
    import pandas as pd

Sites = Mapping[str, np.ndarray]

# Kass, Raftery 1995, Bayes factors, section 3.2: twice the log Bayes factor, in nats.
_GRADES = (
    (10.0, "very strong"),
    (6.0, "strong"),
    (2.0, "positive"),
    (-math.inf, "not worth more than a bare mention"),
)
_COLUMNS = [
    "log_evidence",
    "std_error",
    "log_bayes_factor",
    "posterior_prob",
    "pareto_k",
    "reliable",
    "log_bayes_factor_se",
    "evidence_against",
    "flag",
    "draws_reliable",
]


@explains_options("compare_evidence", hint="fits go into one mapping, compare_evidence({'a': first, 'b': second}).")
def compare_evidence(
    models: Mapping[str, Any], prior: Mapping[str, float] | None = None, *, check_data: bool = True
) -> pd.DataFrame:
    """Compare models of one data set by their log evidences.

    The standard error of a log Bayes factor takes the runs to be independent: set the seed once before all of them, not
    before each.

    Arguments:
        models: Fitted :class:`~pyro_osds.OSDS` objects, the InferenceData that they made, or their
            :class:`~pyro_osds.Evidence` (which knows no data), by model name.
        prior: Prior probability of each model; default: equal. Need not be normalised.
        check_data: Whether to refuse models whose observed values differ. Names, shapes and order of the observed
            sites may: the values count.

    Returns:
        A table indexed by model name, best first, whose columns are

        * ``log_evidence`` and ``std_error``, nats;
        * ``log_bayes_factor`` of the model against the best: 0 for the best, negative below;
        * ``posterior_prob``, ``pareto_k``, ``reliable``;
        * ``log_bayes_factor_se``, its standard error: 0 for the best itself;
        * ``evidence_against`` the model and for the best, in Kass and Raftery's words; empty for the best;
        * ``flag``: what to know before these numbers are used; empty if nothing;
        * ``draws_reliable``, the verdict on the posterior draws.

        Models without an evidence (improper prior) come last and take no part in the probabilities.

    Raises:
        ValueError: If there is no model, the names of ``prior`` differ, a prior is negative, an InferenceData holds no
            evidence, or the models were fitted to different data.

    Warns:
        UnreliableEvidenceWarning: If an evidence is not reliable.

    Example:
        >>> from pyro_osds.posterior.verdict import Evidence
        >>> first, second = (Evidence(value, 0.01, value, 900.0, 0.1, 1000, True, ()) for value in (-5.0, -2.0))
        >>> table = compare_evidence({"a": first, "b": second})
        >>> table["posterior_prob"].round(3).to_dict()
        {'b': 0.953, 'a': 0.047}
        >>> table.loc["a", ["evidence_against", "flag"]].tolist()
        ['positive', "between 'positive' and 'strong' within 2 standard errors"]
    """
    import pandas as pd  # here, since it takes half a second

    check_mapping("models", models, "Name the fits, such as compare_evidence({'a': first, 'b': second}).")
    if prior is not None:
        check_mapping("prior", prior, "Name the models, such as prior={'a': 0.5, 'b': 0.5}.")
    if not models:
        raise ValueError("compare_evidence needs at least one model; got an empty mapping.")
    rows = {name: _evidence(name, fitted) for name, fitted in models.items()}
    unchecked = _check_data({name: _observed(fitted) for name, fitted in models.items()}) if check_data else set()
    best = max(rows.values(), key=lambda row: (not math.isnan(row["log_evidence"]), row["log_evidence"]))
    rows = {name: row | _against(row, best, name in unchecked) for name, row in rows.items()}
    table = pd.DataFrame.from_dict(rows, orient="index")
    table = table.sort_values("log_evidence", ascending=False, kind="stable").rename_axis("model")
    table["posterior_prob"] = _posterior(table["log_bayes_factor"], _log_prior(list(models), prior))
    reasons = [f"{name!r}: {row['reason']}" for name, row in rows.items() if not row["reliable"]]
    if reasons:
        message = "Do not use Bayes factors that rest on unreliable log evidences. "
        warn(message + " ".join(reasons), UnreliableEvidenceWarning)

    return table.loc[:, _COLUMNS]


# ---- one model ----


def _evidence(name: str, fitted: Any) -> dict[str, Any]:
    """The columns that come straight from one model, and the first reason against it."""
    try:
        evidence = fitted if isinstance(fitted, Evidence) else getattr(fitted, "evidence", None)
    except RuntimeError as error:
        raise RuntimeError(f"Model {name!r} has no log evidence yet. {error}") from error
    if evidence is not None:
        columns = ("log_evidence", "std_error", "pareto_k", "reliable", "draws_reliable")
        return {column: getattr(evidence, column) for column in columns} | {"reason": "".join(evidence.reasons[:1])}
    try:
        fit: Any = None if isinstance(fitted, (str, tuple, list, Tensor, np.ndarray, Evidence)) else fitted["fit"]
    except (KeyError, TypeError, IndexError):
        fit = None
    if fit is None:
        raise ValueError(
            f"Model {name!r} holds no log evidence (got {type(fitted).__name__}). {_what_holds_one(fitted)}"
        )

    return {
        "log_evidence": float(fit["log_evidence"]),
        "std_error": float(fit["std_error"]),
        "pareto_k": float(fit["pareto_k"]),
        "reliable": bool(fit["reliable"]),
        # Files written before there were two verdicts have one for both.
        "draws_reliable": bool(fit["draws_reliable" if "draws_reliable" in fit else "reliable"]),
        "reason": str(np.asarray(fit["reasons"]).item()).partition("\n")[0],
    }


def _what_holds_one(given: Any) -> str:
    """What to pass in the place of something without a log evidence."""
    if isinstance(given, (str, os.PathLike)):
        return "Read the file first: arviz.from_netcdf(path), or OSDS.load(path, model, *args)."
    if isinstance(given, (int, float, tuple, list, Tensor, np.ndarray, np.generic)):
        return (
            "A number says neither how exact nor how reliable it is. Pass a fitted OSDS object, its evidence, or the "
            "InferenceData of its to_inference_data()."
        )
    if callable(given) and not hasattr(given, "posterior"):
        return "Fit the model first: osds = OSDS(model), osds.run(...), and pass osds."

    return "Pass a fitted OSDS object, its evidence, or the InferenceData of its to_inference_data()."


def _observed(fitted: Any) -> dict[str, np.ndarray]:
    """Observed values by site; none for a bare log density."""
    # OSDS and InferenceData call them by the same name.
    sites = getattr(fitted, "observed_data", None)
    values = {} if sites is None else {name: sites[name] for name in sites}

    return {
        name: np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value) for name, value in values.items()
    }


# ---- priors, words and flags ----


def _log_prior(names: list[str], prior: Mapping[str, float] | None) -> dict[str, float]:
    if prior is None:
        return dict.fromkeys(names, 0.0)
    if set(prior) != set(names):
        raise ValueError(f"prior must name every model once: got {sorted(prior)} for the models {sorted(names)}.")
    bad = {name: value for name, value in prior.items() if not value >= 0}
    if bad or not any(prior.values()):
        raise ValueError(f"prior probabilities must not be negative and not all zero; got {dict(prior)}.")

    return {name: math.log(value) if value > 0 else -math.inf for name, value in prior.items()}


def _posterior(log_bayes_factor: pd.Series, log_prior: Mapping[str, float]) -> pd.Series:
    log_joint = log_bayes_factor + log_bayes_factor.index.map(dict(log_prior))
    if log_joint.notna().any() and not log_joint.max() > -math.inf:
        raise ValueError("prior gives no probability to any model that has a log evidence.")
    weight = (log_joint - log_joint.max()).map(math.exp)

    return weight / weight.sum()


def _grade(log_bayes_factor: float) -> str:
    """Kass and Raftery's word for a log Bayes factor; none for nan."""
    return next((word for bound, word in _GRADES if 2.0 * log_bayes_factor > bound), "")


def _against(row: Mapping[str, Any], best: Mapping[str, Any], unchecked: bool) -> dict[str, Any]:
    """The columns that hold a model against the best, and the flag: the worst first."""
    factor = row["log_evidence"] - best["log_evidence"]
    std_error = 0.0 if row is best else math.hypot(row["std_error"], best["std_error"])
    flags = [] if row["reliable"] else ["unreliable evidence"]
    if row is not best:
        flags += [] if best["reliable"] else ["unreliable evidence of the best model"]
        flags += _undecided(-factor, 2.0 * std_error)
    if math.isnan(row["log_evidence"]):
        flags = ["no evidence: improper prior"]
    flags += ["data not checked: no observed site"] if unchecked else []

    return {
        "log_bayes_factor": factor,
        "log_bayes_factor_se": math.nan if math.isnan(factor) else std_error,
        "evidence_against": "" if row is best else _grade(-factor),
        "flag": "; ".join(flags),
    }


def _undecided(distance: float, slack: float) -> list[str]:
    """Whether the order, or else the word, could be another one within two standard errors."""
    if distance <= slack:
        return ["order undecided within 2 standard errors"]
    least, most = _grade(distance - slack), _grade(distance + slack)

    return [] if least == most else [f"between {least!r} and {most!r} within 2 standard errors"]


# ---- the data ----


def _check_data(observed: Mapping[str, Sites]) -> set[str]:
    """Refuse different data; returns the models that cannot be checked though others can."""
    with_data = [name for name, sites in observed.items() if sites]
    for name in with_data[1:]:
        pair = {model: observed[model] for model in (with_data[0], name)}
        if not _same_values(*pair.values()):
            raise ValueError(_difference(pair))

    return set(observed) - set(with_data) if with_data else set()


def _values(sites: Sites) -> np.ndarray:
    """All values of all sites in ascending order, so that names, shapes and splits do not matter."""
    pooled = np.concatenate([np.ravel(value).astype(float) for value in sites.values()])

    # nan stands for what is missing, which is no datum.
    return np.sort(pooled[~np.isnan(pooled)])


def _same_values(left: Sites, right: Sites) -> bool:
    """Whether the values agree up to the rounding of the coarser type."""
    dtypes = [value.dtype for sites in (left, right) for value in sites.values()]
    rounding = max((float(np.finfo(dtype).eps) for dtype in dtypes if dtype.kind == "f"), default=0.0)
    ours, theirs = _values(left), _values(right)

    return len(ours) == len(theirs) and np.allclose(ours, theirs, rtol=4.0 * rounding, atol=0.0)


def _difference(pair: Mapping[str, Sites]) -> str:
    """The message for two models of different data."""
    (left, ours), (right, theirs) = pair.items()
    counts = len(_values(ours)), len(_values(theirs))
    if counts[0] == counts[1]:
        cure = (
            "If one observes a transform of the other's data (logarithms, standardised values), its evidence lacks the "
            "Jacobian: observe the data themselves with a TransformedDistribution (LogNormal instead of a Normal for "
            "logarithms), or add the log Jacobian as a pyro.factor and pass check_data=False."
        )
    else:
        cure = "Fit every model to the same observations, or pass check_data=False if they are the same after all."

    return (
        f"Models {left!r} and {right!r} were fitted to different data, so their evidences cannot be compared: "
        f"{counts[0]} values in {left!r} and {counts[1]} in {right!r}, which differ at {_apart(ours, theirs)} of "
        f"{left!r} and {_apart(theirs, ours)} of {right!r}. {cure}"
    )


def _apart(sites: Sites, others: Sites) -> str:
    """The first sites with a value that the others lack; if only multiplicities differ, the first of all."""
    known = _values(others).astype(np.float32)
    apart = [
        name for name, value in sites.items() if not np.isin(_values({name: value}).astype(np.float32), known).all()
    ]
    names = apart or list(sites)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""

    return f"site {', '.join(map(repr, names[:3]))}{more}"

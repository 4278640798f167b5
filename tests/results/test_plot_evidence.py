"""Plot evidence: what is drawn for each model."""

import builtins
import math
from types import SimpleNamespace

import pandas as pd
import pytest

from pyro_osds.posterior.verdict import Evidence
from pyro_osds.results.compare import UnreliableEvidenceWarning, compare_evidence
from pyro_osds.results.plot_evidence import plot_evidence

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    plt.close("all")


def fitted(log_evidence, std_error=0.1, reliable=True):
    reasons = () if reliable else ("no",)
    return SimpleNamespace(
        evidence=Evidence(log_evidence, std_error, log_evidence, 900.0, 0.25, 1000, reliable, reasons)
    )


def bar(container):
    """Ends of the error bar, and its height."""
    ((left, height), (right, _)) = container[2][0].get_segments()[0]
    return left, right, height


def written(ax):
    return [text.get_text() for text in ax.texts]


def test_points_and_bars():
    # A point at each log evidence, two standard errors to either side, the best on top.
    ax = plot_evidence({"a": fitted(-3.0, 0.25), "b": fitted(-1.0)})
    best, other = ax.containers
    assert [best.get_label(), other.get_label()] == ["b", "a"]
    assert best[0].get_xdata().tolist() == [-1.0] and other[0].get_xdata().tolist() == [-3.0]
    assert bar(best) == pytest.approx((-1.2, -0.8, 0.0)) and bar(other) == pytest.approx((-3.5, -2.5, 1.0))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["b", "a"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert written(ax) == ["\N{MINUS SIGN}1.000 ± 0.100", "\N{MINUS SIGN}3.000 ± 0.250"]
    assert "log evidence (nats)" in ax.get_xlabel() and "two standard errors" in ax.get_xlabel()


def test_unreliable_evidences_look_different():
    # A hollow marker, another colour, a word at the name; only there.
    with pytest.warns(UnreliableEvidenceWarning):
        ax = plot_evidence({"good": fitted(-1.0), "bad": fitted(-3.0, reliable=False)})
    good, bad = (container[0] for container in ax.containers)
    assert good.get_markerfacecolor() == good.get_color() and bad.get_markerfacecolor() == "white"
    labels = ax.get_yticklabels()
    assert [label.get_text() for label in labels] == ["good", "bad\nunreliable"]
    assert bad.get_color() == labels[1].get_color() != labels[0].get_color()
    assert good.get_color() != bad.get_color()


def test_no_evidence_is_text():
    # Nothing is drawn at nan or -inf, in whatever mixture; words stand there.
    models = {"a": fitted(-1.0), "flat": fitted(math.nan, math.nan, False), "zero": fitted(-math.inf, math.inf, False)}
    with pytest.warns(UnreliableEvidenceWarning):
        ax = plot_evidence(models)
    assert [container.get_label() for container in ax.containers] == ["a"]
    assert written(ax)[1:] == ["log evidence -inf", "no evidence: improper prior"]
    with pytest.warns(UnreliableEvidenceWarning):
        assert written(plot_evidence({"flat": models["flat"]})) == ["no evidence: improper prior"]


def test_a_point_without_a_bar():
    # An infinite standard error has no bar.
    ax = plot_evidence({"a": fitted(-1.0, math.inf)})
    assert ax.containers[0][0].get_xdata().tolist() == [-1.0] and not ax.containers[0].has_xerr


def test_a_table_and_given_axes():
    # The same picture as from the models, on the axes that were given.
    models = {"a": fitted(-3.0), "b": fitted(-1.0)}
    _, axes = plt.subplots(1, 2)
    assert plot_evidence(compare_evidence(models), ax=axes[0]) is axes[0]
    assert plot_evidence(models, ax=axes[1]) is axes[1]
    assert [bar(container) for container in axes[0].containers] == [bar(container) for container in axes[1].containers]


def test_all_of_it_is_on_the_picture():
    # Long names and the numbers on the right lie inside the figure.
    ax = plot_evidence({"a model with a rather long name " * 2: fitted(-3.0), "b": fitted(-1000.0)})
    ax.figure.draw_without_rendering()
    box = ax.get_tightbbox()
    assert box.x0 >= 0 and box.x1 <= ax.figure.bbox.x1 and box.y0 >= 0 and box.y1 <= ax.figure.bbox.y1


def test_a_table_of_something_else():
    # The missing columns are named.
    with pytest.raises(ValueError, match=r"lacks the columns \['reliable', 'std_error'\]; pass what compare_evidence"):
        plot_evidence(pd.DataFrame({"log_evidence": [-1.0]}))


def test_without_matplotlib(monkeypatch):
    # The cure is named.
    original = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"needs matplotlib, which is not installed: pip install 'pyro-osds\[plot\]'"):
        plot_evidence({"a": fitted(-1.0)})

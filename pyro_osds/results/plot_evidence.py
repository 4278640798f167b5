"""A forest plot of log evidences: a point and two standard errors for each model, the best on top."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyro_osds.results.compare import compare_evidence
from pyro_osds.runtime.arguments import check_mapping

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# Okabe and Ito's blue and red, which the colour-blind tell apart.
_RELIABLE, _UNRELIABLE = "#0072B2", "#D55E00"
_COLUMNS = {"log_evidence", "std_error", "reliable"}


def plot_evidence(models: Mapping[str, Any] | pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Forest plot of the log evidences of models.

    An unreliable evidence has a hollow red marker and says so at its name; a model without an evidence has a line of
    text in its place.

    Arguments:
        models: What :func:`~pyro_osds.compare_evidence` takes, or the table that it returned.
        ax: Where to draw; default: a figure of its own.

    Returns:
        The axes. Each model with an evidence is an error bar container with the model's name as its label.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If a table lacks a column, or :func:`~pyro_osds.compare_evidence` refuses the models.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"log_evidence": [-2.0, -3.0], "std_error": 0.1, "reliable": True}, index=["b", "a"])
        >>> ax = plot_evidence(table)
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['b', 'a']
    """
    if not isinstance(models, Mapping) and not hasattr(models, "to_dict"):
        check_mapping("models", models, "Name the fits, such as plot_evidence({'a': first, 'b': second}).")
    table: Any = compare_evidence(models) if isinstance(models, Mapping) else models
    if missing := _COLUMNS - set(table.columns):
        raise ValueError(
            f"The table lacks the columns {sorted(missing)}; pass what compare_evidence returned, or the models."
        )
    ax = _new_axes(len(table)) if ax is None else ax
    lines = table.to_dict("records")
    for height, (name, line) in enumerate(zip(table.index, lines, strict=True)):
        _draw(ax, height, str(name), line)
    ax.set_yticks(range(len(table)), [_label(str(name), line) for name, line in zip(table.index, lines, strict=True)])
    for tick, line in zip(ax.get_yticklabels(), lines, strict=True):
        tick.set_color("black" if line["reliable"] else _UNRELIABLE)
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.grid(axis="x", alpha=0.25)
    ax.set_xlabel("log evidence (nats)\nbars: two standard errors, numbers: one")

    return ax


def _new_axes(num_models: int) -> Axes:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "plot_evidence needs matplotlib, which is not installed: pip install 'pyro-osds[plot]'."
        ) from error

    return plt.subplots(figsize=(7.5, 1.4 + 0.5 * num_models), layout="constrained")[1]


def _draw(ax: Axes, height: int, name: str, line: dict[Any, Any]) -> None:
    """Point, bar and number of one model, or words where there is no number."""
    value, std_error = line["log_evidence"], line["std_error"]
    across = ax.get_yaxis_transform()
    if not math.isfinite(value):
        words = "no evidence: improper prior" if math.isnan(value) else f"log evidence {value}"
        ax.text(0.5, height, words, transform=across, ha="center", va="center", color=_UNRELIABLE)
        return
    colour = _RELIABLE if line["reliable"] else _UNRELIABLE
    ax.errorbar(
        value,
        height,
        xerr=2.0 * std_error if math.isfinite(std_error) else None,
        fmt="o",
        color=colour,
        markerfacecolor=colour if line["reliable"] else "white",
        capsize=3,
        label=name,
    )
    # Bars of good runs are narrower than the marker, so numbers stand beside them, errors no smaller than they show.
    number = f"{value:.3f} ± {max(std_error, 0.001):.3f}".replace("-", "\N{MINUS SIGN}")
    ax.text(1.02, height, number, transform=across, va="center", color=colour)


def _label(name: str, line: dict[Any, Any]) -> str:
    return name if line["reliable"] else f"{name}\nunreliable"

"""Four pictures of one fit: how training went, the tail and the spread of the weights, and who agrees with whom."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyro_osds.stats.pareto import fit_tail
from pyro_osds.stats.thresholds import pareto_k_threshold
from pyro_osds.stats.weights import effective_sample_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which the colour-blind tell apart.
_BLUE, _ORANGE, _SKY, _GREY = "#0072B2", "#D55E00", "#56B4E9", "#666666"
# Terms of the loss that stand for weights of the steps' own draws; a warm-up step has none of them.
_WEIGHED = ("exact_volume", "reverse_kl", "path_reverse_kl")
# Standard errors to either side of an estimate: 95 % of repeats lie within.
_BAR = 2.0
# Letters of a line of the title: the width of the figure.
_TITLE_WIDTH = 110
# The figure, in inches: four pictures and a title fill a screen, or a page across.
_SIZE = (10.5, 7.0)
# Bins of the histogram: more are ragged with the 4,096 draws that a fit has at least.
_NUM_BINS = 60
# Share of the draws that is shown where the tail is shorter: enough to see what the tail sits on.
_SHOWN_SHARE = 0.05
# From this ratio of its ends on, a tail is drawn on a logarithmic axis, which has too few ticks for a shorter one.
_LONG_TAIL = 20.0


def plot_fit(fitted: Any, axes: Sequence[Axes] | None = None) -> np.ndarray:
    """How a fit went, in four pictures.

    1. Training: mean log weight of each step's batch and ELBO of each round, with the log evidence above them.
    2. The tail of the weights and the Pareto distribution fitted to it; its shape is pareto k.
    3. How far log weights lie from the log evidence; all at zero for a flow that is exact.
    4. Log evidences of flow, exploration and refinement, two standard errors to either side, and the ELBO.

    Arguments:
        fitted: A fitted :class:`~pyro_osds.OSDS`, or the InferenceData that it made, also one read from a file.
        axes: Four axes to draw on; default: a figure of its own.

    Returns:
        The four axes, ``(4,)``.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the InferenceData holds no fit, or there are not four axes.
        RuntimeError: If the sampler was not run.

    Example:
        >>> from pyro_osds import OSDS
        >>> options = {"num_samples": 50, "num_iterations": 20, "num_particles": 32, "disable_progbar": True}
        >>> osds = OSDS.from_log_prob(lambda z: -0.5 * z.square().sum(-1), dim=2, **options)
        >>> osds.run()
        >>> [ax.get_title() for ax in plot_fit(osds)]
        ['Training', 'Tail of the weights', 'Spread of the weights', 'Log evidences']
    """
    fit, stats = _groups(fitted)
    pictures = _new_axes() if axes is None else np.ravel(np.asarray(axes, dtype=object))
    if len(pictures) != 4:
        raise ValueError(f"plot_fit draws four pictures; got {len(pictures)} axes.")
    log_weight = stats["log_weight"]
    log_weight = log_weight[np.isfinite(log_weight)]
    _training(pictures[0], fit, stats)
    _tail(pictures[1], log_weight)
    _spread(pictures[2], log_weight, len(stats["log_weight"]))
    _evidences(pictures[3], fit)
    colour, words = (_BLUE, "reliable") if fit["reliable"] else (_ORANGE, f"NOT reliable. {fit['reasons']}".strip())
    title = f"log evidence {fit['log_evidence']:.4f} ± {fit['std_error']:.4f} nats: {words.splitlines()[0]}"
    pictures[0].figure.suptitle(
        textwrap.fill(title.replace(" -", " \N{MINUS SIGN}"), _TITLE_WIDTH), color=colour, fontsize="medium"
    )

    return pictures


def _groups(fitted: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The groups ``fit``, as numbers and words, and ``fit_stats``, as arrays."""
    make: Callable[..., Any] | None = getattr(fitted, "to_inference_data", None)
    data = fitted if make is None else make(log_likelihood=False)
    try:
        groups = [{str(name): np.asarray(data[group][name]) for name in data[group].data_vars} for group in _GROUPS]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"There is no fit to plot in a {type(fitted).__name__}: pass a fitted OSDS object, or the InferenceData of "
            "its to_inference_data()."
        ) from error

    return {name: value.item() for name, value in groups[0].items()}, groups[1]


_GROUPS = ("fit", "fit_stats")


def _new_axes() -> np.ndarray:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "plot_fit needs matplotlib, which is not installed: pip install 'pyro-osds[plot]'."
        ) from error

    return plt.subplots(2, 2, figsize=_SIZE, layout="constrained")[1].ravel()


def _training(ax: Axes, fit: dict[str, Any], stats: dict[str, np.ndarray]) -> None:
    """Batches and rounds, below the log evidence."""
    ax.set(title="Training", xlabel="optimiser step", ylabel="nats")
    batches = -stats["loss"]
    if not len(batches):
        ax.text(0.5, 0.5, "nothing to train", transform=ax.transAxes, ha="center", color=_GREY)
        return
    weighed = np.logical_or.reduce([np.isfinite(stats[name]) for name in _WEIGHED if name in stats])
    steps = np.arange(1, len(batches) + 1)
    ax.plot(steps[weighed], batches[weighed], color=_SKY, linewidth=0.8, label="mean log weight of a batch")
    # The look before the first step says nothing about training, and may be very far off.
    rounds = slice(1 if len(stats["step"]) > 1 else 0, None)
    ax.plot(stats["step"][rounds], stats["elbo"][rounds], "o-", color=_BLUE, label="ELBO of fresh draws")
    _evidence_band(ax, fit)
    if not weighed.all():
        ax.axvspan(0, steps[~weighed].max(), color=_GREY, alpha=0.12, linewidth=0, label="warm-up")
    top = np.nanmax([fit["log_evidence"] + _BAR * fit["std_error"], *stats["elbo"][rounds]])
    shown = batches[weighed & np.isfinite(batches)]
    # Early batches may be very far off: the picture begins above the lowest 15 % of them.
    low = np.nanmin([top - 0.1, *stats["elbo"][rounds], *(np.quantile(shown, [0.15]) if len(shown) else [])])
    if math.isfinite(low):
        ax.set_ylim(low - 0.15 * (top - low), top + 0.25 * (top - low))
    ax.legend(loc="best", fontsize="small")


def _evidence_band(ax: Axes, fit: dict[str, Any]) -> None:
    value, error = fit["log_evidence"], fit["std_error"]
    if math.isfinite(value) and math.isfinite(error):
        ax.axhspan(value - _BAR * error, value + _BAR * error, color=_ORANGE, alpha=0.3, linewidth=0)
        ax.axhline(value, color=_ORANGE, linewidth=1, label="log evidence, two standard errors")


def _tail(ax: Axes, log_weight: np.ndarray) -> None:
    """Share of the draws above each weight, beside the fitted tail."""
    ax.set(title="Tail of the weights", xlabel="weight, over the mean weight", ylabel="share of draws above it")
    if not len(log_weight):
        ax.text(0.5, 0.5, "no draw has any weight", transform=ax.transAxes, ha="center", color=_ORANGE)
        return
    descending = np.sort(log_weight.astype(float))[::-1]
    largest = descending[0]
    mean = np.exp(descending - largest).mean()
    weight, share = np.exp(descending - largest) / mean, (np.arange(len(descending)) + 0.5) / len(descending)
    fitted = fit_tail(torch.as_tensor(descending.copy()))
    shown = max(fitted.size, int(_SHOWN_SHARE * len(weight)))
    ax.semilogy(weight[:shown], share[:shown], ".", color=_BLUE, markersize=4, label="draws")
    limit = pareto_k_threshold(len(weight))
    if math.isfinite(fitted.k):
        grid = np.geomspace(1e-3, 1.0, 200)
        quantile = fitted.cutoff + fitted.sigma / fitted.k * np.expm1(-fitted.k * np.log(grid))
        label = f"fitted tail: k = {fitted.k:.2f}, at most {limit:.2f} allowed"
        ax.semilogy(quantile / mean, grid * fitted.size / len(weight), color=_ORANGE, label=label)
    else:
        words = "a few draws carry everything" if fitted.k > 0 else "nearly equal weights: no tail"
        ax.plot([], [], " ", label=words)
    if weight[0] > _LONG_TAIL * weight[shown - 1]:
        ax.set_xscale("log")
    ax.legend(loc="best", fontsize="small")


def _spread(ax: Axes, log_weight: np.ndarray, num_draws: int) -> None:
    """Histogram of the log weights about the log of their mean."""
    ax.set(title="Spread of the weights", xlabel="log weight, from the log evidence of the flow (nats)", ylabel="draws")
    if not len(log_weight):
        return
    weights = torch.as_tensor(log_weight.astype(float))
    centred = (weights - torch.logsumexp(weights, 0) + math.log(num_draws)).numpy()
    # Rounding is no spread: bins are not narrower than what it leaves of equal weights.
    low, high = min(centred.min(), -1e-3), max(centred.max(), 1e-3)
    ax.hist(centred, bins=np.linspace(low, high, _NUM_BINS), color=_SKY, edgecolor=_BLUE, linewidth=0.3)
    ax.axvline(0.0, color=_ORANGE, linewidth=1)
    ax.set_yscale("log")
    share = effective_sample_size(weights) / num_draws
    lost = f"\n{num_draws - len(log_weight)} draws of weight zero" if num_draws > len(log_weight) else ""
    words = f"{share:.1%} of {num_draws} draws effective{lost}"
    # Room for the words above the highest bar.
    ax.set_ylim(top=8 * ax.get_ylim()[1])
    ax.text(0.03, 0.96, words, transform=ax.transAxes, va="top", fontsize="small")


def _evidences(ax: Axes, fit: dict[str, Any]) -> None:
    """The estimate, what it was held against, and the bound."""
    ax.set(title="Log evidences", xlabel="nats; bars: two standard errors")
    rows = [("log evidence", fit["log_evidence"], fit["std_error"])]
    # InferenceData of earlier versions has another name for the refinement.
    refinement = "refinement" if "refinement_log_evidence" in fit else "bridge"
    for name, key in (("exploration", "exploration"), ("refinement", refinement)):
        rows.append((name, fit[f"{key}_log_evidence"], fit[f"{key}_std_error"]))
    rows = [row for row in (*rows, ("ELBO", fit["elbo"], 0.0)) if math.isfinite(row[1])]
    for height, (name, value, error) in enumerate(rows):
        bar = _BAR * error if math.isfinite(error) and error else None
        marker, colour = "D" if name == "ELBO" else "o", _ORANGE if name == "log evidence" else _BLUE
        ax.errorbar(value, height, xerr=bar, fmt=marker, color=colour, capsize=3)
        number = f"{value:.4f}".replace("-", "\N{MINUS SIGN}")
        ax.annotate(number, (value, height), (0, 7), textcoords="offset points", ha="center", fontsize="small")
    ax.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    ax.set_ylim(len(rows) - 0.4, -0.7)
    ax.margins(x=0.2)
    ax.locator_params(axis="x", nbins=5)
    ax.ticklabel_format(axis="x", useOffset=False)
    ax.grid(axis="x", alpha=0.25)

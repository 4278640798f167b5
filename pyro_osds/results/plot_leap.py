"""The leap as a picture: where base draws start, where each of them lands, and the posterior."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_osds.flow.leap import is_bijective
from pyro_osds.runtime.arguments import check_counts
from pyro_osds.runtime.options import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE = "#0072B2"
# Perceptually even, and made for the colour-blind.
_COLOURS = "cividis"
# Shares of the mass within each contour; kernels beyond some thousands change nothing that an eye could see.
_MASSES = (0.95, 0.8, 0.5)
_MAX_KERNELS = 2000
# More dots hide one another.
_MAX_DOTS = 1000
# Share of the points that the axes leave out on either side: a heavy tail would shrink everything else.
_OUTSIDE = 0.005
# Points of the grid of the density along each side.
_SIDE = 120
_WORDS = ("coloured from left to right", "dots: where they land", "grey: 50, 80, 95 % of them")


def plot_leap(
    osds: Any,
    coordinates: str | tuple[str, str] | None = None,
    *,
    num_arrows: int = 120,
    axes: Sequence[Axes] | None = None,
) -> np.ndarray:
    """What the flow does with its base draws, in two coordinates of the model's own parameters.

    1. Base draws, before the flow has moved them; coloured by where they are along the first coordinate.
    2. Some of them with an arrow to where the leap takes them, the colour kept.
    3. The posterior draws, a thousand at most.

    Behind each: regions that hold 50, 80 and 95 % of the posterior draws, by a kernel density estimate. A flow that has
    little to do, since the base fits well, has short arrows.

    Arguments:
        osds: A fitted :class:`~pyro_osds.OSDS` with the coupling flow.
        coordinates: A site with two or more elements, whose first two are drawn, or two names such as
            ``("mu", "theta[0]")``; default: the first two coordinates there are.
        num_arrows: How many arrows.
        axes: Three axes to draw on; default: a figure of its own.

    Returns:
        The three axes, ``(3,)``.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no such coordinate, only one of them, a flow without a leap from base draws, or not
            three axes.

    Example:
        >>> from pyro_osds import OSDS
        >>> options = {"num_samples": 50, "num_iterations": 20, "num_particles": 32, "disable_progbar": True}
        >>> osds = OSDS.from_log_prob(lambda z: -0.5 * z.square().sum(-1), dim=2, **options)
        >>> osds.run()
        >>> [ax.get_title() for ax in plot_leap(osds)]
        ['Base draws', 'One leap', 'Posterior draws']
    """
    check_counts({"num_arrows": num_arrows})
    if not hasattr(type(osds), "get_samples"):
        raise TypeError(f"plot_leap needs a fitted OSDS object, whose flow it draws; got {short(osds)}.")
    posterior = _columns(osds.get_samples())
    fit = osds.fit
    if not fit.target.dim:
        raise ValueError("plot_leap follows base draws to continuous latents; this model has none.")
    if not is_bijective(fit.leap):
        raise ValueError("plot_leap follows base draws through the flow: use network='coupling'.")
    names = _chosen(coordinates, list(posterior))
    with torch.no_grad():
        leap = fit.leap.plain
        x = leap.base.density.sample(torch.Size([max(num_arrows, _MAX_DOTS)]))
        start = _pair(_constrained(fit, leap.base.from_whitened(x)), names)
        end = _pair(_constrained(fit, leap(x)[0]), names)
    drawn = _pair(posterior, names)
    pictures = _new_axes() if axes is None else np.ravel(np.asarray(axes, dtype=object))
    if len(pictures) != 3:
        raise ValueError(f"plot_leap draws three pictures; got {len(pictures)} axes.")
    limits = _limits(np.concatenate([start, drawn]))
    colours = (start[:, 0].argsort().argsort() + 0.5) / len(start)
    for ax in pictures:
        _regions(ax, drawn, limits)
        ax.set(xlim=limits[:, 0], ylim=limits[:, 1], xlabel=names[0])
    pictures[0].scatter(*start.T, s=6, c=colours, cmap=_COLOURS, linewidths=0)
    _arrows(pictures[1], start[:num_arrows], end[:num_arrows], colours[:num_arrows])
    pictures[2].scatter(*drawn[:: math.ceil(len(drawn) / _MAX_DOTS)].T, s=6, color=_BLUE, alpha=0.6, linewidths=0)
    pictures[0].set(title="Base draws", ylabel=names[1])
    pictures[1].set_title("One leap" if fit.leap.num_steps == 1 else f"Leap in {fit.leap.num_steps} steps")
    pictures[2].set_title("Posterior draws")
    for ax, words in zip(pictures, _WORDS, strict=True):
        ax.text(0.98, 0.97, words, transform=ax.transAxes, ha="right", va="top", fontsize="small")

    return pictures


def _columns(samples: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Draws by site, ``(S, *shape)``, as a column for each coordinate."""
    columns = {}
    for name, value in samples.items():
        values = value.detach().cpu().numpy()
        for index in np.ndindex(values.shape[1:]):
            columns[f"{name}[{','.join(map(str, index))}]" if index else name] = values[(slice(None), *index)]

    return columns


def _chosen(coordinates: str | tuple[str, str] | None, names: list[str]) -> list[str]:
    """The names of two coordinates."""
    if isinstance(coordinates, str):
        chosen = [name for name in names if name == coordinates or name.startswith(f"{coordinates}[")][:2]
    else:
        chosen = names[:2] if coordinates is None else [name for name in coordinates if name in names]
    if len(chosen) != 2 or len(coordinates or chosen) != 2 and not isinstance(coordinates, str):
        raise ValueError(
            f"plot_leap needs two coordinates; got {coordinates!r}, and the posterior has {', '.join(names[:10])}"
            f"{' and more' if len(names) > 10 else ''}. Pass two of these names, or a site with several elements."
        )

    return chosen


def _constrained(fit: Any, z: Tensor) -> dict[str, np.ndarray]:
    """Coordinates of the model's parameters at points of the flow."""
    # Exchangeable components get a random order; with one seed a point has the same before and after the leap.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _columns(fit.constrain(z))


def _pair(columns: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    return np.stack([columns[name] for name in names], 1).astype(float)


def _new_axes() -> np.ndarray:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "plot_leap needs matplotlib, which is not installed: pip install 'pyro-osds[plot]'."
        ) from error

    return plt.subplots(1, 3, figsize=(12.0, 4.2), layout="constrained", sharex=True, sharey=True)[1]


def _limits(points: np.ndarray) -> np.ndarray:
    """Lower and upper ends of both axes, ``(2, 2)``, with a margin."""
    points = points[np.isfinite(points).all(1)]
    ends = np.quantile(points, [_OUTSIDE, 1.0 - _OUTSIDE], axis=0)
    margin = 0.05 * (ends[1] - ends[0]) + 1e-6

    return ends + np.array([[-1.0], [1.0]]) * margin


def _regions(ax: Axes, drawn: np.ndarray, limits: np.ndarray) -> None:
    """Regions of highest density, in shades of grey; none where the draws lie on a line."""
    from scipy.stats import gaussian_kde  # here, since it takes half a second

    inside = drawn[((drawn >= limits[0]) & (drawn <= limits[1])).all(1)]
    inside = inside[:: max(1, len(inside) // _MAX_KERNELS)].T
    if inside.shape[1] < 3 or np.linalg.matrix_rank(np.corrcoef(inside)) < 2:
        return
    # Narrower than what suits a Gaussian, since regions are often bent.
    density = gaussian_kde(inside, bw_method=0.7 * inside.shape[1] ** (-1.0 / 6.0))
    # The lowest density of the densest so many percent of the draws.
    levels = np.quantile(density(inside), [1.0 - mass for mass in _MASSES])
    x, y = np.meshgrid(*(np.linspace(low, high, _SIDE) for low, high in limits.T))
    height = density(np.stack([x.ravel(), y.ravel()])).reshape(x.shape)
    ax.contourf(x, y, height, [*levels, max(height.max(), levels[-1]) * 1.001], cmap="Greys", alpha=0.4, zorder=0)
    ax.contour(x, y, height, levels, colors="#666666", linewidths=0.6, zorder=0)


def _arrows(ax: Axes, start: np.ndarray, end: np.ndarray, colours: np.ndarray) -> None:
    """From start to end, with a dot where each lands."""
    step = end - start
    style = {"cmap": _COLOURS, "clim": (0.0, 1.0)}
    ax.quiver(*start.T, *step.T, colours, angles="xy", scale_units="xy", scale=1, width=0.004, headwidth=4, **style)
    ax.scatter(*end.T, s=9, c=colours, cmap=_COLOURS, vmin=0.0, vmax=1.0, linewidths=0)

"""The report of the simulation-based calibration: tables and a figure in docs/evidence.md."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from calibration_statistics import Share
from document import FIGURES, table, write_block
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rank_statistics import band, ecdf, ecdf_points, uniformity
from runs import Record

matplotlib.use("Agg")


def write_report(records: Sequence[Record], num_draws: int) -> None:
    """Tables and the figure of fits, to docs/."""
    models = list(dict.fromkeys(record["model"] for record in records))
    fits = {model: [r for r in records if r["model"] == model and "failed" not in r] for model in models}
    parts = [_summary(model, fits[model], records) for model in models]
    _draw(fits, num_draws)
    rows = [row for model in models for row in _rows(model, fits[model], num_draws)]
    header = ("model", "quantity", "largest difference", "p", "in 50 % interval", "in 90 % interval")
    parts = ["\n".join(parts), table(header, rows, "llrrrr"), "![Ranks](figures/evidence_sbc.png)"]
    write_block("sbc", "\n\n".join(parts))


def _summary(model: str, fits: Sequence[Record], records: Sequence[Record]) -> str:
    failed = sum(record["model"] == model and "failed" in record for record in records)
    doubted = sum(not fit["reliable"] for fit in fits)
    seconds = np.median([fit["seconds"] for fit in fits])

    return (
        f"* **{model}**: {len(fits)} fits, {failed} ended in an error, {doubted} called not reliable (all of them count"
        f" below); median {seconds:.0f} CPU s."
    )


def _rows(model: str, fits: Sequence[Record], num_draws: int) -> list[tuple[str, ...]]:
    rows = []
    for name in fits[0]["ranks"]:
        ranks = np.array([fit["ranks"][name] for fit in fits])
        difference = ecdf(ranks, num_draws) - ecdf_points(num_draws)
        inside = [Share(sum(fit["inside"][mass][name] for fit in fits), len(fits)) for mass in ("0.5", "0.9")]
        rows.append(
            (
                model,
                name,
                f"{difference[np.abs(difference).argmax()]:+.3f}",
                f"{uniformity(ranks, num_draws):.3f}",
                *(f"{100 * share.value:.1f} ± {100 * share.std_error:.1f} %" for share in inside),
            )
        )

    return rows


def _draw(fits: dict[str, list[Record]], num_draws: int) -> None:
    """Distribution functions of the ranks minus that of a uniform one."""
    figure = Figure(figsize=(4.5 * len(fits), 3.6), layout="constrained")
    panels = figure.subplots(1, len(fits), sharey=True, squeeze=False)[0]
    for axes, (model, records) in zip(panels, fits.items(), strict=True):
        _draw_model(axes, records, num_draws)
        axes.set(title=f"{model}, {len(records)} fits", xlabel="rank, as a share")
    panels[0].set_ylabel("ECDF of the ranks - uniform")
    FIGURES.mkdir(exist_ok=True)
    figure.savefig(FIGURES / "evidence_sbc.png", dpi=120)


def _draw_model(axes: Axes, fits: Sequence[Record], num_draws: int) -> None:
    points = ecdf_points(num_draws)
    low, high = band(len(fits), num_draws)
    axes.fill_between(points, low - points, high - points, color="C0", alpha=0.15, step="post", label="95 % band")
    sites: dict[str, list[str]] = {}
    for name in fits[0]["ranks"]:
        sites.setdefault(name.split("[")[0], []).append(name)
    # Elements of a vector are alike and share a colour, below the others.
    for i, (site, names) in enumerate(sorted(sites.items(), key=lambda item: -len(item[1]))):
        ranks = [np.array([fit["ranks"][name] for fit in fits]) for name in names]
        curves = np.array([ecdf(row, num_draws) - points for row in ranks]).T
        color = "0.6" if len(names) > 1 else f"C{i + 1}"
        axes.step(points, curves, where="post", color=color, linewidth=1.0, label=[site] + [None] * (len(names) - 1))
    axes.margins(y=0.2)
    axes.legend(frameon=False, fontsize=8, ncols=5, loc="upper center", handlelength=1.2, columnspacing=1.0)

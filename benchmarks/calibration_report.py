"""The report of the calibration: tables and figures in docs/evidence.md, all from the file of runs."""

from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
import pandas as pd
from calibration_statistics import (
    NOTICEABLE,
    ROUNDING_STEPS,
    Share,
    Spread,
    bias,
    coverage,
    elbos_above,
    false_assurances,
    rounding,
    spread,
    with_z,
)
from document import FIGURES, table, write_block
from matplotlib.figure import Figure
from runs import Record
from scipy import stats

matplotlib.use("Agg")

MANY_SEEDS = 10
MAX_DIM = 60  # of the cases whose median error is judged
NUM_LISTED = 30


def write_report(records: Sequence[Record]) -> None:
    """Tables and figures of runs, to docs/."""
    failed = [record for record in records if "failed" in record]
    runs = with_z(pd.DataFrame([record for record in records if "failed" not in record]))
    judged = runs[~runs["is_rounding"]]
    parts = [
        f"{len(runs)} runs of {runs['case'].nunique()} cases. In {len(judged)} the standard error is more than "
        f"{ROUNDING_STEPS} float32 steps; all but the table of constant weights are about those.",
        "**In short**\n\n" + _in_short(runs, judged),
        "**By group**\n\n" + _groups(judged),
        *([f"**Cases with {MANY_SEEDS} seeds or more**\n\n" + _cases(judged)] if _with_many_seeds(judged) else []),
        "**Constant weights**\n\n" + _constant_weights(runs[runs["is_rounding"]]),
        "**Runs to look at**\n\n" + _notable(runs, failed),
    ]
    _draw_errors(judged)
    _draw_spread(judged)
    figures = "![Errors](figures/evidence_errors.png)\n\n![Seed spread](figures/evidence_spread.png)"
    write_block("calibration", "\n\n".join([*parts, figures]))


# ---- tables ----


def _in_short(runs: pd.DataFrame, judged: pd.DataFrame) -> str:
    inside, all_seeds = coverage(judged["z"], 2.0), spread(_trusted(judged))
    ratios = [spread(part).ratio for _, part in _with_many_seeds(_trusted(judged))]
    median = runs.loc[runs["dim"] <= MAX_DIM, "error"].abs().median()
    doubted = Share(int((~runs["reliable"].astype(bool)).sum()), len(runs))
    rows = [
        ("truth within 2 se", _percent(inside), "95.4 %"),
        ("spread over seeds / se, pooled", _interval(all_seeds), "1"),
        (f"reliable, and wrong by 3 se and {NOTICEABLE} nats", str(len(false_assurances(runs))), "0"),
        ("ELBO above the truth by 3 se", str(len(elbos_above(runs))), "0"),
        ("not reliable", _percent(doubted), ""),
        (f"median abs error, up to {MAX_DIM} dimensions, nats", f"{median:.4f}", ""),
    ]
    if ratios:
        rows.insert(2, ("the same, median of the cases with many seeds", f"{np.median(ratios):.2f}", "1"))

    return table(("", "measured", "if standard errors are right"), rows, "lrr")


def _groups(judged: pd.DataFrame) -> str:
    header = (
        "group",
        "cases",
        "runs",
        "1 se",
        "2 se",
        "3 se",
        "mean z",
        "sd z",
        "mean error",
        "median abs",
        "doubted",
    )
    parts = [("all", judged), ("all reliable", judged[judged["reliable"].astype(bool)]), *judged.groupby("group")]
    rows = []
    for name, runs in parts:
        trusted = _trusted(runs)
        z, error = bias(trusted["z"]), bias(trusted["error"])
        rows.append(
            (
                name,
                runs["case"].nunique(),
                len(runs),
                *(_percent(coverage(runs["z"], num_sigmas)) for num_sigmas in (1.0, 2.0, 3.0)),
                f"{z.value:+.2f} ± {z.std_error:.2f}",
                f"{trusted['z'].std():.2f}",
                f"{error.value:+.4f} ± {error.std_error:.4f}",
                f"{runs['error'].abs().median():.4f}",
                int((~runs["reliable"].astype(bool)).sum()),
            )
        )
    expected = [f"{100 * (2 * stats.norm.cdf(num_sigmas) - 1):.1f} %" for num_sigmas in (1.0, 2.0, 3.0)]
    rows.append(("a normal error", "", "", *expected, "0", "1", "0", "", ""))

    return table(header, rows, "l" + "r" * (len(header) - 1))


def _cases(judged: pd.DataFrame) -> str:
    header = ("case", "dim", "seeds", "mean error", "rms error", "rms se", "spread / se", "worst z", "doubted", "s")
    rows = []
    for name, runs in _with_many_seeds(judged):
        rows.append(
            (
                name,
                runs["dim"].iloc[0],
                len(runs),
                f"{runs['error'].mean():+.4f}",
                f"{_rms(runs['error']):.4f}",
                f"{_rms(runs['std_error']):.4f}",
                _interval(spread(runs)),
                f"{runs['z'].iloc[int(runs['z'].abs().argmax())]:+.1f}",
                int((~runs["reliable"].astype(bool)).sum()),
                f"{runs['seconds'].median():.0f}",
            )
        )

    return table(header, rows, "l" + "r" * (len(header) - 1))


def _constant_weights(runs: pd.DataFrame) -> str:
    """Errors in what a log density of that size is rounded to."""
    if runs.empty:
        return f"No run had a standard error below {ROUNDING_STEPS} float32 steps."
    steps = runs["error"].abs() / rounding(runs["truth"])
    rows = [
        (
            name,
            len(part),
            f"{part['std_error'].max():.1e}",
            f"{part['error'].abs().max():.1e}",
            f"{steps[part.index].max():.0f}",
        )
        for name, part in runs.groupby("case")
    ]
    rows.sort(key=lambda row: -float(row[3]))

    return table(("case", "runs", "largest se", "largest abs error", "in float32 steps"), rows, "lrrrr")


def _notable(runs: pd.DataFrame, failed: Sequence[Record]) -> str:
    judged = runs[~runs["is_rounding"]]
    lists: list[tuple[str, pd.DataFrame, Callable[[pd.Series], str]]] = [
        ("False assurances", false_assurances(runs), _line),
        ("Beyond 3 se", judged[~(judged["z"].abs() <= 3.0)], _line),
        ("ELBO above the truth", elbos_above(runs), lambda run: f"ELBO {run['elbo'] - run['truth']:+.4f}"),
        ("Not reliable", runs[~runs["reliable"].astype(bool)], lambda run: f"{_line(run)}, k {run['pareto_k']:.2f}"),
    ]
    lines = []
    for name, part, describe in lists:
        items = [f"{run['case']} ({run['seed']}): {describe(run)}" for _, run in part.head(NUM_LISTED).iterrows()]
        more = f"; and {len(part) - NUM_LISTED} more" if len(part) > NUM_LISTED else ""
        lines.append(f"* **{name}**, {len(part)}: {'; '.join(items) or 'none'}{more}.")
    errors = [f"{record['case']} ({record['seed']}): {record['failed']}" for record in failed]

    return "\n".join([*lines, f"* **Ended in an error**, {len(failed)}: {'; '.join(errors) or 'none'}."])


def _line(run: pd.Series) -> str:
    return f"{run['error']:+.4f} at se {run['std_error']:.4f}"


def _trusted(runs: pd.DataFrame) -> pd.DataFrame:
    """Reliable runs without the false assurances: a single one of either would be all of a mean or a variance."""
    return runs[runs["reliable"].astype(bool)].drop(false_assurances(runs).index)


def _with_many_seeds(runs: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(str(name), part) for name, part in runs.groupby("case", sort=False) if len(part) >= MANY_SEEDS]


def _percent(share: Share) -> str:
    return f"{100 * share.value:.1f} ± {100 * share.std_error:.1f} %"


def _interval(spread: Spread) -> str:
    return f"{spread.ratio:.2f} ({spread.low:.2f}-{spread.high:.2f})"


def _rms(values: pd.Series) -> float:
    return float(np.sqrt((values.astype(float) ** 2).mean()))


# ---- figures ----


def _draw_errors(judged: pd.DataFrame) -> None:
    """Errors in standard errors against a normal: their histogram, and quantile by quantile."""
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    z = judged["z"].clip(-5.0, 5.0).dropna().sort_values()
    grid = np.linspace(-5.0, 5.0, 201)
    left.hist(z, bins=np.linspace(-5.0, 5.0, 41), density=True, color="0.75", label=f"{len(z)} runs")
    left.plot(grid, stats.norm.pdf(grid), color="C0", label="standard normal")
    left.set(xlabel="error / standard error (beyond 5: at 5)", ylabel="density")
    left.legend(frameon=False)
    expected = stats.norm.ppf((np.arange(len(z)) + 0.5) / len(z))
    right.plot(grid, grid, color="C0", linewidth=1.0)
    right.plot(expected, z, ".", color="0.3", markersize=3)
    right.set(xlabel="normal quantile", ylabel="error / standard error", xlim=(-4.0, 4.0), ylim=(-5.2, 5.2))
    _save(figure, "evidence_errors.png")


def _draw_spread(judged: pd.DataFrame) -> None:
    """Spread over seeds in stated standard errors, case by case."""
    spreads = [(name, spread(runs)) for name, runs in _with_many_seeds(judged)]
    spreads.sort(key=lambda item: item[1].ratio)
    figure = Figure(figsize=(7.0, 1.2 + 0.2 * len(spreads)), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(0.8, 1.3, color="C0", alpha=0.15, label="asked of all together")
    axes.axvline(1.0, color="C0", linewidth=1.0)
    for row, (_, found) in enumerate(spreads):
        axes.plot([found.low, found.high], [row, row], color="0.5", linewidth=1.0)
        axes.plot(min(found.ratio, 8.0), row, "o", color="0.2", markersize=4)
    axes.set(xscale="log", xlim=(0.2, 9.0), xlabel="spread over seeds / se, with its 95 % interval (beyond 8: at 8)")
    axes.set_xticks([0.25, 0.5, 1.0, 2.0, 4.0], ["0.25", "0.5", "1", "2", "4"])
    axes.minorticks_off()
    axes.set_yticks(range(len(spreads)), [name for name, _ in spreads], fontsize=8)
    axes.legend(frameon=False, loc="lower right")
    _save(figure, "evidence_spread.png")


def _save(figure: Figure, name: str) -> None:
    FIGURES.mkdir(exist_ok=True)
    figure.savefig(FIGURES / name, dpi=120)

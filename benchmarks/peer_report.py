"""Tables and a figure of the runs beside other samplers, for docs/performance.md."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from document import DOCS, FIGURES, table, write_block
from peer_methods import METHODS
from peer_models import names

PAGE = DOCS / "performance.md"
# Effective draws that everybody is brought to, at the speed of further draws.
ENOUGH = 4000
# Nats that a log evidence may be off.
_WITHIN = 0.05
EVIDENCE_METHODS = ("OSDS", "bridge sampling", "tempered SMC", "nautilus", "dynesty")

Runs = dict[tuple[str, str], list[dict[str, Any]]]


def write_report(records: Sequence[dict[str, Any]]) -> None:
    """All tables and the figure."""
    runs: Runs = defaultdict(list)
    for record in records:
        runs[record["model"], record["method"]].append(record)
    models = [name for name in names() if any(record["model"] == name for record in records)]
    draw_methods = [name for name in METHODS if name not in _ALONE]
    parts = [
        "**Seconds to the first result**: posterior draws, and the log evidence where there is one; median (range)",
        _by_method(runs, models, draw_methods, _seconds),
        f"**Seconds to {ENOUGH:,} effective draws**: the first result, and the rest at the speed of further draws",
        _by_method(runs, models, draw_methods, _enough),
        f"**The same over that of OSDS**, after the geometric mean, without {' and '.join(_NOT_SOLVED)}; "
        f"at least, where ended: {_ratios(runs, models)}",
        "**Effective draws per second, once the first result is there**",
        _by_method(runs, models, draw_methods, lambda part: _range(part, "further", "{:.0f}")),
        "**Evaluations of the log density**, in thousands, with or without gradient",
        _by_method(runs, models, draw_methods, lambda part: _range(part, "evaluations", "{:.0f}", 1e-3)),
        "**Largest difference of a mean from OSDS's, in posterior sds**",
        _by_method(runs, models, [name for name in draw_methods if name != "OSDS"], _difference(runs)),
        "**Log evidence**: error against the truth (stated standard error), nats; seconds",
        _by_method(runs, models, EVIDENCE_METHODS, _evidence),
        f"**Seconds to a log evidence within {_WITHIN} nats, of the fastest other method over those of OSDS**, "
        f"after the geometric mean; at least, where none was in time: {_evidence_ratios(runs, models)}",
        "**Peak memory of the process**, MB",
        _by_method(runs, models, draw_methods, lambda part: _range(part, "megabytes", "{:.0f}")),
    ]
    write_block("peers", "\n\n".join(parts), PAGE)
    _figure(runs, models)


# By NUTS, whose chains stay in one mode each: its seconds say nothing.
_NOT_SOLVED = ("four Gaussians", "hidden Markov")
_ALONE = ("bridge sampling", "tempered SMC", "nautilus", "dynesty")


def _by_method(runs: Runs, models: list[str], methods: Iterable[str], cell: Callable[[list[Any]], str]) -> str:
    present = [name for name in methods if any((model, name) in runs for model in models)]
    rows = [[model, *(cell(runs.get((model, name), [])) for name in present)] for model in models]

    return table(["posterior", *present], rows, "l" + "r" * len(present))


def _seconds(part: list[dict[str, Any]]) -> str:
    if part and all("limit" in record for record in part):
        return f"> {part[0]['limit']:.0f}"

    return _range(part, "seconds", "{:.1f}")


def _range(part: list[dict[str, Any]], key: str, text: str, scale: float = 1.0) -> str:
    values = sorted(scale * record[key] for record in part if record.get(key) is not None)
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return "failed" if any("failed" in record for record in part) else ""
    spread = "" if len(values) == 1 else f" ({text.format(values[0])}-{text.format(values[-1])})"

    return text.format(median(values)) + spread


def seconds_to_enough(record: dict[str, Any]) -> float:
    """Seconds until there are enough effective draws; nan where there is no more than a first result."""
    if "limit" in record:
        return record["limit"]
    if record.get("effective") is None:
        return math.nan
    missing = max(0.0, ENOUGH - record["effective"])

    return record["seconds"] + (missing / record["further"] if missing else 0.0)


def _typical(part: list[dict[str, Any]]) -> tuple[float, bool]:
    """The median of seconds to enough draws, and whether it is only a lower bound."""
    values = [(seconds_to_enough(record), "limit" in record) for record in part]
    values = sorted(value for value in values if math.isfinite(value[0]))

    return values[len(values) // 2] if values else (math.nan, False)


def _enough(part: list[dict[str, Any]]) -> str:
    seconds, bound = _typical(part)

    return "" if math.isnan(seconds) else f"{'> ' if bound else ''}{seconds:.1f}"


def _ratios(runs: Runs, models: list[str]) -> str:
    told = []
    for method in ("Pyro NUTS", "Pyro NUTS, jit", "NumPyro NUTS"):
        ratios = []
        for model in models:
            if model in _NOT_SOLVED:
                continue
            theirs, ours = _typical(runs.get((model, method), [])), _typical(runs.get((model, "OSDS"), []))
            if math.isfinite(theirs[0]) and math.isfinite(ours[0]):
                ratios.append((model, theirs[0] / ours[0], theirs[1]))
        if ratios:
            mean = math.exp(sum(math.log(ratio) for _, ratio, _ in ratios) / len(ratios))
            each = ", ".join(f"{model} {'> ' if bound else ''}{ratio:.1f}" for model, ratio, bound in ratios)
            told.append(f"{method} {mean:.1f} ({each})")

    return "; ".join(told)


def _evidence_ratios(runs: Runs, models: list[str]) -> str:
    """The geometric mean, and each posterior's ratio with the method that was fastest."""
    ratios = []
    for model in models:
        ours = runs.get((model, "OSDS"), [])
        theirs = [
            (record.get("seconds", record.get("limit")), record["method"], "limit" in record)
            for method in EVIDENCE_METHODS[1:]
            for record in runs.get((model, method), [])
            if "limit" in record or abs(record.get("error", math.nan)) <= _WITHIN
        ]
        if ours and theirs:
            seconds, method, bound = min(theirs)
            ratios.append((seconds / median(record["seconds"] for record in ours), model, method, bound))
    if not ratios:
        return ""
    mean = math.exp(sum(math.log(ratio) for ratio, *_ in ratios) / len(ratios))
    each = (
        f"{model} {'> ' if bound else ''}{ratio:.1f}{'' if bound else f' ({method})'}"
        for ratio, model, method, bound in ratios
    )

    return f"{mean:.1f} ({', '.join(each)})"


def _difference(runs: Runs) -> Callable[[list[dict[str, Any]]], str]:
    def cell(part: list[dict[str, Any]]) -> str:
        done = [record for record in part if record.get("moments")]
        if not done:
            return ""
        ours = [record for record in runs.get((done[0]["model"], "OSDS"), []) if record.get("moments")]
        if not ours:
            return ""
        reference, gaps = ours[0]["moments"], []
        for site, moments in done[0]["moments"].items():
            if site in reference and len(moments["mean"]) == len(reference[site]["mean"]):
                sd = np.maximum(np.asarray(reference[site]["sd"]), 1e-12)
                gaps.append(np.abs((np.asarray(moments["mean"]) - np.asarray(reference[site]["mean"])) / sd).max())
        return f"{max(gaps):.2f}" if gaps else ""

    return cell


def _evidence(part: list[dict[str, Any]]) -> str:
    done = [record for record in part if record.get("error") is not None and math.isfinite(record["error"])]
    if not done:
        return _seconds(part) if any("limit" in record for record in part) else ""
    middle = sorted(done, key=lambda record: abs(record["error"]))[len(done) // 2]
    error = f" ({middle['std_error']:.4f})" if math.isfinite(middle["std_error"]) else ""

    return f"{middle['error']:+.4f}{error}; {median(record['seconds'] for record in done):.1f} s"


def _figure(runs: Runs, models: list[str]) -> None:
    """Seconds to the first result against the error of the log evidence, a mark for each run."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for method, marker in zip(EVIDENCE_METHODS, "osvD^", strict=True):
        done = [
            record for model in models for record in runs.get((model, method), []) if record.get("error") is not None
        ]
        done = [record for record in done if math.isfinite(record["error"])]
        if done:
            axes.plot(
                [record["seconds"] for record in done],
                [max(abs(record["error"]), 1e-5) for record in done],
                marker,
                label=method,
                alpha=0.7,
            )
    axes.axhline(0.05, color="0.6", linestyle="--", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="seconds", ylabel="error of the log evidence (nats)")
    axes.legend()
    figure.savefig(FIGURES / "peers.png", dpi=150)
    plt.close(figure)

"""Tables and a figure of the runs beside other samplers, for docs/performance.md."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from cases import CIRCLE, CIRCLE_WEIGHTS, posteriordb
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
        _versions(records),
        "**Seconds of the processor to the first result**: posterior draws, and the log evidence where there is one; "
        "median (range)",
        _by_method(runs, models, draw_methods, _seconds),
        f"**Seconds to {ENOUGH:,} effective draws**: the first result, and the rest at the speed of further draws",
        _by_method(runs, models, draw_methods, _enough),
        f"**The same over that of OSDS**; geometric means (of how many) without {' and '.join(_NOT_SOLVED)}",
        _ratios(runs, models),
        "**First results of nutpie**, and the share of the seconds that went into compiling: where nothing is "
        "compiled, as in the tables above; then in a second process of the same model, which finds on disk what the "
        "first one compiled",
        _compiling(runs, models),
        "**Effective draws per second of the processor, once the first result is there**",
        _by_method(runs, models, draw_methods, lambda part: _range(part, "further_cpu", "{:.0f}")),
        "**Evaluations of the log density**, in thousands, with or without gradient",
        _by_method(runs, models, draw_methods, lambda part: _range(part, "evaluations", "{:.0f}", 1e-3)),
        "**Largest error of a mean, in posterior sds**: against posteriordb's reference draws, or what is exact; from "
        f"the mean of OSDS for {_listed([name for name in models if not reference(name)])}",
        _by_method(runs, models, draw_methods, _error_of_means(runs)),
        "**Log evidence**: error against the truth (stated standard error), nats; seconds of the processor",
        _by_method(runs, models, EVIDENCE_METHODS, _evidence),
        f"**The fastest other method whose log evidence is within {_WITHIN} nats**: its seconds over those of OSDS; at "
        "least, where one was ended before another was done",
        _evidence_ratios(runs, models),
        "**Peak memory of the process**, MB",
        _by_method(runs, models, draw_methods, lambda part: _range(part, "megabytes", "{:.0f}")),
    ]
    write_block("peers", "\n\n".join(parts), PAGE)
    _figure(runs, models)


def _versions(records: Sequence[dict[str, Any]]) -> str:
    found: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for package, version in record.get("packages", {}).items():
            found[package].add(version)

    return ", ".join(f"{package} {' and '.join(sorted(versions))}" for package, versions in found.items()) + "."


def _listed(what: Sequence[str]) -> str:
    return what[0] if len(what) == 1 else f"{', '.join(what[:-1])} and {what[-1]}" if what else "none"


# By NUTS, whose chains stay in one mode each: its seconds say nothing.
_NOT_SOLVED = ("four Gaussians", "hidden Markov")
_NUTS = ("Pyro NUTS", "Pyro NUTS, jit", "NumPyro NUTS", "nutpie", "nutpie, low rank")
# Posteriors of posteriordb by their files.
_REFERENCES = {
    "eight schools": "eight_schools",
    "eight schools, centred": "eight_schools",
    "gp_regr": "gp_regr",
    "arK": "arK",
    "hidden Markov": "hmm_example",
}
_ALONE = ("bridge sampling", "tempered SMC", "nautilus", "dynesty")


def _by_method(runs: Runs, models: list[str], methods: Iterable[str], cell: Callable[[list[Any]], str]) -> str:
    present = [name for name in methods if any((model, name) in runs for model in models)]
    rows = [[model, *(cell(runs.get((model, name), [])) for name in present)] for model in models]

    return table(["posterior", *present], rows, "l" + "r" * len(present))


def _seconds(part: list[dict[str, Any]]) -> str:
    if part and all(_is_ended(record) for record in part):
        return f"> {part[0]['cpu_limit']:.0f}"

    return _range(part, "cpu_seconds", "{:.1f}")


def _range(part: list[dict[str, Any]], key: str, text: str, scale: float = 1.0) -> str:
    values = sorted(scale * record[key] for record in part if record.get(key) is not None)
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return "failed" if any("failed" in record for record in part) else ""
    spread = "" if len(values) == 1 else f" ({text.format(values[0])}-{text.format(values[-1])})"

    return text.format(median(values)) + spread


def _is_ended(record: dict[str, Any]) -> bool:
    """Whether there is no result at all."""
    return "limit" in record and "seconds" not in record


def seconds_to_enough(record: dict[str, Any]) -> tuple[float, bool]:
    """Seconds of the processor until there are enough effective draws, and whether it takes longer.

    They are nan where there is no more than a first result. A run that was ended had at least the seconds till then,
    or, if it had a result without enough draws, those of this.
    """
    if _is_ended(record):
        return record["cpu_limit"], True
    if record.get("effective") is None:
        return math.nan, False
    missing = ENOUGH - record["effective"]
    if missing <= 0.0 or "limit" in record:
        return record["cpu_seconds"], missing > 0.0

    return record["cpu_seconds"] + missing / record["further_cpu"], False


def _typical(part: list[dict[str, Any]]) -> tuple[float, bool]:
    """The median of seconds to enough draws, and whether it is only a lower bound."""
    values = sorted(value for value in map(seconds_to_enough, part) if math.isfinite(value[0]))
    if not values:
        return math.nan, False
    middle = values[(len(values) - 1) // 2 : len(values) // 2 + 1]

    return sum(value for value, _ in middle) / len(middle), any(bound for _, bound in middle)


def _enough(part: list[dict[str, Any]]) -> str:
    seconds, bound = _typical(part)

    return "" if math.isnan(seconds) else f"{'> ' if bound else ''}{seconds:.1f}"


def _ratios(runs: Runs, models: list[str]) -> str:
    """A column for each sampler of NUTS, and one for what it takes with functions that are compiled already."""
    columns = {}
    for method in _NUTS:
        parts = {model: runs.get((model, method), []) for model in models}
        columns[method] = parts
        if any("again" in record for part in parts.values() for record in part):
            columns[f"{method}, compiled"] = {model: _with_kept(part) for model, part in parts.items()}
    columns = {name: parts for name, parts in columns.items() if any(parts.values())}
    ratios = {name: _column(runs, parts) for name, parts in columns.items()}
    rows = [[model, *(_ratio(each.get(model)) for each in ratios.values())] for model in models]
    rows.append(["geometric mean", *(_mean_ratio(each) for each in ratios.values())])

    return table(["posterior", *ratios], rows, "l" + "r" * len(ratios))


def _with_kept(part: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs as they are in a process that finds compiled functions."""
    return [{**record, **record["again"]} for record in part if "again" in record]


def _column(runs: Runs, parts: dict[str, list[dict[str, Any]]]) -> dict[str, tuple[float, bool]]:
    """Seconds over those of OSDS by posterior, and whether they are only a lower bound."""
    ratios = {}
    for model, part in parts.items():
        (theirs, bound), (ours, _) = _typical(part), _typical(runs.get((model, "OSDS"), []))
        if math.isfinite(theirs) and math.isfinite(ours):
            ratios[model] = theirs / ours, bound

    return ratios


def _ratio(ratio: tuple[float, bool] | None) -> str:
    return "" if ratio is None else f"{'> ' if ratio[1] else ''}{ratio[0]:.1f}"


def _mean_ratio(ratios: dict[str, tuple[float, bool]]) -> str:
    counted = [ratio for model, ratio in ratios.items() if model not in _NOT_SOLVED]
    if not counted:
        return ""
    mean = math.exp(sum(math.log(ratio) for ratio, _ in counted) / len(counted))

    return f"{_ratio((mean, any(bound for _, bound in counted)))} ({len(counted)})"


def _compiling(runs: Runs, models: list[str]) -> str:
    """First results of methods that say how long their compiler took."""
    done = {(model, name): runs.get((model, name), []) for model in models for name in METHODS}
    methods = [name for name in METHODS if any("again" in each for model in models for each in done[model, name])]
    header = ["posterior", *(f"{name}{then}" for name in methods for then in ("", ", second process"))]
    rows = []
    for model in models:
        row = [model]
        for name in methods:
            for part in (done[model, name], _with_kept(done[model, name])):
                shares = [100 * each["compiling"] / each["seconds"] for each in part if each.get("compiling")]
                row.append(f"{_seconds(part)}, {median(shares):.0f} %" if shares else _seconds(part))
        rows.append(row)

    return table(header, rows, "l" + "r" * (len(header) - 1))


def _evidence_ratios(runs: Runs, models: list[str]) -> str:
    """A row for each posterior that another method was right on, or not done: the fastest, over OSDS."""
    found = {model: _fastest(runs, model) for model in models}
    found = {model: ratio for model, ratio in found.items() if ratio}
    rows = [[model, method or "none", _ratio((ratio, not method))] for model, (ratio, method) in found.items()]
    if found:
        mean = math.exp(sum(math.log(ratio) for ratio, _ in found.values()) / len(found))
        bound = not all(method for _, method in found.values())
        rows.append(["geometric mean", "", f"{_ratio((mean, bound))} ({len(found)})"])

    return table(["posterior", "fastest other", "seconds over OSDS"], rows, "llr")


def _fastest(runs: Runs, model: str) -> tuple[float, str] | None:
    """Seconds of the processor over those of OSDS, and the method.

    That is empty where the ratio is a bound: what was ended before others were done might have been the fastest.
    """
    ours = runs.get((model, "OSDS"), [])
    others = [record for method in EVIDENCE_METHODS[1:] for record in runs.get((model, method), [])]
    right = [
        (record["cpu_seconds"], record["method"]) for record in others if abs(record.get("error", math.nan)) <= _WITHIN
    ]
    ended = [(record["cpu_limit"], "") for record in others if _is_ended(record)]
    if not ours or not (right or ended):
        return None
    seconds, method = min(right + ended)

    return seconds / median(record["cpu_seconds"] for record in ours), method


def reference(model: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Means and sds by site: posteriordb's reference draws', exact ones of the four Gaussians, `{}` for others."""
    if model == "four Gaussians":
        centres, weights = CIRCLE.numpy(), CIRCLE_WEIGHTS.numpy()
        mean = weights @ centres
        return {"z": (mean, np.sqrt(0.25 + weights @ centres**2 - mean**2))}
    if model not in _REFERENCES:
        return {}
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for name, moments in posteriordb(_REFERENCES[model])[1].items():
        # Of `theta1[2]`, a row of a matrix, the site is `theta`.
        found[re.split(r"[\d\[]", name)[0]].append((moments["mean"], moments["sd"]))

    return {site: tuple(np.array(rows).T) for site, rows in found.items()}


def _error_of_means(runs: Runs) -> Callable[[list[dict[str, Any]]], str]:
    def cell(part: list[dict[str, Any]]) -> str:
        done = [record for record in part if record.get("moments")]
        if not done:
            return ""
        truth = reference(done[0]["model"])
        if not truth:
            ours = [record for record in runs.get((done[0]["model"], "OSDS"), []) if record.get("moments")]
            if not ours or done[0]["method"] == "OSDS":
                return ""
            moments = ours[0]["moments"].items()
            truth = {site: (np.asarray(each["mean"]), np.asarray(each["sd"])) for site, each in moments}

        return f"{max(_largest(record['moments'], truth) for record in done):.2f}"

    return cell


def _largest(moments: dict[str, dict[str, list[float]]], truth: dict[str, tuple[np.ndarray, np.ndarray]]) -> float:
    gaps = [
        np.abs((np.asarray(moments[site]["mean"]) - mean) / np.maximum(sd, 1e-12)).max()
        for site, (mean, sd) in truth.items()
        if site in moments and len(moments[site]["mean"]) == len(mean)
    ]

    return float(max(gaps))


def _evidence(part: list[dict[str, Any]]) -> str:
    done = [record for record in part if record.get("error") is not None and math.isfinite(record["error"])]
    if not done:
        return _seconds(part) if part else ""
    middle = sorted(done, key=lambda record: abs(record["error"]))[len(done) // 2]
    error = f" ({middle['std_error']:.4f})" if math.isfinite(middle["std_error"]) else ""

    flagged = sum(record["reliable"] is False for record in done)
    verdict = f"; {flagged} of {len(done)} not reliable" if flagged else ""

    return f"{middle['error']:+.4f}{error}; {median(record['cpu_seconds'] for record in done):.1f} s{verdict}"


def _figure(runs: Runs, models: list[str]) -> None:
    """Seconds of the processor to the first result against the error of the log evidence, a mark for each run."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for method, marker in zip(EVIDENCE_METHODS, "osvD^", strict=True):
        done = [
            record for model in models for record in runs.get((model, method), []) if record.get("error") is not None
        ]
        done = [record for record in done if math.isfinite(record["error"])]
        if done:
            axes.plot(
                [record["cpu_seconds"] for record in done],
                [max(abs(record["error"]), 1e-5) for record in done],
                marker,
                label=method,
                alpha=0.7,
            )
    axes.axhline(0.05, color="0.6", linestyle="--", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="seconds of the processor", ylabel="error of the log evidence (nats)")
    axes.legend()
    figure.savefig(FIGURES / "peers.png", dpi=150)
    plt.close(figure)

"""The report of the adversarial cases: counts by kind and what went wrong, in docs/evidence.md."""

import math
from collections.abc import Sequence

import numpy as np
from adversarial_cases import CASES, KINDS
from adversarial_verdict import FAILED, FLAGGED, LONG, NEEDLESS, OUTCOMES, WRONG, outcome
from document import table, write_block
from runs import Record


def write_report(records: Sequence[Record]) -> None:
    """The newest run of each case and seed."""
    newest = list({(record["case"], record["seed"]): record for record in records}.values())
    newest.sort(key=lambda record: (KINDS.index(record["kind"]), list(CASES).index(record["case"]), record["seed"]))
    write_block("adversarial", report(newest))


def report(records: Sequence[Record]) -> str:
    seeds = len({record["seed"] for record in records})
    parts = [
        f"{len(records)} runs of {len({record['case'] for record in records})} cases, {seeds} "
        f"seed{'s' * (seeds != 1)}.",
        _counts(records),
        _list("Wrong and called reliable", WRONG, records, _line),
        _list("Needlessly flagged", NEEDLESS, records, _line_with_reason),
        _names("Flagged, and rightly so", FLAGGED, records),
        _names("Too long", LONG, records),
        _list("Ended in an error", FAILED, records, _failure),
    ]

    return "\n\n".join(parts)


def _counts(records: Sequence[Record]) -> str:
    kinds = [kind for kind in KINDS if any(record["kind"] == kind for record in records)]
    rows = [_count(kind, [record for record in records if record["kind"] == kind]) for kind in kinds]
    header = ("kind", "runs", *OUTCOMES, "median s")

    return table(header, [*rows, _count("all", records)], "l" + "r" * (len(header) - 1))


def _count(name: str, records: Sequence[Record]) -> tuple:
    found = [outcome(record) for record in records]
    seconds = np.median([record["seconds"] for record in records]) if records else math.nan

    return (name, len(records), *(found.count(one) for one in OUTCOMES), f"{seconds:.0f}")


# ---- lists ----


def _of(kind_of_outcome: str, records: Sequence[Record]) -> list[Record]:
    return [record for record in records if outcome(record) == kind_of_outcome]


def _list(title: str, kind_of_outcome: str, records: Sequence[Record], line) -> str:
    lines = [line(record) for record in _of(kind_of_outcome, records)]

    return "\n".join([f"**{title}**, {len(lines)}{':' if lines else '.'}", *([""] if lines else []), *lines])


def _names(title: str, kind_of_outcome: str, records: Sequence[Record]) -> str:
    names = [_name(record) for record in _of(kind_of_outcome, records)]

    return f"**{title}**, {len(names)}{': ' + ', '.join(names) if names else ''}."


def _name(record: Record) -> str:
    return f"{record['case']} ({record['seed']})"


def _line(record: Record) -> str:
    """A flat prior has no log evidence to be wrong: there the posterior moments are told."""
    start = f"* {_name(record)}, {record['kind']}, {record['dim']}-D: "
    if "mean_error" in record:
        return start + (
            f"a mean off by {record['mean_error']:.2f} sds, sds {record['sd_ratio_low']:.2f} to "
            f"{record['sd_ratio_high']:.2f} times the true ones."
        )

    return start + (
        f"log evidence {record['log_evidence']:.4f} ± {record['std_error']:.4f}, truth {record['truth']:.4f}, pareto k "
        f"{record['pareto_k']:.2f}, {record['ess_share']:.0%} of the draws effective. {CASES[record['case']].why}"
    )


def _line_with_reason(record: Record) -> str:
    return f"{_line(record)} *{' '.join(record['reasons'])}*"


def _failure(record: Record) -> str:
    return f"* {_name(record)}: {record['failed'].splitlines()[0][:300]}"

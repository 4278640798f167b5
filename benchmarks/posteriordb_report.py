"""The table of posteriordb's posteriors: how far draws are from the reference draws, and what the verdicts were."""

from collections import Counter

from accuracy import MAX_MEAN_ERROR, MAX_SD_RATIO, MIN_SD_RATIO
from document import DOCS, table, write_block
from posteriordb_models import POSTERIORS, REFERENCE
from runs import Record

HEADER = (
    "posterior",
    "D",
    "n",
    "CPU s",
    "mean error, sd",
    "sd ratio",
    "quantile error, sd",
    "draws",
    "evidence",
    "flag",
)


def has_ended(record: Record) -> bool:
    return "parameters" in record


def is_right(record: Record) -> bool:
    """Whether the mean and sd of every parameter are near those of the reference draws."""
    return all(
        abs(each["mean_error"]) <= MAX_MEAN_ERROR and MIN_SD_RATIO <= each["sd_ratio"] <= MAX_SD_RATIO
        for each in record["parameters"].values()
    )


def lacks_integral(record: Record) -> bool:
    """Whether the verdict denies that the density has an integral; all posteriors here have one."""
    return any("no integral" in reason for reason in record["reasons"])


def draws_verdict(record: Record) -> str:
    return "reliable" if record["draws_reliable"] else "not reliable"


def evidence_verdict(record: Record) -> str:
    if record["log_evidence"] != record["log_evidence"]:  # nan
        return "undefined"

    return "reliable" if record["reliable"] else "not reliable"


def flags(record: Record) -> str:
    """What is wrong with a fit, in a word each."""
    if not has_ended(record):
        # The message, which may be long, is in the file.
        return f"too long ({record['limit']:.0f} s)" if "limit" in record else record["failed"].partition(":")[0]
    wrong = "called reliable, wrong" if record["draws_reliable"] and not is_right(record) else ""

    return ", ".join(filter(None, (wrong, "no integral" if lacks_integral(record) else ""))) or "-"


# ---- the table ----


def table_of(records: list[Record]) -> str:
    """A row for each posterior, with the worst parameter of the worst seed."""
    rows = [_row(name, [r for r in records if r["posterior"] == name]) for name in POSTERIORS]

    return table(HEADER, [row for row in rows if row], "lrrrrrrlll")


def _row(name: str, records: list[Record]) -> list[str]:
    if not records:
        return []
    ended = [record for record in records if has_ended(record)]
    flag = _tally([flags(record) for record in records])
    if not ended:
        return [name, *"-" * (len(HEADER) - 2), flag]
    each = [comparison for record in ended for comparison in record["parameters"].values()]
    ratios = [comparison["sd_ratio"] for comparison in each]

    return [
        name,
        str(ended[0]["dim"]),
        str(ended[0]["num_rows"]),
        f"{max(record['seconds'] for record in ended):.0f}",
        f"{max(abs(comparison['mean_error']) for comparison in each):.3f}",
        f"{min(ratios):.3f} .. {max(ratios):.3f}",
        f"{max(abs(comparison['quantile_error']) for comparison in each):.3f}",
        _tally([draws_verdict(record) for record in ended]),
        _tally([evidence_verdict(record) for record in ended]),
        flag,
    ]


def _tally(words: list[str]) -> str:
    """One word if all seeds have the same, else each with how many have it."""
    counts = Counter(words)

    return words[0] if len(counts) == 1 else "; ".join(f"{count} {word}" for word, count in counts.items())


def summary(records: list[Record]) -> str:
    """How many fits are called reliable and are right, how many are said to have no integral, how many did not end."""
    ended = [record for record in records if has_ended(record)]
    trusted = [record for record in ended if record["draws_reliable"]]
    doubted = [record for record in ended if not record["draws_reliable"]]
    names = {record["posterior"] for record in records}
    num_failed = sum("failed" in record for record in records)

    return (
        f"{len(records)} fits of {len(names)} posteriors: draws of {len(trusted)} called reliable, of which "
        f"{sum(map(is_right, trusted))} right; draws of {len(doubted)} called not reliable, of which "
        f"{sum(map(is_right, doubted))} right; {sum(map(lacks_integral, ended))} falsely said to have no integral; "
        f"{len(records) - len(ended) - num_failed} too long, {num_failed} failed."
    )


# ---- the document ----


def write_report(records: list[Record]) -> None:
    """Put the table between the markers in docs/accuracy.md."""
    if not records:
        print("There are no fits to report; run without --report first.")
        return
    seeds = ", ".join(str(seed) for seed in sorted({record["seed"] for record in records}))
    head = f"Seeds {seeds}, commit {records[0]['revision']}, {REFERENCE['num_draws']:,} reference draws each."
    text = "\n\n".join((head, table_of(records), summary(records)))
    write_block("posteriordb", text, DOCS / "accuracy.md")
    print(summary(records))

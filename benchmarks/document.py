"""Generated parts of pages: what stands between two markers is replaced, what others wrote stays."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"
FIGURES = DOCS / "figures"


def write_block(name: str, text: str, path: Path = DOCS / "evidence.md") -> None:
    """Put text between the markers of that name.

    Raises:
        ValueError: If the document has no such markers.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    document = path.read_text()
    if begin not in document or end not in document:
        raise ValueError(f"{path} lacks the markers {begin!r} and {end!r}; put them where the numbers belong.")
    before, after = document.split(begin)[0], document.split(end)[1]
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, smallest and largest of what was measured several times."""
    middle, low, high = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))

    return f"{middle} ({low}-{high})"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], align: str) -> str:
    """A table in Markdown; `align` has an `l` or `r` for each column."""
    rule = ["--:" if side == "r" else "---" for side in align]

    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (header, rule, *rows))

"""Finds numbers in the tables of README and pages that no stored result contains.

    python docs/find_numbers.py            # tables
    python docs/find_numbers.py --prose    # numbers with decimals in sentences, too

Where the numbers of a table come from is read off the page:

* Between ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->`` stands what a benchmark wrote. If its results are stored
  in ``benchmarks/results``, its report is made anew from them, and each line must be one of it.
* ``<!-- numbers: SOURCE -->`` on a line above a table names its source: a file, which must contain the numbers (as they
  are, rounded, or as percentages); a page, likewise; a command; or ``none`` and a reason, where numbers are no results.
* Otherwise the command that stands in the same section, before the table.

What is printed: numbers that their source does not contain, with file and line, and tables without a source. Then come
the tables whose command does not store its results: nobody can check them but by running it; and those that have no
results, with the reason that the page gives. The exit status is 1 if there is anything of the first two kinds.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import runpy
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# Blocks that benchmarks write. A benchmark keeps its results in a file of its own name, and makes its report of them.
REPORTS = {
    "accuracy": "accuracy.py",
    "search": "search.py",
    "calibration": "calibration.py",
    "exoplanets": "exoplanets.py",
    "adversarial": "adversarial.py --any-revision",
    "devices": "devices.py",
    "draws": "draws.py",
    "whole-step": "whole_step.py",
    "whole-runs": "whole_runs.py",
    "exploring": "exploring.py",
    "replay": "replay.py",
    "step": "profile_step.py",
    "limit": "profile_step.py",
    "targets": "targets.py",
    "diffusion-targets": "targets.py",
    "estimates": "estimates.py",
    "walk": "walk.py",
    "students": "walk.py",
    "paper": "paper.py",
    "paper-training": "paper.py",
    "evidence-from-samples": "evidence_from_samples.py",
    "log-density": "log_density.py",
    "missing-data": "missing_data.py",
    "ablation": "ablation.py",
    "steps": "ablation.py",
    "scaling": "scaling.py",
    "large": "scaling.py",
    "posteriordb": "posteriordb.py",
    "sbc": "sbc.py",
    "peers": "peers.py",
}
# No results: names of modules, output of a run that a test compares.
WITHOUT_NUMBERS = ("modules", "summary")

NUMBER = re.compile(r"(?<![\w.])[-+\u2212]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?(?![\w.]*\w)(?!-[A-Za-z])")
BLOCK = re.compile(r"<!-- ([\w-]+): (begin|end) -->")
SOURCE = re.compile(r"<!-- numbers: (.*?) -->")
COMMAND = re.compile(r"python (?:benchmarks|examples|docs)/[\w/]+\.py[^`\n]*")


@dataclass
class Table:
    """A table of a page: its lines by number, and where its numbers come from."""

    page: Path
    lines: dict[int, str] = field(default_factory=dict)
    block: str = ""
    source: str = ""

    @property
    def place(self) -> str:
        """File and first line."""
        return f"{self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page}:{min(self.lines)}"


def is_stored(block: str) -> bool:
    """Whether there are results from which a benchmark can make that block."""
    return block in REPORTS and (RESULTS / REPORTS[block].split()[0]).with_suffix(".jsonl").exists()


def tables(page: Path) -> list[Table]:
    """The tables of a page, each with its source as the page tells it."""
    found: list[Table] = []
    block, marked, command, open_table, is_code = "", "", "", False, False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("```"):
            is_code = not is_code
        if mark := BLOCK.search(line):
            block = mark[1] if mark[2] == "begin" else ""
        elif mark := SOURCE.search(line):
            marked = mark[1]
        elif line.startswith("#") and not is_code:
            command, marked = "", ""
        if said := COMMAND.search(line):
            command = said[0].strip()
        is_line = line.startswith("|") or (is_stored(block) and bool(line.strip()) and not BLOCK.search(line))
        if is_line and not is_code:
            if not open_table:
                found.append(Table(page, block=block, source=marked or command))
            found[-1].lines[number] = line
        elif open_table:
            marked = ""
        open_table = is_line and not is_code

    return found


def numbers(line: str) -> Iterator[str]:
    """The numbers of a line, without links, code and footnotes of the page."""
    line = re.sub(r"`[^`]*`|\]\([^)]*\)|https?://\S+|(?:arXiv|doi) \S+", " ", line)
    for found in NUMBER.finditer(line):
        yield found[0]


def is_in(text: str, values: Iterable[float]) -> bool:
    """Whether a number as written is one of the values, rounded to the digits that it has, or a percentage of one."""
    plain = text.replace(",", "").replace("\u2212", "-")
    mantissa, _, exponent = plain.partition("e")
    decimals = len(mantissa.partition(".")[2])
    half = 0.5 * 10.0 ** (int(exponent or 0) - decimals)
    number = float(plain)

    return any(
        abs(abs(number) - abs(value)) <= half * (1 + 1e-9) or abs(abs(number) - 100 * abs(value)) <= half * (1 + 1e-9)
        for value in values
    )


def values_of(path: Path) -> set[float]:
    """All numbers that a file contains: those of JSON lines, or whatever stands in a text."""
    text = path.read_text(encoding="utf-8")
    if path.suffix in (".json", ".jsonl"):
        found: set[float] = set()
        for line in [text] if path.suffix == ".json" else text.splitlines():
            _collect(json.loads(line), found)

        return found

    return {float(found[0].replace(",", "").replace("\u2212", "-")) for found in NUMBER.finditer(text)}


def _collect(value: object, found: set[float]) -> None:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            _collect(part, found)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        found.add(float(value))


def reports() -> dict[str, str]:
    """What each benchmark with stored results would write on its page now."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import document

    written: dict[str, str] = {}
    document.write_block = lambda name, text, path=None: written.update({name: text})
    before = sys.argv
    with tempfile.TemporaryDirectory() as folder:
        document.FIGURES = Path(folder)
        for command in dict.fromkeys(command for block, command in REPORTS.items() if is_stored(block)):
            script, *arguments = command.split()
            sys.argv = [script, "--report", *arguments]
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                runpy.run_path(str(ROOT / "benchmarks" / script), run_name="__main__")
    sys.argv = before

    return written


def against_report(table: Table, report: str) -> list[str]:
    """Lines of a generated block that the report from stored results has not, with the numbers that it lacks."""
    rows = {line.strip() for line in report.splitlines()}
    known = {number for line in report.splitlines() for number in numbers(line)}
    said = []
    for number, line in table.lines.items():
        if line.strip() in rows:
            continue
        missing = [text for text in numbers(line) if text not in known]
        what = ", ".join(missing) if missing else f"{line.strip()[:40]!r}"
        said.append(f"{table.place.rpartition(':')[0]}:{number}: {what}: not in the report from benchmarks/results")

    return said


def against_source(table: Table) -> list[str]:
    """Numbers that the source named by the page does not contain; what is wrong with the source itself."""
    page = table.place.rpartition(":")[0]
    if table.source.startswith("none"):
        return [] if len(table.source) > len("none, ") else [f"{table.place}: 'numbers: none' without a reason"]
    if table.source.startswith("python "):
        script = ROOT / table.source.split()[1]
        return [] if script.exists() else [f"{table.place}: its command names {script.name}, which does not exist"]
    path = ROOT / table.source.split()[0]
    if not path.is_file():
        return [f"{table.place}: its source {table.source!r} is no file and no command"]
    known = values_of(path)

    return [
        f"{page}:{number}: {text}: not in {table.source}"
        for number, line in table.lines.items()
        for text in numbers(line)
        if not is_in(text, known)
    ]


def has_numbers(table: Table) -> bool:
    """Whether there is anything to check: a number with decimals, or several whole ones."""
    found = [text for line in table.lines.values() for text in numbers(line)]

    return any("." in text for text in found) or len(found) > 3


def prose(page: Path, known: set[str]) -> list[str]:
    """Numbers with decimals in sentences that stand in no table of any page and no stored result."""
    said, is_code = [], False
    stored = {value for path in RESULTS.glob("*.jsonl") for value in values_of(path)}
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("```"):
            is_code = not is_code
        if is_code or line.startswith(("|", "    ", "#")):
            continue
        for text in numbers(line):
            if "." in text and text.lstrip("+-\u2212") not in known and not is_in(text, stored):
                said.append(f"{page.relative_to(ROOT)}:{number}: {text}: in no table and no stored result")

    return said


def pages() -> list[Path]:
    """README and all pages but the changelog."""
    return [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").glob("*.md") if path.stem != "changelog")]


def main() -> int:
    """Print what was found; 1 if there is anything to mend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prose", action="store_true", help="numbers with decimals in sentences, too")
    args = parser.parse_args()
    made = reports()
    wrong, without, unstored, excused, checked = [], [], [], [], 0
    every = [table for page in pages() for table in tables(page) if has_numbers(table)]
    for table in every:
        if table.block in WITHOUT_NUMBERS:
            continue
        if table.block in made:
            wrong += against_report(table, made[table.block])
            checked += 1
        elif table.block in REPORTS:
            unstored.append(f"{table.place}: python benchmarks/{REPORTS[table.block]}")
        elif table.source:
            wrong += against_source(table)
            if table.source.startswith("python "):
                unstored.append(f"{table.place}: {table.source}")
            elif table.source.startswith("none"):
                excused.append(f"{table.place}: {table.source}")
            else:
                checked += 1
        else:
            without.append(table.place)
    titles = {
        "Numbers that their source does not contain": wrong,
        "Tables without a source": without,
        "Tables whose command stores no results": unstored,
        "Tables without results": excused,
    }
    if args.prose:
        known = {text.lstrip("+-\u2212") for table in every for line in table.lines.values() for text in numbers(line)}
        titles["Numbers in sentences"] = [line for page in pages() for line in prose(page, known)]
    for title, lines in titles.items():
        print(f"{title}: {len(lines)}")
        for line in lines:
            print(f"  {line}")
    print(f"{checked} tables were held against their source.")

    return 1 if wrong or without else 0


if __name__ == "__main__":
    sys.exit(main())

"""Runs the Python blocks of a page one after the other, as a reader who copies them does.

    python docs/run_page.py docs/quickstart.md

Blocks fenced as ``python`` run in one namespace; other blocks, such as output, do not. Pictures that a block saves
land in the current directory.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[str]:
    """The code of each Python block, padded with empty lines so that a traceback tells the line of the page."""
    text = page.read_text(encoding="utf-8")

    return ["\n" * (text[: found.start(1)].count("\n")) + found[1] for found in BLOCK.finditer(text)]


def run(page: Path) -> dict[str, Any]:
    """What the names of the page mean when all of its blocks have run.

    Raises:
        ValueError: If the page has no Python block.
    """
    codes = blocks(page)
    if not codes:
        raise ValueError(f"{page} has no block that begins with ```python.")
    names: dict[str, Any] = {"__name__": "__main__"}
    for code in codes:
        exec(compile(code, str(page), "exec"), names)

    return names


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python docs/run_page.py PAGE.md ...")
    for argument in sys.argv[1:]:
        run(Path(argument))

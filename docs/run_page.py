"""Runs the Python blocks of a page one after the other, as a reader who copies them does.

    python docs/run_page.py docs/quickstart.md

Blocks fenced as ``python`` or ``py`` run in one namespace; other blocks, such as output, do not. Pictures that a block
saves land in the current directory.
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from typing import Any

FENCE = re.compile(r"^( *)(`{3,}|~{3,}) *([\w-]*)")


def blocks(page: Path) -> list[str]:
    """The code of each Python block, padded with empty lines so that a traceback tells the line of the page.

    Raises:
        ValueError: If a block has no end.
    """
    found, fence, code = [], None, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines()):
        mark = FENCE.match(line)
        if fence is None:
            if mark:
                fence, begin, code = mark, number, []
        elif mark and mark[2].startswith(fence[2]) and not line.strip().strip(fence[2][0]):
            if fence[3] in ("python", "py"):
                found.append("\n" * (begin + 1) + textwrap.dedent("\n".join(code)) + "\n")
            fence = None
        else:
            code.append(line)
    if fence is not None:
        raise ValueError(f"{page}: the block that begins in line {begin + 1} has no end.")

    return found


def run(page: Path) -> dict[str, Any]:
    """What the names of the page mean when all of its blocks have run.

    Raises:
        ValueError: If the page has no Python block.
    """
    codes = blocks(page)
    if not codes:
        raise ValueError(f"{page} has no block of Python, which begins with ```python.")
    names: dict[str, Any] = {"__name__": "__main__"}
    for code in codes:
        exec(compile(code, str(page), "exec"), names)

    return names


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python docs/run_page.py PAGE.md ...")
    for argument in sys.argv[1:]:
        run(Path(argument))

"""The picture of the packages and the table of their modules: `python docs/draw_packages.py`.

Both are made from the files: the picture from what they import, the table from the first line of each.

A box is a package, or a file beside them; boxes stand on the floors that pyproject.toml has for them. An arrow says
"imports"; one that two others already say (a to b, b to c) is left out.
"""

import ast
import re
from pathlib import Path
from xml.sax.saxutils import escape

import tomllib

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pyro_osds"
PICTURE = ROOT / "docs" / "figures" / "packages.svg"
PAGE = ROOT / "docs" / "architecture.md"
MARKS = ("<!-- modules: begin -->", "<!-- modules: end -->")
WIDTH, FLOOR, BOX_WIDTH, BOX_HEIGHT = 760, 64, 128, 34

Arrows = set[tuple[str, str]]


def floors() -> list[list[str]]:
    """Names on each floor, the highest first; without the command line."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    contract = next(c for c in tools["importlinter"]["contracts"] if c["name"] == "Packages import downwards only")
    names = [[name.strip() for name in layer.split("|")] for layer in contract["layers"]]

    return [floor for floor in names if floor != ["__main__"]]


def arrows() -> Arrows:
    """Who imports whom, package by package."""
    found: Arrows = set()
    for path in PACKAGE.rglob("*.py"):
        inside = path.relative_to(PACKAGE)
        # What __init__ imports is what users import; old names are no part of the house.
        if inside.name == "__init__.py" and len(inside.parts) < 3:
            continue
        start = inside.parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyro_osds."):
                end = node.module.split(".")[1]
                if end != start:
                    found.add((start, end))

    return found


def needed(every: Arrows) -> Arrows:
    """Arrows that no chain of others says."""

    def reached(start: str, without: tuple[str, str]) -> set[str]:
        seen, waiting = set(), [start]
        while waiting:
            here = waiting.pop()
            ends = {b for a, b in every if a == here and (a, b) != without} - seen
            seen |= ends
            waiting += ends
        return seen

    return {(a, b) for a, b in every if b not in reached(a, (a, b))}


def places(rows: list[list[str]]) -> dict[str, tuple[float, float]]:
    """The middle of each box."""
    return {
        name: (WIDTH * (column + 1) / (len(row) + 1), FLOOR * (floor + 0.5))
        for floor, row in enumerate(rows)
        for column, name in enumerate(row)
    }


def curve(start: tuple[float, float], end: tuple[float, float]) -> str:
    """From the lower edge of a box to the upper edge of another; a long arrow swings around what lies between."""
    (x0, y0), (x1, y1) = start, end
    y0, y1 = y0 + BOX_HEIGHT / 2, y1 - BOX_HEIGHT / 2
    swing = 0.0 if y1 - y0 < FLOOR else 30 + 0.28 * (y1 - y0)
    side = 1 if (x0 + x1) / 2 >= WIDTH / 2 else -1
    bend = (y1 - y0) / 3
    points = f"{x0 + side * swing:.0f} {y0 + bend:.0f}, {x1 + side * swing:.0f} {y1 - bend:.0f}"

    return f'<path d="M {x0:.0f} {y0:.0f} C {points}, {x1:.0f} {y1:.0f}" marker-end="url(#head)"/>'


def picture() -> str:
    """The whole SVG."""
    rows = floors()
    where = places(rows)
    lines = [curve(where[a], where[b]) for a, b in sorted(needed(arrows())) if a in where and b in where]
    boxes = [
        f'<g><rect x="{x - BOX_WIDTH / 2:.0f}" y="{y - BOX_HEIGHT / 2:.0f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" '
        f'rx="6"/><text x="{x:.0f}" y="{y + 5:.0f}">{escape(name)}</text></g>'
        for name, (x, y) in where.items()
    ]

    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {FLOOR * len(rows)}" role="img">',
            "<title>Packages of pyro_osds and what they import</title>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto"><path d="M 0 0 L 8 4 L 0 8 z" fill="#888"/></marker></defs>',
            '<g fill="none" stroke="#888" stroke-width="1.2">',
            *lines,
            "</g>",
            '<g fill="#eef3fb" stroke="#33517a" stroke-width="1.2">',
            *[box.split("<text")[0] + "</g>" for box in boxes],
            "</g>",
            '<g fill="#12243d" font-family="sans-serif" font-size="14" text-anchor="middle">',
            *["<text" + box.split("<text")[1].removesuffix("</g>") for box in boxes],
            "</g>",
            "</svg>",
            "",
        ]
    )


def table() -> str:
    """A row for each module: its place, and the first line of its docstring."""
    rows = ["| module | idea |", "|---|---|"]
    for path in sorted(PACKAGE.rglob("*.py"), key=_order):
        lines = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()
        inside = path.relative_to(PACKAGE).with_suffix("")
        name = ".".join(part for part in inside.parts if part != "__init__") or "pyro_osds"
        idea = lines[0].replace("``", "`").replace("|", "\\|")
        idea = re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", re.sub(r":math:`([^`]*)`", r"$\1$", idea))
        rows.append(f"| **`{name}`** | **{idea}** |" if inside.name == "__init__" else f"| `{name}` | {idea} |")

    return "\n".join(rows)


def _order(path: Path) -> tuple[str, ...]:
    """Files beside the packages first, then package by package, each after its own first line."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts

    return ("", *parts) if len(parts) == 1 else tuple("" if part == "__init__" else part for part in parts)


def page() -> str:
    """The page on the architecture, with the present table."""
    text = PAGE.read_text()
    begin, end = (text.index(mark) for mark in MARKS)

    return f"{text[:begin]}{MARKS[0]}\n{table()}\n{text[end:]}"


if __name__ == "__main__":
    PICTURE.write_text(picture())
    PAGE.write_text(page())
    print(f"{PICTURE.relative_to(ROOT)}: {len(needed(arrows()))} arrows of {len(arrows())}")

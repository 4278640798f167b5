"""A card: a title, rows of a name and a value, and sentences below; as text for a terminal, as HTML for a notebook."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from html import escape

_WIDTH = 100


@dataclass(frozen=True)
class Card:
    """What a result looks like.

    Arguments:
        title: What it is the result of.
        rows: Names and values.
        sentences: What else must be read.

    Example:
        >>> print(Card("title", (("ess", "12"), ("pareto k", "0.10")), ("All is well.",)).text())
        ess      12
        pareto k 0.10
        - All is well.
    """

    title: str
    rows: tuple[tuple[str, str], ...]
    sentences: tuple[str, ...] = ()

    def __add__(self, other: Card) -> Card:
        """The rows and sentences of both, under the first title."""
        return Card(self.title, self.rows + other.rows, self.sentences + other.sentences)

    def text(self) -> str:
        """Lines with the values in one column; the title is left out."""
        width = max((len(name) for name, _ in self.rows), default=0)
        lines = [_fill(f"{name:<{width}} {value}", width + 1) for name, value in self.rows]

        return "\n".join(lines + [_fill(f"- {sentence}", 2) for sentence in self.sentences])

    def html(self) -> str:
        """A small table without a style sheet; everything in it is escaped."""
        rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in self.rows)
        items = "".join(f"<li>{escape(text)}</li>" for text in self.sentences)

        return f"<div><b>{escape(self.title)}</b><table>{rows}</table>{f'<ul>{items}</ul>' if items else ''}</div>"


def _fill(line: str, indent: int) -> str:
    """A line, broken where it is too long."""
    return textwrap.fill(line, _WIDTH, subsequent_indent=" " * indent, drop_whitespace=True, break_long_words=False)

"""Tables as text, as Markdown and as CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path


def aligned(rows: Sequence[Sequence[str]], width: int, gap: int = 2) -> list[str]:
    """The first column to the left, the others to the right; a long name is cut to fit."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    others = sum(widths[1:]) + gap * (len(widths) - 1)
    widths[0] = min(widths[0], width - others)
    lines = []
    for first, *rest in rows:
        name = first if len(first) <= widths[0] else first[: widths[0] - 3] + "..."
        cells = [name.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:]))]
        lines.append((" " * gap).join(cells).rstrip())
    return lines


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The first row is the head."""
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


def write_csv(path: Path, rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)

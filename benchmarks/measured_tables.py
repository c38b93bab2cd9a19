"""Tables whose numbers come from benchmarks/results, with a line that says how they were measured."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path("benchmarks/results")


class StaleTable(ValueError):
    """A table that cannot be written: the message says which, and what it lacks."""


@dataclass(frozen=True)
class Ratio:
    """A row's time over another row's in an entry of a table's record."""

    entry: str
    row: str = "ours"
    to: str = "copy"
    bold: bool = False
    spread: bool = False

    def text(self, record: dict[str, Any]) -> str:
        try:
            ratio = record["entries"][self.entry]["rows"][self.row]["ratio_to"][self.to]
        except KeyError as missing:
            raise StaleTable(f"no {missing} for {self.row!r} of {self.entry!r}") from None
        number = rounded(ratio["median"])
        number = f"**{number}**" if self.bold else number
        return number + (f" ± {_spread(ratio)}" if self.spread else "")


@dataclass(frozen=True)
class Table:
    """Lines of a label and cells, each a Ratio of this record or a text that nobody measures."""

    record: str  # benchmarks/results/RECORD.json
    command: str
    head: Sequence[str]
    lines: Sequence[tuple[str, Sequence[Ratio | str]]]

    def cells(self, root: Path) -> list[list[str]]:
        record = _read(root, f"{self.record}.json")
        return [
            [label, *(cell if isinstance(cell, str) else cell.text(record) for cell in cells)]
            for label, cells in self.lines
        ]

    def caption(self, root: Path, link: str) -> str:
        about = _read(root, f"{self.record}.json")["about"]
        place = about["device"]
        if about["device_type"] == "cpu":
            place += f", {about['threads']} threads"
        place += f", {about['dtype']}, torch {about['torch']}, commit {about['commit']}"
        return f"{place}: `{self.command}`; [record]({link}/{self.record}.md), with spreads."


@dataclass(frozen=True)
class Excerpt:
    """Rows and columns of a table that a command of `deepgen` writes as Markdown itself."""

    record: str  # benchmarks/results/RECORD.md
    command: str
    head: Sequence[str]
    keys: dict[str, str]  # how the row begins in the record -> its label here
    first: int = 1  # columns of the record before this one are keys

    def cells(self, root: Path) -> list[list[str]]:
        rows = [
            [cell.strip() for cell in line.strip("|").split(" | ")]
            for line in _read(root, f"{self.record}.md").splitlines()
            if line.startswith("|")
        ]
        known = {" ".join(row[: self.first]).strip("| "): row[self.first :] for row in rows}
        absent = sorted(set(self.keys) - set(known))
        if absent:
            raise StaleTable(f"{self.record}.md has no row {absent[0]!r}")
        return [[label, *(c.strip("| ") for c in known[key])] for key, label in self.keys.items()]

    def caption(self, root: Path, link: str) -> str:
        _, _, note = _read(root, f"{self.record}.md").rpartition("\n\n")
        seeds = re.search(r"mean ± standard deviation of (\d+) seeds", note)
        if not seeds:
            raise StaleTable(f"{self.record}.md does not say how many seeds it has")
        return (
            f"Mean ± standard deviation of {seeds[1]} seeds: `{self.command}`; "
            f"[record]({link}/{self.record}.md)."
        )


def _read(root: Path, name: str) -> Any:
    path = root / RESULTS / name
    if not path.is_file():
        raise StaleTable(f"there is no {RESULTS / name}")
    text = path.read_text()
    return json.loads(text) if path.suffix == ".json" else text


def rounded(value: float) -> str:
    """Two significant digits, or whole numbers."""
    if value >= 9.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 0.995 else f"{value:.2f}"


def _spread(ratio: dict[str, float]) -> str:
    """To two significant digits, and no finer than the median."""
    spread = float(f"{ratio['spread']:.2g}")
    return f"{spread:.0f}" if ratio["median"] >= 9.95 else rounded(spread)

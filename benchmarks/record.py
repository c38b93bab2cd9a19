"""A record of what was measured: on what, the tables as text, and the figures of every round."""

from __future__ import annotations

import datetime
import json
import platform
import re
import subprocess
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # run.py reads this before it sets the threads, which torch reads once
    from benchmarks.harness import Curve, Result, Setting

WIDTH = 100
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NOTE = "Ratios are the result. Seconds on a CPU depend on who else used it: do not quote them."


class Record:
    """Entries under their names, measured on what `about` says; each a dict for JSON and a text."""

    def __init__(self, about: dict[str, Any]) -> None:
        self.about = about
        self.entries: dict[str, Any] = {}
        self.texts: dict[str, str] = {}

    def add(self, name: str, result: Result | Curve) -> None:
        self.entries[name] = _entry(result)
        self.texts[name] = table(name, result, self.about)

    def as_json(self) -> dict[str, Any]:
        return {"about": self.about, "note": NOTE, "entries": self.entries}

    def paths(self, folder: Path, part: str = "") -> tuple[Path, Path]:
        """FOLDER/DEVICE.json and .md; of a part of the entries FOLDER/DEVICE-PART.*."""
        slug = re.sub(r"[^a-z0-9]+", "-", f"{self.about['device']} {part}".lower()).strip("-")
        if self.about["dtype"] != "float32":
            slug += f"-{self.about['dtype']}"
        return folder / f"{slug}.json", folder / f"{slug}.md"

    def save(self, folder: Path, part: str = "") -> tuple[Path, Path]:
        """Write both files."""
        folder.mkdir(parents=True, exist_ok=True)
        figures, text = self.paths(folder, part)
        figures.write_text(json.dumps(self.as_json(), indent=1) + "\n")
        tables = (f"```\n{text}\n```" for text in self.texts.values())
        text.write_text(
            "\n\n".join([f"# {self.about['device']}", heading(self.about), *tables]) + "\n"
        )
        return figures, text

    def resume(self, folder: Path, part: str = "") -> None:
        """Take over the entries of the record that is there.

        Raises:
            ValueError: it is of another commit, device, torch, dtype or number of threads.
        """
        figures, text = self.paths(folder, part)
        if not figures.is_file():
            return
        found = json.loads(figures.read_text())
        for key, value in self.about.items():
            if key != "date" and found["about"].get(key) != value:
                raise ValueError(
                    f"{figures.name} is of another {key}, {found['about'].get(key)}, not {value}"
                )
        texts = re.findall(r"```\n(.*?)\n```", text.read_text(), re.DOTALL)
        self.entries = found["entries"]
        self.texts = dict(zip(self.entries, texts, strict=True))


def describe(setting: Setting, threads: int) -> dict[str, Any]:
    """What the figures depend on beside the code."""
    import torch

    cuda = setting.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else _cpu_name(),
        "device_type": setting.device.type,
        "threads": threads,
        "dtype": str(setting.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "tiny": setting.tiny,
    }


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", path.read_text()) if path.exists() else []
    name = names[0] if names else platform.processor() or platform.machine()
    return re.sub(r"\((R|TM)\)| (Processor|CPU)\b.*", "", name).strip()


def _commit() -> str:
    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", ".", ":!benchmarks/results")
        return git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def heading(about: dict[str, Any]) -> str:
    place = about["device"]
    if about["device_type"] == "cpu":
        place += f", {about['threads']} threads"
    lines = [
        f"{place}, {about['dtype']}, torch {about['torch']}",
        f"commit {about['commit']}, {about['date']}",
        "Ratios of times, medians over rounds +- interquartile range; below 1 is faster.",
    ]
    if about["tiny"]:
        lines.append("Tiny shapes: these figures say nothing about speed.")
    return "\n".join(lines)


def table(name: str, result: Result | Curve, about: dict[str, Any]) -> str:
    """Plain text, no line longer than WIDTH."""
    if hasattr(result, "columns"):
        notes = textwrap.wrap(" ".join(result.notes), WIDTH)
        return "\n".join([name, *_aligned([result.columns, *result.rows]), *notes])
    floors = result.floors
    gpu = about["device_type"] == "cuda"
    header = ["", "/ ours", *(f"/ {floor.name}" for floor in floors), *(["us"] if gpu else [])]
    lines = [tuple(header)]
    for row in result.rows:
        if not row.times:
            lines.append((row.name, row.refused or "not timed: ours is refused"))
            continue
        ratios = [_number(result.ratio(row, to)) for to in (result.rows[0], *floors)]
        absolute = [f"{1e6 * result.seconds(row).median:.1f}"] if gpu else []
        lines.append((row.name, *ratios, *absolute))
    bandwidth = [_bandwidth(result)] if result.bytes and result.rows[0].times else []
    own = [f"{row.name}: {row.arithmetic}" for row in result.rows if row.arithmetic]
    own = [f"with arithmetic of its own: {'; '.join(own)}"] if own else []
    title = f"{name}  {tuple(result.shape)}"
    notes = (
        line for note in [*bandwidth, *own, *result.notes] for line in textwrap.wrap(note, WIDTH)
    )
    return "\n".join([title, *_aligned(lines), *notes])


def _bandwidth(result: Result) -> str:
    ours, floor = result.rows[0], result.floors[0]
    text = f"{result.bytes / 1e6:.2f} MB at least: {result.rate(ours) / 1e9:.1f} GB/s"
    ratio = result.ratio(floor, ours)
    if ratio:
        text += f", {ratio.median:.0%} of the copy's {result.rate(floor) / 1e9:.1f} GB/s"
    return f"{text}; {len(ours.times)} rounds"


def _number(summary: Any) -> str:
    return "-" if summary is None else f"{summary.median:.2f} +-{summary.spread:.2f}"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    columns = max(map(len, rows))
    # A sentence in place of figures may run over the columns to its right.
    full = [row for row in rows if len(row) == columns]
    widths = [max(len(row[i]) for row in full) for i in range(columns)]
    widths[0] = max(len(row[0]) for row in rows)
    lines = []
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths))
        lines.append(("  " + "  ".join(cells)).rstrip()[:WIDTH])
    return lines


def _entry(result: Result | Curve) -> dict[str, Any]:
    if hasattr(result, "columns"):
        return {"columns": result.columns, "rows": result.rows, "notes": result.notes}
    rows = {}
    for row in result.rows:
        if not row.times:
            rows[row.name] = {"refused": row.refused}
            continue
        to = {"ours": result.rows[0], **{floor.name: floor for floor in result.floors}}
        ratios = {name: vars(result.ratio(row, of)) for name, of in to.items() if of.times}
        seconds = vars(result.seconds(row))
        rows[row.name] = {"ratio_to": ratios, "seconds": seconds, "arithmetic": row.arithmetic}
    return {"shape": result.shape, "dtype": result.dtype, "bytes": result.bytes, "rows": rows}

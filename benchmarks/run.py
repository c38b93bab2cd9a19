"""Measures the entries and prints one table each: `python benchmarks/run.py --filter coupling`."""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import platform
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what imports torch is imported in `main`, after the threads are set
    from benchmarks.harness import Curve, Entry, Result, Setting

WIDTH = 100
ROOT = Path(__file__).resolve().parents[1]


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--filter", default="", help="only entries whose name contains this")
    parser.add_argument("--list", action="store_true", help="print the names of the entries")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (default: 2)")
    parser.add_argument(
        "--dtype", choices=("float32", "float64", "bfloat16", "float16"), default="float32"
    )
    parser.add_argument(
        "--budget", type=float, default=5.0, help="seconds of timing an entry (default: 5)"
    )
    parser.add_argument("--tiny", action="store_true", help="small shapes: do the entries run?")
    parser.add_argument(
        "--save",
        action="store_true",
        help="write benchmarks/results/DEVICE.*, with --filter WORD DEVICE-WORD.*",
    )
    parser.add_argument(
        "--compare", type=Path, metavar="FILE", help="a saved .json to hold against"
    )
    options = parser.parse_args(given)
    if options.save and options.tiny:
        parser.error("--save keeps figures, and tiny shapes give none")
    if options.threads < 1:
        parser.error(f"--threads: expected 1 or more, got {options.threads}")
    if options.compare and not options.compare.is_file():
        parser.error(f"--compare: there is no file {options.compare}")
    return options


def all_entries() -> list[Entry]:
    """Of every op and of the models."""
    ops = sorted(path.stem for path in (ROOT / "benchmarks/ops").glob("[!_]*.py"))
    networks = (
        "models",
        "autoregressive_flows",
        "residual_flows",
        "latent",
        "latent_grids",
        "spectral_networks",
        "adversarial",
        "reversible_couplings",
        "compat",
        "compat_flows",
        "compat_masked",
    )
    modules = [*(f"ops.{op}" for op in ops), *networks]
    return [
        entry
        for module in modules
        for entry in importlib.import_module(f"benchmarks.{module}").ENTRIES
    ]


def main(given: list[str] | None = None) -> int:
    options = arguments(given)
    # The OpenMP runtime reads these once, when torch is imported. Without the first a busy
    # neighbour stalls every parallel region by a scheduler tick.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    os.environ["OMP_NUM_THREADS"] = str(options.threads)

    import torch

    from benchmarks import compare, harness

    torch.set_num_threads(options.threads)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: torch sees no CUDA device", file=sys.stderr)
        return 2
    entries = all_entries()
    chosen = [entry for entry in entries if options.filter in entry.name]
    if not chosen or options.list:
        if not chosen:
            print(f"--filter {options.filter}: no entry has it in its name. There are:")
        print("\n".join(entry.name for entry in (chosen or entries)))
        return 0 if chosen else 2

    device = torch.device(options.device)
    setting = harness.Setting(
        device, getattr(torch, options.dtype), options.tiny, 0.0 if options.tiny else options.budget
    )
    about = describe(setting, options.threads)
    print(heading(about), flush=True)
    results = {}
    for entry in chosen:
        results[entry.name] = result = harness.measure(entry, setting)
        print("\n" + table(entry.name, result, about), flush=True)

    record = as_record(about, results)
    if options.save:
        for path in save(record, results, ROOT / "benchmarks" / "results", options.filter):
            print(f"wrote {path.relative_to(ROOT)}")
    failures = [
        f"{name}: {row.name}: {row.refused}"
        for name, result in results.items()
        if isinstance(result, harness.Result)
        for row in result.rows
        if row.refused.startswith("WRONG") or (row.refused and row.name == harness.OURS)
    ]
    if options.compare:
        before = json.loads(options.compare.read_text())
        for better in compare.improvements(record, before):
            print(better)
        failures += compare.regressions(record, before)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


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
    return names[0].strip() if names else platform.processor() or platform.machine()


def _commit() -> str:
    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
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


def as_record(about: dict[str, Any], results: dict[str, Result | Curve]) -> dict[str, Any]:
    """What is saved and compared."""
    note = "Ratios are the result. Seconds on a CPU depend on who else used it: do not quote them."
    return {"about": about, "note": note, "entries": {k: _entry(v) for k, v in results.items()}}


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


def save(
    record: dict[str, Any], results: dict[str, Result | Curve], folder: Path, part: str = ""
) -> tuple[Path, Path]:
    """Write FOLDER/DEVICE.json and .md; of a part of the entries FOLDER/DEVICE-PART.*."""
    about = record["about"]
    folder.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", f"{about['device']} {part}".lower()).strip("-")
    if about["dtype"] != "float32":
        slug += f"-{about['dtype']}"
    figures, text = folder / f"{slug}.json", folder / f"{slug}.md"
    figures.write_text(json.dumps(record, indent=1) + "\n")
    tables = (f"```\n{table(name, result, about)}\n```" for name, result in results.items())
    text.write_text("\n\n".join([f"# {about['device']}", heading(about), *tables]) + "\n")
    return figures, text


if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # the folder of this file would offer its `ops` and `models` as ours
    sys.exit(main())

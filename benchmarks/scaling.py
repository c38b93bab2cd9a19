"""Measures how costs grow with size, and draws it: `python benchmarks/scaling.py --curve maf-batch`.

Writes OUT/CURVE.csv and .png, and OUT/README.md with the fitted and the theory's exponents. A point
that the .csv has of the same code, device and threads is not measured again: a run may be stopped
at any point, and --seconds stops it before others want the machine back.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what imports torch is imported in `main`, after the threads are set
    from benchmarks.harness import Setting
    from benchmarks.scaling_curves import Scaling

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "results" / "scaling"
COLUMNS = (
    "x", "series", "in_units", "spread", "in_same", "spread_same", "rounds",
    "device", "threads", "torch", "commit", "date",
)  # fmt: skip
WHERE = ("device", "threads", "torch", "commit")
CODE = ("csrc", "deepgen_ext/*.py")
Line = dict[str, str]


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--curve", action="append", default=[], metavar="NAME")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (default: 2)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="then no new point")
    parser.add_argument("--list", action="store_true", help="the curves, and what they still lack")
    parser.add_argument("--draw", action="store_true", help="measure nothing: pictures and README")
    parser.add_argument(
        "--tiny", action="store_true", help="small shapes, two points: does it run?"
    )
    options = parser.parse_args(given)
    if options.threads < 1:
        parser.error(f"--threads: expected 1 or more, got {options.threads}")
    if options.tiny and options.out.resolve() == OUT:
        parser.error("--tiny gives no figures to keep: --out another folder")
    return options


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    os.environ["OMP_NUM_THREADS"] = str(options.threads)

    import torch

    from benchmarks import record
    from benchmarks.harness import Setting
    from benchmarks.scaling_curves import CURVES
    from benchmarks.scaling_pictures import draw, summary

    torch.set_num_threads(options.threads)
    curves = [c for c in CURVES if not options.curve or c.name in options.curve]
    unknown = sorted(set(options.curve) - {c.name for c in CURVES})
    if unknown:
        known = ", ".join(c.name for c in CURVES)
        print(f"--curve {unknown[0]}: there is no such curve; there are: {known}", file=sys.stderr)
        return 2
    setting = Setting(tiny=options.tiny, budget=0.0)
    about = record.describe(setting, options.threads) | {"commit": commit_of_code()}
    start = time.perf_counter()
    for curve in curves:
        path = options.out / f"{file_of(curve, options.threads)}.csv"
        xs = curve.xs[:2] if options.tiny else curve.xs
        for x in xs:
            lines = read(path)
            if has(lines, x, about):
                continue
            if options.list or options.draw:
                print(f"{curve.name}: {curve.x_label} = {x:g} is not measured")
                continue
            if time.perf_counter() - start > options.seconds:
                print(f"stopped before {curve.name}, {curve.x_label} = {x:g}")
                break
            new = measured(curve, x, setting, about)
            write(path, [line for line in lines if float(line["x"]) != x] + new)
            print(f"{curve.name}: {curve.x_label} = {x:g}: " + told(new), flush=True)
        if not options.list and read(path):
            draw(curve, read(path), path.with_suffix(".png"))
    if not options.list and options.out.is_dir():
        known = [(c, file_of(c, n)) for c in CURVES for n in ((2,) if c.count else (2, 1))]
        (options.out / "README.md").write_text(summary(known, options.out, read))
    return 0


def file_of(curve: Scaling, threads: int) -> str:
    """Counts do not depend on threads."""
    return curve.name if threads == 2 or curve.count else f"{curve.name}-{threads}-thread"


def commit_of_code() -> str:
    """The last commit that changed what is measured: neither results nor curves make it another."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *CODE)
        commit = git("log", "-1", "--format=%h", "--", *CODE)
        return commit + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def measured(curve: Scaling, x: float, setting: Setting, about: dict[str, Any]) -> list[Line]:
    """The lines of one point."""
    import dataclasses

    from benchmarks import harness
    from benchmarks.scaling_curves import NAMES, UNIT

    figures: dict[str, tuple] = {}  # series -> (in units, spread, in same, spread, rounds)
    if curve.count:
        figures = {k: (float(v), 0.0, "", "", 0) for k, v in curve.count(x).items()}
    else:
        setting = dataclasses.replace(setting, budget=0.0 if setting.tiny else curve.budget)
        entry = harness.Entry(curve.name, lambda setting: curve.case(x, setting))
        result = harness.measure(entry, setting)
        refused = {row.name: row.refused for row in result.rows if row.refused}
        if harness.OURS in refused:
            raise RuntimeError(f"{curve.name}, x = {x:g}: {refused[harness.OURS]}")
        unit = next(row for row in result.rows if row.name == UNIT)
        same = result.floors[0]
        for row in result.rows:
            if row is unit or row.refused:
                continue
            of_unit, of_same = result.ratio(row, unit), result.ratio(row, same)
            name = NAMES.get(row.name, row.name)
            figures[name] = (*vars(of_unit).values(), *vars(of_same).values(), len(row.times))
        for name, passes in curve.counted.items():
            factor = passes(x)
            figures[name] = (factor * figures[curve.same][0], 0.0, factor, 0.0, 0)
    place = {key: str(about[key]) for key in (*WHERE, "date")}
    return [
        {"x": f"{x:g}", "series": name}
        | {key: f"{v:.5g}" if v != "" else "" for key, v in zip(COLUMNS[2:7], values, strict=True)}
        | place
        for name, values in figures.items()
    ]


def told(lines: list[Line]) -> str:
    return ", ".join(
        f"{line['series']} {float(line['in_same'] or line['in_units']):.3g}" for line in lines
    )


def has(lines: list[Line], x: float, about: dict[str, Any]) -> bool:
    return any(
        float(line["x"]) == float(f"{x:g}")
        and all(line[k] == str(about[k]) for k in WHERE if k != "threads")
        for line in lines
    )


def read(path: Path) -> list[Line]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, lines: list[Line]) -> None:
    """All at once: a run that is stopped leaves a whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(lines, key=lambda line: float(line["x"])))
    os.replace(partial, path)


if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # the folder of this file would offer its `ops` and `models` as ours
    sys.exit(main())

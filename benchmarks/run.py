"""Measures the entries and prints one table each: `python benchmarks/run.py --filter coupling`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what imports torch is imported in `main`, after the threads are set
    from benchmarks.harness import Entry

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
        "--resume",
        action="store_true",
        help="with --save: leave out what the record has already, of this commit and these options",
    )
    parser.add_argument(
        "--compare", type=Path, metavar="FILE", help="a saved .json to hold against"
    )
    options = parser.parse_args(given)
    if options.save and options.tiny:
        parser.error("--save keeps figures, and tiny shapes give none")
    if options.resume and not options.save:
        parser.error("--resume goes on with a record, and needs --save")
    if options.threads < 1:
        parser.error(f"--threads: expected 1 or more, got {options.threads}")
    if options.compare and not options.compare.is_file():
        parser.error(f"--compare: there is no file {options.compare}")
    return options


def all_entries() -> list[Entry]:
    """Of every op and of the models."""
    ops = sorted(path.stem for path in (ROOT / "benchmarks/ops").glob("[!_]*.py"))
    networks = (
        "half_coupling",
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
        "compat_norms",
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

    from benchmarks import compare, harness, record

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
    about = record.describe(setting, options.threads)
    print(record.heading(about), flush=True)
    kept = record.Record(about)
    if options.resume:
        try:
            kept.resume(record.RESULTS, options.filter)
        except ValueError as error:
            print(f"--resume: {error}", file=sys.stderr)
            return 2
    results = {}
    for entry in chosen:
        if entry.name in kept.entries:
            continue
        results[entry.name] = result = harness.measure(entry, setting)
        kept.add(entry.name, result)
        print("\n" + kept.texts[entry.name], flush=True)
        if options.save:  # each time: a run that is stopped keeps what it has
            paths = kept.save(record.RESULTS, options.filter)
    if options.save and results:
        for path in paths:
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
        for better in compare.improvements(kept.as_json(), before):
            print(better)
        failures += compare.regressions(kept.as_json(), before)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # the folder of this file would offer its `ops` and `models` as ours
    sys.exit(main())

"""How far an op is from the hardware's limits: a copy and a matrix product of the same run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from deepgen_ext.profiling.cases import OPS, Shape, case_of
from deepgen_ext.profiling.measurement import (
    Case,
    Entry,
    Result,
    Results,
    Rival,
    Row,
    Setting,
    Summary,
    copy_floors,
    measure,
)
from deepgen_ext.profiling.session import profile

COPY, PRODUCT = "copy", "matrix product"


@dataclass(frozen=True)
class Measured:
    """One op in one direction, timed in turn with its rivals, a copy, and a matrix product.

    `bytes` and `operations` are the least (deepgen_ext.profiling.work); `launches` are kernels on a
    GPU, operators on a CPU; `peak` is the memory that one call allocates, in bytes.
    """

    op: str
    direction: str
    result: Result
    bytes: int
    operations: int | None
    product_operations: int
    launches: int
    peak: int
    chosen: tuple[str, ...]

    @property
    def refused(self) -> str:
        return self.result.rows[0].refused

    @property
    def seconds(self) -> Summary:
        return self.result.seconds(self.result.rows[0])

    @property
    def bytes_per_second(self) -> float:
        return self.bytes / self.seconds.median

    @property
    def operations_per_second(self) -> float:
        return (self.operations or math.nan) / self.seconds.median

    @property
    def of_copy(self) -> float:
        """Its bandwidth over that of a copy of as many bytes; above 1 where caches keep more."""
        return self.result.ratio(self.row(COPY), self.result.rows[0]).median

    @property
    def of_product(self) -> float:
        """Its operations a second over those of a matrix product."""
        ratio = self.result.ratio(self.row(PRODUCT), self.result.rows[0]).median
        return ratio * (self.operations or math.nan) / self.product_operations

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return (self.operations or math.nan) / self.bytes

    @property
    def rivals(self) -> list[Row]:
        return [row for row in self.result.rows[1:] if not row.is_floor]

    def row(self, name: str) -> Row:
        return next(row for row in self.result.rows if row.name == name)

    def copy_rate(self) -> float:
        """Bytes a second."""
        return self.bytes / self.result.seconds(self.row(COPY)).median

    def product_rate(self) -> float:
        return self.product_operations / self.result.seconds(self.row(PRODUCT)).median


def measure_op(
    name: str, setting: Setting, shape: Shape | None = None, against: Sequence[str] = ("eager",)
) -> Iterator[Measured]:
    """Each direction of the op.

    Raises:
        ValueError, TypeError: what the op says about the shape.
    """
    for direction in OPS[name].directions:
        case = case_of(name, direction, setting, shape, "compile" in against)
        yield _measure(name, direction, case, setting, against)


def _measure(
    name: str, direction: str, case: Case, setting: Setting, against: Sequence[str]
) -> Measured:
    case.ours()  # what is built once is not counted, and what the op refuses it says here
    with profile() as watched:
        case.ours()
    called = watched.rows
    moved = sum(row.bytes for row in called)
    operations = [row.operations for row in called]
    launches, peak = _launches_and_peak(case.ours, setting)
    product, product_operations = _product_floor(setting)
    copy = replace(copy_floors(moved, setting)[0], name=COPY)
    rivals = case.rivals if "eager" in against else case.rivals[1:]
    case = replace(case, floors=[copy, product], rivals=rivals, bytes=moved)
    return Measured(
        name,
        direction,
        measure(Entry(f"{name} {direction}", lambda _: case), setting),
        moved,
        None if None in operations else sum(operations),
        product_operations,
        launches,
        peak,
        tuple(text for row in called for text in row.chosen) or ("the only kernel",),
    )


def _product_floor(setting: Setting) -> tuple[Rival, int]:
    """Square matrices, large enough for a device to reach its rate."""
    size = 8 if setting.tiny else (4096 if setting.device.type == "cuda" else 512)
    a, b = (setting.random(size, size, seed=97 + i) for i in range(2))
    target = torch.empty_like(a)
    return Rival(PRODUCT, lambda: [torch.mm(a, b, out=target)]), 2 * size**3


def _launches_and_peak(run: Callable[[], Results], setting: Setting) -> tuple[int, int]:
    """Of one call, by torch's profiler; the memory of a GPU by its allocator."""
    cuda = setting.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    if cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, profile_memory=not cuda) as watched:
        results = run()
    del results
    if cuda:
        on_gpu = torch.autograd.DeviceType.CUDA
        return sum(event.device_type == on_gpu for event in watched.events()), peak
    return sum(map(_is_call, watched.events())), _peak(watched)


def _is_call(event: Any) -> bool:
    """An operator; where it passes the dispatcher a second time, below autograd, it is the same."""
    parent = event.cpu_parent
    return "::" in event.name and not (parent is not None and parent.name == event.name)


def _peak(watched: torch.profiler.profile) -> int:
    held = peak = 0
    events = watched.profiler.kineto_results.events()
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def checkout() -> Path | None:
    """The folder of benchmarks/, where the package is used from its source: it knows the peers."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "benchmarks" / "peers.py").is_file() else None


def peer_results(name: str, setting: Setting) -> Iterator[Result]:
    """The benchmarks' entries of an op or a model, at the benchmarks' shapes, with all rivals."""
    import sys

    sys.path.insert(0, str(checkout()))
    try:
        from benchmarks import run

        entries = run.all_entries()
    finally:
        sys.path.pop(0)
    for entry in entries:
        if entry.name.lower().startswith(name.lower()):
            result = measure(entry, setting)
            if isinstance(result, Result):
                yield result

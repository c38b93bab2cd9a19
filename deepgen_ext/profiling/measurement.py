"""Measures rivals against one another in one process: checked first, interleaved, as ratios."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Results = Sequence[Tensor]
OURS = "ours"

# Largest error allowed, relative to the largest value of the tensor. Sums of 25,000 terms included:
# this tells a wrong formula from a right one, the tests tell how accurate a right one is.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-2}
MIN_SAMPLE = 2e-4  # seconds; shorter calls are repeated within a sample
MIN_ROUNDS, MAX_ROUNDS = 7, 400


@dataclass(frozen=True)
class Setting:
    """Where and how the entries are measured; `budget` is the seconds that one entry may take."""

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    tiny: bool = False
    budget: float = 5.0

    def random(self, *shape: int, seed: int, scale: float = 1.0) -> Tensor:
        """Normal numbers: zeros would flatter whatever skips or compresses them."""
        generator = torch.Generator().manual_seed(seed)
        numbers = torch.randn(shape, generator=generator) * scale
        return numbers.to(self.device, self.dtype)

    def compiled(self, function: Callable) -> Callable:
        """torch.compile; tiny shapes check that entries run, and do without a C++ compiler."""
        torch._dynamo.reset()  # or the entries' shapes add up to a dynamic one
        return torch.compile(function, backend="aot_eager" if self.tiny else "inductor")


@dataclass(frozen=True)
class Rival:
    """One way to do the work, a call that returns its results.

    `arithmetic` says what it computes where that is not what the reference computes; `expected` is
    then its own formula in float64. `missing` says why there is nothing to run.
    """

    name: str
    run: Callable[[], Results] | None = None
    arithmetic: str = ""
    expected: Callable[[], Results] | None = None
    missing: str = ""


@dataclass(frozen=True)
class Case:
    """The work of one entry: ours, what it must equal, the rivals, and floors that none can beat.

    `bytes` is what has to be read and written at least. A floor without `expected` is not checked.
    """

    shape: tuple[int, ...]
    ours: Callable[[], Results]
    expected: Callable[[], Results]
    rivals: Sequence[Rival]
    floors: Sequence[Rival]
    bytes: int | None = None
    tolerance: float | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Curve:
    """An entry without rivals: figures that it has measured itself, as a table."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Entry:
    """A named measurement; nothing is allocated before `build`."""

    name: str
    build: Callable[[Setting], Case | Curve]


@dataclass(frozen=True)
class Summary:
    """Median and interquartile range."""

    median: float
    spread: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        if len(values) < 2:
            return cls(values[0], 0.0)
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(statistics.median(values), high - low)


@dataclass
class Row:
    """One line of a result; `times` in seconds, one for each round, or `refused` says why not."""

    name: str
    times: list[float] = field(default_factory=list)
    arithmetic: str = ""
    refused: str = ""
    is_floor: bool = False


@dataclass
class Result:
    """What was measured for one entry. The first row is ours, then come the floors, then rivals."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    rows: list[Row]
    bytes: int | None = None
    notes: Sequence[str] = ()

    @property
    def floors(self) -> list[Row]:
        return [row for row in self.rows if row.is_floor]

    def seconds(self, row: Row) -> Summary:
        return Summary.of(row.times)

    def rate(self, row: Row) -> float:
        """Bytes a second of what has to be moved at least."""
        return self.bytes / self.seconds(row).median

    def ratio(self, row: Row, to: Row) -> Summary | None:
        """Of the times, round by round: what disturbs a whole round disturbs no ratio."""
        if not row.times or not to.times:
            return None
        return Summary.of([a / b for a, b in zip(row.times, to.times, strict=True)])


def measure(entry: Entry, setting: Setting) -> Result | Curve:
    """Build the entry, check every result, then time those that are right."""
    dtype = str(setting.dtype).removeprefix("torch.")
    try:
        case = entry.build(setting)
    except Exception as error:  # the other entries are still worth measuring
        return Result(entry.name, (), dtype, [Row(OURS, refused=f"failed: {_first_line(error)}")])
    if isinstance(case, Curve):
        return case
    result = Result(entry.name, case.shape, dtype, [], case.bytes, case.notes)
    contenders: list[tuple[Row, Callable[[], Results]]] = []
    tolerance = case.tolerance or TOLERANCE[setting.dtype]
    expected = [tensor.detach() for tensor in case.expected()]
    for rival, is_floor in _contenders(case, setting):
        row = Row(rival.name, arithmetic=rival.arithmetic, is_floor=is_floor)
        result.rows.append(row)
        wanted = expected
        if rival.expected is not None or is_floor:
            wanted = rival.expected() if rival.expected is not None else None
        row.refused = rival.missing or _refusal(rival.run, wanted, tolerance)
        if not row.refused:
            contenders.append((row, rival.run))
    del expected
    if not result.rows[0].refused:  # without ours there is nothing to compare
        _time(contenders, setting)
    return result


def copy_floors(size: int, setting: Setting) -> list[Rival]:
    """A copy that reads and writes `size` bytes in all: into existing memory, and into fresh."""
    item = torch.empty(0, dtype=setting.dtype).element_size()
    source = setting.random(max(size // (2 * item), 1), seed=99)
    target = torch.empty_like(source)
    return [
        Rival("copy", lambda: [target.copy_(source)], expected=lambda: [source]),
        Rival("copy, fresh output", lambda: [source.clone()], expected=lambda: [source]),
    ]


def differentiated(
    function: Callable[..., tuple[Tensor, Tensor]],
    leaves: Sequence[Tensor],
    cotangents: Sequence[Tensor],
) -> Callable[[], Results]:
    """A call that returns function(*leaves) and the gradients of the leaves."""
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]

    def run() -> Results:
        results = function(*leaves)
        return *results, *torch.autograd.grad(results, leaves, cotangents)

    return run


def _contenders(case: Case, setting: Setting) -> Iterator[tuple[Rival, bool]]:
    yield Rival(OURS, case.ours), False
    for floor in case.floors:
        yield floor, True
    for rival in case.rivals:
        yield rival, False
    if setting.device.type == "cuda":
        eager = [rival for rival in case.rivals if rival.name.startswith("eager")]
        for rival in (Rival(OURS, case.ours), *eager):
            yield graphed(rival), False


def graphed(rival: Rival) -> Rival:
    """The same kernels launched as one CUDA graph: what is left without the cost of launching."""
    name = f"{rival.name}, CUDA graph"
    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                rival.run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = rival.run()
    except Exception as error:  # whatever a capture refuses is a line in the table, not the end
        return Rival(name, missing=f"not captured: {_first_line(error)}")

    def run() -> Results:
        graph.replay()
        return results

    return Rival(name, run, rival.arithmetic, rival.expected)


def _refusal(run: Callable[[], Results], expected: Results | None, tolerance: float) -> str:
    """Why these results must not be timed, or nothing."""
    try:
        results = run()
    except Exception as error:  # a rival that breaks is a line in the table, not the end of the run
        return f"failed: {_first_line(error)}"
    return "" if expected is None else difference(results, expected, tolerance)


def difference(results: Results, expected: Results, tolerance: float) -> str:
    """What is wrong with the results, in a few words; nothing where they are right."""
    if len(results) != len(expected):
        return f"WRONG: {len(results)} results where {len(expected)} are expected"
    for index, (actual, wanted) in enumerate(zip(results, expected, strict=True)):
        if actual.shape != wanted.shape:
            return f"WRONG: result {index} has shape {tuple(actual.shape)}"
        if wanted.numel() == 0:
            continue
        wanted = wanted.detach().double()
        scale = wanted.abs().max().clamp_min(1e-12)
        error = float((actual.detach().double() - wanted).abs().max() / scale)
        if not error <= tolerance:  # a NaN is wrong too
            return f"WRONG: result {index} is off by {error:.1e}"
    return ""


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:80]


def _time(contenders: list[tuple[Row, Callable[[], Results]]], setting: Setting) -> None:
    """Round after round each contender once, the order rotated, until the medians are settled."""
    clock = _cuda_seconds if setting.device.type == "cuda" else _cpu_seconds
    repeats = []
    for _, run in contenders:
        clock(run, 1)
        repeats.append(1 if setting.tiny else max(1, math.ceil(MIN_SAMPLE / clock(run, 1))))
    start = time.perf_counter()
    for index in range(2 if setting.tiny else MAX_ROUNDS):
        for offset in range(len(contenders)):
            position = (index + offset) % len(contenders)
            row, run = contenders[position]
            row.times.append(clock(run, repeats[position]) / repeats[position])
        if index + 1 >= MIN_ROUNDS and time.perf_counter() - start > setting.budget:
            break


def _cpu_seconds(run: Callable[[], Results], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        run()
    return time.perf_counter() - start


def _cuda_seconds(run: Callable[[], Results], count: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(count):
        run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3

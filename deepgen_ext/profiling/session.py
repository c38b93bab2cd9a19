"""`deepgen_ext.profile()`: the calls of our ops within a block of somebody's code."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from deepgen_ext._extension import _C
from deepgen_ext.profiling.tables import aligned
from deepgen_ext.profiling.work import Signature, Work, work_of

WIDTH = 80


@dataclass(frozen=True)
class Call:
    """One call: what, how much, when (seconds since the block began) and how long.

    `seconds` is the GPU's time where there is one, NaN where it cannot be known (a call that was
    captured into a CUDA graph), and of the op alone, without other ops of ours that it calls.
    """

    signature: Signature
    work: Work
    start: float
    seconds: float
    thread: int


@dataclass(frozen=True)
class Row:
    """All calls of an op in one direction.

    `bytes` and `operations` are what has to be moved and computed at least (deepgen_ext.profiling
    .work); `operations` is None where shapes do not say it. `seconds` is of the calls that were
    timed, all but `untimed` of them; `share` is of the block's wall time. `chosen` says which
    kernels or algorithms were taken, and why.
    """

    op: str
    direction: str
    device: str
    calls: int
    bytes: int
    operations: int | None
    seconds: float
    untimed: int
    share: float
    chosen: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.op if self.direction == "forward" else f"{self.op} {self.direction}"

    @property
    def gigabytes_per_second(self) -> float:
        """NaN where a call has no time."""
        return self._per_second(self.bytes)

    @property
    def gigaflops(self) -> float:
        """Billions of operations a second; NaN where unknown."""
        return self._per_second(self.operations)

    def _per_second(self, amount: int | None) -> float:
        if amount is None or self.untimed or self.seconds == 0:
            return math.nan
        return amount / self.seconds / 1e9


class profile:
    """Watches our ops in a block of code, forward and backward, on every thread.

    >>> with deepgen_ext.profile() as p:
    ...     model.loss(x).mean().backward()
    >>> print(p.table())

    Ops are seen by torch's dispatcher, so inside compiled graphs too (by torch.compile, whatever
    the backend; what a compiler traces is no call). Of the replay of a CUDA graph nothing is seen:
    `trace=True` shows its kernels. On a GPU calls are timed by events on their streams; the block
    waits for the device once, at its end. Blocks may be nested, and run on several threads: each
    sees the calls of all threads while it lasts, so that shares of parallel threads may add up to
    more than one. A call that raises is not counted. An exception ends the block, and what was seen
    before it can be read.

    Off, an op costs what it costs without this class: nothing is registered with the dispatcher.
    On, 3 us a call.

    Args:
        trace: also run torch's profiler, for `trace(path)` to hold all operators and GPU kernels.
            It costs a few microseconds for each operator, and there can be one at a time.
    """

    def __init__(self, *, trace: bool = False) -> None:
        self._kineto = torch.profiler.profile() if trace else None
        self._calls: list[Call] | None = None
        self._token: int | None = None

    def __enter__(self) -> profile:
        if self._token is not None:
            raise RuntimeError("a profile watches one block; make another for the next")
        if self._kineto is not None:
            if torch.autograd._profiler_enabled():
                raise RuntimeError("profile(trace=True): torch's profiler is running already")
            self._kineto.__enter__()
        self._token = _C.start_recording()
        self._began = time.monotonic_ns()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if torch.cuda.is_initialized() and not torch.cuda.is_current_stream_capturing():
                torch.cuda.synchronize()
        finally:  # after an error of the device too, or the recording would never end
            self._wall = (time.monotonic_ns() - self._began) / 1e9
            signatures, calls = _C.stop_recording(self._token)
            if self._kineto is not None:
                self._kineto.__exit__(kind, error, traceback)
        known = [_signature(*signature) for signature in signatures]
        works: dict[int, Work] = {}
        self._calls = []
        for index, thread, start, _, alone, on_device in calls:
            if index not in works:
                works[index] = work_of(known[index])
            seconds = alone / 1e9 if on_device == -1 else on_device
            when = (start - self._began) / 1e9
            self._calls.append(Call(known[index], works[index], when, seconds, thread))

    @property
    def calls(self) -> list[Call]:
        """One by one, in the order in which they ended."""
        if self._calls is None:
            raise RuntimeError("the profile's block has not ended")
        return self._calls

    @property
    def wall(self) -> float:
        """Seconds that the block took, until the GPU had done its work."""
        return self._wall if self.calls is not None else 0.0

    @property
    def rows(self) -> list[Row]:
        """The calls by op and direction, those that took longest first."""
        found: dict[tuple[str, str, str], list[Call]] = {}
        for call in self.calls:
            key = call.signature.op, call.signature.direction, call.signature.device
            found.setdefault(key, []).append(call)
        rows = [self._row(calls) for calls in found.values()]
        return sorted(rows, key=lambda row: -row.seconds)

    def _row(self, calls: list[Call]) -> Row:
        first = calls[0].signature
        timed = [call.seconds for call in calls if not math.isnan(call.seconds)]
        operations = [call.work.operations for call in calls]
        choices: dict[str, int] = {}
        for call in calls:
            for what, why in call.signature.choices:
                text = f"{what} ({why})"
                choices[text] = choices.get(text, 0) + 1
        return Row(
            op=first.name,
            direction=first.direction,
            device=first.device,
            calls=len(calls),
            bytes=sum(call.work.bytes for call in calls),
            operations=None if None in operations else sum(operations),
            seconds=math.fsum(timed),
            untimed=len(calls) - len(timed),
            share=math.fsum(timed) / self.wall if self.wall else 0.0,
            chosen=tuple(
                text if count == len(calls) else f"{text}, {count} of {len(calls)} calls"
                for text, count in choices.items()
            ),
        )

    def table(self) -> str:
        """The rows as text of at most 80 columns, then what each op chose."""
        rows = self.rows
        lines = [("", "calls", "MB", "ms", "GB/s", "share")]
        for row in rows:
            rate = row.gigabytes_per_second
            lines.append(
                (
                    row.name,
                    str(row.calls),
                    f"{row.bytes / 1e6:.3g}" if row.bytes < 1e9 else f"{row.bytes / 1e6:.0f}",
                    f"{1e3 * row.seconds:.2f}" if row.calls > row.untimed else "-",
                    "-" if math.isnan(rate) else f"{rate:.1f}",
                    f"{row.share:.1%}",
                )
            )
        rest = max(0.0, self.wall - math.fsum(row.seconds for row in rows))
        share = rest / self.wall if self.wall else 0.0
        lines.append(("everything else", "", "", f"{1e3 * rest:.2f}", "", f"{share:.1%}"))
        lines.append(("the block", "", "", f"{1e3 * self.wall:.2f}", "", ""))
        text = aligned(lines, WIDTH)
        text += [line for row in rows for line in _notes(row)]
        if any(row.untimed for row in rows):
            text.append("- : captured into a CUDA graph; such calls have no time")
        return "\n".join(text)

    def to_csv(self, path: str | Path) -> None:
        """The rows, a column for each field of `Row`."""
        names = [field.name for field in fields(Row)]
        with Path(path).open("w", newline="") as file:
            table = csv.DictWriter(file, names)
            table.writeheader()
            for row in self.rows:
                table.writerow({**asdict(row), "chosen": "; ".join(row.chosen)})

    def trace(self, path: str | Path) -> None:
        """A JSON for chrome://tracing or ui.perfetto.dev.

        With `profile(trace=True)` that of torch's profiler: all operators and kernels. Else our ops
        alone, with bytes and choices; those on a GPU lie where the host called them.
        """
        if self._kineto is not None:
            self.calls  # noqa: B018  the block has ended
            self._kineto.export_chrome_trace(str(path))
            return
        Path(path).write_text(json.dumps({"traceEvents": list(self._events())}))

    def _events(self) -> Iterator[dict[str, Any]]:
        for call in self.calls:
            seconds = 0.0 if math.isnan(call.seconds) else call.seconds
            facts = {"bytes": call.work.bytes, "operations": call.work.operations}
            facts["chosen"] = [f"{what} ({why})" for what, why in call.signature.choices]
            facts["device"] = call.signature.device
            yield {
                "name": f"deepgen_ext::{call.signature.op}",
                "cat": call.signature.direction,
                "ph": "X",
                "ts": 1e6 * call.start,
                "dur": 1e6 * seconds,
                "pid": 0,
                "tid": call.thread,
                "args": facts,
            }


def _signature(
    op: str,
    arguments: dict[str, Any],
    written: list[str],
    results: list[Any],
    choices: list[tuple[str, str]],
) -> Signature:
    return Signature(op, arguments, tuple(written), results, tuple(choices))


def _notes(row: Row) -> Iterator[str]:
    import textwrap

    for text in row.chosen:
        yield from textwrap.wrap(f"{row.name}: {text}", WIDTH, subsequent_indent="  ")

"""What was measured of ops, as tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

from deepgen_ext.profiling.measurement import OURS, Result, Row, Summary
from deepgen_ext.profiling.roofline import Measured
from deepgen_ext.profiling.tables import aligned

WIDTH = 80
HEAD = ("", "ms", "+-", "GB/s", "copy", "GFLOP/s", "GEMM", "calls", "MB")


def heading(measured: Sequence[Measured]) -> str:
    first = measured[0].result
    return f"{measured[0].op}  {tuple(first.shape)}  {first.dtype}"


def lines_of(measured: Sequence[Measured]) -> list[str]:
    """The directions of one op: what they reach, then their rivals, then what was chosen."""
    names = list(dict.fromkeys(row.name for m in measured for row in m.rivals))
    short = [_short(name) for name in names]
    rows: list[tuple[str, ...]] = [(*HEAD, *short)]
    notes = []
    for m in measured:
        if m.refused:
            notes.append(f"{m.direction}: {m.refused}")
            continue
        found = {row.name: row for row in m.rivals}
        rows.append((m.direction, *_figures(m), *(_slower(m.result, found[n]) for n in names)))
        notes += [f"{m.direction}: {name}: {found[name].refused}" for name in names
                  if found[name].refused]  # fmt: skip
        notes += [f"{m.direction}: {text}" for text in m.chosen if text != "the only kernel"]
    cut = [note if len(note) <= WIDTH else note[: WIDTH - 3] + "..." for note in notes]
    return [heading(measured), *aligned(rows, WIDTH, gap=1), *cut]


def _short(rival: str) -> str:
    return {"torch.compile": "compile"}.get(rival, rival.split(",")[0])


def _slower(result: Result, row: Row) -> str:
    ratio = result.ratio(row, result.rows[0])
    return "-" if ratio is None else f"{ratio.median:.3g}x"


def _figures(m: Measured) -> tuple[str, ...]:
    return (
        f"{1e3 * m.seconds.median:.3g}",
        _short_number(1e3 * m.seconds.spread),
        f"{m.bytes_per_second / 1e9:.3g}",
        f"{m.of_copy:.0%}",
        _known(m.operations_per_second / 1e9, ".3g"),
        _known(m.of_product, ".0%"),
        str(m.launches),
        f"{m.peak / 1e6:.2g}" if m.peak < 1e8 else f"{m.peak / 1e6:.0f}",
    )


def _short_number(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _known(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


LEGEND = """\
copy, GEMM: share of the bytes a second of a copy of as many bytes, and of the
operations a second of a matrix product, both in the same rounds.
calls: kernels on a GPU, operators on a CPU; MB: memory that one call allocates.
Nx: the rival's time over ours."""
FIELDS = (
    "op", "direction", "shape", "dtype", "seconds", "spread", "bytes", "operations",
    "bytes_per_second", "of_copy", "operations_per_second", "of_product", "intensity", "launches",
    "peak_bytes", "rivals", "chosen", "refused",
)  # fmt: skip


def as_rows(measured: Sequence[Measured]) -> list[tuple[object, ...]]:
    """For a CSV: the head, then a row for each."""
    return [FIELDS, *map(_row, measured)]


def _row(m: Measured) -> tuple[object, ...]:
    about = (m.op, m.direction, "x".join(map(str, m.result.shape)), m.result.dtype)
    if m.refused:
        return (*about, *[""] * (len(FIELDS) - len(about) - 1), m.refused)
    rivals = "; ".join(f"{row.name} {_slower(m.result, row)}" for row in m.rivals)
    figures = (m.seconds.median, m.seconds.spread, m.bytes, m.operations, m.bytes_per_second,
               m.of_copy, m.operations_per_second, m.of_product, m.intensity, m.launches,
               m.peak)  # fmt: skip
    return (*about, *figures, rivals, "; ".join(m.chosen), "")


def as_markdown(measured: Sequence[Measured]) -> list[tuple[str, ...]]:
    head = ("op", "direction", "shape", *HEAD[1:], "rivals, time over ours", "chosen")
    rows = []
    for m in measured:
        about = (m.op, m.direction, "x".join(map(str, m.result.shape)))
        if m.refused:
            rows.append((*about, *["-"] * (len(HEAD) - 1), "", m.refused))
            continue
        rivals = ", ".join(f"{row.name} {_slower(m.result, row)}" for row in m.rivals)
        rows.append((*about, *_figures(m), rivals, "; ".join(m.chosen)))
    return [head, *rows]


def peer_lines(result: Result) -> list[str]:
    """All rivals of a benchmark's entry: their time over ours, or why there is none."""
    rows = [(result.name, "/ ours", "+-")]
    reasons = []
    for row in result.rows:
        if row.name == OURS or row.is_floor:
            continue
        ratio: Summary | None = result.ratio(row, result.rows[0])
        if ratio is None:
            reasons.append(f"  {row.name}: {row.refused or result.rows[0].refused}"[:WIDTH])
        else:
            rows.append((f"  {row.name}", f"{ratio.median:.2f}", f"{ratio.spread:.2f}"))
    return [*aligned(rows, WIDTH), *reasons]

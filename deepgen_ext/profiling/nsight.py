"""What Nsight Compute (`ncu`) measures of our kernels: DRAM traffic, throughputs, spills.

`ncu` runs this module as a program of its own, which calls an op a few times; its raw page as CSV is
a row of names, a row of units, and a row a launch.
"""

from __future__ import annotations

import csv
import io
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from deepgen_ext.profiling.kernel_resources import short_name

CALLS = 3
SECTOR = 32  # bytes
TIME, TRAFFIC = "gpu__time_duration.sum", "dram__bytes.sum"
SHARES = {
    "DRAM": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "SM": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "warps": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "L2 hits": "lts__t_sector_hit_rate.pct",
}
SPILLS = (
    "l1tex__t_sectors_pipe_lsu_mem_local_op_ld.sum",
    "l1tex__t_sectors_pipe_lsu_mem_local_op_st.sum",
)
METRICS = (TIME, TRAFFIC, *SHARES.values(), *SPILLS)


class NsightRefused(RuntimeError):
    """ncu ran and measured nothing: the message says why."""


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel; `values` by the names of METRICS, in seconds' 1e-9, bytes, percent."""

    kernel: str
    values: dict[str, float]


def command(op: str, direction: str, dtype: str, shape: Sequence[int] | None) -> list[str]:
    """The command line that measures an op's kernels; `ncu` must be on the PATH."""
    options = ["--csv", "--page", "raw", "--print-units", "base", "--metrics", ",".join(METRICS)]
    options += ["--target-processes", "all"]
    options += ["--kernel-name-base", "demangled", "--kernel-name", "regex:deepgen"]
    sizes = [",".join(map(str, shape))] if shape else []
    program = [sys.executable, "-m", "deepgen_ext.profiling.nsight", op, direction, dtype, *sizes]
    return ["ncu", *options, *program]


def launches(text: str) -> Iterator[Launch]:
    """Of what ncu prints; its own lines and the program's, before the CSV, are passed over.

    Raises:
        NsightRefused: no right to read the counters, or no kernel of ours.
    """
    if "ERR_NVGPUCTRPERM" in text:
        raise NsightRefused(
            "ncu may not read the GPU's counters: run it as root, or load the driver with "
            "NVreg_RestrictProfilingToAdminUsers=0"
        )
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        told = [line for line in lines if line.startswith(("==ERROR==", "==WARNING=="))]
        raise NsightRefused(told[-1] if told else "ncu saw no kernel of deepgen_ext")
    rows = csv.DictReader(io.StringIO("\n".join(lines[start:])))
    next(rows, None)  # the units
    for row in rows:
        values = {name: _number(row.get(name)) for name in METRICS}
        yield Launch(row["Kernel Name"], values)


def _number(text: str | None) -> float:
    try:
        return float((text or "").replace(",", ""))
    except ValueError:  # "n/a": a counter that this GPU lacks
        return float("nan")


def table(found: Sequence[Launch]) -> list[tuple[str, ...]]:
    """A row a kernel, medians over its launches; the first is the head."""
    rows = [("kernel", "launches", "us", "DRAM MB", *SHARES, "spills KB")]
    names = list(dict.fromkeys(launch.kernel for launch in found))
    for name in names:
        mine = [launch.values for launch in found if launch.kernel == name]

        def median(metric: str, mine: list[dict[str, float]] = mine) -> float:
            return statistics.median(values[metric] for values in mine)

        spilled = sum(map(median, SPILLS)) * SECTOR / 1e3
        cells = [f"{median(TIME) / 1e3:.1f}", f"{median(TRAFFIC) / 1e6:.2f}"]
        cells += [f"{median(metric):.0f}%" for metric in SHARES.values()]
        rows.append((short_name(name)[:24], str(len(mine)), *cells, f"{spilled:.0f}"))
    return rows


def measure(
    op: str, direction: str, dtype: str, shape: Sequence[int] | None
) -> list[tuple[str, ...]] | str:
    """The table of an op's kernels; or why there is none."""
    if shutil.which("ncu") is None:
        return "no ncu (Nsight Compute) on the PATH"
    done = subprocess.run(command(op, direction, dtype, shape), capture_output=True, text=True)
    try:
        found = list(launches(done.stdout + done.stderr))
    except NsightRefused as refused:
        return str(refused)
    return table(found) if found else "ncu saw no kernel of deepgen_ext"


def main(given: Sequence[str]) -> None:
    """Call an op: what ncu watches."""
    import torch

    from deepgen_ext.profiling.cases import case_of
    from deepgen_ext.profiling.measurement import Setting

    op, direction, dtype, *rest = given
    setting = Setting(torch.device("cuda"), getattr(torch, dtype))
    shape = tuple(int(n) for n in rest[0].split(",")) if rest else None
    case = case_of(op, direction, setting, shape, False)
    for _ in range(CALLS):
        case.ours()
    torch.cuda.synchronize()


if __name__ == "__main__":
    main(sys.argv[1:])

"""Nsight Compute's table, from what ncu prints; no ncu and no GPU are needed."""

import math
import stat

import pytest

from deepgen_ext.profiling import nsight, tables

FIRST = "void deepgen::cuda::<unnamed>::kernel<float, (bool)0>(deepgen::Shape)"
HEAD = ["ID", "Process ID", "Process Name", "Host Name", "Kernel Name", "Context", "Stream"]
HEAD += ["Block Size", "Grid Size", "Device", "CC", *sorted(nsight.METRICS)]


def row(index, kernel, **values):
    cells = {"ID": str(index), "Kernel Name": kernel, "Block Size": "(256, 1, 1)", **values}
    return ",".join(f'"{cells.get(name, "")}"' for name in HEAD)


def printed(*rows):
    before = ["==PROF== Connected to process 7 (python)", "op, called", "==PROF== Disconnected"]
    return "\n".join([*before, ",".join(f'"{name}"' for name in HEAD), row("", ""), *rows]) + "\n"


def values(time, traffic="2,000,000", spilled="0", dram="81.5"):
    given = {nsight.TIME: time, nsight.TRAFFIC: traffic, nsight.SHARES["DRAM"]: dram}
    given |= {nsight.SHARES["SM"]: "12.0", nsight.SHARES["warps"]: "49.6"}
    return given | dict.fromkeys(nsight.SPILLS, spilled)


def test_medians_of_each_kernel():
    rows = (
        row(0, FIRST, **values("1,000")),
        row(1, "deepgen::cuda::other(int)", **values("70,000", spilled="1,000")),
        row(2, FIRST, **values("3,000")),
        row(3, FIRST, **values("90,000")),
    )
    found = list(nsight.launches(printed(*rows)))
    assert [launch.values[nsight.TIME] for launch in found] == [1e3, 7e4, 3e3, 9e4]
    assert math.isnan(found[0].values[nsight.SHARES["L2 hits"]])  # a cell that is not a number
    head, first, other = nsight.table(found)
    assert dict(zip(head, first))["us"] == "3.0"
    assert dict(zip(head, first))["launches"] == "3"
    assert dict(zip(head, first))["DRAM MB"] == "2.00"
    assert dict(zip(head, first))["DRAM"] == "82%"
    assert dict(zip(head, first))["spills KB"] == "0"
    assert dict(zip(head, other))["spills KB"] == "64"  # 1,000 sectors in and 1,000 out
    assert dict(zip(head, other))["L2 hits"] == "nan%"
    assert max(map(len, tables.aligned([head, first, other], 80))) <= 80


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission", "run it as root"),
        ("==ERROR== Failed to find metric x\n", "Failed to find metric x"),
        ("op, called\n", "no kernel of deepgen_ext"),
        (printed(), "no kernel of deepgen_ext"),
    ],
)
def test_says_why_there_is_nothing(text, message, tmp_path, monkeypatch):
    assert message in of_ncu_that_prints(text, tmp_path, monkeypatch)


def of_ncu_that_prints(text, tmp_path, monkeypatch):
    """What `measure` makes of it; the fake ncu also notes how it was called."""
    (tmp_path / "printed").write_text(text)
    fake = tmp_path / "ncu"
    fake.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/called\ncat {tmp_path}/printed\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return nsight.measure("affine_coupling", "backward", "float32", (2, 4, 4, 4))


def test_runs_ncu_on_a_program_that_calls_the_op(tmp_path, monkeypatch):
    rows = of_ncu_that_prints(printed(row(0, FIRST, **values("5"))), tmp_path, monkeypatch)
    assert len(rows) == 2
    called = (tmp_path / "called").read_text().splitlines()
    assert called[-4:] == ["affine_coupling", "backward", "float32", "2,4,4,4"]
    assert called[called.index("--metrics") + 1].split(",") == list(nsight.METRICS)
    assert called[called.index("--kernel-name") + 1] == "regex:deepgen"


def test_without_ncu(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no ncu" in nsight.measure("affine_coupling", "forward", "float32", None)


@pytest.mark.gpu
def test_the_program_that_ncu_watches():
    nsight.main(["affine_coupling", "backward", "float32", "2,4,4,4"])

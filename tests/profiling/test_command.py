"""deepgen profile: what it measures of an op and a model, and one sentence for each mistake."""

import csv
import json
import math

import pytest

pytest.importorskip("typer", reason='needs pip install "deepgen_ext[recipes]"')

import torch
from typer.testing import CliRunner

from deepgen_ext import cli
from deepgen_ext.profiling import report, roofline
from deepgen_ext.profiling.measurement import Result, Row, Setting
from deepgen_ext.profiling.roofline import COPY, PRODUCT, Measured

SHAPE = ["--shape", "2,4,4,4", "--budget", 0]


def run(*arguments):
    return CliRunner(env={"COLUMNS": "80", "TERM": "dumb"}).invoke(
        cli.app, ["profile", *map(str, arguments)]
    )


def measured(ours, copy, product, **changes):
    """With these times; 8 bytes and 16 operations in ours, 100 in the product."""
    rows = [Row("ours", ours), Row(COPY, copy, is_floor=True), Row(PRODUCT, product, is_floor=True)]
    result = Result("op forward", (2, 3), "float32", [*rows, Row("eager", [6.0] * len(ours))])
    facts = {"bytes": 8, "operations": 16, "product_operations": 100, "launches": 1, "peak": 64}
    return Measured("op", "forward", result, **{**facts, "chosen": (), **changes})


def test_rates_and_fractions():
    m = measured([2.0, 2.0, 2.0], [1.0, 1.0, 1.0], [5.0, 5.0, 5.0])
    assert m.bytes_per_second == 4
    assert m.operations_per_second == 8
    assert m.of_copy == 0.5  # a copy of as many bytes takes half as long
    assert m.of_product == 8 / 20
    assert m.intensity == 2
    assert math.isnan(measured([2.0], [1.0], [5.0], operations=None).of_product)


@pytest.mark.parametrize("name", list(roofline.OPS))
def test_every_op_is_measured_and_right(name):
    found = list(roofline.measure_op(name, Setting(tiny=True, budget=0.0)))
    assert [m.direction for m in found] == list(roofline.OPS[name].directions)
    for m in found:
        assert not m.refused
        assert len(m.rivals) == 1
        assert not any(row.refused for row in m.rivals)
        assert m.bytes > 0
        assert m.launches >= 1
        assert m.peak > 0
        assert m.of_copy > 0
    assert max(map(len, report.lines_of(found))) <= report.WIDTH


def test_a_wrong_result_is_refused(monkeypatch):
    from deepgen_ext import ops

    right = ops.affine_coupling
    monkeypatch.setattr(ops, "affine_coupling", lambda *a, **k: (right(*a, **k)[0] + 1, a[0]))
    first = next(roofline.measure_op("affine_coupling", Setting(tiny=True, budget=0.0)))
    assert first.refused.startswith("WRONG")
    assert "WRONG" in "\n".join(report.lines_of([first]))


def test_an_op_with_its_files(tmp_path):
    out = tmp_path / "out"
    result = run("affine_coupling", *SHAPE, "--out", out)
    assert result.exit_code == 0, result.output
    assert max(len(line) for line in result.output.splitlines() if "wrote" not in line) <= 80
    for word in ("forward", "inverse", "backward", "GB/s", "copy", "GEMM", "eager"):
        assert word in result.output
    for picture in ("roofline.png", "rivals.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((out / "ops.csv").open()))
    assert [row["direction"] for row in rows] == ["forward", "inverse", "backward"]
    # Three tensors of 128 floats in and one out, and the log-det of two samples.
    assert int(rows[0]["bytes"]) == 4 * (4 * 128 + 2)
    assert (out / "ops.md").read_text().count("\n") == 5
    events = json.loads((out / "trace.json").read_text())["traceEvents"]
    names = {event.get("name") for event in events}
    assert {"deepgen_ext::affine_coupling", "deepgen_ext::affine_coupling_backward"} <= names


def test_a_model_and_the_part_of_our_ops():
    result = run("glow", "--budget", 0, "--batch", 4)
    assert result.exit_code == 0, result.output
    assert "training step" in result.output
    assert "draw" in result.output
    assert result.output.count("affine_coupling inverse") >= 1
    assert max(map(len, result.output.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["affine_cupling"], ["affine_cupling", "did you mean affine_coupling?", "masked_conv2d"]),
        (["glowe"], ["did you mean glow?"]),
        (["masked_conv2d", "--shape", "3,4"], ["masked_conv2d", "[3, 4]", "n, C, h, w"]),
        (["affine_coupling", "--shape", "3,x4,-1"], ["expected numbers with commas"]),
        (["affine_coupling", "--device", "tpu"], ["cpu or cuda", "tpu"]),
        (["affine_coupling", "--dtype", "int8"], ["float32", "int8"]),
        (["affine_coupling", "--against", "eager,jax"], ["eager, compile, peers", "jax"]),
        (["all", "--shape", "3,4"], ["name one op"]),
        (["gan"], ["game of two networks"]),
    ],
)
def test_mistakes_are_one_sentence(arguments, words):
    result = run(*arguments, "--budget", 0)
    assert result.exit_code == 2, result.output
    sentence = " ".join(result.stderr.split())
    for word in words:
        assert word in sentence
    assert not isinstance(result.exception, Exception)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_a_device_that_is_not_there():
    result = run("affine_coupling", "--device", "cuda")
    assert result.exit_code == 2
    assert "no CUDA device" in result.stderr


def test_without_a_checkout_peers_say_so(monkeypatch):
    monkeypatch.setattr(roofline, "checkout", lambda: None)
    result = run("affine_coupling", *SHAPE, "--against", "peers")
    assert result.exit_code == 0, result.output
    assert "only in a checkout" in result.output


def test_a_peer_that_is_not_installed_says_so():
    rows = [Row("ours", [1.0]), Row("zuko", refused="zuko is not installed"), Row("eager", [3.0])]
    lines = report.peer_lines(Result("coupling", (2,), "float32", rows))
    assert "  zuko: zuko is not installed" in lines
    assert any(line.split()[:2] == ["eager", "3.00"] for line in lines)

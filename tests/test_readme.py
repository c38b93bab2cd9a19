"""What the README shows runs as it stands there."""

import re
from pathlib import Path

import pytest
import torch

import deepgen_ext

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_what_it_replaces_is_the_same():
    (block,) = (block for block in BLOCKS if "before" in block)
    before, after = block.split("y, log_det =")
    x, raw, shift = torch.randn(3, 4, 5, 6, 6)
    names = {"torch": torch, "deepgen_ext": deepgen_ext, "x": x, "raw": raw, "shift": shift}
    exec(before, names)
    old = names["y"], names["log_det"]
    exec(f"y, log_det ={after}", names)
    torch.testing.assert_close((names["y"], names["log_det"]), old, rtol=1e-5, atol=1e-5)


def test_ten_lines_train_and_sample():
    pytest.importorskip("sklearn", reason='the digits need pip install "deepgen_ext[recipes]"')
    (block,) = (block for block in BLOCKS if "optimizer" in block)
    names: dict = {}
    exec(block.replace("range(500)", "range(30)"), names)
    assert names["images"].shape == (16, 1, 8, 8)
    assert names["loss"] < 4.0  # log2(17) = 4.09 is no model at all


def test_commands_exist():
    from typer.testing import CliRunner

    from deepgen_ext.cli import app

    for command in set(re.findall(r"^deepgen (\w+)", README, re.M)):
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0, command
    targets = set(re.findall(r"^make (\w+)", README, re.M))
    makefile = (ROOT / "Makefile").read_text()
    assert targets <= set(re.findall(r"^([\w-]+):", makefile, re.M))


def test_ops_and_models_named_there_exist():
    for name in re.findall(r"`ops\.(\w+)`", README):
        assert hasattr(deepgen_ext.ops, name)
    for name in ("Glow", "RealNVP"):
        assert name in README
        assert hasattr(deepgen_ext.models, name)

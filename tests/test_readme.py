"""What the README shows runs as it stands there."""

import re
import warnings
from pathlib import Path

import pytest
import torch

import deepgen_ext
from deepgen_ext.compat.accelerated import Accelerated

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_what_it_replaces_is_the_same():
    (block,) = (block for block in BLOCKS if "affine_coupling(" in block)
    before, after = block.split("y, log_det =")
    x, raw, shift = torch.randn(3, 4, 5, 6, 6)
    names = {"torch": torch, "deepgen_ext": deepgen_ext, "x": x, "raw": raw, "shift": shift}
    exec(before, names)
    old = names["y"], names["log_det"]
    exec(f"y, log_det ={after}", names)
    torch.testing.assert_close((names["y"], names["log_det"]), old, rtol=1e-5, atol=1e-5)


def small_network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        deepgen_ext.nn.MaskedConv2d(1, 4, 3, mask_type="A"), torch.nn.Conv2d(4, 256, 1)
    )


def test_both_ways_to_sample_run():
    (block,) = (block for block in BLOCKS if "multinomial" in block)
    names = {
        "torch": torch,
        "deepgen_ext": deepgen_ext,
        "Categorical": deepgen_ext.nn.Categorical,
        "network": small_network(),
        "embed": lambda levels: 2 * levels / 255 - 1,
        "levels": torch.zeros(16, 1, 28, 28, dtype=torch.int64),
    }
    with torch.no_grad():
        exec(block, names)
    assert names["levels"].shape == (16, 1, 28, 28)
    assert len(names["levels"].unique()) > 200


def test_own_networks_and_models_are_sampled():
    names: dict = {"torch": torch}
    (block,) = (block for block in BLOCKS if "class Network" in block)
    exec(block, names)
    assert names["levels"].shape == (16, 1, 28, 28)
    (block,) = (block for block in BLOCKS if "gated=True" in block)
    exec(block.replace("layers=7, channels=64", "layers=2, channels=4, kernel_size=3"), names)
    assert torch.equal(names["completed"][:, :, :14], names["images"][:, :, :14])
    assert names["same"].shape == (2, 1, 28, 28)


def test_spectral_norms_and_inverses_run():
    (block,) = (block for block in BLOCKS if "fixed_point_inverse" in block)
    names: dict = {"torch": torch}
    exec(block, names)
    assert names["found"].converged.all()
    for layer in (names["critic"][0], names["critic"][2]):
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2) < 1.5


def test_ten_lines_train_and_sample():
    pytest.importorskip("sklearn", reason='the digits need pip install "deepgen_ext[recipes]"')
    (block,) = (block for block in BLOCKS if "optimizer" in block)
    names: dict = {}
    exec(block.replace("range(500)", "range(30)"), names)
    assert names["images"].shape == (16, 1, 8, 8)
    assert names["loss"] < 4.0  # log2(17) = 4.09 is no model at all


@pytest.mark.parametrize("peer", ["nflows", "normflows", "zuko", "FrEIA"])
def test_models_of_other_libraries_are_accelerated(peer):
    pytest.importorskip(peer, reason='needs pip install "deepgen_ext[peers]"')
    (block,) = (b for b in BLOCKS if re.search(rf"^(from|import) {peer}", b, re.M))
    names: dict = {"torch": torch, "deepgen_ext": deepgen_ext}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        exec(block, names)
    model = names["layer"] if "layer" in names else names["flow"]
    assert any(isinstance(m, Accelerated) for m in model.modules())
    result = names["x"] if "x" in names else names["samples"]
    assert result.shape == (64, 64)


def test_commands_exist():
    from typer.testing import CliRunner

    from deepgen_ext.cli import app

    for command in set(re.findall(r"^deepgen ([\w-]+)", README, re.M)):
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0, command
    targets = set(re.findall(r"^make (\w+)", README, re.M))
    makefile = (ROOT / "Makefile").read_text()
    assert targets <= set(re.findall(r"^([\w-]+):", makefile, re.M))


def test_ops_and_models_named_there_exist():
    for name in re.findall(r"`ops\.(\w+)`", README):
        assert hasattr(deepgen_ext.ops, name)
    for name in deepgen_ext.models.__all__:
        assert name == "PixelModel" or f"`{name}`" in README

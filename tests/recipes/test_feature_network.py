"""Networks of features: trained and saved, from TorchScript, and the images they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner, Result

pytest.importorskip("torchmetrics", reason='needs pip install "deepgen_ext[metrics]"')
pytest.importorskip("ot", reason='needs pip install "deepgen_ext[metrics]"')

from deepgen_ext import cli
from deepgen_ext.recipes import RecipeError, data
from deepgen_ext.recipes.feature_network import (
    ClassifierFeatures,
    load_feature_network,
    save_feature_network,
    train_classifier,
)


def _run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "100", "TERM": "dumb"}).invoke(
        cli.app, [str(argument) for argument in arguments]
    )


@pytest.fixture(scope="module")
def network_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("networks") / "digits.pt"
    result = _run(
        *("feature-network", "--data", "digits", "--features", 24, "--channels", 16),
        *("--steps", 300, "--out", out),
    )
    assert result.exit_code == 0, result.output
    assert "classifier of digits, 24 features, accuracy " in " ".join(result.output.split())
    return out


def test_a_trained_classifier(network_file: Path) -> None:
    digits = data.load("digits")
    network = load_feature_network(network_file)
    assert network.name == "classifier of digits"
    features, logits = network.features_of(digits.test, 17)
    assert features.shape == (300, 24)
    assert features.dtype == torch.float64
    accuracy = (logits.argmax(1) == digits.labels[1]).double().mean().item()
    assert accuracy == network.accuracy > 0.85
    # in units of the training data, whatever the number of images at a time
    assert network.features_of(digits.train, 17).features.square().mean().item() == pytest.approx(1)
    one = torch.cat([network.features_of(image[None], 17).features for image in digits.test[:5]])
    torch.testing.assert_close(one, features[:5], rtol=1e-5, atol=1e-6)


def test_training_is_decided_by_the_seed() -> None:
    small = {"features": 4, "channels": 2, "steps": 3}
    first, again, other = (
        train_classifier("digits", **small, seed=seed)["parameters"]["output.weight"]
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_images_of_another_kind_are_refused(network_file: Path) -> None:
    network = load_feature_network(network_file)
    digits = data.load("digits").test
    with pytest.raises(RecipeError, match="takes images of 1x8x8 with 17 levels.*1x4x8 with 17"):
        network.features_of(digits[:, :, :4], 17)
    with pytest.raises(RecipeError, match="these are of 1x8x8 with 256"):
        network.features_of(digits, 256)
    with pytest.raises(RecipeError, match="no image to score"):
        network.features_of(digits[:0], 17)


class _Plain(nn.Module):
    """Means of the colours, and logits of two classes."""

    def forward(self, images: Tensor):
        assert images.dtype == torch.uint8
        means = images.double().mean((2, 3))
        return means, means[:, :2]


class _Inception(nn.Module):
    """As NVIDIA's file: probabilities, or features where asked."""

    def forward(self, images: Tensor, return_features: bool = False):
        means = images.double().mean((2, 3))
        if return_features:
            return means
        return torch.softmax(means[:, :2], 1)


class _Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 5)

    def forward(self, images: Tensor):
        return self.layer(images.float().flatten(1))


class _Maps(nn.Module):
    def forward(self, images: Tensor):
        return images.float()


@pytest.mark.parametrize("kind", [_Plain, _Inception])
def test_scripted_networks(kind: type[nn.Module], tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.jit.script(kind()).save(str(path))
    network = load_feature_network(path)
    assert network.name == "net.pt"
    levels = torch.randint(0, 17, (7, 1, 4, 4), dtype=torch.uint8)
    features, logits = network.features_of(levels, 17)
    grey = (levels.double() * 255 / 16).round().mean((1, 2, 3))
    torch.testing.assert_close(features, grey[:, None].expand(7, 3))
    torch.testing.assert_close(logits.softmax(1), torch.full((7, 2), 0.5).double())
    colours = torch.randint(0, 256, (7, 3, 4, 4), dtype=torch.uint8)
    expected = colours.double().mean((2, 3))
    features, logits = network.features_of(colours, 256)
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(logits.softmax(1), expected[:, :2].softmax(1))


def test_scripted_networks_of_other_images(tmp_path: Path) -> None:
    levels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    for kind, message in (
        (_Wide, "net.pt does not take uint8 images of 3x4x4"),
        (_Maps, r"must answer with features \(n, F\); for 2 images it gave \(2, 3, 4, 4\)"),
    ):
        torch.jit.script(kind()).save(str(tmp_path / "net.pt"))
        with pytest.raises(RecipeError, match=message):
            load_feature_network(tmp_path / "net.pt").features_of(levels, 17)
    torch.jit.script(_Wide()).save(str(tmp_path / "net.pt"))
    features, logits = load_feature_network(tmp_path / "net.pt").features_of(
        levels[..., :2, :2], 17
    )
    assert features.shape == (2, 5)
    assert logits is None


def test_files_that_are_no_feature_network(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file; deepgen feature-network --data NAME"):
        load_feature_network(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("nothing")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "state.pt")
    for name in ("text.pt", "state.pt"):
        with pytest.raises(RecipeError, match=f"{name}: not a feature network"):
            load_feature_network(tmp_path / name)
    with pytest.raises(RecipeError, match="no classes are known"):
        train_classifier("two-moons")
    state = train_classifier("digits", features=4, channels=2, steps=1)
    save_feature_network(tmp_path / "new" / "net.pt", state)
    assert (
        ClassifierFeatures(state).accuracy
        == load_feature_network(tmp_path / "new" / "net.pt").accuracy
    )


def test_scores_of_a_run(network_file: Path, tmp_path: Path) -> None:
    glow = tmp_path / "glow"
    tiny = ("--set", "levels=1", "--set", "steps=1", "--set", "hidden_channels=8")
    made = _run(
        *("train", "glow", "--data", "digits", "--out", glow, "--max-steps", 5, *tiny),
        *("--accelerator", "cpu"),
    )
    assert made.exit_code == 0, made.output
    asked = ("scores", glow, "--feature-network", network_file, "--accelerator", "cpu")
    result = _run(*asked, "--n", 60)
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    for part in (
        "FID (classifier of digits, 24 features)",
        "IS (classifier of digits, 24 features)",
        "images 60 300",
        "real images 1,497 1,497",
        "24 features, accuracy ",
        "digits, train split",
    ):
        assert part in words, words
    fid = [float(x) for x in words.split("24 features)")[1].split()[:2]]
    assert fid[0] > 10 * fid[1] > 0  # five steps of training against held-out digits
    assert _run(*asked, "--n", 60).output == result.output
    few = _run(*asked, "--n", 20)
    assert few.exit_code == 2
    assert "needs 25 samples or more of each kind; there are 1497 real and 20" in " ".join(
        few.output.split()
    )
    missing = _run("scores", glow, "--n", 60)
    assert missing.exit_code == 2
    assert "give --feature-network" in " ".join(missing.output.split())


def test_scores_of_a_run_on_points(tmp_path: Path) -> None:
    run = tmp_path / "moons"
    made = _run(
        *("train", "realnvp", "--data", "two-moons", "--out", run, "--max-steps", 2),
        *("--accelerator", "cpu", "--set", "couplings=2", "--set", "hidden_channels=4"),
    )
    assert made.exit_code == 0, made.output
    result = _run("scores", run, "--n", 200, "--accelerator", "cpu")
    assert result.exit_code == 0, result.output
    words = result.output.split()
    assert "200" in words
    exact = [i for i, word in enumerate(words) if word == "exact"]
    assert len(exact) == 2
    for i in exact:
        generated, floor = float(words[i + 1]), float(words[i + 2])
        assert generated > floor > 0

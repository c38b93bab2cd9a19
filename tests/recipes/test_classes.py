"""Classes of a conditional model: in the shares of the data, and how many came out as asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from deepgen_ext.models.adversarial import DCGANGenerator
from deepgen_ext.recipes import RecipeError, scores
from deepgen_ext.recipes.adversarial import train
from deepgen_ext.recipes.classes import classes_as, share_in_class
from deepgen_ext.recipes.data import load
from deepgen_ext.recipes.feature_network import (
    ClassifierFeatures,
    Features,
    save_feature_network,
    train_classifier,
)
from deepgen_ext.recipes.run import Settings
from deepgen_ext.recipes.trained import sample_run


def _settings(n_classes: int) -> Settings:
    """Of a tiny game on digits."""
    return Settings(
        model="sn-gan", data="digits", max_steps=1, batch_size=8, accelerator="cpu",
        options={"n_classes": n_classes, "width": 4, "n_critic": 1},
    )  # fmt: skip


@pytest.mark.parametrize("n", [1, 7, 40, 1000])
def test_shares_of_the_data(n: int) -> None:
    labels = torch.tensor([0] * 5 + [2] * 2 + [3] * 13)
    classes = classes_as(labels, n, seed=0)
    counts = torch.bincount(classes, minlength=4)
    assert counts.sum() == n
    assert counts[1] == 0
    assert (counts - torch.bincount(labels) * n / 20).abs().max() < 1
    if n >= 40:
        assert not torch.equal(classes, classes.sort().values)
        assert not torch.equal(classes, classes_as(labels, n, seed=1))
    assert torch.equal(classes, classes_as(labels, n, seed=0))


def test_share_in_class() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [0.0, 3.0]])
    assert share_in_class(logits, torch.tensor([0, 1, 1, 1])) == 0.75
    real, generated = Features(torch.randn(9, 2).double(), None), torch.randn(9, 2).double()
    some = Features(generated, torch.eye(9).double())
    labels = torch.tensor([0, 1, 2, 0, 0, 0, 0, 0, 0])
    assert scores.score(real, some, labels).in_class == pytest.approx(1 / 3)


def test_scores_of_a_conditional_model(
    tmp_path: Path, screen: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a generator that returns a training image of its class: as often as the classifier is
    right about that.
    """
    train(_settings(10), tmp_path / "run", console=screen)
    state = train_classifier("digits", features=16, channels=8, steps=150)
    save_feature_network(tmp_path / "features.pt", state)
    data = load("digits")
    first = [int((data.labels[0] == digit).nonzero()[0]) for digit in range(10)]
    seen = []

    def copied(model: DCGANGenerator, z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append(labels)
        levels = data.train[torch.tensor(first)[labels]]
        return (levels + 0.5) / 17 * 2 - 1

    monkeypatch.setattr(DCGANGenerator, "forward", copied)
    common = {"n": 400, "network_path": tmp_path / "features.pt"}
    table = scores.score_run(tmp_path / "run", **common)
    (*_, heading), generated, held_out = (list(column.cells) for column in table.columns)
    assert heading == "classified as asked"
    network = ClassifierFeatures(state)
    found = network.features_of(data.train[first], data.n_levels).logits.argmax(1)
    labels = torch.cat(seen)
    right = (found == torch.arange(10))[labels].double().mean().item()
    assert 0.2 < right < 1
    assert float(generated[-1]) == pytest.approx(right, abs=1e-3)
    assert float(held_out[-1]) == pytest.approx(state["accuracy"], abs=1e-3)
    shares = torch.bincount(labels) / 400 - torch.bincount(data.labels[0]) / 1497
    assert shares.abs().max() < 1 / 400


def test_samples_of_classes(
    tmp_path: Path, screen: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a generator that draws nothing but its class: those asked for in turn, in every chunk."""
    run, out = tmp_path / "run", tmp_path / "samples.npy"
    train(_settings(10), run, console=screen)
    train(_settings(0), tmp_path / "plain", console=screen)

    def shown(model: Any, z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return ((labels.float() + 0.5) / 17 * 2 - 1).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)

    monkeypatch.setattr(DCGANGenerator, "forward", shown)
    common = {"temperature": 1.0, "seed": 0, "out": out, "device": "cpu"}
    sample_run(run, n=300, label=(7, 2, 5), **common)
    samples = np.load(out)
    assert samples[:, 0, 0, 0].tolist() == [7, 2, 5] * 100
    sample_run(run, n=300, **common)
    assert set(np.load(out)[:, 0, 0, 0]) == set(range(10))  # by chance
    with pytest.raises(RecipeError, match="--label 10: the classes are 0 to 9"):
        sample_run(run, n=3, label=(10,), **common)
    with pytest.raises(RecipeError, match="--label: this sn-gan was trained without classes"):
        sample_run(tmp_path / "plain", n=3, label=(1,), **common)

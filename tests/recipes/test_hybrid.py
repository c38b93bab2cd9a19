"""Flows under a linear classifier: the loss by its formula, the table's figures, aligned labels."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from deepgen_ext.recipes import RecipeError, data
from deepgen_ext.recipes.hybrid import BODIES, Hybrid, body
from deepgen_ext.recipes.hybrid_table import (
    Fit,
    Measured,
    fit_hybrid,
    plan_fits,
    table_of,
    write_table,
)


@pytest.mark.parametrize("name", BODIES)
def test_loss_is_the_weighted_sum(name: str) -> None:
    torch.manual_seed(0)
    flow = body(name, (1, 8, 8), 17)
    model = Hybrid(flow, 10)
    levels, labels = torch.randint(0, 17, (6, 1, 8, 8)), torch.randint(0, 10, (6,))
    noise = torch.rand(6, 1, 8, 8)
    flow.initialize(levels, noise=noise)
    model.eval()
    for layer in flow.modules():
        if hasattr(layer, "eval_log_det"):
            layer.generator = torch.Generator()

    def restart() -> None:
        for layer in flow.modules():
            if hasattr(layer, "eval_log_det"):
                layer.generator.manual_seed(0)

    restart()
    log_prob, logits = model(levels, noise)
    restart()
    torch.testing.assert_close(log_prob, flow.log_prob((levels + noise) / 17))
    latents, _ = flow((levels + noise) / 17)
    z = torch.cat([latent.flatten(1) for latent in latents], 1)
    torch.testing.assert_close(logits, z @ model.classifier.weight.T + model.classifier.bias)
    cross_entropy = F.cross_entropy(logits, labels)
    for weight in (0.0, 1 / 64, 1.0):
        restart()
        loss = model.loss(levels, labels, noise, weight)
        torch.testing.assert_close(loss, cross_entropy - weight * log_prob.mean())
    again, _ = flow.inverse(latents)  # all but the classifier can be inverted
    torch.testing.assert_close(again, (levels + noise) / 17, rtol=0, atol=2e-5)


def test_labels_belong_to_their_images() -> None:
    """A linear classifier of the pixels learns them, which shuffled labels would not allow."""
    digits = data.load("digits")
    train, test = (images.flatten(1).double() / 16 - 0.5 for images in (digits.train, digits.test))
    train_labels, test_labels = digits.labels
    targets = F.one_hot(train_labels, 10).double()
    ridge = torch.eye(train.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(train.T @ train + ridge, train.T @ targets)
    assert ((test @ weights).argmax(1) == test_labels).double().mean() > 0.85


@pytest.mark.parametrize("weight", ["0", "1/D"])
def test_a_short_fit_learns_the_classes(weight: str) -> None:
    measured = fit_hybrid(Fit("digits", "coupling", weight, 0, 40, 64))
    assert measured.accuracy > 0.5
    assert math.isnan(measured.bits_per_dim) == (weight == "0")
    assert not measured.bits_per_dim > 5


def test_table(tmp_path: Path) -> None:
    results = [
        Measured(Fit("digits", "residual", weight, seed, 5, 4), accuracy, bits, 60.0)
        for weight, seed, accuracy, bits in (
            ("0", 0, 0.90, math.nan),
            ("0", 1, 0.92, math.nan),
            ("1", 0, 0.70, 3.0),
            ("1", 1, 0.72, 3.2),
        )
    ]
    console = Console(file=io.StringIO(), width=200)
    console.print(table_of(results))
    text = console.file.getvalue()
    for part in ("91.00 ± 1.41", "71.00 ± 1.41", "3.100 ± 0.141", "2 seeds", "4.0 minutes"):
        assert part in text
    assert "nan" not in text
    write_table(results, tmp_path / "t.md")
    assert (
        "| residual | 91.00 ± 1.41 | 3.100 ± 0.141 | 71.00 ± 1.41 |"
        in (tmp_path / "t.md").read_text()
    )
    assert (
        "`deepgen hybrid-table --data digits --steps 5 --batch-size 4 --seeds 2"
        " --body residual --weight 0 --weight 1`" in (tmp_path / "t.md").read_text()
    )
    write_table(results, tmp_path / "t.csv")
    with open(tmp_path / "t.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["accuracy"] for row in rows] == ["0.9", "0.92", "0.7", "0.72"]


def test_choices_are_checked() -> None:
    numbers = {"seeds": 2, "steps": 1, "batch_size": 4}
    assert len(plan_fits("digits", None, None, **numbers)) == 3 * 3 * 2
    assert len(plan_fits("digits", ["residual"], ["1"], **numbers)) == 2
    with pytest.raises(RecipeError, match="--body must be one of coupling"):
        plan_fits("digits", ["glow"], None, **numbers)
    with pytest.raises(RecipeError, match="--weight must be one of 0, 1/D, 1; got '2'"):
        plan_fits("digits", None, ["2"], **numbers)
    with pytest.raises(RecipeError, match="no classes are known"):
        plan_fits("two-moons", None, None, **numbers)

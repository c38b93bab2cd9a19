"""The alternating loop: it resumes exactly, processes share it, and what it leaves is complete."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

from deepgen_ext.models import GAN
from deepgen_ext.recipes import RecipeError, checkpoint, registry
from deepgen_ext.recipes.adversarial import COLUMNS, held_out_gap, train
from deepgen_ext.recipes.data import load
from deepgen_ext.recipes.run import Settings, load_model
from deepgen_ext.recipes.trained import draw, evaluate_run, sample_run
from deepgen_ext.recipes.translation import translate_run

# av-ade has other options: see test_ablation
NAMES = [n for n, entry in registry.RECIPES.items() if entry.adversarial and n != "av-ade"]
Game = Callable[..., Settings]


@pytest.fixture
def game() -> Game:
    """Settings of a tiny game on digits; arguments replace or add to them."""

    def make(**changes: Any) -> Settings:
        options = {"width": 4, **changes.pop("options", {})}
        given = {"model": "gan", "data": "digits", "batch_size": 8, "max_steps": 4, "log_every": 1}
        given |= {"accelerator": "cpu", "learning_rate": 1e-3, "warmup_steps": 0}
        return Settings(**{**given, **changes, "options": options})

    return make


def _rows(out: Path) -> list[dict[str, str]]:
    with open(out / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_equal(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(_equal, left, right))
    return left == right


@pytest.mark.parametrize("model", NAMES)
def test_resumed_is_bitwise_the_run_at_once(
    game: Game, tmp_path: Path, screen: Console, model: str
) -> None:
    """Both players, both optimisers, averages, spectral vectors, buffers, random state, losses."""
    options = {"buffer": 12} if model == "cyclegan" else {}
    given = {"model": model, "options": options}
    train(game(max_steps=4, **given), tmp_path / "once", console=screen)
    train(game(max_steps=2, **given), tmp_path / "twice", console=screen)
    torch.manual_seed(987)  # whatever the process did in between
    train(game(max_steps=4, **given), tmp_path / "twice", resume=True, console=screen)
    once, twice = (checkpoint.load(tmp_path / name / "checkpoint.pt") for name in ("once", "twice"))
    assert once["step"] == 4
    assert once["optimizer"].keys() == {"critic", "generator"}
    assert _equal(once, twice)
    losses = [
        [{key: row[key] for key in ("step", "critic", "generator", "gap")} for row in _rows(out)]
        for out in (tmp_path / "once", tmp_path / "twice")
    ]
    assert losses[0] == losses[1]
    if model == "cyclegan":
        assert once["parameters"]["buffers_of.a._extra_state"] == {"count": 12}


def test_what_a_run_leaves(game: Game, tmp_path: Path, screen: Console) -> None:
    out = tmp_path / "run"
    train(game(model="bigan", max_steps=4, sample_every=2), out, console=screen)
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoint.pt",
        "config.json",
        "losses.png",
        "metrics.csv",
        "reconstructions-000002.png",
        "reconstructions-000004.png",
        "samples-000002.png",
        "samples-000004.png",
    ]
    rows = _rows(out)
    assert tuple(rows[0]) == COLUMNS
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["step"] for row in rows if row["reconstruction"]] == ["2", "4"]
    assert "critic" in screen.file.getvalue()
    with Image.open(out / "losses.png") as picture:
        assert picture.size[0] > 500


def test_gap_and_penalty_are_recorded(game: Game, tmp_path: Path, screen: Console) -> None:
    train(game(model="wgan-gp", options={"penalty": 5.0}), tmp_path, console=screen)
    for row in _rows(tmp_path):
        gap, penalty = float(row["gap"]), float(row["penalty"])
        assert 0 < penalty <= 5.001 + 0.1 * abs(gap)
        assert float(row["critic"]) == pytest.approx(penalty - gap, rel=1e-4, abs=1e-5)
    assert [bool(row["test_gap"]) for row in _rows(tmp_path)] == [False] * 3 + [True]


def test_the_players_alternate(
    game: Game, tmp_path: Path, screen: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def count(name: str) -> None:
        original = getattr(GAN, name)

        def counted(self: GAN, *args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(GAN, name, counted)

    for name in ("critic_terms", "after_critic_step", "generator_loss", "after_generator_step"):
        count(name)
    train(game(max_steps=2, options={"n_critic": 3}), tmp_path, console=screen)
    turn = ["critic_terms", "after_critic_step"] * 3 + ["generator_loss", "after_generator_step"]
    assert calls == turn * 2


def test_a_run_learns_and_is_drawn(tmp_path: Path, screen: Console, game: Game) -> None:
    """Vectors: samples of a trained run lie where the data do."""
    given = game(
        model="wgan-gp", data="8-gaussians", max_steps=60, batch_size=128, log_every=30,
        learning_rate=3e-3, options={"width": 32, "n_critic": 2, "ema": 0.9},
    )  # fmt: skip
    train(given, tmp_path / "run", console=screen)
    model, settings, step, shape, n_levels = load_model(tmp_path / "run")
    assert (settings.model, step, shape, n_levels) == ("wgan-gp", 60, (2,), None)
    samples = draw(model, 2000, temperature=1.0, seed=0)
    assert load("8-gaussians").test.norm(dim=1).mean() == pytest.approx(3.0, abs=0.1)
    assert 1.5 < samples.norm(dim=1).mean() < 4.5  # of the generator at its start 0.3
    sample_run(
        tmp_path / "run", n=50, temperature=1.0, seed=0, out=tmp_path / "s.png", device="cpu"
    )
    assert (tmp_path / "s.png").exists()


def test_samples_of_images_are_levels(game: Game, tmp_path: Path, screen: Console) -> None:
    train(game(max_steps=1), tmp_path, console=screen)
    model, *_ = load_model(tmp_path)
    samples = draw(model, 5, temperature=1.0, seed=0, n_levels=17)
    assert samples.dtype == torch.uint8
    assert samples.shape == (5, 1, 8, 8)
    assert samples.max() <= 16


@pytest.mark.parametrize(
    ("precision", "parameters", "layers"),
    [("bf16-mixed", torch.float32, torch.bfloat16), ("64", torch.float64, torch.float64)],
)
@pytest.mark.parametrize("model", NAMES)
def test_other_precisions(
    game: Game,
    tmp_path: Path,
    screen: Console,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    precision: str,
    parameters: torch.dtype,
    layers: torch.dtype,
) -> None:
    """Every network of both players computes in it, penalties included, and is kept in its own."""
    seen = set()
    forward = torch.nn.Conv2d.forward

    def watched(layer: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        y = forward(layer, x)
        if layer.training:
            seen.add(y.dtype)
        return y

    monkeypatch.setattr(torch.nn.Conv2d, "forward", watched)
    net = train(game(model=model, precision=precision, max_steps=2), tmp_path, console=screen)
    assert seen == {layers}
    assert all(p.dtype == parameters and p.isfinite().all() for p in net.parameters())


def test_float16_is_not_replaced_in_silence(
    game: Game, tmp_path: Path, screen: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for accelerator in ("cpu", "auto"):
        given = game(precision="16-mixed", accelerator=accelerator)
        with pytest.raises(RecipeError, match="16-mixed: float16 .* bf16-mixed runs there"):
            train(given, tmp_path, console=screen)


def test_classes(game: Game, tmp_path: Path, screen: Console) -> None:
    train(game(model="sn-gan", options={"n_classes": 10}), tmp_path / "run", console=screen)
    model, *_ = load_model(tmp_path / "run")
    assert model.sample(4).shape == (4, 1, 8, 8)
    with pytest.raises(RecipeError, match="'digits' has 10 classes: --set n_classes=10"):
        train(game(options={"n_classes": 3}), tmp_path / "a", console=screen)
    with pytest.raises(RecipeError, match="no classes are known of 'two-moons'"):
        train(game(data="two-moons", options={"n_classes": 3}), tmp_path / "a", console=screen)


def test_two_processes_train_the_model_of_one(
    game: Game, tmp_path: Path, screen: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    given = game(model="wgan-gp", data="two-moons", precision="64", options={"n_critic": 2})
    train(given, tmp_path / "one", console=screen)
    arguments = (
        "train wgan-gp --data two-moons --precision 64 --devices 2 --accelerator cpu --max-steps 4 "
        "--batch-size 8 --learning-rate 1e-3 --set width=4 --set n_critic=2"
    )
    subprocess.run(
        [sys.executable, "-m", "deepgen_ext.cli", *arguments.split(), "--out", tmp_path / "two"],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        timeout=120,
    )
    one, two = (
        checkpoint.load(tmp_path / name / "checkpoint.pt")["parameters"] for name in ("one", "two")
    )
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-9, atol=1e-12)


def test_held_out_gap() -> None:
    """Of a critic that is known: E of the first coordinate."""
    model = GAN((2,), width=4)
    model.critic.forward = lambda x: x[:, 0]
    model.generator.forward = lambda z, labels=None: torch.full((len(z), 2), 0.25)
    assert held_out_gap(model, [torch.full((5, 2), 1.0)], 0) == pytest.approx(0.75)


def test_one_sentence_for_each_mistake(game: Game, tmp_path: Path, screen: Console) -> None:
    out = tmp_path / "run"
    train(game(max_steps=1), out, console=screen)
    common = {"split": "test", "seed": 0, "picture": None, "device": "cpu"}
    with pytest.raises(RecipeError, match="gan is an adversarial model.* has no likelihood"):
        evaluate_run(out, data_name=None, **common)
    with pytest.raises(RecipeError, match="translate is for cyclegan, and .* holds a gan"):
        translate_run(
            out, direction="a-to-b", n=3, data_name=None, out=tmp_path / "t.png", device="cpu"
        )
    for changes, words in (
        ({"data_b": "digits"}, "--data-b is the other domain of cyclegan: gan has one"),
        ({"options": {"n_critic": 0}}, "n_critic: expected an integer of 1 or more, got 0"),
        ({"model": "wgan-gp", "options": {"penalty": -1.0}}, "penalty: expected 0 or more"),
        ({"model": "cyclegan", "options": {"buffer": 4}}, "larger than the buffer .* buffer=8"),
        ({"model": "cyclegan", "devices": 2}, "--devices: cyclegan trains on one"),
        ({"model": "cyclegan", "data": "two-moons"}, "'two-moons' holds vectors"),
    ):
        with pytest.raises(RecipeError, match=words):
            train(game(**changes), tmp_path / "other", console=screen)
    assert not (tmp_path / "other").exists()


def test_translations_of_a_run(game: Game, tmp_path: Path, screen: Console) -> None:
    out = tmp_path / "run"
    given = game(model="cyclegan", data="digits:3", data_b="digits:8", max_steps=2)
    train(given, out, console=screen)
    assert (out / "samples-000002.png").exists()
    common = {"n": 3, "data_name": None, "device": "cpu"}
    for direction in ("a-to-b", "b-to-a"):
        path = tmp_path / f"{direction}.png"
        error = translate_run(out, direction=direction, out=path, **common)
        assert 0 < error < 1
        assert path.exists()
    with pytest.raises(RecipeError, match="--direction must be a-to-b or b-to-a, got 'c'"):
        translate_run(out, direction="c", out=tmp_path / "t.png", **common)
    with pytest.raises(RecipeError, match="translates images of shape"):
        translate_run(
            out, direction="a-to-b", n=3, data_name="two-moons", out=tmp_path / "t", device="cpu"
        )
    with pytest.raises(RecipeError, match="draws no samples, it translates: deepgen translate"):
        sample_run(out, n=3, temperature=1.0, seed=0, out=tmp_path / "s.png", device="cpu")

"""Autoregressive models through the command line: trained, sampled in three ways, completing images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer", reason='needs pip install "deepgen_ext[recipes]"')

from PIL import Image
from rich.console import Console
from typer.testing import CliRunner, Result

from deepgen_ext import cli
from deepgen_ext.recipes import RecipeError, data
from deepgen_ext.recipes.completion import complete_run
from deepgen_ext.recipes.trained import sample_run

SMALL = ("layers=2", "channels=6", "kernel_size=3")


def _run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "80", "TERM": "dumb"}).invoke(
        cli.app, [str(argument) for argument in arguments]
    )


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    options = [word for option in SMALL for word in ("--set", option)]
    result = _run(
        "train", "pixelcnn", "--data", "digits", "--out", out, "--max-steps", 30, *options
    )
    assert result.exit_code == 0, result.output
    return out


def test_a_run_is_scored_exactly(run_folder: Path) -> None:
    result = _run("evaluate", run_folder)
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    assert "the model is one of levels, and the likelihood exact" in words
    assert "none: the model has no latents" in words
    assert (run_folder / "samples-000030.png").exists()


def test_each_method_draws_the_same(run_folder: Path, tmp_path: Path) -> None:
    drawn = {}
    for method in ("incremental", "jacobi", "naive"):
        out = tmp_path / f"{method}.npy"
        result = _run("sample", run_folder, "--n", 3, "--method", method, "--out", out)
        assert result.exit_code == 0, result.output
        drawn[method] = np.load(out)
    assert drawn["naive"].dtype == np.uint8
    assert drawn["naive"].shape == (3, 1, 8, 8)
    assert drawn["naive"].max() > 4
    assert np.array_equal(drawn["incremental"], drawn["naive"])
    assert np.array_equal(drawn["jacobi"], drawn["naive"])


def test_completions_keep_what_is_given(run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.npy"
    result = _run("complete", run_folder, "--rows", 3, "--n", 4, "--completions", 2, "--out", out)
    assert result.exit_code == 0, result.output
    drawn, test = np.load(out), data.load("digits").test[:4].numpy()
    assert drawn.shape == (4, 2, 1, 8, 8)
    for k in range(2):
        assert np.array_equal(drawn[:, k, :, :3], test[:, :, :3])
    assert not np.array_equal(drawn[:, 0], drawn[:, 1])
    # A picture has the image, the given part and the completions in a row.
    result = _run("complete", run_folder, "--n", 4, "--completions", 2, "--out", tmp_path / "c.png")
    assert result.exit_code == 0, result.output
    picture = np.asarray(Image.open(tmp_path / "c.png"))
    factor = picture.shape[0] / (4 * 9 + 1)
    assert picture.shape[:2] == (int(37 * factor), int(37 * factor))
    tiles = [
        picture[int(factor * (1 + 9 * k)) :, int(factor * (1 + 9 * c)) :] for k, c in ((0, 1),)
    ]
    half = tiles[0][: int(8 * factor), : int(8 * factor)][int(4 * factor) :]
    assert (half == half[0, 0]).all()  # grey where nothing was given


def test_a_bar_over_rows(run_folder: Path, tmp_path: Path) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80)
    arguments = {"temperature": 1.0, "seed": 0, "device": "cpu", "console": console}
    sample_run(run_folder, n=300, out=tmp_path / "x.png", **arguments)
    assert "row 16/16" in screen.getvalue()  # two chunks of eight rows


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("complete", "--rows", 8), "--rows must be from 0 to 7"),
        (("complete", "--method", "fast"), "--method must be one of incremental, jacobi, naive"),
        (("sample", "--method", "fast"), "--method must be one of"),
        (("complete", "--data", "two-moons"), "was trained on images of shape"),
        (("complete", "--out", "x.gif"), "expected a name that ends in .png or .npy"),
        (("evaluate", "--picture", "x.png"), "--picture shows reconstructions"),
    ],
)
def test_mistakes(run_folder: Path, arguments: tuple, words: str) -> None:
    command, *rest = arguments
    result = _run(command, run_folder, *rest)
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())


def test_a_flow_completes_nothing(tmp_path: Path) -> None:
    options = ("--set", "levels=1", "--set", "steps=1", "--set", "hidden_channels=4")
    arguments = ("--data", "digits", "--out", tmp_path / "run", "--max-steps", 1)
    assert _run("train", "glow", *arguments, *options).exit_code == 0
    with pytest.raises(
        RecipeError, match="only an autoregressive model completes images, not glow"
    ):
        complete_run(
            tmp_path / "run",
            rows=None,
            n=1,
            completions=1,
            temperature=1.0,
            seed=0,
            out=tmp_path / "x.png",
            device="cpu",
        )
    result = _run("sample", tmp_path / "run", "--method", "naive", "--out", tmp_path / "x.png")
    assert "glow has one way" in " ".join(result.output.split())

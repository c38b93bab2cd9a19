"""Models with levels of latents in the recipes: resumed runs, what commands say and draw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner, Result

from deepgen_ext import cli
from deepgen_ext.recipes import checkpoint
from deepgen_ext.recipes.run import Settings
from deepgen_ext.recipes.train import train

LADDER = {"channels": 6, "prior_channels": 6, "prior_layers": 1}
PIXELS = {"pixel_layers": 1, "pixel_channels": 6, "pixel_kernel_size": 3}
OPTIONS = {
    "hierarchical-vae": {"latent_channels": [2, 1], "kl_warmup": 6, "free_bits": 0.1, **LADDER},
    "pixelvae": {"latent_features": 3, "grid_channels": 1, **LADDER, **PIXELS},
    "vlae": {"latent_features": 3, "hidden_features": [8], "prior_hidden": 8, "pixel_channels": 6},
}


def _run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "80", "TERM": "dumb"}).invoke(
        cli.app, [str(argument) for argument in arguments]
    )


@pytest.fixture(scope="module", params=OPTIONS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / request.param
    options = [f"{key}={value}" for key, value in OPTIONS[request.param].items()]
    sets = [word for option in options for word in ("--set", option)]
    result = _run(
        *("train", request.param, "--data", "digits", "--out", out, "--max-steps", 12),
        *("--accelerator", "cpu", *sets),
    )
    assert result.exit_code == 0, result.output
    assert (out / "samples-000012.png").exists()
    return out


@pytest.mark.parametrize("model", OPTIONS)
def test_resumed_is_bitwise_the_run_at_once(
    tiny: Callable[..., Settings], tmp_path: Path, screen: Console, model: str
) -> None:
    def run(name: str, steps: int, resume: bool = False) -> None:
        settings = tiny(model=model, options=OPTIONS[model], max_steps=steps, log_every=1)
        train(settings, tmp_path / name, resume=resume, console=screen)

    run("once", 6)
    run("twice", 3)
    run("twice", 6, resume=True)
    once, twice = (checkpoint.load(tmp_path / name / "checkpoint.pt") for name in ("once", "twice"))
    assert all(
        (value == twice["parameters"][key]).all() for key, value in once["parameters"].items()
    )
    rows = [
        (tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("once", "twice")
    ]
    assert [[row.split(",")[2] for row in run] for run in rows][0][1:] == [
        row.split(",")[2] for row in rows[1]
    ][1:]


def test_evaluate(folder: Path) -> None:
    result = _run("evaluate", folder, "--k", 5, "--images", 20)
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    assert "-ELBO, in expectation an upper bound" in words
    assert "-ln p(x) from 5 importance samples an image" in words
    assert ("KL by level" in words) == (folder.name != "vlae")
    if folder.name == "pixelvae":
        assert "of 3 x 1x1," in words
        assert "of 1 x 2x2 (nats an image, the top one first)" in words
        assert "the decoder's draw" in words


def test_samples(folder: Path, tmp_path: Path) -> None:
    result = _run("sample", folder, "--n", 5, "--out", tmp_path / "x.npy")
    assert result.exit_code == 0, result.output
    assert np.load(tmp_path / "x.npy").shape == (5, 1, 8, 8)
    mean = _run("sample", folder, "--n", 5, "--mean", "--out", tmp_path / "m.npy")
    if folder.name == "hierarchical-vae":
        assert mean.exit_code == 0, mean.output
    else:
        assert mean.exit_code == 2
        assert "draws its pixels one after the other" in " ".join(mean.stderr.split())


def test_pictures_of_latents(folder: Path, tmp_path: Path) -> None:
    for kind, rows, columns in (
        ("traversal", 4, 4),
        ("interpolations", 8, 6),
        ("reconstructions", 2, 4),
    ):
        out = tmp_path / f"{kind}.png"
        result = _run("latents", folder, "--kind", kind, "--n", 4, "--out", out)
        if kind == "traversal" and folder.name != "pixelvae":
            assert result.exit_code == 2
            assert "try --kind interpolations" in " ".join(result.stderr.split())
            continue
        assert result.exit_code == 0, result.output
        height, width = np.asarray(Image.open(out)).shape
        assert height * (9 * columns + 1) == width * (9 * rows + 1)


def test_resampled(folder: Path, tmp_path: Path) -> None:
    """In each row the first image stays; with the pixels alone redrawn the rest is like it."""
    out = tmp_path / "again.png"
    for options in ((), ("--test",)):
        result = _run("resample", folder, "--n", 3, "--redraws", 2, "--out", out, *options)
        if folder.name == "vlae":
            assert result.exit_code == 2
            assert "not vlae" in " ".join(result.stderr.split())
            return
        assert result.exit_code == 0, result.output
        finest = "4x4" if folder.name == "hierarchical-vae" else "2x2"
        names = ["again-pixels.png", f"again-{finest}-pixels.png"]
        pictures = [np.asarray(Image.open(tmp_path / name)) for name in names]
        factor = pictures[0].shape[0] // 28
        tiles = [picture[::factor, ::factor] for picture in pictures]
        assert tiles[0].shape == (28, 28)
        assert np.array_equal(tiles[0][:, :9], tiles[1][:, :9])
        assert not np.array_equal(tiles[0][:, 9:], tiles[1][:, 9:])


@pytest.mark.parametrize("command", ["resample"])
def test_help_fits_eighty_columns(command: str) -> None:
    result = _run(command, "--help")
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 80
    assert "…" not in result.output


def test_sides_that_the_levels_do_not_divide(tmp_path: Path) -> None:
    options = ("--set", "latent_channels=(1,1,1,1)")
    result = _run(
        "train", "hierarchical-vae", "--data", "digits", "--out", tmp_path / "x", *options
    )
    assert result.exit_code == 2
    assert "8x8 is not divisible by 16" in " ".join(result.stderr.split())

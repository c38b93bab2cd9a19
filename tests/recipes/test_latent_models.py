"""VAE and IWAE in the recipes: resumed runs, what `evaluate` says, their pictures."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner, Result

from deepgen_ext import cli
from deepgen_ext.models import IWAE, VAE
from deepgen_ext.recipes import RecipeError, checkpoint, registry
from deepgen_ext.recipes.latent_pictures import draw_latents, true_posterior
from deepgen_ext.recipes.metrics import evaluate, importance_estimate
from deepgen_ext.recipes.run import Settings
from deepgen_ext.recipes.train import _latent_noise, train
from tests.latent_checks import build, grid, images, log_likelihood

OPTIONS = {"latent_features": 2, "hidden_features": [16]}


def _run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "80", "TERM": "dumb"}).invoke(
        cli.app, [str(argument) for argument in arguments]
    )


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    result = _run(
        *("train", "iwae", "--data", "digits", "--out", out, "--max-steps", 30),
        *("--set", "latent_features=2", "--set", "hidden_features=(16,)", "--set", "k=3"),
        *("--learning-rate", 0.01, "--accelerator", "cpu"),
    )
    assert result.exit_code == 0, result.output
    assert "nats" in result.output
    return out


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("vae", {"posterior": "iaf"}),
        ("iwae", {"k": 3, "gradient": "resampled"}),
        ("iwae", {"k": 2, "gradient": "dreg", "decoder": "discretized_logistic"}),
    ],
)
def test_resumed_is_bitwise_the_run_at_once(
    tiny: Callable[..., Settings],
    tmp_path: Path,
    screen: Console,
    model: str,
    options: dict,
) -> None:
    def run(name: str, steps: int, resume: bool = False) -> None:
        torch.manual_seed(len(name) + steps)  # whatever the process did in between
        settings = tiny(model=model, options=OPTIONS | options, max_steps=steps, log_every=1)
        train(settings, tmp_path / name, resume=resume, console=screen)

    run("once", 8)
    run("twice", 4)
    run("twice", 8, resume=True)
    once, twice = (checkpoint.load(tmp_path / name / "checkpoint.pt") for name in ("once", "twice"))
    for key, value in once["parameters"].items():
        assert torch.equal(value, twice["parameters"][key]), key
    losses = []
    for name in ("once", "twice"):
        with open(tmp_path / name / "metrics.csv", newline="") as file:
            losses.append([row["train"] for row in csv.DictReader(file)])
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 8


def test_processes_share_the_noise_of_the_latents(tiny: Callable[..., Settings]) -> None:
    settings, net = tiny(batch_size=6), build(IWAE, k=4)
    cpu = torch.device("cpu")
    whole = _latent_noise(settings, net, 3, slice(None), cpu)
    assert whole.shape == (6, 4, 2)
    parts = [_latent_noise(settings, net, 3, slice(i, i + 3), cpu) for i in (0, 3)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(_latent_noise(settings, net, 4, slice(None), cpu), whole)
    levels, pixels = images(6)
    loss = registry.latent_step(net, levels, (pixels, whole, 1.0))
    assert torch.equal(loss, net.loss(levels, noise=pixels, eps=whole))


def test_scores_are_the_models_own() -> None:
    """Against quadrature, of the same binarisation."""
    model = build(VAE)
    levels, _ = images(40)
    bound = evaluate(model, levels, n_levels=3)
    seen = []
    estimate = importance_estimate(model, levels, k=2000, on_image=seen.append)
    assert (bound.unit, estimate.unit, bound.n, estimate.n) == ("nats", "nats", 40, 40)
    assert "level / 2" in bound.dequantisation
    assert seen == [16, 32, 40]
    noise = torch.rand(levels.shape, generator=_generator_of_evaluate())
    exact = -log_likelihood(model, model.target(levels, noise.double()))
    assert estimate.mean == pytest.approx(exact.mean().item(), abs=0.02)
    assert bound.mean > estimate.mean + 0.05
    assert evaluate(model, levels, n_levels=3) == bound
    assert evaluate(model, levels, n_levels=3, seed=1).mean != bound.mean


def _generator_of_evaluate() -> torch.Generator:
    from deepgen_ext.recipes.batches import generator_for

    return generator_for(0, "evaluate", 0)


def test_evaluate_says_what_it_measured(run_folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "pair.png"
    result = _run("evaluate", run_folder, "--k", 20, "--images", 30, "--picture", picture)
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    for expected in (
        "-F_3, the bound of 3 weighted draws, in expectation an upper bound of -ln p(x)",
        "nats, k=20",
        "-ln p(x) from 20 importance samples an image",
        "30 samples",
        "on with probability level / 16",
    ):
        assert expected in words
    assert max(map(len, result.output.splitlines())) <= 80
    assert np.asarray(Image.open(picture)).std() > 10


def test_samples_are_draws_or_means(run_folder: Path, tmp_path: Path) -> None:
    levels = {}
    for name, options in (("draws", ()), ("means", ("--mean",))):
        out = tmp_path / f"{name}.npy"
        assert _run("sample", run_folder, "--n", 20, "--out", out, *options).exit_code == 0
        levels[name] = np.load(out)
    assert set(np.unique(levels["draws"])) == {0, 16}
    assert len(np.unique(levels["means"])) > 5


def test_pictures_of_latents(run_folder: Path, tmp_path: Path) -> None:
    pictures = {}
    for kind, rows, columns in (
        ("traversal", 5, 5),
        ("interpolations", 8, 7),
        ("reconstructions", 2, 5),
    ):
        out = tmp_path / f"{kind}.png"
        result = _run("latents", run_folder, "--kind", kind, "--n", 5, "--out", out)
        assert result.exit_code == 0, result.output
        pictures[kind] = np.asarray(Image.open(out))
        height, width = pictures[kind].shape
        assert height * (9 * columns + 1) == width * (9 * rows + 1)
    swapped = tmp_path / "swapped.png"
    for dims in ((0, 1), (1, 0)):
        draw_latents(
            run_folder, kind="traversal", n=5, seed=0, out=swapped, device="cpu", dims=dims
        )
        pictures[dims] = np.asarray(Image.open(swapped))
    assert not np.array_equal(pictures[0, 1], pictures[1, 0])
    factor = (pictures[0, 1].shape[0]) // 46
    tiles = [picture[::factor, ::factor][10:18, 1:9] for picture in (pictures[0, 1],)]
    other = pictures[1, 0][::factor, ::factor][1:9, 10:18]
    assert np.array_equal(tiles[0], other)  # the first latent goes down, the second right


def test_true_posterior_adds_up_and_is_found_by_the_model() -> None:
    model = build(VAE)
    levels, noise = images(3)
    target = model.target(levels, noise)
    z, log_area = grid()
    with torch.no_grad():
        log_p = true_posterior(model, target, z, chunk=777)
        exact = model.log_likelihood_of_latents(target, z.expand(3, -1, 2))
    exact = exact - 0.5 * z.square().sum(1) - torch.log(torch.tensor(2 * torch.pi))
    expected = exact - log_likelihood(model, target)[:, None] + log_area
    torch.testing.assert_close(log_p, expected)


def test_picture_of_posteriors(run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "posteriors.png"
    result = _run("posteriors", run_folder, run_folder, "--n", 2, "--out", out)
    assert result.exit_code == 0, result.output
    pixels = np.asarray(Image.open(out).convert("RGB")).astype(int)
    assert pixels.shape[1] == pytest.approx(1.5 * pixels.shape[0], abs=2)
    contours = (pixels[..., 2] > 200) & (pixels[..., 0] < 60)
    upper, lower = np.array_split(contours, 2)
    assert upper.sum() > 50
    assert lower.sum() > 50


def test_mistakes(run_folder: Path, tmp_path: Path) -> None:
    glow = tmp_path / "glow"
    tiny_glow = ("--set", "levels=1", "--set", "steps=1", "--set", "hidden_channels=8")
    arguments = ("--data", "digits", "--out", glow, "--max-steps", 1, "--accelerator", "cpu")
    assert _run("train", "glow", *arguments, *tiny_glow).exit_code == 0
    four = tmp_path / "four"
    options = ("--set", "latent_features=4", "--set", "hidden_features=(8,)")
    arguments = ("--data", "digits", "--out", four, "--max-steps", 1, "--accelerator", "cpu")
    assert _run("train", "vae", *arguments, *options).exit_code == 0
    for command, words in (
        (("latents", glow), "only a model with an encoder has such pictures, not glow"),
        (("posteriors", run_folder, four), "has 4 latents, and a map has 2"),
        (("latents", run_folder, "--kind", "all"), "--kind must be one of traversal"),
        (("latents", run_folder, "--dims", 0, 2), "--dims must be two of the latents 0 to 1"),
        (("latents", run_folder, "--out", "x.npy"), "expected a name that ends in .png"),
        (("sample", glow, "--mean"), "--mean is of models with a decoder of pixels, not glow"),
        (("evaluate", glow, "--k", 5), "--k is of latent-variable models: glow"),
        (
            ("train", "vae", "--data", "digits", "--out", tmp_path / "x", "--set", "posterior=maf"),
            "posterior: expected one of gaussian, planar, radial, iaf, realnvp; got 'maf'",
        ),
        (("train", "vae", "--data", "two-moons", "--out", tmp_path / "x"), "a model of images"),
    ):
        result = _run(*command)
        assert result.exit_code == 2, result.output
        assert words in " ".join(result.stderr.split())


@pytest.mark.parametrize("command", ["latents", "posteriors"])
def test_help_fits_eighty_columns(command: str) -> None:
    result = _run(command, "--help")
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 80
    assert "…" not in result.output


def test_a_picture_that_cannot_be_written(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "x.png"
    with pytest.raises(RecipeError, match="cannot be written"):
        draw_latents(run_folder, kind="traversal", n=2, seed=0, out=out, device="cpu")

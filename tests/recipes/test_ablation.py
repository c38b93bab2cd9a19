"""The ablation: its rows are the paper's, each is trained by its own losses, stopped tables go on."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console

pytest.importorskip("torchmetrics", reason='needs pip install "deepgen_ext[metrics]"')

from deepgen_ext.models.latent.flow_vae import ABLATION
from deepgen_ext.recipes import (
    RecipeError,
    ablation,
    ablation_fits,
    adversarial,
    checkpoint,
    registry,
    train,
)
from deepgen_ext.recipes.ablation import COLUMNS, fill_table, prepare_feature_network, read_table
from deepgen_ext.recipes.ablation_fits import Fit, Measured, build, fit_model, plan_fits
from deepgen_ext.recipes.adversarial import held_out_gap
from deepgen_ext.recipes.data import load
from deepgen_ext.recipes.feature_network import save_feature_network, train_classifier
from deepgen_ext.recipes.run import Settings, load_model

TINY = {"hidden_features": (16,), "flow_depth": 1, "flow_channels": 4, "critic_channels": 8}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "net.pt"
    save_feature_network(path, train_classifier("digits", features=6, channels=2, steps=20))
    return path


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation_fits, "SMALL", ablation_fits.SMALL | TINY)


def _plan(network: Path, rows: list[str] | None = None, **changes: int) -> list[Fit]:
    numbers = {"seeds": 1, "steps": 2, "batch_size": 8, "n_generated": 20} | changes
    return plan_fits("digits", rows, feature_network=network, **numbers)


def _made_up(fit: Fit, bits: float, fid: float, network: str = "classifier of digits") -> Measured:
    return Measured(fit, bits, 5.0, fid, 0.5, 0.25, 1497, network, 60.0)


def _console() -> Console:
    return Console(file=io.StringIO(), width=100)


def test_rows_differ_in_nothing_but_the_ablation(tiny: None) -> None:
    data = load("digits")
    models = {row: build(row, data, 0) for row in ABLATION}
    found = {
        row: (model.likelihood, model.critic is not None, model.flow is not None)
        for row, model in models.items()
    }
    assert found == {
        "GAN": (False, True, False),
        "VAE": (True, False, False),
        "V-ADE": (True, False, True),
        "AV-GDE": (True, True, False),
        "AV-ADE": (True, True, True),
    }
    for part in ("encoder", "posterior"):
        sizes = [
            sum(p.numel() for p in getattr(model, part).parameters()) for model in models.values()
        ]
        assert len(set(sizes)) == 1
    again, other = build("VAE", data, 0), build("VAE", data, 1)
    assert torch.equal(again.decoder.output.weight, models["VAE"].decoder.output.weight)
    assert not torch.equal(other.decoder.output.weight, models["VAE"].decoder.output.weight)


@pytest.mark.parametrize("row", ["GAN", "V-ADE", "AV-ADE"])
def test_a_fit(
    tiny: None, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str
) -> None:
    """Which losses are minimised how often, and that a GAN's generator is left as its game made it."""
    calls: list[str] = []
    generators = []

    class Watched(ablation_fits.FlowVAE):
        def loss(self, *args, **kwargs):
            calls.append("loss")
            generators.append(self.decoder.output.weight.detach().clone())
            return super().loss(*args, **kwargs)

        def critic_loss(self, *args, **kwargs):
            calls.append("critic")
            return super().critic_loss(*args, **kwargs)

        def generator_loss(self, *args, **kwargs):
            calls.append("generator")
            return super().generator_loss(*args, **kwargs)

    monkeypatch.setattr(ablation_fits, "FlowVAE", Watched)
    (fit,) = _plan(network, [row])
    measured = fit_model(fit, tmp_path)
    game = ["critic", "generator"]
    assert (
        calls
        == {
            "GAN": 2 * game + 2 * ["loss"],
            "V-ADE": 2 * ["loss"],
            "AV-ADE": 2 * [*game, "loss"],
        }[row]
    )
    assert torch.equal(*generators) == (row == "GAN")
    assert math.isfinite(measured.bits_per_dim)
    assert measured.n_real == 1497
    assert measured.network.startswith("classifier of digits, 6 features, accuracy")
    assert (tmp_path / f"{row.lower()}-0.png").stat().st_size > 1000
    monkeypatch.undo()
    monkeypatch.setattr(ablation_fits, "SMALL", ablation_fits.SMALL | TINY)
    again = fit_model(fit)
    assert (again.bits_per_dim, again.frechet) == (measured.bits_per_dim, measured.frechet)


def test_a_table_that_was_stopped_goes_on(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = _plan(network, ["VAE", "AV-ADE"], seeds=2)
    words = ablation_fits.score_held_out(fits[0]).network
    run: list[Fit] = []

    def fitted(fit: Fit, pictures: Path | None) -> Measured:
        if len(run) == 3:
            raise KeyboardInterrupt
        run.append(fit)
        return _made_up(fit, 3 + fit.seed, 10 * (1 + len(run)), words)

    monkeypatch.setattr(ablation, "fit_model", fitted)
    files = [tmp_path / "new" / "t.csv", tmp_path / "t.md"]
    console = _console()

    def fill() -> None:
        fill_table(fits, files, jobs=1, pictures=None, console=console)

    with pytest.raises(KeyboardInterrupt):
        fill()
    assert run == fits[:3]
    del run[:]
    fill()
    assert run == fits[3:]
    text = console.file.getvalue()
    assert "3 of 4 fits are done already" in text
    assert [m.fit for m in read_table(files[0])] == fits
    with open(files[0]) as file:
        assert list(csv.DictReader(file))[0].keys() == set(COLUMNS)
    table = files[1].read_text()
    assert "| VAE | 3.50 ± 0.71 | 5.00 ± 0.00 | 30.00 ± 14.14 |" in table
    assert "| test images |  |" in table
    for part in (words, "20 generated images against 1,497", "300 of the test split", "2 seeds"):
        assert part in table
    other = tmp_path / "other.pt"
    save_feature_network(other, train_classifier("digits", features=5, channels=2, steps=1))
    fits = _plan(other, ["VAE"])
    with pytest.raises(RecipeError, match="scores are of another feature network"):
        fill()
    files[0].write_text("a,b\n1,2\n")
    with pytest.raises(RecipeError, match="not a table of this ablation; expected row,data"):
        fill()


def test_a_gans_bits_are_in_brackets(network: Path, tmp_path: Path, monkeypatch) -> None:
    (fit,) = _plan(network, ["GAN"])
    words = ablation_fits.score_held_out(fit).network
    monkeypatch.setattr(ablation, "fit_model", lambda fit, pictures: _made_up(fit, 7, 31, words))
    fill_table([fit], [tmp_path / "t.md"], jobs=1, pictures=None, console=_console())
    assert "| GAN | [7.00] | 5.00 | 31.00 | 0.50 | 0.25 |" in (tmp_path / "t.md").read_text()


def test_mistakes(network: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--row must be one of GAN, VAE, V-ADE.*got 'BIGAN'"):
        _plan(network, ["BIGAN"])
    with pytest.raises(RecipeError, match="the ablation is of images"):
        plan_fits(
            "two-moons",
            None,
            feature_network=network,
            seeds=1,
            steps=1,
            batch_size=1,
            n_generated=1,
        )
    before = network.read_bytes()
    prepare_feature_network(network, "digits", _console())
    assert network.read_bytes() == before


@pytest.mark.parametrize("model", ["v-ade", "av-ade"])
def test_a_resumed_run_is_bitwise_the_run_at_once(tmp_path: Path, model: str) -> None:
    options = {"hidden_features": [16], "flow_depth": 1, "flow_channels": 4}
    if model == "av-ade":
        options |= {"critic": "mlp", "critic_channels": 8, "r1": 0.5}
    given = {"model": model, "data": "digits", "options": options, "batch_size": 8}
    given |= {"warmup_steps": 0, "accelerator": "cpu"}
    recipe = adversarial if registry.recipe(model).adversarial else train

    def run(name: str, steps: int, resume: bool = False) -> None:
        torch.manual_seed(len(name) + steps)  # whatever the process did in between
        settings = Settings(**given, max_steps=steps, log_every=1)
        recipe.train(settings, tmp_path / name, resume=resume, console=_console())

    run("once", 4)
    run("twice", 2)
    run("twice", 4, resume=True)
    once, twice = (checkpoint.load(tmp_path / name / "checkpoint.pt") for name in ("once", "twice"))
    for key, value in once["parameters"].items():
        assert torch.equal(value, twice["parameters"][key]), key
    assert once["step"] == twice["step"] == 4
    assert (tmp_path / "once" / "samples-000004.png").stat().st_size > 1000
    net, *_ = load_model(tmp_path / "once")
    rebuilt = registry.build(model, (1, 8, 8), 17, options)
    rebuilt.load_state_dict(net.state_dict())
    levels = load("digits").test[:16]
    noise = net.draw_noise(16, torch.Generator().manual_seed(0))
    losses = ["loss"] if model == "v-ade" else ["critic_loss", "generator_loss"]
    for name in losses:
        values = []
        for found in (net, rebuilt.eval()):
            if name == "loss":
                value = found.loss(levels, noise=noise["dequantisation"], eps=noise["posterior"])
            else:
                value = getattr(found, name)(levels, noise=noise)
            values.append(value)
        assert torch.equal(*values)
    if model == "av-ade":
        with open(tmp_path / "once" / "metrics.csv") as file:
            rows = list(csv.DictReader(file))
        gap = held_out_gap(net, [load("digits").test[:512]], 0)
        assert float(rows[-1]["test_gap"]) == pytest.approx(gap, rel=1e-4)

"""The loop: it learns, it resumes exactly, and it stops with a sentence when something is wrong."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from rich.console import Console

from deepgen_ext import ops
from deepgen_ext.nn.transforms import ActNorm
from deepgen_ext.recipes import RecipeError, checkpoint, registry
from deepgen_ext.recipes.energies import divergences, sample_energy
from deepgen_ext.recipes.run import Settings, load_model, read_config, settings_for
from deepgen_ext.recipes.train import train

Tiny = Callable[..., Settings]


def _parameters(out: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(out / "checkpoint.pt")["parameters"]


def _rows(out: Path) -> list[dict[str, str]]:
    with open(out / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def _same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_what_a_run_leaves(tiny: Tiny, tmp_path: Path, screen: Console) -> None:
    out = tmp_path / "a" / "run"
    train(tiny(max_steps=60, sample_every=30, learning_rate=1e-2), out, console=screen)
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoint.pt",
        "config.json",
        "metrics.csv",
        "samples-000030.png",
        "samples-000060.png",
    ]
    rows = _rows(out)
    assert [int(row["step"]) for row in rows] == list(range(5, 61, 5))
    assert [row["step"] for row in rows if row["test"]] == ["30", "60"]
    losses = [float(row["train"]) for row in rows]
    assert sum(losses[-3:]) / 3 < losses[0] - 0.1  # bits/dim fall
    assert float(rows[0]["learning_rate"]) == pytest.approx(
        1e-2
    )  # the warm-up of 5 steps is over after step 5
    assert float(rows[0]["epoch"]) == pytest.approx(5 * 16 / 1497, rel=1e-3)
    config = read_config(out)
    assert config["data"] == {"shape": [1, 8, 8], "n_levels": 17, "train": 1497, "test": 300}
    assert config["versions"]["torch"] == torch.__version__
    assert "step 60/60" in screen.file.getvalue()
    assert "bits/dim" in screen.file.getvalue()


def test_warm_up_is_linear(tiny: Tiny, tmp_path: Path, screen: Console) -> None:
    train(
        tiny(max_steps=6, warmup_steps=4, log_every=1, learning_rate=8e-4), tmp_path, console=screen
    )
    rates = [float(row["learning_rate"]) for row in _rows(tmp_path)]
    assert rates == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 8e-4, 8e-4])


def test_resumed_is_bitwise_the_run_at_once(tiny: Tiny, tmp_path: Path, screen: Console) -> None:
    train(tiny(max_steps=20), tmp_path / "once", console=screen)
    train(tiny(max_steps=10), tmp_path / "twice", console=screen)
    assert not _same(_parameters(tmp_path / "once"), _parameters(tmp_path / "twice"))
    torch.manual_seed(987)  # whatever the process did in between
    train(tiny(max_steps=20), tmp_path / "twice", resume=True, console=screen)
    once, twice = (checkpoint.load(tmp_path / name / "checkpoint.pt") for name in ("once", "twice"))
    assert _same(once["parameters"], twice["parameters"])
    for index, moments in once["optimizer"]["state"].items():
        assert _same(moments, twice["optimizer"]["state"][index])
    assert torch.equal(once["random"][0]["torch"], twice["random"][0]["torch"])
    timeless = [
        [
            {key: value for key, value in row.items() if key != "steps_per_second"}
            for row in _rows(tmp_path / name)
        ]
        for name in ("once", "twice")
    ]
    timeless[1][1]["test"] = ""  # the shorter run ended there, so it was scored
    assert timeless[0] == timeless[1]


def test_a_model_that_draws_from_the_global_generator_resumes_exactly(
    tiny: Tiny, tmp_path: Path, screen: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noisy_step(model: Any, batch: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return model.loss(batch, noise=torch.rand(noise.shape))  # as dropout would

    noisy = dataclasses.replace(registry.RECIPES["glow"], step=noisy_step)
    monkeypatch.setitem(registry.RECIPES, "glow", noisy)
    train(tiny(max_steps=8), tmp_path / "once", console=screen)
    train(tiny(max_steps=4), tmp_path / "twice", console=screen)
    torch.manual_seed(987)
    train(tiny(max_steps=8), tmp_path / "twice", resume=True, console=screen)
    assert _same(_parameters(tmp_path / "once"), _parameters(tmp_path / "twice"))


@pytest.mark.parametrize("model", ["residual-flow", "iresnet"])
@pytest.mark.parametrize("dataset", ["digits", "two-moons"])
def test_estimated_log_dets_resume_exactly(
    tmp_path: Path, screen: Console, tiny: Tiny, model: str, dataset: str
) -> None:
    """Their probes come from the global generator, which the scores and pictures must not move."""
    given = tiny(model=model, data=dataset, options={"blocks": 1, "hidden": 4})
    train(dataclasses.replace(given, max_steps=4), tmp_path / "once", console=screen)
    train(dataclasses.replace(given, max_steps=2), tmp_path / "twice", console=screen)
    torch.manual_seed(987)
    given = dataclasses.replace(given, max_steps=4)
    train(given, tmp_path / "twice", resume=True, console=screen)
    assert _same(_parameters(tmp_path / "once"), _parameters(tmp_path / "twice"))


def test_the_seed_decides(tiny: Tiny, tmp_path: Path, screen: Console) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(tiny(max_steps=3, seed=seed), tmp_path / name, console=screen)
    assert _same(_parameters(tmp_path / "a"), _parameters(tmp_path / "b"))
    assert not _same(_parameters(tmp_path / "a"), _parameters(tmp_path / "c"))


def test_rows_after_the_checkpoint_are_dropped(tiny: Tiny, tmp_path: Path, screen: Console) -> None:
    train(tiny(max_steps=10), tmp_path, console=screen)
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write(
            "15,0.1,3.0,,bits/dim,1.0,0.001,9.0\n20,0.2,2."
        )  # the process was killed in the middle of a row
    train(tiny(max_steps=20), tmp_path, resume=True, console=screen)
    assert [row["step"] for row in _rows(tmp_path)] == ["5", "10", "15", "20"]
    assert float(_rows(tmp_path)[2]["train"]) != 3.0


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_the_run(
    tiny: Tiny, tmp_path: Path, screen: Console, monkeypatch: pytest.MonkeyPatch, poison: str
) -> None:
    calls = 0

    def step(model: Any, batch: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        loss = model.loss(batch, noise=noise)
        if calls != 7:
            return loss
        if poison == "loss":
            return loss * torch.nan
        zero = sum(parameter.sum() for parameter in model.parameters()) * 0
        return loss + (zero - zero.detach()).sqrt()  # 0, with an infinite derivative

    poisoned = dataclasses.replace(registry.RECIPES["glow"], step=step)
    monkeypatch.setitem(registry.RECIPES, "glow", poisoned)
    with pytest.raises(
        RecipeError, match=r"not finite at step 7: the checkpoint of step 4 .* is whole"
    ):
        train(tiny(max_steps=20, checkpoint_every=4), tmp_path, console=screen)
    state = checkpoint.load(tmp_path / "checkpoint.pt")
    assert state["step"] == 4
    assert all(value.isfinite().all() for value in state["parameters"].values())


def test_disk_full_stops_the_run_and_keeps_the_checkpoint(
    tiny: Tiny, tmp_path: Path, screen: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoint._write
    saves = 0

    def full(file: BinaryIO, content: memoryview) -> None:
        nonlocal saves
        saves += 1
        if saves == 2:
            file.write(content[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, content)

    monkeypatch.setattr(checkpoint, "_write", full)
    with pytest.raises(
        RecipeError, match="No space left on device; the checkpoint before it is whole"
    ):
        train(tiny(max_steps=20, checkpoint_every=5), tmp_path, console=screen)
    assert checkpoint.load(tmp_path / "checkpoint.pt")["step"] == 5


def test_max_seconds_stops_early_with_a_checkpoint(
    tiny: Tiny, tmp_path: Path, screen: Console
) -> None:
    train(tiny(max_steps=10**7, max_seconds=0.5), tmp_path, console=screen)
    step = checkpoint.load(tmp_path / "checkpoint.pt")["step"]
    assert 0 < step < 10**7
    assert int(_rows(tmp_path)[-1]["step"]) == step


def test_vectors_train_with_a_loss_in_nats(tiny: Tiny, tmp_path: Path, screen: Console) -> None:
    settings = tiny(model="realnvp", data="two-moons", options={}, max_steps=5, batch_size=64)
    train(settings, tmp_path, console=screen)
    assert "nats" in screen.file.getvalue()
    assert (tmp_path / "samples-000005.png").stat().st_size > 1000


def test_an_energy_is_shown_as_its_two_divergences(
    tiny: Tiny, tmp_path: Path, screen: Console
) -> None:
    """The loss is of a tempered energy at first, and below 0: no divergence."""
    options = {"length": 4}
    settings = tiny(model="planar", data="u2", options=options, max_steps=5, batch_size=512)
    net = train(settings, tmp_path, console=screen).eval()
    (row,) = _rows(tmp_path)
    draws = sample_energy("u2", 20_000, torch.Generator().manual_seed(5))
    expected = divergences(net, "u2", draws)
    assert float(row["test"]) == pytest.approx(expected[0], abs=0.5)
    assert float(row["train"]) == pytest.approx(expected[1], abs=0.5)
    assert "by reverse KL (test: KL(p||q))" in screen.file.getvalue()
    assert load_model(tmp_path)[0](draws[:4].float())[0][0].shape == (4, 2)
    assert not any(isinstance(module, ActNorm) for module in net.modules())


def test_a_flow_for_an_energy_does_not_start_as_the_identity(
    tiny: Tiny, tmp_path: Path, screen: Console
) -> None:
    options = {"transforms": 2, "hidden_features": [8]}
    settings = tiny(model="iaf", data="u1", options=options, max_steps=1)
    net = train(settings, tmp_path, console=screen)
    assert all(net.transforms[0][i].made.layers[-1].weight.std() > 0.1 for i in (1, 3))


def test_planar_flows_take_data_where_they_lie(tiny: Tiny, tmp_path: Path, screen: Console) -> None:
    """Far from the origin a chain alone starts at 25 nats and more."""
    np.save(tmp_path / "far.npy", 5 + np.random.default_rng(0).normal(size=(200, 2)))
    settings = tiny(
        model="planar", data=str(tmp_path / "far.npy"), options={"length": 2}, max_steps=5
    )
    net = train(settings, tmp_path / "run", console=screen)
    assert float(_rows(tmp_path / "run")[-1]["test"]) < 6
    assert load_model(tmp_path / "run")[0].sample(2).shape == (2, 2)
    assert isinstance(net.transforms[0][0], ActNorm)


@pytest.mark.parametrize(
    ("precision", "parameters", "convolution"),
    [
        ("32", torch.float32, torch.float32),
        ("64", torch.float64, torch.float64),
        ("bf16-mixed", torch.float32, torch.bfloat16),
    ],
)
def test_precision_reaches_the_networks(
    tiny: Tiny,
    tmp_path: Path,
    screen: Console,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    parameters: torch.dtype,
    convolution: torch.dtype,
) -> None:
    seen = set()

    def watch(owner: Any, name: str) -> None:
        call = getattr(owner, name)

        def watched(*given: Any, **named: Any) -> torch.Tensor:
            y = call(*given, **named)
            if torch.is_grad_enabled():  # in training
                seen.add(y.dtype)
            return y

        monkeypatch.setattr(owner, name, watched)

    watch(torch.nn.Conv2d, "forward")  # under autocast
    watch(ops, "glow_conv_net")
    train(tiny(max_steps=5, precision=precision), tmp_path, console=screen)
    assert seen == {convolution}
    dtypes = {value.dtype for value in _parameters(tmp_path).values() if value.is_floating_point()}
    assert dtypes == {parameters}


def test_tensorboard(
    tiny: Tiny, tmp_path: Path, screen: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(module: str, purpose: str) -> None:
        raise RecipeError(f"{purpose} needs {module}")

    with monkeypatch.context() as patch:
        patch.setattr("deepgen_ext.recipes.progress.require", absent)
        with pytest.raises(RecipeError, match="--tensorboard needs tensorboard"):
            train(tiny(max_steps=2, tensorboard=True), tmp_path / "without", console=screen)
    pytest.importorskip("tensorboard")
    train(tiny(max_steps=5, tensorboard=True), tmp_path / "with", console=screen)
    assert any((tmp_path / "with" / "tensorboard").iterdir())


def test_load_model_refuses_what_does_not_fit(tiny: Tiny, tmp_path: Path, screen: Console) -> None:
    train(tiny(max_steps=1), tmp_path, console=screen)
    _, settings, step, shape, n_levels = load_model(tmp_path)
    assert (settings.model, step, shape, n_levels) == ("glow", 1, (1, 8, 8), 17)

    path, saved = tmp_path / "checkpoint.pt", (tmp_path / "checkpoint.pt").read_bytes()
    state = checkpoint.load(path)
    for change, message in [
        ({"model": "realnvp"}, "a checkpoint of realnvp, and this run is of glow"),
        ({"options": {"steps": 9}}, "its model has the options"),
        ({"parameters": {"weight": torch.zeros(1)}}, "its parameters do not fit glow"),
    ]:
        checkpoint.save(path, {**state, **change})
        with pytest.raises(RecipeError, match=message):
            load_model(tmp_path)
        with pytest.raises(RecipeError, match=message):
            train(tiny(max_steps=2), tmp_path, resume=True, console=screen)
    path.write_bytes(saved[: len(saved) // 2])
    with pytest.raises(RecipeError, match="truncated or damaged"):
        train(tiny(max_steps=2), tmp_path, resume=True, console=screen)
    for text in ("{", "[]", '{"settings": {}}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(RecipeError, match="config.json: damaged"):
            load_model(tmp_path)


def test_settings_of_a_resumed_run(tiny: Tiny, tmp_path: Path, screen: Console) -> None:
    given = {"model": "glow", "data": "digits"}
    with pytest.raises(RecipeError, match="no checkpoint to resume"):
        settings_for(given, tmp_path, resume=True)
    train(tiny(max_steps=1), tmp_path, console=screen)
    with pytest.raises(RecipeError, match="add --resume"):
        settings_for(given, tmp_path, resume=False)
    resumed = settings_for({"model": "glow", "max_steps": 7}, tmp_path, resume=True)
    assert resumed == tiny(max_steps=7)
    for change, message in [
        ({"seed": 5}, "--seed 0, not 5"),
        ({"data": "fashion-mnist"}, "--data digits, not fashion-mnist"),
        ({"model": "realnvp"}, "model glow, not realnvp"),
        ({"batch_size": 32}, "--batch-size 16, not 32"),
        ({"options": {"levels": 2}}, "--set levels=1 steps=1 hidden_channels=8, not levels=2"),
    ]:
        with pytest.raises(RecipeError, match=message):
            settings_for({**given, **change}, tmp_path, resume=True)


def test_a_relative_path_is_remembered_as_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.npy").write_bytes(b"")
    settings = settings_for({"model": "glow", "data": "x.npy"}, tmp_path / "run", resume=False)
    assert settings.data == str(tmp_path / "x.npy")
    assert json.loads(json.dumps(dataclasses.asdict(settings)))["data"] == settings.data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_steps": 0}, "--max-steps must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "--learning-rate must be positive"),
        ({"learning_rate": float("nan")}, "--learning-rate must be positive"),
        ({"clip_norm": -1.0}, "--clip-norm must be positive"),
        ({"seed": -1}, "--seed must not be negative"),
        ({"precision": "8"}, "--precision must be one of 32, 64, bf16-mixed, 16-mixed; got '8'"),
        ({"accelerator": "tpu"}, "--accelerator must be one of"),
        ({"devices": 3}, "--batch-size 16 .* divisible by --devices 3"),
    ],
)
def test_bad_settings(tiny: Tiny, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        tiny(**change)


def test_missing_fabric(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(module: str, purpose: str) -> None:
        raise RecipeError(f'{purpose} needs {module}: pip install "deepgen_ext[recipes]"')

    monkeypatch.setattr("deepgen_ext.recipes.processes.require", absent)
    with pytest.raises(RecipeError, match=r"deepgen_ext\[recipes\]"):
        train(tiny(), tmp_path)

"""The folder of a run: ``config.json``, ``checkpoint.pt``, ``metrics.csv``,
``samples-STEP.png``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deepgen_ext.recipes import RecipeError, checkpoint, registry
from deepgen_ext.recipes.data import Dataset, resolve
from deepgen_ext.recipes.energies import ENERGIES

__all__ = ["PRECISIONS", "Settings", "load_model", "read_config", "settings_for", "write_config"]

PRECISIONS = {"32": "32-true", "64": "64-true", "bf16-mixed": "bf16-mixed", "16-mixed": "16-mixed"}


@dataclass(frozen=True)
class Settings:
    """All that decides how a run goes. The fields up to ``precision`` decide what comes out, so a
    resumed run keeps them.
    """

    model: str
    data: str
    size: int | None = None
    data_b: str | None = None  # the other domain of a translator
    options: dict[str, Any] = field(default_factory=dict)  # of the model
    seed: int = 0
    batch_size: int = 64  # of all processes together
    learning_rate: float = 1e-3
    warmup_steps: int = 100  # the learning rate rises linearly over these
    clip_norm: float = 100.0  # of the gradient of all parameters; 1 costs 0.15 bits/dim on digits
    precision: str = "32"
    max_steps: int = 2000
    max_seconds: float | None = None
    devices: int = 1
    accelerator: str = "auto"
    log_every: int = 20
    checkpoint_every: int = 500
    sample_every: int = 500
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in (
            "batch_size",
            "max_steps",
            "devices",
            "log_every",
            "checkpoint_every",
            "sample_every",
        ):
            if getattr(self, name) < 1:
                raise RecipeError(f"{_flag(name)} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise RecipeError(f"{_flag(name)} must be positive, got {getattr(self, name)}")
        for name in ("seed", "warmup_steps"):
            if getattr(self, name) < 0:
                raise RecipeError(f"{_flag(name)} must not be negative, got {getattr(self, name)}")
        if self.precision not in PRECISIONS:
            raise RecipeError(
                f"--precision must be one of {', '.join(PRECISIONS)}; got '{self.precision}'"
            )
        if self.accelerator not in ("auto", "cpu", "cuda"):
            raise RecipeError(
                f"--accelerator must be one of auto, cpu, cuda; got '{self.accelerator}'"
            )
        if self.accelerator == "cuda" and not torch.cuda.is_available():
            raise RecipeError("--accelerator cuda: torch sees no CUDA device here")
        if self.batch_size % self.devices:
            raise RecipeError(
                f"--batch-size {self.batch_size} is the batch of all processes together: it must "
                f"be divisible by --devices {self.devices}"
            )


FIXED = (
    "model",
    "data",
    "size",
    "data_b",
    "options",
    "seed",
    "batch_size",
    "learning_rate",
    "warmup_steps",
    "clip_norm",
    "precision",
)


def _flag(name: str) -> str:
    return "--set" if name == "options" else "--" + name.replace("_", "-")


def settings_for(given: Mapping[str, Any], out: Path, *, resume: bool) -> Settings:
    """Settings from the arguments that were ``given``, over those of the run that is resumed or of
    the model's recipe.
    """
    given = {key: value for key, value in given.items() if value is not None}
    entry = registry.recipe(given["model"])
    given["data"] = resolve(given["data"]) if "data" in given else None
    if "data_b" in given:
        given["data_b"] = resolve(given["data_b"])
    has_checkpoint = (out / "checkpoint.pt").exists()
    if not resume:
        if has_checkpoint:
            raise RecipeError(
                f"{out} holds a run already: add --resume to continue it, or choose another --out"
            )
        if given["data"] is None:
            raise RecipeError("--data is missing: a name or a path")
        return Settings(**{**entry.settings, **given})
    if not has_checkpoint:
        raise RecipeError(
            f"{out} holds no checkpoint to resume: leave out --resume to start a run there"
        )
    saved = read_config(out)["settings"]
    if given["data"] is None:
        given.pop("data")
    for name in FIXED:
        if name in given and given[name] != saved[name]:
            before = (
                saved[name]
                if name != "options"
                else " ".join(f"{k}={v}" for k, v in saved[name].items()) or "none"
            )
            now = (
                given[name]
                if name != "options"
                else " ".join(f"{k}={v}" for k, v in given[name].items())
            )
            flag = "model" if name == "model" else _flag(name)
            raise RecipeError(
                f"{out} was started with {flag} {before}, not {now}: resume it as it was, or "
                f"choose another --out"
            )
    return Settings(**{**saved, **given})


def write_config(out: Path, settings: Settings, data: Dataset) -> None:
    """``config.json``: the settings, the shape of the data, and the versions that made the run."""
    config = {
        "settings": dataclasses.asdict(settings),
        "data": {
            "shape": list(data.shape),
            "n_levels": data.n_levels,
            "train": len(data.train),
            "test": len(data.test),
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    partial = out / "config.json.partial"
    try:
        partial.write_text(json.dumps(config, indent=2) + "\n")
        os.replace(partial, out / "config.json")
    except OSError as error:
        raise RecipeError(
            f"{out / 'config.json'}: cannot be written: {error.strerror or error}"
        ) from None


def read_config(out: Path) -> dict[str, Any]:
    """``config.json`` of the run in ``out``."""
    path = out / "config.json"
    if not out.is_dir():
        raise RecipeError(f"{out}: no such folder")
    try:
        config = json.loads(path.read_text())
        config["settings"]["model"], config["data"]["shape"], config["data"]["n_levels"]
        return config
    except FileNotFoundError:
        raise RecipeError(f"{out}: not the folder of a run (it has no config.json)") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{path}: damaged ({error})") from None


def load_model(
    out: Path, device: torch.device | str = "cpu"
) -> tuple[nn.Module, Settings, int, tuple[int, ...], int | None]:
    """Of the run in ``out``: its model in evaluation mode, settings, the checkpoint's step, the
    samples' shape, n_levels.
    """
    config = read_config(out)
    settings = Settings(
        **{**config["settings"], "accelerator": "auto"}
    )  # it may have been trained on a GPU
    shape, n_levels = tuple(config["data"]["shape"]), config["data"]["n_levels"]
    model = registry.build(
        settings.model, shape, n_levels, settings.options, settings.data in ENERGIES
    )
    state = checkpoint.load(out / "checkpoint.pt")
    load_state(model, state, settings, out / "checkpoint.pt")
    return model.to(device).eval(), settings, state["step"], shape, n_levels


def load_state(model: nn.Module, state: dict[str, Any], settings: Settings, path: Path) -> None:
    """Copy a checkpoint's parameters into ``model`` after checking that they are of this model with
    these options.
    """
    if state["model"] != settings.model:
        raise RecipeError(
            f"{path}: a checkpoint of {state['model']}, and this run is of {settings.model}"
        )
    if state["options"] != settings.options:
        raise RecipeError(
            f"{path}: its model has the options {state['options']}, this run has {settings.options}"
        )
    try:
        model.load_state_dict(state["parameters"])
    except RuntimeError as error:
        first = str(error).splitlines()[1:2]
        detail = first[0].strip() if first else str(error)
        raise RecipeError(
            f"{path}: its parameters do not fit {settings.model} as configured: {detail[:160]}"
        ) from None

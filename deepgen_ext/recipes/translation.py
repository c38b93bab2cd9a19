"""``deepgen translate``: images of one domain as images of the other, by a trained CycleGAN."""

from __future__ import annotations

from pathlib import Path

import torch

from deepgen_ext.models import CycleGAN
from deepgen_ext.objectives import quantize
from deepgen_ext.recipes import RecipeError
from deepgen_ext.recipes.adversarial import data_of
from deepgen_ext.recipes.data import load
from deepgen_ext.recipes.pictures import save_grid
from deepgen_ext.recipes.run import load_model
from deepgen_ext.recipes.trained import save_numbers

__all__ = ["translate_run"]


@torch.no_grad()
def translate_run(
    run: Path, *, direction: str, n: int, data_name: str | None, out: Path, device: str
) -> float:
    """Translate ``n`` held-out images of the run's own or other data; the mean |there and back - x|.

    A .png has three rows: the images, their translations, these translated back; a .npy the
    translations, as levels.
    """
    model, settings, _, shape, n_levels = load_model(run, device)
    if not isinstance(model, CycleGAN):
        raise RecipeError(f"translate is for cyclegan, and {run} holds a {settings.model}")
    if direction not in ("a-to-b", "b-to-a"):
        raise RecipeError(f"--direction must be a-to-b or b-to-a, got '{direction}'")
    if data_name is None:
        dataset = data_of(settings)[0 if direction == "a-to-b" else 1]
    else:
        dataset = load(data_name, size=settings.size)
    if dataset.shape != shape or dataset.n_levels != n_levels:
        raise RecipeError(
            f"{run} translates images of shape {shape} with {n_levels} levels; '{dataset.name}' "
            f"has {dataset.shape} with {dataset.n_levels or 'real'}"
        )
    images = dataset.test[:n].to(device)
    there, back = (quantize(x, n_levels).cpu() for x in model.there_and_back(images, direction))
    if out.suffix.lower() == ".npy":
        save_numbers(there, out)
    else:
        save_grid(torch.cat((images.cpu(), there, back)), n_levels, out, columns=len(images))
    return model.cycle_error(images, direction).double().mean().item()

"""Which level of stochasticity decides what: images whose upper latents stay and the rest is drawn
anew.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from deepgen_ext.models import TopDownModel
from deepgen_ext.objectives import quantize
from deepgen_ext.recipes import RecipeError
from deepgen_ext.recipes.batches import generator_for
from deepgen_ext.recipes.data import load
from deepgen_ext.recipes.pictures import save_grid
from deepgen_ext.recipes.run import load_model

__all__ = ["resample_run"]


@torch.no_grad()
def resample_run(
    run: Path, *, n: int, redraws: int, test: bool, seed: int, out: Path, device: str
) -> list[Path]:
    """A picture of n rows for each number of levels that are kept, from all of them (the pixels
    alone are drawn anew) to the top one (all grids below it and the pixels are).

    In a row: an image of latents drawn from the prior and ``redraws`` others of the same upper
    latents; with ``test`` a test image, and redraws of the latents where its posterior's noise is
    zero. Names: that of ``out`` with what is drawn anew, -pixels, -14x14-pixels, and so on.
    """
    model, settings, _, _, n_levels = load_model(run, device)
    if not isinstance(model, TopDownModel):
        raise RecipeError(
            f"only models with levels of latents are redrawn level by level, hierarchical-vae and "
            f"pixelvae, not {settings.model}"
        )
    generator = torch.Generator(device).manual_seed(generator_for(seed, "resample").initial_seed())
    like = next(model.parameters())

    def draws(latents: Tensor, keep: int) -> Tensor:
        """An image of latents of which the first `keep` levels stay."""
        eps = torch.randn(latents.shape, generator=generator, device=device, dtype=like.dtype)
        drawn = model.distribution.draw(model.decode(model.redrawn(latents, eps, keep)), generator)
        return quantize(drawn, n_levels) if drawn.is_floating_point() else drawn

    levels = len(model.grids)
    if test:
        first = load(settings.data, size=settings.size).test[:n].to(device)
        noise = torch.rand(first.shape, generator=generator, device=device, dtype=like.dtype)
        latents = model.infer(first, noise=noise)
    else:
        eps = torch.randn(n, model.noise_features, generator=generator, device=device)
        latents = model.latents_of_noise(eps.to(like))
        first = draws(latents, levels)
    paths = []
    for keep in range(levels, 0, -1):
        again = draws(latents.repeat_interleave(redraws, 0), keep).unflatten(0, (-1, redraws))
        rows = torch.cat((first.unsqueeze(1).to(again), again), 1)
        grids = [f"{height}x{width}-" for _, height, width in model.grids[keep:]]
        path = out.with_stem(f"{out.stem}-{''.join(grids)}pixels")
        save_grid(rows.flatten(0, 1).cpu(), n_levels, path, columns=redraws + 1)
        paths.append(path)
    return paths

"""The models that ``deepgen train`` knows by name.

A new model is one entry of `RECIPES`: how to build it for data of a given shape, and, where a plain
``model.loss`` will not do, its own ``step``.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from deepgen_ext import models
from deepgen_ext.recipes import RecipeError

__all__ = ["RECIPES", "Recipe", "build", "latent_step", "likelihood_step", "recipe"]

Shape = tuple[int, ...]


def likelihood_step(model: Any, batch: Tensor, noise: Tensor | None) -> Tensor:
    """The loss of one batch: mean bits/dim of levels dequantised with ``noise``, mean nats of real
    vectors.
    """
    return model.loss(batch, noise=noise)


def latent_step(model: Any, batch: Tensor, noise: tuple[Tensor, Tensor, float]) -> Tensor:
    """The loss of one batch of a latent-variable model, in its own unit; the noise is that of the
    pixels, that of the latents, and the weight of the KL, 1 but in a model that warms up.
    """
    pixels, latents, kl_weight = noise
    options = {} if kl_weight == 1 else {"kl_weight": kl_weight}
    return model.loss(batch, noise=pixels, eps=latents, **options)


@dataclass(frozen=True)
class Recipe:
    """How to train one model.

    Args:
        model: called with the shape of a sample, ``n_levels=`` for images, and the options of the
        user.
        summary: one line.
        images_only: the model has no form for vectors.
        halvings: for a multi-scale model with an option ``levels``: how often it then halves the
        sides of an image.
        max_levels: the most levels that are chosen by default.
        settings: defaults of the loop, where they differ from those of `run.Settings`.
        of_data: defaults of the model's options where it is fitted to data, and not to an energy.
        adversarial: trained by the alternating loop of `recipes.adversarial`.
        step: the loss of one batch, given the model, the batch and its dequantisation noise (for a
        latent-variable model: this, the noise of its latents, and the weight of the KL).
    """

    model: Callable[..., nn.Module]
    summary: str
    images_only: bool = False
    halvings: Callable[[int], int] | None = None
    max_levels: int = 3
    settings: Mapping[str, Any] = field(default_factory=dict)
    of_data: Mapping[str, Any] = field(default_factory=dict)
    adversarial: bool = False
    step: Callable[[Any, Tensor, Any], Tensor] = likelihood_step


# A planar or radial step has 2 D + 1 or D + 2 of them: it learns slowly, and bears long strides.
_FEW_PARAMETERS = {"learning_rate": 5e-3, "batch_size": 256}

# The networks of a game get the papers' small steps at once, and gradients as they are.
_GAME = {"warmup_steps": 0, "clip_norm": 1e6, "learning_rate": 2e-4}

RECIPES: dict[str, Recipe] = {
    "realnvp": Recipe(
        models.RealNVP,
        "RealNVP (Dinh et al. 2017): affine couplings, checkerboard and channel masks; vectors too",
        halvings=lambda levels: levels - 1,
        max_levels=2,
    ),
    "glow": Recipe(
        models.Glow,
        "Glow (Kingma & Dhariwal 2018): actnorm, invertible 1x1 convolutions, couplings",
        images_only=True,
        halvings=lambda levels: levels,
    ),
    "pixelcnn": Recipe(
        models.PixelCNN,
        "PixelCNN (van den Oord et al. 2016): masked convolutions; --set gated=true for the gated one",
        images_only=True,
    ),
    "pixelcnn++": Recipe(
        models.PixelCNNPlusPlus,
        "PixelCNN++ (Salimans et al. 2017): three resolutions, mixtures of discretised logistics",
        images_only=True,
    ),
    "maf": Recipe(
        models.MAF,
        "MAF (Papamakarios et al. 2017): masked autoregressive flow; images flattened",
    ),
    "iaf": Recipe(
        models.IAF,
        "IAF (Kingma et al. 2016): inverse autoregressive flow; images flattened",
    ),
    "nsf": Recipe(
        models.NeuralSplineFlow,
        "Neural spline flow (Durkan et al. 2019): spline couplings; images flattened",
    ),
    "iresnet": Recipe(
        models.IResNet,
        "i-ResNet (Behrmann et al. 2019): x + g(x), a truncated (biased) log-det; vectors too",
        halvings=lambda levels: levels - 1,
        max_levels=2,
    ),
    "residual-flow": Recipe(
        models.ResidualFlow,
        "Residual Flow (R. Chen et al. 2019): x + g(x), an unbiased log-det; vectors too",
        halvings=lambda levels: levels - 1,
        max_levels=2,
    ),
    "planar": Recipe(
        models.PlanarFlow,
        "Planar flows (Rezende & Mohamed 2015): for the energies u1 ... u4; images flattened",
        settings=_FEW_PARAMETERS,
        of_data={"act_norm": True},
    ),
    "radial": Recipe(
        models.RadialFlow,
        "Radial flows (Rezende & Mohamed 2015): for the energies u1 ... u4; images flattened",
        settings=_FEW_PARAMETERS,
        of_data={"act_norm": True},
    ),
    "vae": Recipe(
        models.VAE,
        "VAE (Kingma & Welling 2014): --set decoder=..., posterior=gaussian|planar|radial|iaf|realnvp",
        images_only=True,
        step=latent_step,
    ),
    "iwae": Recipe(
        models.IWAE,
        "IWAE (Burda et al. 2016): a VAE trained on k weighted draws; --set k=50, gradient=dreg",
        images_only=True,
        step=latent_step,
    ),
    "hierarchical-vae": Recipe(
        models.HierarchicalVAE,
        "Hierarchical VAE: top-down, autoregressive priors over grids; --set latent_channels=(8,4)",
        images_only=True,
        step=latent_step,
    ),
    "pixelvae": Recipe(
        models.PixelVAE,
        "PixelVAE (Gulrajani et al. 2017): a vector, a grid, and a PixelCNN that draws the pixels",
        images_only=True,
        step=latent_step,
    ),
    "vlae": Recipe(
        models.VLAE,
        "VLAE (Chen et al. 2017): a PixelCNN of a small window, a flow as prior of its code",
        images_only=True,
        step=latent_step,
    ),
    "v-ade": Recipe(
        models.FlowVAE,
        "V-ADE (Lucas et al. 2019): a VAE on the features of a flow; --set flow=glow",
        images_only=True,
        step=latent_step,
    ),
    "av-ade": Recipe(
        partial(models.FlowVAE, adversarial=True),
        "AV-ADE (Lucas et al. 2019): V-ADE with a critic; --set flow=none is AV-GDE",
        images_only=True,
        adversarial=True,
        settings={**_GAME, "learning_rate": 5e-4},
    ),
    "gan": Recipe(
        models.GAN,
        "GAN (Goodfellow et al. 2014): --set objective=minimax, network=resnet, n_classes=10; "
        "vectors too",
        adversarial=True,
        settings=_GAME,
    ),
    "wgan": Recipe(
        models.WGAN,
        "WGAN (Arjovsky et al. 2017): a critic of clipped weights; vectors too",
        adversarial=True,
        settings={**_GAME, "learning_rate": 5e-5},
    ),
    "wgan-gp": Recipe(
        models.WGANGP,
        "WGAN-GP (Gulrajani et al. 2017): a critic under a gradient penalty; vectors too",
        adversarial=True,
        settings={**_GAME, "learning_rate": 1e-4},
    ),
    "sn-gan": Recipe(
        models.SNGAN,
        "SN-GAN (Miyato et al. 2018): a critic of spectral norms of 1; vectors too",
        adversarial=True,
        settings=_GAME,
    ),
    "bigan": Recipe(
        models.BiGAN,
        "BiGAN (Donahue et al. 2017): an encoder that inverts the generator; vectors too",
        adversarial=True,
        settings=_GAME,
    ),
    "cyclegan": Recipe(
        models.CycleGAN,
        "CycleGAN (Zhu et al. 2017): two domains without pairs, --data A --data-b B",
        images_only=True,
        adversarial=True,
        settings={**_GAME, "batch_size": 16},
    ),
}


def recipe(name: str) -> Recipe:
    """The recipe called ``name``."""
    try:
        return RECIPES[name]
    except KeyError:
        close = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise RecipeError(
            f"no model called '{name}'; {hint}the models are: {', '.join(RECIPES)}"
        ) from None


def build(
    name: str,
    shape: Shape,
    n_levels: int | None,
    options: Mapping[str, Any],
    of_energy: bool = False,
) -> nn.Module:
    """The model ``name`` for samples of ``shape``, with ``options`` over the defaults; errors
    become one sentence.
    """
    found = recipe(name)
    if found.images_only and n_levels is None:
        others = [other for other, entry in RECIPES.items() if not entry.images_only]
        raise RecipeError(
            f"{name} is a model of images, and these data are vectors of {shape[0]} numbers: try "
            f"{others[0]}"
        )
    _, *known = inspect.signature(found.model).parameters
    known.remove("n_levels")  # the data say it
    for option in options:
        if option not in known:
            raise RecipeError(
                f"{name} has no option '{option}'; its options are: {', '.join(known)}"
            )
    arguments = {**({} if of_energy else found.of_data), **options}
    if n_levels is not None:
        arguments["n_levels"] = n_levels
    if found.halvings is not None and len(shape) == 3:
        arguments["levels"] = _levels(name, found, shape, options.get("levels"))
    try:
        return found.model(shape, **arguments)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{name} cannot be built for samples of shape {shape}: {error}") from None


def _levels(name: str, found: Recipe, shape: Shape, wanted: Any) -> Any:
    """``wanted`` if the sides allow it; None: as many as they allow, ending at 2x2 or more."""
    height, width = shape[1:]
    halvings = found.halvings
    assert halvings is not None

    def fits(levels: int, smallest: int) -> bool:
        times = halvings(levels)
        return all(side % 2**times == 0 and side >> times >= smallest for side in (height, width))

    if wanted is None:
        fitting = [levels for levels in range(found.max_levels, 0, -1) if fits(levels, smallest=2)]
        if not fitting:
            raise RecipeError(
                f"{name} must halve the sides of an image at least once, and {height}x{width} "
                f"does not allow it: crop or "
                f"pad to even sides of 4 or more (a folder of pictures: --size N)"
            )
        return fitting[0]
    if isinstance(wanted, int) and wanted >= 1 and not fits(wanted, smallest=1):
        fitting = [levels for levels in range(wanted, 0, -1) if fits(levels, smallest=1)]
        advice = f"use --set levels={fitting[0]}" if fitting else "crop or pad to even sides"
        raise RecipeError(
            f"levels={wanted} halves the sides of an image {halvings(wanted)} times, and "
            f"{height}x{width} is not divisible "
            f"by {2 ** halvings(wanted)}: {advice}"
        )
    return wanted

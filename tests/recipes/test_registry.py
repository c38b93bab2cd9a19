"""Models by name."""

from __future__ import annotations

import pytest
import torch

from deepgen_ext.recipes import RecipeError, registry

LIKELIHOOD = sorted(name for name, entry in registry.RECIPES.items() if not entry.adversarial)
ADVERSARIAL = sorted(registry.RECIPES.keys() - LIKELIHOOD)


@pytest.mark.parametrize("name", LIKELIHOOD)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_every_model_has_defaults_for_the_usual_images(name: str, shape: tuple[int, ...]) -> None:
    small = {
        "glow": {"hidden_channels": 4},
        "realnvp": {"hidden_channels": 4},
        "pixelcnn": {"layers": 2, "channels": 6},
        "pixelcnn++": {"resnets": 1, "filters": 8},
        "maf": {"hidden_features": (8,), "transforms": 2},
        "iaf": {"hidden_features": (8,), "transforms": 2},
        "nsf": {"hidden_features": 8, "transforms": 2},
        "iresnet": {"hidden": 4, "blocks": 1},
        "residual-flow": {"hidden": 4, "blocks": 1},
        "vae": {"hidden_features": (8,)},
        "iwae": {"hidden_features": (8,), "k": 2},
    }.get(name, {})
    model = registry.build(name, shape, 17, small)
    batch = torch.randint(0, 17, (2, *shape), generator=torch.Generator().manual_seed(0))
    assert model.loss(batch, noise=torch.zeros(batch.shape)).isfinite()
    assert model.n_levels == 17


@pytest.mark.parametrize("name", ADVERSARIAL)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_every_game_has_defaults_for_the_usual_images(name: str, shape: tuple[int, ...]) -> None:
    small = {"critic_channels": 4, "flow_channels": 4} if name == "av-ade" else {"width": 4}
    model = registry.build(name, shape, 17, small)
    batch = torch.randint(0, 17, (2, *shape), generator=torch.Generator().manual_seed(0))
    data = (batch, batch) if name == "cyclegan" else batch
    assert model.critic_loss(data).isfinite()
    assert model.generator_loss(data).isfinite()


@pytest.mark.parametrize(
    ("shape", "glow", "realnvp"),
    [
        ((1, 8, 8), 2, 2),
        ((1, 28, 28), 2, 2),
        ((3, 32, 32), 3, 2),
        ((1, 4, 8), 1, 2),
        ((1, 6, 6), 1, 2),
    ],
)
def test_default_levels_leave_two_by_two(shape: tuple[int, ...], glow: int, realnvp: int) -> None:
    for name, levels in (("glow", glow), ("realnvp", realnvp)):
        model = registry.build(name, shape, 256, {"hidden_channels": 4})
        assert len(model.latent_shapes) == levels
        assert min(model.latent_shapes[-1][1:]) >= 2


def test_sides_that_cannot_be_halved() -> None:
    with pytest.raises(
        RecipeError, match="glow must halve .* at least once, and 7x8 does not allow it.*--size N"
    ):
        registry.build("glow", (1, 7, 8), 256, {})
    with pytest.raises(RecipeError, match="28x28 is not divisible by 8: use --set levels=2"):
        registry.build("glow", (1, 28, 28), 256, {"levels": 3})
    with pytest.raises(RecipeError, match="7x7 is not divisible by 2: crop or pad to even sides"):
        registry.build("glow", (1, 7, 7), 256, {"levels": 1})
    assert registry.build(
        "realnvp", (1, 28, 28), 256, {"levels": 3, "hidden_channels": 4}
    )  # it halves once less


def test_names_and_options() -> None:
    with pytest.raises(
        RecipeError,
        match="no model called 'glwo'; did you mean glow. the models are: realnvp, glow",
    ):
        registry.recipe("glwo")
    with pytest.raises(
        RecipeError, match="glow has no option 'depth'; its options are: levels, steps"
    ):
        registry.build("glow", (1, 8, 8), 17, {"depth": 3})
    with pytest.raises(RecipeError, match="glow has no option 'n_levels'"):  # the data say it
        registry.build("glow", (1, 8, 8), 17, {"n_levels": 3})
    with pytest.raises(
        RecipeError, match="glow is a model of images, .* vectors of 2 numbers: try realnvp"
    ):
        registry.build("glow", (2,), None, {})


def test_errors_of_the_model_become_one_sentence() -> None:
    with pytest.raises(RecipeError, match="glow cannot be built for samples of shape"):
        registry.build("glow", (1, 8, 8), 17, {"hidden_channels": "many"})

"""The five models of Lucas et al. 2019, trained alike and scored alike."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepgen_ext.models.latent.flow_vae import ABLATION, FlowVAE
from deepgen_ext.recipes import RecipeError
from deepgen_ext.recipes.batches import batch_indices, generator_for
from deepgen_ext.recipes.data import Dataset, load
from deepgen_ext.recipes.feature_network import load_feature_network
from deepgen_ext.recipes.metrics import evaluate
from deepgen_ext.recipes.pictures import save_grid
from deepgen_ext.recipes.scores import feature_words, score
from deepgen_ext.recipes.trained import draw

__all__ = ["Fit", "Measured", "fit_model", "plan_fits", "score_held_out"]

LEARNING_RATE = 5e-4
# Of every row. 8x8 pixels need no convolutions, which would take most of the time there.
SMALL = {
    "latent_features": 32,
    "hidden_features": (256, 256),
    "flow_depth": 2,
    "flow_channels": 16,
    "critic": "mlp",
    "critic_channels": 256,
    "objective": "non-saturating",
    "r1": 0.2,
    "adversarial_weight": 1.0,
}
LARGE = {
    "latent_features": 64,
    "network": "conv",
    "hidden_features": (256,),
    "channels": 32,
    "flow_depth": 2,
    "flow_channels": 24,
    "critic": "dcgan",
    "critic_channels": 32,
    "objective": "non-saturating",
    "r1": 0.2,
    "adversarial_weight": 1.0,
}


@dataclass(frozen=True)
class Fit:
    """One row of the table with one seed, and the file of the network that scores it."""

    row: str
    data: str
    seed: int
    steps: int
    batch_size: int
    n_generated: int
    feature_network: str


@dataclass(frozen=True)
class Measured:
    """Bits/dim of the test split (an upper bound), and the scores of samples against the train
    split; what scored them, in words.
    """

    fit: Fit
    bits_per_dim: float
    inception: float
    frechet: float
    precision: float
    recall: float
    n_real: int
    network: str
    seconds: float


def plan_fits(
    data: str,
    rows: Sequence[str] | None,
    *,
    seeds: int,
    steps: int,
    batch_size: int,
    n_generated: int,
    feature_network: Path,
) -> list[Fit]:
    """Seed after seed, of all rows where None is given.

    Raises:
        RecipeError: an unknown row, data that are no images.
    """
    for name in rows or ():
        if name not in ABLATION:
            raise RecipeError(f"--row must be one of {', '.join(ABLATION)}; got '{name}'")
    if not load(data).is_image:
        raise RecipeError(f"--data {data}: the ablation is of images, not of vectors")
    return [
        Fit(row, data, seed, steps, batch_size, n_generated, str(feature_network))
        for seed in range(seeds)
        for row in rows or ABLATION
    ]


def fit_model(fit: Fit, pictures: Path | None = None) -> Measured:
    """Train one model, ``fit.steps`` steps of the generator whatever the row, and score it.

    A GAN's bound is found afterwards: its generator stays as it is, and an encoder and one scale for
    each pixel are fitted to it, for as many steps.
    """
    start = time.monotonic()
    data = load(fit.data)
    model = build(fit.row, data, fit.seed)
    model.initialize(
        data.train[_chosen(fit, data, 0)], noise=_noise(fit, model, 0)["dequantisation"]
    )
    generator = model.optimizer(model.generator_parameters(), LEARNING_RATE)
    critic = model.optimizer(model.critic_parameters(), LEARNING_RATE) if model.critic else None
    for step in range(fit.steps):
        levels, noise = data.train[_chosen(fit, data, step)], _noise(fit, model, step)
        if critic is None:
            loss = model.loss(levels, noise=noise["dequantisation"], eps=noise["posterior"])
        else:
            _descend(model.critic_loss(levels, noise=noise), critic)
            loss = model.generator_loss(levels, noise=noise)
        _descend(loss, generator)
    model.eval()
    samples = draw(model, fit.n_generated, temperature=1.0, seed=0, n_levels=data.n_levels)
    if pictures is not None:
        save_grid(samples[:100], data.n_levels, pictures / f"{fit.row.lower()}-{fit.seed}.png")
    if not model.likelihood:
        _fit_inference(model, data, fit)
    bits = evaluate(model, data.test, n_levels=data.n_levels).mean
    network = load_feature_network(Path(fit.feature_network))
    scores = score(
        network.features_of(data.train, data.n_levels),
        network.features_of(samples, data.n_levels),
    )
    return Measured(
        fit,
        bits,
        scores.inception,
        scores.frechet,
        scores.precision,
        scores.recall,
        scores.n_real,
        feature_words(network, scores.num_features),
        time.monotonic() - start,
    )


def score_held_out(fit: Fit) -> Measured:
    """What the test split scores in place of samples: as good as a model could be."""
    data = load(fit.data)
    network = load_feature_network(Path(fit.feature_network))
    scores = score(
        network.features_of(data.train, data.n_levels),
        network.features_of(data.test, data.n_levels),
    )
    return Measured(
        Fit("test images", fit.data, 0, 0, 0, scores.n_generated, fit.feature_network),
        math.nan,
        scores.inception,
        scores.frechet,
        scores.precision,
        scores.recall,
        scores.n_real,
        feature_words(network, scores.num_features),
        0.0,
    )


def build(row: str, data: Dataset, seed: int) -> FlowVAE:
    """The model of a row, the same networks in each."""
    sizes: Mapping[str, Any] = SMALL if data.shape[1] * data.shape[2] <= 256 else LARGE
    torch.manual_seed(generator_for(seed, row).initial_seed())
    return FlowVAE(data.shape, n_levels=data.n_levels, **{**sizes, **ABLATION[row]})


def _fit_inference(model: FlowVAE, data: Dataset, fit: Fit) -> None:
    adam = model.optimizer(model.inference_parameters(), LEARNING_RATE)
    model.train()
    for step in range(fit.steps, 2 * fit.steps):
        levels, noise = data.train[_chosen(fit, data, step)], _noise(fit, model, step)
        _descend(model.loss(levels, noise=noise["dequantisation"], eps=noise["posterior"]), adam)
    model.eval()


def _descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 100.0)
    optimizer.step()


def _chosen(fit: Fit, data: Dataset, step: int) -> Tensor:
    return batch_indices(fit.seed, step, fit.batch_size, len(data.train))


def _noise(fit: Fit, model: FlowVAE, step: int) -> dict[str, Tensor]:
    return model.draw_noise(fit.batch_size, generator_for(fit.seed, "noise", step))

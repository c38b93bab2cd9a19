"""What is measured on held-out data: bits per dimension or nats, their estimates by importance
sampling, and the error of inverse(forward(x)).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepgen_ext.models import LatentModel, PixelModel, ResidualFlow, TopDownModel
from deepgen_ext.objectives import dequantize
from deepgen_ext.recipes.batches import generator_for

__all__ = ["Evaluation", "evaluate", "importance_estimate", "kl_by_level", "reconstruct"]


@dataclass(frozen=True)
class Evaluation:
    """Mean and standard error over ``n`` samples of bits/dim (levels) or of -log p(x) in nats (real
    vectors, binarised images).
    """

    mean: float
    standard_error: float
    n: int
    unit: str
    dequantisation: str  # in words, so that numbers are compared only with their like
    log_det: str = ""  # in words, where it is estimated: how, and the standard error of the mean


@torch.no_grad()
def evaluate(
    model: Any,
    samples: Tensor,
    *,
    n_levels: int | None,
    seed: int = 0,
    batch_size: int = 256,
    n_estimates: int = 4,
) -> Evaluation:
    """Score ``samples`` with ``model``: each sample once, with one draw of the dequantisation
    noise; where the log-det is an estimate, with the mean of ``n_estimates`` of them.
    """
    device, dtype = _place(model)
    training = model.training
    model.eval()
    scores, variance = [], 0.0
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size].to(device)
        noise = None
        if n_levels is None:
            batch = batch.to(dtype)
        else:
            noise = torch.rand(batch.shape, generator=generator_for(seed, "evaluate", start))
            noise = noise.to(device, dtype)
        if isinstance(model, ResidualFlow):
            estimated = _estimate(model, batch, noise, n_estimates, seed, start)
            value = -estimated.mean if noise is None else estimated.mean
            variance += (len(batch) * estimated.batch_standard_error.item()) ** 2
        elif isinstance(model, LatentModel):
            generator = _generator(device, seed, "latents", start)
            bound = model.bound(batch, noise=noise, generator=generator)
            value = model.in_units(bound.double())
        elif noise is None:
            value = -model.log_prob(batch)
        else:
            value = model.bits_per_dim(batch, noise=noise)
        scores.append(value.double().cpu())
    log_det = ""
    if isinstance(model, ResidualFlow):
        log_det = model.estimator
        if variance:
            spread = math.sqrt(variance) / len(samples)
            log_det += f", mean of {n_estimates} estimates, +- {spread:.1e} by their spread"
    model.train(training)
    if n_levels is None:
        unit, words = "nats", "none: the data are real vectors"
    elif isinstance(model, PixelModel):
        unit, words = "bits/dim", "none: the model is one of levels, and the likelihood exact"
    elif isinstance(model, LatentModel):
        unit, words = model.unit, _pixels_in_words(model)
    else:
        unit = "bits/dim"
        words = f"uniform, x = (level + u) / {n_levels}, one draw of u a sample: an upper bound"
    return _evaluation(torch.cat(scores), unit, words, log_det)


def _estimate(
    model: ResidualFlow, batch: Tensor, noise: Tensor | None, n: int, seed: int, start: int
) -> Any:
    """log p(x) of real vectors, or bits/dim of levels, with the spread of its n estimates."""
    probes = generator_for(seed, "log-det", start)
    if noise is None:
        return model.estimate_log_prob(batch, n, probes)
    return model.estimate_bits_per_dim(batch, n, noise=noise, generator=probes)


@torch.no_grad()
def kl_by_level(
    model: TopDownModel, samples: Tensor, *, seed: int = 0, batch_size: int = 256
) -> list[float]:
    """Nats an image of each level of latents, the top one first, of the bound that `evaluate` gives."""
    device, dtype = _place(model)
    parts = []
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size].to(device)
        noise = torch.rand(batch.shape, generator=generator_for(seed, "evaluate", start))
        generator = _generator(device, seed, "latents", start)
        terms = model.terms(batch, noise=noise.to(device, dtype), generator=generator)
        parts.append(torch.stack(terms.kl_by_level, 1))
    return torch.cat(parts).double().mean(0).tolist()


@torch.no_grad()
def importance_estimate(
    model: LatentModel,
    samples: Tensor,
    *,
    k: int,
    seed: int = 0,
    chunk: int = 1000,
    on_image: Callable[[int], None] | None = None,
) -> Evaluation:
    """``model.log_likelihood`` of ``samples`` with ``k`` draws each, in the model's unit.

    The binarisation or dequantisation of a sample is the one of `evaluate` with the same seed.
    ``on_image`` is called with the number of images done.
    """
    device, dtype = _place(model)
    training = model.training
    model.eval()
    scores = []
    batch_size = 256  # of `evaluate`
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size].to(device)
        noise = torch.rand(batch.shape, generator=generator_for(seed, "evaluate", start))
        noise = noise.to(device, dtype)
        generator = _generator(device, seed, "importance", start)
        for part in range(0, len(batch), 16):
            some = slice(part, part + 16)
            nats = model.log_likelihood(
                batch[some], k, chunk=chunk, noise=noise[some], generator=generator
            )
            scores.append(model.in_units(nats).cpu())
            if on_image is not None:
                on_image(start + part + len(nats))
    model.train(training)
    return _evaluation(torch.cat(scores), model.unit, _pixels_in_words(model))


@torch.no_grad()
def reconstruct(
    model: Any, samples: Tensor, *, n_levels: int | None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """``(x, inverse(forward(x)))`` on the CPU for the (dequantised) ``samples``."""
    device, dtype = _place(model)
    if n_levels is None:
        x = samples.to(device, dtype)
    else:
        noise = torch.rand(samples.shape, generator=generator_for(seed, "reconstruct"))
        x = dequantize(samples.to(device), n_levels, noise=noise.to(device, dtype))
    training = model.training
    model.eval()
    latents, _ = model.forward(x)
    rebuilt, _ = model.inverse(latents)
    model.train(training)
    return x.cpu(), rebuilt.cpu()


def _evaluation(score: Tensor, unit: str, words: str, log_det: str = "") -> Evaluation:
    n = len(score)
    error = score.std().item() / math.sqrt(n) if n > 1 else math.nan
    return Evaluation(score.mean().item(), error, n, unit, words, log_det)


def _pixels_in_words(model: LatentModel) -> str:
    """What was made of the levels before they were scored."""
    name, last = model.distribution.name, model.n_levels - 1
    if name.startswith("bernoulli") and last > 1:
        return f"none; each pixel binarised, on with probability level / {last}, one draw a sample"
    if name == "gaussian":
        return f"uniform, x = (level + u) / {model.n_levels}, one draw of u a sample"
    return "none: the model is one of levels"


def _generator(device: torch.device, *key: int | str) -> torch.Generator:
    return torch.Generator(device).manual_seed(generator_for(*key).initial_seed())


def _place(model: Any) -> tuple[torch.device, torch.dtype]:
    parameter = next(model.parameters())
    return parameter.device, parameter.dtype

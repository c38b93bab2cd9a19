"""What is measured on held-out data: bits per dimension or nats, and the error of
inverse(forward(x)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepgen_ext.models import PixelModel, ResidualFlow
from deepgen_ext.objectives import dequantize
from deepgen_ext.recipes.batches import generator_for

__all__ = ["Evaluation", "evaluate", "reconstruct"]


@dataclass(frozen=True)
class Evaluation:
    """Mean and standard error over ``n`` samples of bits/dim (levels) or of -log p(x) in nats (real
    vectors).
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
            probes = generator_for(seed, "log-det", start)
            if noise is None:
                estimated = model.estimate_log_prob(batch, n_estimates, probes)
                value = -estimated.mean
            else:
                estimated = model.estimate_bits_per_dim(
                    batch, n_estimates, noise=noise, generator=probes
                )
                value = estimated.mean
            variance += (len(batch) * estimated.batch_standard_error.item()) ** 2
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
    score = torch.cat(scores)
    n = len(score)
    error = score.std().item() / math.sqrt(n) if n > 1 else math.nan
    if n_levels is None:
        unit, words = "nats", "none: the data are real vectors"
    elif isinstance(model, PixelModel):
        unit, words = "bits/dim", "none: the model is one of levels, and the likelihood exact"
    else:
        unit = "bits/dim"
        words = f"uniform, x = (level + u) / {n_levels}, one draw of u a sample: an upper bound"
    return Evaluation(score.mean().item(), error, n, unit, words, log_det)


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


def _place(model: Any) -> tuple[torch.device, torch.dtype]:
    parameter = next(model.parameters())
    return parameter.device, parameter.dtype

"""Models of pixels on random tensors, for `cases.OPS`."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepgen_ext import ops
from deepgen_ext.nn import AncestralSampler, Categorical, MaskedConv2d
from deepgen_ext.profiling.measurement import Setting
from deepgen_ext.profiling.prepared import Prepared, Shape, random_uniforms


def masked_conv2d(shape: Shape, setting: Setting, inverse: bool) -> Prepared:
    channels, kernel = (shape[1] if len(shape) > 1 else 1), 5
    outputs = 2 * channels
    x = setting.random(*shape, seed=0)
    scale = (channels * kernel * kernel / 2) ** -0.5
    weight = setting.random(outputs, channels, kernel, kernel, seed=1, scale=scale)
    mask = torch.zeros(kernel, kernel, device=x.device, dtype=x.dtype)
    mask.view(-1)[: kernel * kernel // 2 + 1] = 1  # type B, one group

    def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight * mask, bias, padding=kernel // 2)

    leaves = [x, weight, setting.random(outputs, seed=2)]
    return Prepared(leaves, lambda module, *given: module.masked_conv2d(*given), eager)


def bernoulli_log_prob(shape: Shape, setting: Setting, inverse: bool) -> Prepared:
    """k draws of each image, which are bits: (n, k, D)."""
    logits = setting.random(*shape, seed=0, scale=2.0)
    bits = random_uniforms((shape[0], 1, *shape[2:]), setting, 1) < 0.5

    def eager(logits: Tensor) -> Tensor:
        x = bits.to(logits.dtype).expand_as(logits)
        return -F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(2).sum(2)

    def run(module: ModuleType, logits: Tensor) -> Any:
        return module.bernoulli_log_prob(bits, logits, batch_dims=2)

    return Prepared([logits], run, eager)


def glow_conv_net(shape: Shape, setting: Setting, inverse: bool) -> Prepared:
    """Twice as many channels out as in; 64 hidden ones, in a tiny case 8."""
    channels = shape[1] if len(shape) > 1 else 1
    hidden, outputs = (8 if setting.tiny else 64), 2 * channels
    x = setting.random(*shape, seed=0)
    leaves = [
        x,
        setting.random(hidden, channels, 3, 3, seed=1, scale=(9 * channels) ** -0.5),
        setting.random(hidden, seed=2, scale=0.5),
        setting.random(hidden, hidden, 1, 1, seed=3, scale=hidden**-0.5),
        setting.random(hidden, seed=4, scale=0.5),
        setting.random(outputs, hidden, 3, 3, seed=5, scale=(9 * hidden) ** -0.5),
        setting.random(outputs, seed=6),
        setting.random(outputs, seed=7, scale=0.1),
    ]
    return Prepared(leaves, lambda module, *given: module.glow_conv_net(*given))


def categorical_draw(shape: Shape, setting: Setting, inverse: bool) -> Prepared:
    levels = shape[1] if len(shape) > 1 else 2
    logits = setting.random(*shape, seed=0, scale=2.0)
    uniforms = random_uniforms((shape[0], 1, *shape[2:]), setting, 1)

    def eager(logits: Tensor) -> Tensor:
        cdf = torch.softmax(logits.float(), 1).cumsum(1)
        return (cdf <= uniforms).sum(1, keepdim=True).clamp(max=levels - 1)

    return Prepared(
        [logits],
        lambda module, logits: module.categorical_draw(
            logits, uniforms.to(logits.dtype), n_levels=levels
        ),
        eager,
        tolerance=1.1,  # next to a step of the cdf the neighbour is drawn
    )


def mixture(draw: bool, shape: Shape, setting: Setting, inverse: bool) -> Prepared:
    n, channels, *positions = shape
    mixtures = channels // 10
    parameters = setting.random(*shape, seed=0)
    parameters[:, channels * 4 // 10 : channels * 7 // 10] -= 4  # scales of about two levels
    drawn = (n, 3, *positions)
    generator = torch.Generator().manual_seed(1)
    levels = torch.randint(0, 256, drawn, generator=generator).to(setting.device)
    uniforms = random_uniforms(drawn, setting, 1)

    def run(module: ModuleType, parameters: Tensor) -> Any:
        if draw:
            given = uniforms.to(parameters.dtype)
            return module.discretized_logistic_mixture_draw(parameters, given, mixtures=mixtures)
        return module.discretized_logistic_mixture(parameters, levels, mixtures=mixtures)

    return Prepared([parameters], run, tolerance=1.1 if draw else 1e-3)


class _Network(nn.Module):
    """A PixelCNN of three layers, as `AncestralSampler` takes it."""

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        self.first = MaskedConv2d(1, channels, 5, mask_type="A")
        self.hidden = MaskedConv2d(channels, channels, 3)
        self.last = nn.Conv2d(channels, levels, 1)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        h = self.first(x).relu()
        return self.last(h + self.hidden(h).relu())


def ancestral_sample(shape: Shape, setting: Setting, inverse: bool) -> Prepared:
    """What the sampler passes to the op, caught on its way."""
    levels = 4 if setting.tiny else 256
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = _Network(6 if setting.tiny else 64, levels)
    network = network.to(setting.device, setting.dtype)
    if len(shape) != 4 or shape[1] != 1:
        raise ValueError(f"uniforms must have the shape (n, 1, height, width), got {shape}")
    sampler = AncestralSampler(network, shape[1:], Categorical(1, levels))
    uniforms = random_uniforms(shape, setting, 1)

    @torch.no_grad()
    def eager(uniforms: Tensor) -> Tensor:
        """A network pass a pixel."""
        drawn = torch.zeros(shape, dtype=torch.long, device=uniforms.device)
        for i in range(shape[2]):
            for j in range(shape[3]):
                logits = network(2 * drawn.to(setting.dtype) / (levels - 1) - 1)[:, :, i, j]
                cdf = logits.softmax(1).cumsum(1)
                below = (cdf <= uniforms[:, :, i, j]).sum(1, keepdim=True)
                drawn[:, :, i, j] = below.clamp(max=levels - 1)
        return drawn

    return Prepared(
        [uniforms],
        lambda module, uniforms: sampler(uniforms) if module is ops else eager(uniforms),
        eager,
        "eager, a pass a pixel",
        1.1,  # one draw next to a step of the cdf changes all that follow
    )

"""Each property of autoregressive models of images, written once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def influence(function: Callable[[Tensor], Tensor], x: Tensor, groups: int = 1) -> Tensor:
    """Which element of an image changes which pixel and channel group of function(image).

    Of x (C, H, W), or of any of several images x (m, C, H, W): where one of them meets a ReLU at
    zero, another does not. Bool, (C * H * W, groups * H * W), both sides in the order of drawing:
    pixels by rows, in a pixel the channels. Every element is moved in turn, in float64.
    """
    if x.ndim == 4:
        return torch.stack([influence(function, image, groups) for image in x]).any(0)
    order = torch.arange(x.numel()).view(x.shape).permute(1, 2, 0).flatten()
    moved = x.flatten().repeat(x.numel(), 1)
    moved[torch.arange(x.numel()), order] += 1.0
    with torch.no_grad():
        # In a batch of the same size: another one may be computed in another order.
        before = function(x.expand(x.numel(), *x.shape))
        after = function(moved.view(-1, *x.shape))
    changed = ((after - before).abs() > 1e-13).unflatten(1, (groups, -1)).any(2)
    return changed.permute(0, 2, 3, 1).flatten(1)


def allowed(image_shape: tuple[int, int, int], groups: int, own_pixel: bool = False) -> Tensor:
    """The influence that the order allows: of earlier pixels, and of earlier groups in the pixel.

    `own_pixel`: a layer of type "B", whose group sees the same group too.
    """
    channels, height, width = image_shape
    pixels = height * width
    source = torch.arange(pixels * channels)
    target = torch.arange(pixels * groups)
    pixel, group = source // channels, source % channels * groups // channels
    earlier = pixel[:, None] < target // groups
    inside = group[:, None] <= target % groups if own_pixel else group[:, None] < target % groups
    return earlier | ((pixel[:, None] == target // groups) & inside)


def check_causal(function, x: Tensor, groups: int = 1, own_pixel: bool = False) -> Tensor:
    """No element influences what is drawn before it; returns the influence."""
    found = influence(function, x, groups)
    may = allowed(tuple(x.shape[-3:]), groups, own_pixel)
    wrong = (found & ~may).nonzero()
    assert not len(wrong), f"element {wrong[0, 0]} (in order) reaches output {wrong[0, 1]}"
    assert found.any() or x.shape[-2:] == (1, 1), "nothing influences anything"
    return found


def all_images(image_shape: tuple[int, int, int], n_levels: int) -> Tensor:
    dims = math.prod(image_shape)
    images = torch.tensor(list(itertools.product(range(n_levels), repeat=dims)))
    return images.view(-1, *image_shape)


def check_normalised(model: nn.Module, condition: Tensor | None = None) -> None:
    """The probabilities of all images of its tiny shape add up to 1."""
    images = all_images(model.image_shape, model.n_levels)
    if condition is not None:
        condition = condition[:1].expand(len(images), *condition.shape[1:])
    with torch.no_grad():
        log_prob = model.log_prob(images, condition)
    total = log_prob.logsumexp(0)
    torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-9)
    assert log_prob.std() > 0.1, "the model is flat: this would prove nothing"


def check_frequencies(model: nn.Module, n: int = 8000) -> None:
    """Samples of a tiny image come as often as log_prob says."""
    images = all_images(model.image_shape, model.n_levels)
    samples = model.sample(n, generator=torch.Generator().manual_seed(0))
    place = model.n_levels ** torch.arange(model.dims - 1, -1, -1)
    counts = torch.bincount((samples.flatten(1) * place).sum(1), minlength=len(images))
    with torch.no_grad():
        p = model.log_prob(images).exp()
    error = (counts / n - p).abs()
    assert (error <= 4.5 * (p * (1 - p) / n).sqrt() + 1 / n).all()


def check_methods(model: nn.Module, n: int, **arguments) -> Tensor:
    """All methods draw the same levels from the same uniforms; returns them."""
    generator = torch.Generator().manual_seed(1)
    uniforms = torch.rand(n, *model.image_shape, generator=generator, dtype=torch.float64)
    naive = model.sample(n, method="naive", uniforms=uniforms, **arguments)
    incremental = model.sample(n, method="incremental", uniforms=uniforms, **arguments)
    assert naive.dtype == incremental.dtype == torch.int64
    assert naive.shape == incremental.shape == (n, *model.image_shape)
    assert torch.equal(incremental, naive), where_different(incremental, naive)
    for block_rows in (2, 100):
        jacobi, sweeps = model.sample(
            n,
            method="jacobi",
            uniforms=uniforms,
            block_rows=block_rows,
            return_sweeps=True,
            **arguments,
        )
        assert torch.equal(jacobi, naive), where_different(jacobi, naive)
        assert sweeps.shape == (n,)
        assert (sweeps <= model.dims).all()
    return naive


def where_different(a: Tensor, b: Tensor) -> str:
    places = (a != b).nonzero()
    return (
        f"{len(places)} levels differ, first at (image, channel, row, column) {places[0].tolist()}"
    )


def sharpen(model: nn.Module, output: nn.Module, std: float = 2.0) -> nn.Module:
    """Float64, and each pixel hanging on those before it: else no mistake between them would show.

    Weights are multiplied by 3; then the output's parameters get the mean 0 and this deviation.
    """
    model.double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.05 * noise)
            if parameter.ndim > 1:
                parameter.mul_(3.0)
        levels = torch.randint(0, model.n_levels, (32, *model.image_shape), generator=generator)
        condition = None
        if model.conditional_channels:
            condition = torch.randn(
                32, model.conditional_channels, generator=generator, dtype=torch.float64
            )
        spread = model(levels, condition).std((0, 2, 3)).mean()
        for name, parameter in output.named_parameters():
            # Of a normalised weight, its norm alone. A single pixel sees nothing and has no spread.
            if spread > 1e-9 and parameter.ndim > 1 and not name.endswith("original1"):
                parameter.mul_(std / spread)
        output.bias.sub_(model(levels, condition).mean((0, 2, 3)))
        output.bias.add_(0.3 * torch.randn(output.bias.shape, generator=generator).double())
    return model

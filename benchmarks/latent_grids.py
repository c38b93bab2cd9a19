"""Sampling of models with grids of latents, beside one pass of what they sample with."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from benchmarks.harness import Case, Entry, Results, Rival, Setting
from deepgen_ext.models import HierarchicalVAE, PixelCNN, PixelVAE

SHAPE, BATCH = (1, 28, 28), 16
TINY_SHAPE, TINY_BATCH = (1, 8, 8), 2
TINY = {"channels": 6, "prior_channels": 6, "prior_layers": 1}
TINY_PIXELS = {"pixel_layers": 1, "pixel_channels": 6, "pixel_kernel_size": 3}


def _hierarchical(setting: Setting) -> Case:
    """The decoder's parameters of latents drawn from the prior, grid by grid."""
    shape, n = (TINY_SHAPE, TINY_BATCH) if setting.tiny else (SHAPE, BATCH)
    torch.manual_seed(0)
    model = _moved(HierarchicalVAE(shape, **(TINY if setting.tiny else {})))
    model = model.to(setting.device, setting.dtype)
    eps = torch.randn(n, model.noise_features).to(setting.device, setting.dtype)

    @torch.no_grad()
    def draw(net: HierarchicalVAE, eps: Tensor) -> Results:
        return [net.parameters_of_noise(eps)]

    z = model.latents_of_noise(eps).detach()

    @torch.no_grad()
    def one_pass() -> Results:
        """Of every network that sampling takes: the priors on given latents, and the decoder."""

        def score(index: int, level: nn.Module, above: Tensor, given: Tensor) -> Tensor:
            level.prior_of(given, above)
            return given

        return [model._down(z, score)]

    return Case(
        (n, *shape),
        lambda: draw(model, eps),
        lambda: draw(copy.deepcopy(model).double(), eps.double()),
        [],
        [Rival("one pass of priors and decoder", one_pass)],
        tolerance=1e-3,
        notes=(f"grids {', '.join('x'.join(map(str, grid)) for grid in model.grids)};",),
    )


def _pixelvae(setting: Setting) -> Case:
    """Latents, their map and all pixels, beside the pixels alone of a PixelCNN without a map."""
    shape, n = (TINY_SHAPE, TINY_BATCH) if setting.tiny else (SHAPE, BATCH)
    torch.manual_seed(0)
    model = _moved(PixelVAE(shape, **(TINY | TINY_PIXELS if setting.tiny else {})))
    model = model.to(setting.device, setting.dtype)
    network = model.pixels.network
    bare = PixelCNN(
        shape,
        len(network.blocks),
        network.hidden.in_channels,
        True,
        kernel_size=network.blocks[0].horizontal.kernel_size[1],
    ).to(setting.device, setting.dtype)
    eps = torch.randn(n, model.noise_features).to(setting.device, setting.dtype)
    uniforms = torch.rand(n, *shape).to(setting.device, setting.dtype)

    @torch.no_grad()
    def ours() -> Results:
        condition = model.parameters_of_noise(eps)
        return [model.pixels.sample(n, uniforms=uniforms, condition=condition)]

    @torch.no_grad()
    def expected() -> Results:
        """Every level is the draw from the parameters that a full pass gives for this image."""
        parameters = model.pixels(ours()[0], model.parameters_of_noise(eps))
        return [model.pixels.distribution.draw(parameters, uniforms, 1.0)]

    return Case(
        (n, *shape),
        ours,
        expected,
        [],
        [Rival("the bare PixelCNN", lambda: [bare.sample(n, uniforms=uniforms)])],
        tolerance=1e-2,  # rounding moves a level on the edge of its interval to the next
        notes=(f"gated, {len(network.blocks)} blocks; both sampled incrementally.",),
    )


@torch.no_grad()
def _moved(model: nn.Module) -> nn.Module:
    """Away from a start where priors are N(0, I) and blocks the identity."""
    for parameter in model.parameters():
        parameter.add_(0.03 * torch.randn_like(parameter))
    return model


ENTRIES = [
    Entry("hierarchical-vae sampling, batch 16", _hierarchical),
    Entry("pixelvae sampling, batch 16", _pixelvae),
]

"""ancestral_sample: a whole batch of images, against one forward pass of the same network.

A pass is the network with dense convolutions and the masks applied already: what the usual way to
sample runs once for every pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from benchmarks.harness import Case, Entry, Results, Rival, Setting
from deepgen_ext.models import PixelCNN, PixelCNNPlusPlus
from deepgen_ext.models.autoregressive.naive import embed
from deepgen_ext.nn import AncestralSampler, MaskedConv2d, ShiftedConv2d

PLAIN = {"layers": 7, "channels": 64}
NET = {"resnets": 2, "filters": 40}
TINY = {
    "plain": {"layers": 2, "channels": 6, "kernel_size": 3},
    "net": {"resnets": 1, "filters": 6},
}


def case(
    kind: type, options: dict, shape: tuple[int, ...], n: int, naive: bool, setting: Setting
) -> Case:
    if setting.tiny:
        options = {**options, **TINY["net" if kind is PixelCNNPlusPlus else "plain"]}
        shape, n = (shape[0], 4, 4), 2
    torch.manual_seed(0)
    model = kind(shape, **options).to(setting.device, setting.dtype).eval()
    uniforms = torch.rand(n, *shape, generator=torch.Generator().manual_seed(1))
    uniforms = uniforms.to(setting.device, setting.dtype)
    sampler = AncestralSampler(model.network, shape, model.distribution)

    def ours() -> Results:
        return [sampler(uniforms)]

    levels = ours()[0]
    x = embed(levels, model.n_levels, setting.dtype)
    twin = kind(shape, **options).to(setting.device, setting.dtype).eval()
    twin.load_state_dict(model.state_dict())
    masked = dense(twin.network)

    @torch.no_grad()
    def one_pass(network: Callable = masked) -> Results:
        return [network(x)]

    def expected() -> Results:
        """Every level is the draw from the parameters that a full pass gives for this image."""
        with torch.no_grad():
            return [model.distribution.draw(model.network(x), uniforms, 1.0)]

    def compiled() -> Results:
        return one_pass(fast)

    fast = setting.compiled(masked)
    floors = [
        Rival("one pass, masks applied", one_pass),
        Rival("one pass, torch.compile", compiled),
        Rival("one pass, our convolutions", partial(one_pass, model.network)),
    ]
    rivals = []
    if kind is PixelCNN and not options.get("gated"):
        rivals.append(Rival("eager incremental", partial(eager_incremental, model, uniforms)))
    if naive:
        draw = partial(model.sample, n, uniforms=uniforms)
        rivals.append(Rival("naive: a pass a pixel", lambda: [draw(method="naive")]))
        rivals.append(Rival("jacobi", lambda: [draw(method="jacobi")]))
    cache = sampler.cache_bytes() * n
    notes = [f"caches: {cache / 1e6:.2f} MB; {int(uniforms.numel())} levels drawn"]
    return Case(tuple(uniforms.shape), ours, expected, rivals, floors, notes=notes)


def dense(network: nn.Module) -> nn.Module:
    """The network rewritten as usual: convolutions of the whole kernel, zeros where it is masked.

    Weight normalisation is applied once and for all.
    """
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, MaskedConv2d):
                setattr(parent, name, _conv(layer, layer.weight * layer.mask(), layer.dilation))
            elif isinstance(layer, ShiftedConv2d) and layer.shift == "down" and layer.stride == 1:
                rows = layer.kernel_size[0] - 1
                if rows and layer.kernel_size[1] > 3:  # of a gated PixelCNN
                    weight = F.pad(layer.weight, (0, 0, 0, rows))
                    setattr(parent, name, _conv(layer, weight, layer.dilation))
    return network.requires_grad_(False)


def _conv(layer: nn.Module, weight: Tensor, dilation: int) -> nn.Conv2d:
    conv = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        tuple(weight.shape[2:]),
        padding="same",
        dilation=dilation,
    ).to(weight)
    conv.weight.data.copy_(weight)
    conv.bias.data.copy_(layer.bias)
    return conv


@torch.no_grad()
def eager_incremental(model: PixelCNN, uniforms: Tensor) -> Results:
    """The same idea in plain torch: padded maps, channels last, one product a layer and pixel."""
    network, (n, _, height, width) = model.network, uniforms.shape
    matrices, maps = [], []
    pad = max(layer.kernel_size[0] // 2 for layer in network.layers)
    for layer in network.layers:
        size = layer.kernel_size[0]
        seen = size // 2 * size + size // 2 + (layer.mask_type == "B")
        matrices.append(layer.weight.flatten(2)[:, :, :seen].transpose(1, 2).flatten(1).t())
        shape = (n, height + pad, width + 2 * pad, layer.in_channels)
        maps.append(uniforms.new_zeros(shape))
    levels = torch.zeros(uniforms.shape, dtype=torch.int64, device=uniforms.device)
    for i in range(height):
        for j in range(width):
            h = None
            for index, (layer, matrix) in enumerate(zip(network.layers, matrices, strict=True)):
                half = layer.kernel_size[0] // 2
                if index:
                    maps[index][:, i + pad, j + pad] = h.relu()
                rows = slice(i + pad - half, i + pad + 1)
                patch = maps[index][:, rows, j + pad - half : j + pad + half + 1].flatten(1)
                new = torch.addmm(layer.bias, patch[:, : len(matrix)], matrix)
                h = h + new if index and network.residual else new
            h = network.hidden(h.relu()[:, :, None, None])
            parameters = network.output(h.relu())
            here = (slice(None), slice(None), slice(i, i + 1), slice(j, j + 1))
            levels[here] = model.distribution.draw(parameters, uniforms[here], 1.0)
            pixel = embed(levels[here], model.n_levels, uniforms.dtype)
            maps[0][:, i + pad, j + pad] = pixel.flatten(1)
    return [levels]


GRAY, COLOUR = (1, 28, 28), (3, 32, 32)
ENTRIES = [
    Entry("PixelCNN 7x64 sampling, batch 16", partial(case, PixelCNN, PLAIN, GRAY, 16, False)),
    Entry("PixelCNN 7x64 sampling, batch 1", partial(case, PixelCNN, PLAIN, GRAY, 1, False)),
    Entry(
        "gated PixelCNN 7x64 sampling, batch 16",
        partial(case, PixelCNN, {**PLAIN, "gated": True}, GRAY, 16, False),
    ),
    Entry(
        "PixelCNN++ 2x40 sampling, batch 16",
        partial(case, PixelCNNPlusPlus, NET, COLOUR, 16, False),
    ),
    Entry(
        "PixelCNN 7x64 sampling, 12x12, batch 1",
        partial(case, PixelCNN, PLAIN, (1, 12, 12), 1, True),
    ),
]

"""The PixelCNN that everyone copies, before and after `deepgen_ext.accelerate`."""

from __future__ import annotations

import copy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import Case, Entry, Results, Rival, Setting
from deepgen_ext import accelerate
from deepgen_ext.models.autoregressive.naive import embed
from deepgen_ext.nn import AncestralSampler, Categorical
from deepgen_ext.nn.masked_conv2d import Raster


class Written(nn.Conv2d):
    """The mask is written into the weight in each pass."""

    def __init__(self, mask_type: str, *args: int) -> None:
        super().__init__(*args, padding="same", bias=False)  # normalised away
        self.register_buffer("mask", Raster(mask_type, 1).mask(self.weight.shape).float())

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return super().forward(x)


class Multiplied(Written):
    """The mask is multiplied into the weight in each pass, and its gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, padding="same")


class Unmasked(Written):
    def forward(self, x: Tensor) -> Tensor:
        return nn.Conv2d.forward(self, x)


def pixelcnn(
    kind: type[Written],
    channels: int,
    kernel: int,
    levels: int,
    activation: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(8):
        mask_type, inputs, size = ("B", channels, kernel) if index else ("A", 1, 7)
        layers += [kind(mask_type, inputs, channels, size), nn.BatchNorm2d(channels), activation()]
    return nn.Sequential(*layers, nn.Conv2d(channels, levels, 1))


def _training_step(kind: type[Written], kernel: int, setting: Setting) -> Case:
    """All but the optimiser's update."""
    batch, channels, side, levels = (2, 4, 5, 3) if setting.tiny else (16, 64, 28, 256)
    torch.manual_seed(0)
    # One ReLU that rounding turns over moves the gradients by 1e-3; ELU's slope is continuous.
    before = pixelcnn(kind, channels, kernel, levels, nn.ELU).to(setting.device, setting.dtype)
    x = setting.random(batch, 1, side, side, seed=1)
    target = torch.randint(levels, (batch, side, side), device=setting.device)

    def step(network: nn.Module, x: Tensor) -> Results:
        network.zero_grad(set_to_none=True)
        loss = F.cross_entropy(network(x), target)
        loss.backward()
        return [loss.detach(), *(parameter.grad for parameter in network.parameters())]

    unmasked = pixelcnn(Unmasked, channels, kernel, levels, nn.ELU).to(x)
    double = copy.deepcopy(before).double()
    return Case(
        (batch, 1, side, side, channels, kernel),
        partial(step, accelerate(before), x),
        partial(step, double, x.double()),
        [Rival("before", partial(step, before, x))],
        [Rival("without masks", partial(step, unmasked, x))],
        notes=["ours: the same network after deepgen_ext.accelerate"],
    )


def _sampling(setting: Setting) -> Case:
    n, channels, side, levels = (2, 4, 5, 3) if setting.tiny else (16, 64, 28, 256)
    torch.manual_seed(0)
    before = pixelcnn(Multiplied, channels, 3, levels).to(setting.device, setting.dtype).eval()
    distribution = Categorical(1, levels)
    sampler = AncestralSampler(accelerate(before), (1, side, side), distribution)
    uniforms = torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(1))
    uniforms = uniforms.to(setting.device, setting.dtype)
    x = embed(sampler(uniforms), levels, setting.dtype)

    @torch.no_grad()
    def one_pass() -> Results:
        return [before(x)]

    def expected() -> Results:
        """Every level is the draw from the parameters that a full pass gives for this image."""
        return [distribution.draw(one_pass()[0], uniforms, 1.0)]

    return Case(
        (n, 1, side, side, channels, 3),
        lambda: [sampler(uniforms)],
        expected,
        [],
        [Rival("a pass before", one_pass)],
        notes=["whose pass a pixel is what sampling costs before: 784"],
    )


ENTRIES = [
    Entry(
        f"accelerate masked Conv2d {how}, 8 layers of 64, k={kernel}, training step",
        partial(_training_step, kind, kernel),
    )
    for how, kind in (("written into .data", Written), ("times the mask", Multiplied))
    for kernel in (3, 7)
]
ENTRIES.append(Entry("accelerate masked Conv2d, 8 layers of 64, k=3, sampling", _sampling))

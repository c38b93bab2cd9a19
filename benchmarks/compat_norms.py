"""torch's spectral norms before and after `deepgen_ext.accelerate`: the norms alone, a training step.

Weights are used as a network's forward uses them, layer by layer; the network's own products are in
the training steps alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as hook

from benchmarks.harness import Case, Entry, Results, Rival, Setting
from benchmarks.spectral_networks import LAYERS
from deepgen_ext import accelerate

NORMS = {"parametrization": parametrizations.spectral_norm, "hook": hook}
# (in, out, kernel, stride), of images of 32x32: the critic of SN-GAN, Miyato et al. 2018, table 3.
CRITIC = [
    (3, 64, 3, 1),
    (64, 64, 4, 2),
    (64, 128, 3, 1),
    (128, 128, 4, 2),
    (128, 256, 3, 1),
    (256, 256, 4, 2),
    (256, 512, 3, 1),
]
# What Linear layers of 64 units, convolutions of 16 channels and of 64 to 512 have of weights.
NETWORKS = ("20 Linear 64", "20 convs 16", "critic", "20 convs 11 M")


def layers_of(network: str, tiny: bool) -> list[nn.Module]:
    if tiny:
        return [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)]
    if network == "20 Linear 64":
        return [nn.Linear(64, 64) for _ in range(20)]
    if network == "20 convs 16":
        return [nn.Conv2d(16, 16, 3, padding=1) for _ in range(20)]
    shapes = CRITIC if network == "critic" else [(a, b, 3, stride) for a, b, stride in LAYERS]
    return [nn.Conv2d(a, b, kernel, stride, 1) for a, b, kernel, stride in shapes]


def network_of(network: str, norm: Callable[..., nn.Module], setting: Setting) -> nn.Sequential:
    """With u and v at rest, so that runs that are repeated give one result: each weight gets a
    direction that is longer than the others."""
    torch.manual_seed(0)
    modules: list[nn.Module] = []
    for layer in layers_of(network, setting.tiny):
        with torch.no_grad():
            weight = layer.weight
            left, right = torch.randn(len(weight)), torch.randn_like(weight[0])
            longest = left.view(-1, *[1] * (weight.ndim - 1)) * right
            weight.add_(longest / longest.norm(), alpha=3.0)
        norm(layer.to(setting.device, setting.dtype))
        modules += [layer, nn.LeakyReLU(0.1)]
    model = nn.Sequential(*modules)
    for _ in range(50):
        with torch.no_grad():
            weights_of(model)
    return model


def weights_of(model: nn.Sequential) -> list[Tensor]:
    """As the layers use them."""
    for layer in model[::2]:
        for before in layer._forward_pre_hooks.values():
            before(layer, None)
    return [layer.weight for layer in model[::2]]


def norms_alone(model: nn.Sequential, direction: str, setting: Setting) -> Callable[[], Results]:
    parameters = [p for name, p in model.named_parameters() if not name.endswith("bias")]
    weights = weights_of(model.train(direction != "eval"))
    cotangents = [setting.random(*w.shape, seed=i, scale=0.1) for i, w in enumerate(weights)]

    def forward() -> Results:
        return [weight.detach() for weight in weights_of(model)]

    def backward() -> Results:
        return list(torch.autograd.grad(weights_of(model), parameters, cotangents))

    def evaluate() -> Results:
        with torch.no_grad():
            return weights_of(model)

    return {"forward": forward, "forward+backward": backward, "eval": evaluate}[direction]


def training_step(model: nn.Sequential, x: Tensor) -> Callable[[], Results]:
    """Of a critic: two batches, the optimiser's step. It learns nothing, so that runs repeat."""
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.0)

    def step() -> Results:
        optimizer.zero_grad()
        real, fake = model(x), model(-x)
        (fake.mean() - real.mean()).backward()
        optimizer.step()
        return [real.detach(), fake.detach()]

    return step


def case(norm: str, network: str, direction: str, setting: Setting) -> Case:
    before = network_of(network, NORMS[norm], setting)
    if direction == "training step":
        size = 8 if setting.tiny else 32
        x = setting.random(2 if setting.tiny else 4, 3, size, size, seed=1)
        make = partial(training_step, x=x)
        shape = tuple(x.shape)
    else:
        make = partial(norms_alone, direction=direction, setting=setting)
        shape = (len(before[::2]), sum(p.numel() for p in before.parameters()))
    # Once the graphs are gone, of which torch copies none.
    with torch.no_grad():
        weights_of(before)
    ours, theirs = make(accelerate(before)), make(before)
    return Case(
        shape,
        ours,
        lambda: [result.double() for result in theirs()],
        [Rival("before", theirs)],
        [],
        tolerance=1e-3,
        notes=["ours: the same layers after deepgen_ext.accelerate", "checked against before"],
    )


def _entries() -> Iterator[Entry]:
    for norm in NORMS:
        for network in NETWORKS:
            directions = ["forward", "forward+backward"]
            if norm == "parametrization":
                directions.append("eval")
            if network == "critic":
                directions.append("training step")
            for direction in directions:
                name = f"accelerate spectral norm {norm} {network} {direction}"
                yield Entry(name, partial(case, norm, network, direction))


ENTRIES = list(_entries())

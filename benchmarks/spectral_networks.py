"""A network of 20 spectrally normalised convolutions against the same with torch's parametrization."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from benchmarks.harness import Case, Entry, Results, Rival, Setting
from deepgen_ext.nn import SpectralConv2d, spectral_norm, spectral_norm_all

# (in, out, stride) of 3x3 kernels, as a discriminator of 32x32 images: 20 layers, 11.5 M weights.
LAYERS = [
    (3, 64, 1),
    *[(64, 64, 1)] * 4,
    (64, 128, 2),
    *[(128, 128, 1)] * 4,
    (128, 256, 2),
    *[(256, 256, 1)] * 4,
    (256, 512, 2),
    *[(512, 512, 1)] * 3,
    (512, 64, 1),
]
TINY = [(3, 4, 1), (4, 5, 2)]
PLAIN = "the network without norms"


def _network(setting: Setting, conv: Callable[..., nn.Module] = nn.Conv2d) -> nn.Sequential:
    torch.manual_seed(0)
    layers = []
    for inputs, outputs, stride in TINY if setting.tiny else LAYERS:
        layers += [conv(inputs, outputs, 3, stride, 1), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers).to(setting.device, setting.dtype)


def _each(norm: Callable[[nn.Module], nn.Module], model: nn.Sequential) -> nn.Sequential:
    for layer in model[::2]:
        norm(layer)
    return model


def _alike(model: nn.Sequential, source: nn.Sequential) -> nn.Sequential:
    """The weights, u and v of a network with torch's parametrization, whatever ours calls them."""
    for layer, given in zip(model[::2], source[::2], strict=True):
        values = given.parametrizations.weight
        constraint = values[0]
        with torch.no_grad():
            layer.bias.copy_(given.bias)
            if isinstance(layer, SpectralConv2d):
                weight, target = layer.weight, layer.constraint
            elif hasattr(layer, "parametrizations"):
                weight, target = (
                    layer.parametrizations.weight.original,
                    layer.parametrizations.weight[0],
                )
            else:
                layer.weight.copy_(given.weight)
                continue
            weight.copy_(values.original)
            target._u.copy_(constraint._u)
            target._v.copy_(constraint._v)
    return model


def _converged(setting: Setting) -> nn.Sequential:
    """With torch's parametrization, and u and v at rest: runs that are repeated give one result.

    Each weight gets a direction that is longer than the others, or that would take thousands of
    steps.
    """
    model = _network(setting)
    for layer in model[::2]:
        with torch.no_grad():
            left, right = (
                torch.randn_like(layer.weight[:, 0, 0, 0]),
                torch.randn_like(layer.weight[0]),
            )
            unit = left[:, None, None, None] * right
            layer.weight.add_(unit / unit.norm(), alpha=3.0)
        parametrizations.spectral_norm(layer, n_power_iterations=50)
        layer.parametrizations.weight[0].n_power_iterations = 1
    return model.eval()


def _case(training: bool, batch: int, setting: Setting) -> Case:
    size = 8 if setting.tiny else 32
    x = setting.random(2 if setting.tiny else batch, 3, size, size, seed=1)
    theirs = _converged(setting)
    contenders = {
        "ours": _alike(spectral_norm_all(_network(setting)), theirs),
        "ours, layer by layer": _alike(_each(spectral_norm, _network(setting)), theirs),
        "ours, scaling outputs": _alike(_network(setting, SpectralConv2d), theirs),
        "torch's parametrization": theirs,
        PLAIN: _alike(_network(setting), theirs),
    }
    cotangent = theirs(x).detach().sign()
    compiled = copy.deepcopy(theirs)
    call_compiled = setting.compiled(compiled.__call__)

    def run(
        model: nn.Sequential, call: Callable[[Tensor], Tensor] | None = None
    ) -> Callable[[], Results]:
        model.train(training)
        call = call or model

        def step() -> Results:
            model.zero_grad(set_to_none=True)
            y = call(x)
            y.backward(cotangent)
            return [y.detach()]

        def evaluate() -> Results:
            with torch.no_grad():
                return [call(x)]

        return step if training else evaluate

    runs = {name: run(model) for name, model in contenders.items()}
    floor = Rival(PLAIN, runs[PLAIN], expected=runs[PLAIN])
    weights = sum(p.numel() for p in contenders[PLAIN].parameters())
    return Case(
        (*x.shape, weights),
        runs["ours"],
        lambda: [y.double() for y in runs["torch's parametrization"]()],
        [
            *(Rival(name, runs[name]) for name in list(runs)[1:4]),
            Rival("torch.compile of torch's", run(compiled, call_compiled)),
        ],
        [floor],
        None,
        notes=(
            "ours: spectral_norm_all; a training step without the optimiser's"
            if training
            else "evaluation mode, without gradients",
        ),
        tolerance=1e-3,  # float32, through 20 layers
    )


ENTRIES = [
    Entry(f"spectral_networks {name} batch {batch}", partial(_case, training, batch))
    for name, training in (("training", True), ("eval", False))
    for batch in (1, 4)
]

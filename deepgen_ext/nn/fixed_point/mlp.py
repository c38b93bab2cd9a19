"""Which g are MLPs that one kernel can iterate, and what the kernel needs of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..masked_linear import MaskedLinear
from ..mlp import MLP

MOST_LAYERS = 16

# What the kernel calls them, and the attribute that is its beta.
_ACTIVATIONS = {
    nn.ReLU: ("relu", None),
    nn.ELU: ("elu", "alpha"),
    nn.LeakyReLU: ("leaky_relu", "negative_slope"),
    nn.Softplus: ("softplus", "beta"),
    nn.Tanh: ("tanh", None),
    nn.Sigmoid: ("sigmoid", None),
    nn.SiLU: ("silu", None),
}


class FusedMLP(NamedTuple):
    """W_n act(... act(W_1 x + b_1)) + b_n as ops.fixed_point_mlp takes it."""

    weights: list[Tensor]
    biases: list[Tensor]
    betas: Tensor
    activation: str


class NotFused(Exception):
    """Why g is not iterated in one kernel."""


def fused_mlp(g: Callable[[Tensor], Tensor], y: Tensor) -> FusedMLP:
    """The current values of g's weights: of parametrized and masked layers those that they apply.

    g is a Sequential of Linear layers with one kind of activation between them, an nn.MLP without a
    context, or a module with a method `plain_layers()` that lists what it applies one after the other
    to flattened samples. An activation is ReLU, ELU, LeakyReLU, Softplus, Tanh, Sigmoid or SiLU, or a
    module with a method `fused_activation()` that gives the name and the beta of
    `ops.fixed_point_mlp`.

    Raises:
        NotFused: says why not.
    """
    if y.dtype not in (torch.float32, torch.float64):
        raise NotFused(f"y is {y.dtype}, and g has to be computed in it")
    if torch.is_autocast_enabled(y.device.type):
        raise NotFused("autocast computes g in another dtype")
    if not isinstance(g, nn.Module):
        raise NotFused(f"g is a {type(g).__name__}, not a Module of known layers")
    flat = hasattr(g, "plain_layers")
    if y.dim() != 2 and not flat:
        raise NotFused(f"samples of shape {tuple(y.shape[1:])} are no vectors")
    layers = list(_layers(g))
    linear, activations = layers[::2], layers[1::2]
    if len(linear) != len(activations) + 1 or len(linear) > MOST_LAYERS:
        raise NotFused(
            f"expected 1 to {MOST_LAYERS} Linear layers with an activation between each two, got "
            + ", ".join(type(layer).__name__ for layer in layers)
        )
    names, betas = set(), []
    for activation in activations:
        name, beta = _activation(activation)
        names.add(name)
        betas.append(torch.as_tensor(beta, dtype=y.dtype, device=y.device).reshape(()))
    if len(names) > 1:
        raise NotFused(f"activations of several kinds: {', '.join(sorted(names))}")
    weights, biases = [], []
    features = y.shape[1:].numel()
    width = features
    for layer in linear:
        weight = _weight(layer)
        bias = weight.new_zeros(weight.shape[0]) if layer.bias is None else layer.bias
        if weight.dtype != y.dtype or weight.device != y.device:
            raise NotFused(f"weights are {weight.dtype} on {weight.device}, y is not")
        if weight.shape[1] != width:
            raise NotFused(f"a Linear layer takes {weight.shape[1]} numbers where {width} come")
        weights.append(weight.detach())
        biases.append(bias.detach())
        width = weight.shape[0]
    if width != features:
        raise NotFused(f"g maps {features} numbers to {width}")
    return FusedMLP(
        weights, biases, torch.stack(betas) if betas else y.new_zeros(0), *(names or {"relu"})
    )


def _layers(g: nn.Module) -> Iterator[nn.Module]:
    _refuse_hooks(g)
    if hasattr(g, "plain_layers"):
        yield from _flattened(g.plain_layers())
    elif type(g) is nn.Sequential:
        yield from _flattened(g)
    elif type(g) is MLP and not g.context_features:
        for layer in g.hidden:
            yield from (layer, nn.SiLU())
        yield g.output
    else:
        raise NotFused(f"{type(g).__name__} is not a module whose layers are known")


def _flattened(layers: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for layer in layers:
        _refuse_hooks(layer)
        if type(layer) is nn.Sequential:
            yield from _flattened(layer)
        else:
            yield layer


def _refuse_hooks(module: nn.Module) -> None:
    if module._forward_hooks or module._forward_pre_hooks:
        raise NotFused(f"a {type(module).__name__} has forward hooks")


def _weight(layer: nn.Module) -> Tensor:
    kind = parametrize.type_before_parametrizations(layer)
    if kind is MaskedLinear:
        return layer.weight * layer.mask
    if kind is nn.Linear:
        return layer.weight
    raise NotFused(f"{type(layer).__name__} stands where a Linear layer is expected")


def _activation(layer: nn.Module) -> tuple[str, Any]:
    if hasattr(layer, "fused_activation"):
        return layer.fused_activation()
    if type(layer) is nn.Softplus and layer.threshold != 20:
        raise NotFused(f"Softplus with the threshold {layer.threshold}; the kernel knows 20")
    if type(layer) not in _ACTIVATIONS:
        raise NotFused(f"the kernel knows no {type(layer).__name__}")
    name, parameter = _ACTIVATIONS[type(layer)]
    return name, getattr(layer, parameter) if parameter else 1.0

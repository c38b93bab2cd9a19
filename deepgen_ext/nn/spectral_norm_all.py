"""Spectral norms of a whole network, one launch a forward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from deepgen_ext.ops import spectral_normalize

from .normalized_weight import in_backward, is_transformed
from .spectral_norm import SpectralNorm, spectral_norm

_LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Embedding,
)


def spectral_norm_all(
    model: nn.Module,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    *,
    coefficient: float | None = None,
    select: Callable[[str, nn.Module], bool] | None = None,
) -> nn.Module:
    """`spectral_norm` on every layer of the model, their iterations in one launch; returns the model.

    Of kind="matrix" alone: a step of kind="conv" is two convolutions of a layer's own shape, which no
    launch can share with other layers; `spectral_norm` each of them, with its `input_shape`.

    Layers: Linear, Conv1-3d, ConvTranspose1-3d and Embedding, or those for whose name and module
    `select` is true; never those whose weight has a parametrization already. Layers that share a
    weight have a u and v each.

    When the model's forward begins in training mode, all weights are iterated and scaled together,
    and hold until it ends: a layer that is used twice in one forward pass moves its u and v once.
    Two forward passes make two steps. Each use of a weight has a node of its own in the graph:
    backward passes from several outputs are independent, and what was not used gets no gradient. A
    layer that is called outside of the model's forward does its own step, but for a checkpoint's
    second forward, which finds u and v as they are. In eval mode each layer keeps its weight.

    The hooks that do it are the model's: wrap it in DistributedDataParallel afterwards, and call
    the model, not model.forward.

    Raises:
        ValueError: a model without such layers; as `spectral_norm`.
    """
    layers = [
        layer
        for path, layer in model.named_modules()
        if (isinstance(layer, _LAYERS) if select is None else select(path, layer))
        and isinstance(getattr(layer, name, None), nn.Parameter)
        and not nn.utils.parametrize.is_parametrized(layer, name)
    ]
    if not layers:
        raise ValueError(f"model: no layer with a parameter {name!r} to normalise")
    for layer in layers:
        spectral_norm(layer, name, n_power_iterations, eps, coefficient=coefficient)
        layer.parametrizations[name][0].grouped = True
    group = SpectralNormGroup(layers, name)
    model.register_forward_pre_hook(group.begin)
    model.register_forward_hook(group.end, always_call=True)
    return model


class SpectralNormGroup:
    """The constraints of a model's layers, and the hooks that step them together."""

    def __init__(self, layers: list[nn.Module], name: str) -> None:
        self.layers, self.name = layers, name

    def begin(self, model: nn.Module, args: Any) -> None:
        """Before a forward pass in training: every scaled weight, in one call."""
        if not self._in_training():
            return
        groups: dict[Any, list[tuple[SpectralNorm, torch.Tensor]]] = {}
        for constraint, weight in self._constraints():
            if constraint.training:
                key = (weight.dtype, weight.device, constraint.n_power_iterations)
                groups.setdefault(key, []).append((constraint, weight))
        for members in groups.values():
            _step(members)

    def end(self, model: nn.Module, args: Any, output: Any) -> None:
        """After it, and where it raised."""
        if not self._in_training():
            return  # and if that changed within: train() and eval() drop what was ready
        for constraint, _ in self._constraints():
            constraint.ready = None

    def _in_training(self) -> bool:
        """Whether any layer is: eval mode pays for no more than this question."""
        return any(layer.training for layer in self.layers)

    def _constraints(self) -> list[tuple[SpectralNorm, torch.Tensor]]:
        found = []
        for layer in self.layers:
            if not nn.utils.parametrize.is_parametrized(layer, self.name):
                continue  # taken off since
            parametrizations = layer.parametrizations[self.name]
            # One put before ours makes another weight of the parameter: ours works alone then.
            if isinstance(parametrizations[0], SpectralNorm):
                found.append((parametrizations[0], parametrizations.original))
        return found


def _step(members: list[tuple[SpectralNorm, torch.Tensor]]) -> None:
    first = members[0][0]
    # A compiler sees one graph. In eager mode one node for all would tie their backwards together.
    as_one = is_transformed()
    n_iterations = 0 if in_backward() else first.n_power_iterations
    with torch.set_grad_enabled(torch.is_grad_enabled() and as_one):
        given = [c.given(weight, c._u, c._v) for c, weight in members]
        matrices, us, vs = ([part[i][0] for part in given] for i in range(3))
        scaled, us, vs, sigmas = spectral_normalize(
            matrices, us, vs, n_iterations, first.eps, first.coefficient
        )
    with torch.no_grad():
        buffers = [constraint._u for constraint, _ in members]
        buffers += [constraint._v for constraint, _ in members]
        torch._foreach_copy_(buffers, [*us, *vs])
    results = zip(scaled, us, vs, sigmas.split(1), strict=True)
    for (constraint, _), result in zip(members, results, strict=True):
        if as_one:
            constraint.ready = partial(_given, constraint.weight(result[0]))
        else:
            constraint.ready = partial(_attached, constraint, result)


def _given(scaled: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return scaled


def _attached(
    constraint: SpectralNorm, result: tuple[torch.Tensor, ...], weight: torch.Tensor
) -> torch.Tensor:
    return constraint.attach(weight, *result)

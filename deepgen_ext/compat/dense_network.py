"""The dense nets of nflows' and normflows' couplings: the same products, without the calls between.

A net of 32 units takes half of its time in Python: a module's call for each layer and block, a look-up
for each of their parameters, a dropout of nothing. Here the layers' products follow each other, and
activations are written over what nobody else sees. The same kernels on the same numbers: bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .accelerated import Accelerated, has_hooks, is_hooked


class DenseNet(Accelerated):
    gain = "its layers in sequence: no module's call for each, activations in place, the same bits"
    keeps = ()

    @classmethod
    def why_not(cls, module: Any) -> str:
        return "hooks on its layers, which would not be called" if has_hooks(module) else ""

    def comparisons(self, original: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
        first = next(part for part in self.modules() if isinstance(part, nn.Linear)).weight
        for part in (original, self):
            part.eval()  # dropout
        for given in self._inputs(first):
            yield "its output", original(*given), self(*given)

    def _inputs(self, first: Tensor) -> Iterator[tuple[Tensor, ...]]:
        yield (torch.randn(3, first.shape[1], dtype=first.dtype, device=first.device),)


class ResidualNet(DenseNet):
    """nflows' ResidualNet, of which normflows has a copy."""

    block: type[nn.Module]

    @classmethod
    def why_not(cls, module: Any) -> str:
        for block in module.blocks:
            if type(block) is not cls.block:
                return "its blocks are not those that it was made with"
            if block.use_batch_norm:
                return "batch norm between its layers"
        return super().why_not(module)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        if getattr(self, "preprocessing", None) is not None:
            inputs = self.preprocessing(inputs)
        if context is not None:
            inputs = torch.cat((inputs, context), dim=1)
        parts = self._modules
        h = linear(parts["initial_layer"], inputs)
        for block in parts["blocks"]._modules.values():
            h = h + _branch(block, h, context)
        return linear(parts["final_layer"], h)

    def _inputs(self, first: Tensor) -> Iterator[tuple[Tensor, ...]]:
        if self.context_features is None:
            yield from super()._inputs(first)
            return
        sizes = first.shape[1] - self.context_features, self.context_features
        yield tuple(first.new_empty(3, size).normal_() for size in sizes)


def _branch(block: Any, h: Tensor, context: Tensor | None) -> Tensor:
    """What a residual block adds."""
    parts = block._modules
    first, second = parts["linear_layers"]._modules.values()
    rectifies = block.activation in (F.relu, torch.relu)
    h = linear(first, torch.relu(h) if rectifies else block.activation(h))
    # Hooks that came later may keep what a layer returns.
    h = h.relu_() if rectifies and not is_hooked(first) else block.activation(h)
    h = linear(second, drop(parts["dropout"], h))
    if context is not None:
        h = F.glu(torch.cat((h, linear(parts["context_layer"], context)), dim=1), dim=1)
    return h


class MLP(DenseNet):
    """normflows' MLP."""

    @classmethod
    def why_not(cls, module: Any) -> str:
        if type(module.net) is not nn.Sequential:
            return "its layers are no Sequential"
        return super().why_not(module)

    def forward(self, x: Tensor) -> Tensor:
        before = None
        for layer in self._modules["net"]._modules.values():
            kind = type(layer)
            if kind is nn.Linear:
                x = linear(layer, x)
            elif (
                kind is nn.LeakyReLU and type(before) is nn.Linear and not is_hooked(before, layer)
            ):
                x = F.leaky_relu(x, layer.negative_slope, layer.negative_slope >= 0)
            else:
                x = layer(x)
            before = layer
        return x


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x); of a plain nn.Linear without the module's call."""
    weight = layer._parameters.get("weight")
    if weight is None or type(layer) is not nn.Linear or is_hooked(layer):
        return layer(x)
    return F.linear(x, weight, layer._parameters["bias"])


def drop(dropout: nn.Module, x: Tensor) -> Tensor:
    """dropout(x), not called where it would return x."""
    if type(dropout) is not nn.Dropout or is_hooked(dropout):
        return dropout(x)
    return dropout(x) if dropout.training and dropout.p > 0 else x

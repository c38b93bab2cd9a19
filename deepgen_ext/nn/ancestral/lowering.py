"""From the calls of a network to a program: each is written by a Builder."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from deepgen_ext.nn.gates import AppendOnes, ConcatELU, Gate, GatedSigmoid
from deepgen_ext.nn.shifted_conv2d import Shift

from .builder import Builder
from .conditions import SUMS, Conditions, added_projection
from .convolutions import as_convolution, has_own_forward
from .features import Feature
from .program import CannotCompile, Kind

IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)


class Lowering:
    """Walks over recorded calls and has each written by the builder, from the conditions on.

    A projection of a condition that is added to a convolution becomes part of that convolution.
    """

    def __init__(
        self,
        network: nn.Module,
        builder: Builder,
        conditions: Conditions,
    ) -> None:
        self.network = network
        self.projections = conditions.projections
        self.builder = builder
        self.values: dict[fx.Node, Any] = {
            node: builder.condition(*form) for node, form in conditions.forms.items()
        }
        self.ones = 0  # conditions behind the others that are a channel of ones

    def run(self, graph: fx.Graph, of_image: set[fx.Node]) -> Feature:
        """The feature that the network returns."""
        added = {node: self._added_to(node) for node in graph.nodes if node in of_image}
        calls = (of_image | self.projections) - set(added.values())
        for node in graph.nodes:
            if node.op == "output":
                return self._feature(node.args[0], "the network's output")
            if node not in calls or node in self.values:
                continue
            if node.op == "placeholder":
                self.values[node] = self.builder.image
                continue
            try:
                self.values[node] = self._call(node, added.get(node))
            except CannotCompile as error:
                raise CannotCompile(f"{self._name(node)}: {error}") from None
        raise CannotCompile(f"{type(self.network).__name__}.forward returns nothing")

    def _name(self, node: fx.Node) -> str:
        if node.op == "call_module":
            module = self.network.get_submodule(node.target)
            return f"layer '{node.target}' ({type(module).__name__})"
        if node.op == "call_method":
            return f"Tensor.{node.target}"
        return getattr(node.target, "__name__", str(node.target))

    def _feature(self, value: Any, what: str) -> Feature:
        found = self.values.get(value) if isinstance(value, fx.Node) else None
        if not isinstance(found, Feature):
            raise CannotCompile(f"{what} must be one feature map, got {value!r}")
        return found

    def _added_to(self, node: fx.Node) -> fx.Node | None:
        """The projection that a convolution takes over."""
        if (
            node.op != "call_module"
            or as_convolution(self.network.get_submodule(node.target)) is None
        ):
            return None
        return added_projection(node, self.projections)

    def _call(self, node: fx.Node, projection: fx.Node | None) -> Any:
        if node.op == "call_module":
            module = self.network.get_submodule(node.target)
            a = self._feature(node.args[0], "its input")
            if projection is None:
                return self._module(module, a)
            c = self._feature(projection.args[0], "its input")
            known = as_convolution(self.network.get_submodule(projection.target))
            total = self.builder.convolve(a, as_convolution(module), [(c, known)])
            return self.values.setdefault(next(iter(node.users)), total)
        handler = HANDLERS.get(node.target)
        if handler is None:
            raise CannotCompile(
                "no program knows this operation. Those that it knows: masked, shifted and 1x1 "
                "convolutions, relu, elu, tanh, sigmoid, +, -, *, cat, chunk, gates, batch "
                "normalisation in evaluation"
            )
        arguments = fx.node.map_arg(node.args, lambda n: self.values[n])
        return handler(self, *arguments, **fx.node.map_arg(node.kwargs, lambda n: self.values[n]))

    def _module(self, module: nn.Module, a: Feature) -> Feature:
        builder = self.builder
        convolution = as_convolution(module)
        if convolution is not None:
            return builder.convolve(a, convolution)
        if isinstance(module, IDENTITIES):
            return a
        if isinstance(module, nn.ReLU):
            return builder.pointwise(Kind.RELU, a)
        if isinstance(module, nn.ELU):
            return _elu(self, a, module.alpha)
        if isinstance(module, nn.Tanh):
            return builder.pointwise(Kind.TANH, a)
        if isinstance(module, nn.Sigmoid):
            return builder.pointwise(Kind.SIGMOID, a)
        if isinstance(module, Gate):
            return builder.gate(a, module.groups_in_order)
        if isinstance(module, GatedSigmoid):
            return builder.gate(a, 1, Kind.SIGMOID_GATE)
        if isinstance(module, ConcatELU):
            return builder.concatenate([a, a], [Kind.ELU, Kind.NEGATIVE_ELU])
        if isinstance(module, Shift):
            rows, columns = (1, 0) if module.direction == "down" else (0, 1)
            return builder.shift(a, rows, columns)
        if isinstance(module, AppendOnes):
            return builder.concatenate([a, self._ones()])
        if isinstance(module, nn.BatchNorm2d):
            return builder.affine(a, lambda: _batch_norm_factors(module))
        if isinstance(module, nn.Conv2d) and has_own_forward(module):
            raise CannotCompile(
                "a convolution with a forward of its own. If that multiplies a raster mask into the "
                "weight, deepgen_ext.accelerate(network) makes it one that can be drawn from"
            )
        raise CannotCompile(
            f"{module} cannot be computed pixel by pixel. A network to be drawn from is made of "
            f"MaskedConv2d, ShiftedConv2d, ShiftedConvTranspose2d, Shift, gates, nn.Conv2d with "
            f"kernel_size=1, ReLU, ELU, Tanh, Sigmoid, Dropout and BatchNorm2d"
        )

    def _ones(self) -> Feature:
        self.ones += 1
        return self.builder.condition(1, 0, False)


def _batch_norm_factors(layer: nn.BatchNorm2d) -> Tensor:
    if layer.running_mean is None:
        raise CannotCompile("batch normalisation without running statistics needs the whole batch")
    scale = (layer.running_var + layer.eps).rsqrt()
    if layer.weight is not None:
        scale = scale * layer.weight
    shift = -layer.running_mean * scale
    if layer.bias is not None:
        shift = shift + layer.bias
    return torch.cat([scale, shift])


# ---------------------------------------------------------------- functions and methods


def _unary(kind: Kind) -> Callable[..., Feature]:
    return lambda self, a, inplace=False: self.builder.pointwise(kind, a)


def _elu(self: Lowering, a: Feature, alpha: float = 1.0, inplace: bool = False) -> Feature:
    if alpha != 1:
        raise CannotCompile(f"ELU is known with alpha=1, got {alpha}")
    return self.builder.pointwise(Kind.ELU, a)


def _binary(kind: Kind) -> Callable[..., Feature]:
    """a + b and so on, of features, or of a feature and a number."""

    def call(self: Lowering, a: Any, b: Any, alpha: float = 1) -> Feature:
        if alpha != 1:
            raise CannotCompile(f"alpha={alpha} is not known")
        if isinstance(a, Feature) and isinstance(b, Feature):
            return self.builder.pointwise(kind, a, b)
        feature, number = (a, b) if isinstance(a, Feature) else (b, a)
        if not isinstance(number, (int, float)):
            raise CannotCompile(f"combines a feature map with {number!r}")
        scale, shift = 1.0, 0.0
        if kind == Kind.MULTIPLY:
            scale = float(number)
        elif kind == Kind.ADD:
            shift = float(number)
        elif feature is a:
            shift = -float(number)
        else:
            scale, shift = -1.0, float(number)
        factors = torch.tensor([[scale], [shift]]).expand(2, feature.channels).flatten()
        return self.builder.affine(feature, lambda: factors)

    return call


def _divide(self: Lowering, a: Any, number: Any) -> Feature:
    if not isinstance(a, Feature) or not isinstance(number, (int, float)) or number == 0:
        raise CannotCompile(f"divides by {number!r}; only feature maps by numbers are known")
    return _binary(Kind.MULTIPLY)(self, a, 1 / number)


def _cat(self: Lowering, tensors: Any, dim: int = 0) -> Feature:
    if dim not in (1, -3):
        raise CannotCompile(f"concatenates along dimension {dim}; only channels (1) are known")
    return self.builder.concatenate(list(tensors))


def _chunk(self: Lowering, a: Feature, chunks: int, dim: int = 0) -> tuple[Feature, ...]:
    if dim not in (1, -3):
        raise CannotCompile(f"cuts dimension {dim}; only channels (1) are known")
    size = -(-a.channels // chunks)
    return tuple(
        self.builder.slice(a, begin, min(size, a.channels - begin))
        for begin in range(0, a.channels, size)
    )


def _split(self: Lowering, a: Feature, sizes: Any, dim: int = 0) -> tuple[Feature, ...]:
    if isinstance(sizes, int):
        return _chunk(self, a, -(-a.channels // sizes), dim)
    if dim not in (1, -3) or sum(sizes) != a.channels:
        raise CannotCompile(f"splits {a.channels} channels into {sizes} along dimension {dim}")
    begins = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(
        self.builder.slice(a, begin, size) for begin, size in zip(begins, sizes, strict=True)
    )


def _identity(self: Lowering, a: Feature, *_: Any, **__: Any) -> Feature:
    return a


HANDLERS: dict[Any, Callable[..., Any]] = {}
for _kind, _names in {
    Kind.RELU: (torch.relu, torch.relu_, F.relu, F.relu_, "relu", "relu_"),
    Kind.TANH: (torch.tanh, F.tanh, "tanh", "tanh_"),
    Kind.SIGMOID: (torch.sigmoid, F.sigmoid, "sigmoid", "sigmoid_"),
}.items():
    HANDLERS.update(dict.fromkeys(_names, _unary(_kind)))
for _kind, _names in {
    Kind.ADD: SUMS,
    Kind.SUBTRACT: (operator.sub, operator.isub, torch.sub, "sub", "sub_"),
    Kind.MULTIPLY: (operator.mul, operator.imul, torch.mul, "mul", "mul_"),
}.items():
    HANDLERS.update(dict.fromkeys(_names, _binary(_kind)))
HANDLERS.update(dict.fromkeys((F.elu, F.elu_), _elu))
HANDLERS.update(dict.fromkeys((operator.truediv, torch.div, "div"), _divide))
HANDLERS.update(dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _cat))
HANDLERS.update(dict.fromkeys((torch.chunk, "chunk"), _chunk))
HANDLERS.update(dict.fromkeys((torch.split, "split"), _split))
HANDLERS.update(dict.fromkeys((F.dropout, F.dropout2d, "contiguous", "clone"), _identity))
HANDLERS[operator.getitem] = lambda self, values, index: values[index]
HANDLERS[operator.neg] = lambda self, a: _binary(Kind.MULTIPLY)(self, a, -1)

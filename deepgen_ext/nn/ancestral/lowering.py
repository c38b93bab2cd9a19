"""From a network of layers to a program: torch.fx records the calls, each is written by a Builder."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from deepgen_ext.nn.gates import AppendOnes, ConcatELU, Gate, GatedSigmoid
from deepgen_ext.nn.masked_conv2d import MaskedConv2d
from deepgen_ext.nn.shifted_conv2d import Shift, ShiftedConv2d, ShiftedConvTranspose2d

from .builder import Builder, CannotCompile
from .convolutions import as_convolution
from .features import Feature
from .program import Kind

LEAVES = (
    MaskedConv2d,
    ShiftedConv2d,
    ShiftedConvTranspose2d,
    Shift,
    Gate,
    GatedSigmoid,
    ConcatELU,
    AppendOnes,
)
IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)


class CallsOfNetwork(fx.Tracer):
    """Records a forward pass. What is called on conditions alone stays one call, whatever is in it."""

    def __init__(self) -> None:
        super().__init__()
        self.of_image: set[fx.Node] = set()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, LEAVES) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        proxies: list[fx.Node] = []
        fx.node.map_aggregate((args, kwargs), lambda a: _collect(a, proxies))
        if not any(node in self.of_image for node in proxies):
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)
        return super().call_module(m, forward, args, kwargs)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        is_image = node.op == "placeholder" and not any(
            other.op == "placeholder" for other in self.graph.nodes if other is not node
        )
        if is_image or any(source in self.of_image for source in node.all_input_nodes):
            self.of_image.add(node)
        return node


def _collect(value: Any, proxies: list[fx.Node]) -> Any:
    if isinstance(value, fx.Proxy):
        proxies.append(value.node)
    return value


def record(network: nn.Module, has_condition: bool) -> tuple[fx.Graph, set[fx.Node]]:
    """The calls of network.forward(x) or forward(x, condition), and which depend on x."""
    tracer = CallsOfNetwork()
    try:
        graph = tracer.trace(network, None if has_condition else {"condition": None})
    except CannotCompile:
        raise
    except Exception as error:
        raise CannotCompile(
            f"{type(network).__name__}.forward cannot be recorded: {error}. A network to be drawn "
            f"from has a fixed sequence of layers; only `if condition is None` may branch"
        ) from error
    for node in reversed(graph.nodes):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)
    return graph, tracer.of_image & set(graph.nodes)


def conditions_of(graph: fx.Graph, of_image: set[fx.Node]) -> list[fx.Node]:
    """The values that join the image's features and do not depend on the image themselves."""
    return [
        node
        for node in graph.nodes
        if node not in of_image and any(user in of_image for user in node.users)
    ]


class Lowering:
    """Walks over recorded calls and has each written by the builder.

    `conditions` says of each condition its channels, its stride and whether it is a map.
    """

    def __init__(
        self,
        network: nn.Module,
        builder: Builder,
        conditions: Mapping[fx.Node, tuple[int, int, bool]],
    ) -> None:
        self.network = network
        self.builder = builder
        self.values: dict[fx.Node, Any] = {
            node: builder.condition(*shape) for node, shape in conditions.items()
        }
        self.ones = 0  # conditions behind the others that are a channel of ones

    def run(self, graph: fx.Graph, of_image: set[fx.Node]) -> Feature:
        """The feature that the network returns."""
        for node in graph.nodes:
            if node.op == "output":
                return self._feature(node.args[0], "the network's output")
            if node not in of_image:
                continue
            if node.op == "placeholder":
                self.values[node] = self.builder.image
                continue
            try:
                self.values[node] = self._call(node)
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

    def _call(self, node: fx.Node) -> Any:
        if node.op == "call_module":
            module = self.network.get_submodule(node.target)
            return self._module(module, self._feature(node.args[0], "its input"))
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
    Kind.ADD: (operator.add, operator.iadd, torch.add, "add", "add_"),
    Kind.SUBTRACT: (operator.sub, operator.isub, torch.sub, "sub", "sub_"),
    Kind.MULTIPLY: (operator.mul, operator.imul, torch.mul, "mul", "mul_"),
}.items():
    HANDLERS.update(dict.fromkeys(_names, _binary(_kind)))
HANDLERS.update(dict.fromkeys((F.elu, F.elu_), _elu))
HANDLERS.update(dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _cat))
HANDLERS.update(dict.fromkeys((torch.chunk, "chunk"), _chunk))
HANDLERS.update(dict.fromkeys((torch.split, "split"), _split))
HANDLERS.update(dict.fromkeys((F.dropout, F.dropout2d, "contiguous", "clone"), _identity))
HANDLERS[operator.getitem] = lambda self, values, index: values[index]
HANDLERS[operator.neg] = lambda self, a: _binary(Kind.MULTIPLY)(self, a, -1)

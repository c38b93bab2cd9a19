"""The calls of a network's forward pass, by torch.fx."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from deepgen_ext.nn.gates import AppendOnes, ConcatELU, Gate, GatedSigmoid
from deepgen_ext.nn.masked_conv2d import RasterMasked
from deepgen_ext.nn.shifted_conv2d import Shift, ShiftedConv2d, ShiftedConvTranspose2d

from .program import CannotCompile

LEAVES = (
    RasterMasked,
    ShiftedConv2d,
    ShiftedConvTranspose2d,
    Shift,
    Gate,
    GatedSigmoid,
    ConcatELU,
    AppendOnes,
    nn.Conv2d,  # subclasses too, so that one that cannot be compiled is named
)


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

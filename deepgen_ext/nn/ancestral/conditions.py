"""What does not depend on the image: run once, before the program, up to where the image joins."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from deepgen_ext.nn.condition import ConditionProjection

from .convolutions import as_convolution

SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")


class Form(NamedTuple):
    """Of a condition: a vector (n, channels) has stride 0; a map has that of its pixels."""

    channels: int
    stride: int
    is_map: bool


class Conditions(NamedTuple):
    """The tensors that a program reads, (n, channels) or (rows, columns, n, channels), in the order
    of `forms`, which are by the calls that make them; and the `projections`, calls of 1x1
    convolutions of such maps that are the program's own.

    A network adds its condition in every layer, each time through another projection. Those of a
    vector are small, but those of a map are as large as the network's activations: made by the
    program, row by row where they are added, they never leave the cache. As tensors they took as
    long as all of an image without a condition.
    """

    tensors: list[Tensor]
    forms: dict[fx.Node, Form]
    projections: frozenset[fx.Node]

    @property
    def key(self) -> tuple:
        """The same where the same program serves."""
        return tuple(self.forms.items()), self.projections


class ConditionValues(fx.Interpreter):
    """Runs the calls that do not depend on the image, but for projections of maps."""

    def __init__(self, network: nn.Module, graph: fx.Graph, of_image: set[fx.Node]) -> None:
        super().__init__(network, garbage_collect_values=False, graph=graph)
        self.of_image = of_image
        self.projections: set[fx.Node] = set()

    def of(
        self, condition: Tensor | None, n: int, sides: Sequence[int], dtype: torch.dtype
    ) -> Conditions:
        """For `n` images of `sides` (H, W), a condition None or of n images or of one.

        Raises:
            ValueError: a value that joins the image's features and does not fit them.
        """
        self.run(None, *([] if condition is None else [condition]))
        joining = self.of_image | self.projections
        tensors, forms = [], {}
        for node in self.graph.nodes:
            if node not in joining and any(user in joining for user in node.users):
                tensor, forms[node] = laid_out(self.env[node], str(node), n, sides)
                tensors.append(tensor.to(dtype).contiguous())
        return Conditions(tensors, forms, frozenset(self.projections))

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "output" or (n in self.of_image and n.op != "placeholder"):
            return None
        if self._projects_a_map(n):
            self.projections.add(n)
            return None
        return super().run_node(n)

    def _projects_a_map(self, node: fx.Node) -> bool:
        """Whether a call joins the image's features alone, and is one that a program can make. What
        a layer would refuse is left to the layer.
        """
        if node.op != "call_module" or node.kwargs or not self.of_image.issuperset(node.users):
            return False
        layer = self.fetch_attr(node.target)
        if type(layer) not in (nn.Conv2d, ConditionProjection) or as_convolution(layer) is None:
            return False
        if layer._forward_hooks or layer._forward_pre_hooks:
            return False
        value = self.env[node.args[0]]
        return (
            isinstance(value, Tensor)
            and value.ndim == 4
            and value.shape[2:] != (1, 1)
            and value.shape[1] == layer.in_channels
            and value.dtype == layer.weight.dtype
            and value.device == layer.weight.device
        )


def laid_out(value: Any, name: str, n: int, sides: Sequence[int]) -> tuple[Tensor, Form]:
    """A condition with its axes as programs read them."""
    if not isinstance(value, Tensor) or value.ndim not in (2, 3, 4):
        raise ValueError(f"condition: {name} must be (n, K) or (n, K, H, W), got {value!r}")
    if value.ndim == 3:
        value = value[None]
    if value.shape[0] not in (1, n):
        raise ValueError(f"condition: expected {n} samples, got {value.shape[0]}")
    value = value.expand(n, *value.shape[1:])
    if value.ndim == 2 or value.shape[2:] == (1, 1):
        return value.flatten(1), Form(value.shape[1], 0, False)
    height, width = sides
    stride = 1
    while (-(-height // stride), -(-width // stride)) != tuple(value.shape[2:]):
        stride *= 2
        if stride > max(height, width):
            raise ValueError(
                f"condition: {name} is a map of {tuple(value.shape[2:])}, and the image has "
                f"{(height, width)}"
            )
    return value.permute(2, 3, 0, 1), Form(value.shape[1], stride, True)


def added_projection(call: fx.Node, projections: AbstractSet[fx.Node]) -> fx.Node | None:
    """The projection p of the sum call + p, where neither is used but there; else None."""
    total = next(iter(call.users), None)
    if total is None or len(call.users) > 1 or total.target not in SUMS or total.kwargs:
        return None
    others = [value for value in total.args if value is not call]
    if len(others) != 1 or others[0] not in projections or len(others[0].users) > 1:
        return None
    return others[0]

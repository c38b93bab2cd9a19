"""Masked autoencoder for distribution estimation."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .context import check_context
from .masked_linear import MaskedLinear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "elu": F.elu,
    "tanh": torch.tanh,
}


class MADE(nn.Module):
    """An MLP whose outputs for one feature depend only on the features before it in the order.

    Germain et al., "MADE: Masked Autoencoder for Distribution Estimation", 2015, arXiv:1502.03509.
    With order[i] the feature at position i: output[:, order[i]] is a function of x[:, order[j]],
    j < i, and of the context.

    Each hidden unit has a degree d in 0 ... D - 1 and sees the first d positions (and, in the
    layers above, the units of degrees <= d); the outputs of position i see the units of degrees
    <= i. The degrees are not drawn but spread evenly, each layer alike: unit k of H has degree
    lowest + ceil((k + 1) m / H) - 1, where the m degrees are lowest ... D - 1 and lowest is 1, or 0
    with a context or with D = 1 (without a context a unit of degree 0 would be a constant). So
    units are stored sorted by degree, and in the order's coordinates every weight matrix is block
    lower triangular, which `MaskedLinear` and the op behind the inverse live on.

    With fewer units than degrees (H < m) some degrees have no unit: about every (m / H)-th has one,
    D - 1 always. The net stays autoregressive, and each feature is seen by some unit, but an output
    may miss the up to m / H features just before its own.

    Context: one linear projection of it for each layer, the outputs' included, is added to that
    layer's pre-activations.

    residual=False: h_l = act(W_l h_{l-1} + b_l), one layer for each entry of `hidden_features`.
    residual=True: h = W x + b, then for each entry of `hidden_features` (all equal) a block
    h <- h + W_b act(W_a act(h) + b_a) + b_b, then the output layer on h itself: nflows' MADE with
    use_residual_blocks and num_blocks = len(hidden_features).

    Args:
        features: D, at least 1.
        hidden_features: widths of the hidden layers, or of the residual blocks.
        outputs_per_feature: P, the numbers that the net gives for each feature.
        context_features: length of the context vectors; 0: the net takes no context.
        order: a permutation of 0 ... D - 1; None or "natural", "reverse", or "random" (drawn once
            from torch's generator). Kept in the state dict.
        activation: "relu", "elu" or "tanh".
        residual: see above.

    Raises:
        ValueError: features < 1, no hidden layer or a width < 1, an order that is no permutation,
            an unknown activation, unequal widths with residual=True.
    """

    order: Tensor
    position: Tensor

    def __init__(
        self,
        features: int,
        hidden_features: Sequence[int] = (512, 512),
        outputs_per_feature: int = 2,
        context_features: int = 0,
        order: Sequence[int] | Tensor | str | None = None,
        activation: str = "relu",
        residual: bool = False,
    ) -> None:
        super().__init__()
        widths = _widths(hidden_features, residual)
        for name, value, least in (
            ("features", features, 1),
            ("outputs_per_feature", outputs_per_feature, 1),
            ("context_features", context_features, 0),
        ):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        if activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"activation: expected one of {known}, got {activation!r}")
        self.features = features
        self.hidden_features = tuple(widths)
        self.outputs_per_feature = outputs_per_feature
        self.context_features = context_features
        self.activation = activation
        self.residual = residual

        order = permutation_of(order, features, "order")
        self.register_buffer("order", order)
        self.register_buffer("position", order.argsort(), persistent=False)
        self._note_order()

        lowest = 0 if context_features or features == 1 else 1
        self.degrees = [spread_degrees(width, lowest, features - 1) for width in widths]
        all_degrees = [
            torch.arange(1, features + 1),  # what sees position j has a degree above j
            *self.degrees,
            torch.arange(features).repeat_interleave(outputs_per_feature),
        ]
        self.layers = nn.ModuleList(
            MaskedLinear(len(below), len(above), in_degrees=below, out_degrees=above)
            for below, above in pairwise(all_degrees)
        )
        self.context: nn.Linear | None = None
        if context_features:
            self.context = nn.Linear(
                context_features, sum(layer.out_features for layer in self.layers), bias=False
            )

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x (n, D) -> (n, D, P), the features in their natural order."""
        self.check(x)
        outputs = self.in_order(self.to_order(x), context)
        outputs = outputs.view(x.shape[0], self.features, self.outputs_per_feature)
        return self.from_order(outputs)

    def in_order(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The net between permutations: x (n, D), column i the feature at position i of the order,
        to (n, D * P), the P outputs of position i at i * P.
        """
        addends = self._addends(context, x.shape[0])
        act = ACTIVATIONS[self.activation]
        first, *middle, last = self.layers
        if not self.residual:
            h = x
            for layer, addend in zip(self.layers[:-1], addends):
                h = layer(h, addend)
                # Nothing else keeps a pre-activation: relu may overwrite it, which saves a tensor.
                h = torch.relu_(h) if self.activation == "relu" else act(h)
            return last(h, addends[-1])
        h = first(x, addends[0])
        for index in range(0, len(middle), 2):
            inner = act(middle[index](act(h), addends[index + 1]))
            h = h + middle[index + 1](inner, addends[index + 2])
        return last(h, addends[-1])

    def to_order(self, x: Tensor) -> Tensor:
        """(n, D, ...) of features to (n, D, ...) of positions; x itself where the order is natural."""
        return x if self._natural else x.index_select(1, self.order)

    def from_order(self, x: Tensor) -> Tensor:
        """Undoes `to_order`."""
        return x if self._natural else x.index_select(1, self.position)

    def weights(self) -> list[Tensor]:
        """The masked weights of all layers; with a graph where gradients are wanted."""
        return [layer.differentiable_weight() for layer in self.layers]

    def biases(self, context: Tensor | None, n: int) -> list[Tensor]:
        """What each layer adds: (units,), or (n, units) with a context, its projection included."""
        return [
            layer.bias if addend is None else layer.bias + addend
            for layer, addend in zip(self.layers, self._addends(context, n))
        ]

    def _addends(self, context: Tensor | None, n: int) -> Sequence[Tensor | None]:
        check_context(context, self.context_features)
        if context is None:
            return [None] * len(self.layers)
        if context.shape != (n, self.context_features):
            raise ValueError(
                f"context: expected ({n}, {self.context_features}), got {tuple(context.shape)}"
            )
        return self.context(context).split([layer.out_features for layer in self.layers], 1)

    def check(self, x: Tensor) -> None:
        """Raise a ValueError unless x is (n, D)."""
        if x.dim() != 2 or x.shape[1] != self.features:
            raise ValueError(f"x: expected (n, {self.features}), got {tuple(x.shape)}")

    def _note_order(self) -> None:
        self._natural = bool((self.order == torch.arange(self.features)).all())

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        if prefix + "order" in state:
            permutation_of(state[prefix + "order"].cpu(), self.features, "order")
        super()._load_from_state_dict(state, prefix, *rest)
        order = self.order.cpu()
        self.position = order.argsort().to(self.order.device)
        self._natural = bool((order == torch.arange(self.features)).all())

    def extra_repr(self) -> str:
        return (
            f"features={self.features}, outputs_per_feature={self.outputs_per_feature}, "
            f"context_features={self.context_features}, activation={self.activation!r}, "
            f"residual={self.residual}"
        )


def spread_degrees(units: int, lowest: int, highest: int) -> Tensor:
    """Degrees of `units` units, ascending, as evenly over lowest ... highest as they go; the last is
    `highest`.
    """
    count = highest - lowest + 1
    k = torch.arange(1, units + 1)
    return lowest + (k * count + units - 1) // units - 1


def permutation_of(order: Sequence[int] | Tensor | str | None, features: int, name: str) -> Tensor:
    """int64 (features,): what `order` says, natural where it is None. Raises a ValueError that
    names `name` unless it is a permutation of 0 ... features - 1.
    """
    if order is None or (isinstance(order, str) and order == "natural"):
        return torch.arange(features)
    if isinstance(order, str):
        if order == "reverse":
            return torch.arange(features).flip(0)
        if order == "random":
            return torch.randperm(features)
        raise ValueError(
            f"{name}: expected natural, reverse, random or a permutation, got {order!r}"
        )
    given = torch.as_tensor(order).detach().cpu()
    integers = not (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool)
    if (
        not integers
        or given.shape != (features,)
        or not torch.equal(given.sort().values.long(), torch.arange(features))
    ):
        shown = given.tolist() if given.numel() <= 20 else f"a tensor {tuple(given.shape)}"
        raise ValueError(f"{name}: expected a permutation of 0 ... {features - 1}, got {shown}")
    return given.long().clone()


def _widths(hidden_features: Sequence[int], residual: bool) -> list[int]:
    """Of all hidden layers."""
    widths = [operator.index(width) for width in hidden_features]
    if not widths:
        raise ValueError("hidden_features: expected at least one hidden layer, got none")
    if min(widths) < 1:
        raise ValueError(f"hidden_features: expected positive widths, got {tuple(widths)}")
    if not residual:
        return widths
    if len(set(widths)) > 1:
        raise ValueError(f"hidden_features: residual blocks need equal widths, got {tuple(widths)}")
    return widths[:1] * (2 * len(widths) + 1)

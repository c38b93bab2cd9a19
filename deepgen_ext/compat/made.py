"""The masked autoregressive transforms of nflows and normflows: two copies of one MADE, grown apart."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .activations import activation_name
from .masked_network import MaskedInverse, Network

MOST_LAYERS = 32


class MadeInverse(MaskedInverse):
    """A transform whose parameters come from `autoregressive_net`, a MADE of the module `made`."""

    made: ClassVar[ModuleType]
    gain = "inverse in about one pass instead of D"
    caveat = "with dropout in eval mode only"

    @classmethod
    def why_not(cls, module: Any) -> str:
        return (
            cls.why_not_net(module.autoregressive_net)
            or cls.why_not_element(module)
            or cls.why_not_network(module)
        )

    @classmethod
    def why_not_element(cls, module: Any) -> str:
        raise NotImplementedError

    @classmethod
    def why_not_net(cls, net: Any) -> str:
        if type(net) is not cls.made.MADE:
            return f"its net is no MADE, but {type(net).__name__}"
        activations = [block.activation for block in net.blocks]
        if any(activation is not activations[0] for activation in activations):
            return "its blocks have other activations"
        if activations and activation_name(activations[0]) is None:
            return "its activation is neither ReLU, ELU nor tanh"
        if any(isinstance(part, nn.BatchNorm1d) for part in net.modules()):
            return "batch norm between its layers"
        layers = [part for part in net.modules() if isinstance(part, nn.Linear)]
        if any(type(layer) not in (cls.made.MaskedLinear, nn.Linear) for layer in layers):
            return "layers that are not the MaskedLinear of its library"
        return "" if len(layers) <= MOST_LAYERS else f"more than {MOST_LAYERS} layers"

    def network(self) -> Network:
        return masked_layers(self.autoregressive_net)

    def addends(self, context: Tensor | None) -> list[Tensor | None] | None:
        """What a context adds to each layer's sums."""
        raise NotImplementedError

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        drops = self.training and any(
            part.p > 0 for part in self.modules() if isinstance(part, nn.Dropout)
        )
        if inputs.dim() != 2 or drops:  # the peer's own loop and its messages
            return super().inverse(inputs, context)
        return self.invert(inputs, self.addends(context))

    def comparisons(self, original: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
        # One pass of the original tells whether our x is the one that it maps to z; its own inverse
        # would take a pass a feature.
        net = self.autoregressive_net
        weight = net.initial_layer.weight
        z = torch.randn(3, weight.shape[1], dtype=weight.dtype, device=weight.device)
        contexts = [None]
        if hasattr(net, "context_layer"):
            contexts.append(z.new_empty(3, net.context_layer.in_features).normal_())
        for context in contexts:
            x, log_det = self.eval().inverse(z, context)
            again, log_det_again = original.eval().forward(x, context)
            yield "the inverse", z, again
            yield "its log-det", -log_det_again, log_det


class SplineElement:
    """Rational-quadratic splines with the names that both libraries give their options."""

    @classmethod
    def why_not_element(cls, module: Any) -> str:
        """Options that the kernel does not have."""
        if module.tails != "linear":
            return f"tails={module.tails!r}: only linear ones are known"
        if torch.is_tensor(module.tail_bound):
            return "a bound for each feature"
        if hasattr(module.autoregressive_net, "hidden_features"):
            return "its net rescales widths and heights"
        least = (module.min_bin_width, module.min_bin_height, module.min_derivative)
        if least != (1e-3, 1e-3, 1e-3):
            return f"smallest bins and slope are {least}, not 1e-3 each"
        return "" if module.num_bins <= 100 else f"{module.num_bins} bins, of 100 at most"

    def element(self) -> dict[str, Any]:
        return {"element": "spline", "n_bins": self.num_bins, "bound": float(self.tail_bound)}


def masked_layers(net: Any) -> Network:
    """nflows has an activation after the input layer where it has no residual blocks, normflows has
    none: there the first two layers are one.
    """
    is_residual = bool(net.blocks) and hasattr(net.blocks[0], "linear_layers")
    groups = [(net.initial_layer,)]
    for block in net.blocks:
        if is_residual:
            groups += [(layer,) for layer in block.linear_layers]
        else:
            groups.append((block.linear,))
    activates_input = getattr(net, "activation", None) is not None and not is_residual
    if not is_residual and not activates_input and net.blocks:
        groups[:2] = [(net.initial_layer, net.blocks[0].linear)]
    features = net.initial_layer.in_features
    parameters = net.final_layer.out_features // features
    activation = net.blocks[0].activation if net.blocks else getattr(net, "activation", None)
    return Network(
        [*groups, (net.final_layer,)],
        activation_name(activation) or "relu",
        # Without any activation the one hidden layer is a stream that no block changes.
        is_residual or (not net.blocks and not activates_input),
        net.final_layer.degrees[::parameters].argsort(),
        torch.arange(parameters),
    )

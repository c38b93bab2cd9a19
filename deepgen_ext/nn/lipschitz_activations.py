"""Activations of networks whose Lipschitz constant is bounded, and the bounds themselves."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LipSwish(nn.Module):
    """x sigmoid(beta x) / 1.1 with beta = softplus(raw_beta) learned; |derivative| <= 0.99985.

    R. Chen et al., "Residual Flows for Invertible Generative Modeling", 2019, arXiv:1906.02735. The
    largest slope of x sigmoid(beta x) is 1.0998 for every beta. Unlike that of ReLU or ELU its
    second derivative vanishes nowhere that the slope is large, so that the gradient of a log-det
    does not saturate.
    """

    def __init__(self) -> None:
        super().__init__()
        self.raw_beta = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        beta = F.softplus(self.raw_beta)
        return F.silu(beta * x) / (1.1 * beta)

    def fused_activation(self) -> tuple[str, Tensor]:
        """What `ops.fixed_point_mlp` calls it, and its beta."""
        return "lipswish", F.softplus(self.raw_beta)


class Sin(nn.Module):
    """sin(pi x) / pi; |derivative| <= 1."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(math.pi * x) / math.pi

    def fused_activation(self) -> tuple[str, float]:
        return "sin", 1.0


# The largest |derivative| of each activation, over all inputs and all values of its parameters.
_BOUNDS: dict[type[nn.Module], Callable[[nn.Module], float]] = {
    LipSwish: lambda _: 1.0,
    Sin: lambda _: 1.0,
    nn.Tanh: lambda _: 1.0,
    nn.ReLU: lambda _: 1.0,
    nn.Softplus: lambda _: 1.0,
    nn.Sigmoid: lambda _: 0.25,
    nn.ELU: lambda elu: max(1.0, abs(elu.alpha)),
    nn.LeakyReLU: lambda relu: max(1.0, abs(relu.negative_slope)),
    nn.SiLU: lambda _: 1.0999,
    nn.GELU: lambda gelu: 1.1290 if gelu.approximate == "none" else 1.1292,
    nn.Mish: lambda _: 1.0885,
}

_NAMES: dict[str, type[nn.Module]] = {
    "lipswish": LipSwish,
    "sin": Sin,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "softplus": nn.Softplus,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "mish": nn.Mish,
}


def activation_lipschitz(activation: nn.Module) -> float:
    """The largest |derivative| of `activation`.

    Raises:
        ValueError: its bound is not known here.
    """
    bound = _BOUNDS.get(type(activation))
    if bound is None:
        known = ", ".join(kind.__name__ for kind in _BOUNDS)
        raise ValueError(
            f"activation: no bound of the derivative of {type(activation).__name__} is known; those "
            f"known are {known}"
        )
    return bound(activation)


def make_activation(activation: str | Callable[[], nn.Module]) -> nn.Module:
    """A new activation by name or from its constructor, its derivative bounded by 1.

    Raises:
        ValueError: an unknown name, an unknown bound, or one above 1 (SiLU, GELU, Mish).
    """
    if isinstance(activation, str):
        if activation not in _NAMES:
            raise ValueError(f"activation: expected one of {', '.join(_NAMES)}, got {activation!r}")
        made = _NAMES[activation]()
    else:
        made = activation()
    bound = activation_lipschitz(made)
    if bound > 1:
        raise ValueError(
            f"activation: the derivative of {type(made).__name__} reaches {bound:.4f} > 1, and the "
            f"network would be no contraction; use lipswish"
        )
    return made

"""Networks whose Lipschitz constant is below 1 by construction: the g of y = x + g(x)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .context import check_context
from .lipschitz_activations import activation_lipschitz, make_activation
from .spectral_norm import spectral_norm


class _Contraction(nn.Module):
    """Linear layers with activations between them, all of bounded slope."""

    layers: nn.ModuleList
    activations: nn.ModuleList
    lipschitz: float

    def linearize(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """g(x), and v -> v' dg/dx, without a graph, for as many v as are wanted.

        The slopes of the activations are computed once, here, where a backward pass through g would
        compute them for every v.
        """
        record = torch.is_grad_enabled()
        h = self._enter(x, context)
        weights, slopes = [], []
        for layer, activation in zip(self.layers, self.activations, strict=False):
            weights.append(layer.weight)  # read once: it is normalised when it is read
            h = self._linear(h, weights[-1], layer.bias)
            with torch.enable_grad():
                point = h if h.requires_grad else h.detach().requires_grad_()
                h = activation(point)
                slopes.append(torch.autograd.grad(h.sum(), point, retain_graph=record)[0])
            h = h if record else h.detach()
        weights.append(self.layers[-1].weight)
        output = self._linear(h, weights[-1], self.layers[-1].bias)
        shape = output.shape  # of an MLP: flat

        @torch.no_grad()
        def product(v: Tensor) -> Tensor:
            row = self._transposed(v.view(shape), weights[-1])
            for weight, slope in zip(reversed(weights[:-1]), reversed(slopes), strict=True):
                row = self._transposed(row.mul_(slope), weight)
            return self._leave(row, x)

        return output.view(x.shape), product

    def _run(self, h: Tensor) -> Tensor:
        for layer, activation in zip(self.layers, self.activations, strict=False):
            h = activation(layer(h))
        return self.layers[-1](h)

    def _enter(self, x: Tensor, context: Tensor | None) -> Tensor:
        check_context(context, 0)
        return x

    def _leave(self, row: Tensor, x: Tensor) -> Tensor:
        return row

    def _linear(self, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        raise NotImplementedError

    def _transposed(self, row: Tensor, weight: Tensor) -> Tensor:
        raise NotImplementedError


class LipschitzMLP(_Contraction):
    """(n, *shape) -> (n, *shape), flattened between: Linear, activation, ..., Linear.

    Every weight is divided by its largest singular value over `coefficient` where that is larger
    (`spectral_norm`), so that |g(a) - g(b)| <= lipschitz |a - b| in the Euclidean norm, with
    lipschitz = coefficient ** layers times the bounds of the activations' derivatives. The bound is
    as good as the power iteration: it holds when its vectors have converged, which a few iterations
    a training step keep them at.

    Args:
        shape: D, or the shape of one sample.
        hidden_features: widths of the hidden layers.
        coefficient: the bound of each layer, in (0, 1).
        activation: a name or a constructor; its derivative must be bounded by 1.
        n_power_iterations: of each training forward.
        context_features: of a context (n, context_features), concatenated to the input; the bound
            is with respect to x.

    Raises:
        ValueError: a coefficient outside (0, 1), an activation with a derivative above 1.
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        hidden_features: Sequence[int] = (128, 128),
        *,
        coefficient: float = 0.9,
        activation: str | Callable[[], nn.Module] = "lipswish",
        n_power_iterations: int = 5,
        context_features: int = 0,
    ) -> None:
        super().__init__()
        _check_coefficient(coefficient)
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.context_features = context_features
        dims = math.prod(self.shape)
        widths = [dims + context_features, *hidden_features, dims]
        self.layers = nn.ModuleList(
            spectral_norm(
                _steep(nn.Linear(a, b)),
                n_power_iterations=n_power_iterations,
                coefficient=coefficient,
            )
            for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.activations = nn.ModuleList(make_activation(activation) for _ in hidden_features)
        self.lipschitz = _lipschitz(coefficient, self.layers, self.activations)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self._run(self._enter(x, context)).view(x.shape)

    def plain_layers(self) -> list[nn.Module]:
        """What is applied one after the other, for the kernel of `nn.fixed_point_inverse`."""
        return [*chain(*zip(self.layers, self.activations, strict=False)), self.layers[-1]]

    def _enter(self, x: Tensor, context: Tensor | None) -> Tensor:
        check_context(context, self.context_features)
        h = x.flatten(1)
        return h if context is None else torch.cat((h, context), dim=1)

    def _leave(self, row: Tensor, x: Tensor) -> Tensor:
        return row[:, : math.prod(self.shape)].view(x.shape)  # not with respect to the context

    def _linear(self, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(h, weight, bias)

    def _transposed(self, row: Tensor, weight: Tensor) -> Tensor:
        return row @ weight


class LipschitzConvNet(_Contraction):
    """(n, C, H, W) -> (n, C, H, W): 3x3, activation, 1x1, activation, 3x3 convolution.

    The block of R. Chen et al. 2019. Each convolution is bounded by its norm as an operator on
    images of H x W (`spectral_norm(kind="conv")`): that of its reshaped weight bounds nothing.

    Args:
        image_shape: (C, H, W).
        hidden_channels: width.
        kernel_sizes: odd, of each convolution.
        coefficient, activation, n_power_iterations: see `LipschitzMLP`.

    Raises:
        ValueError: an even kernel size, a coefficient outside (0, 1), an activation with a
            derivative above 1.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        hidden_channels: int = 64,
        *,
        kernel_sizes: Sequence[int] = (3, 1, 3),
        coefficient: float = 0.9,
        activation: str | Callable[[], nn.Module] = "lipswish",
        n_power_iterations: int = 5,
    ) -> None:
        super().__init__()
        _check_coefficient(coefficient)
        if not kernel_sizes or any(size < 1 or size % 2 == 0 for size in kernel_sizes):
            raise ValueError(f"kernel_sizes: expected odd numbers, got {tuple(kernel_sizes)}")
        channels, height, width = image_shape
        widths = [channels, *[hidden_channels] * (len(kernel_sizes) - 1), channels]
        self.layers = nn.ModuleList(
            spectral_norm(
                _steep(nn.Conv2d(a, b, size, padding=size // 2)),
                n_power_iterations=n_power_iterations,
                kind="conv",
                coefficient=coefficient,
                input_shape=(height, width),
            )
            for a, b, size in zip(widths[:-1], widths[1:], kernel_sizes, strict=True)
        )
        self.activations = nn.ModuleList(make_activation(activation) for _ in kernel_sizes[1:])
        self.lipschitz = _lipschitz(coefficient, self.layers, self.activations)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self._run(self._enter(x, context))

    def _linear(self, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(h, weight, bias, padding=weight.shape[-1] // 2)

    def _transposed(self, row: Tensor, weight: Tensor) -> Tensor:
        return F.conv_transpose2d(row, weight, padding=weight.shape[-1] // 2)


def _steep(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """Orthogonal weights: every layer starts at its bound. With torch's default, far below it, a
    2-d flow learns nothing in its first hundreds of steps.
    """
    nn.init.orthogonal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _check_coefficient(coefficient: float) -> None:
    if not 0 < coefficient < 1:
        raise ValueError(f"coefficient: expected a number in (0, 1), got {coefficient}")


def _lipschitz(coefficient: float, layers: nn.ModuleList, activations: nn.ModuleList) -> float:
    slopes = math.prod(activation_lipschitz(activation) for activation in activations)
    return coefficient ** len(layers) * slopes

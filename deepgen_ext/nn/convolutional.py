"""Convolutional conditioners of flows on images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from deepgen_ext import ops

from .context import check_context


class ZeroConv2d(nn.Module):
    """A 3x3 convolution that starts at zero, its output scaled by a learned exp(3 * log_scale).

    Kingma & Dhariwal, "Glow", 2018, as in their code. The scale multiplies the weights, not the
    image.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.log_scale = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        check_context(context, 0)
        scale = (3 * self.log_scale).exp()
        return F.conv2d(x, self.weight * scale.view(-1, 1, 1, 1), self.bias * scale, padding=1)


class GlowConvNet(nn.Module):
    """Glow's coupling network: 3x3 convolution, ReLU, 1x1 convolution, ReLU, `ZeroConv2d`.

    (n, in_channels, H, W) -> (n, out_channels, H, W); zero at the start. A context, (n,
    context_features) or a map (n, context_features, H, W), is projected and added before the first
    ReLU.

    On the CPU, in float32 and float64, the whole network is `ops.glow_conv_net`, whatever its size.
    Of the time that oneDNN's convolutions need for it, forward and backward on one thread, that was
    0.26 to 0.33 on digits (64 images of 4x2x2 and of 2x4x4, 64 hidden channels), 0.55 on 32 images
    of 6x8x8 with 32, 0.6 to 0.85 on 16 of 12x8x8, 6x16x16 and 6x32x32 with 128, and 0.63 on 64 of
    6x16x16 with 512.

    It is three calls of nn.Conv2d instead on CUDA, under autocast and in half precision, where the
    vendor's convolutions use matrix units; under torch.func and with forward-mode gradients, which
    the op refuses; and where a layer is no longer the one built here: replaced, parametrized, or
    with hooks, which only a call of the layer runs.

    The 3x3 weights lie in memory with their channels last: the op reads them so, and oneDNN is
    fastest so.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int = 128,
        context_features: int = 0,
    ) -> None:
        super().__init__()
        self.input = nn.Conv2d(in_channels, hidden_channels, 3, padding=1)
        self.hidden = nn.Conv2d(hidden_channels, hidden_channels, 1)
        self.output = ZeroConv2d(hidden_channels, out_channels)
        self.context = _context_projection(context_features, hidden_channels)
        self.context_features = context_features
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        check_context(context, self.context_features)
        context_map = None if context is None else self.context(_as_map(context))
        if self._is_one_op(x):
            if context_map is not None:
                context_map = context_map.expand(-1, -1, *x.shape[2:])
            first, hidden, last = self.input, self.hidden, self.output
            return ops.glow_conv_net(
                x,
                first.weight,
                first.bias,
                hidden.weight,
                hidden.bias,
                last.weight,
                last.bias,
                last.log_scale,
                context_map,
            )
        h = self.input(x)
        if context_map is not None:
            h = h + context_map
        # Not in place: what a layer with backward hooks returns must not be changed.
        return self.output(self.hidden(h.relu()).relu())

    def _is_one_op(self, x: Tensor) -> bool:
        """Whether the op may stand for the layers: on the CPU, in full precision, as built here."""
        return (
            x.device.type == "cpu"
            and x.dtype in (torch.float32, torch.float64)
            and x.ndim == 4
            and x.numel() > 0
            and not torch.is_autocast_enabled("cpu")
            and (torch.compiler.is_compiling() or not _in_torch_func())
            and _is_plain_convolution(self.input, 3)
            and _is_plain_convolution(self.hidden, 1)
            and type(self.output) is ZeroConv2d
            and not _has_hooks(self.output)
        )


class ResidualConvNet(nn.Module):
    """RealNVP's coupling network: a 3x3 convolution, `blocks` residual blocks, ReLU, `ZeroConv2d`.

    A block is h + conv(relu(conv(relu(h)))), 3x3 both. Shapes and context as in `GlowConvNet`. Dinh
    et al., "Density estimation using Real NVP", 2017, without its batch normalisation: a
    conditioner that depends on the other samples has no exact inverse.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int = 64,
        blocks: int = 2,
        context_features: int = 0,
    ) -> None:
        super().__init__()
        self.input = nn.Conv2d(in_channels, hidden_channels, 3, padding=1)
        self.blocks = nn.ModuleList(_ResidualBlock(hidden_channels) for _ in range(blocks))
        self.output = ZeroConv2d(hidden_channels, out_channels)
        self.context = _context_projection(context_features, hidden_channels)
        self.context_features = context_features

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        check_context(context, self.context_features)
        h = self.input(x)
        if context is not None:
            h = h + self.context(_as_map(context))
        for block in self.blocks:
            h = block(h)
        return self.output(h.relu())


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x.relu()).relu_())


def _is_plain_convolution(layer: nn.Module, side: int) -> bool:
    """nn.Conv2d itself (a parametrization makes another class) as `GlowConvNet` builds it."""
    return (
        type(layer) is nn.Conv2d
        and layer.kernel_size == (side, side)
        and layer.padding == (side // 2, side // 2)
        and layer.stride == layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and layer.bias is not None
        and not _has_hooks(layer)
    )


def _in_torch_func() -> bool:
    """Inside torch.func's transforms or a level of forward-mode gradients."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _has_hooks(layer: nn.Module) -> bool:
    return bool(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
    )


def _context_projection(context_features: int, hidden_channels: int) -> nn.Module | None:
    if not context_features:
        return None
    return nn.Conv2d(
        context_features, hidden_channels, 1, bias=False
    )  # the layer it joins has a bias


def _as_map(context: Tensor) -> Tensor:
    return context[:, :, None, None] if context.ndim == 2 else context

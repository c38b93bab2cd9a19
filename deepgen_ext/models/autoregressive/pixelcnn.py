"""PixelCNN and gated PixelCNN."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ...nn import Categorical, ConditionProjection, GatedMaskedBlock, MaskedConv2d
from ...nn.gated_masked_block import pointwise
from .pixel_model import PixelModel, check_image_shape


class PixelCNN(PixelModel):
    """A softmax over the levels of each pixel, from masked convolutions.

    Plain: van den Oord et al., "Pixel recurrent neural networks", 2016. A masked convolution of
    type "A", `layers` - 1 residual ones of type "B", h + conv(relu(h)), and two 1x1 layers.
    Gated: van den Oord et al., "Conditional image generation with PixelCNN decoders", 2016.
    `layers` blocks `GatedMaskedBlock`, whose skips are added up and read by two 1x1 layers; it sees
    all pixels before, where the plain one is blind to a cone of them on the right.

    A condition, a class or a latent vector or a feature map, is projected and added in each layer.

    Args:
        image_shape: (C, H, W).
        layers: masked convolutions, or gated blocks.
        channels: of each layer; a multiple of C where C > 1 channels are ordered. When None, 64 or
            the next multiple of C.
        gated: the gated network.
        n_levels: number of integer levels of the data, 256 for 8-bit images.
        conditional_channels: K of a condition, (n, K) or a map (n, K, H, W); 0 for none.
        kernel_size: of the first layer, odd.
        hidden_kernel_size: of the layers after it; `kernel_size` when None.
        residual: the layers after the first add their input to their output.
        channels_in_order: the channels of a pixel depend on each other, in the order R, G, B; else
            they are independent given the pixels before.
        dilations: of the layers after the first: one number, or a sequence that is repeated.
        levels: another name of `n_levels`.

    Raises:
        ValueError: an even kernel, channels that C does not divide, anything not positive.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        layers: int = 7,
        channels: int | None = None,
        gated: bool = False,
        n_levels: int = 256,
        conditional_channels: int = 0,
        *,
        kernel_size: int = 7,
        hidden_kernel_size: int | None = None,
        residual: bool = True,
        channels_in_order: bool = True,
        dilations: int | Sequence[int] = 1,
        levels: int | None = None,
    ) -> None:
        colors, *_ = check_image_shape(image_shape)
        if levels is not None:
            if n_levels not in (256, levels):
                raise ValueError(f"levels: is n_levels, but got {levels} and {n_levels}")
            n_levels = levels
        if hidden_kernel_size is None:
            hidden_kernel_size = kernel_size
        groups = colors if channels_in_order else 1
        if channels is None:
            channels = -(-64 // groups) * groups
        dilations = (dilations,) if isinstance(dilations, int) else tuple(dilations)
        for name, value in (
            ("layers", layers),
            ("channels", channels),
            ("kernel_size", kernel_size),
            ("hidden_kernel_size", hidden_kernel_size),
            ("dilations", min(dilations, default=0)),
        ):
            if value < 1:
                raise ValueError(f"{name}: expected a positive number, got {value}")
        if conditional_channels < 0:
            raise ValueError(
                f"conditional_channels: expected 0 or more, got {conditional_channels}"
            )
        if n_levels < 2:
            raise ValueError(f"n_levels: expected at least 2, got {n_levels}")
        if channels % groups:
            below = channels // groups * groups
            raise ValueError(
                f"channels: expected a multiple of {groups}, the channels of the image that are "
                f"ordered, got {channels}: try {below or groups} or {below + groups}"
            )
        kind = GatedNetwork if gated else _PlainNetwork
        network = kind(
            colors,
            channels,
            colors * n_levels,
            groups,
            conditional_channels,
            residual,
            [kernel_size] + [hidden_kernel_size] * (layers - 1),
            [1] + [dilations[index % len(dilations)] for index in range(layers - 1)],
        )
        super().__init__(
            image_shape,
            network,
            Categorical(colors, n_levels, groups),
            conditional_channels=conditional_channels,
        )


class _PlainNetwork(nn.Module):
    def __init__(
        self,
        in_channels: int,
        channels: int,
        out_channels: int,
        groups: int,
        conditional_channels: int,
        residual: bool,
        kernel_sizes: Sequence[int],
        dilations: Sequence[int],
    ) -> None:
        super().__init__()
        self.residual = residual
        self.layers = nn.ModuleList(
            MaskedConv2d(
                channels if index else in_channels,
                channels,
                kernel_size,
                mask_type="B" if index else "A",
                groups_in_order=groups,
                dilation=dilation,
            )
            for index, (kernel_size, dilation) in enumerate(
                zip(kernel_sizes, dilations, strict=True)
            )
        )
        self.conditions = nn.ModuleList(
            ConditionProjection(conditional_channels, channels)
            for _ in self.layers
            if conditional_channels
        )
        self.hidden = pointwise(channels, channels, groups)
        self.output = pointwise(channels, out_channels, groups)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        h = x
        for index, layer in enumerate(self.layers):
            new = layer(F.relu(h) if index else h)
            if condition is not None:
                new = new + self.conditions[index](condition)
            h = h + new if index and self.residual else new
        return self.output(F.relu(self.hidden(F.relu(h))))


class GatedNetwork(nn.Module):
    def __init__(
        self,
        in_channels: int,
        channels: int,
        out_channels: int,
        groups: int,
        conditional_channels: int,
        residual: bool,
        kernel_sizes: Sequence[int],
        dilations: Sequence[int],
    ) -> None:
        super().__init__()
        last = len(kernel_sizes) - 1
        self.blocks = nn.ModuleList(
            GatedMaskedBlock(
                channels if index else in_channels,
                channels,
                kernel_size,
                mask_type="B" if index else "A",
                groups_in_order=groups,
                dilation=dilation,
                conditional_channels=conditional_channels,
                skip_channels=channels,
                residual=residual,
                last=index == last,
            )
            for index, (kernel_size, dilation) in enumerate(
                zip(kernel_sizes, dilations, strict=True)
            )
        )
        self.hidden = pointwise(channels, channels, groups)
        self.output = pointwise(channels, out_channels, groups)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        v, h, skips = x, x, None
        for block in self.blocks:
            v, h, skip = block(v, h, condition)
            skips = skip if skips is None else skips + skip
        return self.output(F.relu(self.hidden(F.relu(skips))))

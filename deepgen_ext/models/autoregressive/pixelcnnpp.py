"""PixelCNN++."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from ...nn import (
    AppendOnes,
    ConditionProjection,
    DiscretizedLogisticMixture,
    GatedResnet,
    Shift,
    ShiftedConv2d,
    ShiftedConvTranspose2d,
)
from .pixel_model import PixelModel, check_image_shape

LEVELS = 3  # of resolution


class PixelCNNPlusPlus(PixelModel):
    """Salimans et al., "PixelCNN++", 2017: a mixture of discretised logistics at each pixel.

    Two streams, one of the rows above and one of those and the pixels to the left, go down to a
    quarter of the resolution and up again, with short cuts between layers of the same resolution.
    No mask: the convolutions are shifted. All weights are normalised. Any sides: a level of
    resolution has ceil(side / 2) of the one before.

    A condition is added in each residual block; a map loses every second row and column a level.

    Args:
        image_shape: (C, H, W).
        resnets: residual blocks of each stream at each resolution on the way down; one more on the
            way up, but at the lowest.
        filters: channels of each layer.
        mixtures: logistics a pixel.
        conditional_channels: K of a condition, (n, K) or a map (n, K, H, W); 0 for none.
        dropout: probability to zero an activation in training.
        n_levels: number of integer levels of the data, 256 for 8-bit images.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        resnets: int = 5,
        filters: int = 160,
        mixtures: int = 10,
        conditional_channels: int = 0,
        dropout: float = 0.5,
        n_levels: int = 256,
    ) -> None:
        check_image_shape(image_shape)
        for name, value in (("resnets", resnets), ("filters", filters), ("mixtures", mixtures)):
            if value < 1:
                raise ValueError(f"{name}: expected a positive number, got {value}")
        if conditional_channels < 0:
            raise ValueError(
                f"conditional_channels: expected 0 or more, got {conditional_channels}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: expected a number in [0, 1), got {dropout}")
        if n_levels < 2:
            raise ValueError(f"n_levels: expected at least 2, got {n_levels}")
        distribution = DiscretizedLogisticMixture(image_shape[0], n_levels, mixtures)
        network = _Network(
            image_shape, resnets, filters, distribution.parameters, conditional_channels, dropout
        )
        super().__init__(
            image_shape,
            network,
            distribution,
            conditional_channels=conditional_channels,
            row_multiple=2 ** (LEVELS - 1),
        )


class _Network(nn.Module):
    """u is the stream of the rows above, ul the one that also knows the pixels to the left."""

    def __init__(
        self,
        image_shape: Sequence[int],
        resnets: int,
        filters: int,
        out_channels: int,
        conditional_channels: int,
        dropout: float,
    ) -> None:
        super().__init__()
        channels, *size = image_shape
        sizes = [tuple(-(-side // 2**level) for side in size) for level in range(LEVELS)]
        self.ones = AppendOnes()
        self.shift_down, self.shift_right = Shift("down"), Shift("right")
        self.input_u = _shifted(channels + 1, filters, (2, 3), "down")
        self.input_above = _shifted(channels + 1, filters, (1, 3), "down")
        self.input_left = _shifted(channels + 1, filters, (2, 1), "down_right")

        def resnet(shift: str, shortcut_channels: int) -> GatedResnet:
            return GatedResnet(
                filters,
                (2, 3) if shift == "down" else (2, 2),
                shift=shift,
                shortcut_channels=shortcut_channels,
                conditional_channels=conditional_channels,
                dropout=dropout,
            )

        # By level of resolution, the finest first; the way up meets them in reverse.
        self.down_u, self.down_ul, self.up_u, self.up_ul = (nn.ModuleList() for _ in range(4))
        for level in range(LEVELS):
            back = resnets + (level < LEVELS - 1)
            self.down_u.append(nn.ModuleList(resnet("down", 0) for _ in range(resnets)))
            self.down_ul.append(
                nn.ModuleList(resnet("down_right", filters) for _ in range(resnets))
            )
            self.up_u.append(nn.ModuleList(resnet("down", filters) for _ in range(back)))
            self.up_ul.append(nn.ModuleList(resnet("down_right", 2 * filters) for _ in range(back)))
        self.coarser_u, self.coarser_ul, self.finer_u, self.finer_ul = (
            nn.ModuleList() for _ in range(4)
        )
        self.conditions = nn.ModuleList()
        for finer in sizes[:-1]:
            self.coarser_u.append(_shifted(filters, filters, (2, 3), "down", stride=2))
            self.coarser_ul.append(_shifted(filters, filters, (2, 2), "down_right", stride=2))
            self.finer_u.append(_transposed(filters, (2, 3), "down", finer))
            self.finer_ul.append(_transposed(filters, (2, 2), "down_right", finer))
            if conditional_channels:
                self.conditions.append(
                    ConditionProjection(conditional_channels, conditional_channels, stride=2)
                )
        self.output = weight_norm(nn.Conv2d(filters, out_channels, 1))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        conditions = [condition]
        for level in range(LEVELS - 1):
            given = None if condition is None else self.conditions[level](conditions[-1])
            conditions.append(given)

        x = self.ones(x)
        above = self.shift_down(x)
        u = self.input_u(above)
        ul = self.input_above(above) + self.input_left(self.shift_right(x))
        us, uls = [u], [ul]
        for level in range(LEVELS):
            for down_u, down_ul in zip(self.down_u[level], self.down_ul[level], strict=True):
                u = down_u(u, condition=conditions[level])
                ul = down_ul(ul, u, condition=conditions[level])
                us.append(u)
                uls.append(ul)
            if level < LEVELS - 1:
                u, ul = self.coarser_u[level](u), self.coarser_ul[level](ul)
                us.append(u)
                uls.append(ul)

        u, ul = us.pop(), uls.pop()
        for level in reversed(range(LEVELS)):
            if level < LEVELS - 1:
                u, ul = self.finer_u[level](u), self.finer_ul[level](ul)
            for up_u, up_ul in zip(self.up_u[level], self.up_ul[level], strict=True):
                u = up_u(u, us.pop(), condition=conditions[level])
                ul = up_ul(ul, torch.cat([u, uls.pop()], 1), condition=conditions[level])
        return self.output(F.elu(ul))


def _shifted(
    in_channels: int, out_channels: int, kernel_size: tuple[int, int], shift: str, stride: int = 1
) -> nn.Module:
    return weight_norm(
        ShiftedConv2d(in_channels, out_channels, kernel_size, shift=shift, stride=stride)
    )


def _transposed(
    channels: int, kernel_size: tuple[int, int], shift: str, output_size: tuple[int, int]
) -> nn.Module:
    layer = ShiftedConvTranspose2d(
        channels, channels, kernel_size, shift=shift, output_size=output_size
    )
    return weight_norm(layer, dim=1)  # output channels are the second dimension

"""One layer of the gated PixelCNN."""

from __future__ import annotations

from torch import Tensor, nn

from .condition import ConditionProjection
from .gates import Gate
from .masked_conv2d import MaskedConv2d
from .shifted_conv2d import Shift, ShiftedConv2d


class GatedMaskedBlock(nn.Module):
    """Vertical and horizontal stack, gated: van den Oord et al. 2016b, figure 2.

        a_v = vertical(v) + V c;   v' = gate(a_v)
        a_h = horizontal(h) + link(a_v) + U c;   g = gate(a_h)
        h' = h + residual(g);   skip = skip_projection(g)

    The vertical stack's map at row i depends on image rows < i alone: the first block shifts its
    input down by one row and the others convolve rows that are already shifted. So it joins the
    horizontal stack without another shift, and a sampler can run it a row at a time. Together they
    see all pixels before, with no blind spot.

    Args:
        in_channels: of v and h: the image's for the first block, else `channels`.
        channels: of v' and h'.
        kernel_size: k, odd: k columns, and in each block k // 2 more rows above.
        mask_type: "A" for the first block, whose v and h are both the image; else "B".
        groups_in_order: the horizontal stack's channels are that many contiguous groups, of which
            a group sees, of its own pixel, no later one; 3 orders R, G, B.
        dilation: of both convolutions.
        conditional_channels: K of a condition c, (n, K) or a map (n, K, H, W).
        skip_channels: of the skip output, 0 for none.
        residual: h' = h + residual(g), else residual(g). Never in a block of mask "A", which would
            let the pixel itself through.
        last: the block ends both stacks: v' and h' are None, and the skips are what is read.

    Raises:
        ValueError: an even kernel, another mask type, channels that groups_in_order does not divide.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int = 3,
        *,
        mask_type: str = "B",
        groups_in_order: int = 1,
        dilation: int = 1,
        conditional_channels: int = 0,
        skip_channels: int = 0,
        residual: bool = True,
        last: bool = False,
    ) -> None:
        super().__init__()
        if mask_type not in ("A", "B"):
            raise ValueError(f"mask_type: expected 'A' or 'B', got {mask_type!r}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number, got {kernel_size}")
        first, half = mask_type == "A", kernel_size // 2
        if last and not skip_channels:
            raise ValueError("skip_channels: the last block has no other output, got 0")
        if residual and not (first or last) and in_channels != channels:
            raise ValueError(
                f"in_channels: a residual block needs in_channels = channels = {channels}, "
                f"got {in_channels}"
            )
        self.shift = Shift("down") if first else None
        # Where the input is shifted, its own row is the one above.
        rows = max(1, half) if first else half + 1
        self.vertical = ShiftedConv2d(
            in_channels, 2 * channels, (rows, kernel_size), shift="down", dilation=dilation
        )
        self.vertical_gate = None if last else Gate()
        self.horizontal = MaskedConv2d(
            in_channels,
            2 * channels,
            (1, kernel_size),
            mask_type=mask_type,
            groups_in_order=groups_in_order,
            dilation=dilation,
        )
        self.link = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.horizontal_gate = Gate(groups_in_order)
        self.residual = None if last else pointwise(channels, channels, groups_in_order)
        self.skip = pointwise(channels, skip_channels, groups_in_order) if skip_channels else None
        self.vertical_condition = self.horizontal_condition = None
        if conditional_channels:
            self.vertical_condition = ConditionProjection(conditional_channels, 2 * channels)
            self.horizontal_condition = ConditionProjection(conditional_channels, 2 * channels)
        self.adds_input = residual and not first

    def forward(
        self, v: Tensor, h: Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """(v', h', skip); None what the block does not have."""
        a_v = self.vertical(v if self.shift is None else self.shift(v))
        if condition is not None:
            a_v = a_v + self.vertical_condition(condition)
        # What is known before the pixels of a row is added up first: a sampler does it a row at a time.
        known = self.link(a_v)
        if condition is not None:
            known = known + self.horizontal_condition(condition)
        gated = self.horizontal_gate(self.horizontal(h) + known)
        skip = None if self.skip is None else self.skip(gated)
        if self.residual is None:
            return None, None, skip
        out = self.residual(gated)
        if self.adds_input:
            out = h + out
        return self.vertical_gate(a_v), out, skip


def pointwise(in_channels: int, out_channels: int, groups_in_order: int = 1) -> nn.Module:
    """A 1x1 convolution that keeps the order of the channel groups."""
    if groups_in_order == 1:
        return nn.Conv2d(in_channels, out_channels, 1)
    return MaskedConv2d(in_channels, out_channels, 1, groups_in_order=groups_in_order)

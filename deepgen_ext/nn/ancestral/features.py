"""What a network's values are while it is compiled, and what they may depend on."""

from __future__ import annotations

from dataclasses import dataclass, replace

EVERYTHING = 1 << 20  # as a group: all channels of the pixel


@dataclass(frozen=True, order=True)
class Reach:
    """The last input that a feature depends on, relative to its own pixel, in the order of drawing.

    Row and column in pixels of the image. In the pixel itself channel group g depends on the
    image's groups up to g + group. Of a feature of lower resolution the own pixel is the first one
    of its cell.
    """

    row: int
    column: int
    group: int = EVERYTHING

    def moved(self, rows: int, columns: int) -> Reach:
        if rows == 0 and columns == 0:
            return self
        return Reach(self.row + rows, self.column + columns)

    @property
    def before_row(self) -> bool:
        """Known before the first pixel of its row is drawn."""
        return self.row < 0

    @property
    def is_causal(self) -> bool:
        """Known before its own pixel (its own channel group in it) is drawn."""
        return self < Reach(0, 0, 0)

    @property
    def in_pixel(self) -> bool:
        """Depends on what has been drawn of the pixel itself: its groups are computed in turn."""
        return (self.row, self.column) == (0, 0)


NOTHING = Reach(-(1 << 20), 0)  # of conditions
DRAWN = Reach(0, 0, 0)  # of the image itself


@dataclass(frozen=True)
class Feature:
    """Channels [channel, channel + channels) of a node, in `groups` equal groups in their order."""

    node: int
    channel: int
    channels: int
    stride: int
    reach: Reach
    groups: int = 1

    def group(self, index: int, groups: int) -> tuple[int, int]:
        """The first channel and the number of channels of a group."""
        begin = self.channels * index // groups
        return self.channel + begin, self.channels * (index + 1) // groups - begin

    def at_stride(self, stride: int) -> Feature:
        """A vector is the same everywhere and fits every resolution: its own stride is 0."""
        return replace(self, stride=stride) if self.stride == 0 else self

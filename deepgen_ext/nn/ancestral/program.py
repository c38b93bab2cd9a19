"""Programs of `ops.ancestral_sample`: nodes, steps, terms and taps, and how they are encoded.

The structs are those of csrc/ancestral_sample.h, which says what each field means.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

import torch
from torch import Tensor

PANEL_BYTES = 64


class CannotCompile(TypeError):
    """A layer that no program expresses, or one that sees what it must predict."""


class Place(IntEnum):
    CACHED = 0
    MAP = 1
    VECTOR = 2


class Kind(IntEnum):
    LINEAR = 0
    COPY = 1
    RELU = 2
    ELU = 3
    NEGATIVE_ELU = 4
    TANH = 5
    SIGMOID = 6
    AFFINE = 7
    ADD = 8
    SUBTRACT = 9
    MULTIPLY = 10
    GATE = 11
    SIGMOID_GATE = 12
    CATEGORICAL = 13
    MIXTURE = 14
    GAUSSIAN = 15


class Ratio(IntEnum):
    SAME = 0
    FINER = 1
    COARSER = 2


@dataclass
class Node:
    """A feature map; how many rows and what padding its cache needs is found as it is read."""

    place: Place
    channels: int
    stride: int = 1
    rows: int = 1
    pad: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Tap:
    """One offset of a convolution; `kernel` is where its weights stand in the layer's kernel."""

    dy: int
    dx: int
    phase: int = -1
    kernel: tuple[int, int] = (0, 0)


@dataclass
class Term:
    """Taps on channels [channel, channel + channels) of a node; `matrices` gives their weights as
    (taps, out channels of the step, channels).
    """

    source: int
    channel: int
    channels: int
    ratio: Ratio
    taps: list[Tap]
    matrices: Callable[[], Tensor]


@dataclass
class Step:
    kind: Kind
    dst: int
    dst_channel: int
    channels: int
    a: int = -1
    a_channel: int = 0
    b: int = -1
    b_channel: int = 0
    constants: Callable[[], Tensor] | None = None  # bias (channels,), or factors (2 * channels,)
    terms: list[Term] = field(default_factory=list)
    dy: int = 0  # of a; image_channel or mixtures where the step draws
    dx: int = 0


@dataclass
class Program:
    """What the kernels run, in the making."""

    nodes: list[Node] = field(default_factory=list)
    row_steps: list[Step] = field(default_factory=list)
    pixel_steps: list[Step] = field(default_factory=list)
    image: int = -1
    cache_per_sample: int = 0  # elements; known once encoded

    def add_node(self, place: Place, channels: int, stride: int = 1, offset: int = 0) -> int:
        self.nodes.append(Node(place, channels, stride, offset=offset))
        return len(self.nodes) - 1

    def encode(self, width: int, dtype: torch.dtype) -> tuple[Tensor, list[Packing]]:
        """The program as the kernels read it for images of `width` columns, and where each step's
        weights go in the one packed tensor.
        """
        size = 0
        for node in self.nodes:
            if node.place == Place.CACHED:
                node.offset = size
                columns = -(-width // node.stride) + 2 * node.pad
                size += node.rows * columns * node.channels
        self.cache_per_sample = size
        panel = PANEL_BYTES // dtype.itemsize
        terms: list[int] = []
        taps: list[int] = []
        steps: list[int] = []
        packings: list[Packing] = []
        position = n_terms = n_taps = 0
        for step in [*self.row_steps, *self.pixel_steps]:
            padded = -(-step.channels // panel) * panel
            constants = -1
            if step.constants is not None:
                constants = position
                used = step.channels if step.kind == Kind.LINEAR else 2 * step.channels
                length = -(-used // panel) * panel  # all begin at a whole panel: 16-byte reads
                packings.append(Packing(step.constants, position, length))
                position += length
            steps += [step.kind, step.dst, step.dst_channel, step.channels]
            steps += [step.a, step.a_channel, step.b, step.b_channel]
            steps += [constants, n_terms, len(step.terms), step.dy, step.dx]
            for term in step.terms:
                terms += [term.source, term.channel, term.channels, term.ratio]
                terms += [n_taps, len(term.taps)]
                each = padded * term.channels
                for index, tap in enumerate(term.taps):
                    taps += [tap.dy, tap.dx, tap.phase, position + index * each]
                packings.append(Packing(term.matrices, position, len(term.taps) * each, panel))
                position += len(term.taps) * each
                n_terms += 1
                n_taps += len(term.taps)
        header = [len(self.nodes), len(self.row_steps), len(self.pixel_steps), n_terms, n_taps]
        header += [self.image, size, 0]
        nodes = [
            number
            for node in self.nodes
            for number in (node.place, node.channels, node.stride, node.rows, node.pad, node.offset)
        ]
        if position >= 2**31 or size >= 2**31:
            raise ValueError("network: more than 2^31 weights or cached activations a sample")
        words = [*header, *nodes, *steps, *terms, *taps]
        return torch.tensor(words, dtype=torch.int32), packings


@dataclass(frozen=True)
class Packing:
    """Weights on their way into the packed tensor: [begin, begin + length) of it."""

    weights: Callable[[], Tensor]
    begin: int
    length: int
    panel: int = 0  # 0: a vector, filled up with zeros

    def write(self, packed: Tensor) -> None:
        values = self.weights().detach()
        target = packed[self.begin : self.begin + self.length]
        if not self.panel:
            target[: values.numel()].copy_(values)
            return
        taps, out, channels = values.shape
        full, rest = divmod(out, self.panel)
        target = target.view(taps, -1, channels, self.panel)
        by_panel = values[:, : full * self.panel].view(taps, full, self.panel, channels)
        target[:, :full].copy_(by_panel.transpose(2, 3))
        if rest:
            target[:, full, :, :rest].copy_(values[:, full * self.panel :].transpose(1, 2))
